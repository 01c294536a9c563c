//! The two ends of a flow, and where packets tell them.

use crate::wire::bytes::{array, be16};
use crate::wire::proto;
use std::net::{IpAddr, SocketAddr};

/// The two ends of a flow as the pod sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The pod's end.
    pub pod: SocketAddr,
    /// The other end.
    pub far: SocketAddr,
}

/// The addresses of a TCP or UDP packet of a pod.
pub fn key_of(src: IpAddr, dst: IpAddr, packet: &[u8], l4: usize) -> FlowKey {
    let [a, b, c, d] = array::<4>(packet, l4);
    FlowKey {
        pod: SocketAddr::new(src, u16::from_be_bytes([a, b])),
        far: SocketAddr::new(dst, u16::from_be_bytes([c, d])),
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Told {
    /// The flow that the packet it is about was of.
    pub key: FlowKey,
    /// It was one of TCP, and its destination cannot be reached.
    pub ends_tcp: bool,
}

/// Read an ICMP error, whose message begins at `l4`, about a packet that came from a flow's far end. None: it is no error
/// about TCP or UDP.
pub(super) fn told(packet: &[u8], protocol: u8, l4: usize) -> Option<Told> {
    let [kind, code] = array(packet, l4);
    let (is_error, unreachable) = match protocol {
        // RFC 792; code 4 is what a path takes.
        proto::ICMP => (matches!(kind, 3 | 4 | 11 | 12), kind == 3 && code != 4),
        // RFC 4443 section 2.1.
        proto::ICMPV6 => ((1..128).contains(&kind), kind == 1),
        _ => (false, false),
    };
    let quoted = packet.get(l4 + 8..).unwrap_or_default();
    let (of, key) = quote(quoted).filter(|_| is_error)?;
    let ends_tcp = unreachable && of == proto::TCP;
    Some(Told { key, ends_tcp })
}

/// Protocol and ends of a quoted packet.
fn quote(ip: &[u8]) -> Option<(u8, FlowKey)> {
    let (protocol, l4, src, dst): (u8, usize, IpAddr, IpAddr) = match ip.first()? >> 4 {
        4 if be16(ip, 6) & 0x1fff == 0 => (
            array::<1>(ip, 9)[0],
            usize::from(ip[0] & 15) * 4,
            array::<4>(ip, 12).into(),
            array::<4>(ip, 16).into(),
        ),
        6 => (
            array::<1>(ip, 6)[0],
            40,
            array::<16>(ip, 8).into(),
            array::<16>(ip, 24).into(),
        ),
        _ => return None,
    };
    if !matches!(protocol, proto::TCP | proto::UDP) || ip.len() < l4 + 4 {
        return None;
    }
    // The far end had sent it.
    let FlowKey { pod: far, far: pod } = key_of(src, dst, ip, l4);
    Some((protocol, FlowKey { pod, far }))
}
