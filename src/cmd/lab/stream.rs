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
/// Whose congestion control it is, so that it is the same on every machine.
const CONGESTION: &str = "cubic";
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

/// Take `streams` connections at `port` (0: any) and measure what they bring together for the time `window`; `ready` is
/// called with the port to connect to.
///
/// # Errors
/// When nobody connects, or a stream stands still or ends too soon.
pub fn receive(port: u16, streams: u8, window: Duration, ready: impl FnOnce(u16)) -> io::Result<Measured> {
    let listener = listen(port)?;
    ready(listener.local_addr()?.port());
    let streams: io::Result<Vec<TcpStream>> = (0..streams.max(1)).map(|_| accept(&listener)).collect();
    measure(&streams?, window)
}

fn measure(streams: &[TcpStream], window: Duration) -> io::Result<Measured> {
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
    all(&streams?, fill)
}

/// Write to `streams` connections that come to `port` (0: any), until the other side closes them; `ready` is called with the port.
///
/// # Errors
/// When nobody connects, or a stream stands still.
pub fn serve(port: u16, streams: u8, ready: impl FnOnce(u16)) -> io::Result<()> {
    let listener = listen(port)?;
    ready(listener.local_addr()?.port());
    let streams: io::Result<Vec<TcpStream>> = (0..streams.max(1)).map(|_| accept(&listener)).collect();
    all(&streams?, fill)
}

/// Make `streams` connections and measure what they bring together for the time `window`.
///
/// # Errors
/// When a connection cannot be made, or a stream stands still or ends too soon.
pub fn fetch(streams: u8, to: SocketAddr, window: Duration) -> io::Result<Measured> {
    let streams: io::Result<Vec<TcpStream>> = (0..streams.max(1)).map(|_| connect(to)).collect();
    let streams = streams?;
    for mut stream in &streams {
        // Nobody reads it. Some who stand in between connect to the other end when there is something to say.
        stream.write_all(&[0])?;
    }
    measure(&streams, window)
}

/// Take connections at `port` (0: any), answer a byte on each and drop it, until none comes for a while; `ready` is
/// called with the port.
///
/// # Errors
/// When no socket can be had.
pub fn greet(port: u16, ready: impl FnOnce(u16)) -> io::Result<()> {
    let listener = listen(port)?;
    ready(listener.local_addr()?.port());
    while let Ok(mut stream) = accept(&listener) {
        let mut byte = [0];
        let greeted = stream
            .read_exact(&mut byte)
            .and_then(|()| stream.write_all(&byte));
        // The client is gone once it has what it came for. One that was not even greeted complains itself.
        let _ = greeted.and_then(|()| stream.read(&mut byte));
    }
    Ok(())
}

/// Make one connection after the other for the time `window`, have a byte answered on each, and how many there were: who
/// stands in between may connect before it knows whether there is another end.
///
/// # Errors
/// When one cannot be made, or is not answered.
pub fn knock(to: SocketAddr, window: Duration) -> io::Result<u64> {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < window {
        let mut stream = connect(to)?;
        stream.set_read_timeout(Some(STALL))?;
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0])?;
        // Closed without waiting, so that no port is used up.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(count)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    // What it accepts has it too, see `connect`.
    let _ = rustix::net::sockopt::set_tcp_congestion(&listener, CONGESTION);
    Ok(listener)
}

fn all(streams: &[TcpStream], work: fn(&TcpStream) -> io::Result<()>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = streams.iter().map(|s| scope.spawn(move || work(s))).collect();
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
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let stream = socket(family, SocketType::STREAM, None)?;
    // Some machines' default (bbr) paces, and would measure itself; a socket that began with it paces ever after. One
    // that lacks cubic keeps its default.
    let _ = sockopt::set_tcp_congestion(&stream, CONGESTION);
    // Linux's connect goes by the time-out of sending (socket(7)).
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, Some(CONNECT))?;
    connect(&stream, &to)?;
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, None)?;
    Ok(TcpStream::from(stream))
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
                std::thread::spawn(move || receive(0, streams, window, |port| tell.send(port).unwrap()));
            send(streams, (Ipv4Addr::LOCALHOST, port.recv().unwrap()).into()).unwrap();
            let measured = receiver.join().unwrap().unwrap();
            assert!(measured.time == window && measured.bytes > 0, "{measured:?}");
        }
    }

    #[test]
    fn connections_are_counted() {
        let (tell, port) = mpsc::channel();
        std::thread::spawn(move || greet(0, |port| tell.send(port).unwrap()));
        let to = (Ipv4Addr::LOCALHOST, port.recv().unwrap()).into();
        assert!(knock(to, Duration::from_millis(20)).unwrap() > 0);
    }

    #[test]
    fn a_stream_that_ends_too_soon_has_failed() {
        let (tell, port) = mpsc::channel();
        let window = Duration::from_millis(50);
        let receiver = std::thread::spawn(move || receive(0, 1, window, |port| tell.send(port).unwrap()));
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port.recv().unwrap())).unwrap());
        assert!(receiver.join().unwrap().is_err());
    }
}
