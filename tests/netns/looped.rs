//! A pod that is two ports of its node and joins them by a bridge (row 42 of the fault table). What it sends by one
//! comes back by the other, and goes round. The node multiplies nothing: a frame in is one frame out to each other
//! port, the limit of broadcasts ends the round, and no frame of it enters the tunnel.

use super::frames::{MARK, ethernet, ipv4, udp};
use super::hostile::undisturbed;
use super::pod::{FAMILIES, Place};
use super::raw::Raw;
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, Mac};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[Case::new("a_pod_bridges_two_ports", bridged).pods(2)];

/// Broadcasts of a port per second, and at once: the default of `limits.broadcast_per_second`.
const LIMIT: u64 = 1000;
/// Frames that go round.
const FRAMES: u64 = 5;

fn bridged(world: &mut World) {
    let (eve, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let node = &world.nodes[0];
    // A second attachment brings its own.
    for family in ["-4", "-6"] {
        eve.netns.ask("ip", &[family, "route", "del", "default"]);
    }
    eve.attach_also(node, "second", "eth1");
    eve.netns
        .ip("link add br0 type bridge stp_state 0 mcast_snooping 0\n\
         link set eth0 master br0\nlink set eth1 master br0\nlink set br0 up\n");
    let forwards = || {
        let told = eve.netns.ask("bridge", &["link"]);
        told.lines().filter(|l| l.contains("state forwarding")).count() == 2
    };
    eventually("the bridge forwards", Duration::from_secs(5), forwards);
    let port = |name: &str| node.port(name);
    let (ear, far_ear) = (Raw::listener(b), Raw::listener(far));
    let mouth = Raw::sender(eve);
    let packet = ipv4(eve.ip4, Ipv4Addr::BROADCAST, 17, &udp(9, 9, MARK));
    let frame = ethernet(Mac([0xff; 6]), eve.mac, 0x0800, &packet);
    let (begun, limited) = (Instant::now(), node.drops(DropReason::StormLimit));
    let before = (port("a1"), port("second"), port("b1"));
    undisturbed(world, || {
        for _ in 0..FRAMES {
            mouth.send(&frame);
        }
        // Each frame goes round until it is one too many.
        eventually("the round ends", Duration::from_secs(5), || {
            node.drops(DropReason::StormLimit) >= limited + FRAMES
        });
    });
    let after = (port("a1"), port("second"), port("b1"));
    let inward = after.0.frames_from_pod - before.0.frames_from_pod + after.1.frames_from_pod
        - before.1.frames_from_pod;
    let outward = after.2.frames_to_pod - before.2.frames_to_pod;
    let most = LIMIT + begun.elapsed().as_millis() as u64 * LIMIT / 1000;
    // The neighbour's own pings and their answers come to it as well.
    assert!(
        outward <= most + 100,
        "{outward} frames to a neighbour, at most {most} may be"
    );
    assert!(
        outward <= inward + 100,
        "{inward} frames in, {outward} out to one port"
    );
    assert!(inward > FRAMES * 10, "nothing went round: {inward} frames in");
    assert!(ear.heard(MARK), "it was a broadcast");
    assert!(!far_ear.heard(MARK), "a broadcast entered the tunnel");
    // It is over, and stays so.
    std::thread::sleep(Duration::from_millis(100));
    let (quiet, idle) = (port("b1").frames_to_pod, node.cpu());
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        port("b1").frames_to_pod <= quiet + 10,
        "something goes round still"
    );
    assert!(node.cpu() - idle < Duration::from_millis(100));
    // What neighbours send is not passed on in their name: the bridge is no way around the source guard.
    let spoofed = node.drops(DropReason::SpoofedMac);
    let packet = ipv4(b.ip4, Ipv4Addr::BROADCAST, 17, &udp(9, 9, MARK));
    Raw::sender(b).send(&ethernet(Mac([0xff; 6]), b.mac, 0x0800, &packet));
    eventually("both copies are refused", Duration::from_secs(2), || {
        node.drops(DropReason::SpoofedMac) >= spoofed + 2
    });
    eve.netns.ip("link del br0");
    for family in FAMILIES {
        b.reaches(far.ip(family), 3, &[]);
    }
}
