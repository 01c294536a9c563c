//! A pod whose "TAP" is a socket of ours, handed to the node as any client hands over a TAP: so frames can be
//! sent that no kernel would make. Lengths from nothing to beyond 64 KiB, virtio-net headers that lie (row 43
//! of the fault table), and noise.

use super::frames::{MARK, ethernet, ipv4, ipv4_with, ipv6, udp, udp6};
use super::impair::Rng;
use super::node::Node;
use super::pod::{FAMILIES, Place};
use super::raw::Raw;
use super::world::{Case, World, eventually};
use podwire::api::{AttachRequest, Client, Reply, Request};
use podwire::model::{DropReason, Mac, OffloadMode, TapCaps};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("frames_of_any_length", lengths),
    Case::new("virtio_net_headers_that_lie", liars),
    Case::new("a_checksum_cannot_become_an_address", address_for_a_sum).pods(2),
    Case::new("a_frame_of_sixty_thousand_segments", crumbs).pods(2),
    Case::new("noise", noise),
    Case::new("a_tap_that_takes_nothing", full),
];

/// The pod.
struct Fake {
    tap: UnixDatagram,
    vnet_hdr: bool,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    mac: Mac,
}

impl Fake {
    fn attach(node: &Node, mode: OffloadMode) -> Fake {
        let mut client = Client::connect(&node.socket).expect("the node answers");
        let request = AttachRequest {
            pod: "fake".parse().expect("a name"),
            ip4: None,
            ip6: None,
            mac: None,
            mtu: None,
            ifname: "eth0".into(),
            netns: None,
            holder: None,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            bandwidth: None,
        };
        let Ok(Reply::Plan(plan)) = client.call(&Request::Attach(Box::new(request))) else {
            panic!("no plan");
        };
        let on = mode == OffloadMode::On;
        let caps = TapCaps {
            vnet_hdr: on,
            csum: on,
            tso4: on,
            tso6: on,
            uso: on,
        };
        let (tap, theirs) = UnixDatagram::pair().expect("sockets");
        let done = client.call_with_fds(
            &Request::Commit {
                caps,
                lifeline: false,
            },
            &[theirs.as_fd()],
        );
        assert!(matches!(done, Ok(Reply::Attached(_))), "{done:?}");
        tap.set_write_timeout(Some(Duration::from_secs(2)))
            .expect("a timeout");
        Fake {
            tap,
            vnet_hdr: on,
            ip4: plan.ip4.expect("an address").addr(),
            ip6: plan.ip6.expect("an address").addr(),
            mac: plan.mac,
        }
    }

    /// Send a frame behind a virtio-net header, if there is to be one; waits while the node is busy.
    #[track_caller]
    fn send(&self, vnet: [u8; 10], frame: &[u8]) {
        let head: &[u8] = if self.vnet_hdr { &vnet } else { &[] };
        self.send_bytes(&[head, frame].concat());
    }

    #[track_caller]
    fn send_bytes(&self, bytes: &[u8]) {
        self.drain();
        let sent = self.tap.send(bytes);
        assert!(
            sent.is_ok(),
            "the node does not read: {} bytes, {sent:?}",
            bytes.len()
        );
    }

    /// Forget what the node sent.
    fn drain(&self) {
        self.tap.set_nonblocking(true).expect("a flag");
        let mut buffer = [0; 64];
        while self.tap.recv(&mut buffer).is_ok() {}
        self.tap.set_nonblocking(false).expect("a flag");
    }
}

fn virtio(flags: u8, gso: u8, hdr_len: u16, gso_size: u16, start: u16, offset: u16) -> [u8; 10] {
    let mut header = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, field) in [(2, hdr_len), (4, gso_size), (6, start), (8, offset)] {
        header[at..at + 2].copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Wait until the node has read so many frames in all, and require that others still talk.
fn settled(world: &World, frames: u64) {
    eventually("the node reads everything", Duration::from_secs(5), || {
        let pods = world.nodes[0].status().pods;
        let fake = pods.iter().find(|p| p.pod.name == "fake").expect("it is there");
        fake.counters.frames_from_pod >= frames
    });
    let (a, b) = world.pair();
    // What went to the other node may still fill its socket.
    eventually("the other node reads everything", Duration::from_secs(5), || {
        a.ping(b.ip4, 1, &[]).answered > 0
    });
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
    }
}

