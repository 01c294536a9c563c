//! Panics inside a node (row 30 of the fault table), by the fail points of debug builds: one pod, flow or peer pays, and
//! all others go on.

use super::egress::{Outside, download};
use super::frames::{ethernet, ipv4, udp};
use super::node::Node;
use super::pod::{Family, Place, Pod};
use super::raw::{Raw, segment};
use super::traffic::{MB, connect, stream};
use super::world::{Case, World, eventually};
use podwire::model::{Bandwidth, DropReason, Mac, Rate};
use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_pod_whose_frames_panic_is_parked_alone", pod).pods(3),
    Case::new("what_a_peer_sends_panics_alone", peer).pods(2),
    Case::new("a_flow_from_outside_panics_alone", flow)
        .nodes(1)
        .pods(2),
    Case::new("what_waits_for_a_limited_pod_panics_alone", waiting).pods(2),
    Case::new("a_panic_in_the_midst_of_a_pods_frames_leaves_none", midst).pods(1),
    Case::new("a_parked_pod_whose_interface_is_deleted_is_gone", deleted).pods(2),
    Case::new("what_goes_to_peers_panics_alone", sent).pods(2),
    Case::new("a_panic_in_an_order_ends_the_node", order).pods(1),
    Case::new("panics_that_are_nobodys_end_the_node_at_last", nobodys).pods(2),
];

const MARK: &str = "panic-at-this";
const SOON: Duration = Duration::from_secs(10);
/// Port of UDP at which nobody listens.
const DISCARD: u16 = 9;

/// Have a node panic where the mark comes by. Only debug builds do; elsewhere there is nothing to be tested.
fn arm(world: &mut World, node: usize, place: &str) -> bool {
    let netns = &world.underlay.hosts[node].netns;
    let node = &mut world.nodes[node];
    node.end(Signal::KILL);
    node.provoked = true;
    let failpoint = format!("PODWIRE_FAILPOINT={place}={MARK}");
    node.restart_under(&["env", &failpoint], netns);
    cfg!(debug_assertions)
}

/// A pod sends a datagram by hand.
fn say(from: &Pod, mac: Mac, to: Ipv4Addr, what: &str) {
    let packet = ipv4(from.ip4, to, 17, &udp(4000, DISCARD, what.as_bytes()));
    Raw::sender(from).send(&ethernet(mac, from.mac, 0x0800, &packet));
}

