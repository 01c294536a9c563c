//! Services: whatever pods send to virtual addresses, backends answer, people change and time brings, in any order.

use super::craft::{self, Crafted, Ends};
use super::input::Input;
use super::lab::pod;
use super::rules::{checksum_is_partial, checksum_is_right};
use super::seeds::{self, Seed};
use podwire::model::{
    Backend, BackendPhase, ConnectionFilter, DropReason, Duration, Frontend, Instant, PortId, Scheduler,
    ServiceChange, Transport, VirtualServer,
};
use podwire::service::{Limits, Services, Verdict};
use podwire::wire::bytes::{array, put, put_be16};
use podwire::wire::{Headers, L3, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

const LIMITS: Limits = Limits {
    connections: 12,
    per_client: 8,
    affinities: 8,
    fragments: 8,
};
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);

/// A virtual address.
fn vip(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    let n = n % 2;
    (
        Ipv4Addr::new(10, 96, 0, n),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n.into()),
    )
}

/// A backend: some are pods here, and clients as well.
fn backend(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    let (node, n) = (1 + u16::from(n & 1), 2 + u16::from(n % 4));
    (
        Ipv4Addr::new(10, 244, node as u8, n as u8),
        Ipv6Addr::new(0xfd00, node, 0, 0, 0, 0, 0, n),
    )
}

/// `[step]*`, a step being its kind and what that takes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World {
        services: Services::new(LIMITS, 1, Some(GATEWAY4), Some(GATEWAY6)),
        now: Instant::from_secs(10),
        frontends: Vec::new(),
    };
    // Something to talk to, whatever the input.
    for (port, transport) in [(80, Transport::Tcp), (53, Transport::Udp), (53, Transport::Sctp)] {
        world.change([port, 0], 0, transport, &mut Input::new(&[0, 6, 0, 0]));
    }
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        let s = &world.services;
        assert!(s.connections(None) <= LIMITS.connections);
        assert_eq!(s.is_idle(), s.connections(None) == 0);
    }
    world.end();
}

/// One of the three clients is no pod of this node.
const OUTSIDE: PortId = PortId(2);

