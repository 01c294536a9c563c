//! Packets that are odd but legal (row 44 of the fault table): options, extension headers, fragments in any
//! disorder, sizes beyond the MTU. They are forwarded by rule, or answered; others notice nothing.

use super::frames::{MARK, ethernet, ipv4, ipv4_with, ipv6, udp, udp6};
use super::hostile::{TIMES, extension, fragment, undisturbed};
use super::pod::{FAMILIES, Family, PATIENCE, Place, Pod};
use super::raw::{Raw, connect_with_options};
use super::world::{Case, World, eventually};
use podwire::model::DropReason;
use std::io::{Read, Write};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("odd_but_legal_packets_pass", forwarded).pods(2),
    Case::new("fragments_pass_even_when_they_overlap", fragments).pods(2),
    Case::new("a_pod_with_a_larger_mtu_is_told", oversize).pods(2),
    Case::new("bulk_with_options_in_every_packet", bulk_with_options).pods(2),
];

/// Send frames to a neighbour and, by the gateway, to a pod of the other node; both must hear `mark`.
fn deliver(world: &World, what: &str, packet: &dyn Fn(&Pod) -> (u16, Vec<u8>), mark: &[u8]) {
    let a = &world.pods[0][0];
    let mouth = Raw::sender(a);
    for (to, mac) in [
        (&world.pods[0][1], world.pods[0][1].mac),
        (&world.pods[1][0], world.gateway_mac(1)),
    ] {
        let ear = Raw::listener(to);
        let (ethertype, packet) = packet(to);
        for _ in 0..TIMES {
            mouth.send(&ethernet(mac, a.mac, ethertype, &packet));
        }
        let what = format!("{what} arrives at {}", to.name);
        eventually(&what, Duration::from_secs(1), || ear.heard(mark));
    }
}

fn forwarded(world: &mut World) {
    let a = &world.pods[0][0];
    let datagram = udp(9, 9, MARK);
    let options: [(&str, &[u8]); 5] = [
        ("no-operations", &[1, 1, 1, 1]),
        ("router alert", &[148, 4, 0, 0]),
        ("a timestamp", &[68, 8, 5, 0, 0, 0, 0, 0]),
        ("a source route", &[131, 7, 4, 10, 244, 1, 1, 0]),
        ("forty bytes", &[1; 40]),
    ];
    undisturbed(world, || {
        for (what, options) in options {
            let packet = |to: &Pod| {
                let addresses = (a.ip4, to.ip4);
                (0x0800, ipv4_with(addresses, (64, 17), (1, 0), options, &datagram))
            };
            deliver(world, &format!("IPv4 with {what}"), &packet, MARK);
        }
        let chains: [(&str, u8, Vec<u8>); 5] = [
            ("destination options", 60, extension(17)),
            (
                "three extensions",
                0,
                [extension(60), extension(60), extension(17)].concat(),
            ),
            ("a routing header", 43, vec![17, 0, 4, 0, 0, 0, 0, 0]),
            ("an atomic fragment", 44, fragment(17, 0, false, 9)),
            (
                "eight extensions",
                60,
                (1..=8)
                    .flat_map(|n| extension(if n == 8 { 17 } else { 60 }))
                    .collect(),
            ),
        ];
        for (what, next, chain) in &chains {
            let packet = |to: &Pod| {
                let datagram = udp6(a.ip6, to.ip6, (9, 9), MARK);
                let payload = [&chain[..], &datagram].concat();
                (0x86dd, ipv6(a.ip6, to.ip6, 64, *next, &payload))
            };
            deliver(world, &format!("IPv6 with {what}"), &packet, MARK);
        }
        // No next header, with bytes behind it; and Ethernet padding, which is not the packet's.
        let nothing = |to: &Pod| (0x86dd, ipv6(a.ip6, to.ip6, 64, 59, MARK));
        deliver(world, "no next header", &nothing, MARK);
        let padded = |to: &Pod| {
            let packet = ipv4(a.ip4, to.ip4, 17, &datagram);
            (0x0800, [&packet[..], &[0xee; 30]].concat())
        };
        deliver(world, "a padded packet", &padded, MARK);
        // To itself, by the gateway and back.
        let ear = Raw::listener(a);
        let packet = ipv4(a.ip4, a.ip4, 17, &udp(9, 9, b"there and back"));
        let mouth = Raw::sender(a);
        mouth.send(&ethernet(world.gateway_mac(1), a.mac, 0x0800, &packet));
        let mut back = a.mac.0.to_vec();
        back.extend(world.gateway_mac(1).0);
        eventually("a packet to itself comes back", Duration::from_secs(1), || {
            ear.heard(&back)
        });
    });
}

