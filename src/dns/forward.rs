//! Questions to the host's resolvers: which is asked when, what counts as an answer, and when it is given up.
//!
//! ```text
//! a question -> flight -> attempt (a socket of its own: random port, random identifier, random spelling)
//!                           | answered             -> everybody who waits for it
//!                           | silent for a second  -> next attempt, at the next resolver; the old one may still answer
//!                           | truncated            -> the same resolver over TCP
//!                           | refused, failed      -> next resolver at once; its code is told if none does better
//!                           | nothing for 4.5 s    -> SERVFAIL
//! ```
//!
//! Whoever asks what is under way waits for the same answer, so that a loop of resolvers ends here. Nothing is sent
//! and no clock is read: [`Forward`] leaves [`Order`]s, and is told what came.

use super::message::{HEADER, Question, write_question};
use super::name;
use crate::model::{Duration, Instant};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::Record;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Most questions under way.
pub const MAX_FLIGHTS: usize = 512;
/// Most of them for one client address, so that one client does not take all.
pub const MAX_PER_CLIENT: usize = 128;
/// Most clients that wait for one answer.
pub const MAX_WAITERS: usize = 64;
/// Most resolvers that are used.
pub const MAX_SERVERS: usize = 8;
/// Most attempts of one question; each takes a socket.
const MAX_ATTEMPTS: usize = 6;
/// How long an attempt may be silent before the next one.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How long a question is under way: glibc asks again after five seconds.
const END: Duration = Duration::from_millis(4500);
/// How long a resolver that was silent is asked after the others.
const SHY: Duration = Duration::from_secs(10);

/// Who asked, as the owner of the sockets knows him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// His address.
    pub from: SocketAddr,
    /// The socket he asked at: its number, and which of those that had it.
    pub socket: (u32, u32),
    /// Whether that is a TCP connection.
    pub stream: bool,
}

/// Somebody who waits.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// Who.
    pub client: Client,
    /// What he asked.
    pub question: Question<Box<[u8]>>,
    /// Aliases of this node that led to what others are asked.
    pub aliases: Vec<Record>,
}

/// An attempt, as the owner of the sockets knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// Place in the table.
    pub flight: u32,
    /// Which of the flights that had this place.
    pub generation: u32,
    /// Number of the attempt.
    pub number: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send this from a new socket, which hears only this address; tell what comes, or that it failed.
    Send {
        /// For whom.
        attempt: Attempt,
        /// Where to.
        to: SocketAddr,
        /// Over TCP.
        stream: bool,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The attempts of this flight are of no use any more.
    Close {
        /// Its place.
        flight: u32,
        /// Which of the flights that had this place.
        generation: u32,
    },
}

/// Why a question does not fly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounded {
    /// There is nobody to ask.
    NoServer,
    /// Too many are under way.
    Full,
    /// Too many of this client are.
    ClientFull,
    /// Too many wait for this one.
    Crowded,
    /// The client has asked the same before and waits already.
    Again,
}

/// How an attempt's message was taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is not the answer: another identifier, question or sender, or no answer at all.
    Ignored,
    /// It is one, and was not good enough; the question goes on.
    GoesOn,
    /// The question has landed: [`Forward::landed`] has it.
    Landed,
}

/// A question that has ended.
#[derive(Debug)]
pub struct Landed {
    /// What it is known by.
    pub key: Box<[u8]>,
    /// The answer; none when all failed.
    pub message: Option<Message>,
    /// Everybody who waited.
    pub waiters: Vec<Waiter>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions sent over UDP.
    pub sent_udp: u64,
    /// Questions sent over TCP.
    pub sent_tcp: u64,
    /// Attempts that nobody answered in time.
    pub timeouts: u64,
    /// Messages that were not the answer to what was asked.
    pub ignored: u64,
    /// Attempts that a resolver or the network refused.
    pub refused: u64,
    /// Questions given up.
    pub given_up: u64,
}

/// A resolver, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub at: SocketAddr,
    /// Until when it is asked after the others.
    shy: Instant,
}

impl Server {
    /// Whether it was silent a moment ago.
    pub fn is_silent(&self, now: Instant) -> bool {
        now < self.shy
    }
}

struct Try {
    server: SocketAddr,
    id: u16,
    /// Name, type and class as they were sent.
    section: Box<[u8]>,
    stream: bool,
    edns: bool,
    /// Still to be heard.
    open: bool,
}

