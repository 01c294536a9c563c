//! VDE's vxlan plug as a peer: another implementation in user space, one packet at a time.
//!
//! It only joins VXLAN networks of a multicast group. Debian 12's (4.0.1) learns no addresses: it takes a
//! sender's from memory it never set, and then sends to nowhere. Told to keep no table (`hashsize=0`) it sends
//! everything to the group, so n1's host has to be in it; n1 answers it by unicast.

use super::foreign::{Daemon, Machine, have};
use super::netns::Netns;
use super::world::{Case, World, eventually};
use std::process::Command;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[Case::new("vde", peer).bind_any()];

fn peer(world: &mut World) {
    if !have(&["vde_plug"]) {
        return;
    }
    let [near, .., far] = &world.underlay.hosts[..] else {
        unreachable!("there are more than two");
    };
    near.netns.ip("addr add 239.0.0.1/32 dev eth0 autojoin");
    let mut plug = Command::new("vde_plug");
    plug.args([
        "vxlan://239.0.0.1/port=8472/vni=1/if=eth0/hashsize=0",
        "tap://vde0",
    ]);
    let mut plug = Daemon::start(&far.netns, plug);
    let there = || far.netns.run("ip", &["link", "show", "vde0"]).status.success();
    eventually("the plug's TAP is there", Duration::from_secs(5), there);
    far.netns.ip(&format!(
        "link set vde0 address {} addrgenmode none\n",
        world.vtep_mac(9)
    ));
    let pod = Netns::new();
    let machine = Machine {
        floods: true,
        ..Machine::new(world, (&far.netns, &pod), "vde0", 1450, far.ip4.into())
    };
    machine.talks(world);
    assert!(plug.runs(), "vde_plug has ended");
}