/// Offset in bytes, whether more follow, and length.
type Fragment = (u16, bool, usize);

fn fragments(world: &mut World) {
    let a = &world.pods[0][0];
    let trains: [(&str, &[Fragment]); 6] = [
        (
            "fragments in the wrong order",
            &[(1000, false, 100), (0, true, 1000)],
        ),
        ("fragments that overlap", &[(0, true, 64), (32, false, 64)]),
        ("a fragment within another", &[(0, true, 64), (24, false, 8)]),
        (
            "the same fragment again and again",
            &[(0, true, 64), (0, true, 64)],
        ),
        ("a fragment beyond 64 KiB", &[(65_528, false, 400)]),
        ("tiny fragments", &[(0, true, 8), (8, true, 8), (16, false, 8)]),
    ];
    undisturbed(world, || {
        for (id, (what, train)) in (1u8..).zip(trains) {
            for (offset, more, len) in train {
                let mut payload = udp(9, 9, &[id; 1500]);
                payload.truncate(*len);
                payload[len - 2..].copy_from_slice(&[id, 0x5a]);
                let mark = payload[len - 2..].to_vec();
                let field = (offset / 8) | (u16::from(*more) << 13);
                let four = |to: &Pod| {
                    let addresses = (a.ip4, to.ip4);
                    let fragment = (u16::from(id), field);
                    (0x0800, ipv4_with(addresses, (64, 17), fragment, &[], &payload))
                };
                deliver(world, what, &four, &mark);
                let six = |to: &Pod| {
                    let payload = [&fragment(17, *offset, *more, id)[..], &payload].concat();
                    (0x86dd, ipv6(a.ip6, to.ip6, 64, 44, &payload))
                };
                deliver(world, what, &six, &mark);
            }
        }
    });
    // And the pods' stacks still put honest ones together.
    for family in FAMILIES {
        let far = world.pods[1][0].ip(family);
        a.reaches(far, 3, &["-M", "dont", "-s", "9000"]);
    }
}

/// A pod may raise its own MTU; what is then too long is answered, with the size that would do.
fn oversize(world: &mut World) {
    let a = &world.pods[0][0];
    a.netns.ip("link set eth0 mtu 65521");
    undisturbed(world, || {
        for to in [&world.pods[0][1], &world.pods[1][0]] {
            for family in FAMILIES {
                for size in ["1500", "9000", "60000"] {
                    // The stack forgets what it was told.
                    let of = if family == Family::V4 { "-4" } else { "-6" };
                    a.netns.ask("ip", &[of, "route", "flush", "cache"]);
                    let told = a.ping(to.ip(family), 1, &["-M", "do", "-s", size]);
                    told.none();
                    let says = ["mtu = 1450", "mtu=1450"];
                    assert!(
                        says.iter().any(|s| told.text.contains(s)),
                        "{size} bytes to {}: {}",
                        to.name,
                        told.text
                    );
                }
                super::traffic::stream(a, to, family, 2 << 20);
            }
        }
    });
    assert!(world.nodes[0].drops(DropReason::TooBig) >= 12);
}

/// The kernel makes super-frames of streams with IP options as well: they are segmented as all others.
fn bulk_with_options(world: &mut World) {
    const BYTES: usize = 2 << 20;
    let a = &world.pods[0][0];
    for to in [&world.pods[0][1], &world.pods[1][0]] {
        for family in FAMILIES {
            let what = format!("a stream with options to {} over {family:?}", to.name);
            let listener = to.listen(family);
            let at = listener.local_addr().expect("it is bound");
            let mut mouth = a.netns.within(|| connect_with_options(at)).expect(&what);
            mouth.set_write_timeout(Some(PATIENCE)).expect("a timeout");
            let (mut ear, _) = listener.accept().expect(&what);
            ear.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            std::thread::scope(|s| {
                s.spawn(|| mouth.write_all(&[7; BYTES]).expect(&what));
                let mut got = vec![0; BYTES];
                ear.read_exact(&mut got).expect(&what);
                assert!(got.iter().all(|b| *b == 7), "{what}");
            });
        }
    }
    let drops = world.nodes[0].status().drops;
    assert!(!drops.contains_key(DropReason::BadVnetHdr.label()), "{drops:?}");
}
