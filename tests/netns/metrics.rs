//! What a node tells Prometheus, beside what its pods did; judged by Prometheus' own promtool.

use super::pod::{FAMILIES, Place, Pod};
use super::store::PREFIX;
use super::traffic;
use super::world::{Case, World, eventually};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[Case::new("metrics_are_what_happened", happened)
    .pods(2)
    .node_args(&["--metrics", "127.0.0.1:9472"])];

/// Those with a store.
pub const CLUSTER_CASES: &[Case] = &[Case::new("metrics_tell_of_the_store", store)
    .cluster()
    .node_args(&["--metrics", "127.0.0.1:9472"])];

/// The metrics page of node `n`, from 0.
fn page(world: &World, n: usize) -> String {
    let answer = world.underlay.hosts[n].netns.within(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9472))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut all = String::new();
        stream.read_to_string(&mut all).map(|_| all)
    });
    let answer = answer.expect("the endpoint answers");
    let (head, page) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    page.into()
}

/// Its series, by name and labels as they stand there.
fn series(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|l| !l.starts_with('#'));
    let pairs = lines.filter_map(|l| l.rsplit_once(' '));
    pairs
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .collect()
}

/// What came in less what became of it, by the formula of docs/metrics.md.
fn imbalance(series: &BTreeMap<&str, f64>) -> f64 {
    let of = |names: &[&str]| {
        names
            .iter()
            .map(|n| series[format!("podwire_{n}_total").as_str()])
            .sum::<f64>()
    };
    let came = of(&[
        "frames_from_pods",
        "datagrams_from_peers",
        "frames_originated",
        "frames_copied",
    ]);
    let went = of(&[
        "frames_to_pods",
        "frames_to_peers",
        "datagrams_coalesced",
        "acks_merged",
        "frames_consumed",
    ]);
    let drops = series
        .iter()
        .filter(|(name, _)| name.starts_with("podwire_drops_total{"));
    came - went - drops.map(|(_, n)| n).sum::<f64>()
}

fn happened(world: &mut World) {
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    for family in FAMILIES {
        a.reaches(b.ip(family), 3, &[]);
        a.reaches(far.ip(family), 3, &[]);
        traffic::stream(a, far, family, 200_000);
    }
    // Nobody has this address: counted under one reason, and with the pod that sent it.
    a.unanswered(Ipv4Addr::new(10, 244, 99, 9), 2);

    let mut text = String::new();
    eventually(
        "the page accounts for every frame",
        Duration::from_secs(5),
        || {
            // A page is as old as a tenth of a second, and what waits in the node is on no account.
            std::thread::sleep(Duration::from_millis(150));
            text = page(world, 0);
            imbalance(&series(&text)) == 0.0
        },
    );
    let s = series(&text);
    let at_least = |name: &str, least: f64| {
        let value = s.get(name).copied();
        assert!(
            value.is_some_and(|v| v >= least),
            "{name} is {value:?}, not {least} or more"
        );
    };
    let of = |metric: &str, pod: &Pod| {
        format!(
            "podwire_pod_{metric}{{namespace=\"default\",pod=\"{}\"}}",
            pod.name
        )
    };
    at_least(&of("frames_from_pod_total", a), 20.0);
    at_least(&of("bytes_from_pod_total", a), 400_000.0);
    at_least(&of("frames_to_pod_total", b), 6.0);
    at_least(&of("bytes_to_pod_total", b), 500.0);
    at_least(&of("drops_total", a), 2.0);
    assert!(
        s[of("bytes_from_pod_total", b).as_str()] < 100_000.0,
        "b sent no stream"
    );
    at_least("podwire_drops_total{reason=\"no_route\"}", 2.0);
    assert_eq!(s["podwire_drops_total{reason=\"wrong_vni\"}"], 0.0);
    assert_eq!((s["podwire_pods"], s["podwire_peers"]), (2.0, 1.0));
    assert_eq!(s["podwire_attach_duration_seconds_count"], 2.0);
    assert_eq!(s["podwire_attach_duration_seconds_bucket{le=\"+Inf\"}"], 2.0);
    let sum = s["podwire_attach_duration_seconds_sum"];
    assert!(sum > 0.0 && sum < 10.0, "two pods attached in {sum} s");
    at_least("podwire_peer_bytes_to_peer_total{peer=\"n2\"}", 400_000.0);
    at_least("podwire_peer_bytes_from_peer_total{peer=\"n2\"}", 1000.0);
    at_least("podwire_peer_rtt_seconds{peer=\"n2\"}", 1e-6);
    assert!(s["podwire_peer_last_heard_age_seconds{peer=\"n2\"}"] < 60.0);
    assert_eq!(s["podwire_peer_pod_mtu_bytes{peer=\"n2\"}"], 1450.0);
    let status = world.nodes[0].status();
    let tap = f64::from(u8::from(world.mode == podwire::model::OffloadMode::On));
    assert_eq!(s["podwire_offload_enabled{offload=\"tap\"}"], tap);
    assert_eq!(
        s["podwire_socket_buffer_bytes{direction=\"send\"}"],
        status.offloads.send_buffer as f64
    );

    for n in [0, 1] {
        promtool(&page(world, n), world.dir());
    }
    // Labels end with what they name.
    let gone = world.pods[0].remove(1);
    assert!(world.nodes[0].podwire(&["detach", &gone.name]).status.success());
    std::thread::sleep(Duration::from_millis(150));
    let text = page(world, 0);
    assert!(!text.contains(&format!("pod=\"{}\"", gone.name)), "{text}");
    assert!(!text.contains("podwire_store_"), "it has no store: {text}");
}

