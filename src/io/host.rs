//! Streams and datagram sockets of the host, by which pods reach the world.

use crate::buf::Span;
use crate::model::{Heard, HostError, MouthKind, Moved, Outward};
use crate::sys::errqueue;
use crate::sys::net::{self, Outgoing, RecvBatch, SendBatch};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, ipproto, sockopt};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// The hops of a socket that was told none.
const DEFAULT_HOPS: u8 = 64;

/// Errors of a socket that nothing is known of, before others have their turn.
const ERRORS: usize = 16;

/// What an error number of a socket means.
fn meaning(e: Errno) -> HostError {
    match e {
        Errno::CONNREFUSED => HostError::Refused,
        Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => HostError::Reset,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::NONET | Errno::INVAL => {
            HostError::NetUnreachable
        }
        Errno::HOSTUNREACH | Errno::HOSTDOWN => HostError::HostUnreachable,
        Errno::ACCESS | Errno::PERM => HostError::Prohibited,
        Errno::TIMEDOUT => HostError::TimedOut,
        Errno::MSGSIZE => HostError::TooBig(0),
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL => {
            HostError::NoSockets
        }
        _ => HostError::Other,
    }
}

/// What an entry of an error queue means.
fn told(entry: &errqueue::Entry) -> HostError {
    let six = entry
        .to
        .map_or(entry.by.is_some_and(|b| b.is_ipv6()), |t| t.is_ipv6());
    match entry.icmp {
        Some((11, _)) if !six => HostError::TtlExceeded,
        Some((3, _)) if six => HostError::TtlExceeded,
        _ if entry.errno == libc::EMSGSIZE => {
            HostError::TooBig(u16::try_from(entry.info).unwrap_or(u16::MAX))
        }
        _ => meaning(Errno::from_raw_os_error(entry.errno)),
    }
}

/// Slots by number, watched under tokens from a first one on.
pub(super) struct Watched<T> {
    slots: Vec<Option<T>>,
    registry: Registry,
    first: usize,
}

impl<T: AsFd> Watched<T> {
    /// None yet.
    pub(super) fn new(registry: Registry, first: usize) -> Watched<T> {
        Watched {
            slots: Vec::new(),
            registry,
            first,
        }
    }

    pub(super) fn get(&mut self, n: u32) -> Option<&mut T> {
        self.slots.get_mut(n as usize)?.as_mut()
    }

    pub(super) fn put(&mut self, n: u32, what: T, interest: Interest) -> Result<(), HostError> {
        let at = n as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        let fd = what.as_fd().as_raw_fd();
        self.registry
            .register(&mut SourceFd(&fd), Token(self.first + at), interest)
            .map_err(|_| HostError::NoSockets)?;
        self.slots[at] = Some(what);
        Ok(())
    }

    pub(super) fn take(&mut self, n: u32) -> Option<T> {
        let what = self.slots.get_mut(n as usize)?.take()?;
        // A copy of the descriptor, held by a child process say, would keep it watched.
        let _ = self.registry.deregister(&mut SourceFd(&what.as_fd().as_raw_fd()));
        Some(what)
    }
}

/// TCP connections of the host, by the number of their flow.
pub struct Streams(Watched<OwnedFd>);

impl Streams {
    /// None yet; their events come under tokens from `first` on.
    pub fn new(registry: Registry, first: usize) -> Streams {
        Streams(Watched::new(registry, first))
    }

    /// Begin to connect.
    ///
    /// # Errors
    /// Why it cannot even be begun.
    pub fn connect(
        &mut self,
        flow: u32,
        to: SocketAddr,
        from: Option<IpAddr>,
        hops: Option<u8>,
    ) -> Result<(), HostError> {
        let six = to.is_ipv6();
        let family = if six {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(meaning)?;
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        if let Some(hops) = hops {
            set_hops(&socket, six, hops);
            let _ = errqueue::enable(&socket, six);
        }
        if let Some(from) = from {
            rustix::net::bind(&socket, &SocketAddr::new(from, 0)).map_err(meaning)?;
        }
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(meaning(e)),
        }
        self.put(flow, socket)
    }

