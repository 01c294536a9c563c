//! Pods and strangers that send as fast as they can (rows 40, 41, 46 and 53 of the fault table): what they cost is
//! counted and bounded, and others are served meanwhile.
//!
//! Floods are counted to the frame: those the node took, and those the pod's TAP had no room for. Times are
//! bounded generously, as the flood, the nodes and the pods share the machine's processors.

use super::frames::{MARK, arp, ethernet, icmp6, ipv4, udp};
use super::hostile::undisturbed;
use super::impair::Rng;
use super::node::Node;
use super::pod::{FAMILIES, Family, Ping, Place, Pod};
use super::raw::{Raw, segment};
use super::traffic::{MB, stream};
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, Mac, PortCounters};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("ten_thousand_macs_a_second", macs).pods(2),
    Case::new("a_storm_of_neighbour_questions", questions).pods(2),
    Case::new("small_datagrams_at_line_rate", datagrams).pods(3),
    Case::new("garbage_at_the_tunnels_port", garbage).whole_trains(),
    Case::new("measure_garbage_at_the_tunnels_port", measure_garbage)
        .whole_trains()
        .ignored(),
];

/// How long others may wait for an answer in the midst of a flood, by the median.
const PROMPT: Duration = Duration::from_millis(50);
/// What a port may ask of the neighbour tables per second, and at once (`datapath::NEIGHBOUR_LIMIT`).
const QUESTIONS: u64 = 1000;

/// A flooder on n1, and what its node knew before.
struct Flood<'a> {
    node: &'a Node,
    eve: &'a Pod,
    mouth: Raw,
    before: PortCounters,
    lost: u64,
}

