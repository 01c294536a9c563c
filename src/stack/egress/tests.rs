//! The way out with a pod that is another smoltcp, and a host that is a story.

mod published;

use super::datagrams;
use super::packet::{Ip, write_ip, write_udp};
use super::tcp::{MAX_OPENING, MAX_PER_PORT};
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

/// A datagram that left: by which mouth, where to, what, in which pieces, and whether it may be cut.
type Sent = (MouthId, SocketAddr, Vec<u8>, Option<u16>, bool);

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
}

impl Host for World {
    fn connect(&mut self, flow: FlowId, to: SocketAddr, hops: Option<u8>) -> Result<(), HostError> {
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
        let row = (
            mouth,
            what.to,
            what.payload.to_vec(),
            what.segment,
            what.may_fragment,
        );
        self.sent.push(row);
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

#[test]
fn bytes_go_both_ways_and_the_ends_are_told() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (mut pod, id) = Pod::connected(&mut lab, six, 4000);
        assert_eq!(lab.stream(id).to, Some(SocketAddr::new(ends(six).1, 80)));
        assert_eq!(lab.stream(id).hops, None);
        // A super-frame to the host.
        let up: Vec<u8> = (0..60_000).map(|i| i as u8).collect();
        pod.send(&mut lab, ACK, &up).unwrap();
        assert_eq!(lab.stream(id).got, up);
        assert_eq!(pod.take(&mut lab).0, [ACK]);
        // Super-frames to the pod, in segments it has room for.
        let down: Vec<u8> = (0..50_000).map(|i| (i / 7) as u8).collect();
        lab.stream(id).incoming.push_back(down.clone());
        lab.ready(id);
        let size = MTU - if six { 60 } else { 40 };
        assert!(
            lab.world
                .to_pod
                .iter()
                .all(|(p, s)| *s == Some(size.min(1410)) || p.len() <= usize::from(MTU))
        );
        assert!(lab.world.to_pod.len() <= 2);
        let (_, got) = pod.take(&mut lab);
        assert_eq!(got, down);
        pod.send(&mut lab, ACK, b"").unwrap();
        // The pod has said all, the world has not.
        pod.send(&mut lab, FIN | ACK, b"").unwrap();
        assert!(lab.stream(id).shut && lab.stream(id).closed.is_none());
        pod.take(&mut lab);
        lab.stream(id).incoming.push_back(b"and more".to_vec());
        lab.stream(id).end = Some(Moved::End);
        lab.ready(id);
        let (flags, got) = pod.take(&mut lab);
        assert_eq!(got, b"and more");
        assert_eq!(flags.last().unwrap() & FIN, FIN);
        pod.send(&mut lab, ACK, b"").unwrap();
        assert_eq!(lab.stream(id).closed, Some(false));
        assert_eq!(lab.egress.counts(), (0, 0));
        assert_eq!(lab.egress.deadline(), None);
    }
}

#[test]
fn the_world_may_end_first() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.stream(id).end = Some(Moved::End);
    lab.ready(id);
    assert_eq!(pod.take(&mut lab).0, [FIN | ACK]);
    pod.send(&mut lab, ACK, b"still here").unwrap();
    assert_eq!(lab.stream(id).got, b"still here");
    assert!(!lab.stream(id).shut);
    pod.send(&mut lab, FIN | ACK, b"").unwrap();
    assert_eq!(lab.stream(id).closed, Some(false));
    assert_eq!(lab.egress.counts().0, 0);
}

