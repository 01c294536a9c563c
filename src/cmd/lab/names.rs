//! Questions to name servers, and a server that knows an answer to each: messages as RFC 1035 section 4.1 has them,
//! written by hand so that the load costs little beside what it measures.

use super::exchange::Times;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// What is left out of a measurement at its beginning.
const WARM_UP: Duration = Duration::from_millis(200);
/// An answer that takes so long is lost.
const LATE: Duration = Duration::from_secs(1);
/// How often a name may be asked for in vain at the beginning.
const ATTEMPTS: u32 = 3;
/// How often questions are looked for that were lost while others were answered.
const LOOK: Duration = Duration::from_millis(100);
/// Most questions at a time: they are told apart by the lower half of their identifier.
pub const MOST: u8 = 128;
/// Bytes of a header, and of what a message may have.
const HEADER: usize = 12;
const MESSAGE: usize = 1232;
/// Types (RFC 1035 section 3.2.2, RFC 3596 section 2.1), each with the address that the server has for all names.
const A: (u16, &[u8]) = (1, &[192, 0, 2, 1]);
const AAAA: (u16, &[u8]) = (28, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// How long the server's answers may be kept, in seconds.
const TTL: u32 = 3600;

/// What a client measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Those answered within the window: questions, or pairs of them.
    pub times: Times,
    /// Questions that had no answer, or a wrong one.
    pub lost: u64,
    /// All that were answered, the warm-up's too.
    pub answered: u64,
}

