//! The parts of the data path, each by itself, and the whole of it without system calls.
//!
//! ```text
//! cargo bench --bench datapath                all of it, in less than a minute
//! cargo bench --bench datapath -- checksum    one group
//! ```
//!
//! `benches/README.md` tells how results are kept; `cargo test` runs each once, to see that it works.

mod common;

use common::{BATCH, Kind, Receiving, SEGMENTS, Sending, from_pod, gateway, node};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use podwire::buf::Span;
use podwire::datapath::{FlowKey, Way};
use podwire::model::{Mac, PortId, Snapshot};
use podwire::offload::{Coalescer, Segments, segment};
use podwire::wire::checksum::Sum;
use podwire::wire::vxlan::VXLAN_LEN;
use podwire::wire::{Headers, bytes::be16};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

const KINDS: [(&str, Kind); 3] = [("tcp4", Kind::Tcp4), ("tcp6", Kind::Tcp6), ("udp4", Kind::Udp4)];

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, kind) in KINDS {
        let (_, frame) = from_pod(kind, 2, 100);
        group.bench_function(name, |b| b.iter(|| Headers::parse(black_box(&frame))));
    }
    group.finish();
}

/// A decision that is remembered, and one that has to be made.
fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for peers in [10, 5000] {
        let mut node = node(1, peers);
        let key = |port: u16| FlowKey {
            port: PortId(port),
            mac: gateway(1),
            dst: Ipv4Addr::new(10, 244, 7, 9).into(),
        };
        assert!(node.way(key(0)).is_ok());
        group.bench_function(format!("remembered_{peers}_peers"), |b| {
            b.iter(|| node.way(black_box(key(0))))
        });
        // The port is part of what is remembered, and no decision depends on it: each is another flow.
        let mut port = 0u16;
        group.bench_function(format!("fresh_{peers}_peers"), |b| {
            b.iter(|| {
                port = port.wrapping_add(1);
                node.way(black_box(key(port)))
            })
        });
    }
    // To each peer in its turn, so that thousands of peers also do not fit the processor's first cache.
    for peers in [10, 5000] {
        let mut node = node(1, peers);
        let mut at = 0u32;
        group.bench_function(format!("fresh_each_of_{peers}_peers"), |b| {
            b.iter(|| {
                at = at.wrapping_add(1);
                let key = FlowKey {
                    port: PortId((at / peers as u32) as u16),
                    mac: gateway(1),
                    dst: to_peer(at % peers as u32).into(),
                };
                node.way(black_box(key)).ok().and_then(|way| match way {
                    Way::Tunnel(id) => node.peers().state(id).map(|s| s.endpoint(false)),
                    _ => None,
                })
            })
        });
    }
    let mut node = node(1, 10);
    let switched = FlowKey {
        port: PortId(0),
        mac: Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 3)),
        dst: Ipv4Addr::new(10, 244, 1, 3).into(),
    };
    group.bench_function("remembered_same_node", |b| {
        b.iter(|| node.way(black_box(switched)))
    });
    group.finish();
}

/// A pod of one of many peers.
fn to_peer(n: u32) -> Ipv4Addr {
    // Node 1 is this one.
    Ipv4Addr::from((10 << 24) + (244 << 16) + ((n + 2) << 8) + 9)
}

/// Peers that come, all at once, and the changes between two states of the control plane.
fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("change");
    for peers in [10, 5000] {
        group.throughput(Throughput::Elements(peers as u64));
        group.bench_function(format!("apply_{peers}_peers"), |b| b.iter(|| node(1, peers)));
        let known: Vec<_> = node(1, peers)
            .peers()
            .iter()
            .map(|(_, s)| s.peer.clone())
            .collect();
        let before = Snapshot { peers: known };
        let mut after = before.clone();
        after.peers[peers / 2].underlay.set_port(1);
        group.bench_function(format!("diff_{peers}_peers"), |b| {
            b.iter(|| black_box(&before).diff(black_box(&after)))
        });
    }
    group.finish();
}