#[test]
fn what_the_host_says_of_a_connection_is_told_as_it_is() {
    for six in [false, true] {
        for at_once in [false, true] {
            for (why, want) in [
                (HostError::Refused, None),
                (HostError::NetUnreachable, Some(Trouble::NetUnreachable)),
                (HostError::HostUnreachable, Some(Trouble::HostUnreachable)),
                (HostError::TimedOut, Some(Trouble::HostUnreachable)),
                (HostError::Prohibited, Some(Trouble::Prohibited)),
                (HostError::TtlExceeded, Some(Trouble::TtlExceeded)),
            ] {
                let mut lab = Lab::new();
                let mut pod = Pod::new(six, 4000);
                if at_once {
                    lab.world.refuse = Some(why);
                    pod.send(&mut lab, SYN, b"").unwrap();
                } else {
                    pod.send(&mut lab, SYN, b"").unwrap();
                    // It asks again while it waits.
                    lab.input(&Pod::new(six, 4000).bytes(SYN, b"")).unwrap();
                    assert!(lab.world.to_pod.is_empty());
                    lab.connect(0, Err((why, Some(Ipv4Addr::new(192, 0, 2, 1).into()))));
                    assert_eq!(lab.stream(0).closed, Some(false));
                }
                match want {
                    None => {
                        assert_eq!(lab.world.to_pod.len(), 1);
                        let (flags, _, ack, _) = segment(&lab.world.to_pod[0].0);
                        assert_eq!((flags, ack), (RST | ACK, 1001), "what a SYN-SENT socket believes");
                    }
                    Some(trouble) => {
                        let (told, packet, by) = &lab.world.complaints[0];
                        assert_eq!((*told, by.is_some()), (trouble, !at_once));
                        assert!(pod.bytes(SYN, b"").starts_with(&packet[..2]));
                    }
                }
                assert_eq!(lab.egress.counts().0, 0);
            }
        }
    }
    let mut lab = Lab::new();
    lab.world.refuse = Some(HostError::NoSockets);
    assert_eq!(
        Pod::new(false, 1).send(&mut lab, SYN, b""),
        Err(DropReason::HostSockets)
    );
}

#[test]
fn closed_addresses_are_told() {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        denied: vec!["198.51.100.0/24".parse().unwrap()],
        ..policy()
    }));
    assert_eq!(
        Pod::new(false, 1).send(&mut lab, SYN, b""),
        Err(DropReason::EgressDenied)
    );
    assert_eq!(lab.world.complaints[0].0, Trouble::Prohibited);
    assert!(lab.world.streams.is_empty());
}

#[test]
fn breaks_on_either_side_are_breaks_on_the_other() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    pod.send(&mut lab, RST, b"").unwrap();
    assert_eq!(lab.stream(id).closed, Some(true));
    let (mut pod, id) = Pod::connected(&mut lab, false, 4001);
    lab.stream(id).end = Some(Moved::Failed(HostError::Reset));
    lab.ready(id);
    assert_eq!(pod.take(&mut lab).0, [RST | ACK]);
    assert_eq!(lab.stream(id).closed, Some(true));
    // And while the pod waits for the host.
    let mut pod = Pod::new(false, 4002);
    pod.send(&mut lab, SYN, b"").unwrap();
    pod.send(&mut lab, RST, b"").unwrap();
    assert_eq!(lab.egress.counts().0, 0);
    // Of a flow that nobody knows.
    let mut pod = Pod::new(true, 9);
    pod.send(&mut lab, ACK, b"old").unwrap();
    assert_eq!(pod.take(&mut lab).0[0] & RST, RST);
    pod.send(&mut lab, RST, b"").unwrap();
    assert!(lab.world.to_pod.is_empty(), "no reset answers a reset");
}

#[test]
fn a_slow_host_gets_every_byte_and_closes_the_window() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.stream(id).room = 10;
    let mut all: Vec<u8> = Vec::new();
    let mut closed = false;
    for n in 0..100u8 {
        let piece = vec![n; 60_000];
        pod.send(&mut lab, ACK, &piece).unwrap();
        all.extend(&piece);
        let (_, _, ack, _) = segment(&lab.world.to_pod.last().unwrap().0);
        let window = &lab.world.to_pod.last().unwrap().0[34..36];
        if ack != pod.seq || window == [0, 0] {
            closed = true;
            all.truncate((ack - 1001) as usize);
            break;
        }
        lab.world.to_pod.clear();
    }
    assert!(closed, "the ring is bounded");
    for _ in 0..all.len() / 50_000 + 2 {
        lab.stream(id).room = 50_000;
        lab.ready(id);
    }
    assert!(lab.stream(id).got == all);
}

#[test]
fn silent_flows_end_in_their_time() {
    let mut lab = Lab::new();
    let (_, id) = Pod::connected(&mut lab, false, 4000);
    lab.later(Duration::from_secs(7430));
    assert_eq!(lab.egress.counts().0, 1, "RFC 5382 REQ-5");
    lab.later(Duration::from_secs(20));
    assert_eq!(lab.egress.counts().0, 0);
    assert_eq!(lab.stream(id).closed, Some(true));
    // One the host does not decide upon.
    Pod::new(false, 4001).send(&mut lab, SYN, b"").unwrap();
    lab.world.complaints.clear();
    lab.later(Duration::from_secs(241));
    assert_eq!(lab.world.complaints[0].0, Trouble::HostUnreachable);
    assert_eq!(lab.egress.counts().0, 0);
    assert_eq!(lab.egress.deadline(), None);
}

