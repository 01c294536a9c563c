//! UDP sockets for the tunnel: options rustix does not have, and whole batches of messages with segmentation
//! (UDP_SEGMENT), merging (UDP_GRO) and the traffic class beside each.

#![allow(unsafe_code)]

use crate::buf::Span;
use crate::model::LocalEnd;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

/// Messages of one call.
pub const BATCH: usize = 64;
/// Pieces of one message the kernel takes (UIO_MAXIOV).
const PIECES: usize = 1024;
/// Room for ancillary data: three integers, and an address with its interface.
const CONTROL: usize = 128;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Set an integer socket option.
pub(super) fn set(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option's value is a c_int, which `value` is for the length of the call; the descriptor is
    // open, as `socket` owns it.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn get(socket: &UdpSocket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are writable for the length of the call and `len` is the size of `value`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Forbid fragmentation: a datagram larger than the interface's MTU is refused (EMSGSIZE) instead. What ICMP told the
/// kernel of the path beyond is not asked for (IP_PMTUDISC_PROBE, not DO): any outsider may have said that, the kernel
/// would believe it for ten minutes, and it could not even be put to the test.
///
/// # Errors
/// What the kernel says.
pub fn dont_fragment(socket: &UdpSocket, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        false => set(
            socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        true => set(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    }
}

/// Allow fragmentation where a datagram is larger than the path's MTU, as far as the kernel knows it, or have it refused
/// there (EMSGSIZE).
///
/// # Errors
/// What the kernel says.
pub fn may_fragment(socket: &UdpSocket, is_ipv6: bool, may: bool) -> io::Result<()> {
    let (level, name, want, never) = match is_ipv6 {
        false => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
            libc::IP_PMTUDISC_DO,
        ),
        true => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    set(socket, level, name, if may { want } else { never })
}

/// Ask for the traffic class of each datagram, and for the count of datagrams lost to a full buffer.
///
/// # Errors
/// What the kernel says.
pub fn tell_class_and_losses(socket: &UdpSocket, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        false => set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?,
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?,
    }
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// Ask to which of the host's addresses each datagram was sent.
///
/// # Errors
/// What the kernel says.
pub fn tell_local_end(socket: &UdpSocket, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        false => set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
    }
}

/// Let the kernel merge datagrams of equal length into one message (UDP_GRO, Linux 5.0).
///
/// # Errors
/// The kernel cannot.
pub fn merge_received(socket: &UdpSocket) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows UDP_SEGMENT (Linux 4.18).
pub fn can_segment(socket: &UdpSocket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Send without UDP checksums, over which the kernel refuses to segment.
///
/// # Errors
/// What the kernel says.
#[cfg(test)]
pub fn without_checksums(socket: &UdpSocket) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

/// Ask for buffers of these sizes, and give what the kernel granted of them: it keeps, and tells, twice as much
/// for its own bookkeeping (socket(7)).
pub fn buffers(socket: &UdpSocket, receive: usize, send: usize) -> (usize, usize) {
    let int = |n: usize| libc::c_int::try_from(n).unwrap_or(libc::c_int::MAX);
    let ask = |name, n| {
        let _ = set(socket, libc::SOL_SOCKET, name, int(n));
        get(socket, libc::SOL_SOCKET, name).map_or(0, |n| n.max(0) as usize / 2)
    };
    (ask(libc::SO_RCVBUF, receive), ask(libc::SO_SNDBUF, send))
}

/// The MTU of the path to an address, as the kernel believes it to be: also what it was told by ICMP.
pub fn path_mtu(to: SocketAddr) -> Option<u16> {
    let any: IpAddr = match to.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    let mtu = match to.is_ipv4() {
        true => get(&socket, libc::IPPROTO_IP, libc::IP_MTU),
        false => get(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    u16::try_from(mtu.ok()?).ok()
}

/// One message to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// From which of the host's addresses; the kernel's choice when none.
    pub from: Option<LocalEnd>,
    /// Traffic class; zero leaves the default.
    pub class: u8,
    /// Cut into datagrams of this length.
    pub segment: Option<u16>,
    /// The pieces, in `memory`.
    pub pieces: &'a [Span],
}

/// Room for the headers of a batch of messages to send.
pub struct SendBatch {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers in `headers` and `iovecs` are written and used within one call of `send` only;
// between calls they are never read.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> SendBatch {
        // SAFETY: mmsghdr and sockaddr_storage are plain data for which zeros are a value.
        let (header, name) = unsafe { (zeroed::<libc::mmsghdr>(), zeroed::<libc::sockaddr_storage>()) };
        SendBatch {
            headers: vec![header; BATCH],
            iovecs: Vec::with_capacity(2 * BATCH * 16),
            names: vec![name; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
        }
    }
}

impl SendBatch {
    /// Send messages in their order; only the first [`BATCH`] of them are looked at. Gives how many were sent,
    /// at least one.
    ///
    /// # Errors
    /// Why the first was not sent.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        memory: &[u8],
        messages: &[Outgoing<'_>],
    ) -> io::Result<usize> {
        let n = messages.len().min(BATCH);
        self.iovecs.clear();
        for message in &messages[..n] {
            for piece in message.pieces.iter().take(PIECES) {
                let bytes = piece.of(memory);
                self.iovecs.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
        }
        // Pointers into the vectors are taken only now that they no longer grow.
        let mut at = 0;
        for (i, message) in messages[..n].iter().enumerate() {
            let pieces = message.pieces.len().min(PIECES);
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = write_name(message.to, &mut self.names[i]);
            header.msg_iov = self.iovecs[at..].as_mut_ptr();
            header.msg_iovlen = pieces as _;
            let control = write_control(message, &mut self.controls[i].0);
            header.msg_control = match control {
                0 => std::ptr::null_mut(),
                _ => self.controls[i].0.as_mut_ptr().cast(),
            };
            header.msg_controllen = control as _;
            header.msg_flags = 0;
            at += pieces;
        }
        // SAFETY: the first `n` headers point to names, iovecs and controls that live in `self` and are not
        // touched during the call; the iovecs point into `memory`, which is borrowed, and sendmmsg only reads
        // what they point to.
        let rc = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                n as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(rc as usize)
        }
    }
}

fn write_name(to: SocketAddr, out: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match to {
        SocketAddr::V4(to) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(to.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every kind of socket address.
            unsafe { (&raw mut *out).cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(to) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: to.ip().octets(),
                },
                sin6_scope_id: to.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut *out).cast::<libc::sockaddr_in6>().write(name) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// The ancillary data of a message, and its length.
fn write_control(message: &Outgoing<'_>, out: &mut [u8; CONTROL]) -> usize {
    let mut at = 0;
    let mut put = |level: libc::c_int, kind: libc::c_int, data: &[u8]| {
        // A cmsghdr is a length of the machine's word, level and type; data and the next one are aligned to
        // the word (cmsg(3)).
        let word = size_of::<usize>();
        let head = word + 8;
        out[at..at + word].copy_from_slice(&(head + data.len()).to_ne_bytes());
        out[at + word..at + word + 4].copy_from_slice(&level.to_ne_bytes());
        out[at + word + 4..at + head].copy_from_slice(&kind.to_ne_bytes());
        out[at + head..at + head + data.len()].copy_from_slice(data);
        at += (head + data.len()).next_multiple_of(word);
    };
    if let Some(segment) = message.segment {
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if message.class != 0 {
        let class = libc::c_int::from(message.class).to_ne_bytes();
        match message.to.is_ipv4() {
            true => put(libc::IPPROTO_IP, libc::IP_TOS, &class),
            false => put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
        }
    }
    match message.from {
        // A link-local address is one of an interface (RFC 4007 section 6); else the routes choose.
        Some(LocalEnd {
            ip: IpAddr::V6(ip),
            interface,
        }) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            if matches!(message.to, SocketAddr::V6(to) if to.ip().is_unicast_link_local()) {
                info[16..].copy_from_slice(&interface.to_ne_bytes());
            }
            put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        Some(LocalEnd {
            ip: IpAddr::V4(ip), ..
        }) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        None => {}
    }
    at
}

/// What is known of a received message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Its length.
    pub len: usize,
    /// Where it came from.
    pub from: Option<SocketAddr>,
    /// Length of each datagram but the last, when the kernel merged several.
    pub segment: Option<u16>,
    /// Its traffic class.
    pub class: u8,
    /// Datagrams lost to a full buffer since the socket was made; wraps.
    pub lost: Option<u32>,
    /// Which of the host's addresses it was sent to, if that was asked for ([`tell_local_end`]).
    pub at: Option<LocalEnd>,
}

/// Room for the headers of a batch of messages to receive.
pub struct RecvBatch {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
}

// SAFETY: as for `SendBatch`: pointers are used within one call only.
unsafe impl Send for RecvBatch {}

impl Default for RecvBatch {
    fn default() -> RecvBatch {
        let SendBatch {
            headers,
            mut iovecs,
            names,
            controls,
        } = SendBatch::default();
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        iovecs.resize(BATCH, none);
        RecvBatch {
            headers,
            iovecs,
            names,
            controls,
        }
    }
}

impl RecvBatch {
    /// Receive a message into each of `slots`, as many as are there, without waiting. Gives how many came, at
    /// least one; [`RecvBatch::incoming`] tells of each.
    ///
    /// # Errors
    /// Why none came.
    pub fn receive(&mut self, socket: &UdpSocket, memory: &mut [u8], slots: &[Span]) -> io::Result<usize> {
        let n = slots.len().min(BATCH);
        for (i, slot) in slots[..n].iter().enumerate() {
            let bytes = slot.of_mut(memory);
            self.iovecs[i] = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
        }
        // SAFETY: the first `n` headers point to a name, an iovec and a control buffer of the stated lengths in
        // `self`, and the iovecs to slots of `memory`, which is borrowed for writing. Slots that overlap would
        // only mix up bytes.
        let rc = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                n as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if rc < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(rc as usize)
        }
    }

    /// What is known of message `i` of the last batch.
    pub fn incoming(&self, i: usize) -> Incoming {
        let header = &self.headers[i];
        let mut incoming = Incoming {
            len: header.msg_len as usize,
            from: read_name(&self.names[i]),
            ..Incoming::default()
        };
        // The field's type differs between C libraries.
        #[allow(clippy::unnecessary_cast)]
        let used = (header.msg_hdr.msg_controllen as usize).min(CONTROL);
        let mut rest = &self.controls[i].0[..used];
        let word = size_of::<usize>();
        while let Some(len) = rest.first_chunk().map(|b| usize::from_ne_bytes(*b)) {
            let Some(message) = rest.get(..len).filter(|m| m.len() >= word + 8) else {
                break;
            };
            let int = |at: usize| -> Option<i32> {
                Some(i32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?))
            };
            let data = word + 8;
            match (int(word).unwrap_or(0), int(word + 4).unwrap_or(0)) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    incoming.segment = int(data).and_then(|n| u16::try_from(n).ok());
                }
                // One octet, not an integer (ip(7)).
                (libc::IPPROTO_IP, libc::IP_TOS) => incoming.class = message.get(data).copied().unwrap_or(0),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => incoming.class = int(data).unwrap_or(0) as u8,
                // struct in_pktinfo: interface, the address here, and the one in the header.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let ip = message.get(data + 4..data + 8);
                    let ip = ip.and_then(|b| b.first_chunk::<4>());
                    incoming.at = ip.zip(int(data)).map(|(ip, interface)| LocalEnd {
                        ip: Ipv4Addr::from(*ip).into(),
                        interface: interface as u32,
                    });
                }
                // struct in6_pktinfo: the address, and the interface.
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let ip = message.get(data..data + 16);
                    let ip = ip.and_then(|b| b.first_chunk::<16>());
                    incoming.at = ip.zip(int(data + 16)).map(|(ip, interface)| LocalEnd {
                        ip: Ipv6Addr::from(*ip).into(),
                        interface: interface as u32,
                    });
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => incoming.lost = int(data).map(|n| n as u32),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(word)..).unwrap_or_default();
        }
        incoming
    }
}