struct Flight {
    key: Box<[u8]>,
    /// Name in lower case, type and class.
    section: Box<[u8]>,
    dnssec_ok: bool,
    checking_disabled: bool,
    /// Whether the spelling may be mixed still.
    mixed: bool,
    edns: bool,
    waiters: Vec<Waiter>,
    tries: Vec<Try>,
    /// The resolvers in the order they are asked, and who is next.
    servers: Vec<SocketAddr>,
    next: usize,
    /// The code of one who refused.
    refusal: Option<Message>,
    next_at: Instant,
    end: Instant,
}

impl Flight {
    fn due(&self) -> Instant {
        self.next_at.min(self.end)
    }
}

/// The questions under way.
#[derive(Default)]
pub struct Forward {
    servers: Vec<Server>,
    places: Vec<(u32, Option<Flight>)>,
    free: Vec<u32>,
    by_key: HashMap<Box<[u8]>, u32>,
    due: BTreeSet<(Instant, u32)>,
    clients: HashMap<IpAddr, usize>,
    orders: Vec<Order>,
    landed: Vec<Landed>,
    counts: Counts,
}

impl Forward {
    /// Ask these from now on, in this order. What is under way goes on with those it has.
    pub fn set_servers(&mut self, servers: &[SocketAddr]) {
        let known = |at| self.servers.iter().find(|s| s.at == at).map(|s| s.shy);
        let new = servers.iter().take(MAX_SERVERS).map(|at| Server {
            at: *at,
            shy: known(*at).unwrap_or(Instant::ZERO),
        });
        self.servers = new.collect();
    }

