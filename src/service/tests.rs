//! A pod network of addresses only: clients, virtual addresses, backends, and packets between them.

mod balance;
mod beside;
mod connections;
mod errors;
mod translation;

use super::*;
use crate::model::{
    Backend, BackendPhase, ConnState, ConnectionFilter, Frontend, PortId, Scheduler, Transport, VirtualServer,
};
use crate::wire::bytes::{be16, put, put_be16};
use crate::wire::{ETH_LEN, Headers, L3, proto};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
/// SCTP's INIT.
pub const INIT: u8 = 1;

pub fn at(secs: i64) -> Instant {
    Instant::from_secs(1_000_000 + secs)
}

pub fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn services(limits: Limits) -> Services {
    Services::new(
        limits,
        7,
        Some(Ipv4Addr::new(10, 244, 1, 1)),
        Some("fd00::1".parse().unwrap()),
    )
}

/// A Service, as the tests write it.
#[derive(Clone)]
pub struct Spec {
    pub scheduler: Scheduler,
    pub affinity: Option<Duration>,
    pub local_only: bool,
    pub backends: Vec<Backend>,
}

impl Spec {
    pub fn of(backends: &[&str]) -> Spec {
        Spec {
            scheduler: Scheduler::RoundRobin,
            affinity: None,
            local_only: false,
            backends: backends.iter().map(|b| ready(b)).collect(),
        }
    }

    pub fn by(scheduler: Scheduler, backends: &[&str]) -> Spec {
        Spec {
            scheduler,
            ..Spec::of(backends)
        }
    }
}

pub fn ready(at: &str) -> Backend {
    Backend {
        at: end(at),
        phase: BackendPhase::Ready,
        local: false,
    }
}

pub fn draining(at: &str) -> Backend {
    Backend {
        phase: BackendPhase::Draining,
        ..ready(at)
    }
}

pub fn frontend(at: &str, transport: Transport) -> Frontend {
    Frontend {
        at: end(at),
        transport,
    }
}

pub fn set(s: &mut Services, frontend: Frontend, spec: &Spec, now: Instant) {
    let what = VirtualServer {
        service: "default/web".parse().unwrap(),
        port: "http".into(),
        scheduler: spec.scheduler,
        affinity: spec.affinity,
        local_only: spec.local_only,
        at_host: false,
        backends: spec.backends.clone(),
    };
    s.apply(ServiceChange::Set(frontend, Arc::new(what)), now);
}

/// The one's complement sum, word by word.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut s = 0u32;
    for w in bytes.chunks(2) {
        s += u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]));
        s = (s & 0xffff) + (s >> 16);
    }
    s
}

/// The sum over the pseudo header.
pub fn pseudo(f: &[u8], h: &Headers) -> u32 {
    let addresses = match h.l3 {
        L3::Ipv6 => &f[22..54],
        _ => &f[26..34],
    };
    let tail = [&((h.end - h.l4) as u32).to_be_bytes()[..], &[0, 0, 0, h.proto]].concat();
    sum(&[addresses, &tail].concat())
}

pub fn fold(mut s: u32) -> u16 {
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    s as u16
}

/// How a packet's checksum is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    Complete,
    Partial,
    /// UDP's "none".
    None,
}

/// An IP packet around a transport segment, all checksums but the segment's made right.
pub fn ip(protocol: u8, src: IpAddr, dst: IpAddr, segment: &[u8]) -> Vec<u8> {
    let mut f = vec![2; 12];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            f.extend([8, 0, 0x45, 0]);
            f.extend(((20 + segment.len()) as u16).to_be_bytes());
            f.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
            f.extend(src.octets());
            f.extend(dst.octets());
            let header = !fold(sum(&f[14..34]));
            put_be16(&mut f, 24, header);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((segment.len() as u16).to_be_bytes());
            f.extend([protocol, 64]);
            f.extend(src.octets());
            f.extend(dst.octets());
        }
        _ => panic!("two families"),
    }
    f.extend(segment);
    f
}

