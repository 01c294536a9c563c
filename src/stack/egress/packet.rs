//! IP packets written by hand: smoltcp has no part in datagrams that are only handed on.

use crate::wire::bytes::{put, put_be16, put_be32};
use crate::wire::checksum::Sum;
use crate::wire::{IPV4_LEN, IPV6_LEN};
use std::net::{IpAddr, SocketAddr};

/// Length of the IP header podwire writes.
pub(super) fn ip_len(six: bool) -> usize {
    if six { IPV6_LEN } else { IPV4_LEN }
}

/// What of an IP header is not its addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ip {
    pub proto: u8,
    pub hops: u8,
    pub class: u8,
    /// Bytes behind the header.
    pub len: usize,
    /// IPv4's identification and fragment field.
    pub ident: u16,
    pub fragment: u16,
}

/// Write an IP header to the front of `out`, which is long enough. Two addresses of different families are a mistake
/// that writes nothing.
pub(super) fn write_ip(out: &mut [u8], src: IpAddr, dst: IpAddr, ip: &Ip) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            put(out, 0, &[0x45, ip.class]);
            put_be16(out, 2, (IPV4_LEN + ip.len) as u16);
            put_be16(out, 4, ip.ident);
            put_be16(out, 6, ip.fragment);
            put(out, 8, &[ip.hops, ip.proto, 0, 0]);
            put(out, 12, &src.octets());
            put(out, 16, &dst.octets());
            let sum = Sum::default().with(&out[..IPV4_LEN]).finish();
            put_be16(out, 10, sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            put_be32(out, 0, 0x6000_0000 | u32::from(ip.class) << 20);
            put_be16(out, 4, ip.len as u16);
            put(out, 6, &[ip.proto, ip.hops]);
            put(out, 8, &src.octets());
            put(out, 24, &dst.octets());
        }
        _ => {}
    }
}

/// The checksum of a transport message with its pseudo header.
pub(super) fn transport_sum(src: IpAddr, dst: IpAddr, proto: u8, message: &[u8]) -> u16 {
    let sum = match (src, dst) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Sum::default().with(&a.octets()).with(&b.octets()),
        (IpAddr::V6(a), IpAddr::V6(b)) => Sum::default().with(&a.octets()).with(&b.octets()),
        _ => Sum::default(),
    };
    let sum = sum.with16(u16::from(proto)).with16(message.len() as u16);
    sum.with(message).finish()
}

/// Write a UDP header to the front of `out`; its checksum is zero.
pub(super) fn write_udp(out: &mut [u8], src: SocketAddr, dst: SocketAddr, payload: usize) {
    put_be16(out, 0, src.port());
    put_be16(out, 2, dst.port());
    put_be16(out, 4, (8 + payload) as u16);
    put_be16(out, 6, 0);
}
