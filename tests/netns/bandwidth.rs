//! Pods with bandwidth limits, measured by the counters of the interface that receives, from when the burst is over.
//!
//! What is counted is what a wire would carry, see `podwire::model::Rate`: a super-frame's segments have headers each.

use super::egress::Outside;
use super::pod::{Family, Place, Pod};
use super::traffic::{MB, connect, stream};
use super::world::{Case, World, eventually};
use podwire::model::{Bandwidth, DropReason, OffloadMode, Rate};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("limits_of_tcp_on_a_node", tcp_near),
    Case::new("limits_of_tcp_across_nodes", tcp_far),
    Case::new("limits_of_what_comes_from_outside", outside).nodes(1),
    Case::new("limits_of_datagrams", datagrams),
    Case::new("a_burst_passes_a_limit_at_once", burst),
    Case::new("a_limited_pod_holds_nobody_up", beside).pods(2),
    Case::new("limits_outlive_a_killed_node", restarted),
];

/// How long is measured, and for how long not before that: a burst is over then.
const MEASURED: Duration = Duration::from_millis(2000);
const BURST: Duration = Duration::from_millis(700);
/// A busy machine may take from a pod what its limit allows; what is above it is nobody's doing but ours.
const TRIES: usize = 4;

const MBIT: u64 = 1_000_000;

/// Payload and headers of full packets: TCP over IPv4 with time stamps, the node's own TCP without, UDP.
const TCP: (u64, u64) = (1398, 66);
const SMOLTCP: (u64, u64) = (1410, 54);
const UDP: (u64, u64) = (1422, 42);

fn limits(ingress: Option<u64>, egress: Option<u64>) -> Option<Bandwidth> {
    let rate = |mbit: u64| Rate::new(mbit * MBIT, 0).expect("a rate");
    Bandwidth::of(ingress.map(rate), egress.map(rate))
}

/// Frames and bytes an interface has received.
fn received(pod: &Pod) -> (u64, u64) {
    let told = pod
        .netns()
        .within(|| std::fs::read_to_string("/proc/thread-self/net/dev").expect("it can be read"));
    let line = told.lines().find_map(|l| l.trim().strip_prefix("eth0:"));
    let mut fields = line
        .expect("eth0")
        .split_whitespace()
        .map(|n| n.parse().expect("a number"));
    let bytes = fields.next().expect("bytes");
    (fields.next().expect("packets"), bytes)
}

/// Bits per second on a wire, of full packets of which each carries so much behind its headers.
fn rate(to: &Pod, (payload, headers): (u64, u64)) -> (f64, Duration) {
    std::thread::sleep(BURST);
    let (begun, before) = (Instant::now(), received(to));
    std::thread::sleep(MEASURED);
    let (took, after) = (begun.elapsed(), received(to));
    let (frames, bytes) = (after.0 - before.0, after.1 - before.1);
    let carried = bytes.saturating_sub(frames * headers) as f64;
    let wire = carried * (payload + headers) as f64 / payload as f64;
    (wire * 8.0 / took.as_secs_f64(), took)
}

/// The rate must be this, within five percent; more than a burst and a frame above it is an error at once.
fn holds(label: &str, mbit: u64, to: &Pod, shape: (u64, u64)) {
    let want = (mbit * MBIT) as f64;
    let mut best: f64 = 0.0;
    for _ in 0..TRIES {
        let (got, took) = rate(to, shape);
        println!("netns: {label}: {:.2} of {mbit} Mbit/s", got / 1e6);
        let longest = 65_549.0 * 8.0 / took.as_secs_f64();
        assert!(
            got <= want * 1.01 + longest,
            "{label}: {got} bit/s are more than {want}"
        );
        best = best.max(got);
        if got >= want * 0.95 {
            return;
        }
    }
    panic!("{label}: {best} bit/s are less than {want}");
}

