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
                from: from.ip(),
                span: Span::new(start, start + incoming.len),
                segment: incoming.segment,
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
        let (four, six) = (&self.four, &self.six);
        carry(messages, &mut self.resume, |first, out| {
            self.calls += 1;
            let sockets = if first.to.is_ipv4() { four } else { six };
            self.batch.send(pick(sockets, first.socket)?, memory, out)
        })
    }
}

/// Send messages in their order, as far as it goes. `call` makes one system call through the socket of the first
/// message, and gives how many of the outgoing ones the kernel took: at least one, or why not the first.
/// `resume` is how many datagrams of the first message were sent one by one already.
fn carry(
    messages: &[Message],
    resume: &mut usize,
    mut call: impl FnMut(&Message, &[Outgoing<'_>]) -> io::Result<usize>,
) -> Progress {
    let mut sent = 0;
    while let Some(first) = messages.get(sent) {
        let whole = first.gso || first.datagrams == 1;
        let like = |m: &&Message| {
            m.socket == first.socket && m.to.is_ipv4() == first.to.is_ipv4() && (m.gso || m.datagrams == 1)
        };
        let result = if whole {
            // All that go through the same socket, in one call.
            let run = messages[sent..].iter().take(BATCH).take_while(like).count();
            self::whole(&messages[sent..sent + run], &mut call).map(|n| sent += n)
        } else {
            one_by_one(first, resume, &mut call).map(|()| sent += 1)
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
        *resume = 0;
        return Progress::Refused { sent, why };
    }
    Progress::All
}

fn whole(
    messages: &[Message],
    call: &mut impl FnMut(&Message, &[Outgoing<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let first = &messages[0];
    let mut out = [outgoing(first); BATCH];
    for (out, m) in out.iter_mut().zip(messages) {
        *out = Outgoing {
            segment: (m.datagrams > 1).then_some(m.segment),
            pieces: &m.pieces,
            ..outgoing(m)
        };
    }
    call(first, &out[..messages.len().min(BATCH)])
}

/// A message along a path that does not segment. Succeeds when all its datagrams are sent.
fn one_by_one(
    message: &Message,
    resume: &mut usize,
    call: &mut impl FnMut(&Message, &[Outgoing<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    let each = usize::from(message.pieces_each.max(1));
    while *resume < usize::from(message.datagrams) {
        let mut out = [outgoing(message); BATCH];
        let mut n = 0;
        for (out, pieces) in out.iter_mut().zip(message.pieces.chunks(each).skip(*resume)) {
            out.pieces = pieces;
            n += 1;
        }
        *resume += call(message, &out[..n])?;
    }
    *resume = 0;
    Ok(())
}

/// Where a message goes, with nothing in it yet.
fn outgoing(message: &Message) -> Outgoing<'static> {
    Outgoing {
        to: message.to,
        from: None,
        class: message.class,
        segment: None,
        pieces: &[],
    }
}

/// The socket of a flow. The data path asks only for families that are there.
fn pick(sockets: &[UdpSocket], socket: u8) -> io::Result<&UdpSocket> {
    let n = sockets.len().max(1);
    let none = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    sockets.get(usize::from(socket) % n).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PeerId;

    fn message(n: u8, datagrams: u16, gso: bool) -> Message {
        Message {
            peer: PeerId(n.into()),
            to: SocketAddr::from(([192, 0, 2, n], 8472)),
            socket: 0,
            class: 0,
            gso,
            segment: 100,
            datagrams,
            frames: 1,
            bytes: u32::from(datagrams) * 100,
            pieces_each: 1,
            pieces: (0..usize::from(datagrams))
                .map(|i| Span::new(i * 100, i * 100 + 100))
                .collect(),
            closed: false,
        }
    }

    /// A kernel that refuses what goes to one address, in the way of sendmmsg: the messages before it are sent,
    /// and the reason comes with the next call.
    struct Kernel {
        to: SocketAddr,
        errno: Option<i32>,
        /// Whether single datagrams are refused too.
        singles: bool,
        calls: usize,
        /// Destination and segment size of what was sent, and how many pieces it had.
        sent: Vec<(SocketAddr, Option<u16>, usize)>,
    }

    impl Kernel {
        fn new(errno: i32, singles: bool) -> Kernel {
            Kernel {
                to: message(2, 1, true).to,
                errno: Some(errno),
                singles,
                calls: 0,
                sent: Vec::new(),
            }
        }

        fn take(&mut self, out: &[Outgoing<'_>]) -> io::Result<usize> {
            self.calls += 1;
            for (i, o) in out.iter().enumerate() {
                let refused = o.to == self.to && (self.singles || o.segment.is_some());
                match self.errno.filter(|_| refused) {
                    Some(errno) if i == 0 => return Err(io::Error::from_raw_os_error(errno)),
                    Some(_) => return Ok(i),
                    None => self.sent.push((o.to, o.segment, o.pieces.len())),
                }
            }
            Ok(out.len())
        }

        fn carry(&mut self, messages: &[Message], resume: &mut usize) -> Progress {
            carry(messages, resume, |_, out| self.take(out))
        }
    }

    /// Messages of which the kernel refuses the second one.
    fn three() -> [Message; 3] {
        [message(1, 1, true), message(2, 4, true), message(3, 3, true)]
    }

    #[test]
    fn each_refusal_is_understood_and_stops_nobody_else() {
        let plain = [
            libc::EPERM,
            libc::EACCES,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::ECONNREFUSED,
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::ENETDOWN,
        ];
        let plain = plain.map(|errno| (errno, Refusal::Other));
        let offload = [libc::EIO, libc::EINVAL].map(|errno| (errno, Refusal::NoOffload));
        for (errno, why) in plain.into_iter().chain(offload) {
            let (messages, mut resume) = (three(), 0);
            let mut kernel = Kernel::new(errno, true);
            assert_eq!(
                kernel.carry(&messages, &mut resume),
                Progress::Refused { sent: 1, why },
                "errno {errno}"
            );
            assert_eq!(kernel.calls, 2, "it is told once, and not asked again");
            // The data path goes on with the next one, and the refused way may be free again at once.
            assert_eq!(kernel.carry(&messages[2..], &mut resume), Progress::All);
            kernel.errno = None;
            assert_eq!(kernel.carry(&messages[1..2], &mut resume), Progress::All);
            let sent: Vec<_> = kernel
                .sent
                .iter()
                .map(|(to, segment, _)| (to.ip(), *segment))
                .collect();
            let at = |n: usize| messages[n].to.ip();
            assert_eq!(sent, [(at(0), None), (at(2), Some(100)), (at(1), Some(100))]);
        }
        // A single datagram was no train to begin with.
        for errno in [libc::EIO, libc::EINVAL] {
            let progress = Kernel::new(errno, true).carry(&[message(2, 1, true)], &mut 0);
            assert_eq!(
                progress,
                Progress::Refused {
                    sent: 0,
                    why: Refusal::Other
                }
            );
        }
        // Too big for a path whose MTU the kernel tells, or does not know yet.
        let progress = Kernel::new(libc::EMSGSIZE, true).carry(&three(), &mut 0);
        assert!(matches!(
            progress,
            Progress::Refused {
                sent: 1,
                why: Refusal::TooBig { .. }
            }
        ));
    }

    #[test]
    fn a_train_that_is_refused_goes_in_pieces_without_loss_or_doubles() {
        let mut kernel = Kernel::new(libc::EIO, false);
        let (mut messages, mut resume) = (three(), 0);
        let refused = kernel.carry(&messages, &mut resume);
        assert_eq!(
            refused,
            Progress::Refused {
                sent: 1,
                why: Refusal::NoOffload
            }
        );
        messages[1].gso = false;
        assert_eq!(kernel.carry(&messages[1..], &mut resume), Progress::All);
        let to: Vec<_> = kernel
            .sent
            .iter()
            .map(|(to, segment, _)| (to.ip(), *segment))
            .collect();
        let at = |n: usize| messages[n].to.ip();
        let two = (at(1), None);
        assert_eq!(to, [(at(0), None), two, two, two, two, (at(2), Some(100))]);
    }

    #[test]
    fn a_full_socket_half_way_goes_on_where_it_stopped() {
        let messages = [message(1, 1, true), message(2, 5, false)];
        let (mut resume, mut room, mut sent) = (0, 3, Vec::new());
        let mut take = |out: &[Outgoing<'_>], room: &mut usize| {
            let n = out.len().min(*room);
            *room -= n;
            sent.extend(out[..n].iter().map(|o| (o.to, o.pieces[0].start())));
            match n {
                0 => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                n => Ok(n),
            }
        };
        let stopped = carry(&messages, &mut resume, |_, out| take(out, &mut room));
        assert_eq!(stopped, Progress::Blocked { sent: 1 });
        room = 9;
        let done = carry(&messages[1..], &mut resume, |_, out| take(out, &mut room));
        assert_eq!((done, resume), (Progress::All, 0));
        let parts: Vec<usize> = sent
            .iter()
            .filter(|(to, _)| *to == messages[1].to)
            .map(|(_, at)| *at)
            .collect();
        assert_eq!(parts, [0, 100, 200, 300, 400]);
    }

    /// A real kernel, which refuses trains on sockets that leave the checksum out.
    #[test]
    fn a_real_socket_refuses_trains_and_takes_their_pieces() {
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options {
            senders: 1,
            gso: true,
            gro: false,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
        };
        let (mut receiver, mut sender) = open(&[here], &options).unwrap();
        let memory = [7; 400];
        let mut train = message(2, 4, true);
        train.to = receiver.addresses()[0];
        net::without_checksums(&sender.four[0]).unwrap();
        let messages = [train.clone()];
        let refused = sender.send(&messages, &memory);
        assert_eq!(
            refused,
            Progress::Refused {
                sent: 0,
                why: Refusal::NoOffload
            }
        );
        train.gso = false;
        assert_eq!(sender.send(&[train], &memory), Progress::All);
        receiver.receive(0);
        let lengths: Vec<usize> = receiver.batch().1.iter().map(|r| r.span.len()).collect();
        assert_eq!(lengths, [100; 4]);
    }
}
