//! Services without a network: changes among ten thousand of them, in the control plane and in the data path, look-ups,
//! connections, translation.
//!
//! ```text
//! cargo bench --bench service                 all of it, in less than a minute
//! cargo bench --bench service -- change       one group
//! ```
//!
//! Memory is printed first. `benches/README.md` tells how results are kept; `cargo test` runs each once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use podwire::control::services::{Catalogue, PodFacts, PodId, Rules, Source, manifest};
use podwire::model::{
    Backend, BackendPhase, Frontend, Instant, PodState, PortId, Scheduler, ServiceChange, Transport,
    VirtualServer,
};
use podwire::service::{Limits, Services, Verdict};
use podwire::wire::Headers;
use podwire::wire::bytes::put_be16;
use podwire::wire::checksum::{Sum, pseudo};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);

fn now() -> Instant {
    Instant::from_secs(1000)
}

fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) + (96 << 16) + n)
}

fn frontend(n: u32) -> Frontend {
    Frontend {
        at: SocketAddr::new(vip(n).into(), 80),
        transport: Transport::Tcp,
    }
}

fn server(n: u32, endpoints: u32, scheduler: Scheduler) -> Arc<VirtualServer> {
    let backends = (0..endpoints).map(|i| Backend {
        at: SocketAddr::new(
            Ipv4Addr::from((10 << 24) + (128 << 16) + n * ENDPOINTS + i).into(),
            8080,
        ),
        phase: BackendPhase::Ready,
        local: false,
    });
    Arc::new(VirtualServer {
        service: format!("default/web-{n}").parse().expect("a name"),
        port: "http".into(),
        scheduler,
        affinity: None,
        local_only: false,
        at_host: false,
        backends: backends.collect(),
    })
}

fn services(count: u32, scheduler: Scheduler) -> Services {
    let mut s = Services::new(Limits::default(), 1, Some(Ipv4Addr::new(10, 244, 1, 1)), None);
    for n in 0..count {
        s.apply(
            ServiceChange::Set(frontend(n), server(n, ENDPOINTS, scheduler)),
            now(),
        );
    }
    s
}

/// TCP with a partial checksum, as a kernel sends it.
fn frame(src: (Ipv4Addr, u16), dst: Ipv4Addr, flags: u8, payload: usize) -> Vec<u8> {
    let mut f = vec![2; 12];
    f.extend([8, 0, 0x45, 0]);
    f.extend(((40 + payload) as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    f.extend(src.0.octets());
    f.extend(dst.octets());
    f.extend(src.1.to_be_bytes());
    f.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    f.resize(54 + payload, 7);
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    let h = Headers::parse(&f).expect("a good frame");
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, 50, sum);
    f
}

const PARTIAL: Option<(u16, u16)> = Some((34, 16));

fn open(s: &mut Services, client: (Ipv4Addr, u16), n: u32) -> Vec<u8> {
    let mut f = frame(client, vip(n), 2, 0);
    let h = Headers::parse(&f).expect("a good frame");
    assert_eq!(
        s.forward(&mut f, &h, PARTIAL, Some(port_of(client.0)), now()),
        Verdict::Translated
    );
    f
}

/// Each client is a pod, as one has 65,536 connections at most.
fn port_of(client: Ipv4Addr) -> PortId {
    PortId((u32::from(client) - u32::from(CLIENT)) as u16)
}

/// A backend more and one less, among so many Services.
fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("change");
    for (name, scheduler) in [("random", Scheduler::Random), ("maglev", Scheduler::Maglev)] {
        for count in [10, SERVICES] {
            let mut s = services(count, scheduler);
            let all = [9, 10].map(|endpoints| server(7, endpoints, scheduler));
            let mut turn = 0;
            group.bench_function(format!("{name}_{count}_services"), |b| {
                b.iter(|| {
                    turn += 1;
                    let what = all[turn % 2].clone();
                    s.apply(ServiceChange::Set(frontend(7), what), now());
                })
            });
        }
    }
    group.bench_function(format!("all_{SERVICES}_services"), |b| {
        b.iter(|| services(SERVICES, Scheduler::Random))
    });
    group.finish();
}

