//! Pings, from inside a pod: who answers at all, and how soon.
//!
//! Raw sockets, since a network namespace starts with ping sockets closed to everybody, and the sandbox's root
//! has CAP_NET_RAW.

use super::exchange::Times;
use crate::wire::checksum::Sum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How often who has not answered yet is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long one echo of [`rtt`] may take, and how many may be lost in a row.
const LATE: Duration = Duration::from_millis(200);
const PATIENCE: u32 = 3;

/// From one ping of [`pace`] to the next.
const PACE: Duration = Duration::from_millis(10);

/// Bytes of an echo's header (RFC 792, RFC 4443 section 4.1), and of the message ping(8) sends by default.
const HEADER: usize = 8;
const MESSAGE: usize = 64;
/// (request, reply) of ICMP and of ICMPv6.
const ECHO4: (u8, u8) = (8, 0);
const ECHO6: (u8, u8) = (128, 129);

/// Ping all of `targets` at once, until each has answered or `patience` is over; `each` is called with who
/// answers, as they do.
///
/// # Errors
/// When the sockets cannot be made.
pub fn reach(targets: &[IpAddr], patience: Duration, mut each: impl FnMut(IpAddr)) -> io::Result<()> {
    let pinger = Pinger::new()?;
    let mut silent: Vec<IpAddr> = targets.to_vec();
    let deadline = Instant::now() + patience;
    while !silent.is_empty() && Instant::now() < deadline {
        for to in &silent {
            // What cannot be sent now (no buffer, no route yet) is not answered either, and sent again.
            let _ = pinger.ask(*to, 0);
        }
        let until = deadline.min(Instant::now() + AGAIN);
        while !silent.is_empty()
            && let Some((from, _)) = pinger.answer(until)
        {
            if let Some(i) = silent.iter().position(|ip| *ip == from) {
                each(silent.swap_remove(i));
            }
        }
    }
    Ok(())
}

/// The median round-trip time of `count` pings to each of `targets`, one at a time; `each` is called with
/// those that answer to most.
///
/// # Errors
/// When the sockets cannot be made.
pub fn rtt(targets: &[IpAddr], count: u16, mut each: impl FnMut(IpAddr, Duration)) -> io::Result<()> {
    let pinger = Pinger::new()?;
    for to in targets {
        let mut times = Vec::new();
        let mut lost = 0;
        for sequence in 1..=count {
            match pinger.time(*to, sequence) {
                Some(time) => (lost, _) = (0, times.push(time)),
                None => lost += 1,
            }
            if lost == PATIENCE {
                break;
            }
        }
        if times.len() * 2 > usize::from(count) {
            times.sort_unstable();
            each(*to, times[times.len() / 2]);
        }
    }
    Ok(())
}

