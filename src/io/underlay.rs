//! The sockets of the tunnel: one per family that receives at the overlay's port, and several that send, each
//! with a port of its own so that the network below sees more than one flow (RFC 7348 section 4.2 asks for
//! entropy in the source port).

use crate::buf::{Message, Progress, Received, Refusal, Span};
use crate::model::UnderlayMtu;
use crate::sys::net::{self, BATCH, Outgoing, RecvBatch, SendBatch};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Messages received at a time when they are small.
pub const SLOTS: usize = 32;
/// Distance of slots. The longest message is 65,535 bytes; the odd rest keeps slots from sharing cache sets.
const STRIDE: usize = 65_536 + 17 * 64;
/// Below this mean length many messages are received at a time; above it one, into memory that is warm.
const SMALL: usize = 8192;

/// How to open the underlay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sending sockets of each family.
    pub senders: u8,
    /// Whether to send trains.
    pub gso: bool,
    /// Whether to receive trains.
    pub gro: bool,
    /// Receive buffer to ask for.
    pub receive_buffer: usize,
    /// Send buffer to ask for.
    pub send_buffer: usize,
}

/// The receiving sockets.
pub struct Receiver {
    sockets: Vec<UdpSocket>,
    lost: Vec<u32>,
    memory: Vec<u8>,
    batch: RecvBatch,
    slots: Vec<Span>,
    received: Vec<Received>,
    /// How many messages to ask for next.
    ask: usize,
    /// Whether the kernel merges datagrams.
    pub gro: bool,
    /// Receive buffer granted, the smallest of the sockets.
    pub buffer: usize,
    /// Receive calls that gave something.
    pub calls: u64,
    /// Messages they gave.
    pub messages: u64,
}

/// What came of receiving a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams the kernel had to throw away since the last batch.
    pub lost: u64,
    /// There may be more to receive.
    pub more: bool,
}

/// The sending sockets.
pub struct Sender {
    four: Vec<UdpSocket>,
    six: Vec<UdpSocket>,
    batch: SendBatch,
    /// Datagrams of the first message that were sent already, one by one.
    resume: usize,
    /// Whether the kernel segments.
    pub gso: bool,
    /// Send buffer granted, the smallest of the sockets.
    pub buffer: usize,
    /// Send calls.
    pub calls: u64,
}

/// A socket of the underlay cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenError {
    /// What kind of refusal it was.
    pub kind: io::ErrorKind,
    /// A sentence that names the address and what can be done.
    pub message: String,
}

/// Bind the sockets of `addresses`, at most one of each family.
///
/// # Errors
/// See [`OpenError`].
pub fn open(addresses: &[SocketAddr], options: &Options) -> Result<(Receiver, Sender), OpenError> {
    let mut receiver = Receiver {
        sockets: Vec::new(),
        lost: Vec::new(),
        memory: vec![0; SLOTS * STRIDE],
        batch: RecvBatch::default(),
        slots: (0..SLOTS)
            .map(|i| Span::new(i * STRIDE, i * STRIDE + 65_536))
            .collect(),
        received: Vec::with_capacity(SLOTS),
        ask: SLOTS,
        gro: options.gro,
        buffer: usize::MAX,
        calls: 0,
        messages: 0,
    };
    let mut sender = Sender {
        four: Vec::new(),
        six: Vec::new(),
        batch: SendBatch::default(),
        resume: 0,
        gso: options.gso,
        buffer: usize::MAX,
        calls: 0,
    };
    for address in addresses {
        let failed = |e: io::Error| {
            let (ip, port) = (address.ip(), address.port());
            let message = match e.kind() {
                io::ErrorKind::AddrInUse => format!("port {port} of {ip} is in use (set overlay.port)"),
                io::ErrorKind::AddrNotAvailable => {
                    format!("{ip} is no address of this host (set overlay.bind)")
                }
                io::ErrorKind::PermissionDenied => {
                    format!("port {port} of {ip} is not yours to use (set overlay.port to one above 1023)")
                }
                _ => format!("{address} cannot be used: {e} (see overlay.bind and overlay.port)"),
            };
            OpenError {
                kind: e.kind(),
                message,
            }
        };
        let six = address.is_ipv6();
        let socket = bind(*address).map_err(failed)?;
        net::tell_class_and_losses(&socket, six).map_err(failed)?;
        if options.gro {
            receiver.gro &= net::merge_received(&socket).is_ok();
        }
        let (granted, _) = net::buffers(&socket, options.receive_buffer, options.send_buffer);
        receiver.buffer = receiver.buffer.min(granted);
        receiver.sockets.push(socket);
        receiver.lost.push(0);
        for _ in 0..options.senders.max(1) {
            let socket = bind(SocketAddr::new(address.ip(), 0)).map_err(failed)?;
            net::dont_fragment(&socket, six).map_err(failed)?;
            // Nothing is received here: as little as the kernel allows.
            let (_, granted) = net::buffers(&socket, 0, options.send_buffer);
            sender.buffer = sender.buffer.min(granted);
            sender.gso &= net::can_segment(&socket);
            if six { &mut sender.six } else { &mut sender.four }.push(socket);
        }
    }
    Ok((receiver, sender))
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own, perhaps at the same port.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}

impl Receiver {
    /// The descriptors, for the poller.
    pub fn raw(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.sockets.iter().map(|s| s.as_raw_fd())
    }

