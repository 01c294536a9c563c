//! Inputs made by hand, from which fuzzing starts: one for each kind of frame, train or file that matters.
//! The replay runs them as they are made here; `cargo test --test fuzz -- --ignored` writes them to `corpus/`.

use super::craft::{BARE, DESTINATION, GROW, LENGTHS, MACS, PAD, SOURCE, SUM};
use super::lab::pod;
use podwire::wire::vxlan;
use std::net::Ipv6Addr;

/// Everything but growth and padding.
pub(super) const WHOLE: u8 = MACS | SOURCE | DESTINATION | LENGTHS | SUM;
/// Settings of a lab: the first of everything.
const ORDINARY: [u8; 3] = [0, 0, 0];

/// A named input.
pub type Seed = (&'static str, Vec<u8>);

/// All seeds of a target.
pub fn of(target: &str) -> Vec<Seed> {
    match target {
        "underlay" => underlay(),
        "pod" => pods(),
        "offload" => offload(),
        "node" => node(),
        "egress" => egress(),
        "service" => super::service::seeds(),
        "neighbour" => neighbour(),
        "dns" => super::dns::seeds(),
        "store" => store(),
        "manifest" => super::manifest::seeds(),
        "cni" => super::cni::seeds(),
        "config" => config(),
        _ => Vec::new(),
    }
}

fn le(n: usize) -> [u8; 2] {
    (n as u16).to_le_bytes()
}

/// A frame as `craft::frame` reads it.
pub(super) fn shape(repair: u8, frame: &[u8], grow: usize, pad: u8) -> Vec<u8> {
    let mut out = vec![repair];
    out.extend(le(frame.len()));
    out.extend(frame);
    if repair & GROW != 0 {
        out.extend(le(grow));
    }
    if repair & PAD != 0 {
        out.push(pad);
    }
    out
}

fn ipv4(protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut f = vec![0; 12];
    f.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
    f.extend([10, 244, 1, 2, 10, 244, 2, 2]);
    f.extend(l4);
    f
}

fn ipv6(next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0; 12];
    f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, next, hops]);
    f.extend(pod(1, 2).ip6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    f.extend(pod(2, 2).ip6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    f.extend(payload);
    f
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut t = vec![
        0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0,
    ];
    t.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    t
}

fn udp(src: u16, dst: u16) -> Vec<u8> {
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

const PING: [u8; 8] = [8, 0, 0, 0, 0, 1, 0, 1];
const PING6: [u8; 8] = [128, 0, 0, 0, 0, 1, 0, 1];

/// Frames of all kinds: name, bytes, and payload to grow by.
pub(super) fn kinds() -> Vec<(&'static str, Vec<u8>, usize)> {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let mut fragment = ipv4(17, &udp(5000, 53));
    fragment[20] = 0x20;
    let mut later = ipv4(17, &[7; 16]);
    later[21] = 9;
    let mut with_options = ipv4(6, &[&[1; 4][..], &tcp(0x18)].concat());
    with_options[14] = 0x46;
    let long = std::iter::repeat_n(options(60), 12)
        .flatten()
        .collect::<Vec<u8>>();
    let mut last_hop = ipv4(17, &udp(5000, 53));
    last_hop[22] = 1;
    let mut marked = ipv4(6, &tcp(0x10));
    marked[15] = 0x03;
    let mut vlan = ipv4(17, &udp(5000, 53));
    vlan.splice(12..12, [0x81, 0, 0, 5]);
    vec![
        ("tcp4", ipv4(6, &tcp(0x18)), 100),
        ("tcp4-bulk", ipv4(6, &tcp(0x18)), 20_000),
        ("tcp4-syn", ipv4(6, &tcp(0x02)), 0),
        ("tcp4-odd", ipv4(6, &tcp(0x10)), 3001),
        ("tcp6-bulk", ipv6(6, 64, &tcp(0x10)), 20_000),
        ("tcp6-fin", ipv6(6, 64, &tcp(0x11)), 10),
        ("udp4", ipv4(17, &udp(5000, 53)), 100),
        ("udp4-bulk", ipv4(17, &udp(5000, 53)), 9000),
        ("udp6-bulk", ipv6(17, 64, &udp(5000, 53)), 9000),
        ("udp4-dhcp", ipv4(17, &udp(68, 67)), 0),
        ("ping4", ipv4(1, &PING), 0),
        ("ping6", ipv6(58, 64, &PING6), 0),
        ("redirect4", ipv4(1, &[5, 1, 0, 0, 10, 244, 1, 9]), 28),
        ("advert6", ipv6(58, 255, &[134, 0, 0, 0, 64, 0, 0, 30]), 8),
        ("mld6", ipv6(58, 1, &[143, 0, 0, 0, 0, 0, 0, 0]), 0),
        ("igmp4", ipv4(2, &[0x16, 0, 0, 0, 239, 1, 1, 1]), 0),
        ("fragment4", fragment, 64),
        ("later4", later, 64),
        ("options4", with_options, 2000),
        (
            "options6",
            ipv6(60, 64, &[&options(17)[..], &udp(5000, 53)].concat()),
            50,
        ),
        (
            "fragment6",
            ipv6(44, 64, &[&[17, 0, 0, 1, 0, 0, 0, 1][..], &udp(5000, 53)].concat()),
            40,
        ),
        ("later6", ipv6(44, 64, &[17, 0, 0, 9, 0, 0, 0, 1]), 40),
        (
            "atomic6",
            ipv6(44, 64, &[&[17, 0, 0, 0, 0, 0, 0, 1][..], &udp(5000, 53)].concat()),
            4,
        ),
        (
            "auth6",
            ipv6(
                51,
                64,
                &[&[17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..], &udp(5, 53)].concat(),
            ),
            4,
        ),
        ("chain6", ipv6(60, 64, &long), 0),
        ("last-hop4", last_hop, 20),
        ("last-hop6", ipv6(17, 1, &udp(5000, 53)), 20),
        ("marked4", marked, 500),
        (
            "sctp4",
            ipv4(132, &[0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0]),
            30,
        ),
        ("gre4", ipv4(47, &[0x80, 0, 8, 0, 0, 0, 0, 0, 0x45, 0]), 40),
        ("vlan", vlan, 0),
    ]
}

/// Frames with the source of pod 3 of node `node`, which their senders must not use.
fn spoofed(node: u8) -> [(&'static str, Vec<u8>); 2] {
    let (mut four, mut six) = (ipv4(17, &udp(5000, 53)), ipv6(17, 64, &udp(5000, 53)));
    four[26..30].copy_from_slice(&[10, 244, node, 3]);
    six[22..38].copy_from_slice(&pod(node, 3).ip6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    [("spoofed4", four), ("spoofed6", six)]
}

/// A pod's frame: to whom, and how the virtio-net header is made.
fn from_pod(port: u8, to: u8, frame: &[u8], grow: usize, vnet: &[u8]) -> Vec<u8> {
    let mut out = vec![port, to];
    out.extend(shape(WHOLE | GROW, frame, grow, 0));
    out.extend(vnet);
    out
}

fn pods() -> Vec<Seed> {
    // To pod 2 of peer 2 through the gateway, to pod 4 (a plain TAP) by its MAC, and to pod 3 through the gateway;
    // super-frames of 1370 bytes a segment, which fit the tunnel with all headers.
    let seed = |(name, frame, grow): (&'static str, Vec<u8>, usize)| {
        let mut out = ORDINARY.to_vec();
        for to in [0x22, 0x94, 0x13] {
            out.extend(from_pod(0, to, &frame, grow, &[2, 0x5a, 5]));
        }
        (name, out)
    };
    let mut all: Vec<Seed> = kinds().into_iter().map(seed).collect();
    let mut lying = Vec::new();
    for claim in [
        // Flags, kind, hdr_len, gso_size, csum_start, csum_offset.
        [1, 0, 0, 0, 0, 0, 34, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 54, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0],
        [1, 4, 54, 0, 200, 0, 34, 0, 16, 0],
        [0, 5, 54, 0, 200, 0, 34, 0, 6, 0],
        [1, 1, 0xff, 0xff, 0xff, 0xff, 34, 0, 16, 0],
        [1, 3, 54, 0, 200, 0, 34, 0, 6, 0],
        [1, 0x85, 54, 0, 200, 0, 34, 0, 6, 0],
    ] {
        lying.push([&[1][..], &claim].concat());
    }
    for (name, frame) in [
        ("lying4", ipv4(17, &udp(5000, 53))),
        ("lying6", ipv6(6, 64, &tcp(0x18))),
    ] {
        let mut out = ORDINARY.to_vec();
        for claim in &lying {
            for to in [0x22, 0x93] {
                out.extend(from_pod(0, to, &frame, 900, claim));
            }
        }
        all.push((name, out));
    }
    for (name, frame) in spoofed(1) {
        let mut out = ORDINARY.to_vec();
        for to in [0x22, 0x94, 0x13] {
            out.extend([0, to]);
            out.extend(shape(WHOLE & !SOURCE, &frame, 0, 0));
            out.push(0);
        }
        all.push((name, out));
    }
    // More than one send takes, and more header blocks than the arena has room for.
    for (name, size) in [("many", [0x46, 5]), ("tiny", [20, 0])] {
        let mut out = ORDINARY.to_vec();
        for frame in [ipv4(6, &tcp(0x18)), ipv6(6, 64, &tcp(0x10))] {
            out.extend(from_pod(0, 0x22, &frame, 64_000, &[2, size[0], size[1]]));
        }
        all.push((name, out));
    }
    // Through underlays of all sizes, over both families, from every kind of port.
    for (name, settings) in [
        ("jumbo", [0, 1, 0]),
        ("largest", [0, 2, 0]),
        ("small", [0, 3, 1]),
        ("smallest", [0x1e, 4, 2]),
        ("six-only", [0x80, 2, 3]),
        ("four-only", [0x4a, 0, 0]),
    ] {
        let mut out = settings.to_vec();
        for port in 0..4 {
            for to in [0x22, 0x32, 0x42, 0x52, 0x92 + port] {
                out.extend(from_pod(port, to, &ipv4(6, &tcp(0x18)), 65_450, &[2, 0x99, 0xff]));
                out.extend(from_pod(port, to, &ipv6(17, 64, &udp(1, 2)), 9000, &[2, 0x5a, 5]));
            }
        }
        all.push((name, out));
    }
    all
}

/// A message of the underlay: from peer 2 to our pod `to`.
fn from_peer(to: u8, segment: usize, frame: &[u8], mss: usize) -> Vec<u8> {
    let mut out = vec![0, to, 0];
    out.extend(le(segment));
    out.extend(frame);
    out.extend(le(mss));
    out.push(0);
    out
}

fn underlay() -> Vec<Seed> {
    let seed = |(name, frame, grow): (&'static str, Vec<u8>, usize)| {
        let mut out = ORDINARY.to_vec();
        // To pods 2 and 4, and to the VTEP; as wire frames, and as one super-frame.
        for (to, segment, mss) in [(2, 1, 1398), (4, 1, 1000), (0, 0, 0), (3, 0, 0)] {
            out.push(0);
            out.extend(from_peer(to, segment, &shape(WHOLE | GROW, &frame, grow, 0), mss));
        }
        (name, out)
    };
    let mut all: Vec<Seed> = kinds().into_iter().map(seed).collect();
    let inner = ipv4(17, &udp(5000, 53));
    let one = vxlan::emit(1.try_into().expect("24 bits"));
    for (name, head) in [
        ("vni", [8, 0, 0, 0, 0, 0, 2, 0]),
        ("no-vni", [0, 0, 0, 0, 0, 0, 1, 0]),
        ("reserved", [8, 0, 1, 0, 0, 0, 1, 1]),
        ("remcsum", [0x28, 0, 0, 0, 0, 0, 1, 0x81]),
        ("bare", one),
    ] {
        let datagram = [&head[..], &inner].concat();
        let mut out = ORDINARY.to_vec();
        out.push(0);
        out.extend(from_peer(2, 0, &shape(BARE, &datagram, 0, 0), 0));
        all.push((name, out));
    }
    for (name, len) in [("empty", 0), ("short", 7), ("header-only", 8), ("no-ip", 22)] {
        let mut out = ORDINARY.to_vec();
        out.push(0);
        let datagram = [&one[..], &inner].concat();
        out.extend(from_peer(2, 0, &shape(BARE, &datagram[..len], 0, 0), 0));
        all.push((name, out));
    }
    // Of peer 3, sent by peer 2.
    for (name, frame) in spoofed(3) {
        let mut out = ORDINARY.to_vec();
        out.push(0);
        out.extend(from_peer(2, 0, &shape(WHOLE & !SOURCE, &frame, 0, 0), 0));
        all.push((name, out));
    }
    // A batch of several trains and a padded frame among them; one damaged, one from a stranger.
    let mut out = ORDINARY.to_vec();
    out.push(5);
    for to in [2, 3, 2] {
        out.extend(from_peer(
            to,
            1,
            &shape(WHOLE | GROW, &ipv4(6, &tcp(0x10)), 5000, 0),
            700,
        ));
    }
    out.extend(from_peer(
        2,
        1,
        &shape(WHOLE | PAD, &ipv6(6, 64, &tcp(0x10)), 0, 6),
        700,
    ));
    let mut damaged = from_peer(2, 1, &shape(WHOLE | GROW, &ipv4(6, &tcp(0x10)), 3000, 0), 500);
    damaged.pop();
    damaged.extend([0x55, 0x20, 3]);
    out.extend(damaged);
    let mut stranger = from_peer(2, 1, &shape(WHOLE | GROW, &ipv4(17, &udp(1, 2)), 3000, 0), 500);
    stranger[0] = 1 << 3;
    out.extend(stranger);
    all.push(("batch", out));
    all
}

fn offload() -> Vec<Seed> {
    let mut all = Vec::new();
    let base = |kind: u8, words: u8, flags: u8, payload: usize, mss: usize| {
        let mut out = vec![kind, words, flags, 0, 64, 0xff, 0xff, 0xff, 0xff];
        out.extend(le(payload));
        out.extend(le(mss));
        out
    };
    for (name, kind, words, flags, payload, mss) in [
        ("tcp4", 4, 3, 0x18, 60_000, 1398),
        ("tcp4-plain-id", 0, 0, 0x10, 20_000, 1000),
        ("tcp6", 1, 10, 0x10, 60_000, 1378),
        ("tcp4-fin", 4, 3, 0x19, 5000, 1398),
        ("tcp4-cwr", 4, 3, 0x90, 5000, 1398),
        ("tcp4-syn", 4, 3, 0x02, 5000, 1398),
        ("tcp4-urg", 4, 3, 0x30, 5000, 1398),
        ("tcp4-one", 4, 3, 0x18, 100, 1398),
        ("tcp4-many", 12, 0, 0x10, 2000, 9),
        ("tcp4-128", 12, 0, 0x10, 12_799, 100),
        ("tcp4-129", 12, 0, 0x10, 12_800, 100),
        ("udp4", 6, 0, 0, 9000, 1000),
        ("udp6", 3, 0, 0, 9000, 1200),
        ("udp4-short-last", 2, 0, 0, 9001, 1000),
        ("udp4-too-many", 14, 0, 0, 2000, 9),
        ("longest4", 4, 0, 0x10, 65_535, 65_000),
        ("longest6", 3, 0, 0, 65_535, 1000),
    ] {
        all.push((name, base(kind, words, flags, payload, mss)));
    }
    // In order; every second of another flow; repeated and reordered; damaged, repaired, padded, unfinished.
    let picks: [(&'static str, Vec<[u8; 2]>); 4] = [
        ("in-order", (0..8).map(|i| [i * 2, 0]).collect()),
        ("two-flows", (0..12).map(|i| [i, 0]).collect()),
        ("reordered", [0, 4, 2, 2, 6, 8, 10, 0].map(|i| [i, 0]).to_vec()),
        ("two-senders", (0..8).map(|i| [i * 2, i & 1]).collect()),
    ];
    for (name, picks) in picks {
        let mut out = base(4, 3, 0x10, 8000, 900);
        out.extend(picks.concat());
        all.push((name, out));
    }
    for (name, sender) in [
        ("damaged", vec![2, 60, 0, 1]),
        ("changed-and-right", vec![2 | 8 | 16, 47, 0, 1]),
        ("cut", vec![4 | 8 | 16, 30]),
        ("padded", vec![64]),
        ("unfinished", vec![32]),
        ("other-ttl", vec![2 | 8, 22, 0, 3]),
        ("a-flag", vec![2 | 16, 47, 0, 0x08]),
    ] {
        let mut out = base(4, 3, 0x10, 8000, 900);
        out.extend([0, 0, 2, 0, 4]);
        out.extend(sender);
        out.extend([6, 0, 8, 0]);
        all.push((name, out));
    }
    all
}

fn node() -> Vec<Seed> {
    let bulk = from_pod(0, 0x22, &ipv4(6, &tcp(0x18)), 20_000, &[2, 0x5a, 5]);
    let local = from_pod(0, 0x93, &ipv6(17, 64, &udp(1, 2)), 4000, &[2, 0x5a, 5]);
    let train = [
        &[0][..],
        &from_peer(2, 1, &shape(WHOLE | GROW, &ipv4(6, &tcp(0x18)), 9000, 0), 1398),
    ]
    .concat();
    let ping = from_pod(0, 0x11, &ipv4(1, &PING), 0, &[0]);
    let send = |frame: &[u8]| [&[0], frame].concat();
    let receive = |batch: &[u8]| [&[3], batch].concat();
    let story = |steps: &[Vec<u8>]| [&ORDINARY[..], &steps.concat()].concat();
    let end = || vec![7];
    let small = from_pod(0, 0x22, &ipv4(17, &udp(1, 2)), 20, &[2, 0, 0]);
    let burst = |times: u8, frame: &[u8]| [&[13, 2, times], frame].concat();
    // Acknowledgements of more and more: the newest of a batch may stand for all.
    let acks: Vec<Vec<u8>> = (0..20)
        .map(|n| {
            let mut ack = tcp(0x10);
            (ack[11], ack[27]) = (10 + n, 1 + n / 2);
            send(&from_pod(0, 0x22, &ipv4(6, &ack), 0, &[2, 0, 0]))
        })
        .collect();
    let acks = [
        &acks[..],
        &[end()],
        &acks[3..9],
        &[vec![5, 0, 0], end()],
        &acks[9..],
    ]
    .concat();
    let one_by_one = [
        &[1, 0, 0][..],
        &burst(130, &small),
        &end(),
        &[5, 0, 0],
        &burst(130, &small),
    ]
    .concat();
    vec![
        (
            "both-ways",
            story(&[
                send(&bulk),
                receive(&train),
                send(&ping),
                end(),
                send(&local),
                end(),
            ]),
        ),
        (
            "blocked",
            story(&[
                vec![5, 0, 0],
                send(&bulk),
                end(),
                receive(&train),
                send(&bulk),
                vec![6],
                end(),
            ]),
        ),
        (
            "half-sent",
            story(&[
                vec![5, 1, 0],
                send(&bulk),
                send(&bulk),
                end(),
                vec![5, 1, 0, 6],
                vec![6],
            ]),
        ),
        (
            "too-big",
            story(&[
                vec![5, 0, 2, 0x78, 5],
                send(&bulk),
                end(),
                send(&bulk),
                end(),
                end(),
            ]),
        ),
        (
            "no-offload",
            story(&[
                vec![5, 0, 3],
                vec![5, 0, 3],
                send(&bulk),
                end(),
                send(&bulk),
                end(),
            ]),
        ),
        ("refused", story(&[vec![5, 0, 4], send(&bulk), end()])),
        (
            "pod-goes",
            story(&[
                send(&bulk),
                vec![10, 0],
                end(),
                receive(&train),
                end(),
                vec![9, 0],
                receive(&train),
            ]),
        ),
        (
            "blocked-pod-goes",
            story(&[
                vec![5, 0, 0],
                send(&bulk),
                vec![10, 0],
                end(),
                vec![9, 6],
                vec![6],
                end(),
            ]),
        ),
        (
            "peer-goes",
            story(&[
                send(&bulk),
                vec![12, 0],
                receive(&train),
                send(&bulk),
                end(),
                vec![11, 0, 1],
            ]),
        ),
        (
            "blocked-peer-moves",
            story(&[
                vec![5, 0, 0],
                send(&bulk),
                vec![11, 0, 7],
                end(),
                vec![6],
                send(&bulk),
            ]),
        ),
        (
            "probes",
            story(&[
                vec![13, 0],
                end(),
                vec![8, 0xe8, 3],
                vec![13, 0],
                end(),
                vec![8, 0xff, 0xff],
            ]),
        ),
        (
            "tap-refuses",
            story(&[vec![13, 1], receive(&train), send(&local), end()]),
        ),
        (
            "burst",
            story(&[burst(130, &small), end(), burst(20, &bulk), end()]),
        ),
        (
            "burst-blocked",
            story(&[vec![5, 0, 0], burst(3, &bulk), end(), burst(130, &small), vec![6]]),
        ),
        ("burst-one-by-one", one_by_one),
        ("acknowledgements", story(&acks)),
        (
            "questions",
            story(&[burst(139, &ping), end(), burst(139, &ping), end()]),
        ),
        (
            "odd-pods",
            story(&[
                vec![9, 4],
                vec![9, 5],
                vec![9, 6],
                send(&local),
                receive(&train),
                end(),
            ]),
        ),
    ]
}

fn egress() -> Vec<Seed> {
    let tcp = |flags: u8, seq: u8, payload: &[u8]| {
        let mut t = vec![
            0x10, 0, 0, 80, 0, 0, 0, seq, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0,
        ];
        t.extend(payload);
        t
    };
    let udp = |payload: &[u8]| {
        let mut u = vec![0x10, 0, 0, 53, 0, 8 + payload.len() as u8, 0, 0];
        u.extend(payload);
        u
    };
    let send = |f: &[u8]| [&[0, 0, 0][..], &shape(WHOLE, f, 0, 0)].concat();
    let (connect, ready, heard) = (
        vec![5, 0],
        vec![6, 3, 200, 0, 3, 200, 0, 3],
        vec![7, 0, 53, 0, 20, 0, 200, 0, 0, 9],
    );
    let mut all = Vec::new();
    for (name, six) in [("tcp4", false), ("tcp6", true)] {
        let f = |t: &[u8]| if six { ipv6(6, 64, t) } else { ipv4(6, t) };
        let steps = [
            send(&f(&tcp(2, 1, b""))),
            connect.clone(),
            ready.clone(),
            send(&f(&tcp(16, 2, b"question"))),
            ready.clone(),
            send(&f(&tcp(17, 10, b""))),
            vec![6, 0, 0, 0, 0, 0, 0, 3],
            vec![9, 0xff, 0xff],
        ];
        all.push((name, steps.concat()));
    }
    let steps = [send(&ipv4(6, &tcp(2, 1, b""))), vec![5, 201], ready.clone()];
    all.push(("refused", steps.concat()));
    for (name, six) in [("udp4", false), ("udp6", true)] {
        let u = udp(b"question");
        let f = if six { ipv6(17, 64, &u) } else { ipv4(17, &u) };
        all.push((name, [send(&f), heard.clone(), vec![9, 0xff, 0xff]].concat()));
    }
    let echo = [8, 0, 0, 0, 1, 2, 0, 1, 7, 7];
    all.push(("echo", [send(&ipv4(1, &echo)), heard].concat()));
    all.push(("accepted", [vec![11, 0, 0, 0, 0, 0], ready].concat()));
    for (name, frame, _) in kinds() {
        all.push((name, send(&frame)));
    }
    all
}

fn neighbour() -> Vec<Seed> {
    let arp = |op: u8, sender: [u8; 4], target: [u8; 4]| {
        let mut f = vec![0xff; 6];
        f.extend(pod(1, 2).mac.0);
        f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
        f.extend(pod(1, 2).mac.0);
        f.extend(sender);
        f.extend([0; 6]);
        f.extend(target);
        f
    };
    let own = [10, 244, 1, 2];
    let one = |repair: u8, frame: &[u8]| [&[0, 200][..], &shape(repair, frame, 0, 0)].concat();
    let mut all = vec![
        ("arp-request", one(MACS, &arp(1, own, [10, 244, 1, 3]))),
        ("arp-gateway", one(MACS, &arp(1, own, [10, 244, 1, 1]))),
        ("arp-probe", one(MACS, &arp(1, [0; 4], [10, 244, 1, 3]))),
        ("arp-own", one(MACS, &arp(1, own, own))),
        ("arp-nobody", one(MACS, &arp(1, own, [10, 244, 1, 99]))),
        ("arp-reply", one(MACS, &arp(2, own, [10, 244, 1, 3]))),
        ("arp-spoofed", one(MACS, &arp(2, [10, 244, 1, 3], own))),
    ];
    let message = |kind: u8, target: u8, options: &[u8]| {
        let mut m = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        if kind != 133 {
            let ip = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, target.into());
            m.extend(ip.octets());
        }
        m.extend(options);
        m
    };
    let option = |kind: u8| [&[kind, 1][..], &pod(1, 2).mac.0].concat();
    let whole = MACS | SOURCE | DESTINATION | LENGTHS | SUM;
    for (name, m) in [
        ("nd-solicitation", message(135, 3, &option(1))),
        ("nd-no-option", message(135, 3, &[])),
        ("nd-nobody", message(135, 99, &option(1))),
        ("nd-own", message(135, 2, &option(1))),
        ("nd-advertisement", message(136, 2, &option(2))),
        ("nd-spoofed", message(136, 3, &option(2))),
        ("nd-router-solicitation", message(133, 0, &option(1))),
        ("nd-router", message(134, 0, &option(1))),
        ("nd-redirect", message(137, 3, &option(2))),
        (
            "nd-two-options",
            message(135, 3, &[option(14), option(1)].concat()),
        ),
        ("nd-empty-option", message(135, 3, &[1, 0, 0, 0, 0, 0, 0, 0])),
    ] {
        all.push((name, one(whole, &ipv6(58, 255, &m))));
        if name == "nd-solicitation" {
            let behind = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &m].concat();
            all.push(("nd-behind-options", one(whole, &ipv6(60, 255, &behind))));
            // Duplicate address detection: from nobody.
            let mut f = ipv6(58, 255, &message(135, 3, &[]));
            f[22..38].fill(0);
            all.push(("nd-detection", one(whole & !SOURCE, &f)));
        }
    }
    for (name, frame) in spoofed(1) {
        all.push((name, one(whole & !SOURCE, &frame)));
    }
    for (name, frame, grow) in kinds() {
        all.push((
            name,
            [&[0, 0][..], &shape(whole | GROW, &frame, grow.min(100), 0)].concat(),
        ));
    }
    all
}

fn store() -> Vec<Seed> {
    let of = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    vec![
        ("key", of(0, "/coreos.com/network/subnets/10.61.7.0-24")),
        (
            "key-dual",
            of(0, "/coreos.com/network/subnets/10.61.7.0-24&fd61:0:0:7::-64"),
        ),
        ("key-host-bits", of(0, "10.61.7.9-024&fd61::1-64")),
        (
            "value",
            of(
                1,
                r#"{"PublicIP":"198.18.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#,
            ),
        ),
        (
            "value-dual",
            of(
                1,
                r#"{"PublicIP":"198.18.0.11","PublicIPv6":"2001:db8:1::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e-5a-91-2c-07-d3"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e5a.912c.07d4"},"Podwire":{"name":"n1","id":"6f1c","version":"0.1.0","wire":["remcsum"]}}"#,
            ),
        ),
        (
            "value-udp",
            of(
                1,
                r#"{"publicip":"::ffff:198.18.0.11","PublicIPv6":null,"new":[1,-2,3.5,{}]}"#,
            ),
        ),
        (
            "network",
            of(
                2,
                r#"{"Network":"10.61.0.0/16","SubnetLen":24,"SubnetMin":"10.61.7.0","SubnetMax":"10.61.9.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472,"MTU":1500}}"#,
            ),
        ),
        (
            "network-dual",
            of(
                2,
                r#"{"EnableIPv4":true,"EnableIPv6":true,"network":"10.61.7.0/8","IPv6Network":"fd61::/8","IPv6SubnetLen":126,"IPv6SubnetMin":"fd61::4","IPv6SubnetMax":"fd61::8","Backend":{"Type":"VXLAN","Learning":true,"GBP":false,"DirectRouting":false}}"#,
            ),
        ),
        ("network-udp", of(2, r#"{"Network":"10.61.0.0/16"}"#)),
        (
            "env",
            of(
                3,
                "FLANNEL_NETWORK=10.61.0.0/16\nFLANNEL_SUBNET=10.61.7.1/24\nFLANNEL_IPV6_NETWORK=fd61::/48\n\
                 FLANNEL_IPV6_SUBNET=fd61:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            ),
        ),
        (
            "env-shell",
            of(
                3,
                "# of flannel\nexport FLANNEL_NETWORK=\"10.1.0.0/16,10.2.0.0/16\"\nFLANNEL_MTU='1450' # less\n",
            ),
        ),
    ]
}

fn config() -> Vec<Seed> {
    let file = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    vec![
        ("node-least", file(0, "subnet = \"10.244.1.0/24\"\n")),
        (
            "node-all",
            file(
                0,
                "node = \"n1\"\nsubnet = \"10.244.1.0/24\"\nsubnet6 = \"fd00:10:244:1::/64\"\npeers = \"peers.toml\"\n\
                 socket = \"/run/podwire/n1.sock\"\nlog = \"debug\"\n[overlay]\nbind = [\"0.0.0.0\", \"::\"]\n\
                 port = \"auto\"\nvni = 7\nsource_ports = 1\nunderlay_mtu = 1400\npod_mtu = 1300\n\
                 vtep_mac = \"02:00:00:00:00:01\"\nvtep_mac6 = \"02:00:00:00:00:02\"\ndscp = 46\n[offload]\n\
                 tap = \"off\"\nudp_gso = \"off\"\nudp_gro = \"on\"\nchecksum = \"off\"\n[limits]\n\
                 broadcast_per_second = 5\nreceive_buffer = 65536\nsend_buffer = 131072\n",
            ),
        ),
        (
            "node-mistakes",
            file(
                0,
                "subnett = 3\n[overlay]\nprot = 1\nbind = \"127.0.0.1\"\ndscp = \"inherit\"\n",
            ),
        ),
        (
            "node-numbers",
            file(
                0,
                "subnet = \"10.0.0.0/8\"\noverlay.port = 0x1f90\noverlay.vni = 0b11\n",
            ),
        ),
        (
            "peers",
            file(
                1,
                "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.2.0/24\"\n\n\
                 [[peer]]\nname = \"n3\"\nunderlay = \"[2001:db8::3]:8473\"\nsubnet6 = \"fd00:10:244:3::/64\"\nmtu = 1400\n",
            ),
        ),
        (
            "peers-both",
            file(
                1,
                "[[peer]]\nname = \"n1\"\nunderlay = \"192.0.2.1\"\nsubnet = \"10.244.1.0/24\"\n[[peer]]\nname = \"n2\"\n\
                 underlay = \"192.0.2.2:8473\"\nunderlay6 = \"2001:db8::2\"\nsubnet = \"10.244.2.0/24\"\n\
                 subnet6 = \"fd00:10:244:2::/64\"\nvtep_mac = \"0e:57:0a:f4:02:00\"\nvtep_mac6 = \"0e:57:0a:f4:02:01\"\n",
            ),
        ),
        ("peers-none", file(1, "peer = []\n")),
        (
            "peers-twice",
            file(
                1,
                "peer = [{name = \"a\", underlay = \"1.1.1.1\", subnet = \"10.0.0.0/9\"}, {name = \"a\"}]\n",
            ),
        ),
    ]
}
