//! The way out: whatever pods send, the host's sockets do and time brings, in any order.

use super::craft::{self, Crafted, Ends};
use super::input::Input;
use super::lab::pod;
use podwire::model::{Duration, Heard, HostError, Instant, MouthKind, Moved, Outward, PodMtu, PortId};
use podwire::stack::Trouble;
use podwire::stack::egress::{Egress, Entrance, Failure, FlowId, Host, MouthId, Outside, Packet, Policy};
use podwire::wire::{ETH_LEN, Headers};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

const MTU: u16 = 1450;
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
];

const HERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
];
const GATEWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1)),
];

#[derive(Default)]
struct World {
    /// Streams: whether connected, what is written to and read from them next.
    streams: BTreeMap<FlowId, Option<Result<(), Failure>>>,
    mouths: BTreeMap<MouthId, (MouthKind, bool)>,
    write: Option<Moved>,
    read: Option<Moved>,
    heard: Option<(Heard, u8)>,
    refuse: Option<HostError>,
}

impl Host for World {
    fn connect(
        &mut self,
        flow: FlowId,
        _to: SocketAddr,
        _from: Option<IpAddr>,
        _hops: Option<u8>,
    ) -> Result<(), HostError> {
        match self.refuse {
            Some(why) => Err(why),
            None => {
                assert!(
                    self.streams.insert(flow, None).is_none(),
                    "a number is used twice"
                );
                Ok(())
            }
        }
    }
    fn outcome(&mut self, flow: FlowId) -> Option<Result<(), Failure>> {
        self.streams[&flow]
    }
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Moved {
        assert!(self.streams.contains_key(&flow));
        match self.read.take() {
            Some(Moved::Bytes(n)) => Moved::Bytes(n.clamp(1, into.len().max(1))),
            other => other.unwrap_or(Moved::Blocked),
        }
    }
    fn write(&mut self, flow: FlowId, from: &[u8]) -> Moved {
        assert!(self.streams.contains_key(&flow) && !from.is_empty());
        match self.write.take() {
            Some(Moved::Bytes(n)) => Moved::Bytes(n.clamp(1, from.len())),
            other => other.unwrap_or(Moved::Blocked),
        }
    }
    fn close(&mut self, flow: FlowId, _reset: bool) {
        self.streams.remove(&flow);
    }
    fn open(&mut self, mouth: MouthId, kind: MouthKind, six: bool) -> Result<(), HostError> {
        match self.refuse {
            Some(why) => Err(why),
            None => {
                assert!(
                    self.mouths.insert(mouth, (kind, six)).is_none(),
                    "a number is used twice"
                );
                Ok(())
            }
        }
    }
    fn send(&mut self, mouth: MouthId, what: &Outward<'_>) -> Result<(), HostError> {
        assert_eq!(
            self.mouths[&mouth].1,
            what.to.is_ipv6(),
            "a socket of the right family"
        );
        assert!(what.hops != Some(0));
        self.refuse.map_or(Ok(()), Err)
    }
    fn hear(&mut self, _mouth: MouthId, into: &mut [u8]) -> Option<Heard> {
        let (mut heard, byte) = self.heard.take()?;
        let (Heard::Datagram { len, .. } | Heard::Error { len, .. }) = &mut heard;
        *len = (*len).min(into.len());
        into[..*len].fill(byte);
        Some(heard)
    }
    fn close_mouth(&mut self, mouth: MouthId) {
        self.mouths.remove(&mouth);
    }
}

impl Outside for World {
    fn emit(&mut self, _port: PortId, frame: &mut [u8], segment: Option<u16>) {
        let six = frame[ETH_LEN] >> 4 == 6;
        frame[12..14].copy_from_slice(if six { &[0x86, 0xdd] } else { &[8, 0] });
        let h = Headers::parse(frame).expect("what goes to pods parses");
        assert_eq!(h.end, frame.len());
        let head = h.l4 - ETH_LEN + h.l4_len(frame);
        match segment {
            None => assert!(frame.len() - ETH_LEN <= usize::from(MTU)),
            Some(size) => assert!(size > 0 && head + usize::from(size) <= usize::from(MTU)),
        }
    }
    fn complain(&mut self, _port: PortId, trouble: Trouble, packet: &[u8], by: Option<IpAddr>) {
        let source = match packet[0] >> 4 {
            4 => by
                .filter(IpAddr::is_ipv4)
                .unwrap_or(Ipv4Addr::new(10, 244, 1, 1).into()),
            _ => by
                .filter(IpAddr::is_ipv6)
                .unwrap_or(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1).into()),
        };
        let mut out = [0; podwire::stack::icmp::ERROR_LEN];
        let _ = podwire::stack::icmp::error(trouble, packet, source, &mut out);
    }
    fn lost(&mut self, _port: PortId, _reason: podwire::model::DropReason) {}
    fn mtu(&self, _port: PortId) -> PodMtu {
        PodMtu(MTU)
    }
}

/// `[step]*`, a step being its kind and what that takes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let policy = Policy {
        open: true,
        network: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/48".parse().unwrap(),
        ],
        ..Policy::default()
    };
    let mut egress = Egress::new(Arc::new(policy), 1);
    let mut world = World::default();
    let mut now = Instant::from_secs(10);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        step(&mut input, &mut egress, &mut world, &mut now);
        for _ in 0..64 {
            egress.turn(now, &mut world);
            if !egress.is_busy() {
                break;
            }
        }
        assert!(!egress.is_busy(), "it comes to rest");
        assert_eq!(egress.counts(), (world.streams.len(), world.mouths.len()));
    }
    for port in 0..4 {
        egress.remove_port(PortId(port), &mut world);
    }
    assert_eq!(egress.counts(), (0, 0));
    assert!(world.streams.is_empty() && world.mouths.is_empty() && egress.deadline().is_none());
}

