//! Bulk transfers whose every byte is compared, on an underlay without faults.

use super::frames::{MARK, udp6};
use super::pod::{FAMILIES, Family, Place};
use super::raw;
use super::traffic::{MB, connect, datagrams, stream};
use super::world::{Case, World, eventually};
use podwire::model::OffloadMode;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("bulk_across_nodes", across),
    Case::new("bulk_across_nodes_in_whole_trains", across_some).whole_trains(),
    Case::new("bulk_over_an_ipv6_underlay", across_some).underlay6(),
    Case::new("bulk_without_udp_segment", no_udp_segment)
        .whole_trains()
        .node_args(&["--offload-udp-gso", "off"]),
    Case::new("bulk_without_udp_gro", no_udp_gro)
        .whole_trains()
        .node_args(&["--offload-udp-gro", "off"]),
    Case::new("bulk_with_each_acknowledgement", each_acknowledgement).node_args(&["--offload-acks", "off"]),
    Case::new("bulk_with_checksums_complete", complete_checksums)
        .pods(2)
        .node_args(&["--offload-checksum", "off"]),
    Case::new("bulk_at_another_vni_and_port", another_vni_and_port)
        .node_args(&["--vni", "70000", "--port", "4789"]),
    Case::new("bulk_on_a_node", on_a_node).pods(2),
    Case::new("many_streams_both_ways", many).pods(2),
    Case::new("small_writes_in_order", small_writes),
    Case::new("datagrams_of_all_sizes", all_sizes).pods(2),
    Case::new("datagram_trains", trains).pods(2),
    Case::new("datagram_trains_in_whole_trains", trains)
        .pods(2)
        .whole_trains(),
];

fn across(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        stream(a, b, family, 32 * MB);
    }
    let counters = world.nodes[0].status().counters;
    if world.mode == OffloadMode::On {
        let mean = counters.tap_read_bytes / counters.tap_reads.max(1);
        assert!(mean > 8000, "super-frames leave the pod: {mean} bytes a read");
        let far = world.nodes[1].status().counters;
        assert!(
            far.coalesced > far.datagrams_from_peers / 4,
            "datagrams are merged on arrival: {far:?}"
        );
    }
}

fn across_some(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        stream(a, b, family, 8 * MB);
    }
}

/// Each datagram is a packet of its own on the link, although the link would take whole trains.
fn no_udp_segment(world: &mut World) {
    across(world);
    let datagrams: u64 = world
        .nodes
        .iter()
        .map(|n| n.status().counters.datagrams_to_peers)
        .sum();
    let offered = world.underlay.relay.counters().offered;
    assert!(
        offered >= datagrams,
        "{offered} packets for {datagrams} datagrams"
    );
}

fn each_acknowledgement(world: &mut World) {
    across_some(world);
    let merged: u64 = world.nodes.iter().map(|n| n.status().counters.acks_merged).sum();
    assert_eq!(merged, 0);
}

/// Each datagram is a message of its own to the node, although it was part of a train on the link.
fn no_udp_gro(world: &mut World) {
    across(world);
    for node in &world.nodes {
        let c = node.status().counters;
        assert_eq!(c.underlay_messages, c.datagrams_from_peers);
    }
    let datagrams: u64 = world
        .nodes
        .iter()
        .map(|n| n.status().counters.datagrams_to_peers)
        .sum();
    let offered = world.underlay.relay.counters().offered;
    assert!(
        world.mode == OffloadMode::Off || offered < datagrams / 4,
        "{offered} packets for {datagrams}"
    );
}

fn another_vni_and_port(world: &mut World) {
    across(world);
    for node in &world.nodes {
        let status = node.status();
        assert_eq!((status.vni, status.underlay[0].port()), (70_000, 4789));
        assert!(status.peers[0].underlay.port() == 4789 && status.peers[0].last_heard_ms.is_some());
    }
}

fn on_a_node(world: &mut World) {
    let [a, b] = &world.pods[0][..] else {
        unreachable!("two pods");
    };
    for family in FAMILIES {
        stream(a, b, family, 32 * MB);
    }
    let counters = world.nodes[0].status().counters;
    assert_eq!(counters.frames_to_peers, 0, "nothing goes through the tunnel");
}