/// Wait until the page of n1 is so, in what it says of the store.
fn store_is(world: &World, what: &str, holds: impl Fn(&dyn Fn(&str) -> f64) -> bool) -> String {
    let mut text = String::new();
    eventually(what, Duration::from_secs(20), || {
        // A page is as old as a tenth of a second.
        std::thread::sleep(Duration::from_millis(120));
        text = page(world, 0);
        let series = series(&text);
        holds(&|name| series[format!("podwire_store_{name}").as_str()])
    });
    text
}

fn store(world: &mut World) {
    let healthy = store_is(world, "two leases", |s| {
        s("connected") == 1.0 && s("leases") == 2.0 && s("alarms") == 0.0
    });
    promtool(&healthy, world.dir());
    let before = series(&healthy);
    let of = |name: &str| before[format!("podwire_store_{name}").as_str()];
    assert!(
        (86_000.0..=86_400.0).contains(&of("lease_remaining_seconds")),
        "{healthy}"
    );
    assert!(of("last_heard_age_seconds") < 20.0, "{healthy}");
    assert_eq!((of("allocation_enabled"), of("keys_skipped")), (1.0, 0.0));
    let (revision, failures) = (of("revision"), of("failures_total"));
    world.ctl(&["put", &format!("{PREFIX}/subnets/nonsense"), "{}"]);
    store_is(world, "a strange key", |s| {
        s("keys_skipped") == 1.0 && s("revision") > revision
    });
    // Another has this node's subnet.
    let key = format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64");
    let thief = r#"{"PublicIP":"192.0.2.250","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    world.ctl(&["put", &key, thief]);
    store_is(world, "the subnet is another's", |s| {
        s("allocation_enabled") == 0.0 && s("alarms") >= 1.0
    });
    world.ctl(&["del", &key]);
    store_is(world, "the subnet is its own", |s| {
        s("allocation_enabled") == 1.0 && s("alarms") == 0.0
    });
    world.store_mut().kill();
    let lost = store_is(world, "the store is lost", |s| {
        s("connected") == 0.0
            && s("alarms") >= 1.0
            && s("failures_total") > failures
            && s("last_heard_age_seconds") > 1.0
    });
    let lost = series(&lost);
    assert_eq!(lost["podwire_store_leases"], 2.0, "they are known still");
    assert_eq!(lost["podwire_peers"], 1.0);
    let left = lost["podwire_store_lease_remaining_seconds"];
    assert!((86_000.0..=86_400.0).contains(&left), "{left}");
    world.restart_store();
    let back = store_is(world, "the store is back", |s| {
        s("connected") == 1.0 && s("alarms") == 0.0 && s("last_heard_age_seconds") < 20.0
    });
    promtool(&back, world.dir());
}

/// Let promtool judge a page, if it is there.
fn promtool(page: &str, dir: &Path) {
    // `tests/run` puts it there.
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/promtool");
    let program = if Path::new(tools).exists() {
        tools
    } else {
        "promtool"
    };
    let mut command = Command::new(program);
    let command = command.args(["check", "metrics"]).current_dir(dir);
    let started = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("metrics: promtool is missing, so the page is not judged by it (tests/run fetches it)");
            return;
        }
        Err(e) => panic!("promtool does not start: {e}"),
    };
    // It reads to the end before it says anything.
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(page.as_bytes())
        .expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    let said = [out.stdout, out.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        out.status.success() && said.trim().is_empty(),
        "promtool says {}:\n{said}\n{page}",
        out.status
    );
}
