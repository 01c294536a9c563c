//! The way out with a pod that is another smoltcp, and a host that is a story.

mod datagrams;
mod node_ports;
mod panics;
mod published;
mod tcp;

use super::packet::{Ip, write_ip, write_udp};
use super::*;
use crate::model::{Duration, Heard, HostError, Moved, Outward, PodMtu};
use crate::stack::Trouble;
use crate::wire::bytes::{put, put_be16, put_be32};
use crate::wire::{ETH_LEN, Headers};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

const PORT: PortId = PortId(3);
const MTU: u16 = 1450;

fn ends(six: bool) -> (IpAddr, IpAddr) {
    match six {
        false => ("10.244.1.2".parse().unwrap(), "198.51.100.9".parse().unwrap()),
        true => ("fd00:1::2".parse().unwrap(), "2001:db8::9".parse().unwrap()),
    }
}

fn policy() -> Policy {
    Policy {
        open: true,
        network: vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
        ..Policy::default()
    }
}

/// A stream as the host has it.
#[derive(Default)]
struct Stream {
    to: Option<SocketAddr>,
    hops: Option<u8>,
    /// None until it is decided.
    outcome: Option<Result<(), Failure>>,
    /// What the world sends, in the pieces in which it is read.
    incoming: VecDeque<Vec<u8>>,
    end: Option<Moved>,
    /// What the world got, and how much more it takes.
    got: Vec<u8>,
    room: usize,
    shut: bool,
    /// Closed, and whether with a reset.
    closed: Option<bool>,
}

/// What a datagram socket was given.
struct Sent {
    mouth: MouthId,
    to: SocketAddr,
    payload: Vec<u8>,
    segment: Option<u16>,
    may_fragment: bool,
}

/// The host, and what pods got.
#[derive(Default)]
struct World {
    streams: BTreeMap<FlowId, Stream>,
    refuse: Option<HostError>,
    mouths: BTreeMap<MouthId, (MouthKind, bool)>,
    sent: Vec<Sent>,
    send_error: Option<HostError>,
    heard: BTreeMap<MouthId, VecDeque<(Heard, Vec<u8>)>>,
    /// IP packets.
    to_pod: Vec<(Vec<u8>, Option<u16>)>,
    complaints: Vec<(Trouble, Vec<u8>, Option<IpAddr>)>,
    lost: Vec<DropReason>,
    /// Panic once this was read from a stream.
    panic_at: Option<&'static [u8]>,
    /// Panic when a packet is sent to a pod.
    panic_to_pod: bool,
    /// Panic when a stream is to be connected.
    panic_at_connect: bool,
}

impl Host for World {
    fn connect(
        &mut self,
        flow: FlowId,
        to: SocketAddr,
        _from: Option<IpAddr>,
        hops: Option<u8>,
    ) -> Result<(), HostError> {
        assert!(!self.panic_at_connect, "a test's panic");
        if let Some(why) = self.refuse {
            return Err(why);
        }
        let stream = Stream {
            to: Some(to),
            hops,
            room: usize::MAX,
            ..Stream::default()
        };
        self.streams.insert(flow, stream);
        Ok(())
    }
    fn outcome(&mut self, flow: FlowId) -> Option<Result<(), Failure>> {
        self.streams[&flow].outcome
    }
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Moved {
        let s = self.streams.get_mut(&flow).unwrap();
        match s.incoming.front_mut() {
            None => s.end.unwrap_or(Moved::Blocked),
            Some(piece) => {
                let n = piece.len().min(into.len());
                into[..n].copy_from_slice(&piece[..n]);
                piece.drain(..n);
                assert!(self.panic_at != Some(&into[..n]), "a test's panic");
                if piece.is_empty() {
                    s.incoming.pop_front();
                }
                Moved::Bytes(n)
            }
        }
    }
    fn write(&mut self, flow: FlowId, from: &[u8]) -> Moved {
        let s = self.streams.get_mut(&flow).unwrap();
        assert!(!s.shut && s.closed.is_none());
        let n = s.room.min(from.len());
        if n == 0 {
            return s
                .end
                .filter(|e| matches!(e, Moved::Failed(_)))
                .unwrap_or(Moved::Blocked);
        }
        s.room -= n;
        s.got.extend(&from[..n]);
        Moved::Bytes(n)
    }
    fn shut(&mut self, flow: FlowId) {
        self.streams.get_mut(&flow).unwrap().shut = true;
    }
    fn close(&mut self, flow: FlowId, reset: bool) {
        if let Some(s) = self.streams.get_mut(&flow) {
            s.closed = Some(reset);
        }
    }
    fn open(&mut self, mouth: MouthId, kind: MouthKind, six: bool) -> Result<(), HostError> {
        if let Some(why) = self.refuse {
            return Err(why);
        }
        assert!(self.mouths.insert(mouth, (kind, six)).is_none());
        Ok(())
    }
    fn send(&mut self, mouth: MouthId, what: &Outward<'_>) -> Result<(), HostError> {
        if let Some(why) = self.send_error {
            return Err(why);
        }
        self.sent.push(Sent {
            mouth,
            to: what.to,
            payload: what.payload.to_vec(),
            segment: what.segment,
            may_fragment: what.may_fragment,
        });
        Ok(())
    }
    fn hear(&mut self, mouth: MouthId, into: &mut [u8]) -> Option<Heard> {
        let (heard, bytes) = self.heard.get_mut(&mouth)?.pop_front()?;
        put(into, 0, &bytes);
        Some(heard)
    }
    fn close_mouth(&mut self, mouth: MouthId) {
        self.mouths.remove(&mouth);
    }
}

