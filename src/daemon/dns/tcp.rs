//! Clients over TCP: each is served as far as it goes without waiting, and none waits for another.
//!
//! A client that sends half a message, or does not take its answers, is closed when its time is over; one that says
//! nothing gives way to a newcomer before that, when there are many.

use crate::dns::message::MAX_MESSAGE;
use crate::model::{Duration, Instant};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

/// Most clients at once.
pub const MAX_CLIENTS: usize = 256;
/// How long a client may say nothing (RFC 7766 section 6.2.3 asks for seconds).
pub const IDLE: Duration = Duration::from_secs(10);
/// How long one message may take, and one answer.
pub const SLOW: Duration = Duration::from_secs(5);
/// Most questions of one client whose answers are to come.
const MAX_PENDING: usize = 32;
/// A client that has not taken so many bytes is not read from.
const MAX_OUTPUT: usize = 64 << 10;
/// Most reads from one client before others have their turn.
const READS: usize = 4;
/// Most bytes of questions that are read ahead.
const MAX_INPUT: usize = 2 + MAX_MESSAGE;

/// A client.
pub struct Client {
    stream: TcpStream,
    /// His address.
    pub from: SocketAddr,
    /// Which of those that had this place.
    pub generation: u32,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are gone.
    sent: usize,
    /// Answers to come.
    pending: usize,
    /// He said that he is done.
    ended: bool,
    since: Instant,
    deadline: Instant,
}

/// Why a client is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// He is done, or gone.
    Over,
    /// His time is over.
    Slow,
}

/// The clients, by place.
#[derive(Default)]
pub struct Clients {
    places: Vec<(u32, Option<Client>)>,
}

impl Clients {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.iter().filter(|(_, c)| c.is_some()).count()
    }

    /// Take in a newcomer at `token(place)`; how many had to go, himself included if so.
    pub fn add(
        &mut self,
        mut stream: TcpStream,
        from: SocketAddr,
        now: Instant,
        registry: &Registry,
        token: impl Fn(usize) -> Token,
    ) -> io::Result<u64> {
        let free = self.places.iter().position(|(_, c)| c.is_none());
        let mut gone = 0;
        let place = match free {
            Some(place) => place,
            None if self.places.len() < MAX_CLIENTS => {
                self.places.push((0, None));
                self.places.len() - 1
            }
            None => {
                // Of those who have most: a flood by one leaves the others theirs.
                let mut of: HashMap<IpAddr, usize> = HashMap::new();
                for client in self.places.iter().filter_map(|(_, c)| c.as_ref()) {
                    *of.entry(client.from.ip()).or_default() += 1;
                }
                let idle = self.places.iter().enumerate().filter_map(|(place, (_, c))| {
                    let client = c.as_ref().filter(|c| c.pending == 0 && c.output.is_empty())?;
                    let many = of.get(&client.from.ip()).copied();
                    Some((Reverse(many), client.since, place))
                });
                gone = 1;
                let Some((_, _, place)) = idle.min() else {
                    return Ok(gone);
                };
                self.close(place);
                place
            }
        };
        registry.register(&mut stream, token(place), Interest::READABLE | Interest::WRITABLE)?;
        let generation = self.places[place].0;
        self.places[place].1 = Some(Client {
            stream,
            from,
            generation,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            pending: 0,
            ended: false,
            since: now,
            deadline: now + IDLE,
        });
        Ok(gone)
    }

    /// The client at `place`.
    pub fn at(&mut self, place: usize) -> Option<&mut Client> {
        self.places.get_mut(place)?.1.as_mut()
    }

    /// The client at `place`, if it is that one still.
    pub fn of(&mut self, (place, generation): (u32, u32)) -> Option<&mut Client> {
        let client = self.at(place as usize)?;
        (client.generation == generation).then_some(client)
    }

    /// Close the client at `place`.
    pub fn close(&mut self, place: usize) {
        if let Some((generation, client)) = self.places.get_mut(place) {
            // Closing takes it out of the poll.
            *client = None;
            *generation = generation.wrapping_add(1);
        }
    }

    /// When somebody's time is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.places
            .iter()
            .filter_map(|(_, c)| Some(c.as_ref()?.deadline))
            .min()
    }

    /// Close those whose time is over; how many were in the middle of something.
    pub fn expire(&mut self, now: Instant) -> u64 {
        let mut slow = 0;
        for place in 0..self.places.len() {
            let Some(client) = self.places[place].1.as_ref().filter(|c| c.deadline <= now) else {
                continue;
            };
            slow += u64::from(!client.input.is_empty() || !client.output.is_empty());
            self.close(place);
        }
        slow
    }
}

