//! Request and response over one TCP connection, one at a time: what a path adds to each.

use super::stream::{accept, connect};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes of a request and of a response.
const MESSAGE: usize = 64;
/// Exchanges that are left out at the beginning.
const WARM_UP: usize = 200;
/// An answer that takes so long is lost.
const LATE: Duration = Duration::from_secs(1);
/// The same where it is asked for again, at first and at last; and what is between questions, so that who asks neither keeps
/// a processor busy nor has all ports in use.
const SOON: Duration = Duration::from_millis(2);
const LATER: Duration = Duration::from_millis(128);
const BETWEEN: Duration = Duration::from_micros(100);
/// The first byte of a request, and of an answer of one among equals.
pub const MARK: u8 = 0x5a;

/// What a client measured, over so many exchanges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// The median round trip.
    pub p50: Duration,
    /// The round trip that one in a hundred exceeds.
    pub p99: Duration,
    /// How many exchanges there were.
    pub count: usize,
}

impl Times {
    /// What these round trips amount to; zeros when there are none.
    pub fn of(mut times: Vec<Duration>) -> Times {
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        let at = |percent: usize| times.get(last * percent / 100).copied().unwrap_or_default();
        Times {
            p50: at(50),
            p99: at(99),
            count: times.len(),
        }
    }
}

/// Answer one client at `port` (0: any) until it closes; `ready` is called with the port.
///
/// # Errors
/// When nobody connects, or the connection breaks.
pub fn answer(port: u16, ready: impl FnOnce(u16)) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    ready(listener.local_addr()?.port());
    let mut stream = accept(&listener)?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        match stream.read_exact(&mut message) {
            Ok(()) => stream.write_all(&message)?,
            Err(e) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&e.kind()) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
}

/// Ask for the time `window`.
///
/// # Errors
/// When the connection cannot be made, or an answer does not come.
pub fn ask(to: SocketAddr, window: Duration) -> io::Result<Times> {
    let mut stream = connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LATE))?;
    let mut message = [MARK; MESSAGE];
    rounds(window, || {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    })
}

/// Answer datagrams at `port` (0: any) until none comes for a while, with `mark` as the first byte; `ready` is called with
/// the port.
///
/// # Errors
/// When no socket can be had.
pub fn echo(port: u16, mark: u8, ready: impl FnOnce(u16)) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(2 * LATE))?;
    ready(socket.local_addr()?.port());
    let mut message = [0; MESSAGE];
    while let Ok((n, who)) = socket.recv_from(&mut message) {
        message[0] = mark;
        socket.send_to(&message[..n], who)?;
    }
    Ok(())
}

/// Ask by datagrams, one at a time, for the time `window`.
///
/// # Errors
/// When an answer does not come.
pub fn query(to: SocketAddr, window: Duration) -> io::Result<Times> {
    let socket = asker(to, LATE)?;
    let mut message = [MARK; MESSAGE];
    rounds(window, || {
        socket.send(&message)?;
        socket.recv(&mut message).map(drop)
    })
}

/// Ask by a datagram from a new socket each, one at a time, for the time `window`; `changed` is called with the mark of who
/// answers, and when it came ([`now`]), each time that it is another. What is not answered is asked again.
///
/// # Errors
/// When no socket can be had.
pub fn follow(to: SocketAddr, window: Duration, mut changed: impl FnMut(u8, u64)) -> io::Result<()> {
    let begun = Instant::now();
    let (mut last, mut patience) = (None, SOON);
    while begun.elapsed() < window {
        // A new one, as who has answered once does so for as long as it can.
        let socket = asker(to, patience)?;
        let mut message = [MARK; MESSAGE];
        let answered = socket.send(&message).and_then(|_| socket.recv(&mut message));
        match answered {
            Ok(_) => {
                if last != Some(message[0]) {
                    changed(message[0], now());
                    last = Some(message[0]);
                }
                patience = SOON;
            }
            // It was lost with who was to answer, or nobody is there yet, or this machine is slow.
            Err(_) => patience = LATER.min(patience * 2),
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}

/// Nanoseconds of a clock that all processes of this machine share.
pub fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn asker(to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Time what is done again and again.
fn rounds(window: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<Times> {
    let mut once = || {
        let begun = Instant::now();
        work()?;
        io::Result::Ok(begun.elapsed())
    };
    for _ in 0..WARM_UP {
        once()?;
    }
    let begun = Instant::now();
    let mut times = Vec::with_capacity(1 << 17);
    while begun.elapsed() < window || times.is_empty() {
        times.push(once()?);
    }
    Ok(Times::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    #[test]
    fn one_in_a_hundred_is_slower_than_p99() {
        let times = Times::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!((times.p50.as_millis(), times.p99.as_millis()), (100, 198));
        assert_eq!(Times::of(Vec::new()).count, 0);
    }

    #[test]
    fn who_answers_is_followed() {
        let server = |mark| {
            let (tell, port) = mpsc::channel();
            let server = std::thread::spawn(move || echo(0, mark, |port| tell.send(port).unwrap()));
            (server, port.recv().unwrap())
        };
        let (one, port) = server(7);
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let mut marks = Vec::new();
        let before = now();
        follow(to, Duration::from_millis(20), |mark, at| marks.push((mark, at))).unwrap();
        assert_eq!((marks.len(), marks[0].0), (1, 7));
        assert!(marks[0].1 > before && marks[0].1 < now());
        assert_eq!(one.join().unwrap().err().map(|e| e.kind()), None);
    }

    #[test]
    fn exchanges_are_timed() {
        let (tell, port) = mpsc::channel();
        let server = std::thread::spawn(move || answer(0, |port| tell.send(port).unwrap()));
        let to = (Ipv4Addr::LOCALHOST, port.recv().unwrap()).into();
        let times = ask(to, Duration::from_millis(20)).unwrap();
        server.join().unwrap().unwrap();
        assert!(
            times.count > 0 && times.p50 > Duration::ZERO && times.p99 >= times.p50,
            "{times:?}"
        );
    }
}