    /// Where the sockets are bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|s| s.local_addr().ok()).collect()
    }

    /// Receive from socket `i` a batch of what is there; [`Receiver::batch`] has it then.
    pub fn receive(&mut self, i: usize) -> Outcome {
        self.received.clear();
        let mut outcome = Outcome::default();
        let Some(socket) = self.sockets.get(i) else {
            return outcome;
        };
        let ask = self.ask;
        let n = match self.batch.receive(socket, &mut self.memory, &self.slots[..ask]) {
            Ok(n) => n,
            // Empty; all else is an interruption, or what an earlier send caused and is off the socket now.
            Err(e) => {
                outcome.more = e.kind() != io::ErrorKind::WouldBlock;
                return outcome;
            }
        };
        self.calls += 1;
        self.messages += n as u64;
        let mut bytes = 0;
        for slot in 0..n {
            let incoming = self.batch.incoming(slot);
            bytes += incoming.len;
            if let Some(total) = incoming.lost {
                outcome.lost += u64::from(total.wrapping_sub(self.lost[i]));
                self.lost[i] = total;
            }
            // A slot holds the longest message there is, and UDP always tells the sender.
            let start = self.slots[slot].start();
            self.received.extend(incoming.from.map(|from| Received {
                span: Span::new(start, start + incoming.len),
                segment: incoming.segment,
                from,
                class: incoming.class,
            }));
        }
        self.ask = if bytes / n.max(1) < SMALL { SLOTS } else { 1 };
        outcome.more = n == ask;
        outcome
    }

    /// The batch received last: its memory, and the messages in it.
    pub fn batch(&mut self) -> (&mut [u8], &[Received]) {
        (&mut self.memory, &self.received)
    }
}

impl Sender {
    /// The descriptors, for the poller.
    pub fn raw(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.four.iter().chain(&self.six).map(|s| s.as_raw_fd())
    }

    /// Which families there are: IPv4, IPv6.
    pub fn families(&self) -> (bool, bool) {
        (!self.four.is_empty(), !self.six.is_empty())
    }

    /// Send messages in their order, as far as it goes.
    pub fn send(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        let mut sent = 0;
        while let Some(first) = messages.get(sent) {
            let whole = first.gso || first.datagrams == 1;
            let like = |m: &&Message| {
                m.socket == first.socket
                    && m.to.is_ipv4() == first.to.is_ipv4()
                    && (m.gso || m.datagrams == 1)
            };
            let result = if whole {
                // All that go through the same socket, in one call.
                let run = messages[sent..].iter().take(BATCH).take_while(like).count();
                self.whole(&messages[sent..sent + run], memory)
                    .inspect(|n| sent += n)
            } else {
                self.one_by_one(first, memory)
                    .inspect(|done| sent += usize::from(*done > 0))
            };
            let Err(e) = result else { continue };
            let why = match e.raw_os_error() {
                Some(libc::EAGAIN) => return Progress::Blocked { sent },
                Some(libc::EINTR) => continue,
                Some(libc::EMSGSIZE) => Refusal::TooBig {
                    mtu: net::path_mtu(messages[sent].to).map(UnderlayMtu),
                },
                Some(libc::EIO | libc::EINVAL) if messages[sent].gso && messages[sent].datagrams > 1 => {
                    Refusal::NoOffload
                }
                _ => Refusal::Other,
            };
            // Either it is given up, or nothing of it was sent yet.
            self.resume = 0;
            return Progress::Refused { sent, why };
        }
        Progress::All
    }

    fn whole(&mut self, messages: &[Message], memory: &[u8]) -> io::Result<usize> {
        let first = &messages[0];
        let none = Outgoing {
            to: first.to,
            class: 0,
            segment: None,
            pieces: &[],
        };
        let mut out = [none; BATCH];
        for (out, m) in out.iter_mut().zip(messages) {
            *out = Outgoing {
                to: m.to,
                class: m.class,
                segment: (m.datagrams > 1).then_some(m.segment),
                pieces: &m.pieces,
            };
        }
        self.calls += 1;
        let sockets = if first.to.is_ipv4() { &self.four } else { &self.six };
        let socket = pick(sockets, first.socket)?;
        self.batch.send(socket, memory, &out[..messages.len().min(BATCH)])
    }

    /// A message along a path that does not segment. Gives 1 when all its datagrams are sent.
    fn one_by_one(&mut self, message: &Message, memory: &[u8]) -> io::Result<usize> {
        let each = usize::from(message.pieces_each.max(1));
        let sockets = if message.to.is_ipv4() {
            &self.four
        } else {
            &self.six
        };
        let socket = pick(sockets, message.socket)?;
        while self.resume < usize::from(message.datagrams) {
            let none = Outgoing {
                to: message.to,
                class: message.class,
                segment: None,
                pieces: &[],
            };
            let mut out = [none; BATCH];
            let mut n = 0;
            for (out, pieces) in out.iter_mut().zip(message.pieces.chunks(each).skip(self.resume)) {
                out.pieces = pieces;
                n += 1;
            }
            self.calls += 1;
            self.resume += self.batch.send(socket, memory, &out[..n])?;
        }
        self.resume = 0;
        Ok(1)
    }
}

/// The socket of a flow. The data path asks only for families that are there.
fn pick(sockets: &[UdpSocket], socket: u8) -> io::Result<&UdpSocket> {
    let n = sockets.len().max(1);
    let none = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    sockets.get(usize::from(socket) % n).ok_or_else(none)
}
