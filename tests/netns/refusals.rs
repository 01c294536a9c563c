//! The kernel refuses to send (row 12 of the fault table): what is lost is counted, other traffic goes on, and
//! all is well again afterwards.
//!
//! A queue of the host that is full (ENOBUFS) and a peer that refuses (ECONNREFUSED) the kernel tells only to
//! sockets that ask (IP_RECVERR) or are connected; those of a node are neither, so that they are silence here.
//! `src/io/underlay.rs` has the send loop with these errors, and with EIO, which this kernel has no way to give.

use super::pod::{FAMILIES, Place};
use super::traffic::{MB, stream};
use super::world::{Case, World};
use podwire::model::DropReason;
use std::process::Command;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("the_underlay_mtu_shrinks", mtu_shrinks),
    Case::new(
        "the_underlay_mtu_shrinks_under_datagrams",
        mtu_shrinks_under_datagrams,
    ),
    Case::new("a_firewall_forbids_sending", forbidden).pods(2),
    Case::new("a_firewall_forbids_some", forbidden_at_times),
    Case::new("refusals_concern_one_peer", one_peer).nodes(3),
    Case::new("the_link_goes_down", link_down).pods(2),
    // With buffers that are full soon: those granted hold more than a test wants to send.
    Case::new("the_underlay_takes_nothing_for_a_while", stands_still).node_args(&["--send-buffer", "65536"]),
    Case::new("no_route_to_the_peer", no_route).pods(2),
];

/// EMSGSIZE: the node learns the new MTU, and tells the pods' stacks.
fn mtu_shrinks(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        stream(a, b, family, 2 * MB);
    }
    world.underlay.hosts[0].netns.ip("link set eth0 mtu 1400");
    for family in FAMILIES {
        stream(a, b, family, 4 * MB);
        stream(b, a, family, 4 * MB);
    }
    let status = world.nodes[0].status();
    assert_eq!(status.peers[0].pod_mtu.0, 1350, "{:?}", status.peers[0]);
    let too_big = status.drops.get(DropReason::TooBig.label()).copied();
    // A frame or a few of each stream, until the pod knows.
    assert!((1..200).contains(&too_big.unwrap_or(0)), "{:?}", status.drops);
    assert!(
        status.peers[0].gso,
        "a smaller path is no reason to give up trains"
    );
    world.underlay.hosts[0].netns.ip("link set eth0 mtu 1500");
    for family in FAMILIES {
        stream(a, b, family, 2 * MB);
    }
}

/// The same without TCP, which would resend what is lost: the first are answered with an ICMP error, then the
/// pod's stack knows and fragments.
fn mtu_shrinks_under_datagrams(world: &mut World) {
    let (a, b) = world.pair();
    world.underlay.hosts[0].netns.ip("link set eth0 mtu 1400");
    for (family, fits, over) in [(FAMILIES[0], "1322", "1323"), (FAMILIES[1], "1302", "1303")] {
        a.reaches(b.ip(family), 2, &["-M", "do", "-s", fits]);
        // Already the first: it is the kernel's refusal that the node learns from.
        let told = a.ping(b.ip(family), 1, &["-M", "do", "-s", over]);
        told.none();
        assert!(
            told.text.contains("mtu = 1350") || told.text.contains("mtu=1350"),
            "{}",
            told.text
        );
        a.reaches(b.ip(family), 2, &["-M", "dont", "-s", "1400"]);
    }
}

fn nft(world: &World, rules: &str) {
    let netns = &world.underlay.hosts[0].netns;
    netns.ask("nft", &[rules]);
}

/// Whether nftables are here: without them a test has nothing to forbid with.
fn no_nft() -> bool {
    let missing = Command::new("nft").arg("-v").output().is_err();
    if missing {
        eprintln!("netns: nft is missing, so nothing is tested here (tests/run installs it)");
    }
    missing
}