/// A packet of an open connection, with few Services or connections and with many.
fn pass(c: &mut Criterion) {
    let mut group = c.benchmark_group("pass");
    for (count, connections) in [(10, 10u32), (SERVICES, 10), (SERVICES, 100_000)] {
        let mut s = services(count, Scheduler::Random);
        for n in 0..connections {
            let client = (
                Ipv4Addr::from(u32::from(CLIENT) + n / 50_000),
                1000 + (n % 50_000) as u16,
            );
            open(&mut s, client, n % count);
        }
        for (name, payload) in [("small", 0), ("super", 61_000)] {
            let original = frame((CLIENT, 1003), vip(3), 16, payload);
            let h = Headers::parse(&original).expect("a good frame");
            let mut f = original.clone();
            group.bench_function(
                format!("{name}_{count}_services_{connections}_connections"),
                |b| {
                    b.iter(|| {
                        f[..54].copy_from_slice(&original[..54]);
                        s.forward(black_box(&mut f), &h, PARTIAL, Some(PortId(0)), now())
                    })
                },
            );
        }
        // Each its own connection: the table does not fit the processor's caches.
        let mut at = 0u32;
        let original = frame((CLIENT, 1003), vip(3), 16, 0);
        let h = Headers::parse(&original).expect("a good frame");
        let mut f = original.clone();
        group.bench_function(format!("each_{count}_services_{connections}_connections"), |b| {
            b.iter(|| {
                at = (at + 7919) % connections;
                f[..54].copy_from_slice(&original[..54]);
                let client = u32::from(CLIENT) + at / 50_000;
                f[26..30].copy_from_slice(&client.to_be_bytes());
                f[30..34].copy_from_slice(&vip(at % count).octets());
                put_be16(&mut f, 34, 1000 + (at % 50_000) as u16);
                let port = port_of(client.into());
                assert_eq!(
                    s.forward(black_box(&mut f), &h, PARTIAL, Some(port), now()),
                    Verdict::Translated
                );
            })
        });
    }
    group.finish();
}

/// A frame to a pod: of no connection at all, of a pod that has none, of a pod that has some, and of one.
fn reverse(c: &mut Criterion) {
    let mut group = c.benchmark_group("reverse");
    let mut s = services(10, Scheduler::Random);
    let other = Ipv4Addr::new(10, 244, 1, 9);
    let plain = |dst| frame((Ipv4Addr::new(10, 244, 2, 2), 80), dst, 16, 0);
    let mut run = |name: &str, s: &mut Services, original: Vec<u8>, changes: bool| {
        let h = Headers::parse(&original).expect("a good frame");
        let mut f = original.clone();
        group.bench_function(name, |b| {
            b.iter(|| {
                f[..54].copy_from_slice(&original[..54]);
                assert_eq!(s.reverse(black_box(&mut f), &h, PARTIAL, now()), changes);
            })
        });
    };
    run("idle", &mut s, plain(CLIENT), false);
    let sent = open(&mut s, (CLIENT, 80), 3);
    run("another_pod", &mut s, plain(other), false);
    run("another_connection", &mut s, plain(CLIENT), false);
    let mut answer = sent.clone();
    answer[26..30].copy_from_slice(&sent[30..34]);
    answer[30..34].copy_from_slice(&sent[26..30]);
    put_be16(&mut answer, 34, 8080);
    put_be16(&mut answer, 36, 80);
    answer[47] = 0x12;
    run("answer", &mut s, answer, true);
    group.finish();
}