impl Client {
    /// Read what is there; each whole message goes to `take`, which says whether its answer is to come, and appends
    /// what there is to say at once. Whether there may be more, of which nothing else tells.
    ///
    /// # Errors
    /// He is to be closed.
    pub fn serve(
        &mut self,
        now: Instant,
        mut take: impl FnMut(&[u8], &mut Vec<u8>) -> bool,
    ) -> Result<bool, End> {
        self.flush(now)?;
        for reads in 0.. {
            let before = self.input.len();
            while self.is_open() {
                let Some(message) = first(&self.input) else {
                    break;
                };
                let len = 2 + message.len();
                let start = self.output.len();
                self.output.extend([0, 0]);
                let waits = take(message, &mut self.output);
                self.input.drain(..len);
                self.close_message(start);
                self.pending += usize::from(waits);
                self.since = now;
                self.deadline = now + if self.input.is_empty() { IDLE } else { SLOW };
            }
            self.flush(now)?;
            if !self.is_open() || first(&self.input).is_some() {
                // He must take something first.
                return Ok(false);
            }
            if self.ended {
                return match self.pending == 0 && self.output.is_empty() {
                    true => Err(End::Over),
                    false => Ok(false),
                };
            }
            if reads == READS {
                return Ok(true);
            }
            let mut space = [0; 4096];
            match self.stream.read(&mut space) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    if self.input.is_empty() && before == 0 {
                        self.deadline = now + SLOW;
                    }
                    self.input.extend(&space[..n]);
                    if self.input.len() > MAX_INPUT + space.len() {
                        return Err(End::Slow);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Over),
            }
        }
        Ok(true)
    }

    /// Give him an answer that he waits for.
    ///
    /// # Errors
    /// He is to be closed.
    pub fn reply(&mut self, bytes: &[u8], now: Instant) -> Result<(), End> {
        let start = self.output.len();
        self.output.extend([0, 0]);
        self.output.extend(bytes);
        self.close_message(start);
        self.pending = self.pending.saturating_sub(1);
        self.flush(now)
    }

    /// Whether he may be read from.
    fn is_open(&self) -> bool {
        self.pending < MAX_PENDING && self.output.len() - self.sent < MAX_OUTPUT
    }

    /// Write the length of the message that begins at `start`; none has no length.
    fn close_message(&mut self, start: usize) {
        let len = self.output.len() - start - 2;
        match u16::try_from(len) {
            Ok(len) if len > 0 => self.output[start..start + 2].copy_from_slice(&len.to_be_bytes()),
            _ => self.output.truncate(start),
        }
    }

    fn flush(&mut self, now: Instant) -> Result<(), End> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(End::Over),
                Ok(n) => {
                    self.sent += n;
                    self.since = now;
                    self.deadline = now + SLOW;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // One who always leaves something would have all of it kept.
                    if self.sent >= MAX_OUTPUT {
                        self.output.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Over),
            }
        }
        if self.sent > 0 {
            self.output.clear();
            self.sent = 0;
            self.deadline = now + if self.input.is_empty() { IDLE } else { SLOW };
        }
        Ok(())
    }
}

/// The first whole message.
fn first(input: &[u8]) -> Option<&[u8]> {
    let len = input.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)))?;
    input.get(2..2 + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;
    use rustix::net::sockopt;
    use std::net::{TcpListener, TcpStream as Plain};

    /// A header, and nothing else.
    const QUESTION: [u8; 14] = [0, 12, 0, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// A client with a small buffer, and what the node has of him.
    fn client(clients: &mut Clients, poll: &Poll) -> Plain {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = Plain::connect(listener.local_addr().unwrap()).unwrap();
        let (here, from) = listener.accept().unwrap();
        sockopt::set_socket_send_buffer_size(&here, 4096).unwrap();
        sockopt::set_socket_recv_buffer_size(&there, 4096).unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_nonblocking(true).unwrap();
        let here = TcpStream::from_std(here);
        let added = clients.add(here, from, Instant::ZERO, poll.registry(), Token);
        assert_eq!(added.unwrap(), 0);
        there
    }

    /// A pod that opens one connection after the other, and another's that waits among them.
    #[test]
    fn a_flood_of_one_address_leaves_others_their_place() {
        let (poll, mut clients) = (Poll::new().unwrap(), Clients::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = Vec::new();
        for n in 0..MAX_CLIENTS as i64 + 100 {
            theirs.push(Plain::connect(listener.local_addr().unwrap()).unwrap());
            let here = listener.accept().unwrap().0;
            here.set_nonblocking(true).unwrap();
            let from = format!("127.88.0.{}:7", if n == 0 { 2 } else { 1 });
            let (here, from) = (TcpStream::from_std(here), from.parse().unwrap());
            let now = Instant::from_millis(n);
            let gone = clients.add(here, from, now, poll.registry(), Token).unwrap();
            assert_eq!(gone, u64::from(n >= MAX_CLIENTS as i64));
        }
        assert_eq!(
            clients.at(0).map(|c| c.from.ip().to_string()).as_deref(),
            Some("127.88.0.2")
        );
        assert_eq!(clients.len(), MAX_CLIENTS);
    }

    #[test]
    fn one_that_asks_without_end_leaves_others_their_turn() {
        let (poll, mut clients) = (Poll::new().unwrap(), Clients::default());
        let mut there = client(&mut clients, &poll);
        let mut asked = 0;
        while asked < 3000 && there.write_all(&QUESTION).is_ok() {
            asked += 1;
        }
        assert!(asked > 1500, "{asked}");
        let (mut taken, mut turns, mut more) = (0, 0, true);
        while more {
            let before = taken;
            let served = clients.at(0).unwrap().serve(Instant::ZERO, |_, _| {
                taken += 1;
                false
            });
            more = served.unwrap();
            turns += 1;
            assert!(taken - before <= READS * 4096 / QUESTION.len() + 1);
        }
        assert!(taken >= asked && turns > 1, "{taken} of {asked} in {turns}");
    }

    #[test]
    fn answers_that_are_gone_are_not_kept_for_one_who_always_leaves_some() {
        let (poll, mut clients) = (Poll::new().unwrap(), Clients::default());
        let mut there = client(&mut clients, &poll);
        let (mut got, mut most) = (0, 0);
        while got < 20 * MAX_OUTPUT {
            let _ = there.write(&QUESTION.repeat(8));
            let here = clients.at(0).unwrap();
            here.serve(Instant::ZERO, |_, out| {
                out.resize(out.len() + 1000, 7);
                false
            })
            .unwrap();
            most = most.max(here.output.len());
            if here.output.len() - here.sent > MAX_OUTPUT / 2 {
                got += there.read(&mut [0; 1500]).unwrap_or(0);
            }
        }
        assert!(most <= 2 * MAX_OUTPUT + 4096, "{most}");
    }
}
