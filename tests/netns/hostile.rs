//! Frames no pod should send (row 44 of the fault table), through a real TAP: short, tagged, malformed. Each is
//! counted by rule, while others notice nothing.

use super::frames::{MARK, echo4, ethernet, ipv4, ipv6, udp, udp6};
use super::pod::{FAMILIES, Place};
use super::raw::Raw;
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, Mac};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("frames_that_cannot_be_are_counted", dropped).pods(2),
    Case::new("frames_shorter_than_their_header", short).pods(2),
];

/// Times each frame is sent.
pub const TIMES: u64 = 10;
/// Hop-by-hop options of eight bytes: padding.
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// An extension header of eight bytes that names the next one.
pub fn extension(next: u8) -> Vec<u8> {
    [&[next, 0][..], &PADDING].concat()
}

/// A fragment header.
pub fn fragment(next: u8, offset: u16, more: bool, id: u8) -> Vec<u8> {
    let field = (offset & !7) | u16::from(more);
    [&[next, 0][..], &field.to_be_bytes(), &[0, 0, 0, id]].concat()
}

/// Do `work` while a neighbour and a pod of the other node go on talking.
pub fn undisturbed(world: &World, work: impl FnOnce()) {
    let (b, far) = (&world.pods[0][1], &world.pods[1][0]);
    for family in FAMILIES {
        b.reaches(far.ip(family), 1, &[]);
    }
    std::thread::scope(|s| {
        for family in FAMILIES {
            s.spawn(move || b.reaches(far.ip(family), 40, &[]));
        }
        work();
    });
}