/// EPERM for all.
fn forbidden(world: &mut World) {
    if no_nft() {
        return;
    }
    let (a, b) = world.pair();
    a.reaches(b.ip4, 2, &[]);
    for verdict in ["drop", "reject"] {
        nft(
            world,
            &format!(
                "table inet t {{ chain out {{ type filter hook output priority 0; udp dport 8472 {verdict}; }}; }}"
            ),
        );
        let before = world.nodes[0].drops(DropReason::UnderlaySend);
        let (begun, cpu) = (Instant::now(), world.nodes[0].cpu());
        for family in FAMILIES {
            a.unanswered(b.ip(family), 10);
            a.reaches(world.pods[0][1].ip(family), 10, &[]);
        }
        let dropped = world.nodes[0].drops(DropReason::UnderlaySend) - before;
        // Twenty pings, and probes of the peer now and then.
        assert!((20..30).contains(&dropped), "{dropped} by {verdict}");
        let (took, used) = (begun.elapsed(), world.nodes[0].cpu() - cpu);
        assert!(used < took / 4, "the node is busy: {used:?} of {took:?}");
        nft(world, "delete table inet t");
        for family in FAMILIES {
            a.reaches(b.ip(family), 3, &[]);
        }
    }
    stream(a, b, FAMILIES[0], 2 * MB);
}

/// EPERM for some, also in the midst of a batch of messages.
fn forbidden_at_times(world: &mut World) {
    if no_nft() {
        return;
    }
    let (a, b) = world.pair();
    for family in FAMILIES {
        a.reaches(b.ip(family), 1, &[]);
    }
    nft(
        world,
        "table inet t { chain out { type filter hook output priority 0; \
         udp dport 8472 numgen random mod 50 0 drop; }; }",
    );
    for family in FAMILIES {
        stream(a, b, family, 4 * MB);
        stream(b, a, family, 2 * MB);
    }
    assert!(world.nodes[0].drops(DropReason::UnderlaySend) > 0);
    nft(world, "delete table inet t");
    a.reaches(b.ip4, 3, &[]);
}