    /// Those that are asked.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// How many questions are under way.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is to be done now.
    pub fn orders(&mut self) -> std::vec::Drain<'_, Order> {
        self.orders.drain(..)
    }

    /// Whether there is anything.
    pub fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// What has ended.
    pub fn landed(&mut self) -> std::vec::Drain<'_, Landed> {
        self.landed.drain(..)
    }

    /// When [`Forward::on_time`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Ask others what `waiter` wants to know: `section` is name, type and class in lower case, and `key` what that is
    /// known by. `random` gives random bits.
    ///
    /// # Errors
    /// Why not; he does not wait then.
    pub fn ask(
        &mut self,
        key: &[u8],
        section: &[u8],
        waiter: Waiter,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(), Grounded> {
        let client = waiter.client.from.ip();
        if let Some(flight) = self.by_key.get(key).copied() {
            let Some((_, Some(flight))) = self.places.get_mut(flight as usize) else {
                return Err(Grounded::Full);
            };
            let same = |w: &Waiter| w.client == waiter.client && w.question.id == waiter.question.id;
            if flight.waiters.iter().any(same) {
                return Err(Grounded::Again);
            }
            if flight.waiters.len() >= MAX_WAITERS {
                return Err(Grounded::Crowded);
            }
            flight.waiters.push(waiter);
            return Ok(());
        }
        if self.servers.is_empty() {
            return Err(Grounded::NoServer);
        }
        if self.by_key.len() >= MAX_FLIGHTS {
            return Err(Grounded::Full);
        }
        let mine = self.clients.entry(client).or_default();
        if *mine >= MAX_PER_CLIENT {
            return Err(Grounded::ClientFull);
        }
        *mine += 1;
        let (loud, shy): (Vec<Server>, Vec<Server>) = self.servers.iter().partition(|s| !s.is_silent(now));
        let flight = Flight {
            key: key.into(),
            section: section.into(),
            dnssec_ok: waiter.question.dnssec_ok(),
            checking_disabled: waiter.question.checking_disabled(),
            mixed: true,
            edns: true,
            waiters: vec![waiter],
            tries: Vec::new(),
            servers: loud.iter().chain(&shy).map(|s| s.at).collect(),
            next: 0,
            refusal: None,
            next_at: now,
            end: now + END,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            // Places are bounded by MAX_FLIGHTS.
            self.places.len() as u32 - 1
        });
        self.by_key.insert(key.into(), place);
        self.due.insert((flight.due(), place));
        self.places[place as usize].1 = Some(flight);
        self.next_attempt(place, now, random);
        Ok(())
    }

    /// A message came for `attempt`, from `from`.
    pub fn heard(
        &mut self,
        attempt: Attempt,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Heard {
        let Some(flight) = self.flight(attempt) else {
            return Heard::Ignored;
        };
        let number = attempt.number as usize;
        let Some(tried) = flight.tries.get(number).filter(|t| t.open) else {
            return Heard::Ignored;
        };
        let server = tried.server;
        match tried.judge(from, bytes) {
            Judgement::Forged => {
                self.counts.ignored += 1;
                Heard::Ignored
            }
            // A resolver that spells names its own way; or somebody guesses. TCP tells.
            Judgement::Respelled if tried.stream => {
                self.counts.ignored += 1;
                Heard::Ignored
            }
            Judgement::Respelled => {
                flight.mixed = false;
                // The attempt stays open: the true answer may still come.
                let asked = flight.tries.iter().any(|t| t.stream && t.server == server);
                self.counts.ignored += 1;
                if !asked {
                    self.attempt(attempt.flight, server, true, now, random);
                }
                Heard::GoesOn
            }
            Judgement::Truncated if tried.stream => self.failed(attempt, now, random),
            Judgement::Truncated => {
                flight.tries[number].open = false;
                self.answered(server);
                self.attempt(attempt.flight, server, true, now, random);
                Heard::GoesOn
            }
            Judgement::NoEdns if tried.edns => {
                flight.tries[number].open = false;
                flight.edns = false;
                let stream = flight.tries[number].stream;
                self.attempt(attempt.flight, server, stream, now, random);
                Heard::GoesOn
            }
            Judgement::NoEdns | Judgement::Garbled => self.failed(attempt, now, random),
            Judgement::Refusal(message) => {
                flight.refusal = Some(*message);
                self.failed(attempt, now, random)
            }
            Judgement::Answer(message) => {
                self.answered(server);
                self.land(attempt.flight, Some(*message));
                Heard::Landed
            }
        }
    }

    /// The network refused `attempt`, or its connection ended.
    pub fn failed(&mut self, attempt: Attempt, now: Instant, random: &mut dyn FnMut() -> u64) -> Heard {
        let Some(flight) = self.flight(attempt) else {
            return Heard::Ignored;
        };
        match flight.tries.get_mut(attempt.number as usize) {
            Some(tried) if tried.open => tried.open = false,
            _ => return Heard::Ignored,
        }
        self.counts.refused += 1;
        let Some(flight) = self.flight(attempt) else {
            return Heard::Ignored;
        };
        if flight.next < flight.servers.len() {
            // Another one has not been asked yet.
            self.next_attempt(attempt.flight, now, random);
        } else if !flight.tries.iter().any(|t| t.open) {
            // Nobody is left who could say anything.
            self.give_up(attempt.flight);
            return Heard::Landed;
        }
        Heard::GoesOn
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant, random: &mut dyn FnMut() -> u64) {
        while let Some((at, place)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            let over = match &self.places[place as usize].1 {
                Some(flight) => flight.end <= now,
                None => {
                    self.due.remove(&(at, place));
                    continue;
                }
            };
            if let Some(flight) = &self.places[place as usize].1
                && let Some(tried) = flight.tries.last().filter(|t| t.open)
            {
                let server = tried.server;
                self.counts.timeouts += 1;
                if let Some(server) = self.servers.iter_mut().find(|s| s.at == server) {
                    server.shy = now + SHY;
                }
            }
            match over {
                true => self.give_up(place),
                false => self.next_attempt(place, now, random),
            }
        }
    }

    fn flight(&mut self, attempt: Attempt) -> Option<&mut Flight> {
        match self.places.get_mut(attempt.flight as usize) {
            Some((generation, Some(flight))) if *generation == attempt.generation => Some(flight),
            _ => None,
        }
    }

    fn answered(&mut self, server: SocketAddr) {
        if let Some(server) = self.servers.iter_mut().find(|s| s.at == server) {
            server.shy = Instant::ZERO;
        }
    }

    /// Ask the next resolver over UDP.
    fn next_attempt(&mut self, place: u32, now: Instant, random: &mut dyn FnMut() -> u64) {
        let Some((_, Some(flight))) = self.places.get_mut(place as usize) else {
            return;
        };
        let next = flight.next;
        flight.next += 1;
        if let Some(server) = flight.servers.get(next % flight.servers.len().max(1)).copied() {
            self.attempt(place, server, false, now, random);
        }
    }

    fn attempt(
        &mut self,
        place: u32,
        server: SocketAddr,
        stream: bool,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) {
        let Some((generation, Some(flight))) = self.places.get_mut(place as usize) else {
            return;
        };
        self.due.remove(&(flight.due(), place));
        if flight.tries.len() >= MAX_ATTEMPTS {
            flight.next_at = flight.end;
        } else {
            // A connection takes a round trip more.
            flight.next_at = now + if stream { PATIENCE * 2 } else { PATIENCE };
            let id = random() as u16;
            let mut section = flight.section.clone();
            if flight.mixed && !stream {
                mix(&mut section, random);
            }
            let edns = flight.edns.then_some(flight.dnssec_ok);
            let mut bytes = Vec::with_capacity(64);
            write_question(id, &section, flight.checking_disabled, edns, &mut bytes);
            let attempt = Attempt {
                flight: place,
                generation: *generation,
                number: flight.tries.len() as u32,
            };
            flight.tries.push(Try {
                server,
                id,
                section,
                stream,
                edns: flight.edns,
                open: true,
            });
            match stream {
                true => self.counts.sent_tcp += 1,
                false => self.counts.sent_udp += 1,
            }
            self.orders.push(Order::Send {
                attempt,
                to: server,
                stream,
                bytes,
            });
        }
        self.due.insert((flight.due(), place));
    }

    fn give_up(&mut self, place: u32) {
        self.counts.given_up += 1;
        let refusal = match self.places.get_mut(place as usize) {
            Some((_, Some(flight))) => flight.refusal.take(),
            _ => None,
        };
        self.land(place, refusal);
    }

    fn land(&mut self, place: u32, message: Option<Message>) {
        let Some((generation, flight)) = self.places.get_mut(place as usize) else {
            return;
        };
        let Some(flight) = flight.take() else {
            return;
        };
        self.orders.push(Order::Close {
            flight: place,
            generation: *generation,
        });
        *generation = generation.wrapping_add(1);
        self.free.push(place);
        self.due.remove(&(flight.due(), place));
        self.by_key.remove(&flight.key);
        // Whoever began it pays for it.
        if let Some(first) = flight.waiters.first() {
            let ip = first.client.from.ip();
            if let Some(count) = self.clients.get_mut(&ip) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.clients.remove(&ip);
                }
            }
        }
        self.landed.push(Landed {
            key: flight.key,
            message,
            waiters: flight.waiters,
        });
    }
}