/// Streams between pods, each byte of which is compared, and pings, of which each is answered, while something is done.
fn while_others_talk(pairs: &[(&Pod, &Pod)], work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let goes_on = || !over.load(Ordering::Relaxed);
    std::thread::scope(|s| {
        for (from, to) in pairs {
            s.spawn(|| {
                while goes_on() {
                    stream(*from, *to, Family::V4, MB);
                }
            });
            s.spawn(|| {
                while goes_on() {
                    from.reaches(to.ip4, 50, &[]);
                }
            });
        }
        // Also when it fails, or nobody would end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn pod(world: &mut World) {
    if !arm(world, 0, "to_pod") {
        return;
    }
    let node = &world.nodes[0];
    let [a, b, c] = &world.pods[0][..] else {
        panic!("three pods")
    };
    let far = &world.pods[1][0];
    a.reaches(b.ip4, 3, &[]);
    while_others_talk(&[(b, c), (c, far), (far, b)], || {
        for (panics, rest) in [(1, 1), (2, 2), (3, 4)] {
            let begun = Instant::now();
            say(a, b.mac, b.ip4, MARK);
            // It waits in the TAP behind the mark, and nobody has to do anything.
            a.ping(b.ip4, 1, &["-W", "20"]).all(1);
            let took = begun.elapsed();
            assert!(
                took >= Duration::from_secs(rest),
                "{took:?} after {panics} panics"
            );
            let port = node.port("a1");
            assert_eq!((port.panics, port.parked_ms), (panics, 0));
        }
        say(a, b.mac, b.ip4, MARK);
        eventually("the pod is shown as parked", SOON, || {
            let out = node.podwire(&["pods"]).stdout;
            String::from_utf8_lossy(&out).contains("4 (parked for ")
        });
        let problems = node.status().problems;
        let told = |p: &String| p.starts_with("pod default/a1 is not read for");
        assert!(problems.iter().any(told), "{problems:?}");
        // What others send to it arrives all the same.
        let ears = Raw::listener(a);
        say(c, a.mac, a.ip4, "not parked this way");
        eventually("a frame for the parked pod", SOON, || {
            ears.heard(b"not parked this way")
        });
    });
    assert_eq!(node.drops(DropReason::Panic), 4);
    assert_eq!(node.status().counters.panics.pod, 4);
    for name in ["b1", "c1"] {
        assert_eq!(node.port(name).panics, 0);
    }
    let log = node.log();
    let told = "podwire panicked at a frame of pod default/a1, from which none is read for 1000 ms now";
    assert!(log.contains(told), "{log}");
    assert!(
        log.contains("\"failpoint to_pod\" at src/daemon/worker/failpoint.rs:"),
        "{log}"
    );
}

fn peer(world: &mut World) {
    const TIMES: u64 = 20;
    if !arm(world, 1, "to_pod") {
        return;
    }
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    let (far, other) = (&world.pods[1][0], &world.pods[1][1]);
    let node = &world.nodes[1];
    a.reaches(far.ip4, 3, &[]);
    while_others_talk(&[(b, other), (other, b), (far, other)], || {
        for _ in 0..TIMES {
            say(a, world.gateway_mac(1), far.ip4, MARK);
            std::thread::sleep(Duration::from_millis(20));
        }
        eventually("each datagram is counted", SOON, || {
            node.drops(DropReason::Panic) >= TIMES
        });
        a.reaches(far.ip4, 10, &[]);
    });
    let panics = node.status().counters.panics;
    assert!(
        panics.peer > 0 && (panics.pod, panics.flow, panics.node) == (0, 0, 0),
        "{panics:?}"
    );
    assert!(node.log().contains("podwire panicked at a peer's datagram"));
}

fn flow(world: &mut World) {
    if !arm(world, 0, "stream") {
        return;
    }
    let outside = Outside::new(world);
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    let node = &world.nodes[0];
    std::thread::scope(|s| {
        s.spawn(|| download(b, &outside, Family::V4, 16 * MB));
        let listener = outside.listen(Family::V4);
        let at = listener.local_addr().expect("it is bound");
        for panics in 1..=3 {
            let mut near = connect(a, at).expect("a connection");
            let (mut far, _) = listener.accept().expect("a connection");
            let mut buffer = [0; 64];
            far.write_all(b"hello").expect("it is taken");
            near.read_exact(&mut buffer[..5]).expect("it arrives");
            far.write_all(MARK.as_bytes()).expect("it is taken");
            let ended = near.read(&mut buffer).map_err(|e| e.kind());
            assert_eq!(ended, Err(ErrorKind::ConnectionReset), "the pod is told");
            far.set_read_timeout(Some(SOON)).expect("a timeout");
            let ended = far.read(&mut buffer).map_err(|e| e.kind());
            assert_eq!(ended, Err(ErrorKind::ConnectionReset), "and so is the world");
            assert_eq!(node.status().counters.panics.flow, panics);
        }
    });
    let port = node.port("a1");
    assert_eq!((port.panics, port.parked_ms), (0, 0));
    eventually("its flows are gone", SOON, || node.status().egress.tcp_flows == 0);
    let told = "podwire panicked at a flow of pod default/a1, which was ended";
    assert!(node.log().contains(told), "{}", node.log());
}

/// What panics is a frame that has waited, which is lost: the pod that sent it, and the one it was for, have what they had.
fn waiting(world: &mut World) {
    const MARKED: u64 = 40;
    if !arm(world, 0, "to_pod") {
        return;
    }
    let node = &world.nodes[0];
    let [a, b] = &world.pods[0][..] else {
        panic!("two pods")
    };
    let rate = Rate::new(1_000_000, 0).expect("a rate");
    let c = Pod::attach_limited(node, "limited", Bandwidth::of(Some(rate), None));
    let frame = |what: &[u8]| {
        let packet = ipv4(b.ip4, c.ip4, 17, &udp(4000, DISCARD, what));
        ethernet(c.mac, b.mac, 0x0800, &packet)
    };
    let (mouth, ears) = (Raw::sender(b), Raw::listener(&c));
    (0..70).for_each(|_| mouth.send(&frame(&[7; 1400])));
    (0..MARKED).for_each(|_| mouth.send(&frame(MARK.as_bytes())));
    mouth.send(&frame(b"behind all that"));
    eventually("what was behind it arrives", SOON, || {
        ears.heard(b"behind all that")
    });
    assert_eq!(node.drops(DropReason::Panic), MARKED);
    let port = node.port("b1");
    assert_eq!((port.panics, port.parked_ms), (0, 0));
    stream(a, b, Family::V4, MB);
    assert!(!node.log().contains("the data path ends"));
}

/// The panic is at messages to a peer, which go in the midst of a pod's frames when there are many: it has none of its
/// frames parked, and those behind are read though it sends no more.
fn midst(world: &mut World) {
    const TRAINS: usize = 12;
    if !arm(world, 0, "to_peers") {
        return;
    }
    let (a, far) = (&world.pods[0][0], &world.pods[1][0]);
    a.reaches(far.ip4, 3, &[]);
    let (mouth, ear) = (a.udp(Family::V4, 0), far.udp(Family::V4, 0));
    let at = ear.local_addr().expect("it is bound");
    let node = &world.nodes[0];
    segment(&mouth, 1400);
    // A new pod tells of its multicast groups, which would have its TAP read.
    let (mut said, mut since) = (0, Instant::now());
    eventually("the pod says nothing by itself", SOON, || {
        let now = node.port("a1").frames_from_pod;
        if std::mem::replace(&mut said, now) != now {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(1500)
    });
    let before = node.port("a1").bytes_from_pod;
    node.signal(Signal::STOP);
    eventually("each of its threads is stopped", SOON, || stopped(node.pid()));
    let mut train = vec![7; 40 * 1400];
    train[..MARK.len()].copy_from_slice(MARK.as_bytes());
    mouth.send_to(&train, at).expect("it waits in the TAP");
    for _ in 1..TRAINS {
        mouth.send_to(&[7; 40 * 1400], at).expect("it waits in the TAP");
    }
    node.signal(Signal::CONT);
    eventually("all of it is read", Duration::from_secs(2), || {
        node.port("a1").bytes_from_pod - before > (TRAINS * 40 * 1400) as u64
    });
    assert!(node.drops(DropReason::Panic) > 0);
    let port = node.port("a1");
    assert_eq!((port.panics, port.parked_ms), (0, 0));
}

/// Whether each thread of a process is stopped.
fn stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it can be read");
    let mut tasks = tasks.map(|task| task.expect("a thread").path().join("stat"));
    tasks.all(|stat| std::fs::read_to_string(stat).is_ok_and(|stat| stat.contains(") T ")))
}

/// Nobody reads its TAP meanwhile, and the node notices all the same.
fn deleted(world: &mut World) {
    if !arm(world, 0, "to_pod") {
        return;
    }
    let node = &world.nodes[0];
    let [a, b] = &world.pods[0][..] else {
        panic!("two pods")
    };
    a.reaches(b.ip4, 3, &[]);
    for panics in 1..=4 {
        say(a, b.mac, b.ip4, MARK);
        eventually("it is counted", SOON, || node.port("a1").panics == panics);
        if panics < 4 {
            eventually("it is read again", SOON, || node.port("a1").parked_ms == 0);
        }
    }
    assert!(node.port("a1").parked_ms > 5000);
    a.netns().ip("link del eth0");
    eventually("its pod is gone", Duration::from_secs(3), || {
        !node.status().pods.iter().any(|p| p.pod.name == "a1")
    });
    b.reaches(world.pods[1][0].ip4, 3, &[]);
}

/// Messages to peers at which the sockets' side panics are lost, be they ever so many.
fn sent(world: &mut World) {
    const TIMES: u64 = 40;
    if !arm(world, 0, "to_peers") {
        return;
    }
    let gateway = world.gateway_mac(1);
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let node = &world.nodes[0];
    a.reaches(far.ip4, 3, &[]);
    for n in 1..=TIMES {
        say(a, gateway, far.ip4, MARK);
        eventually("it is counted", SOON, || node.drops(DropReason::Panic) >= n);
    }
    stream(b, far, Family::V4, MB);
    let panics = node.status().counters.panics;
    assert!(
        panics.frames > 0 && (panics.pod, panics.flow, panics.peer, panics.node) == (0, 0, 0, 0),
        "{panics:?}"
    );
    let port = node.port("a1");
    assert_eq!((port.panics, port.parked_ms), (0, 0));
}

/// Half of an order would stay undone for ever: the node ends, and is what it was when it is started anew.
fn order(world: &mut World) {
    if !arm(world, 0, "remove_port") {
        return;
    }
    let (a, far) = (&world.pods[0][0], &world.pods[1][0]);
    let doomed = Pod::attach(&world.nodes[0], MARK);
    a.reaches(doomed.ip4, 3, &[]);
    // Whether that is told before the end is open.
    world.nodes[0].podwire(&["detach", MARK]);
    ends(&mut world.nodes[0]);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    a.reaches(far.ip4, 3, &[]);
    let detached = world.nodes[0].podwire(&["detach", MARK]);
    assert!(detached.status.success(), "{detached:?}");
    let again = Pod::attach(&world.nodes[0], MARK);
    a.reaches(again.ip4, 3, &[]);
}

/// The process ends by itself.
fn ends(node: &mut Node) {
    let stat = format!("/proc/{}/stat", node.pid());
    eventually("the process ends by itself", SOON, || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    });
    let status = node.end(Signal::KILL);
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
}

fn nobodys(world: &mut World) {
    if !arm(world, 1, "receive") {
        return;
    }
    let gateway = world.gateway_mac(1);
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    a.reaches(far.ip4, 3, &[]);
    for n in 1..=3 {
        say(a, gateway, far.ip4, MARK);
        eventually("it is counted", SOON, || {
            world.nodes[1].status().counters.panics.node == n
        });
        stream(b, far, Family::V4, MB);
    }
    let begun = Instant::now();
    while !world.nodes[1].log().contains("the data path ends") {
        assert!(begun.elapsed() < SOON, "{}", world.nodes[1].log());
        say(a, gateway, far.ip4, MARK);
    }
    ends(&mut world.nodes[1]);
    let log = world.nodes[1].log();
    assert_eq!(log.matches("the data path ends").count(), 1, "{log}");
    // As after any crash: the keeper has the pods.
    world.nodes[1].restart(&world.underlay.hosts[1].netns);
    a.reaches(far.ip4, 3, &[]);
}