impl Outside for World {
    fn emit(&mut self, _port: PortId, frame: &mut [u8], segment: Option<u16>) {
        assert!(!self.panic_to_pod, "a test's panic");
        self.to_pod.push((frame[ETH_LEN..].to_vec(), segment));
    }
    fn complain(&mut self, _port: PortId, trouble: Trouble, packet: &[u8], by: Option<IpAddr>) {
        self.complaints.push((trouble, packet.to_vec(), by));
    }
    fn lost(&mut self, _port: PortId, reason: DropReason) {
        self.lost.push(reason);
    }
    fn mtu(&self, _port: PortId) -> PodMtu {
        PodMtu(MTU)
    }
}

/// What a pod's kernel would know of a connection.
struct Pod {
    six: bool,
    port: u16,
    seq: u32,
    ack: u32,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Flags, sequence and acknowledgement number, and payload of what a pod got.
fn segment(packet: &[u8]) -> (u8, u32, u32, &[u8]) {
    let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let t = &packet[l4..];
    let word = |at| u32::from_be_bytes(t[at..at + 4].try_into().unwrap());
    (t[13] & 0x17, word(4), word(8), &t[usize::from(t[12] >> 4) * 4..])
}

impl Pod {
    fn new(six: bool, port: u16) -> Pod {
        Pod {
            six,
            port,
            seq: 1000,
            ack: 0,
        }
    }

    fn bytes(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = ends(self.six);
        let head = if self.six { 40 } else { 20 };
        let options: &[u8] = if flags & SYN != 0 {
            &[2, 4, 5, 130, 1, 3, 3, 7]
        } else {
            &[]
        };
        let mut p = vec![0; head + 20 + options.len()];
        let ip = Ip {
            proto: proto::TCP,
            hops: 64,
            len: 20 + options.len() + payload.len(),
            ..Ip::default()
        };
        p.extend(payload);
        write_ip(&mut p, src, dst, &ip);
        put_be16(&mut p, head, self.port);
        put_be16(&mut p, head + 2, 80);
        put_be32(&mut p, head + 4, self.seq);
        put_be32(&mut p, head + 8, self.ack);
        p[head + 12] = (20 + options.len()) as u8 / 4 * 16;
        p[head + 13] = flags;
        put_be16(&mut p, head + 14, 0xffff);
        put(&mut p, head + 20, options);
        p
    }

    fn send(&mut self, lab: &mut Lab, flags: u8, payload: &[u8]) -> Result<(), DropReason> {
        let bytes = self.bytes(flags, payload);
        self.seq += payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        lab.input(&bytes)
    }

    /// What came for it: the flags of each segment, and all bytes; acknowledges nothing.
    fn take(&mut self, lab: &mut Lab) -> (Vec<u8>, Vec<u8>) {
        let (mut flags, mut data) = (Vec::new(), Vec::new());
        for (packet, _) in lab.world.to_pod.drain(..) {
            let (f, seq, _, payload) = segment(&packet);
            flags.push(f);
            if f & SYN != 0 {
                self.ack = seq + 1;
            } else if seq == self.ack {
                self.ack += payload.len() as u32 + u32::from(f & FIN);
                data.extend(payload);
            }
        }
        (flags, data)
    }

    /// A connection that is established on both sides.
    fn connected(lab: &mut Lab, six: bool, port: u16) -> (Pod, FlowId) {
        let mut pod = Pod::new(six, port);
        pod.send(lab, SYN, b"").unwrap();
        let id = *lab.world.streams.keys().last().unwrap();
        assert!(lab.world.to_pod.is_empty(), "the SYN-ACK is held");
        lab.connect(id, Ok(()));
        assert_eq!(pod.take(lab).0, [SYN | ACK]);
        pod.send(lab, ACK, b"").unwrap();
        (pod, id)
    }
}

struct Lab {
    egress: Egress,
    world: World,
    now: Instant,
}

impl Lab {
    fn new() -> Lab {
        Lab {
            egress: Egress::new(Arc::new(policy()), 7),
            world: World::default(),
            now: Instant::from_secs(100),
        }
    }

    fn input(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        self.input_as(bytes, None)
    }

