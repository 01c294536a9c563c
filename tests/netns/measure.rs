//! Throughput beside kernel VXLAN over the same relay with the same faults (rows 6 and 7 of the fault table).
//! Measured on request, as figures of a busy machine or of a debug build tell nothing:
//! `cargo test --release --test netns -- --ignored --nocapture --test-threads 1 measure`.

use super::impair::{Impairment, PERCENT};
use super::netns::Netns;
use super::pod::{Family, Place};
use super::traffic::{MB, stream};
use super::world::{Case, World};
use podwire::model::OffloadMode;
use std::net::IpAddr;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("measure_loss_of_a_thousandth", |w| {
        beside(w, loss(PERCENT / 10), 80)
    })
    .ignored(),
    Case::new("measure_loss_of_a_hundredth", |w| beside(w, loss(PERCENT), 80)).ignored(),
    Case::new("measure_disorder", |w| beside(w, disorder(), 70)).ignored(),
    Case::new("measure_no_faults", |w| beside(w, Impairment::default(), 70)).ignored(),
];

/// Bytes of a transfer, and how many of each kind take turns.
const BYTES: usize = 64 * MB;
const TURNS: usize = 5;

fn loss(loss: u32) -> Impairment {
    Impairment {
        loss,
        ..Impairment::default()
    }
}

fn disorder() -> Impairment {
    Impairment {
        reorder: PERCENT,
        duplicate: PERCENT,
        ..Impairment::default()
    }
}

/// A host at its kernel VXLAN device: with offloads where the pods have them, without where not.
struct Vtep<'a>(&'a Netns, u8);

impl<'a> Vtep<'a> {
    fn new(world: &'a World, own: u8, other: u8) -> Vtep<'a> {
        let netns = &world.underlay.hosts[usize::from(own) - 1].netns;
        netns.ip(&format!(
            "link add vx0 type vxlan id 7 dstport 4789 local 192.0.2.{own} remote 192.0.2.{other}\n\
             addr add 10.9.0.{own}/24 dev vx0\n\
             addr add fd00:10:9::{own}/64 dev vx0 nodad\n\
             link set vx0 mtu 1450 up\n"
        ));
        if world.mode == OffloadMode::Off {
            netns.run(
                "ethtool",
                &["-K", "vx0", "tso", "off", "gso", "off", "gro", "off"],
            );
        }
        Vtep(netns, own)
    }
}

impl Place for Vtep<'_> {
    fn name(&self) -> &str {
        "kernel VXLAN"
    }

    fn netns(&self) -> &Netns {
        self.0
    }

    fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [10, 9, 0, self.1].into(),
            Family::V6 => [0xfd00, 0x10, 9, 0, 0, 0, 0, u16::from(self.1)].into(),
        }
    }
}

/// Podwire must reach so many percent of what kernel VXLAN does under `rules`, by the median of five turns.
fn beside(world: &mut World, rules: Impairment, percent: u32) {
    let (a, b) = world.pair();
    let (near, far) = (Vtep::new(world, 1, 2), Vtep::new(world, 2, 1));
    for (from, to) in [(a as &dyn Place, b as &dyn Place), (&near, &far)] {
        stream(from, to, Family::V4, MB);
    }
    world.underlay.relay.impair_all(rules);
    let (mut ours, mut kernels) = (vec![], vec![]);
    for _ in 0..TURNS {
        ours.push(stream(a, b, Family::V4, BYTES));
        kernels.push(stream(&near, &far, Family::V4, BYTES));
    }
    world.underlay.relay.impair_all(Impairment::default());
    let gbit = |times: &mut Vec<Duration>| {
        times.sort();
        (BYTES * 8) as f64 / times[TURNS / 2].as_secs_f64() / 1e9
    };
    let (ours, kernels) = (gbit(&mut ours), gbit(&mut kernels));
    println!(
        "netns: TAP offloads {:?}: podwire {ours:.2} Gbit/s, kernel VXLAN {kernels:.2} Gbit/s, {rules:?}",
        world.mode
    );
    assert!(
        ours * 100.0 >= kernels * f64::from(percent),
        "{ours:.2} Gbit/s are less than {percent} % of {kernels:.2} Gbit/s"
    );
}