#[test]
fn a_pod_has_its_limit_and_a_flood_gives_way() {
    let mut lab = Lab::new();
    for n in 0..2 * MAX_OPENING as u16 {
        Pod::new(false, 1 + n).send(&mut lab, SYN, b"").unwrap();
    }
    assert_eq!(
        lab.egress.counts_of(PORT),
        (MAX_OPENING, 0),
        "the oldest give way"
    );
    let mut lab = Lab::new();
    for n in 0..MAX_PER_PORT as u16 {
        Pod::new(false, 1 + n).send(&mut lab, SYN, b"").unwrap();
        let id = lab.egress.counts().0 as u32 - 1;
        lab.connect(id, Ok(()));
    }
    assert_eq!(
        Pod::new(true, 1).send(&mut lab, SYN, b""),
        Err(DropReason::FlowLimit)
    );
    lab.egress.remove_port(PORT, &mut lab.world);
    assert_eq!(lab.egress.counts(), (0, 0));
    assert!(lab.world.streams.values().all(|s| s.closed == Some(true)));
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

#[test]
fn datagrams_of_a_port_leave_by_one_socket_and_answers_come_back() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        for to in [1000, 2000] {
            lab.input(&udp(six, 500, to, b"question")).unwrap();
        }
        lab.input(&udp(six, 501, 1000, b"other")).unwrap();
        let by: Vec<MouthId> = lab.world.sent.iter().map(|s| s.0).collect();
        assert_eq!(by, [0, 0, 1], "the mapping does not depend on the endpoint");
        assert_eq!(lab.world.sent[0].2, b"question");
        assert!(!lab.world.sent[0].4, "it was not to be fragmented");
        // From another port of a host it has asked.
        let from = |ip, port| Heard::Datagram {
            from: SocketAddr::new(ip, port),
            len: 6,
            segment: None,
            class: 0,
            at: None,
        };
        lab.heard(0, from(far, 77), b"answer");
        let (packet, _) = lab.world.to_pod.remove(0);
        let head = if six { 40 } else { 20 };
        assert_eq!(packet[head..head + 6], [0, 77, 1, 244, 0, 14]);
        assert!(packet.ends_with(b"answer"));
        // From one it has not.
        let stranger = if six {
            "2001:db8::66".parse().unwrap()
        } else {
            "198.51.100.66".parse().unwrap()
        };
        lab.heard(0, from(stranger, 1000), b"attack");
        assert!(lab.world.to_pod.is_empty());
        assert_eq!(lab.world.lost, [DropReason::UnaskedDatagram]);
        lab.later(Duration::from_secs(299));
        lab.input(&udp(six, 500, 1000, b"again")).unwrap();
        lab.later(Duration::from_secs(200));
        assert_eq!(lab.world.mouths.len(), 1, "the silent one is over");
        lab.later(Duration::from_secs(101));
        assert!(lab.world.mouths.is_empty());
        assert_eq!(lab.egress.deadline(), None);
    }
}

#[test]
fn trains_pass_whole_and_long_ones_in_fragments() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        lab.input_as(&udp(six, 500, 1000, &[7; 5000]), Some(1000))
            .unwrap();
        assert_eq!(lab.world.sent[0].3, Some(1000));
        let mut hear = |len: usize, segment| {
            let heard = Heard::Datagram {
                from: SocketAddr::new(far, 1000),
                len,
                segment,
                class: 0,
                at: None,
            };
            lab.heard(0, heard, &vec![9; len]);
            std::mem::take(&mut lab.world.to_pod)
        };
        let train = hear(5000, Some(1000));
        assert_eq!((train.len(), train[0].1), (1, Some(1000)));
        let long = hear(60_000, None);
        assert!(
            long.len() > 40
                && long
                    .iter()
                    .all(|(p, s)| p.len() <= usize::from(MTU) && s.is_none())
        );
        let longs = hear(9000, Some(3000));
        assert_eq!(longs.len(), 9, "three datagrams of three fragments");
        // And a pod's fragments are put together.
        let mut whole = vec![0; ETH_LEN + if six { 40 } else { 20 } + 8];
        whole.extend([5; 4000]);
        let at = whole.len() - 4008;
        let (src, dst) = ends(six);
        write_udp(
            &mut whole[at..],
            SocketAddr::new(src, 500),
            SocketAddr::new(dst, 1000),
            4000,
        );
        let ip = Ip {
            proto: proto::UDP,
            hops: 64,
            len: 4008,
            ..Ip::default()
        };
        let mut parts = Vec::new();
        fragment::fragments(&mut whole, (src, dst), &ip, 9, 1400, |f| {
            parts.push(f[ETH_LEN..].to_vec())
        });
        for part in parts.iter().rev() {
            lab.input(part).unwrap();
        }
        let (_, _, payload, _, may_fragment) = lab.world.sent.last().unwrap();
        assert_eq!((payload.len(), *may_fragment), (4000, true));
    }
}

