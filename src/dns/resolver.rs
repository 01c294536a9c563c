//! A node's DNS as a whole: its own names, the cache, and the questions to others.

use super::cache::{Cache, Limits, bound};
use super::counters::{AnswerKind, DnsCounters, DnsDrop};
use super::forward::{Attempt, Client, Forward, Grounded, Landed, Order, Server, Waiter};
use super::message::{Answer, Question, write_flaw};
use super::zone::{Found, Zone};
use crate::model::Instant;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType, rdata::HINFO};
use ipnet::IpNet;
use std::net::SocketAddr;

const IN: u16 = 1;

/// What becomes of a message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Answered,
    /// It will come.
    Waits,
    /// There is none.
    Dropped,
}

/// An answer for somebody who waited.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Who.
    pub client: Client,
    /// The message.
    pub bytes: Vec<u8>,
}

/// The DNS of a node.
pub struct Resolver {
    zone: Zone,
    cache: Cache,
    forward: Forward,
    counters: DnsCounters,
    replies: Vec<Reply>,
    /// Clients that hear of nothing outside.
    isolated: Option<IpNet>,
}

impl Resolver {
    /// With its own names, and nobody to ask yet.
    pub fn new(zone: Zone, limits: Limits) -> Resolver {
        Resolver {
            zone,
            cache: Cache::new(limits),
            forward: Forward::default(),
            counters: DnsCounters::default(),
            replies: Vec::new(),
            isolated: None,
        }
    }

    /// Clients of these addresses are told only the node's own names from now on: pods without a way out have none by
    /// their questions either.
    pub fn isolate(&mut self, clients: IpNet) {
        self.isolated = Some(clients);
    }

    /// The node's own names.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Change the node's own names. What the cache has may be otherwise now if `entries` of people changed.
    pub fn change_zone(&mut self, entries: bool, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone);
        if entries {
            self.cache.clear();
        }
    }

    /// Ask these resolvers from now on. Other ones may have other answers, so the cache is cleared.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) {
        let same = self
            .forward
            .servers()
            .iter()
            .map(|s| s.at)
            .eq(servers.iter().copied());
        if !same {
            self.forward.set_servers(servers);
            self.cache.clear();
        }
    }

    /// The resolvers.
    pub fn servers(&self) -> &[Server] {
        self.forward.servers()
    }

    /// What is counted here.
    pub fn counters(&self) -> &DnsCounters {
        &self.counters
    }

    /// The same, for whoever owns the sockets.
    pub fn counters_mut(&mut self) -> &mut DnsCounters {
        &mut self.counters
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The questions to others.
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// What is to be sent to resolvers, and what is to be closed.
    pub fn orders(&mut self) -> std::vec::Drain<'_, Order> {
        self.forward.orders()
    }

    /// Whether there are any.
    pub fn has_orders(&self) -> bool {
        self.forward.has_orders()
    }

    /// Answers for those who waited.
    pub fn replies(&mut self) -> std::vec::Drain<'_, Reply> {
        self.replies.drain(..)
    }

    /// When [`Resolver::on_time`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.forward.deadline()
    }

    /// Take a message of a client; the answer is appended to `out`.
    pub fn ask(
        &mut self,
        bytes: &[u8],
        client: Client,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        match client.stream {
            true => self.counters.messages_tcp += 1,
            false => self.counters.messages_udp += 1,
        }
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(flaw) => {
                if write_flaw(bytes, flaw, out) {
                    self.counters.answered(AnswerKind::Malformed);
                    return Outcome::Answered;
                }
                let response = flaw == super::message::Flaw::Response;
                self.counters.dropped(if response {
                    DnsDrop::Response
                } else {
                    DnsDrop::Short
                });
                return Outcome::Dropped;
            }
        };
        let mut space = [0; 260];
        let key = question.key(&mut space);
        let goes_out =
            question.recursion_desired() && !self.isolated.is_some_and(|n| n.contains(&client.from.ip()));
        if goes_out && let Some((answer, age)) = self.cache.find(key, now) {
            answer.write(&question, client.stream, age, out);
            self.counters.answered(AnswerKind::Cache);
            return Outcome::Answered;
        }
        let refused =
            question.class() != IN || matches!(question.kind(), RecordType::AXFR | RecordType::IXFR);
        if refused {
            return self.say(&question, ResponseCode::Refused, out);
        }
        match self.zone.lookup(question.name(), question.kind()) {
            Found::Here {
                code,
                answers,
                authority,
                additionals,
            } => {
                let mut message = blank(&question);
                message.metadata.authoritative = true;
                message.metadata.response_code = code;
                message.add_answers(answers);
                message.add_authorities(authority);
                message.add_additionals(additionals);
                self.counters.answered(AnswerKind::Zone);
                write(message, &question, client.stream, out);
                Outcome::Answered
            }
            _ if !goes_out => self.say(&question, ResponseCode::Refused, out),
            // Nobody needs all there is of a name, except to flood somebody with it (RFC 8482).
            Found::Elsewhere if question.kind() == RecordType::ANY => {
                let mut message = blank(&question);
                let any = RData::HINFO(HINFO::new("RFC8482".into(), String::new()));
                let owner = super::name::name_of(question.name());
                message.add_answer(Record::from_rdata(owner, 3600, any));
                self.counters.answered(AnswerKind::Zone);
                write(message, &question, client.stream, out);
                Outcome::Answered
            }
            Found::Elsewhere => {
                let section: &[u8] = &key[..key.len() - 1];
                let waiter = Waiter {
                    client,
                    question: question.to_owned(),
                    aliases: Vec::new(),
                };
                let asked = self.forward.ask(key, section, waiter, now, random);
                self.asked(asked, &question, out)
            }
            Found::Alias { answers, target } => {
                // The same question with another name.
                let tail = &key[question.name().len()..key.len()];
                let other = [target.wire(), tail].concat();
                if let Some((answer, age)) = self.cache.find(&other, now) {
                    let message = answer.message().map(|mut message| {
                        let records = message.answers.iter_mut().chain(&mut message.authorities);
                        for record in records.chain(&mut message.additionals) {
                            record.decrement_ttl(age);
                        }
                        message
                    });
                    let kind = joined(message, answers, &question, client.stream, out);
                    self.counters.answered(match kind {
                        AnswerKind::Upstream => AnswerKind::Cache,
                        other => other,
                    });
                    return Outcome::Answered;
                }
                let waiter = Waiter {
                    client,
                    question: question.to_owned(),
                    aliases: answers,
                };
                let section = &other[..other.len() - 1];
                let asked = self.forward.ask(&other, section, waiter, now, random);
                self.asked(asked, &question, out)
            }
        }
    }

    /// A message came for an attempt.
    pub fn heard(
        &mut self,
        attempt: Attempt,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) {
        self.forward.heard(attempt, from, bytes, now, random);
        self.land(now);
    }

    /// An attempt failed.
    pub fn failed(&mut self, attempt: Attempt, now: Instant, random: &mut dyn FnMut() -> u64) {
        self.forward.failed(attempt, now, random);
        self.land(now);
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant, random: &mut dyn FnMut() -> u64) {
        self.forward.on_time(now, random);
        self.land(now);
    }

    fn say(&mut self, question: &Question<&[u8]>, code: ResponseCode, out: &mut Vec<u8>) -> Outcome {
        question.write_code(code, out);
        self.counters.answered(match code {
            ResponseCode::Refused => AnswerKind::Refused,
            _ => AnswerKind::Failed,
        });
        Outcome::Answered
    }

    fn asked(
        &mut self,
        asked: Result<(), Grounded>,
        question: &Question<&[u8]>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let why = match asked {
            Ok(()) => return Outcome::Waits,
            Err(Grounded::Again) => {
                self.counters.dropped(DnsDrop::Again);
                return Outcome::Dropped;
            }
            Err(Grounded::NoServer) => None,
            Err(Grounded::Full) => Some(DnsDrop::Full),
            Err(Grounded::ClientFull) => Some(DnsDrop::ClientFull),
            Err(Grounded::Crowded) => Some(DnsDrop::Crowded),
        };
        if let Some(why) = why {
            self.counters.dropped(why);
        }
        self.say(question, ResponseCode::ServFail, out)
    }

    /// Answer those whose questions have ended.
    fn land(&mut self, now: Instant) {
        let landed: Vec<Landed> = self.forward.landed().collect();
        for Landed {
            key,
            message,
            waiters,
        } in landed
        {
            let plain = message.and_then(|mut message| {
                let ttl = bound(&mut message);
                message.metadata.authoritative = false;
                message.metadata.authentic_data = false;
                Some((Answer::of(message)?, ttl))
            });
            for Waiter {
                client,
                question,
                aliases,
            } in waiters
            {
                let mut bytes = Vec::with_capacity(512);
                let kind = match &plain {
                    None => {
                        question.write_code(ResponseCode::ServFail, &mut bytes);
                        AnswerKind::Failed
                    }
                    Some((answer, _)) if aliases.is_empty() => {
                        answer.write(&question, client.stream, 0, &mut bytes);
                        kind(answer.code())
                    }
                    Some((answer, _)) => {
                        joined(answer.message(), aliases, &question, client.stream, &mut bytes)
                    }
                };
                self.counters.answered(kind);
                self.replies.push(Reply { client, bytes });
            }
            if let Some((answer, ttl)) = plain {
                self.cache.keep(&key, answer, ttl, now);
            }
        }
    }
}