fn lengths(world: &mut World) {
    let fake = Fake::attach(&world.nodes[0], world.mode);
    let (_, far) = world.pair();
    // With a virtio-net header, what is shorter than that is no frame at all.
    let shortest = if fake.vnet_hdr { 10 + 14 } else { 14 };
    for len in 0..shortest {
        fake.send_bytes(&vec![0x45; len]);
    }
    settled(world, shortest as u64);
    let drops = world.nodes[0].status().drops;
    let count = |reason: DropReason| drops.get(reason.label()).copied().unwrap_or(0);
    let counted = count(DropReason::Truncated) + count(DropReason::BadVnetHdr);
    assert_eq!(counted, shortest as u64, "{drops:?}");
    // Longer than any packet: what lies behind the packet is padding, and the packet itself is too big.
    let packet = ipv4(fake.ip4, far.ip4, 17, &udp(9, 9, &vec![7; 65_507]));
    let frame = ethernet(world.gateway_mac(1), fake.mac, 0x0800, &packet);
    let before = world.nodes[0].drops(DropReason::TooBig);
    fake.send([0; 10], &frame);
    fake.send([0; 10], &[&frame[..], &[0; 1]].concat());
    fake.send([0; 10], &[&frame[..], &[0; 10_000]].concat());
    fake.send([0; 10], &vec![0xff; 100_000]);
    settled(world, shortest as u64 + 4);
    assert_eq!(world.nodes[0].drops(DropReason::TooBig), before + 3);
}

fn liars(world: &mut World) {
    if world.mode == OffloadMode::Off {
        return;
    }
    let fake = Fake::attach(&world.nodes[0], world.mode);
    let (near, far) = world.pair();
    let gateway = world.gateway_mac(1);
    let mut tcp = vec![0; 20 + 3000];
    tcp[12] = 0x50;
    let frames: Vec<Vec<u8>> = [(near.mac, near), (gateway, far)]
        .iter()
        .flat_map(|(mac, to)| {
            let four = |protocol, payload: &[u8]| {
                ethernet(*mac, fake.mac, 0x0800, &ipv4(fake.ip4, to.ip4, protocol, payload))
            };
            let six = |next, payload: &[u8]| {
                ethernet(*mac, fake.mac, 0x86dd, &ipv6(fake.ip6, to.ip6, 64, next, payload))
            };
            let options = ipv4_with((fake.ip4, to.ip4), (64, 6), (1, 0), &[1; 8], &tcp);
            let fragment = ipv4_with((fake.ip4, to.ip4), (64, 6), (1, 0x2000), &[], &tcp);
            vec![
                four(6, &tcp),
                four(6, &tcp[..19]),
                four(17, &udp(9, 9, &[5; 3000])),
                four(17, &[0, 9]),
                four(1, &[8, 0, 0, 0]),
                six(6, &tcp),
                six(17, &udp6(fake.ip6, to.ip6, (9, 9), &[5; 3000])),
                six(58, &[128, 0, 0, 0]),
                ethernet(*mac, fake.mac, 0x0800, &options),
                ethernet(*mac, fake.mac, 0x0800, &fragment),
                ethernet(*mac, fake.mac, 0x0806, &[0; 28]),
            ]
        })
        .collect();
    let mut sent = 0;
    for frame in &frames {
        for gso in [0u8, 1, 2, 3, 4, 5, 0x81, 0x84, 0xff] {
            for size in [0u16, 1, 500, 1400, 65_535] {
                for (flags, start, offset) in [
                    (0, 0, 0),
                    (1, 34, 16),
                    (1, 54, 6),
                    (1, 0, 0),
                    (1, 65_535, 65_535),
                    (1, 13, 65_530),
                    (3, 34, 6),
                ] {
                    let hdr_len = if sent % 2 == 0 { 34 } else { 65_535 };
                    fake.send(virtio(flags, gso, hdr_len, size, start, offset), frame);
                    sent += 1;
                }
            }
        }
    }
    settled(world, sent);
    let drops = world.nodes[0].status().drops;
    for reason in [DropReason::BadVnetHdr, DropReason::BadL4Header] {
        assert!(drops.contains_key(reason.label()), "{drops:?}");
    }
    assert!(
        !drops.contains_key(DropReason::TapWrite.label()),
        "a lie got as far as another pod's kernel: {drops:?}"
    );
}