/// The address in a name the kernel wrote.
pub(super) fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it holds a sockaddr_in, which fits and is aligned.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip.into(), u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, with sockaddr_in6.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let (ip, port) = (
                Ipv6Addr::from(name.sin6_addr.s6_addr),
                u16::from_be(name.sin6_port),
            );
            Some(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ip: &str) -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind((ip, 0)).unwrap();
        let (a, b) = (bind(), bind());
        tell_class_and_losses(&b, ip.contains(':')).unwrap();
        dont_fragment(&a, ip.contains(':')).unwrap();
        merge_received(&b).unwrap();
        (a, b)
    }

    #[test]
    fn trains_cross_with_their_class_and_segment() {
        for ip in ["127.0.0.1", "::1"] {
            let (a, b) = pair(ip);
            let to = b.local_addr().unwrap();
            let memory: Vec<u8> = (0..=255).cycle().take(5000).collect();
            let pieces = [
                Span::new(0, 10),
                Span::new(100, 1090),
                Span::new(10, 20),
                Span::new(2000, 2990),
            ];
            let train = Outgoing {
                to,
                from: None,
                class: 0xb9,
                segment: Some(1000),
                pieces: &pieces,
            };
            let single = Outgoing {
                to,
                from: None,
                class: 0,
                segment: None,
                pieces: &pieces[..1],
            };
            let sent = SendBatch::default().send(&a, &memory, &[train, single]).unwrap();
            assert_eq!(sent, 2);
            let mut into = vec![0; 200_000];
            let slots = [
                Span::new(0, 66_000),
                Span::new(66_000, 132_000),
                Span::new(132_000, 198_000),
            ];
            let mut batch = RecvBatch::default();
            let n = batch.receive(&b, &mut into, &slots).unwrap();
            assert_eq!(n, 2, "loopback hands a train over whole");
            let first = batch.incoming(0);
            assert_eq!(
                (first.len, first.segment, first.class),
                (2000, Some(1000), 0xb9),
                "{ip}"
            );
            assert_eq!(first.from, Some(a.local_addr().unwrap()));
            let want: Vec<u8> = pieces.iter().flat_map(|p| p.of(&memory).to_vec()).collect();
            assert_eq!(&into[..2000], want);
            let second = batch.incoming(1);
            assert_eq!((second.len, second.segment, second.class), (10, None, 0));
            let none = batch.receive(&b, &mut into, &slots).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for (any, ips) in [("0.0.0.0", &["127.0.0.1", "127.9.8.7"][..]), ("::", &["::1"])] {
            let six = any.contains(':');
            let server = UdpSocket::bind((any, 0)).unwrap();
            tell_local_end(&server, six).unwrap();
            tell_class_and_losses(&server, six).unwrap();
            merge_received(&server).unwrap();
            for ip in ips {
                let client = UdpSocket::bind((ips[0], 0)).unwrap();
                client
                    .connect((*ip, server.local_addr().unwrap().port()))
                    .unwrap();
                client.send(b"question").unwrap();
                let (mut batch, mut into) = (RecvBatch::default(), vec![0; 1000]);
                batch.receive(&server, &mut into, &[Span::new(0, 1000)]).unwrap();
                let heard = batch.incoming(0);
                assert_eq!(heard.at.map(|at| at.ip), Some(ip.parse().unwrap()));
                let answer = Outgoing {
                    to: heard.from.unwrap(),
                    from: heard.at,
                    class: 0xb8,
                    segment: Some(4),
                    pieces: &[Span::new(0, 8)],
                };
                SendBatch::default().send(&server, &into, &[answer]).unwrap();
                client
                    .set_read_timeout(Some(std::time::Duration::from_secs(10)))
                    .unwrap();
                // It is connected: what comes from elsewhere is not for it.
                assert_eq!(client.recv(&mut into).unwrap(), 4);
            }
        }
    }

    #[test]
    fn buffers_are_told_as_they_are_asked() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(buffers(&socket, 100_000, 120_000), (100_000, 120_000));
        // Absent in network namespaces other than the first.
        let most = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
            text.trim().parse::<usize>().ok().filter(|n| *n < 1 << 29)
        };
        if let (Some(receive), Some(send)) = (most("rmem_max"), most("wmem_max")) {
            assert_eq!(buffers(&socket, receive + 1, send + 4096), (receive, send));
        }
    }

    #[test]
    fn what_does_not_fit_the_path_is_refused() {
        let (a, b) = pair("127.0.0.1");
        let to = b.local_addr().unwrap();
        let mtu = path_mtu(to).unwrap();
        assert!(mtu >= 16_384, "loopback's: {mtu}");
        let memory = vec![0; 70_000];
        let huge = Outgoing {
            to,
            from: None,
            class: 0,
            segment: None,
            pieces: &[Span::new(0, 65_508)],
        };
        let e = SendBatch::default().send(&a, &memory, &[huge]).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