impl<'a> Flood<'a> {
    fn new(world: &'a World) -> Flood<'a> {
        let (node, eve) = (&world.nodes[0], &world.pods[0][0]);
        Flood {
            node,
            eve,
            mouth: Raw::sender(eve),
            before: node.port(&eve.name),
            lost: eve.lost_in_ring(),
        }
    }

    /// Await that each of `sent` frames was read, or lost in the ring; gives what was counted for them. The pod's
    /// own kernel may send a few more.
    fn settle(&self, sent: u64) -> PortCounters {
        let mut now = self.node.port(&self.eve.name);
        eventually("the flood is over", Duration::from_secs(10), || {
            now = self.node.port(&self.eve.name);
            let read = now.frames_from_pod - self.before.frames_from_pod;
            read + (self.eve.lost_in_ring() - self.lost) >= sent
        });
        PortCounters {
            frames_from_pod: now.frames_from_pod - self.before.frames_from_pod,
            frames_to_pod: now.frames_to_pod - self.before.frames_to_pod,
            drops: now.drops - self.before.drops,
            ..now
        }
    }
}

/// Ends floods when it goes, also when a test fails.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Row 40: invented source MACs fill no table. A table of them would be several megabytes at the end.
fn macs(world: &mut World) {
    let flood = Flood::new(world);
    let (node, eve, b) = (flood.node, flood.eve, &world.pods[0][1]);
    let mut rng = Rng(40);
    let packet = ipv4(eve.ip4, b.ip4, 17, &udp(9, 9, MARK));
    let mut send = |frames: u64| {
        for _ in 0..frames {
            let mut mac = [0; 6];
            rng.fill(&mut mac);
            // Unicast, and no pod's: those begin with 0a.
            mac[0] = 0x02;
            flood.mouth.send(&ethernet(b.mac, Mac(mac), 0x0800, &packet));
        }
    };
    send(1000);
    let memory = node.memory();
    std::thread::scope(|s| {
        let far = &world.pods[1][0];
        let pings = s.spawn(|| {
            let ping = b.ping(far.ip4, 80, Ping::PATIENT);
            ping.all(80);
            ping.median()
        });
        for _ in 0..100 {
            send(100);
            std::thread::sleep(Duration::from_millis(10));
        }
        let median = pings.join().expect("every ping is answered");
        assert!(median < PROMPT, "others wait {median:?} for an answer");
    });
    send(200_000);
    let counted = flood.settle(211_000);
    let dropped = node.drops(DropReason::SpoofedMac);
    assert_eq!(counted.drops, dropped, "all are charged to their pod");
    let read_or_lost = dropped + (eve.lost_in_ring() - flood.lost);
    assert_eq!(read_or_lost, 211_000, "each is counted");
    assert!(dropped >= 11_000, "{dropped} were read");
    let grown = node.memory().saturating_sub(memory);
    assert!(grown < 1024, "{grown} KiB more for MACs nobody has");
    for family in FAMILIES {
        b.reaches(eve.ip(family), 3, &[]);
    }
}

/// Row 41: questions are answered up to a rate, the rest is dropped and counted.
fn questions(world: &mut World) {
    const STORM: u64 = 150_000;
    let (eve, b) = (&world.pods[0][0], &world.pods[0][1]);
    let me = (eve.mac, eve.ip4);
    let ask4 = arp(1, me, (Mac([0; 6]), b.ip4));
    let [.., x, y, z] = b.ip6.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let body = [&[0; 4][..], &b.ip6.octets(), &[1, 1], &eve.mac.0].concat();
    let ask6 = icmp6(eve.ip6, group, 135, &body);
    let storms = [
        ("ARP", ethernet(Mac([0xff; 6]), eve.mac, 0x0806, &ask4)),
        (
            "NDP",
            ethernet(Mac([0x33, 0x33, 0xff, x, y, z]), eve.mac, 0x86dd, &ask6),
        ),
    ];
    for (what, frame) in storms {
        let flood = Flood::new(world);
        let node = flood.node;
        let limited = node.drops(DropReason::NeighbourLimit);
        let (begun, cpu) = (Instant::now(), node.cpu());
        undisturbed(world, || {
            for _ in 0..STORM {
                flood.mouth.send(&frame);
            }
        });
        let counted = flood.settle(STORM);
        let took = begun.elapsed();
        let limited = node.drops(DropReason::NeighbourLimit) - limited;
        let answered = counted.frames_to_pod;
        let most = QUESTIONS + took.as_millis() as u64 * QUESTIONS / 1000 + 200;
        assert!(
            (QUESTIONS..=most).contains(&answered),
            "{answered} {what} answers in {took:?}"
        );
        assert_eq!(counted.drops, limited, "what is dropped is charged to the pod");
        assert!(limited >= 1000, "{limited} {what} questions too many");
        // Others' pings ask and answer too, but nothing else may come of a storm.
        assert!(limited + answered + 50 >= counted.frames_from_pod);
        // One thread, which sleeps again at once.
        let used = node.cpu() - cpu;
        assert!(used < took + took / 4, "{used:?} of processor in {took:?}");
        let cpu = node.cpu();
        std::thread::sleep(Duration::from_millis(200));
        let idle = node.cpu() - cpu;
        assert!(idle <= Duration::from_millis(50), "busy afterwards: {idle:?}");
        // Tokens are there again a second later.
        std::thread::sleep(Duration::from_millis(1100));
    }
    eve.netns.ip("neigh flush dev eth0");
    for family in FAMILIES {
        eve.reaches(b.ip(family), 3, &[]);
    }
}

/// Row 46: a pod floods with small datagrams; each TAP has its turn, so that a pod with little to say loses
/// nothing of it.
fn datagrams(world: &mut World) {
    const LITTLE: u32 = 600;
    let [eve, b, c] = &world.pods[0][..] else {
        unreachable!("three pods");
    };
    let far = &world.pods[1][0];
    b.reaches(c.ip4, 1, &[]);
    // To a pod here, to one elsewhere, and to one that nobody has.
    for target in [c.ip4, far.ip4, Ipv4Addr::new(10, 244, 1, 222)] {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = AtomicU64::new(0);
        let before = world.nodes[0].port(&eve.name).frames_from_pod;
        std::thread::scope(|s| {
            let _over = Stop(stop.clone());
            for _ in 0..2 {
                s.spawn(|| {
                    let mouth = eve.udp(Family::V4, 0);
                    while !stop.load(Ordering::Relaxed) {
                        // Errors of earlier datagrams come back here.
                        let _ = mouth.send_to(&[7; 64], (target, 9));
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let little = s.spawn(|| {
                let ear = c.udp(Family::V4, 4646);
                ear.set_read_timeout(Some(Duration::from_secs(2)))
                    .expect("a timeout");
                let mouth = b.udp(Family::V4, 0);
                let listener =
                    s.spawn(move || (0..LITTLE).filter(|_| ear.recv(&mut [0; 64]).is_ok()).count());
                for _ in 0..LITTLE {
                    mouth.send_to(&[5; 64], (c.ip4, 4646)).expect("it is sent");
                    std::thread::sleep(Duration::from_millis(1));
                }
                listener.join().expect("it only listens")
            });
            let heard = little.join();
            b.reaches(c.ip6, 20, &[]);
            stream(c, b, Family::V4, MB);
            assert_eq!(heard.ok(), Some(LITTLE as usize), "of a neighbour's datagrams");
        });
        let read = world.nodes[0].port(&eve.name).frames_from_pod - before;
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent > 10_000 && read > 1000, "{sent} were sent, {read} were read");
    }
    b.reaches(far.ip4, 3, &[]);
}

/// A flood of trains at n1's port until told to stop, of so many datagrams per second at most; gives the datagrams
/// sent.
fn spray(from: &UdpSocket, world: &World, rate: u64, stop: &AtomicBool) -> u64 {
    const TRAIN: usize = 64;
    segment(from, 60);
    let to = (world.underlay.hosts[0].ip4, 8472);
    let mut rng = Rng(53);
    let mut train = [0; 60 * TRAIN];
    let (begun, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        if sent > begun.elapsed().as_micros() as u64 * rate / 1_000_000 {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        rng.fill(&mut train);
        sent += TRAIN as u64 * u64::from(from.send_to(&train, to).is_ok());
    }
    sent
}

/// Sockets a flood can come from: a peer's machine, and a stranger's.
fn mouths(world: &World) -> [UdpSocket; 2] {
    let (peer, stranger) = (&world.underlay.hosts[1], &world.underlay.hosts[2]);
    [peer, stranger].map(|host| {
        let socket = host.netns.within(|| UdpSocket::bind((host.ip4, 0)));
        socket.expect("a socket")
    })
}

/// Row 53: garbage from a peer's address and from a stranger's is counted by its reason, and costs others little.
fn garbage(world: &mut World) {
    let (a, b) = world.pair();
    let node = &world.nodes[0];
    for family in FAMILIES {
        a.reaches(b.ip(family), 1, &[]);
    }
    let memory = node.memory();
    let stop = Arc::new(AtomicBool::new(false));
    let mouths = mouths(world);
    let sent: Vec<u64> = std::thread::scope(|s| {
        let over = Stop(stop.clone());
        let floods = mouths
            .each_ref()
            .map(|m| s.spawn(|| spray(m, world, 100_000, &stop)));
        std::thread::sleep(Duration::from_millis(300));
        for family in FAMILIES {
            stream(a, b, family, 2 * MB);
            stream(b, a, family, 2 * MB);
            a.reaches(b.ip(family), 20, &[]);
        }
        drop(over);
        floods.map(|f| f.join().expect("it only sends")).into()
    });
    let drops = |reason| node.drops(reason);
    eventually("each datagram is accounted for", Duration::from_secs(5), || {
        // One more datagram brings the count of those the socket had no room for.
        a.reaches(b.ip4, 1, &[]);
        let lost = drops(DropReason::ReceiveOverflow);
        let [bad, strange] = [DropReason::BadVxlan, DropReason::UnknownPeer].map(drops);
        // The relay's rings may have lost some as well.
        assert!(
            bad <= sent[0] && strange <= sent[1],
            "{bad} {strange} of {sent:?}"
        );
        bad > sent[0] / 10 && strange > sent[1] / 10 && bad + strange + lost <= sent[0] + sent[1]
    });
    let grown = node.memory().saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more after a flood");
}

/// The same at a million datagrams per second: legitimate traffic keeps half of what it has without.
fn measure_garbage(world: &mut World) {
    const BYTES: usize = 64 * MB;
    let (a, b) = world.pair();
    let median = || {
        let mut times: Vec<Duration> = (0..5).map(|_| stream(b, a, Family::V4, BYTES)).collect();
        times.sort();
        times[2]
    };
    let quiet = median();
    let stop = Arc::new(AtomicBool::new(false));
    let [_, stranger] = mouths(world);
    let (flooded, sent, took) = std::thread::scope(|s| {
        let (begun, over) = (Instant::now(), Stop(stop.clone()));
        let flood = s.spawn(|| spray(&stranger, world, 1_000_000, &stop));
        let flooded = median();
        drop(over);
        (flooded, flood.join().expect("it only sends"), begun.elapsed())
    });
    let rate = sent as f64 / took.as_secs_f64() / 1e6;
    println!(
        "netns: TAP offloads {:?}: {quiet:?} for 64 MB, {flooded:?} under {rate:.2} Mpps of garbage",
        world.mode
    );
    assert!(
        flooded < quiet * 2,
        "{flooded:?} under a flood, {quiet:?} without"
    );
}