/// Answer questions at `port` (0: any) until none comes for a long time; `ready` is called with the port.
///
/// # Errors
/// When no socket can be had.
pub fn serve(port: u16, ready: impl FnOnce(u16)) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    ready(socket.local_addr()?.port());
    let mut message = [0; MESSAGE];
    loop {
        match socket.recv_from(&mut message) {
            Ok((n, who)) => {
                if let Some(answer) = answer(&message[..n]) {
                    // Who does not take it asks again.
                    let _ = socket.send_to(&answer, who);
                }
            }
            // Told by the one before: somebody is gone (ICMP).
            Err(e) if [ErrorKind::ConnectionRefused, ErrorKind::Interrupted].contains(&e.kind()) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Keep `flight` questions for the addresses of `names` under way for the time `window`, each name in its turn.
///
/// # Errors
/// When a name has no answer at the beginning, or nothing can be sent.
pub fn ask(to: SocketAddr, flight: u8, names: &[String], window: Duration) -> io::Result<Asked> {
    let socket = connected(to)?;
    let questions: Option<Vec<_>> = names.iter().map(|name| question(name, A.0)).collect();
    let questions = questions
        .filter(|all| !all.is_empty())
        .ok_or(ErrorKind::InvalidInput)?;
    let mut client = Client {
        socket,
        questions,
        next: 0,
        serial: 0,
        under_way: Vec::new(),
    };
    // What can be kept is kept from here on.
    let lost = client.prime()?;
    client.under_way = vec![None; flight.clamp(1, MOST).into()];
    let mut asked = client.measure(window)?;
    asked.lost += lost;
    Ok(asked)
}

struct Client {
    socket: UdpSocket,
    questions: Vec<Vec<u8>>,
    /// The question that is asked next.
    next: usize,
    /// The upper half of the last identifier: another one than that of the slot's last question, whose answer may still
    /// come.
    serial: u8,
    /// By the lower half of the identifier: the upper half, the question, and when it was asked.
    under_way: Vec<Option<(u8, usize, Instant)>>,
}

impl Client {
    /// Ask for each name until it is answered; how many questions were not.
    fn prime(&mut self) -> io::Result<u64> {
        let mut lost = 0;
        self.under_way = vec![None];
        for _ in 0..self.questions.len() {
            let at = self.next;
            for attempt in 1..=ATTEMPTS {
                self.next = at;
                self.send(0)?;
                match self.receive(Instant::now() + LATE)? {
                    Some(_) => break,
                    None if attempt == ATTEMPTS => return Err(ErrorKind::TimedOut.into()),
                    None => lost += 1,
                }
            }
        }
        Ok(lost)
    }

    fn measure(&mut self, window: Duration) -> io::Result<Asked> {
        let begin = Instant::now() + WARM_UP;
        let end = begin + window;
        let (mut times, mut answered, mut lost) = (Vec::with_capacity(1 << 17), 0, 0);
        let mut look = Instant::now() + LOOK;
        for slot in 0..self.under_way.len() {
            self.send(slot)?;
        }
        loop {
            let heard = self.receive(look)?;
            let now = Instant::now();
            if let Some((slot, time)) = heard {
                answered += 1;
                if (begin..end).contains(&now) {
                    times.push(time);
                }
                if now < end {
                    self.send(slot)?;
                }
            }
            if now >= look {
                look = now + LOOK;
                for slot in 0..self.under_way.len() {
                    if self.under_way[slot].is_some_and(|(_, _, asked)| now > asked + LATE) {
                        lost += 1;
                        self.under_way[slot] = None;
                        if now < end {
                            self.send(slot)?;
                        }
                    }
                }
            }
            if now >= end && self.under_way.iter().all(Option::is_none) {
                break;
            }
        }
        Ok(Asked {
            times: Times::of(times),
            lost,
            answered,
        })
    }

    fn send(&mut self, slot: usize) -> io::Result<()> {
        let at = self.next % self.questions.len();
        self.next = at + 1;
        self.serial = self.serial.wrapping_add(1);
        let question = &mut self.questions[at];
        question[..2].copy_from_slice(&[self.serial, slot as u8]);
        self.socket.send(question)?;
        self.under_way[slot] = Some((self.serial, at, Instant::now()));
        Ok(())
    }

    /// The next answer to a question under way, until `until`: its slot, and how long it took.
    fn receive(&mut self, until: Instant) -> io::Result<Option<(usize, Duration)>> {
        let mut message = [0; MESSAGE];
        loop {
            let Some(n) = receive(&self.socket, &mut message, until)? else {
                return Ok(None);
            };
            let slot = usize::from(message[1]);
            let Some((serial, at, asked)) = self.under_way.get(slot).copied().flatten() else {
                continue;
            };
            if message[0] == serial && answers(&message[..n], &self.questions[at]) {
                self.under_way[slot] = None;
                return Ok(Some((slot, asked.elapsed())));
            }
        }
    }
}

/// Ask as a C library does, again and again for the time `window`: for A and AAAA of a name at once, from one socket
/// that is new each time.
///
/// # Errors
/// When nothing can be sent.
pub fn pairs(to: SocketAddr, names: &[String], window: Duration) -> io::Result<Asked> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + window;
    let (mut times, mut answered, mut lost) = (Vec::with_capacity(1 << 15), 0, 0);
    let mut message = [0; MESSAGE];
    for (id, name) in (0u16..=u16::MAX).cycle().zip(names.iter().cycle()) {
        let asked = Instant::now();
        if asked >= end {
            break;
        }
        let socket = connected(to)?;
        let mut open = Vec::with_capacity(2);
        for kind in [A.0, AAAA.0] {
            let mut question = question(name, kind).ok_or(ErrorKind::InvalidInput)?;
            question[..2].copy_from_slice(&id.to_be_bytes());
            socket.send(&question)?;
            open.push(question);
        }
        while !open.is_empty()
            && let Some(n) = receive(&socket, &mut message, asked + LATE)?
        {
            open.retain(|question| !(message[..2] == question[..2] && answers(&message[..n], question)));
        }
        answered += 2 - open.len() as u64;
        lost += open.len() as u64;
        if open.is_empty() && asked >= begin {
            times.push(asked.elapsed());
        }
    }
    Ok(Asked {
        times: Times::of(times),
        lost,
        answered,
    })
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Wait for a datagram until `until`.
fn receive(socket: &UdpSocket, message: &mut [u8], until: Instant) -> io::Result<Option<usize>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{RecvFlags, recv};
    loop {
        match recv(socket, &mut *message, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) == Ok(0) {
            return Ok(None);
        }
    }
}

/// A question for a record of `name`, with recursion desired and the identifier 0; none when it is no name.
fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..64).contains(n))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    (message.len() <= HEADER + 255 + 4).then_some(message)
}

/// Whether `message` has an answer to `question`, whatever its identifier.
fn answers(message: &[u8], question: &[u8]) -> bool {
    let same = |from: usize| message.get(from..question.len()) == question.get(from..);
    // QR, no error, one question, and records in the answer.
    let (response, fine) = (message.get(2).map(|b| b & 0x80), message.get(3).map(|b| b & 0xf));
    (response, fine) == (Some(0x80), Some(0))
        && message.get(4..6) == Some(&[0, 1])
        && message.get(6..8).is_some_and(|n| n != [0, 0])
        && same(HEADER)
}

