//! Transfers over an underlay that loses, reorders, repeats and damages single packets (rows 6 to 8 of the
//! fault table): bytes arrive intact, and what was merged by mistake would show.

use super::impair::{Impairment, PERCENT};
use super::pod::{FAMILIES, Place};
use super::traffic::{MB, stream};
use super::world::{Case, World};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("bulk_under_loss", loss),
    Case::new("bulk_under_loss_of_whole_trains", loss).whole_trains(),
    Case::new("bulk_under_little_loss", little_loss),
    Case::new("bulk_under_much_loss", much_loss),
    Case::new("bulk_under_much_loss_of_whole_trains", much_loss).whole_trains(),
    Case::new("bulk_under_reordering_and_duplication", disorder),
    Case::new("bulk_under_reordering_of_whole_trains", disorder).whole_trains(),
    Case::new("bulk_under_corruption", corruption),
    Case::new("bulk_under_corruption_with_right_sums", corruption_inside),
    Case::new("duplicates_stay_duplicates", duplicates),
];

const NONE: Impairment = Impairment {
    loss: 0,
    duplicate: 0,
    reorder: 0,
    corrupt: 0,
    corrupt_inside: 0,
    delay: std::time::Duration::ZERO,
    rate: None,
    longest: None,
    cut: false,
};

/// Streams between the two nodes under `rules`, both ways. Neighbours are known beforehand: a lost question
/// for them costs a second.
fn streams(world: &World, rules: Impairment, bytes: usize) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        a.reaches(b.ip(family), 1, &[]);
    }
    world.underlay.relay.impair_all(rules);
    for family in FAMILIES {
        stream(a, b, family, bytes);
        stream(b, a, family, bytes / 4);
    }
    world.underlay.relay.impair_all(NONE);
    a.reaches(b.ip4, 3, &[]);
}

fn loss(world: &mut World) {
    let loss = PERCENT;
    streams(world, Impairment { loss, ..NONE }, 8 * MB);
    let counters = world.underlay.relay.counters();
    assert!(counters.lost > 5, "{counters:?}");
}

/// One in a thousand.
fn little_loss(world: &mut World) {
    let loss = PERCENT / 10;
    streams(world, Impairment { loss, ..NONE }, 8 * MB);
    let counters = world.underlay.relay.counters();
    assert!(counters.lost > 0, "{counters:?}");
}

/// One in twenty, where TCP hardly moves.
fn much_loss(world: &mut World) {
    let loss = 5 * PERCENT;
    streams(world, Impairment { loss, ..NONE }, MB);
    let counters = world.underlay.relay.counters();
    assert!(counters.lost > 5, "{counters:?}");
}

fn disorder(world: &mut World) {
    let rules = Impairment {
        reorder: 2 * PERCENT,
        duplicate: 2 * PERCENT,
        ..NONE
    };
    streams(world, rules, 8 * MB);
    let counters = world.underlay.relay.counters();
    assert!(
        counters.reordered > 10 && counters.duplicated > 10,
        "{counters:?}"
    );
}

fn corruption(world: &mut World) {
    let corrupt = PERCENT;
    streams(world, Impairment { corrupt, ..NONE }, 8 * MB);
    let counters = world.underlay.relay.counters();
    assert!(counters.corrupted > 50, "{counters:?}");
}

/// Damage that the outer checksum does not show: what is in the tunnel must be judged by itself, by the node as
/// far as it reads, by the pod's stack for the rest. Nothing may be given a new checksum unseen.
fn corruption_inside(world: &mut World) {
    let corrupt_inside = PERCENT;
    let rules = Impairment {
        corrupt_inside,
        ..NONE
    };
    streams(world, rules, 8 * MB);
    let counters = world.underlay.relay.counters();
    assert!(counters.corrupted > 50, "{counters:?}");
    let dropped: u64 = world.nodes.iter().map(|n| n.status().counters.dropped).sum();
    assert!(dropped > 0, "headers were damaged too");
}

fn duplicates(world: &mut World) {
    let (a, b) = world.pair();
    a.reaches(b.ip4, 1, &[]);
    let twice = Impairment {
        duplicate: 100 * PERCENT,
        ..NONE
    };
    world.underlay.relay.impair(0, 1, twice);
    let ping = a.ping(b.ip4, 20, &[]);
    assert_eq!(ping.answered, 20, "{}", ping.text);
    // The last answer ends ping before its double is there.
    assert!(
        ["+19 duplicates", "+20 duplicates"]
            .iter()
            .any(|d| ping.text.contains(d)),
        "{}",
        ping.text
    );
}
