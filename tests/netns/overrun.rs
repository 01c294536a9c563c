//! The receive buffer overruns (row 13 of the fault table): a node that stands still loses what does not fit,
//! says how much, and disturbs nobody else.

use super::pod::{FAMILIES, Place};
use super::traffic::{MB, stream};
use super::world::{Case, World};
use podwire::model::DropReason;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_node_stands_still_under_load", stands_still)
        .nodes(3)
        .pods(2)
        .node_args(&["--receive-buffer", "65536"]),
    Case::new("a_stream_outlives_a_pause", paused_stream),
];

fn stands_still(world: &mut World) {
    let [one, two, three] = &world.pods[..] else {
        unreachable!("three nodes");
    };
    for family in FAMILIES {
        one[0].reaches(two[0].ip(family), 2, &[]);
        one[1].reaches(three[0].ip(family), 2, &[]);
    }
    world.nodes[1].signal(Signal::STOP);
    let stop = AtomicBool::new(false);
    let flooded = std::thread::scope(|s| {
        let flood = s.spawn(|| {
            let mouth = one[0].udp(FAMILIES[0], 0);
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..10 {
                    sent += u64::from(mouth.send_to(&[7; 1000], (two[0].ip4, 9)).is_ok());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        // Neither the sender's node nor a third one is held up.
        for family in FAMILIES {
            one[1].reaches(three[0].ip(family), 80, &[]);
            one[0].reaches(one[1].ip(family), 10, &[]);
            stream(&three[0], &one[1], family, 2 * MB);
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("it only sends")
    });
    world.nodes[1].signal(Signal::CONT);
    for family in FAMILIES {
        one[0].reaches(two[0].ip(family), 5, &[]);
        two[1].reaches(three[1].ip(family), 5, &[]);
    }
    let lost = world.nodes[1].drops(DropReason::ReceiveOverflow);
    assert!(
        lost > 100 && lost < flooded + 10,
        "{lost} of {flooded} datagrams were lost"
    );
    // The kernel's own count of the same, for all sockets of the host.
    let known = receive_errors(world);
    assert_eq!(lost, known, "counted by the node, and by the kernel");
    stream(&one[0], &two[0], FAMILIES[0], 2 * MB);
}

fn receive_errors(world: &World) -> u64 {
    let snmp = world.underlay.hosts[1]
        .netns
        .within(|| std::fs::read_to_string("/proc/thread-self/net/snmp").expect("it can be read"));
    let rows: Vec<Vec<&str>> = snmp
        .lines()
        .filter(|l| l.starts_with("Udp:"))
        .map(|l| l.split_whitespace().collect())
        .collect();
    let at = rows[0].iter().position(|name| *name == "RcvbufErrors");
    rows[1][at.expect("a column")].parse().expect("a number")
}

/// A TCP stream through a node that stops for a second goes on where it was.
fn paused_stream(world: &mut World) {
    let (a, b) = world.pair();
    std::thread::scope(|s| {
        let transfer = s.spawn(|| stream(a, b, FAMILIES[0], 32 * MB));
        std::thread::sleep(Duration::from_millis(50));
        for node in &world.nodes {
            node.signal(Signal::STOP);
            std::thread::sleep(Duration::from_millis(500));
            node.signal(Signal::CONT);
        }
        transfer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