/// The server's answer: the question, and the one address of its type; none to what is no question for one.
fn answer(message: &[u8]) -> Option<Vec<u8>> {
    if message.get(2)? & 0x80 != 0 || message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut end = HEADER;
    loop {
        match usize::from(*message.get(end)?) {
            0 => break,
            length if length < 64 => end += 1 + length,
            _ => return None,
        }
    }
    end += 5;
    let kind = message.get(end - 4..end - 2)?;
    let mut answer = message.get(..end)?.to_vec();
    answer[2] = 0x80 | (answer[2] & 1);
    answer[3] = 0x80;
    answer[6..HEADER].fill(0);
    if let Some((_, address)) = [A, AAAA].iter().find(|(k, _)| k.to_be_bytes() == *kind) {
        answer[7] = 1;
        // A pointer to the name in the question.
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(kind);
        answer.extend([0, 1]);
        answer.extend(TTL.to_be_bytes());
        answer.extend((address.len() as u16).to_be_bytes());
        answer.extend(*address);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn served() -> SocketAddr {
        let (tell, port) = mpsc::channel();
        std::thread::spawn(move || serve(0, |port| tell.send(port).unwrap()));
        (Ipv4Addr::LOCALHOST, port.recv().unwrap()).into()
    }

    #[test]
    fn questions_are_answered_one_by_one_and_many_at_once() {
        let to = served();
        let names: Vec<String> = ["a.example", "b.example."].map(String::from).to_vec();
        for flight in [1, 64] {
            let asked = ask(to, flight, &names, Duration::from_millis(20)).unwrap();
            assert_eq!(asked.lost, 0);
            assert!(
                asked.times.count > 0 && asked.answered >= asked.times.count as u64,
                "{asked:?}"
            );
        }
        let asked = pairs(to, &names, Duration::from_millis(20)).unwrap();
        assert!(
            asked.lost == 0 && asked.answered >= 2 * asked.times.count as u64,
            "{asked:?}"
        );
    }

    #[test]
    fn what_is_lost_is_told() {
        // One that answers the first question of each pair only.
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut message = [0; MESSAGE];
            while let Ok((n, who)) = socket.recv_from(&mut message) {
                if question("a.example", A.0).unwrap()[HEADER..] == message[HEADER..n] {
                    let _ = socket.send_to(&answer(&message[..n]).unwrap(), who);
                }
            }
        });
        let asked = pairs(to, &["a.example".into()], Duration::from_millis(20)).unwrap();
        assert_eq!((asked.lost, asked.answered, asked.times.count), (1, 1, 0));
        let unknown = ask(to, 1, &["b.example".into()], Duration::from_millis(20));
        assert_eq!(unknown.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn messages_are_what_the_standard_says() {
        let asked = question("ab.c", AAAA.0).unwrap();
        assert_eq!(asked[2..], *b"\x01\0\0\x01\0\0\0\0\0\0\x02ab\x01c\0\0\x1c\0\x01");
        let told = answer(&asked).unwrap();
        assert_eq!(told[2..8], *b"\x81\x80\0\x01\0\x01");
        assert_eq!(
            told[asked.len()..asked.len() + 12],
            *b"\xc0\x0c\0\x1c\0\x01\0\0\x0e\x10\0\x10"
        );
        assert!(answers(&told, &asked));
        assert!(!answers(&asked, &asked), "a question");
        assert!(!answers(&told, &question("ab.d", AAAA.0).unwrap()));
        let mut refused = told.clone();
        refused[3] |= 5;
        assert!(!answers(&refused, &asked));
        // No records of that type: nothing that counts as an answer.
        let other = question("ab.c", 16).unwrap();
        assert!(!answers(&answer(&other).unwrap(), &other));
        for end in 0..asked.len() {
            assert_eq!(answer(&asked[..end]), None);
            assert!(!answers(&told[..end], &asked));
        }
        for bad in ["", "a..b", &"x".repeat(64), &"x.".repeat(128)] {
            assert_eq!(question(bad, 1), None, "{bad:?}");
        }
    }
}