    /// Take a stream that is connected already.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn put(&mut self, flow: u32, stream: OwnedFd) -> Result<(), HostError> {
        self.0.put(flow, stream, Interest::READABLE | Interest::WRITABLE)
    }

    /// Whether a stream is connected, and if not why, and who said so; `None` when that is not decided.
    pub fn outcome(&mut self, flow: u32) -> Option<Result<(), (HostError, Option<IpAddr>)>> {
        let Some(stream) = self.0.get(flow) else {
            return Some(Err((HostError::Other, None)));
        };
        match sockopt::socket_error(&*stream) {
            Ok(Ok(())) => {}
            Ok(Err(e)) | Err(e) => {
                let entry = errqueue::take(&*stream, &mut []);
                let entry = entry.filter(|entry| entry.icmp.is_some());
                return Some(Err(
                    entry.map_or((meaning(e), None), |entry| (told(&entry), entry.by))
                ));
            }
        }
        match rustix::net::getpeername(&*stream) {
            Ok(Some(_)) => Some(Ok(())),
            _ => None,
        }
    }

    /// Read.
    pub fn read(&mut self, flow: u32, into: &mut [u8]) -> Moved {
        let Some(stream) = self.0.get(flow) else {
            return Moved::Failed(HostError::Other);
        };
        loop {
            match rustix::io::read(&*stream, &mut *into) {
                Ok(0) if into.is_empty() => return Moved::Blocked,
                Ok(0) => return Moved::End,
                Ok(n) => return Moved::Bytes(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Moved::Blocked,
                Err(e) => return Moved::Failed(meaning(e)),
            }
        }
    }

    /// Write.
    pub fn write(&mut self, flow: u32, from: &[u8]) -> Moved {
        let Some(stream) = self.0.get(flow) else {
            return Moved::Failed(HostError::Other);
        };
        loop {
            match rustix::net::send(&*stream, from, rustix::net::SendFlags::NOSIGNAL) {
                Ok(0) => return Moved::Blocked,
                Ok(n) => return Moved::Bytes(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Moved::Blocked,
                Err(e) => return Moved::Failed(meaning(e)),
            }
        }
    }

    /// Write no more.
    pub fn shut(&mut self, flow: u32) {
        if let Some(stream) = self.0.get(flow) {
            // Whether it is still connected is found out by the next call.
            let _ = rustix::net::shutdown(&*stream, Shutdown::Write);
        }
    }

    /// Close it; with `reset` the other end sees that.
    pub fn close(&mut self, flow: u32, reset: bool) {
        if let Some(stream) = self.0.take(flow)
            && reset
        {
            let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        }
    }
}

fn set_hops(socket: impl AsFd, six: bool, hops: u8) {
    // The only thing that can be wrong with it is zero hops, which nobody asks for.
    let _ = match six {
        false => sockopt::set_ip_ttl(socket, u32::from(hops.max(1))),
        true => sockopt::set_ipv6_unicast_hops(socket, Some(hops.max(1))),
    };
}

struct Mouth {
    socket: UdpSocket,
    six: bool,
    hops: u8,
    may_fragment: bool,
    /// Its error queue may have entries that no call fails for.
    queued: bool,
}

impl AsFd for Mouth {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagram sockets of the host, by their number.
pub struct Mouths {
    watched: Watched<Mouth>,
    send: SendBatch,
    receive: RecvBatch,
    /// Sockets whose error queue has something that no event tells of.
    untold: Vec<u32>,
}

impl Mouths {
    /// None yet; their events come under tokens from `first` on.
    pub fn new(registry: Registry, first: usize) -> Mouths {
        Mouths {
            watched: Watched::new(registry, first),
            send: SendBatch::default(),
            receive: RecvBatch::default(),
            untold: Vec::new(),
        }
    }

    /// Open a socket.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn open(&mut self, mouth: u32, kind: MouthKind, six: bool) -> Result<(), HostError> {
        let family = if six {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let protocol = match (kind, six) {
            (MouthKind::Udp, _) => ipproto::UDP,
            (MouthKind::Echo, false) => ipproto::ICMP,
            (MouthKind::Echo, true) => ipproto::ICMPV6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol)).map_err(meaning)?;
        if six {
            let _ = sockopt::set_ipv6_v6only(&socket, true);
        }
        self.put(mouth, UdpSocket::from(socket), kind)
    }

    /// Take a socket that is bound already.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn put(&mut self, mouth: u32, socket: UdpSocket, kind: MouthKind) -> Result<(), HostError> {
        let at = socket.local_addr().map_err(|_| HostError::Other)?;
        let six = at.is_ipv6();
        if at.ip().is_unspecified() && at.port() != 0 {
            // A published port at every address: clients hear answers only from the one they asked.
            let _ = net::tell_local_end(&socket, six);
        }
        // Without any of these it still works, only less well.
        let _ = errqueue::enable(&socket, six);
        let _ = net::tell_class_and_losses(&socket, six);
        if kind == MouthKind::Udp {
            let _ = net::merge_received(&socket);
        }
        let _ = net::may_fragment(&socket, six, false);
        let mouth_of = Mouth {
            socket,
            six,
            hops: DEFAULT_HOPS,
            may_fragment: false,
            queued: false,
        };
        self.watched.put(mouth, mouth_of, Interest::READABLE)
    }

    /// Send.
    ///
    /// # Errors
    /// Why the host did not take it.
    pub fn send(&mut self, mouth: u32, what: &Outward<'_>) -> Result<(), HostError> {
        let id = mouth;
        let Some(mouth) = self.watched.get(id) else {
            return Err(HostError::Other);
        };
        let told = mouth.queued;
        let hops = what.hops.unwrap_or(DEFAULT_HOPS);
        if mouth.hops != hops {
            set_hops(&mouth.socket, mouth.six, hops);
            mouth.hops = hops;
        }
        if mouth.may_fragment != what.may_fragment {
            let _ = net::may_fragment(&mouth.socket, mouth.six, what.may_fragment);
            mouth.may_fragment = what.may_fragment;
        }
        let all = Span::new(0, what.payload.len());
        let queued = &mut mouth.queued;
        let mut one = |piece: Span, segment| -> Result<(), Errno> {
            let message = Outgoing {
                to: what.to,
                from: what.from,
                class: what.class,
                segment,
                pieces: &[piece],
            };
            for _ in 0..3 {
                match self.send.send(&mouth.socket, what.payload, &[message]) {
                    Ok(_) => return Ok(()),
                    // What was said of an earlier datagram: it stays in the queue, and this one was not sent.
                    Err(e) if e.raw_os_error().is_some_and(is_of_earlier) => *queued = true,
                    Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
                }
            }
            Err(Errno::IO)
        };
        let done = match (one(all, what.segment), what.segment) {
            // Some ways have no offload for trains, or a smaller MTU than the pod's.
            (Err(Errno::INVAL | Errno::IO | Errno::MSGSIZE), Some(segment)) => {
                let step = usize::from(segment).max(1);
                (0..what.payload.len())
                    .step_by(step)
                    .try_for_each(|at| one(Span::new(at, (at + step).min(what.payload.len())), None))
            }
            (done, _) => done,
        };
        let refused = matches!(done, Err(Errno::MSGSIZE));
        if !told && (mouth.queued || refused) {
            self.untold.push(id);
        }
        done.map_err(|e| match meaning(e) {
            HostError::TooBig(_) => {
                // Each attempt left an entry, which takes of the room for what comes in.
                mouth.queued = true;
                let entry = errqueue::take(&mouth.socket, &mut []).filter(|e| e.errno == libc::EMSGSIZE);
                HostError::TooBig(entry.map_or(0, |e| u16::try_from(e.info).unwrap_or(0)))
            }
            other => other,
        })
    }

    /// Sockets that have something to be heard although nothing happens there.
    pub fn untold(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.untold)
    }

    /// Take what was heard; `None` when there is no more for now.
    pub fn hear(&mut self, mouth: u32, into: &mut [u8]) -> Option<Heard> {
        let mouth = self.watched.get(mouth)?;
        let all = Span::new(0, into.len());
        for _ in 0..ERRORS {
            match self.receive.receive(&mouth.socket, into, &[all]) {
                Ok(_) => {
                    let heard = self.receive.incoming(0);
                    return Some(Heard::Datagram {
                        from: heard.from?,
                        len: heard.len,
                        segment: heard.segment,
                        class: heard.class,
                        at: heard.at,
                    });
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && !mouth.queued => return None,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // What the network said of something sent: the queue tells it better.
                Err(_) => {
                    let entry = errqueue::take(&mouth.socket, into);
                    mouth.queued = entry.is_some();
                    if let Some(entry) = entry
                        && let Some(to) = entry.to
                    {
                        return Some(Heard::Error {
                            to,
                            by: entry.by,
                            what: told(&entry),
                            len: entry.len,
                        });
                    }
                }
            }
        }
        None
    }

    /// Close it.
    pub fn close(&mut self, mouth: u32) {
        self.watched.take(mouth);
    }
}

/// Errors that a socket keeps of an earlier datagram and tells with the next call.
fn is_of_earlier(e: i32) -> bool {
    matches!(
        e,
        libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::EPROTO | libc::ENOPROTOOPT
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;

    #[test]
    fn what_the_network_said_is_told_though_a_send_came_first() {
        let poll = Poll::new().unwrap();
        let mut mouths = Mouths::new(poll.registry().try_clone().unwrap(), 0);
        mouths.open(0, MouthKind::Udp, false).unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for to in [closed, closed, there.local_addr().unwrap()] {
            let what = Outward {
                to,
                from: None,
                hops: None,
                class: 0,
                segment: None,
                may_fragment: false,
                payload: b"hello",
            };
            mouths.send(0, &what).unwrap();
        }
        let mut into = [0; 100];
        for _ in 0..2 {
            let heard = mouths.hear(0, &mut into);
            let by = Some(closed.ip());
            let (to, what, len) = (closed, HostError::Refused, 5);
            assert_eq!(heard, Some(Heard::Error { to, by, what, len }));
        }
        assert_eq!(mouths.hear(0, &mut into), None);
        assert!(!mouths.watched.get(0).unwrap().queued);
    }
}
