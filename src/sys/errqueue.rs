//! A socket's error queue (IP_RECVERR, ip(7)): what the network said of packets that were sent.

#![allow(unsafe_code)]

use super::net::read_name;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// Room for a sock_extended_err and the address of who sent it.
const CONTROL: usize = 256;

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// One entry of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the packet was to go.
    pub to: Option<SocketAddr>,
    /// The error number it stands for.
    pub errno: i32,
    /// Type and code of the ICMP message; none when the host itself found out.
    pub icmp: Option<(u8, u8)>,
    /// The path's MTU, when the packet was too big.
    pub info: u32,
    /// Who said so.
    pub by: Option<IpAddr>,
    /// How much of the packet's payload was given back.
    pub len: usize,
}

/// Ask for the queue to be filled.
///
/// # Errors
/// What the kernel says.
pub fn enable(socket: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        false => super::net::set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        true => super::net::set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// Take the first entry; the beginning of the packet's payload goes to `into`. `None` when there is none.
pub fn take(socket: impl AsFd, into: &mut [u8]) -> Option<Entry> {
    let mut control = Control([0; CONTROL]);
    // SAFETY: sockaddr_storage and msghdr are plain data for which zeros are a value.
    let (mut name, mut header) = unsafe { (zeroed::<libc::sockaddr_storage>(), zeroed::<libc::msghdr>()) };
    let mut piece = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the header points to a name, a piece and control data of the lengths it states, all of which live until
    // the call is over; the descriptor is open, as it is borrowed.
    let n = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
    let len = usize::try_from(n).ok()?;
    let named = header.msg_namelen > 0;
    // The field's type differs between C libraries.
    #[allow(clippy::unnecessary_cast)]
    let used = (header.msg_controllen as usize).min(CONTROL);
    let mut entry = parse(&control.0[..used])?;
    entry.to = read_name(&name).filter(|_| named);
    entry.len = len.min(into.len());
    Some(entry)
}

/// Find the error among ancillary data: a cmsghdr is a length of the machine's word, level and type (cmsg(3)).
fn parse(mut rest: &[u8]) -> Option<Entry> {
    let word = size_of::<usize>();
    loop {
        let len = usize::from_ne_bytes(*rest.first_chunk()?);
        let message = rest.get(..len).filter(|m| m.len() >= word + 8)?;
        let int = |at: usize| -> Option<i32> { Some(i32::from_ne_bytes(*message.get(at..)?.first_chunk()?)) };
        let kind = (int(word)?, int(word + 4)?);
        if kind == (libc::IPPROTO_IP, libc::IP_RECVERR) || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) {
            return error(&message[word + 8..]);
        }
        rest = rest.get(len.next_multiple_of(word)..)?;
    }
}

/// struct sock_extended_err (linux/errqueue.h), and behind it the address of who sent the message.
fn error(data: &[u8]) -> Option<Entry> {
    let int = |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?)) };
    let origin = *data.get(4)?;
    let icmp = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    let offender = data.get(16..).unwrap_or_default();
    let family = offender.first_chunk().map_or(0, |b| u16::from_ne_bytes(*b));
    let by = match libc::c_int::from(family) {
        libc::AF_INET => offender.get(4..)?.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        libc::AF_INET6 => offender.get(8..)?.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    };
    Some(Entry {
        to: None,
        errno: int(0)? as i32,
        icmp: icmp.then_some((*data.get(5)?, *data.get(6)?)),
        info: int(8)?,
        by: by.filter(|_| icmp),
        len: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_closed_port_says_so() {
        for ip in ["127.0.0.1", "::1"] {
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            enable(&socket, ip.contains(':')).unwrap();
            let mut out = [0; 16];
            assert_eq!(take(&socket, &mut out), None);
            let closed = UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
            socket.send_to(b"hello", closed).unwrap();
            let entry = take(&socket, &mut out).unwrap();
            assert_eq!((entry.to, entry.errno), (Some(closed), libc::ECONNREFUSED));
            assert_eq!(entry.icmp, Some(if ip == "::1" { (1, 4) } else { (3, 3) }));
            assert_eq!((entry.by, &out[..entry.len]), (Some(closed.ip()), &b"hello"[..]));
        }
    }

    #[test]
    fn no_ancillary_data_break_it() {
        for len in 0..64usize {
            for claim in [0, 1, 16, 17, 30, 48, 64, usize::MAX] {
                let mut data = vec![0u8; len];
                if len >= 8 {
                    data[..8].copy_from_slice(&claim.to_ne_bytes());
                }
                if len >= 16 {
                    data[12..16].copy_from_slice(&libc::IP_RECVERR.to_ne_bytes());
                }
                let _ = parse(&data);
            }
        }
    }
}