struct World {
    services: Services,
    now: Instant,
    frontends: Vec<Frontend>,
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0..=2 => self.forth(input),
            3 => self.back(input),
            4 => {
                let transport = input.pick(&[Transport::Tcp, Transport::Udp, Transport::Sctp]);
                let (port, n) = (input.pick(&[80u8, 53]), input.u8());
                self.change([port, n], input.u8(), transport, input);
            }
            5 => {
                self.now += Duration::from_secs(input.u16().into());
                self.settle();
            }
            6 => {
                self.settle();
                self.look();
            }
            _ => {
                let n = input.u8();
                let port = PortId(u16::from(n % 3));
                let client = pod(1, 2 + n % 3).ip4.map(IpAddr::V4);
                let filter = ConnectionFilter {
                    client: client.filter(|_| n & 0x80 != 0),
                    transport: (n & 0x40 != 0).then_some(Transport::Udp),
                    ..ConnectionFilter::default()
                };
                let (seen, count) = self.services.list(&filter, 5, self.now);
                assert!(seen.len() <= count.min(5));
                match client.filter(|_| n & 0x20 != 0) {
                    Some(client) => {
                        self.services.forget(port);
                        assert!(port == OUTSIDE || self.services.connections(Some(client)) == 0);
                    }
                    None => assert_eq!(self.services.kill(&filter), count),
                }
            }
        }
    }

    /// A pod sends, and whatever gets through is answered.
    fn forth(&mut self, input: &mut Input<'_>) {
        let (n, partial, _) = (input.u8(), input.u8(), input.u8());
        let pod = Some(PortId(u16::from(n % 3))).filter(|p| *p != OUTSIDE);
        let (dst4, dst6) = vip(n >> 4);
        let ends = ends(pod_at(n), (dst4, dst6));
        let Crafted { mut frame, .. } = craft::frame(input, &ends);
        let Ok(h) = Headers::parse(&frame) else { return };
        // Another's address does not come past the switch.
        if ![IpAddr::V4(ends.src4), IpAddr::V6(ends.src6)].contains(&h.src(&frame)) {
            return;
        }
        if partial > 200 {
            craft::unfinish(&mut frame, &h);
        }
        let claim = match partial {
            201..=250 => h.checksum_at().map(|at| (h.l4 as u16, at)),
            251.. => Some((h.l4 as u16 + 40, 6)),
            _ => None,
        };
        let own = (201..=250).contains(&partial);
        let before = frame.clone();
        let gone = self.services.forward(&mut frame, &h, claim, pod, self.now);
        if gone != Verdict::Translated {
            assert_eq!(before, frame, "{gone:?} changes nothing");
            if let Verdict::Drop(reason) = gone {
                assert!(EXPECTED.contains(&reason), "{reason:?}");
            }
            return;
        }
        same_packet(&before, &frame, &h, own);
        if !matches!(h.proto, proto::TCP | proto::UDP | proto::SCTP) || h.later_fragment {
            return;
        }
        let client = h.src(&before);
        assert!(self.services.connections(Some(client)) <= LIMITS.per_client);
        let mut answer = frame;
        turn(&mut answer, &h);
        let sent = answer.clone();
        assert!(
            self.services.reverse(&mut answer, &h, claim, self.now),
            "the answer finds back"
        );
        same_packet(&sent, &answer, &h, own);
        turn(&mut answer, &h);
        // All ones and zero are the same sum; a CRC changes when ports change places.
        let field = checksum_field(&h);
        put(&mut answer, field.start, &before[field.clone()]);
        assert_eq!(answer, before, "there and back");
    }

    /// Anything to a pod or to the gateway.
    fn back(&mut self, input: &mut Input<'_>) {
        let (n, partial) = (input.u8(), input.u8());
        let to = match n & 0x80 {
            0 => pod_at(n),
            _ => (GATEWAY4, GATEWAY6),
        };
        let Crafted { mut frame, .. } = craft::frame(input, &ends(backend(n >> 4), to));
        let Ok(h) = Headers::parse(&frame) else { return };
        let before = frame.clone();
        let claim = (partial > 200).then_some((u16::from(partial), 6));
        let wanted = self.services.wants_gateway(&frame, &h, self.now);
        let changed = self.services.reverse(&mut frame, &h, claim, self.now);
        match changed {
            true => same_packet(&before, &frame, &h, false),
            false => assert_eq!(before, frame),
        }
        assert!(!wanted || changed || h.fragment || h.proto == proto::ICMP || h.proto == proto::ICMPV6);
    }

    /// A Service is another one, or none.
    fn change(&mut self, [port, n]: [u8; 2], how: u8, transport: Transport, input: &mut Input<'_>) {
        let six = n & 2 != 0;
        let one =
            |(four, six_): (Ipv4Addr, Ipv6Addr)| -> IpAddr { if six { six_.into() } else { four.into() } };
        let frontend = Frontend {
            at: SocketAddr::new(one(vip(n)), port.into()),
            transport,
        };
        if how > 200 {
            self.services.apply(ServiceChange::Gone(frontend), self.now);
            assert!(self.services.describe(&frontend).is_none());
            return;
        }
        let (flags, set) = (input.u8(), input.u8());
        let schedulers = [
            Scheduler::Random,
            Scheduler::RoundRobin,
            Scheduler::LeastConnections,
            Scheduler::Maglev,
        ];
        let backends = (0..8u8).filter(|bit| set >> bit & 1 == 1).map(|bit| Backend {
            at: SocketAddr::new(one(backend(bit)), 8080 + u16::from(bit / 4)),
            phase: match flags >> (bit % 4) & 1 {
                0 => BackendPhase::Ready,
                _ => BackendPhase::Draining,
            },
            local: bit & 1 == 0,
        });
        let mut backends: Vec<Backend> = backends.collect();
        backends.sort_by_key(|b| b.at);
        let count = backends.len();
        let what = VirtualServer {
            service: "default/web".parse().expect("a name"),
            port: String::new(),
            scheduler: schedulers[usize::from(how % 4)],
            affinity: (flags & 0x10 != 0).then_some(std::time::Duration::from_secs(60)),
            local_only: flags & 0x20 != 0,
            at_host: flags & 0x40 != 0,
            backends,
        };
        self.services
            .apply(ServiceChange::Set(frontend, Arc::new(what)), self.now);
        let seen = self.services.describe(&frontend).expect("it is there");
        assert_eq!(seen.backends.len(), count);
        assert!(self.services.has_address(frontend.at.ip()));
        self.frontends.push(frontend);
    }

    /// What people see adds up.
    fn look(&self) {
        let (mut open, mut frontends) = (0, 0);
        self.services.describe_all(|view| {
            frontends += 1;
            open += view.open;
            assert_eq!(
                view.open,
                view.backends.iter().map(|b| u64::from(b.open)).sum::<u64>()
            );
            let usable = view.backends.iter().any(|b| b.usable);
            assert_eq!(usable, self.services.has_backend(&view.frontend));
        });
        assert_eq!(frontends, self.services.frontends());
        assert!(open <= self.services.connections(None) as u64);
    }

    /// It comes to rest.
    fn settle(&mut self) {
        let mut turns = 0;
        while self.services.turn(self.now) {
            turns += 1;
            assert!(turns < 1000, "it comes to rest");
        }
        assert!(self.services.next_deadline().is_none_or(|next| next > self.now));
    }

    /// Nothing is left when all of it is gone.
    fn end(mut self) {
        let (_, count) = self.services.list(&ConnectionFilter::default(), 0, self.now);
        assert_eq!(count, self.services.connections(None));
        for frontend in std::mem::take(&mut self.frontends) {
            self.services.apply(ServiceChange::Gone(frontend), self.now);
        }
        self.settle();
        assert!(self.services.is_idle());
        // What was ended is remembered for as long as it would have been kept.
        let mut turns = 0;
        while let Some(next) = self.services.next_deadline() {
            self.now = self.now.max(next);
            self.settle();
            turns += 1;
            assert!(turns < 10_000, "all is forgotten in the end");
        }
        assert_eq!(self.services.frontends(), 0);
        self.services.describe_all(|left| panic!("{left:?}"));
    }
}