/// Whatever keeps datagrams from one peer, those to another pass, and nobody is busy.
fn one_peer(world: &mut World) {
    if no_nft() {
        return;
    }
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    let hosts = &world.underlay.hosts;
    let (near, far) = (&hosts[0].netns, &hosts[1].netns);
    let tc = |words: &str| near.ask("tc", &words.split(' ').collect::<Vec<_>>());
    let rule = |hook: &str, which: &str| {
        format!("table inet t {{ chain c {{ type filter hook {hook} priority 0; {which}; }}; }}")
    };
    let node = &world.nodes[0];
    let refused = || node.drops(DropReason::UnderlaySend);
    let during = |what: &str, trouble: &dyn Fn()| {
        let (begun, cpu) = (Instant::now(), node.cpu());
        trouble();
        for family in FAMILIES {
            a.reaches(c.ip(family), 20, &[]);
            c.reaches(a.ip(family), 5, &[]);
        }
        let (took, used) = (begun.elapsed(), node.cpu() - cpu);
        assert!(used < took / 4, "{what}: the node is busy: {used:?} of {took:?}");
    };
    let after = |what: &str| {
        let begun = Instant::now();
        for family in FAMILIES {
            a.reaches(b.ip(family), 3, &[]);
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
    };
    let unanswered = || {
        for family in FAMILIES {
            a.unanswered(b.ip(family), 10);
        }
    };
    after("at first");

    // EPERM.
    near.ask(
        "nft",
        &[&rule("output", "ip daddr 192.0.2.2 udp dport 8472 drop")],
    );
    let before = refused();
    during("a firewall here", &unanswered);
    assert!((20..30).contains(&(refused() - before)), "{}", refused() - before);
    near.ask("nft", &["delete table inet t"]);
    after("a firewall here");

    // Port unreachable, told by the other side.
    far.ask(
        "nft",
        &[&rule("input", "ip saddr 192.0.2.1 udp dport 8472 reject")],
    );
    let before = refused();
    during("a firewall there", &unanswered);
    assert_eq!(refused(), before);
    far.ask("nft", &["delete table inet t"]);
    after("a firewall there");

    // A queue for this peer that is full with one packet.
    tc("qdisc add dev eth0 root handle 1: htb default 2");
    tc("class add dev eth0 parent 1: classid 1:1 htb rate 8kbit burst 2k cburst 2k");
    tc("class add dev eth0 parent 1: classid 1:2 htb rate 10gbit");
    tc("qdisc add dev eth0 parent 1:1 handle 11: pfifo limit 1");
    tc("filter add dev eth0 parent 1: protocol ip u32 match ip dst 192.0.2.2/32 flowid 1:1");
    let before = refused();
    during("a full queue", &|| {
        let mouth = a.udp(FAMILIES[0], 0);
        for _ in 0..300 {
            let _ = mouth.send_to(&[7; 1000], (b.ip4, 9));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let seen = tc("-s qdisc show dev eth0 parent 1:1");
    let dropped = seen
        .split_once("dropped ")
        .and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse::<u64>().ok());
    assert!(dropped.is_some_and(|n| n > 100), "{seen}");
    assert_eq!(refused(), before);
    tc("qdisc del dev eth0 root");
    after("a full queue");
}

/// ENETUNREACH, or silence: the interface below goes, and comes back with its addresses.
fn link_down(world: &mut World) {
    let (a, b) = world.pair();
    a.reaches(b.ip4, 2, &[]);
    let host = &world.underlay.hosts[0].netns;
    host.ip("link set eth0 down");
    for family in FAMILIES {
        a.unanswered(b.ip(family), 10);
        a.reaches(world.pods[0][1].ip(family), 10, &[]);
    }
    assert!(world.nodes[0].drops(DropReason::UnderlaySend) >= 20);
    host.ip("link set eth0 up");
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
    }
}

/// EHOSTUNREACH by a route that says so.
fn no_route(world: &mut World) {
    let (a, b) = world.pair();
    a.reaches(b.ip4, 2, &[]);
    for kind in ["unreachable", "prohibit", "blackhole"] {
        let host = &world.underlay.hosts[0].netns;
        let before = world.nodes[0].drops(DropReason::UnderlaySend);
        host.ip(&format!("route add {kind} 192.0.2.2/32"));
        a.unanswered(b.ip4, 10);
        a.reaches(world.pods[0][1].ip4, 10, &[]);
        assert!(
            world.nodes[0].drops(DropReason::UnderlaySend) >= before + 10,
            "{kind}"
        );
        host.ip(&format!("route del {kind} 192.0.2.2/32"));
        let begun = Instant::now();
        a.reaches(b.ip4, 3, &[]);
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

/// EAGAIN: a queue of the host that hardly moves holds what the sockets may send. The node waits for room,
/// without being busy; the pods wait for the node; then all goes on. (A TAP that is not read does not do: it
/// throws away what does not fit.)
fn stands_still(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        a.reaches(b.ip(family), 1, &[]);
    }
    let (node, host) = (&world.nodes[0], &world.underlay.hosts[0].netns);
    let tc = |what: &str| {
        let words: Vec<&str> = what.split(' ').collect();
        host.ask("tc", &words);
    };
    std::thread::scope(|s| {
        for family in FAMILIES {
            s.spawn(move || stream(a, b, family, 8 * MB));
        }
        std::thread::sleep(Duration::from_millis(20));
        tc("qdisc add dev eth0 root tbf rate 100kbit burst 64kb limit 100mb");
        let mouth = a.udp(FAMILIES[0], 0);
        mouth.set_nonblocking(true).expect("a flag");
        for _ in 0..2000 {
            let _ = mouth.send_to(&[7; 1400], (b.ip4, 9));
        }
        std::thread::sleep(Duration::from_millis(100));
        let before = (node.cpu(), node.status().counters);
        std::thread::sleep(Duration::from_millis(500));
        let after = (node.cpu(), node.status().counters);
        tc("qdisc del dev eth0 root");
        let used = after.0 - before.0;
        assert!(
            used < Duration::from_millis(100),
            "a node that waits is busy: {used:?}"
        );
        let read = after.1.frames_from_pods - before.1.frames_from_pods;
        assert!(read < 50, "pods wait meanwhile, but {read} frames were read");
    });
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
        stream(a, b, family, MB);
    }
}