enum Judgement {
    Forged,
    Respelled,
    Truncated,
    NoEdns,
    Garbled,
    Refusal(Box<Message>),
    Answer(Box<Message>),
}

impl Try {
    /// What a message is to this attempt.
    fn judge(&self, from: SocketAddr, bytes: &[u8]) -> Judgement {
        let word = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        // An interface's number (scope) may be told or not.
        let same = from.ip() == self.server.ip() && from.port() == self.server.port();
        let (Some(id), Some(flags), Some(questions)) = (word(0), word(2), word(4)) else {
            return Judgement::Forged;
        };
        const ANSWER: u16 = 0x8000;
        const OPCODE: u16 = 0x7800;
        const TRUNCATED: u16 = 0x0200;
        if !same || id != self.id || flags & (ANSWER | OPCODE) != ANSWER {
            return Judgement::Forged;
        }
        let code = ResponseCode::from_low((flags & 15) as u8);
        let refuses_edns = matches!(code, ResponseCode::FormErr | ResponseCode::NotImp);
        // Servers that do not know EDNS may send nothing but a header.
        if questions == 0 && refuses_edns {
            return Judgement::NoEdns;
        }
        let section = bytes.get(HEADER..HEADER + self.section.len());
        match section {
            Some(section) if questions == 1 && *section == *self.section => {}
            Some(section) if questions == 1 && section.eq_ignore_ascii_case(&self.section) => {
                // Type and class have no case.
                let tail = self.section.len().saturating_sub(4);
                if section[tail..] != self.section[tail..] {
                    return Judgement::Forged;
                }
                if !self.stream {
                    return Judgement::Respelled;
                }
            }
            _ => return Judgement::Forged,
        }
        if flags & TRUNCATED != 0 {
            return Judgement::Truncated;
        }
        if refuses_edns && self.edns {
            return Judgement::NoEdns;
        }
        // Names that point into the question shall not show the spelling it had.
        let mut plain = bytes.to_vec();
        let name = HEADER..(HEADER + self.section.len()).saturating_sub(4);
        if let Some(name) = plain.get_mut(name) {
            name.make_ascii_lowercase();
        }
        let Ok(message) = Message::from_vec(&plain) else {
            return Judgement::Garbled;
        };
        if message.metadata.message_type != MessageType::Response {
            return Judgement::Forged;
        }
        match message.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Judgement::Answer(message.into()),
            _ => Judgement::Refusal(message.into()),
        }
    }
}

/// Mix the case of the letters of a name at random: an answer in another spelling was guessed by somebody who did not
/// see the question (draft-vixie-dnsext-dns0x20).
fn mix(section: &mut [u8], random: &mut dyn FnMut() -> u64) {
    let len = name::wire_len(section).unwrap_or(0);
    let mut bits = (0, 0);
    let mut label = 0;
    for byte in &mut section[..len] {
        if label == 0 {
            label = *byte;
            continue;
        }
        label -= 1;
        if bits.1 == 0 {
            bits = (random(), 64);
        }
        if byte.is_ascii_alphabetic() && bits.0 & 1 == 1 {
            *byte ^= 0x20;
        }
        bits = (bits.0 >> 1, bits.1 - 1);
    }
}

#[cfg(test)]
mod tests;
