//! Answers of others, kept as long as they may be: positive ones by their times to live, negative ones by the SOA's
//! (RFC 2308). Bounded in number and in bytes; what was not asked for again goes first.

use super::message::Answer;
use crate::model::{Duration, Instant};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use std::collections::HashMap;

/// Most seconds an answer is kept.
pub const MAX_TTL: u32 = 86_400;
/// Most seconds it is kept that a name, or a record of it, does not exist.
pub const MAX_NEGATIVE: u32 = 900;
/// What a kept answer takes besides its bytes and twice its key, roughly.
const OVERHEAD: usize = 160;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers.
    pub answers: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            answers: 20_000,
            bytes: 16 << 20,
        }
    }
}

struct Kept {
    key: Box<[u8]>,
    answer: Answer,
    since: Instant,
    until: Instant,
    /// Asked for since the hand passed.
    used: bool,
}

impl Kept {
    fn size(&self) -> usize {
        size(&self.key, &self.answer)
    }
}

fn size(key: &[u8], answer: &Answer) -> usize {
    OVERHEAD + 2 * key.len() + answer.size()
}

/// The answers, by question (see [`super::message::Question::key`]).
pub struct Cache {
    limits: Limits,
    places: HashMap<Box<[u8]>, usize>,
    kept: Vec<Kept>,
    bytes: usize,
    /// Where the next one to go is looked for.
    hand: usize,
    evicted: u64,
}

impl Cache {
    /// An empty one.
    pub fn new(limits: Limits) -> Cache {
        Cache {
            limits,
            places: HashMap::new(),
            kept: Vec::new(),
            bytes: 0,
            hand: 0,
            evicted: 0,
        }
    }

    /// The answer to a question and its age in whole seconds, unless it has run out.
    pub fn find(&mut self, key: &[u8], now: Instant) -> Option<(&Answer, u32)> {
        let place = *self.places.get(key)?;
        let kept = self.kept.get_mut(place)?;
        if now >= kept.until || now < kept.since {
            return None;
        }
        kept.used = true;
        let age = u32::try_from((now - kept.since).secs()).unwrap_or(u32::MAX);
        Some((&kept.answer, age))
    }

    /// Keep an answer for `ttl`.
    pub fn keep(&mut self, key: &[u8], answer: Answer, ttl: Duration, now: Instant) {
        self.forget(key);
        let size = size(key, &answer);
        // One that large would cost all others.
        if ttl == Duration::ZERO || self.limits.answers == 0 || size > self.limits.bytes / 4 {
            return;
        }
        while self.kept.len() >= self.limits.answers || self.bytes + size > self.limits.bytes {
            self.evict(now);
        }
        self.bytes += size;
        self.places.insert(key.into(), self.kept.len());
        self.kept.push(Kept {
            key: key.into(),
            answer,
            since: now,
            until: now + ttl,
            used: false,
        });
    }

    /// Keep nothing of what there is.
    pub fn clear(&mut self) {
        *self = Cache {
            evicted: self.evicted,
            ..Cache::new(self.limits)
        };
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Bytes they take, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many had to go before their time.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Let one go: the first from the hand on that has run out or was not asked for since the hand passed it.
    fn evict(&mut self, now: Instant) {
        // One round takes all marks away, so the second ends.
        for _ in 0..=2 * self.kept.len() {
            if self.hand >= self.kept.len() {
                self.hand = 0;
            }
            let Some(kept) = self.kept.get_mut(self.hand) else {
                return;
            };
            let over = now >= kept.until;
            if over || !std::mem::take(&mut kept.used) {
                self.evicted += u64::from(!over);
                self.remove(self.hand);
                return;
            }
            self.hand += 1;
        }
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(place) = self.places.get(key).copied() {
            self.remove(place);
        }
    }

    fn remove(&mut self, place: usize) {
        let gone = self.kept.swap_remove(place);
        self.bytes -= gone.size();
        self.places.remove(&gone.key);
        // The last one has moved here.
        if let Some(moved) = self.kept.get(place)
            && let Some(of) = self.places.get_mut(&moved.key)
        {
            *of = place;
        }
    }
}

/// Bound the times to live of an answer of others; how long it may be kept, zero when it may not be.
pub fn bound(message: &mut Message) -> Duration {
    let negative = message.answers.is_empty() || message.metadata.response_code == ResponseCode::NXDomain;
    let mut denied = None;
    let sections = [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ];
    for record in sections.into_iter().flatten() {
        // A negative one is none (RFC 2181 section 8).
        let ttl = if record.ttl > i32::MAX as u32 {
            0
        } else {
            record.ttl
        };
        record.ttl = ttl.min(MAX_TTL);
        if let RData::SOA(soa) = &record.data {
            // So long holds that there is nothing, be it at the end of an alias (RFC 2308 section 5).
            record.ttl = record.ttl.min(soa.minimum).min(MAX_NEGATIVE);
            denied = Some(record.ttl);
        }
    }
    let all = message.answers.iter().chain(&message.authorities);
    let least = all.chain(&message.additionals).map(|r| r.ttl).min();
    let seconds = match message.metadata.response_code {
        // Without an SOA nobody said how long it holds.
        ResponseCode::NoError | ResponseCode::NXDomain if negative => denied.and(least),
        ResponseCode::NoError => least,
        _ => None,
    };
    Duration::from_secs(seconds.unwrap_or(0).into())
}

#[cfg(test)]
mod tests;
