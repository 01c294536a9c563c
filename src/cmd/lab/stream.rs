//! TCP streams between two pods, from inside them: the kernel's own TCP, with large writes.
//!
//! The receiver measures, since only what arrived counts; it leaves out a beginning in which the congestion
//! window and the buffers still grow.

use super::cpu;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What one write or read moves at most: as much as a super-frame several times over.
const PIECE: usize = 256 << 10;
/// What is left out of the measurement.
const WARM_UP: Duration = Duration::from_millis(200);
/// A stream that stands still for so long has failed.
const STALL: Duration = Duration::from_secs(1);
/// How long to wait for the connection, and for the process that makes it.
const CONNECT: Duration = Duration::from_millis(1500);
const START: Duration = Duration::from_millis(500);

/// What a receiver measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// Bytes that arrived.
    pub bytes: u64,
    /// In so much time.
    pub time: Duration,
    /// So long the machine's processors worked meanwhile, all together.
    pub busy: Duration,
}

/// Take `streams` connections and measure what they bring together for the time `window`; `ready` is called
/// with the port to connect to.
///
/// # Errors
/// When nobody connects, or a stream stands still or ends too soon.
pub fn receive(streams: u8, window: Duration, ready: impl FnOnce(u16)) -> io::Result<Measured> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    ready(listener.local_addr()?.port());
    let streams: io::Result<Vec<TcpStream>> = (0..streams.max(1)).map(|_| accept(&listener)).collect();
    let streams = streams?;
    let begin = Instant::now() + WARM_UP;
    std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .map(|stream| scope.spawn(move || drain(stream, begin, begin + window)))
            .collect();
        let at = |moment: Instant| {
            std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            cpu::busy()
        };
        let before = at(begin);
        let busy = at(begin + window) - before;
        let mut bytes = 0;
        for thread in threads {
            let died = |_| Err(io::Error::other("a thread of the receiver died"));
            bytes += thread.join().unwrap_or_else(died)?;
        }
        Ok(Measured {
            bytes,
            time: window,
            busy,
        })
    })
}

/// Make `streams` connections to a receiver and write until it closes them.
///
/// # Errors
/// When a connection cannot be made, or stands still.
pub fn send(streams: u8, to: SocketAddr) -> io::Result<()> {
    let streams: io::Result<Vec<TcpStream>> = (0..streams.max(1)).map(|_| connect(to)).collect();
    let streams = streams?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = streams.iter().map(|s| scope.spawn(move || fill(s))).collect();
        for thread in threads {
            let died = |_| Err(io::Error::other("a thread of the sender died"));
            thread.join().unwrap_or_else(died)?;
        }
        Ok(())
    })
}

/// A connection whose congestion control is not what is measured.
///
/// # Errors
/// When it cannot be made.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT)?;
    // Some machines' default (bbr) paces, and would measure itself. One that lacks cubic keeps its default.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
    Ok(stream)
}

/// Wait longer than [`connect`] tries, by what starting it may take.
///
/// # Errors
/// When nobody connects.
pub fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    let patience = Timespec::try_from(CONNECT + START).unwrap_or_default();
    match poll(&mut polled, Some(&patience))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody connected")),
        _ => listener.accept().map(|(stream, _)| stream),
    }
}

fn fill(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(STALL))?;
    let buffer = vec![0x5a; PIECE];
    loop {
        match stream.write(&buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // A receiver that has enough closes with bytes unread.
            Err(e) if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&e.kind()) => {
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Read until `end`; the bytes since `begin`.
fn drain(mut stream: &TcpStream, begin: Instant, end: Instant) -> io::Result<u64> {
    stream.set_read_timeout(Some(STALL))?;
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        let now = Instant::now();
        if now >= end {
            return Ok(bytes);
        }
        if now >= begin {
            bytes += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    #[test]
    fn streams_are_measured_and_end() {
        for streams in [1, 3] {
            let (tell, port) = mpsc::channel();
            let window = Duration::from_millis(50);
            let receiver =
                std::thread::spawn(move || receive(streams, window, |port| tell.send(port).unwrap()));
            send(streams, (Ipv4Addr::LOCALHOST, port.recv().unwrap()).into()).unwrap();
            let measured = receiver.join().unwrap().unwrap();
            assert!(measured.time == window && measured.bytes > 0, "{measured:?}");
        }
    }

    #[test]
    fn a_stream_that_ends_too_soon_has_failed() {
        let (tell, port) = mpsc::channel();
        let window = Duration::from_millis(50);
        let receiver = std::thread::spawn(move || receive(1, window, |port| tell.send(port).unwrap()));
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port.recv().unwrap())).unwrap());
        assert!(receiver.join().unwrap().is_err());
    }
}