/// With `--offload-checksum off` even pods of one node, whose kernels would trust each other, get whole checksums.
fn complete_checksums(world: &mut World) {
    on_a_node(world);
    let [a, b] = &world.pods[0][..] else {
        unreachable!("two pods");
    };
    let heard = raw::Raw::listener(b);
    let (mouth, ear) = (a.udp(Family::V6, 0), b.udp(Family::V6, 0));
    mouth
        .send_to(MARK, ear.local_addr().expect("it is bound"))
        .expect("it is sent");
    let port = |socket: &UdpSocket| socket.local_addr().expect("it is bound").port();
    let want = udp6(a.ip6, b.ip6, (port(&mouth), port(&ear)), MARK);
    eventually("its datagram, complete", Duration::from_secs(1), || {
        heard.heard(&want)
    });
}

fn many(world: &mut World) {
    let pods: Vec<_> = world.all_pods().collect();
    std::thread::scope(|s| {
        for (from, to) in [(0, 2), (1, 3), (2, 0), (3, 1), (0, 1)] {
            for family in FAMILIES {
                let (from, to) = (pods[from], pods[to]);
                s.spawn(move || stream(from, to, family, 4 * MB));
            }
        }
    });
}

/// Many small segments, each pushed: nothing may be withheld for the sake of merging.
fn small_writes(world: &mut World) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        let listener = b.listen(family);
        let at = listener.local_addr().expect("it is bound");
        let mut near = connect(a, at).expect("a connection");
        near.set_nodelay(true).expect("a flag");
        let (mut far, _) = listener.accept().expect("a connection");
        far.set_nodelay(true).expect("a flag");
        far.set_read_timeout(Some(super::pod::PATIENCE))
            .expect("a timeout");
        let begun = std::time::Instant::now();
        for n in 0..500u32 {
            near.write_all(&n.to_be_bytes()).expect("it is sent");
            let mut got = [0; 4];
            far.read_exact(&mut got).expect("it arrives");
            assert_eq!(u32::from_be_bytes(got), n);
            far.write_all(&got).expect("it is sent");
            near.read_exact(&mut got).expect("it arrives");
            assert_eq!(u32::from_be_bytes(got), n);
        }
        // A frame withheld until the next would cost a retransmission of 200 ms.
        let took = begun.elapsed();
        assert!(took.as_secs() < 5, "500 exchanges took {took:?}");
    }
}

fn all_sizes(world: &mut World) {
    // Around the pod MTU of 1450 less 28 and 48, around two fragments, and the longest.
    let sizes = [
        0, 1, 2, 7, 17, 18, 19, 100, 1000, 1401, 1402, 1403, 1421, 1422, 1423, 1424, 2800, 2850, 4000, 9000,
        20_000, 65_507,
    ];
    let (a, _) = world.pair();
    for to in [&world.pods[0][1], &world.pods[1][0]] {
        for family in FAMILIES {
            datagrams(a, to, family, &sizes);
        }
    }
}

/// Datagrams that leave the pod as one super-frame (UDP_SEGMENT) arrive one by one.
fn trains(world: &mut World) {
    let (a, _) = world.pair();
    for to in [&world.pods[0][1], &world.pods[1][0]] {
        for family in FAMILIES {
            for (each, count, last) in [(1000, 20, 1000), (1200, 44, 7), (100, 3, 1)] {
                let (mouth, ear) = (a.udp(family, 0), to.udp(family, 0));
                raw::segment(&mouth, each as u16);
                let mut train = vec![0; each * (count - 1) + last];
                super::impair::Rng(each as u64).fill(&mut train);
                mouth
                    .send_to(&train, ear.local_addr().expect("it is bound"))
                    .unwrap_or_else(|e| panic!("{count} datagrams of {each} bytes: {e}"));
                let mut got = [0; 4096];
                for (i, want) in train.chunks(each).enumerate() {
                    let n = ear.recv(&mut got).unwrap_or_else(|e| {
                        panic!(
                            "number {i} of {count} datagrams of {each} bytes to {}: {e}",
                            to.ip(family)
                        );
                    });
                    assert!(got[..n] == *want, "a datagram of {n} bytes arrived changed");
                }
            }
        }
    }
}