#[test]
fn errors_of_the_network_are_the_pods() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        lab.input(&udp(six, 500, 1000, b"question")).unwrap();
        let router: IpAddr = if six {
            "2001:db8::1".parse().unwrap()
        } else {
            "192.0.2.1".parse().unwrap()
        };
        for (what, trouble, by) in [
            (HostError::Refused, Trouble::PortUnreachable, far),
            (HostError::TtlExceeded, Trouble::TtlExceeded, router),
            (HostError::TooBig(1300), Trouble::TooBig { mtu: 1300 }, router),
            (HostError::HostUnreachable, Trouble::HostUnreachable, router),
        ] {
            let heard = Heard::Error {
                to: SocketAddr::new(far, 1000),
                by: Some(router),
                what,
                len: 8,
            };
            lab.heard(0, heard, b"question");
            let (told, packet, who) = lab.world.complaints.pop().unwrap();
            assert_eq!((told, who), (trouble, Some(by)));
            let head = if six { 40 } else { 20 };
            assert_eq!(
                packet[head..],
                udp(six, 500, 1000, b"question")[head..],
                "its own packet"
            );
            assert!(packet[..head].windows(4).any(|w| w == [10, 244, 1, 2]) || six);
        }
        lab.world.send_error = Some(HostError::TooBig(1200));
        assert_eq!(lab.input(&udp(six, 500, 1000, b"q")), Err(DropReason::TooBig));
        assert_eq!(
            lab.world.complaints.pop().unwrap().0,
            Trouble::TooBig { mtu: 1200 }
        );
    }
}

#[test]
fn echo_has_its_own_identifier_again() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (src, dst) = ends(six);
        let head = if six { 40 } else { 20 };
        let mut p = vec![0; head + 8];
        p.extend(b"ping");
        let ip = Ip {
            proto: if six { proto::ICMPV6 } else { proto::ICMP },
            hops: 64,
            len: 12,
            ..Ip::default()
        };
        write_ip(&mut p, src, dst, &ip);
        p[head] = if six { 128 } else { 8 };
        put_be16(&mut p, head + 4, 0x1234);
        lab.input(&p).unwrap();
        let mut reply = lab.world.sent[0].2.clone();
        assert_eq!(lab.world.sent[0].1, SocketAddr::new(dst, 0));
        // The kernel gave it another identifier.
        reply[0] = if six { 129 } else { 0 };
        put_be16(&mut reply, 4, 0x4321);
        let heard = Heard::Datagram {
            from: SocketAddr::new(dst, 0),
            len: reply.len(),
            segment: None,
            class: 0,
            at: None,
        };
        lab.heard(0, heard, &reply);
        let (packet, _) = lab.world.to_pod.remove(0);
        assert_eq!(packet[head + 4..head + 6], [0x12, 0x34]);
        let sum = match six {
            true => packet::transport_sum(dst, src, proto::ICMPV6, &packet[head..]),
            false => crate::wire::checksum::Sum::default()
                .with(&packet[head..])
                .finish(),
        };
        assert_eq!(sum, 0, "its checksum is right");
        lab.world.refuse = Some(HostError::Prohibited);
        put_be16(&mut p, head + 4, 1);
        assert_eq!(lab.input(&p), Err(DropReason::PingForbidden));
        p[head] = 3;
        assert_eq!(lab.input(&p), Err(DropReason::EgressProtocol));
    }
}

#[test]
fn a_pod_that_leaks_mouths_closes_its_own_oldest() {
    let mut lab = Lab::new();
    for n in 0..datagrams::MAX_PER_PORT as u16 + 10 {
        lab.now += Duration::from_millis(1);
        lab.input(&udp(false, 1 + n, 1000, b"x")).unwrap();
    }
    assert_eq!(lab.egress.counts().1, datagrams::MAX_PER_PORT);
    lab.egress.remove_port(PORT, &mut lab.world);
    assert!(lab.world.mouths.is_empty());
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