/// What forward may drop a frame for.
const EXPECTED: [DropReason; 8] = [
    DropReason::BadL4Header,
    DropReason::ConntrackFull,
    DropReason::ConntrackLimit,
    DropReason::GatewayPorts,
    DropReason::ServiceProtocol,
    DropReason::EarlyFragment,
    DropReason::UnknownConnection,
    DropReason::FragmentForNode,
];

fn pod_at(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    let spec = pod(1, 2 + n % 3);
    (
        spec.ip4.unwrap_or(Ipv4Addr::UNSPECIFIED),
        spec.ip6.unwrap_or(Ipv6Addr::UNSPECIFIED),
    )
}

fn ends(src: (Ipv4Addr, Ipv6Addr), dst: (Ipv4Addr, Ipv6Addr)) -> Ends {
    Ends {
        src_mac: pod(1, 2).mac,
        dst_mac: pod(1, 3).mac,
        src4: src.0,
        src6: src.1,
        dst4: dst.0,
        dst6: dst.1,
    }
}

/// Where a transport has its checksum.
fn checksum_field(h: &Headers) -> std::ops::Range<usize> {
    match h.proto {
        proto::TCP => h.l4 + 16..h.l4 + 18,
        proto::SCTP => h.l4 + 8..h.l4 + 12,
        _ => h.l4 + 6..h.l4 + 8,
    }
}