/// New connections, each of another port.
fn connect(c: &mut Criterion) {
    let mut group = c.benchmark_group("connect");
    group.throughput(Throughput::Elements(1));
    let schedulers = [
        ("random", Scheduler::Random),
        ("least", Scheduler::LeastConnections),
        ("maglev", Scheduler::Maglev),
    ];
    for (name, scheduler) in schedulers {
        let mut s = services(100, scheduler);
        let original = frame((CLIENT, 1000), vip(0), 2, 0);
        let h = Headers::parse(&original).expect("a good frame");
        let (mut f, mut n) = (original.clone(), 0u32);
        group.bench_function(name, |b| {
            b.iter(|| {
                // Far more than there is room for: the oldest give way.
                n = n.wrapping_add(1);
                f[..54].copy_from_slice(&original[..54]);
                let client = u32::from(CLIENT) + n / 40_000 % 200;
                f[26..30].copy_from_slice(&client.to_be_bytes());
                f[30..34].copy_from_slice(&vip(n % 100).octets());
                put_be16(&mut f, 34, 1000 + (n % 40_000) as u16);
                let port = port_of(client.into());
                assert_eq!(
                    s.forward(black_box(&mut f), &h, PARTIAL, Some(port), now()),
                    Verdict::Translated
                );
            })
        });
    }
    group.finish();
}

fn memory(_: &mut Criterion) {
    for (name, scheduler) in [("random", Scheduler::Random), ("maglev", Scheduler::Maglev)] {
        let mut s = services(SERVICES, scheduler);
        let before = s.memory();
        println!(
            "memory: {SERVICES} Services x {ENDPOINTS} endpoints, {name}: {} KiB",
            before / 1024
        );
        for n in 0..100_000u32 {
            let client = Ipv4Addr::from(u32::from(CLIENT) + n / 50_000);
            open(&mut s, (client, 1000 + (n % 50_000) as u16), n % SERVICES);
        }
        println!(
            "memory: 100,000 connections: {} KiB",
            (s.memory() - before) / 1024
        );
    }
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(40)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots()
}

/// One pod becomes ready, or not, and one manifest is another, among ten thousand Services of ten pods each: what follows for
/// the data path and DNS.
fn catalogue(c: &mut Criterion) {
    let mut catalogue = Catalogue::new(Rules {
        node: "n1".parse().expect("a name"),
        ranges: vec!["10.96.0.0/16".parse().expect("a range")],
        node_ports: 30_000..=32_767,
        own: vec!["10.244.1.0/24".parse().expect("a subnet")],
        network: vec!["10.128.0.0/9".parse().expect("a network")],
    });
    let stated = |n: u32, port: u16| {
        let source = Source::File(format!("{n}.yaml").into());
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{n}}}\nspec: {{selector: {{app: a{n}}}, ports: [{{port: {port}}}]}}\n"
        );
        let read = manifest::read(&source, &text);
        let objects: Vec<_> = read
            .manifests
            .into_iter()
            .map(|m| (m.object, m.document))
            .collect();
        (source, objects)
    };
    let pod = |n: u32, ready: bool| {
        let id = PodId {
            name: format!("p{n}").parse().expect("a name"),
            node: "n2".parse().expect("a name"),
        };
        let facts = PodFacts {
            node: id.node.clone(),
            labels: [("app".into(), format!("a{}", n / ENDPOINTS))].into(),
            ip4: Some(Ipv4Addr::from((10 << 24) + (128 << 16) + n)),
            ip6: None,
            state: PodState {
                ready,
                draining: false,
            },
            ports: Vec::new(),
        };
        (id, facts)
    };
    for n in 0..SERVICES {
        let (source, objects) = stated(n, 80);
        catalogue.set_source(&source, objects);
    }
    for n in 0..SERVICES * ENDPOINTS {
        let (id, facts) = pod(n, true);
        catalogue.set_pod(&id, Some(facts));
    }
    catalogue.update();
    let mut group = c.benchmark_group("catalogue");
    let mut n = 0;
    group.bench_function("a_pod_is_ready_or_not", |b| {
        b.iter(|| {
            n += 1;
            let (id, facts) = pod(n % 2 * 7777, n / 2 % 2 == 0);
            catalogue.set_pod(&id, Some(facts));
            black_box(catalogue.update())
        });
    });
    group.bench_function("a_manifest_is_another", |b| {
        b.iter(|| {
            n += 1;
            let (source, objects) = stated(777, 80 + (n % 2) as u16);
            catalogue.set_source(&source, objects);
            black_box(catalogue.update())
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = quick();
    targets = memory, change, pass, reverse, connect, catalogue
}
criterion_main!(benches);
