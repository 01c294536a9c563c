//! Who reaches whom, with what: pings of all pairs, sizes, hops, broadcasts, any protocol.

use super::pod::FAMILIES;
use super::world::{Case, World};

/// The tests.
pub const CASES: &[Case] = &[Case::new("ping_all_pairs", ping_all_pairs).pods(2)];

fn ping_all_pairs(world: &mut World) {
    for family in FAMILIES {
        for from in world.all_pods() {
            for to in world.all_pods() {
                from.ping(to.ip(family), 2, &[]).all();
            }
        }
    }
}
