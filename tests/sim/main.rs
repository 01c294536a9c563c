//! Many nodes in one process: real `Node`s, a virtual clock, and a network between them that loses, delays,
//! repeats and reorders datagrams as a seed tells it.
//!
//! ```text
//! flows -> super-frames -> Node::from_pod -> datagrams -> [impaired network] -> Node::from_peer -> checks
//! ```
//!
//! Every byte carries where it belongs, so that each delivered frame is checked by itself: right pod, right
//! flow, right bytes, right checksum. A failing run prints its seed.

mod ways;
mod world;

use podwire::model::{Change, DropReason};
use world::{Impairment, World};

/// Run 600 super-frames between 4 nodes with 3 pods each.
fn run(seed: u64, impairment: Impairment) -> World {
    println!("seed {seed}, {impairment:?}");
    let mut world = World::new(seed, 4, 3, impairment);
    for _ in 0..600 {
        world.send_random_frame();
        world.advance();
    }
    world.settle();
    world.check_balance();
    world
}

#[test]
fn a_calm_network_loses_nothing() {
    for seed in 1..=3 {
        let world = run(seed, Impairment::default());
        assert_eq!(world.delivered_bytes, world.sent_bytes);
        assert_eq!((world.total_drops(), world.datagrams_lost), (0, 0));
        assert!(world.coalesced() > 1000, "trains are merged");
    }
}

#[test]
fn loss_costs_what_was_lost_and_nothing_else() {
    for seed in 1..=3 {
        let world = run(
            seed,
            Impairment {
                loss_percent: 1,
                ..Impairment::default()
            },
        );
        assert!(world.datagrams_lost > 10);
        assert_eq!(world.delivered_bytes + world.lost_bytes, world.sent_bytes);
        assert_eq!(world.total_drops(), 0);
    }
}

#[test]
fn reordered_datagrams_all_arrive() {
    for seed in 1..=3 {
        let world = run(
            seed,
            Impairment {
                jitter_us: 500,
                ..Impairment::default()
            },
        );
        assert_eq!(world.delivered_bytes, world.sent_bytes);
    }
}

#[test]
fn repeated_datagrams_arrive_repeated() {
    for seed in 1..=3 {
        let world = run(
            seed,
            Impairment {
                repeat_percent: 5,
                jitter_us: 100,
                ..Impairment::default()
            },
        );
        assert!(world.repeated_bytes > 0);
        assert_eq!(world.delivered_bytes, world.sent_bytes + world.repeated_bytes);
    }
}

#[test]
fn everything_at_once_corrupts_nothing() {
    for seed in 1..=5 {
        let world = run(
            seed,
            Impairment {
                loss_percent: 5,
                repeat_percent: 5,
                jitter_us: 2000,
            },
        );
        assert_eq!(
            world.delivered_bytes + world.lost_bytes,
            world.sent_bytes + world.repeated_bytes
        );
    }
}

#[test]
fn a_peer_that_goes_costs_only_its_own_traffic() {
    let mut world = World::new(7, 3, 2, Impairment::default());
    let gone = world.peer(2);
    world.change_all(&Change::PeerGone(gone.name.clone()));
    for _ in 0..50 {
        world.send(0, 0, 2, 0);
        world.send(0, 1, 1, 1);
        world.advance();
    }
    world.settle();
    world.check_balance();
    assert_eq!(world.drops(0, DropReason::NoRoute), 50);
    assert_eq!(world.frames_received(1, 1), 50);
    assert_eq!(world.frames_received(2, 0), 0);
    // It is back at once, without a restart of anything.
    world.change_all(&Change::PeerSet(gone));
    world.send(0, 0, 2, 0);
    world.settle();
    assert_eq!(world.frames_received(2, 0), 1);
    world.check_balance();
}

#[test]
fn the_same_seed_is_the_same_run() {
    let impairment = Impairment {
        loss_percent: 2,
        repeat_percent: 2,
        jitter_us: 300,
    };
    let (a, b) = (run(42, impairment), run(42, impairment));
    assert_eq!(
        (a.delivered_bytes, a.datagrams_lost),
        (b.delivered_bytes, b.datagrams_lost)
    );
}
