//! Small UDP datagrams, as many as go: each is a packet of its own all the way, so that what a packet costs
//! shows, not what a byte does.

use super::cpu;
use super::stream::Measured;
use crate::buf::Span;
use crate::sys::net::{BATCH, Outgoing, RecvBatch, SendBatch, buffers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes of a datagram.
pub const DATAGRAM: usize = 64;
/// What is left out of the measurement.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long the first datagram is waited for, and the next one.
const STALL: Duration = Duration::from_secs(2);
/// What to ask for, so that the receiver's own buffer is not what is measured.
const BUFFER: usize = 8 << 20;

/// Count what comes in the time `window`; `ready` is called with the port. `bytes` of what is given back are
/// those of the datagrams.
///
/// # Errors
/// When nothing comes.
pub fn count(window: Duration, ready: impl FnOnce(u16)) -> io::Result<Measured> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    buffers(&socket, BUFFER, 0);
    ready(socket.local_addr()?.port());
    let mut memory = vec![0; BATCH * DATAGRAM];
    let slots: Vec<Span> = (0..BATCH)
        .map(|i| Span::new(i * DATAGRAM, (i + 1) * DATAGRAM))
        .collect();
    let mut batch = RecvBatch::default();
    let mut take = |until: Instant| {
        let mut bytes = 0;
        while Instant::now() < until {
            match batch.receive(&socket, &mut memory, &slots) {
                Ok(n) => bytes += (n * DATAGRAM) as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&socket, PollFlags::IN)?,
                Err(e) => return Err(e),
            }
        }
        io::Result::Ok(bytes)
    };
    wait(&socket, PollFlags::IN)?;
    take(Instant::now() + WARM_UP)?;
    let (begun, busy) = (Instant::now(), cpu::busy());
    let bytes = take(begun + window)?;
    Ok(Measured {
        bytes,
        time: begun.elapsed(),
        busy: cpu::busy() - busy,
    })
}

/// Send for as long as [`count`] with this `window` may listen.
///
/// # Errors
/// When nothing can be sent.
pub fn flood(to: SocketAddr, window: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    // A socket of this family reaches IPv4 by mapped addresses (RFC 3493 section 3.7).
    let to = match to {
        SocketAddr::V4(four) => (four.ip().to_ipv6_mapped(), four.port()).into(),
        six => six,
    };
    let memory = [0x5a; DATAGRAM];
    let pieces = [Span::new(0, DATAGRAM)];
    let one = Outgoing {
        to,
        from: None,
        class: 0,
        segment: None,
        pieces: &pieces,
    };
    let all = [one; BATCH];
    let mut batch = SendBatch::default();
    let end = Instant::now() + WARM_UP + window + WARM_UP;
    while Instant::now() < end {
        match batch.send(&socket, &memory, &all) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&socket, PollFlags::OUT)?,
            // The receiver has enough and closed (ICMP port unreachable).
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(socket: &UdpSocket, what: PollFlags) -> io::Result<()> {
    let patience = Timespec::try_from(STALL).unwrap_or_default();
    match poll(&mut [PollFd::new(socket, what)], Some(&patience)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        // Interrupted: the caller looks again.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    #[test]
    fn datagrams_are_counted() {
        let (tell, port) = mpsc::channel();
        let window = Duration::from_millis(50);
        let counter = std::thread::spawn(move || count(window, |port| tell.send(port).unwrap()));
        flood((Ipv4Addr::LOCALHOST, port.recv().unwrap()).into(), window).unwrap();
        let measured = counter.join().unwrap().unwrap();
        assert!(measured.time >= window && measured.bytes > 0, "{measured:?}");
        assert_eq!(measured.bytes % DATAGRAM as u64, 0);
    }
}
