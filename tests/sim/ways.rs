//! The way to a peer (rows 1 to 4 and 10 of the fault table): peers that vanish, ways that lead in one direction only,
//! paths that swallow large packets, links that come and go. Pods send all the while.

use super::world::{Impairment, World};
use podwire::datapath::News;
use podwire::model::DropReason;
use podwire::overlay::Reach;

/// Host unreachable, address unreachable.
const UNREACHABLE: [(u8, u8); 2] = [(3, 1), (1, 3)];
/// Fragmentation needed, packet too big.
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];

/// Three nodes of which all send to all others each 50 ms, one packet or two, for so long.
fn traffic(world: &mut World, ms: i64) {
    for _ in 0..ms / 50 {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            world.send_some(from, 0, to, 1, 2000);
        }
        world.pass(50);
    }
}

fn three() -> World {
    let mut world = World::new(11, 3, 2, Impairment::default());
    traffic(&mut world, 500);
    world
}

fn is_silent(world: &World, n: usize, other: usize) -> bool {
    world.state(n, other).probes.is_silent()
}

/// What every story ends with: all reach all, and each frame is accounted for.
fn all_is_well(world: &mut World) {
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        assert!(
            matches!(world.state(from, to).probes.reach(), Reach::Up(_)),
            "{from} to {to}: {:?}",
            world.state(from, to).probes
        );
        let before = world.frames_received(to, 1);
        world.send(from, 0, to, 1);
        world.settle();
        assert!(world.frames_received(to, 1) > before, "{from} to {to}");
    }
    world.check_balance();
}

#[test]
fn a_peer_that_vanishes_is_told_of_and_costs_nobody_else() {
    let mut world = three();
    for other in [0, 2] {
        world.cut(1, other, true);
        world.cut(other, 1, true);
    }
    traffic(&mut world, 7000);
    for n in [0, 2] {
        assert!(is_silent(&world, n, 1), "{:?}", world.state(n, 1).probes);
        let name = world.peer(1).name;
        let news = [News {
            peer: name,
            at: world.peer(1).underlay,
            silent: true,
        }];
        assert_eq!(world.news(n), news);
    }
    let (sent, drops, told) = (
        world.traffic(0, 1),
        world.drops(0, DropReason::PeerSilent),
        world.told(0, UNREACHABLE),
    );
    let others = world.frames_received(2, 1);
    traffic(&mut world, 10_000);
    // One probe a second, and of the four flows between two pods one frame each 5 s that tries; each other frame is
    // dropped, and its pod told.
    let sent = world.traffic(0, 1) - sent;
    let dropped = world.drops(0, DropReason::PeerSilent) - drops;
    let errors = world.told(0, UNREACHABLE) - told;
    assert_eq!(dropped, errors as u64);
    let tried = 200 - dropped;
    assert!((8..=12).contains(&tried), "{tried}");
    // A frame is one datagram or two.
    assert!((9 + tried..=11 + 2 * tried).contains(&sent), "{sent}");
    assert!(world.frames_received(2, 1) - others >= 200);
    assert!(!is_silent(&world, 0, 2) && !is_silent(&world, 2, 0));
    // Whose probe comes first wakes both.
    for other in [0, 2] {
        world.cut(1, other, false);
        world.cut(other, 1, false);
    }
    traffic(&mut world, 1100);
    for (from, to) in [(0, 1), (1, 0), (2, 1), (1, 2)] {
        assert!(!is_silent(&world, from, to));
    }
    assert_eq!(world.news(0).len(), 1);
    all_is_well(&mut world);
}

/// A pod of node 0 asks one of node 1 each 50 ms, for so long, and is answered by whoever hears it: how often.
fn questions(world: &mut World, ms: i64) -> usize {
    let mut answered = 0;
    for _ in 0..ms / 50 {
        let heard = world.frames_received(1, 1);
        world.send_some(0, 0, 1, 1, 1000);
        world.pass(25);
        if world.frames_received(1, 1) > heard {
            answered += 1;
            world.send_some(1, 1, 0, 0, 1000);
        }
        world.pass(25);
    }
    answered
}

/// The same, to which nobody has an answer: how much arrived.
fn monologue(world: &mut World, ms: i64) -> u64 {
    let before = world.frames_received(1, 1);
    for _ in 0..ms / 50 {
        world.send_some(0, 0, 1, 1, 1000);
        world.pass(50);
    }
    world.frames_received(1, 1) - before
}

#[test]
fn a_peer_whose_echo_replies_are_filtered_from_now_on_is_not_cut_off() {
    let mut world = three();
    world.mute(1, true);
    // Nothing tells it from one that is dead,
    monologue(&mut world, 8000);
    assert!(is_silent(&world, 0, 1));
    // but for an answer to a frame, of which each flow has one within 5 s.
    assert!(questions(&mut world, 5000) > 0);
    let told = world.told(0, UNREACHABLE);
    assert_eq!(questions(&mut world, 10_000), 200);
    assert_eq!(world.told(0, UNREACHABLE), told);
    assert!(!is_silent(&world, 0, 1));
    // From then on its silence says nothing,
    assert_eq!(monologue(&mut world, 60_000), 1200);
    assert!(!is_silent(&world, 0, 1));
    // until it answers a probe again.
    world.mute(1, false);
    monologue(&mut world, 11_000);
    world.cut(0, 1, true);
    monologue(&mut world, 7000);
    assert!(is_silent(&world, 0, 1));
    world.cut(0, 1, false);
    traffic(&mut world, 1100);
    all_is_well(&mut world);
}