/// A packet of a transport. `kind`: TCP's flags, SCTP's first chunk.
pub fn packet(
    t: Transport,
    src: SocketAddr,
    dst: SocketAddr,
    kind: u8,
    payload: &[u8],
    check: Check,
) -> Vec<u8> {
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    let (protocol, mut segment) = match t {
        Transport::Tcp => (
            proto::TCP,
            [
                &ports[..],
                &[0, 0, 0, 9, 0, 0, 0, 8, 0x50, kind, 1, 0, 0, 0, 0, 0],
            ]
            .concat(),
        ),
        Transport::Udp => (
            proto::UDP,
            [&ports[..], &((8 + payload.len()) as u16).to_be_bytes(), &[0, 0]].concat(),
        ),
        Transport::Sctp => (
            proto::SCTP,
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, kind, 0, 0, 4]].concat(),
        ),
    };
    segment.extend(payload);
    let mut f = ip(protocol, src.ip(), dst.ip(), &segment);
    finish(&mut f, check);
    f
}

/// Make the transport checksum what it should be.
pub fn finish(f: &mut [u8], check: Check) {
    let h = Headers::parse(f).unwrap();
    let field = match h.proto {
        proto::TCP => h.l4 + 16,
        proto::UDP => h.l4 + 6,
        proto::SCTP => {
            let crc = crc32c::whole(&f[h.l4..h.end]);
            return put(f, h.l4 + 8, &crc.to_le_bytes());
        }
        _ => h.l4 + 2,
    };
    put_be16(f, field, 0);
    let own = match h.proto {
        proto::ICMP => 0,
        _ => pseudo(f, &h),
    };
    let value = match check {
        Check::None => 0,
        Check::Partial => fold(own),
        Check::Complete => match !fold(own + sum(&f[h.l4..h.end])) {
            0 if h.proto == proto::UDP => 0xffff,
            value => value,
        },
    };
    put_be16(f, field, value);
}

/// Whether all checksums of a packet are what they should be.
pub fn is_right(f: &[u8], check: Check) -> bool {
    let Ok(h) = Headers::parse(f) else {
        return false; // The IPv4 header's.
    };
    let mut fresh = f.to_vec();
    finish(&mut fresh, check);
    let _ = be16(f, ETH_LEN);
    h.fragment || fresh == f
}

/// The virtio-net header's claim for a partial checksum.
pub fn claim(f: &[u8], check: Check) -> Option<(u16, u16)> {
    let h = Headers::parse(f).unwrap();
    let at = h.checksum_at().filter(|_| check == Check::Partial)?;
    Some((h.l4 as u16, at))
}

/// Source and destination of a packet.
pub fn ends(f: &[u8]) -> (SocketAddr, SocketAddr) {
    let h = Headers::parse(f).unwrap();
    let (src, dst) = h.ports(f);
    (SocketAddr::new(h.src(f), src), SocketAddr::new(h.dst(f), dst))
}

/// The port of the pod with an address: its last part.
pub fn port_of(ip: IpAddr) -> PortId {
    match ip {
        IpAddr::V4(ip) => PortId(ip.octets()[3].into()),
        IpAddr::V6(ip) => PortId(ip.segments()[7]),
    }
}

pub fn forward(s: &mut Services, f: &mut [u8], now: Instant) -> Verdict {
    let h = Headers::parse(f).unwrap();
    let pod = port_of(h.src(f));
    s.forward(f, &h, None, Some(pod), now)
}

pub fn reverse(s: &mut Services, f: &mut [u8], now: Instant) -> bool {
    let h = Headers::parse(f).unwrap();
    s.reverse(f, &h, None, now)
}

/// Send an empty packet to a frontend: the backend it gets to.
pub fn send(
    s: &mut Services,
    t: Transport,
    from: &str,
    to: &str,
    kind: u8,
    now: Instant,
) -> Result<SocketAddr, Verdict> {
    let mut f = packet(t, end(from), end(to), kind, b"", Check::Complete);
    match forward(s, &mut f, now) {
        Verdict::Translated => Ok(ends(&f).1),
        other => Err(other),
    }
}

/// Answer from a backend: whom the client sees.
pub fn answer(
    s: &mut Services,
    t: Transport,
    from: SocketAddr,
    to: &str,
    kind: u8,
    now: Instant,
) -> Option<SocketAddr> {
    let mut f = packet(t, from, end(to), kind, b"", Check::Complete);
    reverse(s, &mut f, now).then(|| ends(&f).0)
}

/// Open a TCP connection as far as it goes.
pub fn connect(s: &mut Services, from: &str, to: &str, now: Instant) -> Result<SocketAddr, Verdict> {
    let backend = send(s, Transport::Tcp, from, to, SYN, now)?;
    assert_eq!(
        answer(s, Transport::Tcp, backend, from, SYN | ACK, now),
        Some(end(to))
    );
    assert_eq!(send(s, Transport::Tcp, from, to, ACK, now), Ok(backend));
    Ok(backend)
}