fn kind(code: ResponseCode) -> AnswerKind {
    match code {
        ResponseCode::NoError | ResponseCode::NXDomain => AnswerKind::Upstream,
        _ => AnswerKind::Failed,
    }
}

/// A message that answers `question` and has nothing yet.
fn blank<B: AsRef<[u8]>>(question: &Question<B>) -> Message {
    let mut message = Message::response(question.id, OpCode::Query);
    let mut query = Query::query(super::name::name_of(question.name()), question.kind());
    query.set_query_class(DNSClass::from(question.class()));
    message.add_query(query);
    message
}

/// Encode an answer of this node.
fn write<B: AsRef<[u8]>>(message: Message, question: &Question<B>, stream: bool, out: &mut Vec<u8>) {
    match Answer::of(message) {
        Some(answer) => answer.write(question, stream, 0, out),
        None => question.write_code(ResponseCode::ServFail, out),
    }
}

/// Encode what others say of the name that `aliases` lead to.
fn joined<B: AsRef<[u8]>>(
    message: Option<Message>,
    aliases: Vec<Record>,
    question: &Question<B>,
    stream: bool,
    out: &mut Vec<u8>,
) -> AnswerKind {
    let Some(theirs) = message else {
        question.write_code(ResponseCode::ServFail, out);
        return AnswerKind::Failed;
    };
    let mut message = blank(question);
    message.metadata.response_code = theirs.metadata.response_code;
    message.add_answers(aliases);
    message.add_answers(theirs.answers);
    message.add_authorities(theirs.authorities);
    message.add_additionals(theirs.additionals);
    let code = message.metadata.response_code;
    write(message, question, stream, out);
    kind(code)
}

#[cfg(test)]
mod tests;