/// Send frames; all of them must be counted under `reason`.
fn refuse(world: &World, mouth: &Raw, what: &str, frame: &[u8], reason: DropReason) {
    let node = &world.nodes[0];
    let before = node.drops(reason);
    for _ in 0..TIMES {
        mouth.send(frame);
    }
    let mut drops = Default::default();
    for _ in 0..50 {
        let status = node.status();
        drops = status.drops;
        if drops.get(reason.label()).copied().unwrap_or(0) >= before + TIMES {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} is not counted under {}, but: {drops:?}", reason.label());
}

fn dropped(world: &mut World) {
    use DropReason::*;
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let gateway = world.gateway_mac(1);
    let good4 = ipv4(a.ip4, b.ip4, 17, &udp(9, 9, MARK));
    let good6 = ipv6(a.ip6, b.ip6, 64, 17, &udp6(a.ip6, b.ip6, (9, 9), MARK));
    let to = |dst: Mac, ethertype: u16, payload: &[u8]| ethernet(dst, a.mac, ethertype, payload);
    let four = |payload: &[u8]| to(b.mac, 0x0800, payload);
    let six = |payload: &[u8]| to(b.mac, 0x86dd, payload);
    let routed = |dst: Ipv4Addr, ttl: u8| to(gateway, 0x0800, &echo4(a.ip4, dst, ttl));
    let with = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let jumbo = [17, 0, 0xc2, 4, 0, 1, 0, 0];
    let chain: Vec<u8> = (0..9).flat_map(|_| extension(60)).collect();
    let tagged = [&[0, 5][..], &[8, 0], &good4].concat();
    let twice = [&[0, 6][..], &[0x81, 0], &tagged].concat();
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("an Ethernet header and nothing else", four(&[]), Truncated),
        ("half an IPv4 header", four(&good4[..10]), Truncated),
        ("half an IPv6 header", six(&good6[..39]), Truncated),
        (
            "half an ARP message",
            to(b.mac, 0x0806, &[0, 1, 8, 0, 6, 4]),
            Truncated,
        ),
        ("a VLAN tag", to(b.mac, 0x8100, &tagged), Vlan),
        ("two VLAN tags", to(b.mac, 0x88a8, &twice), Vlan),
        ("an old double tag", to(b.mac, 0x9100, &twice), Vlan),
        (
            "LLDP",
            to(Mac([1, 0x80, 0xc2, 0, 0, 14]), 0x88cc, MARK),
            EtherType,
        ),
        ("MPLS", to(b.mac, 0x8847, &good4), EtherType),
        ("an IEEE 802.3 length", to(b.mac, 46, &[0xaa; 46]), EtherType),
        ("IP version 5", four(&with(&good4, 0, 0x55)), BadIpHeader),
        (
            "an IPv4 header of 16 bytes",
            four(&with(&good4, 0, 0x44)),
            BadIpHeader,
        ),
        (
            "a wrong header checksum",
            four(&with(&good4, 11, good4[11] ^ 1)),
            BadIpHeader,
        ),
        (
            "a total length of 5",
            four(&with(&with(&good4, 2, 0), 3, 5)),
            BadIpHeader,
        ),
        (
            "a total length beyond the frame",
            four(&with(&good4, 2, 5)),
            Truncated,
        ),
        (
            "IPv4 by the name of IPv6",
            six(&[&good4[..], &[0; 20]].concat()),
            BadIpHeader,
        ),
        (
            "an IPv6 payload beyond the frame",
            six(&with(&good6, 4, 5)),
            Truncated,
        ),
        (
            "a jumbogram",
            six(&with(&with(&ipv6(a.ip6, b.ip6, 64, 0, &jumbo), 4, 0), 5, 0)),
            Truncated,
        ),
        (
            "an extension beyond the packet",
            six(&ipv6(a.ip6, b.ip6, 64, 60, &[17, 9, 1, 4, 0, 0, 0, 0])),
            Truncated,
        ),
        (
            "a chain of nine extensions",
            six(&ipv6(a.ip6, b.ip6, 64, 60, &[&chain[..], MARK].concat())),
            RogueControl,
        ),
        (
            "a first fragment without its transport",
            six(&ipv6(
                a.ip6,
                b.ip6,
                64,
                44,
                &[fragment(60, 0, true, 1), extension(17)].concat(),
            )),
            RogueControl,
        ),
        (
            "a MAC nobody has",
            to(Mac([2, 9, 9, 9, 9, 9]), 0x0800, &good4),
            UnknownMac,
        ),
        ("loopback", routed(Ipv4Addr::LOCALHOST, 64), NotRoutable),
        ("class E", routed(Ipv4Addr::new(240, 0, 0, 1), 64), NotRoutable),
        (
            "a link-local address",
            routed(Ipv4Addr::new(169, 254, 1, 1), 64),
            NotRoutable,
        ),
        ("no hop left", routed(far.ip4, 1), TtlExceeded),
        ("less than no hop left", routed(far.ip4, 0), TtlExceeded),
    ];
    let mouth = Raw::sender(a);
    undisturbed(world, || {
        for (what, frame, reason) in &cases {
            refuse(world, &mouth, what, frame, *reason);
        }
    });
}

/// A TUN of the pod whose packets the kernel forwards to `eth0` as they are: frames of 1 to 13 bytes.
fn short(world: &mut World) {
    if Command::new("nft").arg("-v").output().is_err() {
        eprintln!("netns: nft is missing, so nothing is tested here (tests/run installs it)");
        return;
    }
    let a = &world.pods[0][0];
    let tun = a.netns.within(|| tun_tap::Iface::new("t0", tun_tap::Mode::Tun));
    let tun = tun.expect("a TUN");
    a.netns.ip("link set t0 up");
    a.netns.ask(
        "nft",
        &["table netdev t { chain c { type filter hook ingress device \"t0\" priority 0; fwd to \"eth0\"; }; }"],
    );
    undisturbed(world, || {
        for len in 1..=13 {
            let bytes = [&[0, 0, 8, 0][..], &vec![0x45; len]].concat();
            for _ in 0..TIMES {
                tun.send(&bytes).unwrap_or_else(|e| panic!("{len} bytes: {e}"));
            }
        }
    });
    eventually("all are counted", Duration::from_secs(1), || {
        world.nodes[0].drops(DropReason::Truncated) == 13 * TIMES
    });
}
