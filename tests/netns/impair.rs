//! What can happen to a frame on its way, decided by a seeded generator.

use std::time::{Duration, Instant};

/// One percent, in the millionths that [`Impairment`] counts in.
pub const PERCENT: u32 = 10_000;
/// Most frames that overtake a frame held back.
const OVERTAKERS: u64 = 64;
/// How long a frame is held back when too few others come.
const HELD: Duration = Duration::from_millis(3);

/// A frame that would wait longer for its turn on a line of limited rate is lost.
const QUEUE: Duration = Duration::from_millis(100);

/// Random numbers: splitmix64, enough for tests and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True so many times in a million.
    pub fn chance(&mut self, millionths: u32) -> bool {
        millionths > 0 && self.below(1_000_000) < u64::from(millionths)
    }

    /// Fill `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What happens to frames from one link to another. Probabilities are in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Lost.
    pub loss: u32,
    /// Delivered twice.
    pub duplicate: u32,
    /// Overtaken by 1 to 64 later frames.
    pub reorder: u32,
    /// One bit of the packet flipped.
    pub corrupt: u32,
    /// One bit inside the tunnel flipped, and the outer UDP checksum made right again.
    pub corrupt_inside: u32,
    /// Time added to each.
    pub delay: Duration,
    /// So many bytes a second at most, behind a queue of [`QUEUE`].
    pub rate: Option<u32>,
    /// Longer frames vanish.
    pub longest: Option<usize>,
    /// All vanish.
    pub cut: bool,
}

/// What happened to frames so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came, once for each link they were meant for.
    pub offered: u64,
    /// Frames that went on, copies included.
    pub delivered: u64,
    /// Frames lost, cut or too long.
    pub lost: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames held back.
    pub reordered: u64,
    /// Frames with a flipped bit.
    pub corrupted: u64,
}

/// The way from one link to another.
#[derive(Debug, Default)]
pub struct Way {
    /// The rules in force.
    pub rules: Impairment,
    held: Vec<Held>,
    /// When the line has sent what waits for it.
    free: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    /// Frames that may overtake it yet.
    overtakers: u64,
    due: Instant,
    frame: Vec<u8>,
}

impl Way {
    /// Take a frame; `deliver` gets what arrives at once: this one, or earlier ones that it sets free.
    pub fn take(
        &mut self,
        frame: &mut [u8],
        now: Instant,
        rng: &mut Rng,
        counters: &mut Counters,
        deliver: &mut impl FnMut(&[u8]),
    ) {
        let rules = self.rules;
        counters.offered += 1;
        if rules.cut || rules.longest.is_some_and(|most| frame.len() > most) || rng.chance(rules.loss) {
            counters.lost += 1;
            return;
        }
        if rng.chance(rules.corrupt) {
            // Behind the Ethernet header: a wrong MAC would only be another way to get lost.
            let bit = 14 * 8 + rng.below((frame.len() as u64 - 14) * 8);
            frame[bit as usize / 8] ^= 1 << (bit % 8);
            counters.corrupted += 1;
        }
        if rng.chance(rules.corrupt_inside) && corrupt_inside(frame, rng) {
            counters.corrupted += 1;
        }
        let twice = rng.chance(rules.duplicate);
        counters.duplicated += u64::from(twice);
        for held in &mut self.held {
            held.overtakers = held.overtakers.saturating_sub(1);
        }
        let mut delay = rules.delay;
        if let Some(rate) = rules.rate {
            let begins = self.free.map_or(now, |free| free.max(now));
            if begins - now > QUEUE {
                counters.lost += 1;
                return;
            }
            let ends = begins + Duration::from_secs_f64(frame.len() as f64 / f64::from(rate));
            self.free = Some(ends);
            delay += ends - now;
        }
        for _ in 0..1 + u64::from(twice) {
            if rng.chance(rules.reorder) {
                counters.reordered += 1;
                self.hold(1 + rng.below(OVERTAKERS), now + HELD + delay, frame);
            } else if !delay.is_zero() {
                self.hold(u64::MAX, now + delay, frame);
            } else {
                counters.delivered += 1;
                deliver(frame);
            }
        }
        self.release(now, counters, deliver);
    }

    /// Let go what has waited long enough.
    pub fn release(&mut self, now: Instant, counters: &mut Counters, deliver: &mut impl FnMut(&[u8])) {
        self.held.retain(|held| {
            let stays = held.overtakers > 0 && held.due > now;
            if !stays {
                counters.delivered += 1;
                deliver(&held.frame);
            }
            stays
        });
    }

    /// When [`Way::release`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.due).min()
    }

    fn hold(&mut self, overtakers: u64, due: Instant, frame: &[u8]) {
        let frame = frame.to_vec();
        self.held.push(Held {
            overtakers,
            due,
            frame,
        });
    }
}

/// Flip a bit of a UDP payload over IPv4 without options, and update the checksum (RFC 1624). Whether the frame
/// is one.
fn corrupt_inside(frame: &mut [u8], rng: &mut Rng) -> bool {
    const UDP: usize = 14 + 20;
    const PAYLOAD: usize = UDP + 8;
    let whole_words = frame.len() & !1;
    if whole_words <= PAYLOAD || frame[12..15] != [8, 0, 0x45] || frame[23] != 17 {
        return false;
    }
    let word = PAYLOAD + 2 * rng.below((whole_words - PAYLOAD) as u64 / 2) as usize;
    let read = |frame: &[u8], at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let before = read(frame, word);
    frame[word + rng.below(2) as usize] ^= 1 << rng.below(8);
    let mut sum = (!read(frame, UDP + 6) & 0xffff) + (!before & 0xffff) + read(frame, word);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame[UDP + 6..PAYLOAD].copy_from_slice(&(!sum as u16).to_be_bytes());
    true
}