/// All header blocks of a super-frame, checksums over the payload included.
fn segment(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    for (name, kind) in KINDS {
        let (vnet, frame) = from_pod(kind, 2, SEGMENTS * kind.mss());
        let h = Headers::parse(&frame).expect("a good frame");
        let mut out = [0; segment::MAX_HEADER];
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("{name}_{SEGMENTS}"), |b| {
            b.iter(|| {
                let segments = Segments::checked(black_box(&frame), &h, &vnet).expect("a super-frame");
                assert_eq!(segments.count(), SEGMENTS);
                (0..SEGMENTS)
                    .map(|i| segments.header(&frame, i, black_box(&mut out)))
                    .sum::<usize>()
            })
        });
    }
    group.finish();
}

/// A train of datagrams into one super-frame, their checksums verified.
fn coalesce(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    for (name, kind) in KINDS {
        let sending = Sending::new(10, from_pod(kind, 2, SEGMENTS * kind.mss()));
        let (mut memory, step) = sending.datagrams(1);
        let frames = (0..memory.len()).step_by(step);
        let frames = frames.map(|at| Span::new(at + VXLAN_LEN, (at + step).min(memory.len())));
        let frames: Vec<(Span, Headers)> = frames
            .map(|f| (f, Headers::parse(f.of(&memory)).expect("a good frame")))
            .collect();
        assert_eq!(frames.len(), SEGMENTS);
        let first = memory[..128].to_vec();
        let mut coalescer: Coalescer<()> = Coalescer::default();
        group.throughput(Throughput::Bytes(memory.len() as u64));
        group.bench_function(format!("{name}_{SEGMENTS}"), |b| {
            b.iter(|| {
                memory[..128].copy_from_slice(&first);
                for (span, h) in &frames {
                    if !coalescer.merge(black_box(&memory), 1, *span, h) {
                        coalescer.open(&memory, 1, *span, h, false, ());
                    }
                }
                let mut trains = 0;
                coalescer.drain(&mut memory, |_, (), _, vnet, pieces| {
                    black_box((vnet, pieces));
                    trains += 1;
                });
                assert_eq!(trains, 1);
            })
        });
    }
    group.finish();
}

/// The definition, word by word (RFC 1071 section 4.1).
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = (0..bytes.len() / 2).fold(0u32, |sum, i| sum + u32::from(be16(bytes, 2 * i)));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    let bytes: Vec<u8> = (0..65_536u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for size in [20, 64, 1448, 65_536] {
        let bytes = &bytes[..size];
        assert_eq!(Sum::default().with(bytes).fold(), plain_sum(bytes));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("podwire_{size}"), |b| {
            b.iter(|| Sum::default().with(black_box(bytes)).finish())
        });
        group.bench_function(format!("plain_{size}"), |b| {
            b.iter(|| plain_sum(black_box(bytes)))
        });
    }
    group.finish();
}

/// Everything a node does with a frame but the system calls.
fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("node");
    for (name, kind) in KINDS {
        let frame = from_pod(kind, 2, SEGMENTS * kind.mss());
        group.throughput(Throughput::Bytes(frame.1.len() as u64));
        let mut sending = Sending::new(10, frame.clone());
        group.bench_function(format!("{name}_super_frame_to_peer"), |b| {
            b.iter(|| sending.turn(1))
        });
        let mut receiving = Receiving::new(Sending::new(10, frame).datagrams(1));
        group.bench_function(format!("{name}_train_from_peer"), |b| b.iter(|| receiving.turn()));
    }
    let near = from_pod(Kind::Tcp4, 1, SEGMENTS * Kind::Tcp4.mss());
    let mut sending = Sending::new(10, near);
    group.bench_function("tcp4_super_frame_same_node", |b| b.iter(|| sending.turn(1)));
    let small = from_pod(Kind::Udp4, 2, 64);
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut sending = Sending::new(10, small.clone());
    group.bench_function("small_frames_to_peer", |b| b.iter(|| sending.turn(BATCH)));
    let mut receiving = Receiving::new(Sending::new(10, small).datagrams(BATCH));
    group.bench_function("small_frames_from_peer", |b| b.iter(|| receiving.turn()));
    let mut sending = Sending::new(10, from_pod(Kind::Udp4, 1, 64));
    group.bench_function("small_frames_same_node", |b| b.iter(|| sending.turn(BATCH)));
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(40)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots()
}

criterion_group! {
    name = benches;
    config = quick();
    targets = parse, decide, change, segment, coalesce, checksum, whole
}
criterion_main!(benches);