#[test]
fn a_peer_that_only_listens_is_cut_off_for_ten_minutes_at_most() {
    let mut world = three();
    world.mute(1, true);
    monologue(&mut world, 10_000);
    assert!(is_silent(&world, 0, 1));
    // A frame of each of four flows now and then.
    let tried = monologue(&mut world, 60_000);
    assert!((24..=52).contains(&tried), "{tried}");
    for _ in 0..600 {
        world.send_some(0, 0, 1, 1, 1000);
        world.pass(1000);
    }
    let told = world.told(0, UNREACHABLE);
    assert_eq!(monologue(&mut world, 60_000), 1200);
    // To a pod it is told on: the peer may as well be dead.
    assert!(world.told(0, UNREACHABLE) - told > 1000);
    assert!(is_silent(&world, 0, 1));
    world.mute(1, false);
    traffic(&mut world, 1100);
    all_is_well(&mut world);
}

#[test]
fn a_way_that_leads_in_one_direction_only_is_known_at_both_ends() {
    let mut world = three();
    // Node 1 is not heard by node 0.
    world.cut(1, 0, true);
    traffic(&mut world, 9000);
    for _ in 0..5 {
        assert!(is_silent(&world, 0, 1), "who hears nothing knows");
        assert!(!is_silent(&world, 1, 0), "who hears does not think it dead");
        assert!(world.state(1, 0).probes.deaf().is_some(), "but knows");
        assert!(world.state(0, 1).probes.deaf().is_none());
        for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
            let probes = &world.state(from, to).probes;
            assert!(matches!(probes.reach(), Reach::Up(_)) && probes.deaf().is_none());
        }
        traffic(&mut world, 2000);
    }
    assert_eq!(world.news(0).len(), 1, "no flapping");
    assert_eq!((world.news(1).len(), world.news(2).len()), (0, 0));
    world.cut(1, 0, false);
    traffic(&mut world, 2500);
    assert!(world.state(1, 0).probes.deaf().is_none());
    all_is_well(&mut world);
}

#[test]
fn a_path_that_swallows_large_packets_is_found_out_and_gets_better() {
    let mut world = three();
    world.swallow(Some(1400));
    traffic(&mut world, 11_000);
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        let known = world.state(from, to).learned_mtu;
        assert_eq!(known.map(|(m, _)| m.0), Some(1400), "{from} to {to}");
        assert!(!is_silent(&world, from, to));
    }
    // No frame is lost in silence any more: what is too large is told to its pod.
    let (lost, told) = (world.datagrams_lost, world.told(0, TOO_BIG));
    traffic(&mut world, 2000);
    assert_eq!(world.datagrams_lost, lost);
    assert!(world.told(0, TOO_BIG) > told + 10);
    world.swallow(None);
    traffic(&mut world, 62_000);
    assert_eq!(world.state(0, 1).learned_mtu, None);
    all_is_well(&mut world);
}

#[test]
fn a_link_that_comes_and_goes_is_no_news() {
    let mut world = three();
    for n in 0..20 {
        for other in [0, 2] {
            world.cut(1, other, n % 2 == 0);
            world.cut(other, 1, n % 2 == 0);
        }
        traffic(&mut world, 1000);
        assert!(!is_silent(&world, 0, 1) && !is_silent(&world, 1, 0));
    }
    for n in 0..3 {
        assert_eq!(world.news(n), []);
    }
    assert_eq!(world.state(0, 1).learned_mtu, None);
    // Slowly enough to be silent each time: it is told seldom.
    for n in 0..12 {
        for other in [0, 2] {
            world.cut(1, other, n % 2 == 0);
            world.cut(other, 1, n % 2 == 0);
        }
        traffic(&mut world, 8000);
        assert_eq!(is_silent(&world, 0, 1), n % 2 == 0);
    }
    assert!((2..=4).contains(&world.news(0).len()));
    all_is_well(&mut world);
}

#[test]
fn loss_alone_kills_nobody_and_narrows_no_path() {
    for seed in 1..=3 {
        let impairment = Impairment {
            loss_percent: 10,
            jitter_us: 20_000,
            ..Impairment::default()
        };
        let mut world = World::new(seed, 3, 2, impairment);
        traffic(&mut world, 30_000);
        for (from, to) in [(0, 1), (1, 0), (2, 1)] {
            assert!(!is_silent(&world, from, to));
            assert_eq!(world.state(from, to).learned_mtu, None, "seed {seed}");
        }
        world.check_balance();
    }
}
