//! Peers that come, go, die, and that are none: changes of the peers file take effect at once, and what is
//! wrong with one peer is felt by nobody else.

use super::frames::{self, vxlan};
use super::pod::{FAMILIES, Place, Pod};
use super::traffic::{MB, stream};
use super::world::{Case, World, eventually};
use podwire::model::DropReason;
use rustix::process::Signal;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("the_peers_file_is_obeyed_at_once", file),
    Case::new("one_peer_of_a_thousand", thousand),
    Case::new("a_peer_dies_and_comes_back", dies).nodes(3),
    Case::new("a_peer_is_cut_off", cut_off).nodes(3),
    Case::new("strangers_are_not_heard", strangers).pods(2),
    Case::new("peers_send_only_what_is_theirs", forged).nodes(3),
];

/// The longest a change may take until it is in force, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

fn file(world: &mut World) {
    let (a, b) = world.pair();
    let all = world.peers_but(0);
    stream(a, b, FAMILIES[0], MB);
    let n1 = &world.nodes[0];
    let known = |n: usize| eventually("the change is in force", AT_ONCE, || n1.status().peers.len() == n);

    n1.set_peers("peer = []\n");
    known(0);
    let gone = a.ping(b.ip4, 3, &[]);
    gone.none();
    assert!(gone.text.contains("Destination Net Unreachable"), "{}", gone.text);
    // What the former peer still sends is a stranger's.
    b.unanswered(a.ip4, 3);
    assert!(n1.drops(DropReason::UnknownPeer) >= 3);

    n1.set_peers(&all);
    known(1);
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
    }
    // Written in place, as an editor may do.
    fs::write(&n1.peers, "peer = []\n").expect("it is written");
    known(0);
    a.unanswered(b.ip4, 1);
    fs::write(&n1.peers, &all).expect("it is written");
    known(1);
    a.reaches(b.ip4, 3, &[]);

    // Mistakes change nothing, but are told.
    for wrong in ["", "rubbish", "[[peer]]\nname = \"n2\"\n"] {
        n1.set_peers(wrong);
        eventually("the mistake is told", AT_ONCE, || {
            let problems = n1.status().problems;
            problems.iter().any(|p| p.contains("n1.toml"))
        });
        a.reaches(b.ip4, 3, &[]);
    }
    // Another address: frames go there, and only there.
    n1.set_peers(&all.replace("192.0.2.2", "192.0.2.3"));
    eventually("the new address", AT_ONCE, || {
        n1.status().peers[0].underlay.to_string() == "192.0.2.3:8472"
    });
    a.unanswered(b.ip4, 3);
    n1.set_peers(&all);
    eventually("the old address again", AT_ONCE, || {
        n1.status().peers[0].underlay.to_string() == "192.0.2.2:8472"
    });
    a.reaches(b.ip4, 3, &[]);
    stream(a, b, FAMILIES[1], MB);
}

/// The other node is one of a thousand peers, of which no other is there.
fn thousand(world: &mut World) {
    let nowhere = world.underlay.hosts.last().expect("there is one").ip4;
    let others = (0..999).map(|n| {
        format!(
            "[[peer]]\nname = \"m{n}\"\nunderlay = \"{nowhere}:{}\"\nsubnet = \"10.{}.{}.0/24\"\n",
            10_000 + n,
            128 + n / 256,
            n % 256
        )
    });
    let others: Vec<String> = others.collect();
    let text = others[..500].concat() + &world.peers_but(0) + &others[500..].concat();
    let (a, b) = world.pair();
    let n1 = &world.nodes[0];
    let is_at = |name: &str, place: &str| {
        let place = place.to_string();
        eventually("the change is in force", AT_ONCE, || {
            let peers = n1.status().peers;
            let found = peers.iter().find(|p| p.name == name);
            peers.len() == 1000 && found.is_some_and(|p| p.underlay.to_string() == place)
        });
    };
    n1.set_peers(&text);
    is_at("n2", "192.0.2.2:8472");
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
        stream(a, b, family, MB);
    }
    // One of them changes, and then the one that counts; the others stay.
    n1.set_peers(&text.replace(&format!("{nowhere}:10700"), &format!("{nowhere}:9999")));
    is_at("m700", &format!("{nowhere}:9999"));
    a.reaches(b.ip4, 3, &[]);
    n1.set_peers(&text.replace("\"192.0.2.2\"", &format!("\"{nowhere}\"")));
    is_at("n2", &format!("{nowhere}:8472"));
    a.unanswered(b.ip4, 3);
    n1.set_peers(&text);
    is_at("n2", "192.0.2.2:8472");
    stream(a, b, FAMILIES[1], MB);
    // What cannot be there is told, in a few lines, and goes nowhere near the pods.
    let status = n1.status();
    assert!((2..20).contains(&status.problems.len()), "{:?}", status.problems);
    assert!(n1.podwire(&["status"]).status.success());

    // A node that begins with all of them.
    world.nodes[0].stop();
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    let again = Pod::attach(&world.nodes[0], "again");
    again.reaches(world.pods[1][0].ip4, 3, &[]);
    stream(&again, &world.pods[1][0], FAMILIES[0], MB);
    world.pods[0] = vec![again];
}

