//! The way to a peer (rows 1 to 5, 9 and 10 of the fault table): peers that die or vanish, ways that lead in one
//! direction only, packets that are too large without anybody saying so, lies about that, lines that are slow, and
//! links that come and go. `tests/sim/ways.rs` has the same by a clock of its own, for hours.

use super::frames;
use super::impair::Impairment;
use super::netns::Netns;
use super::node::Node;
use super::pod::{FAMILIES, Family, Place, Pod};
use super::raw::Raw;
use super::traffic::{MB, at_once, connect, stream};
use super::world::{Case, World, eventually};
use podwire::api::{PeerInfo, PeerReach};
use podwire::model::DropReason;
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_dead_peer_is_told_of", dies).nodes(3),
    Case::new("a_vanished_peer_is_told_of", vanishes).nodes(3),
    Case::new("a_one_way_partition_is_known_at_both_ends", one_way).nodes(3),
    Case::new("large_packets_vanish", black_hole),
    Case::new("large_packets_vanish_over_ipv6", black_hole).underlay6(),
    Case::new("large_packets_vanish_in_the_midst_of_it", black_hole_later),
    Case::new("an_outsider_lies_about_the_path", forged),
    Case::new("an_outsider_lies_about_the_path_over_ipv6", forged6).underlay6(),
    Case::new("a_slow_line_stays_usable", squeeze),
    Case::new("a_link_flaps", flaps).nodes(3),
];

/// Three probe intervals: the longest a silence may go unnoticed.
const INTERVALS: Duration = Duration::from_secs(30);

/// An outer packet of 1400 bytes still passes, on Ethernet.
const HOLE: Impairment = Impairment {
    longest: Some(14 + 1400),
    ..PERFECT
};

const CUT: Impairment = Impairment { cut: true, ..PERFECT };

pub const PERFECT: Impairment = Impairment {
    loss: 0,
    duplicate: 0,
    reorder: 0,
    corrupt: 0,
    corrupt_inside: 0,
    delay: Duration::ZERO,
    rate: None,
    longest: None,
    cut: false,
};

/// What a node tells of a peer.
pub fn told(node: &Node, peer: usize) -> PeerInfo {
    let name = format!("n{peer}");
    let mut peers = node.status().peers.into_iter();
    peers.find(|p| p.name == name).expect("it is known")
}