fn step(input: &mut Input<'_>, egress: &mut Egress, world: &mut World, now: &mut Instant) {
    let errors = [
        HostError::Refused,
        HostError::Reset,
        HostError::NetUnreachable,
        HostError::HostUnreachable,
        HostError::Prohibited,
        HostError::TimedOut,
        HostError::TtlExceeded,
        HostError::TooBig(1300),
        HostError::TooBig(0),
        HostError::NoSockets,
        HostError::Other,
    ];
    match input.u8() % 12 {
        0..=4 => {
            let n = input.u8() % 3;
            let (spec, far) = (pod(1, 2 + n), FAR);
            let ends = Ends {
                src_mac: spec.mac,
                dst_mac: spec.mac,
                src4: spec.ip4.unwrap_or(Ipv4Addr::UNSPECIFIED),
                src6: spec.ip6.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
                dst4: match far[0] {
                    IpAddr::V4(a) => a,
                    IpAddr::V6(_) => return,
                },
                dst6: match far[1] {
                    IpAddr::V6(a) => a,
                    IpAddr::V4(_) => return,
                },
            };
            let segment = input.u8();
            let Crafted { frame, .. } = craft::frame(input, &ends);
            let Ok(h) = Headers::parse(&frame) else { return };
            if h.ttl(&frame) < 2 || h.l3 == podwire::wire::L3::Arp {
                return;
            }
            let packet = Packet {
                port: PortId(n.into()),
                bytes: &frame[ETH_LEN..h.end],
                ends: (h.src(&frame), h.dst(&frame)),
                proto: h.proto,
                l4: h.l4 - ETH_LEN,
                fragment: h.fragment,
                hops: h.ttl(&frame) - 1,
                class: h.traffic_class(&frame),
                segment: (segment > 200).then_some(u16::from(segment)),
            };
            let _ = egress.input(&packet, *now, world);
        }
        5 => {
            let outcome = match input.u8() {
                0..=200 => Ok(()),
                n => Err((
                    errors[usize::from(n) % errors.len()],
                    Some(FAR[usize::from(n) % 2]),
                )),
            };
            for stream in world.streams.values_mut() {
                stream.get_or_insert(outcome);
            }
        }
        6 => {
            let moved = |n: u8, more: u16| match n % 8 {
                0 => Moved::End,
                1 => Moved::Failed(errors[usize::from(n) % errors.len()]),
                2 => Moved::Blocked,
                _ => Moved::Bytes(usize::from(more) + 1),
            };
            world.read = Some(moved(input.u8(), input.u16()));
            world.write = Some(moved(input.u8(), input.u16()));
            let ready = input.u8();
            for id in world.streams.keys().copied().collect::<Vec<_>>() {
                egress.stream_ready(id, ready & 1 != 0, ready & 2 != 0, *now, world);
            }
        }
        7 | 8 => {
            let id = input.u8() % 8;
            let six = world.mouths.get(&u32::from(id)).is_some_and(|m| m.1);
            let far = SocketAddr::new(FAR[usize::from(six)], input.u16());
            let len = usize::from(input.u16());
            let heard = match input.u8() {
                n @ 0..=100 => Heard::Error {
                    to: far,
                    by: (n & 1 == 0).then_some(far.ip()),
                    what: errors[usize::from(n) % errors.len()],
                    len,
                },
                n => Heard::Datagram {
                    // A client on this host is one that pods know as the gateway.
                    from: if n > 200 {
                        SocketAddr::new(HERE[usize::from(six)], far.port())
                    } else {
                        far
                    },
                    len,
                    segment: (n & 1 == 0).then_some(input.u16()),
                    class: n,
                    at: None,
                },
            };
            world.heard = Some((heard, input.u8()));
            egress.mouth_ready(id.into());
        }
        9 => *now += Duration::from_millis(u64::from(input.u16()) * 200),
        10 => {
            let why = usize::from(input.u8());
            world.refuse = errors.get(why).copied();
        }
        _ => {
            let n = input.u8();
            let six = usize::from(n & 1);
            let spec = pod(1, 2 + n % 3);
            let ip = if six == 1 {
                spec.ip6.map(IpAddr::V6)
            } else {
                spec.ip4.map(IpAddr::V4)
            };
            let Some(ip) = ip else { return };
            let port = PortId((n % 3).into());
            let pod = SocketAddr::new(ip, 1 + input.u16() % 3);
            let place = if n & 0x80 == 0 { FAR[six] } else { HERE[six] };
            let at = SocketAddr::new(place, 1 + input.u16() % 3);
            let gateway = GATEWAY[six];
            match n & 0x60 {
                0x20 => {
                    let entrance = Entrance { pod, at, gateway };
                    if let Ok(id) = egress.publish(port, entrance, *now, world) {
                        world.mouths.insert(id, (MouthKind::Udp, six == 1));
                    }
                }
                0x40 => egress.unpublish((n % 8).into(), world),
                _ => {
                    if let Ok(id) = egress.accept(port, (pod, at), gateway, *now, world) {
                        world.streams.insert(id, Some(Ok(())));
                    }
                }
            }
        }
    }
}