/// Keep a TCP stream busy while something is done.
fn with_tcp(from: &Pod, to: &Pod, work: impl FnOnce()) {
    let listener = to.listen(Family::V4);
    let at = listener.local_addr().expect("it is bound");
    let mut near = connect(from, at).expect("a connection");
    let (mut far, _) = listener.accept().expect("a connection");
    keep_busy(&mut near, &mut far, work);
}

/// Write to one stream and read from the other while something is done.
fn keep_busy(near: &mut TcpStream, far: &mut TcpStream, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let chunk = vec![7; 128 << 10];
            while !stop.load(Ordering::Relaxed) {
                if near.write_all(&chunk).is_err() {
                    break;
                }
            }
            let _ = near.shutdown(std::net::Shutdown::Both);
        });
        s.spawn(|| {
            let mut chunk = vec![0; 256 << 10];
            while !stop.load(Ordering::Relaxed) {
                if !far.read(&mut chunk).is_ok_and(|n| n > 0) {
                    break;
                }
            }
            // Whoever writes notices.
            let _ = far.shutdown(std::net::Shutdown::Both);
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Send full datagrams at about this rate while something is done.
fn with_datagrams(from: &Pod, to: &Pod, mbit: u64, work: impl FnOnce()) {
    let (mouth, ear) = (from.udp(Family::V4, 0), to.udp(Family::V4, 0));
    let at = ear.local_addr().expect("it is bound");
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let begun = Instant::now();
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * (mbit * MBIT) as f64 / 8.0 / 1464.0) as u64;
                for _ in sent..due.min(sent + 100) {
                    let _ = mouth.send_to(&[7; UDP.0 as usize], at);
                }
                sent = due;
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn tcp_near(world: &mut World) {
    let a = &world.pods[0][0];
    // Frame by frame a debug build does not carry a gigabit on a busy machine, limit or not.
    let rates: &[u64] = match world.mode {
        OffloadMode::On => &[10, 100, 1000],
        OffloadMode::Off => &[10, 100],
    };
    for mbit in rates.iter().copied() {
        let pod = Pod::attach_limited(
            &world.nodes[0],
            &format!("l{mbit}"),
            limits(Some(mbit), Some(mbit)),
        );
        with_tcp(a, &pod, || holds("towards the pod", mbit, &pod, TCP));
        with_tcp(&pod, a, || holds("from the pod", mbit, a, TCP));
        let counted = world.nodes[0].port(&pod.name);
        // A busy machine may keep a pod just below a gigabit by itself.
        assert!(
            mbit == 1000 || (counted.held_to_pod > 0 && counted.paused_from_pod_us > 0),
            "{counted:?}"
        );
    }
}

fn tcp_far(world: &mut World) {
    let far = &world.pods[1][0];
    let pod = Pod::attach_limited(&world.nodes[0], "limited", limits(Some(50), Some(20)));
    with_tcp(far, &pod, || holds("towards the pod", 50, &pod, TCP));
    with_tcp(&pod, far, || holds("from the pod", 20, far, TCP));
}

/// The node's own TCP does not send more than the limit's queue takes: it loses nothing, and is not slowed by losses.
fn outside(world: &mut World) {
    let outside = Outside::new(world);
    let listener = outside.listen(Family::V4);
    let at = listener.local_addr().expect("it is bound");
    for mbit in [10, 50] {
        let pod = Pod::attach_limited(&world.nodes[0], &format!("l{mbit}"), limits(Some(mbit), None));
        let mut far = connect(&pod, at).expect("a connection");
        let (mut near, _) = listener.accept().expect("a connection");
        keep_busy(&mut near, &mut far, || holds("from outside", mbit, &pod, SMOLTCP));
    }
    assert_eq!(world.nodes[0].drops(DropReason::BandwidthLimit), 0);
}

fn datagrams(world: &mut World) {
    let (a, far) = world.pair();
    for mbit in [10, 50] {
        let pod = Pod::attach_limited(
            &world.nodes[0],
            &format!("l{mbit}"),
            limits(Some(mbit), Some(mbit)),
        );
        with_datagrams(a, &pod, mbit * 3 / 2, || {
            holds("towards the pod", mbit, &pod, UDP)
        });
        let dropped = world.nodes[0].drops(DropReason::BandwidthLimit);
        assert_eq!(dropped > 0, world.nodes[0].port(&pod.name).limited_to_pod > 0);
        with_datagrams(&pod, far, mbit * 3 / 2, || holds("from the pod", mbit, far, UDP));
        assert_eq!(
            world.nodes[0].drops(DropReason::BandwidthLimit),
            dropped,
            "nothing from the pod is dropped by the node"
        );
    }
}

/// 30 datagrams take a third of a second at the rate; as they are less than the burst, none of them waits. A socket has
/// room for as many.
fn burst(world: &mut World) {
    let a = &world.pods[0][0];
    let rate = Rate::new(MBIT, 60 * 1500 * 8).expect("a rate");
    let pod = Pod::attach_limited(&world.nodes[0], "limited", Bandwidth::of(Some(rate), Some(rate)));
    for (from, to) in [(a, &pod), (&pod, a)] {
        // What attaching and the neighbours' questions took is made good for.
        a.reaches(pod.ip4, 1, &[]);
        std::thread::sleep(Duration::from_millis(100));
        let before = world.nodes[0].port(&pod.name);
        let (mouth, ear) = (from.udp(Family::V4, 0), to.udp(Family::V4, 0));
        let at = ear.local_addr().expect("it is bound");
        for n in 0..30u8 {
            mouth.send_to(&[n; 1422], at).expect("it is sent");
        }
        let mut got = [0; 2000];
        for n in 0..30u8 {
            let len = ear.recv(&mut got).expect("it arrives");
            assert_eq!(got[..len], [n; 1422], "in order");
        }
        let after = world.nodes[0].port(&pod.name);
        assert_eq!(after.held_to_pod, before.held_to_pod, "none waited");
        assert_eq!(
            after.paused_from_pod_us, before.paused_from_pod_us,
            "nor was it paused"
        );
        // And the bucket fills again.
        std::thread::sleep(Duration::from_millis(750));
    }
}

/// Pods beside a limited one, and one that sends to it, are as fast as ever.
fn beside(world: &mut World) {
    let [a, b] = &world.pods[0][..] else {
        unreachable!("two pods");
    };
    let far = &world.pods[1][0];
    let pod = Pod::attach_limited(&world.nodes[0], "limited", limits(Some(1), Some(1)));
    with_datagrams(a, &pod, 20, || {
        with_datagrams(&pod, b, 20, || {
            for to in [b, far] {
                // 64 Mbit take a minute at the limit.
                let took = stream(a, to, Family::V4, 8 * MB);
                assert!(took < Duration::from_secs(20), "{took:?} to {}", to.name);
            }
            // What waits for the limited pod is bounded, and full some time after.
            let full = || world.nodes[0].drops(DropReason::BandwidthLimit) > 0;
            eventually("drops at the limited pod", Duration::from_secs(20), full);
        });
    });
}

/// Frames wait when the node is killed; whatever comes later is limited as ever.
fn restarted(world: &mut World) {
    let a = &world.pods[0][0];
    let want = limits(Some(10), Some(20));
    let pod = Pod::attach_limited(&world.nodes[0], "limited", want);
    let told = |world: &World| {
        let pods = world.nodes[0].status().pods;
        pods.into_iter()
            .find(|p| p.pod.name == "limited")
            .expect("it is there")
            .bandwidth
    };
    assert_eq!(told(world), want);
    let table = world.nodes[0].podwire(&["pods"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("in 10M:524288, out 20M:524288"), "{table}");
    let status = world.nodes[0].end(Signal::KILL);
    assert!(!status.success());
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    assert_eq!(told(world), want);
    with_tcp(a, &pod, || holds("towards the pod", 10, &pod, TCP));
    with_tcp(&pod, a, || holds("from the pod", 20, a, TCP));
}