/// Ping `to` a hundred times a second for as long as `window`; how long the answers took, and how many there were not.
///
/// # Errors
/// When the sockets cannot be made.
pub fn pace(to: IpAddr, window: Duration) -> io::Result<(Times, u64)> {
    let pinger = Pinger::new()?;
    let begun = Instant::now();
    let (mut times, mut lost) = (Vec::new(), 0);
    for sequence in 1.. {
        let next = begun + PACE * sequence;
        if next > begun + window {
            break;
        }
        match pinger.time(to, sequence as u16) {
            Some(time) => times.push(time),
            None => lost += 1,
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok((Times::of(times), lost))
}

struct Pinger {
    four: OwnedFd,
    six: OwnedFd,
    /// Tells our answers from those of another pinger in the pod.
    ident: u16,
}

impl Pinger {
    fn new() -> io::Result<Pinger> {
        let raw = |family, protocol| {
            rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))
        };
        Ok(Pinger {
            four: raw(AddressFamily::INET, ipproto::ICMP)?,
            six: raw(AddressFamily::INET6, ipproto::ICMPV6)?,
            ident: std::process::id() as u16,
        })
    }

    fn ask(&self, to: IpAddr, sequence: u16) -> io::Result<()> {
        let message = request(to, self.ident, sequence);
        let fd = if to.is_ipv4() { &self.four } else { &self.six };
        let to = SocketAddr::new(to, 0);
        rustix::net::sendto(fd, &message, SendFlags::DONTWAIT, &to)?;
        Ok(())
    }

    /// The next answer to us, until `until`: who sent it, and its sequence number.
    fn answer(&self, until: Instant) -> Option<(IpAddr, u16)> {
        let mut bytes = [0; 2048];
        loop {
            for fd in [&self.four, &self.six] {
                let received = rustix::net::recvfrom(fd, &mut bytes, RecvFlags::DONTWAIT);
                let Ok((len, _, Some(from))) = received else {
                    continue;
                };
                let Ok(from) = SocketAddr::try_from(from) else {
                    continue;
                };
                if let Some((self_, sequence)) = reply(from.ip(), &bytes[..len.min(bytes.len())])
                    && self_ == self.ident
                {
                    return Some((from.ip(), sequence));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok()?;
            let mut fds = [
                PollFd::new(&self.four, PollFlags::IN),
                PollFd::new(&self.six, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return None,
                // Raw sockets see every ICMP message of the pod, so the deadline must count here too.
                _ if left.is_zero() => return None,
                _ => {}
            }
        }
    }

    /// One round trip; none when the answer is late.
    fn time(&self, to: IpAddr, sequence: u16) -> Option<Duration> {
        let begun = Instant::now();
        self.ask(to, sequence).ok()?;
        let until = begun + LATE;
        loop {
            match self.answer(until)? {
                answer if answer == (to, sequence) => return Some(begun.elapsed()),
                // A late answer to an earlier echo.
                _ => {}
            }
        }
    }
}

/// An echo request. That of ICMPv6 lacks its checksum: the kernel fills it in (RFC 3542 section 3.1).
fn request(to: IpAddr, ident: u16, sequence: u16) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[0] = if to.is_ipv4() { ECHO4.0 } else { ECHO6.0 };
    message[4..6].copy_from_slice(&ident.to_be_bytes());
    message[6..HEADER].copy_from_slice(&sequence.to_be_bytes());
    if to.is_ipv4() {
        let sum = Sum::default().with(&message).finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// The identifier and sequence number of an echo reply; none when `bytes` are something else. An IPv4 raw
/// socket gives the IP header too, an IPv6 one does not.
fn reply(from: IpAddr, bytes: &[u8]) -> Option<(u16, u16)> {
    let (start, kind) = match from {
        IpAddr::V4(_) => (usize::from(bytes.first()? & 0x0f) * 4, ECHO4.1),
        IpAddr::V6(_) => (0, ECHO6.1),
    };
    let message = bytes.get(start..)?;
    let header: &[u8; HEADER] = message.first_chunk()?;
    let [found, 0, _, _, i0, i1, s0, s1] = *header else {
        return None;
    };
    (found == kind).then_some((u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_a_checksum_where_they_must() {
        let message = request("10.0.0.1".parse().unwrap(), 0x1234, 7);
        assert_eq!(message[..8], [8, 0, 0xe5, 0xc4, 0x12, 0x34, 0, 7]);
        assert_eq!(Sum::default().with(&message).finish(), 0);
        let message = request("fd00::1".parse().unwrap(), 0x1234, 7);
        assert_eq!(message[..8], [128, 0, 0, 0, 0x12, 0x34, 0, 7]);
    }

    #[test]
    fn only_replies_are_replies() {
        let (four, six) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let answer = [0, 0, 0, 0, 0x12, 0x34, 0, 7];
        // A header with four bytes of options.
        let mut packet = [&[0x46][..], &[0; 23], &answer].concat();
        assert_eq!(reply(four, &packet), Some((0x1234, 7)));
        packet[24] = 8;
        assert_eq!(reply(four, &packet), None, "our own request on its way");
        assert_eq!(reply(four, &packet[..20]), None);
        assert_eq!(reply(four, &[]), None);
        let mut answer = answer;
        answer[0] = 129;
        assert_eq!(reply(six, &answer), Some((0x1234, 7)));
        assert_eq!(reply(six, &answer[..7]), None);
    }
}