/// Send datagrams from one pod to another, a hundred a second, while `work` lasts. Nobody listens.
pub fn meanwhile<T>(ways: &[(&dyn Place, &dyn Place)], work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for (from, to) in ways {
            let stop = &stop;
            s.spawn(move || {
                let mouth = from.udp(Family::V4, 0);
                while !stop.load(Ordering::Relaxed) {
                    let _ = mouth.send_to(&[7; 100], (to.ip(Family::V4), 9));
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        // Also when it panics the others must end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Datagrams from `a` to the pod at `b` are dropped for its node's silence, and `a` is told.
fn is_told(node: &Node, a: &Pod, b: &dyn Place, peer: usize) {
    let info = told(node, peer);
    assert!(
        info.state == PeerReach::Silent && info.state_ms.is_some(),
        "{info:?}"
    );
    let problems = node.status().problems;
    let named = format!("peer n{peer} is silent");
    assert!(problems.iter().any(|p| p.starts_with(&named)), "{problems:?}");
    for (family, said) in [
        (Family::V4, "Destination Host Unreachable"),
        (Family::V6, "Address unreachable"),
    ] {
        let before = node.drops(DropReason::PeerSilent);
        // One or two of them try whether it is silent indeed.
        let ping = a.ping(b.ip(family), 7, &["-W", "0.2"]);
        ping.none();
        assert!(ping.text.contains(said), "{}", ping.text);
        let after = node.drops(DropReason::PeerSilent);
        assert!(after >= before + 5, "{before} to {after}");
    }
}

/// Row 1: the process is killed, and its pods' interfaces with it.
fn dies(world: &mut World) {
    let hosts = &world.underlay.hosts;
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for to in [b, c] {
        a.reaches(to.ip4, 2, &[]);
    }
    world.nodes[1].end(Signal::KILL);
    let (n1, begun) = (&world.nodes[0], Instant::now());
    meanwhile(&[(a, b)], || {
        eventually("it is silent", INTERVALS, || {
            told(n1, 2).state == PeerReach::Silent
        });
    });
    println!("silent after {:?}", begun.elapsed());
    is_told(n1, a, b, 2);
    for family in FAMILIES {
        a.reaches(c.ip(family), 10, &[]);
    }
    // A probe a second goes there, and nothing else.
    let before = told(n1, 2).datagrams_to_peer;
    meanwhile(&[(a, b)], || std::thread::sleep(Duration::from_secs(2)));
    let sent = told(n1, 2).datagrams_to_peer - before;
    assert!(sent <= 6, "{sent} datagrams to a silent peer in 2 s");

    world.nodes[1].restart(&hosts[1].netns);
    let again = Pod::attach(&world.nodes[1], "again");
    let (n1, a) = (&world.nodes[0], &world.pods[0][0]);
    // It is enough that it says something.
    again.reaches(a.ip4, 1, &[]);
    assert_eq!(told(n1, 2).state, PeerReach::Up);
    for family in FAMILIES {
        a.reaches(again.ip(family), 3, &[]);
    }
    world.pods[1] = vec![again];
}

/// Row 2: nothing comes from it any more, and nobody says so.
fn vanishes(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for (from, to) in [(a, b), (a, c), (c, b)] {
        from.reaches(to.ip4, 2, &[]);
    }
    let (n1, relay) = (&world.nodes[0], &world.underlay.relay);
    relay.isolate(1);
    meanwhile(&[(a, b), (c, b)], || {
        eventually("it is silent", INTERVALS, || {
            told(n1, 2).state == PeerReach::Silent && told(&world.nodes[2], 2).state == PeerReach::Silent
        });
    });
    is_told(n1, a, b, 2);
    stream(c, a, FAMILIES[0], MB);
    assert_eq!(told(n1, 3).state, PeerReach::Up);
    relay.impair_all(PERFECT);
    // Its pods are reached again as soon as a probe was answered.
    let begun = Instant::now();
    meanwhile(&[(a, b)], || {
        eventually("it is back", Duration::from_secs(3), || {
            told(n1, 2).state == PeerReach::Up
        });
    });
    assert!(begun.elapsed() < Duration::from_secs(3));
    stream(a, b, FAMILIES[0], MB);
    // A frame or two of the other node's may still be dropped, until its probe is answered.
    meanwhile(&[(c, b)], || {
        eventually("it is back there too", Duration::from_secs(3), || {
            told(&world.nodes[2], 2).state == PeerReach::Up
        });
    });
    c.reaches(b.ip6, 3, &[]);
    let log = n1.log();
    assert_eq!(log.matches("n2 is silent").count(), 1, "{log}");
}

/// Row 3: n2 hears n1, n1 does not hear n2.
fn one_way(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for (from, to) in [(a, b), (a, c), (b, c)] {
        from.reaches(to.ip4, 2, &[]);
    }
    let [n1, n2, _] = &world.nodes[..] else {
        unreachable!("three nodes");
    };
    let relay = &world.underlay.relay;
    relay.impair(1, 0, CUT);
    meanwhile(&[(a, b), (b, a)], || {
        eventually("both know", INTERVALS, || {
            told(n1, 2).state == PeerReach::Silent && told(n2, 1).deaf_ms.is_some()
        });
        // It stays so, and no other way is concerned.
        let since = told(n1, 2).state_ms;
        for _ in 0..10 {
            let (here, there) = (told(n1, 2), told(n2, 1));
            assert!(
                here.state == PeerReach::Silent && here.state_ms >= since,
                "{here:?}"
            );
            assert!(
                there.state == PeerReach::Up && there.deaf_ms.is_some(),
                "{there:?}"
            );
            for (node, peer) in [(n1, 3), (n2, 3), (&world.nodes[2], 1)] {
                let other = told(node, peer);
                assert!(
                    other.state == PeerReach::Up && other.deaf_ms.is_none(),
                    "{other:?}"
                );
            }
            a.reaches(c.ip4, 5, &[]);
        }
        let problems = n2.status().problems;
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("peer n1 does not hear this node")),
            "{problems:?}"
        );
        relay.impair(1, 0, PERFECT);
        eventually("both hear again", Duration::from_secs(4), || {
            told(n1, 2).state == PeerReach::Up && told(n2, 1).deaf_ms.is_none()
        });
    });
    stream(a, b, FAMILIES[0], MB);
}

/// A conversation like that of TLS: small ones first, then flights larger than a packet, both ways.
fn handshake(from: &Pod, to: &Pod, family: Family) {
    let listener = to.listen(family);
    let at = listener.local_addr().expect("it is bound");
    let begun = Instant::now();
    std::thread::scope(|s| {
        s.spawn(|| {
            let (mut server, _) = listener.accept().expect("a connection");
            let mut buffer = [0; 6000];
            for (takes, gives) in [(517, 5000), (3000, 200), (100, 6000)] {
                server.read_exact(&mut buffer[..takes]).expect("it comes");
                server.write_all(&buffer[..gives]).expect("it goes");
            }
        });
        let mut client = connect(from, at).expect("a connection");
        let mut buffer = [0; 6000];
        for (gives, takes) in [(517, 5000), (3000, 200), (100, 6000)] {
            client.write_all(&buffer[..gives]).expect("it goes");
            client.read_exact(&mut buffer[..takes]).expect("it comes");
        }
    });
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    println!("a handshake over {family:?} took {took:?}");
}

/// Row 4: both nodes find out, and tell their pods.
fn black_hole(world: &mut World) {
    let (a, b) = world.pair();
    let relay = &world.underlay.relay;
    relay.impair_all(HOLE);
    let fits = if world.underlay6 { 1330 } else { 1350 };
    for family in FAMILIES {
        at_once(a, b, family);
        handshake(a, b, family);
        handshake(b, a, family);
    }
    for (node, peer) in [(0, 2), (1, 1)] {
        let mtu = told(&world.nodes[node], peer).pod_mtu.0;
        assert_eq!(mtu, fits);
    }
    // From now on nobody sends what is too large.
    let before = relay.counters().lost;
    for family in FAMILIES {
        let begun = Instant::now();
        stream(a, b, family, 4 * MB);
        stream(b, a, family, 4 * MB);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let headers = if family == Family::V4 { 28 } else { 48 };
        let full = (fits - headers).to_string();
        a.reaches(b.ip(family), 3, &["-M", "do", "-s", &full]);
        let over = (fits - headers + 1).to_string();
        let ping = a.ping(b.ip(family), 1, &["-M", "do", "-s", &over]);
        ping.none();
        let said = [
            format!("mtu={fits}"),
            format!("mtu = {fits}"),
            format!("mtu: {fits}"),
        ];
        assert!(said.iter().any(|s| ping.text.contains(s)), "{}", ping.text);
    }
    let lost = relay.counters().lost - before;
    // Neighbour reports apart, probes of the full size may be tried again meanwhile.
    assert!(lost < 20, "{lost} packets were too large");
    let status = world.nodes[0].status();
    let too_big = status.drops.get(DropReason::TooBig.label()).copied();
    assert!((1..200).contains(&too_big.unwrap_or(0)), "{:?}", status.drops);
    assert!(status.peers[0].gso && status.peers[0].state == PeerReach::Up);
}

/// The same under streams that are on their way.
fn black_hole_later(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        stream(a, b, family, MB);
    }
    let relay = &world.underlay.relay;
    std::thread::scope(|s| {
        for (from, to, family) in [(a, b, Family::V4), (b, a, Family::V6)] {
            s.spawn(move || {
                let took = stream(from, to, family, 16 * MB);
                println!("16 MB over {family:?} took {took:?}");
            });
        }
        std::thread::sleep(Duration::from_millis(20));
        relay.impair_all(HOLE);
    });
    for (node, peer) in [(0, 2), (1, 1)] {
        let info = told(&world.nodes[node], peer);
        assert_eq!((info.pod_mtu.0, info.state), (1350, PeerReach::Up));
    }
}

/// An outer packet, from its IP header on, of each flow that n1's host sends to the overlay's port.
fn outer_packets(host: &Netns, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let ear = Raw::on(host, "eth0");
    work();
    let mut packets: Vec<Vec<u8>> = Vec::new();
    ear.frames(|frame| {
        let packet = &frame[14..];
        // Where the ports are, and the last byte of the source.
        let (ports, source) = match packet.first().map(|b| b >> 4) {
            Some(4) if packet[9] == 17 => (20, 15),
            Some(6) if packet[6] == 17 => (40, 23),
            _ => return,
        };
        let port = u16::from_be_bytes([packet[ports + 2], packet[ports + 3]]);
        let new = packets
            .iter()
            .all(|p| p[ports..ports + 2] != packet[ports..ports + 2]);
        if port == 8472 && new && packet[source] == 1 {
            packets.push(packet.to_vec());
        }
    });
    packets
}

/// What the kernel of a host believes of the path to another.
fn believed(host: &Netns, to: IpAddr) -> String {
    host.ask("ip", &["route", "get", &to.to_string()])
}

/// Nothing of what is said about the path between n1 and n2 may be felt.
fn unimpressed(world: &World, lie: impl Fn(&[u8])) {
    let (a, b) = world.pair();
    let (near, far) = (&world.underlay.hosts[0], &world.underlay.hosts[1]);
    let mtu = if world.underlay6 { 1430 } else { 1450 };
    let packets = outer_packets(&near.netns, || {
        // Which of the node's sockets a stream takes is chance.
        for family in [FAMILIES; 8].concat() {
            stream(a, b, family, MB / 32);
        }
    });
    assert!(packets.len() >= 2, "{} flows", packets.len());
    let to: IpAddr = if world.underlay6 {
        far.ip6.into()
    } else {
        far.ip4.into()
    };
    for round in 0..3 {
        for packet in &packets {
            lie(packet);
        }
        eventually("the kernel believes it", Duration::from_secs(2), || {
            believed(&near.netns, to).contains("mtu")
        });
        for family in FAMILIES {
            let headers = if family == Family::V4 { 28 } else { 48 };
            let full = (mtu - headers).to_string();
            a.reaches(b.ip(family), 3, &["-M", "do", "-s", &full]);
            stream(a, b, family, MB);
        }
        let status = world.nodes[0].status();
        assert_eq!(status.peers[0].pod_mtu.0, mtu, "round {round}");
        assert_eq!(status.drops.get(DropReason::TooBig.label()), None);
    }
}

/// Row 5, over IPv4: fragmentation needed, for next to nothing.
fn forged(world: &mut World) {
    let stranger = world.underlay.hosts.last().expect("there is one");
    let raw = stranger.netns.within(|| {
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
        UdpSocket::from(raw.expect("a raw socket"))
    });
    let near = world.underlay.hosts[0].ip4;
    unimpressed(world, |packet| {
        let message = frames::icmp4(3, 4, [0, 0, 0, 68], &packet[..28]);
        raw.send_to(&message, (near, 0)).expect("it is sent");
    });
}

/// The same over IPv6: packet too big.
fn forged6(world: &mut World) {
    let stranger = world.underlay.hosts.last().expect("there is one");
    let raw = stranger.netns.within(|| {
        let raw = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6));
        UdpSocket::from(raw.expect("a raw socket"))
    });
    let near = world.underlay.hosts[0].ip6;
    unimpressed(world, |packet| {
        // The kernel computes the checksum.
        let message = [&[2, 0, 0, 0, 0, 0, 5, 0], packet].concat();
        raw.send_to(&message, (near, 0)).expect("it is sent");
    });
}

