//! The forwarding path takes no memory from the heap once it is warm: held by counting.

#![allow(unsafe_code)] // A global allocator is an unsafe trait.

use podwire::buf::{Arena, Message, Progress, Received, Span};
use podwire::datapath::{Exits, FRAME_ROOM, HEADROOM, Node, Settings};
use podwire::model::{
    Backend, BackendPhase, Bandwidth, Change, ConnectionFilter, Duration, Frontend, Instant, LocalNode, Mac,
    Peer, PodMtu, PortId, PortSpec, Rate, Scheduler, ServiceChange, TapCaps, Transport, UnderlayMtu,
    VirtualServer,
};
use podwire::service::{Limits, Services, Verdict};
use podwire::wire::bytes::put_be16;
use podwire::wire::checksum::{Sum, pseudo};
use podwire::wire::{Gso, Headers, VnetHdr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

struct Counting;

thread_local! {
    /// Per thread: the test harness has threads of its own.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; the counter itself takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are those System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

mod egress;

/// The far end of the tunnel: datagrams are copied into memory that is there already.
struct Wire {
    memory: Vec<u8>,
    used: usize,
    step: usize,
    to_pods: usize,
}

impl podwire::stack::egress::Host for Wire {}

impl Exits for Wire {
    fn to_pod(&mut self, _: PortId, _: &VnetHdr, _: &[u8], _: &[u8], pieces: &[Span]) -> bool {
        self.to_pods += pieces.len();
        true
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        for m in messages {
            self.step = usize::from(m.segment);
            for p in &m.pieces {
                self.memory[self.used..self.used + p.len()].copy_from_slice(p.of(memory));
                self.used += p.len();
            }
        }
        Progress::All
    }
}

fn subnet(n: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new(Ipv4Addr::new(10, 244, n, 0), 24).unwrap()
}

fn node(own: u8, other: u8) -> Node {
    let mac = |n| Mac::of_vtep(subnet(n).network());
    let mut node = Node::new(Settings {
        local: LocalNode {
            name: format!("n{own}").parse().unwrap(),
            subnet4: Some(subnet(own)),
            subnet6: None,
            vtep_mac: mac(own),
            vtep_mac6: mac(own),
            gateway_mac: Mac::of_ipv4(Ipv4Addr::new(10, 244, own, 1)),
            vni: 1.try_into().unwrap(),
            pod_mtu: PodMtu(1450),
            underlay_mtu: UnderlayMtu(1500),
        },
        dscp: None,
        udp_gso: true,
        partial_checksums: true,
        merge_acks: true,
        egress: Default::default(),
        broadcast_per_second: 1000,
        sockets: 8,
        underlay: (true, false),
        seed: 1,
    });
    for pod in [2, 3] {
        let ip = Ipv4Addr::new(10, 244, own, pod);
        let spec = PortSpec {
            pod: format!("p{pod}").parse().unwrap(),
            mac: Mac::of_ipv4(ip),
            ip4: Some(ip),
            ip6: None,
            mtu: PodMtu(1450),
            bandwidth: None,
            caps: TapCaps {
                vnet_hdr: true,
                csum: true,
                tso4: true,
                tso6: true,
                uso: true,
            },
        };
        node.add_port(spec).unwrap();
    }
    let peer = Peer {
        name: format!("n{other}").parse().unwrap(),
        underlay: SocketAddr::from(([192, 0, 2, other], 8472)),
        underlay6: None,
        subnet4: Some(subnet(other)),
        subnet6: None,
        vtep_mac: mac(other),
        vtep_mac6: mac(other),
        mtu: None,
    };
    node.apply(Change::PeerSet(peer)).unwrap();
    node
}

/// TCP from 10.244.1.2 with `payload` bytes.
fn frame(to: Mac, dst: Ipv4Addr, payload: usize) -> (VnetHdr, Vec<u8>) {
    let src = Ipv4Addr::new(10, 244, 1, 2);
    let mut f = [to.0, Mac::of_ipv4(src).0].concat();
    f.extend([8, 0, 0x45, 0]);
    f.extend(((40 + payload) as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    f.extend(src.octets());
    f.extend(dst.octets());
    f.extend([
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    f.extend(std::iter::repeat_n(7, payload));
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, 50, sum);
    let train = payload > 1410;
    let vnet = VnetHdr {
        partial: Some((34, 16)),
        gso: if train { Gso::Tcp4 } else { Gso::None },
        ecn: false,
        hdr_len: 54,
        gso_size: if train { 1410 } else { 0 },
    };
    (vnet, f)
}

#[test]
fn a_warm_forwarding_path_takes_no_memory() {
    let (mut a, mut b) = (node(1, 2), node(2, 1));
    let mut arena = Arena::new(4 * FRAME_ROOM);
    let mut wire = Wire {
        memory: vec![0; 1 << 20],
        used: 0,
        step: 0,
        to_pods: 0,
    };
    let gateway = Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1));
    let near = Ipv4Addr::new(10, 244, 1, 3);
    let far = Ipv4Addr::new(10, 244, 2, 2);
    let kinds = [
        ("local super-frame", frame(Mac::of_ipv4(near), near, 60_000)),
        ("local small frame", frame(Mac::of_ipv4(near), near, 100)),
        ("tunnelled super-frame", frame(gateway, far, 60_000)),
        ("tunnelled small frame", frame(gateway, far, 100)),
    ];
    let mut turn = |(vnet, frame): &(VnetHdr, Vec<u8>), now: Instant| {
        arena.rewind(0);
        arena.free_mut()[..HEADROOM].copy_from_slice(&vnet.emit());
        arena.take(HEADROOM);
        arena.free_mut()[..frame.len()].copy_from_slice(frame);
        let span = arena.take(frame.len());
        wire.used = 0;
        a.from_pod(PortId(0), &mut arena, span, now, &mut wire);
        a.send_own(&mut arena, now, &mut wire);
        assert!(a.flush(&mut arena, now, &mut wire));
        if wire.used > 0 {
            let message = Received {
                span: Span::new(0, wire.used),
                segment: Some(wire.step as u16),
                from: [192, 0, 2, 1].into(),
                class: 0,
            };
            let mut memory = std::mem::take(&mut wire.memory);
            b.from_peer(&mut memory, &message, now, &mut wire);
            b.deliver_trains(&mut memory, now, &mut wire);
            wire.memory = memory;
        }
        std::mem::take(&mut wire.to_pods)
    };
    for (what, kind) in &kinds {
        // Probes go with the first frame to a peer and every ten seconds; this is one moment.
        let now = Instant::from_secs(20);
        for _ in 0..5 {
            turn(kind, now);
        }
        let before = TAKEN.with(Cell::get);
        for _ in 0..100 {
            assert!(turn(kind, now) > 0, "{what} arrives");
        }
        assert_eq!(TAKEN.with(Cell::get) - before, 0, "{what}");
    }
}

/// What waits for a limited pod, and leaves when it is time.
#[test]
fn a_limited_port_takes_no_memory() {
    let mut node = node(1, 2);
    let rate = Rate::new(100_000_000, 0).unwrap();
    let near = Ipv4Addr::new(10, 244, 1, 9);
    let spec = PortSpec {
        pod: "limited".parse().unwrap(),
        mac: Mac::of_ipv4(near),
        ip4: Some(near),
        bandwidth: Bandwidth::of(Some(rate), Some(rate)),
        ..node.ports().spec(PortId(0)).unwrap().clone()
    };
    let port = node.add_port(spec).unwrap();
    let mut arena = Arena::new(4 * FRAME_ROOM);
    let mut wire = Wire {
        memory: vec![0; 1 << 20],
        used: 0,
        step: 0,
        to_pods: 0,
    };
    let kinds = [60_000, 100].map(|len| frame(Mac::of_ipv4(near), near, len));
    let before = TAKEN.with(Cell::get);
    let mut now = Instant::from_secs(20);
    for turn in 0..1000 {
        let (vnet, frame) = &kinds[usize::from(turn % 3 == 0)];
        arena.rewind(0);
        arena.free_mut()[..HEADROOM].copy_from_slice(&vnet.emit());
        arena.take(HEADROOM);
        arena.free_mut()[..frame.len()].copy_from_slice(frame);
        let span = arena.take(frame.len());
        node.from_pod(PortId(0), &mut arena, span, now, &mut wire);
        node.may_read(port, now);
        now += Duration::from_micros(500);
        node.release(now, &mut wire);
    }
    assert_eq!(TAKEN.with(Cell::get) - before, 0);
    let counted = node.port_counters(port).unwrap();
    assert!(
        counted.held_to_pod > 20 && counted.limited_to_pod > 100,
        "{counted:?}"
    );
    assert_eq!(counted.frames_to_pod, wire.to_pods as u64);
}

/// Connections to a Service come, talk and go: what a table has grown to is enough for as many again.
#[test]
fn warm_services_take_no_memory() {
    let vip = Ipv4Addr::new(10, 96, 0, 1);
    let mut s = Services::new(Limits::default(), 1, None, None);
    let backends = (2..12).map(|n| Backend {
        at: SocketAddr::from(([10, 244, 2, n], 80)),
        phase: BackendPhase::Ready,
        local: false,
    });
    let backends: Vec<Backend> = backends.collect();
    let now = Instant::from_secs(20);
    let (_, original) = frame(Mac::of_ipv4(vip), vip, 60_000);
    let h = Headers::parse(&original).unwrap();
    let mut f = original.clone();
    for scheduler in [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnections,
        Scheduler::Maglev,
    ] {
        let what = VirtualServer {
            service: "web".parse().unwrap(),
            port: String::new(),
            scheduler,
            affinity: Some(std::time::Duration::from_secs(60)),
            local_only: false,
            at_host: false,
            backends: backends.clone(),
        };
        let at = SocketAddr::from((vip, 80));
        let transport = Transport::Tcp;
        s.apply(ServiceChange::Set(Frontend { at, transport }, what.into()), now);
        let mut before = 0;
        for round in 0..3 {
            if round == 2 {
                before = TAKEN.with(Cell::get);
            }
            for port in 0..2000 {
                for flags in [2, 0x10, 0x11] {
                    f[..54].copy_from_slice(&original[..54]);
                    put_be16(&mut f, 34, 1000 + port);
                    f[47] = flags;
                    let verdict = s.forward(&mut f, &h, Some((34, 16)), Some(PortId(0)), now);
                    assert_eq!(verdict, Verdict::Translated);
                    // The answer: addresses and ports the other way.
                    let (src, dst): ([u8; 4], [u8; 4]) =
                        (f[26..30].try_into().unwrap(), f[30..34].try_into().unwrap());
                    f[26..30].copy_from_slice(&dst);
                    f[30..34].copy_from_slice(&src);
                    put_be16(&mut f, 34, 80);
                    put_be16(&mut f, 36, 1000 + port);
                    assert!(s.reverse(&mut f, &h, Some((34, 16)), now));
                }
            }
            s.turn(now);
            if round < 2 {
                s.kill(&ConnectionFilter::default());
            }
        }
        assert_eq!(TAKEN.with(Cell::get) - before, 0, "{scheduler:?}");
        s.kill(&ConnectionFilter::default());
    }
}