/// A node is killed: its host answers with port unreachable (ECONNREFUSED), and others do not notice.
fn dies(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for to in [b, c] {
        a.reaches(to.ip4, 2, &[]);
    }
    world.nodes[1].end(Signal::KILL);
    std::thread::scope(|s| {
        s.spawn(|| a.unanswered(b.ip4, 50));
        s.spawn(|| c.unanswered(b.ip6, 50));
        for family in FAMILIES {
            a.reaches(c.ip(family), 50, &[]);
        }
        stream(a, c, FAMILIES[0], 4 * MB);
    });
    world.nodes[1].restart(&world.underlay.hosts[1].netns);
    let again = Pod::attach(&world.nodes[1], "again");
    for family in FAMILIES {
        world.pods[0][0].reaches(again.ip(family), 3, &[]);
        again.reaches(world.pods[2][0].ip(family), 3, &[]);
    }
    world.pods[1] = vec![again];
}

/// A node vanishes without a word, one way and both ways.
fn cut_off(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    for to in [b, c] {
        a.reaches(to.ip4, 2, &[]);
    }
    let relay = &world.underlay.relay;
    relay.isolate(1);
    std::thread::scope(|s| {
        s.spawn(|| a.unanswered(b.ip4, 50));
        a.reaches(c.ip4, 50, &[]);
        stream(c, a, FAMILIES[1], 4 * MB);
    });
    relay.impair_all(Default::default());
    // A stream that stood still goes on.
    stream(a, b, FAMILIES[0], MB);
    c.reaches(b.ip6, 3, &[]);
}

/// An echo request from one pod to another as it crosses the tunnel.
fn echo(world: &World, from: &Pod, to: &Pod) -> Vec<u8> {
    let (src, dst) = (world.vtep_mac(from.node), world.vtep_mac(to.node));
    let packet = frames::echo4(from.ip4, to.ip4, 64);
    frames::ethernet(dst, src, 0x0800, &packet)
}

fn strangers(world: &mut World) {
    let (a, b) = world.pair();
    let stranger = world.underlay.hosts.last().expect("there is one");
    let mouth = stranger
        .netns
        .within(|| UdpSocket::bind((stranger.ip4, 8472)))
        .expect("a socket");
    let n1 = (world.underlay.hosts[0].ip4, 8472);
    let good = vxlan(8, 1, &echo(world, b, a));
    let ear = super::raw::Raw::listener(a);
    for _ in 0..50 {
        mouth.send_to(&good, n1).expect("it is sent");
        mouth.send_to(b"rubbish", n1).expect("it is sent");
        mouth.send_to(&[], n1).expect("it is sent");
    }
    eventually("all are counted", AT_ONCE, || {
        world.nodes[0].drops(DropReason::UnknownPeer) == 150
    });
    assert!(!ear.heard(frames::MARK), "the pod heard a stranger");
    a.reaches(b.ip4, 3, &[]);
}

/// Datagrams from a peer's address that are not what that peer may send.
fn forged(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    let (a, b, c) = (&one[0], &two[0], &three[0]);
    let host = &world.underlay.hosts[1];
    let mouth = host.netns.within(|| UdpSocket::bind((host.ip4, 0)));
    let mouth = mouth.expect("a socket");
    let n1 = (world.underlay.hosts[0].ip4, 8472);
    let from_b = echo(world, b, a);
    let mut to_another = from_b.clone();
    to_another[5] ^= 1;
    let cases: [(&str, Vec<u8>, DropReason); 10] = [
        ("too short", vec![8, 0, 0], DropReason::Truncated),
        ("empty", vec![], DropReason::Truncated),
        ("without the I flag", vxlan(0, 1, &from_b), DropReason::BadVxlan),
        ("a reserved flag", vxlan(0x18, 1, &from_b), DropReason::BadVxlan),
        ("another VNI", vxlan(8, 2, &from_b), DropReason::WrongVni),
        ("another VTEP", vxlan(8, 1, &to_another), DropReason::WrongVtepMac),
        (
            "a third node's pod",
            vxlan(8, 1, &echo(world, c, a)),
            DropReason::NotPeersAddress,
        ),
        (
            "the own pod",
            vxlan(8, 1, &echo(world, a, a)),
            DropReason::NotPeersAddress,
        ),
        ("cut short", vxlan(8, 1, &from_b[..20]), DropReason::Truncated),
        ("no frame", vxlan(8, 1, &[]), DropReason::Truncated),
    ];
    let ear = super::raw::Raw::listener(a);
    for (what, datagram, reason) in cases {
        let before = world.nodes[0].drops(reason);
        for _ in 0..20 {
            mouth.send_to(&datagram, n1).expect("it is sent");
        }
        eventually(what, AT_ONCE, || world.nodes[0].drops(reason) == before + 20);
        assert!(!ear.heard(frames::MARK), "{what} reached the pod");
    }
    // The same with nothing wrong in it gets through, so it was the fault that counted.
    mouth.send_to(&vxlan(8, 1, &from_b), n1).expect("it is sent");
    eventually("a frame of the peer's own pod", AT_ONCE, || {
        ear.heard(frames::MARK)
    });
    a.reaches(b.ip4, 3, &[]);
}
