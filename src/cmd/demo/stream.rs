//! One TCP stream between two pods, from inside them: the kernel's own TCP, with large writes.
//!
//! The receiver measures, since only what arrived counts; it leaves out a beginning in which the congestion
//! window and the buffers still grow.

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
    /// Bytes of the stream.
    pub bytes: u64,
    /// In so much time.
    pub time: Duration,
}

impl Measured {
    /// In 10^9 bits a second.
    pub fn gbit_s(self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_nanos().max(1) as f64
    }
}

/// Take one connection and measure what it brings for the time `window`; `ready` is called with the port to
/// connect to.
///
/// # Errors
/// When nobody connects, or the stream stands still or ends too soon.
pub fn receive(window: Duration, ready: impl FnOnce(u16)) -> io::Result<Measured> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    ready(listener.local_addr()?.port());
    let stream = accept(&listener)?;
    stream.set_read_timeout(Some(STALL))?;
    let mut buffer = vec![0; PIECE];
    drain(&stream, &mut buffer, WARM_UP)?;
    drain(&stream, &mut buffer, window)
}

/// Connect to a receiver and write until it closes.
///
/// # Errors
/// When the connection cannot be made, or stands still.
pub fn send(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT)?;
    stream.set_write_timeout(Some(STALL))?;
    // Some machines' default (bbr) paces, and would measure itself. One that lacks cubic keeps its default.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
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

/// Wait longer than [`send`] tries, by what starting it may take.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    let patience = Timespec::try_from(CONNECT + START).unwrap_or_default();
    match poll(&mut polled, Some(&patience))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody connected")),
        _ => listener.accept().map(|(stream, _)| stream),
    }
}

fn drain(mut stream: &TcpStream, buffer: &mut [u8], window: Duration) -> io::Result<Measured> {
    let begun = Instant::now();
    let mut bytes = 0;
    loop {
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        let time = begun.elapsed();
        if time >= window {
            return Ok(Measured { bytes, time });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    #[test]
    fn a_stream_is_measured_and_ends() {
        let (tell, port) = mpsc::channel();
        let window = Duration::from_millis(50);
        let receiver = std::thread::spawn(move || receive(window, |port| tell.send(port).unwrap()));
        send((Ipv4Addr::LOCALHOST, port.recv().unwrap()).into()).unwrap();
        let measured = receiver.join().unwrap().unwrap();
        assert!(measured.time >= window && measured.gbit_s() > 0.0, "{measured:?}");
    }

    #[test]
    fn a_stream_that_ends_too_soon_has_failed() {
        let (tell, port) = mpsc::channel();
        let receiver =
            std::thread::spawn(move || receive(Duration::from_secs(9), |port| tell.send(port).unwrap()));
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port.recv().unwrap())).unwrap());
        assert!(receiver.join().unwrap().is_err());
    }

    #[test]
    fn a_rate_is_in_bits() {
        let measured = Measured {
            bytes: 125_000_000,
            time: Duration::from_millis(500),
        };
        assert_eq!(measured.gbit_s(), 2.0);
    }
}