    fn input_as(&mut self, bytes: &[u8], segment: Option<u16>) -> Result<(), DropReason> {
        let mut frame = vec![0; ETH_LEN];
        put_be16(&mut frame, 12, if bytes[0] >> 4 == 4 { 0x0800 } else { 0x86dd });
        frame.extend(bytes);
        let h = Headers::parse(&frame)?;
        let packet = Packet {
            port: PORT,
            bytes: &frame[ETH_LEN..h.end],
            ends: (h.src(&frame), h.dst(&frame)),
            proto: h.proto,
            l4: h.l4 - ETH_LEN,
            fragment: h.fragment,
            hops: h.ttl(&frame) - 1,
            class: h.traffic_class(&frame),
            segment,
        };
        let taken = self.egress.input(&packet, self.now, &mut self.world);
        self.turn();
        taken
    }

    fn turn(&mut self) {
        for _ in 0..100 {
            self.egress.turn(self.now, &mut self.world);
            if !self.egress.is_busy() {
                return;
            }
        }
        panic!("it never rests");
    }

    fn connect(&mut self, id: FlowId, outcome: Result<(), Failure>) {
        self.world.streams.get_mut(&id).unwrap().outcome = Some(outcome);
        self.ready(id);
    }

    fn ready(&mut self, id: FlowId) {
        self.egress
            .stream_ready(id, true, true, self.now, &mut self.world);
        self.turn();
    }

    fn stream(&mut self, id: FlowId) -> &mut Stream {
        self.world.streams.get_mut(&id).unwrap()
    }

    fn later(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.egress.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.turn();
        }
        self.now = until;
        self.turn();
    }

    fn heard(&mut self, id: MouthId, heard: Heard, bytes: &[u8]) {
        self.world
            .heard
            .entry(id)
            .or_default()
            .push_back((heard, bytes.to_vec()));
        self.egress.mouth_ready(id);
        self.turn();
    }
}

fn udp(six: bool, port: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    udp_to(six, port, SocketAddr::new(ends(six).1, to), payload)
}

fn udp_to(six: bool, port: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (ends(six).0, to.ip());
    let head = if six { 40 } else { 20 };
    let mut p = vec![0; head + 8];
    p.extend(payload);
    let ip = Ip {
        proto: proto::UDP,
        hops: 64,
        len: 8 + payload.len(),
        fragment: 0x4000,
        ..Ip::default()
    };
    write_ip(&mut p, src, dst, &ip);
    write_udp(&mut p[head..], SocketAddr::new(src, port), to, payload.len());
    p
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
    /// Whatever a pod says, and the host does, in any order.
    #[test]
    fn no_story_breaks_it(
        steps in proptest::collection::vec((0u8..9, 0u8..32, 0u16..4, proptest::num::u8::ANY, proptest::num::u16::ANY), 1..60),
    ) {
        let mut lab = Lab::new();
        // Those that hear below are among them.
        for (port, at) in [(0, "0.0.0.0:9"), (1, "[::1]:9"), (2, "127.0.0.1:9")] {
            published::published(&mut lab, port, at);
        }
        for (step, flags, port, byte, more) in steps {
            let six = port & 1 == 1;
            let mut pod = Pod::new(six, port);
            pod.seq = 1000 + u32::from(byte);
            pod.ack = u32::from(more);
            match step {
                0..=2 => { let _ = lab.input(&pod.bytes(flags, &vec![byte; usize::from(more)])); }
                3 => {
                    for s in lab.world.streams.values_mut() {
                        s.outcome.get_or_insert(if byte & 1 == 0 { Ok(()) } else { Err((HostError::Refused, None)) });
                        s.room = usize::from(more);
                    }
                }
                4 => for id in lab.world.streams.keys().copied().collect::<Vec<_>>() {
                    if lab.stream(id).outcome.is_some() { lab.ready(id); }
                },
                5 => for s in lab.world.streams.values_mut() {
                    s.incoming.push_back(vec![byte; usize::from(more).max(1)]);
                    if byte & 3 == 0 { s.end = Some(Moved::End); }
                    if byte & 3 == 1 { s.end = Some(Moved::Failed(HostError::Reset)); }
                },
                6 => lab.later(Duration::from_millis(u64::from(more) * 100)),
                7 => {
                    let mut bytes = udp(six, port, more, &[byte; 40]);
                    let at = usize::from(byte) % bytes.len();
                    bytes[at] ^= flags;
                    let _ = lab.input(&bytes);
                }
                _ => {
                    let heard = Heard::Datagram {
                        from: SocketAddr::new(ends(six).1, port),
                        len: usize::from(more) % 2000,
                        segment: Some(u16::from(byte)),
                        class: flags,
                        at: None,
                    };
                    lab.heard(u32::from(port), heard, &[byte; 2000]);
                }
            }
            for (packet, _) in lab.world.to_pod.drain(..) {
                proptest::prop_assert!(packet.len() <= 65_535);
            }
        }
        lab.egress.remove_port(PORT, &mut lab.world);
        proptest::prop_assert_eq!(lab.egress.counts(), (0, 0));
        proptest::prop_assert_eq!(lab.egress.deadline(), None);
    }
}