/// Addresses and ports changed at most, and checksums are as right as before.
fn same_packet(before: &[u8], after: &[u8], h: &Headers, partial: bool) {
    assert_eq!(before.len(), after.len());
    assert_eq!(Headers::parse(after), Ok(*h), "the IP header's checksum is right");
    if partial {
        assert_eq!(checksum_is_partial(before, h), checksum_is_partial(after, h));
    } else {
        assert_eq!(checksum_is_right(before, h), checksum_is_right(after, h));
    }
    assert_eq!(before[h.end..], after[h.end..]);
    if matches!(h.proto, proto::TCP | proto::UDP | proto::SCTP) && !h.later_fragment {
        let sum = checksum_field(h);
        assert_eq!(before[h.l4 + 4..sum.start], after[h.l4 + 4..sum.start]);
        assert_eq!(before[sum.end..h.end], after[sum.end..h.end]);
    }
}

/// The same packet the other way.
fn turn(f: &mut [u8], h: &Headers) {
    match h.l3 {
        L3::Ipv6 => {
            let (src, dst) = (array::<16>(f, 22), array::<16>(f, 38));
            put(f, 22, &dst);
            put(f, 38, &src);
        }
        _ => {
            let (src, dst) = (array::<4>(f, 26), array::<4>(f, 30));
            put(f, 26, &dst);
            put(f, 30, &src);
        }
    }
    let (src, dst) = h.ports(f);
    put_be16(f, h.l4, dst);
    put_be16(f, h.l4 + 2, src);
}

/// Inputs made by hand.
pub fn seeds() -> Vec<Seed> {
    let send = |f: &[u8], partial: u8| {
        let frame = seeds::shape(seeds::WHOLE, f, 0, 0);
        [&[0, 0, partial, 0][..], &frame].concat()
    };
    let mut all = Vec::new();
    for (name, mut frame, _) in seeds::kinds() {
        // To the ports there are.
        let l4 = match (frame[12], frame[20]) {
            (8, _) => 14 + usize::from(frame[14] & 15) * 4,
            (0x86, 6 | 17 | 132) => 54,
            _ => usize::MAX,
        };
        let port = if matches!(frame[23], 17) || frame[20] == 17 {
            53
        } else {
            80
        };
        if frame.len() >= l4.saturating_add(4) {
            put_be16(&mut frame, l4 + 2, port);
        }
        let steps = [
            // IPv6 frontends too.
            vec![4, 0, 0, 2, 1, 0, 0xff, 4, 1, 1, 2, 2, 0x10, 0xff],
            send(&frame, 0),
            send(&frame, 210),
            vec![5, 60, 0, 4, 0, 0, 0, 3, 0x2f, 0x0f],
            send(&frame, 0),
            [&[3, 0, 0][..], &seeds::shape(seeds::WHOLE, &frame, 0, 0)].concat(),
            vec![6, 7, 0xa0],
        ];
        all.push((name, steps.concat()));
    }
    // An error about a connection of a client's.
    let mut syn = vec![0; 12];
    syn.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    syn.extend([10, 244, 1, 2, 10, 96, 0, 0]);
    syn.extend([0x10, 0, 0, 53, 0, 8, 0, 0]);
    for (name, kind) in [("unreachable", 3), ("quench", 4)] {
        let mut quote = syn[14..].to_vec();
        put(&mut quote, 2, &[0, 28]);
        let mut error = syn[..34].to_vec();
        error[23] = 1;
        error.extend([kind, 3, 0, 0, 0, 0, 0, 0]);
        error.extend(&quote);
        let steps = [
            vec![4, 1, 1, 0, 1, 0, 1],
            send(&syn, 0),
            [&[3, 0, 0][..], &seeds::shape(seeds::WHOLE, &error, 0, 0)].concat(),
            send(&error, 0),
        ];
        all.push((name, steps.concat()));
    }
    all
}