/// Row 9: 10 Mbit/s, and 200 ms to and fro.
fn squeeze(world: &mut World) {
    let (a, b) = world.pair();
    a.reaches(b.ip4, 2, &[]);
    let relay = &world.underlay.relay;
    relay.impair_all(Impairment {
        rate: Some(10_000_000 / 8),
        delay: Duration::from_millis(100),
        ..PERFECT
    });
    let before = world.nodes[0].memory();
    let ping = std::thread::scope(|s| {
        let bulk = s.spawn(|| stream(a, b, Family::V4, 3 * MB));
        let ping = a.ping(b.ip4, 40, &["-i", "0.1"]);
        let took = bulk.join().expect("it arrives");
        println!("3 MB took {took:?}");
        ping
    });
    let worst = ping.times.last().copied().unwrap_or(Duration::MAX);
    assert!(ping.answered >= 30, "{}", ping.text);
    assert!(worst < Duration::from_millis(500), "{worst:?}: {}", ping.text);
    let grown = world.nodes[0].memory().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    for (node, peer) in [(0, 2), (1, 1)] {
        let info = told(&world.nodes[node], peer);
        let mtu = info.pod_mtu.0;
        assert!(info.state == PeerReach::Up && mtu == 1450, "{info:?}");
        assert!(info.deaf_ms.is_none(), "{info:?}");
    }
    relay.impair_all(PERFECT);
}

/// Row 10: a second without, a second with.
fn flaps(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for to in [b, c] {
        a.reaches(to.ip4, 2, &[]);
    }
    let (relay, n1) = (&world.underlay.relay, &world.nodes[0]);
    let lines = world.nodes.iter().map(|n| n.log().lines().count()).sum::<usize>();
    meanwhile(&[(a, b), (b, a), (c, b)], || {
        for _ in 0..3 {
            relay.isolate(1);
            for family in FAMILIES {
                a.reaches(c.ip(family), 45, &[]);
            }
            relay.impair_all(PERFECT);
            std::thread::sleep(Duration::from_millis(800));
            a.reaches(b.ip4, 5, &[]);
            for node in &world.nodes {
                let peers = node.status().peers;
                assert!(
                    peers.len() == 2 && peers.iter().all(|p| p.state == PeerReach::Up),
                    "{peers:?}"
                );
            }
        }
    });
    let more = world.nodes.iter().map(|n| n.log().lines().count()).sum::<usize>() - lines;
    assert_eq!(more, 0, "{}", n1.log());
    assert_eq!(told(n1, 2).pod_mtu.0, 1450);
    stream(a, b, FAMILIES[0], MB);
}