/// Not a fake at all: a pod that may open packet sockets tells its kernel where a checksum belongs, and the
/// kernel passes it on. Stored in the source address, it would make the packet another pod's.
fn address_for_a_sum(world: &mut World) {
    let (eve, near, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let mouth = Raw::sender_with_vnet_hdr(eve);
    let node = &world.nodes[0];
    // [eth 14 | version .. hops 8 | source 16 | destination 16]. Of a plain TAP the kernel itself stores the sum:
    // then a packet is seen for what it became, and one to another address is as good as any.
    let (starts, reason): (&[u16], _) = match world.mode {
        OffloadMode::On => (&[34, 36, 38, 44, 52], DropReason::BadVnetHdr),
        OffloadMode::Off => (&[34, 36], DropReason::SpoofedIp),
    };
    let mut sent = 0;
    for (mac, to) in [(near.mac, near), (world.gateway_mac(1), far)] {
        let ear = Raw::listener(to);
        let packet = ipv6(eve.ip6, to.ip6, 64, 17, &udp6(eve.ip6, to.ip6, (9, 9), MARK));
        let frame = ethernet(mac, eve.mac, 0x86dd, &packet);
        for start in starts {
            mouth.send(&[&virtio(1, 0, 0, 0, *start, 0)[..], &frame].concat());
            sent += 1;
        }
        eventually("all are refused", Duration::from_secs(1), || {
            node.drops(reason) == sent
        });
        assert!(!ear.heard(MARK), "{} hears it", to.name);
    }
}

/// A super-frame whose header asks for segments of one byte costs its pod, and nobody waits for it.
fn crumbs(world: &mut World) {
    if world.mode == OffloadMode::Off {
        // The kernel makes the segments then: no lie, but a flood (see floods.rs).
        return;
    }
    let (eve, far) = (&world.pods[0][0], &world.pods[1][0]);
    let mouth = Raw::sender_with_vnet_hdr(eve);
    let mut tcp = vec![0; 20 + 60_000];
    (tcp[12], tcp[13]) = (0x50, 0x10);
    let packet = ipv4(eve.ip4, far.ip4, 6, &tcp);
    let frame = ethernet(world.gateway_mac(1), eve.mac, 0x0800, &packet);
    let bytes = [&virtio(1, 1, 54, 1, 34, 16)[..], &frame].concat();
    super::hostile::undisturbed(world, || {
        for _ in 0..200 {
            mouth.send(&bytes);
        }
    });
    eventually("all are refused", Duration::from_secs(2), || {
        world.nodes[0].drops(DropReason::BadVnetHdr) == 200
    });
}

/// Frames that are right but for some bytes, and bytes that never were a frame.
fn noise(world: &mut World) {
    let fake = Fake::attach(&world.nodes[0], world.mode);
    let (near, far) = world.pair();
    let gateway = world.gateway_mac(1);
    let good = [
        ethernet(
            near.mac,
            fake.mac,
            0x0800,
            &ipv4(fake.ip4, near.ip4, 17, &udp(9, 9, MARK)),
        ),
        ethernet(
            gateway,
            fake.mac,
            0x0800,
            &ipv4(fake.ip4, far.ip4, 6, &[0x50; 400]),
        ),
        ethernet(
            gateway,
            fake.mac,
            0x86dd,
            &ipv6(fake.ip6, far.ip6, 64, 0, &[60, 0, 1, 4, 0, 0, 0, 0]),
        ),
        ethernet(
            gateway,
            fake.mac,
            0x0800,
            &super::frames::echo4(fake.ip4, Ipv4Addr::new(10, 244, 1, 1), 64),
        ),
        ethernet(
            Mac([0xff; 6]),
            fake.mac,
            0x0806,
            &super::frames::arp(1, (fake.mac, fake.ip4), (Mac([0; 6]), near.ip4)),
        ),
    ];
    let mut rng = Rng(44);
    let mut sent = 0;
    for round in 0..4000 {
        let mut frame = good[round % good.len()].clone();
        let mut vnet = [0; 10];
        match rng.below(4) {
            0 => rng.fill(&mut frame[12..]),
            1 => frame.truncate(14 + rng.below(frame.len() as u64 - 14) as usize),
            _ => {
                for _ in 0..1 + rng.below(4) {
                    let at = 12 + rng.below(frame.len() as u64 - 12) as usize;
                    frame[at] = rng.next() as u8;
                }
            }
        }
        if rng.below(4) == 0 {
            rng.fill(&mut vnet);
        }
        fake.send(vnet, &frame);
        sent += 1;
    }
    settled(world, sent);
}

/// A TAP that refuses frames costs its own pod, and is counted.
fn full(world: &mut World) {
    let fake = Fake::attach(&world.nodes[0], world.mode);
    let (a, b) = world.pair();
    // Nobody reads what the node writes, and the socket holds some 200 KB.
    b.reaches(a.ip4, 1, &[]);
    let mouth = b.udp(FAMILIES[0], 0);
    for _ in 0..300 {
        mouth.send_to(&[7; 1400], (fake.ip4, 9)).expect("it is sent");
    }
    a.reaches(b.ip4, 3, &[]);
    eventually("frames are refused", Duration::from_secs(1), || {
        world.nodes[0].drops(DropReason::TapWrite) > 0
    });
}
