//! A node's membership over a real store, from its first start to its end.

use super::Case;
use super::member::Member;
use super::server::Etcd;
use super::shell::{PREFIX, at};
use super::size::fill;
use podwire::control::cluster::Options;
use podwire::control::memory::{Memory, Recalled};
use podwire::model::Duration as Span;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The tests.
pub const CASES: &[Case] = &[
    ("a_node_joins_meets_flannel_and_leaves", joins),
    ("fifty_nodes_at_once_get_distinct_subnets", fifty),
    ("a_revoked_lease_is_taken_again", revoked),
    ("a_lease_is_renewed_in_time", renewed),
    ("a_wiped_store_is_filled_again", wiped),
    ("a_node_starts_without_its_store", storeless),
    ("a_new_address_is_told", address),
    ("what_it_waits_for_is_said", waits),
    ("a_control_thread_that_is_late_misses_nothing", late),
    ("a_memory_that_cannot_be_kept_is_an_alarm", memory),
    ("five_thousand_peers_from_start_to_ready", thousands),
];

/// A network.
pub const CONFIG: &str = r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#;
const SOON: Duration = Duration::from_secs(10);

/// A store with a network, and a place for memories.
fn network(config: &str) -> (Etcd, TempDir) {
    let etcd = Etcd::start(&[]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), config]);
    (etcd, tempfile::tempdir().unwrap())
}

fn key(member: &Member) -> String {
    format!("{PREFIX}/subnets/{}", member.subnet.expect("it has a subnet"))
}

/// What the store has for a node: the lease, in hexadecimal digits, and the value.
pub fn stored(etcd: &Etcd, key: &str) -> Option<(String, String)> {
    let json = etcd.ctl(&["get", key, "--write-out", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let kv = json["kvs"].get(0)?;
    let lease = kv["lease"].as_i64().unwrap_or(0);
    Some((
        format!("{lease:x}"),
        etcd.ctl(&["get", key, "--print-value-only"]).trim().to_string(),
    ))
}

fn joins() {
    let (etcd, dir) = network(CONFIG);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let took = node.until(SOON, |m| m.ready);
    println!("ready after {took:?}");
    let own = key(&node);
    let (lease, value) = stored(&etcd, &own).expect("its lease");
    assert!(
        lease != "0" && value.contains("192.0.2.1") && value.contains("vxlan"),
        "{value}"
    );

    // A flannel node comes, and goes.
    let free = if own.contains(".9.0-24") {
        "10.61.8.0-24"
    } else {
        "10.61.9.0-24"
    };
    let theirs = format!("{PREFIX}/subnets/{free}");
    let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#;
    let begun = Instant::now();
    etcd.ctl(&["put", &theirs, value]);
    node.until(SOON, |m| !m.peers.is_empty());
    println!("a change is told {:?} after etcdctl was started", begun.elapsed());
    let peer = node.peers.values().next().unwrap();
    assert_eq!(peer.underlay, "192.0.2.9:8472".parse().unwrap());
    let report = node.report();
    assert!(
        report.connected && report.alarms.is_empty() && report.leases.len() == 2,
        "{report:#?}"
    );
    let mine = report.leases.iter().find(|l| l.own).expect("its own");
    assert!(mine.expires_s.is_some_and(|s| s > 86_000), "{mine:?}");
    assert!(report.silent_ms.is_some_and(|ms| ms < 10_000));
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/nonsense"), "x"]);
    etcd.ctl(&["del", &theirs]);
    node.until(SOON, |m| m.peers.is_empty());
    assert_eq!(node.report().skipped_total, 1);

    node.stop(true);
    assert_eq!(stored(&etcd, &own), None, "the subnet is given back");

    // Kept for the next start otherwise.
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.until(SOON, |m| m.ready);
    let own = key(&node);
    node.stop(false);
    assert!(stored(&etcd, &own).is_some());
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.until(SOON, |m| m.ready);
    assert_eq!(key(&node), own);
    // A control thread that goes without a word keeps it too.
    drop(node);
    std::thread::sleep(Duration::from_millis(300));
    assert!(stored(&etcd, &own).is_some());
}

fn fifty() {
    // Hardly more subnets than nodes: they must collide.
    let (etcd, dir) = network(r#"{"Network":"10.61.0.0/18","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
    let begun = Instant::now();
    let mut nodes: Vec<Member> = (1..=50).map(|n| Member::join(&etcd.url, n, dir.path())).collect();
    for node in &mut nodes {
        node.until(Duration::from_secs(60), |m| m.ready && m.peers.len() == 49);
    }
    println!("fifty nodes know each other after {:?}", begun.elapsed());
    let subnets: BTreeSet<_> = nodes.iter().map(|m| m.subnet.unwrap()).collect();
    assert_eq!(subnets.len(), 50);
    for node in &nodes {
        let theirs: BTreeSet<_> = node.peers.values().map(|p| p.subnet4.unwrap()).collect();
        assert_eq!(theirs.len(), 49);
        assert!(!theirs.contains(&node.subnet.unwrap().net4));
        assert_eq!(node.gone, 0);
    }
}

fn revoked() {
    let (etcd, dir) = network(CONFIG);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let mut other = Member::join(&etcd.url, 2, dir.path());
    node.until(SOON, |m| m.ready && m.peers.len() == 1);
    other.until(SOON, |m| m.peers.len() == 1);
    let own = key(&node);
    let (lease, _) = stored(&etcd, &own).unwrap();
    etcd.ctl(&["lease", "revoke", &lease]);
    let begun = Instant::now();
    while stored(&etcd, &own).is_none_or(|(now, _)| now == lease) {
        assert!(begun.elapsed() < SOON, "{:#?}", node.report());
        node.turn(Duration::from_millis(20));
    }
    println!(
        "the same subnet again {:?} after its lease was revoked",
        begun.elapsed()
    );
    node.turn(Duration::from_millis(300));
    other.until(SOON, |m| m.peers.len() == 1);
    assert!(
        !node.stopped && node.gone == 0,
        "nothing happens to those who run"
    );
}

fn renewed() {
    let (etcd, dir) = network(CONFIG);
    let options = Options {
        ttl_s: 8,
        renew_margin: Span::from_secs(5),
        ..Options::default()
    };
    let mut node = Member::with(&at(&[&etcd.url]), 1, dir.path(), options);
    node.until(SOON, |m| m.ready);
    let own = key(&node);
    let (first, _) = stored(&etcd, &own).unwrap();
    let until = Instant::now() + Duration::from_secs(14);
    let mut leases = BTreeSet::new();
    while Instant::now() < until {
        node.turn(Duration::from_millis(200));
        leases.insert(stored(&etcd, &own).expect("never gone").0);
    }
    assert!(leases.len() >= 3 && leases.contains(&first), "{leases:?}");
}

fn wiped() {
    let (mut etcd, dir) = network(CONFIG);
    let mut nodes: Vec<Member> = (1..=3).map(|n| Member::join(&etcd.url, n, dir.path())).collect();
    for node in &mut nodes {
        node.until(SOON, |m| m.ready && m.peers.len() == 2);
    }
    let keys: BTreeSet<String> = nodes.iter().map(key).collect();
    etcd.kill();
    etcd.wipe();
    etcd.run();
    etcd.await_health();
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let begun = Instant::now();
    loop {
        nodes.iter_mut().for_each(|n| n.turn(Duration::from_millis(20)));
        let now = etcd.ctl(&["get", "--prefix", "--keys-only", &format!("{PREFIX}/subnets/")]);
        let now: BTreeSet<String> = now.split_whitespace().map(String::from).collect();
        if now == keys {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{now:?} {:#?}",
            nodes[0].report()
        );
    }
    println!("all leases are back {:?} after the store was", begun.elapsed());
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        nodes.iter_mut().for_each(|n| n.turn(Duration::from_millis(20)));
    }
    for node in &nodes {
        assert_eq!((node.gone, node.peers.len()), (0, 2), "nobody forgot anybody");
    }
}

fn storeless() {
    let (mut etcd, dir) = network(CONFIG);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let mut other = Member::join(&etcd.url, 2, dir.path());
    node.until(SOON, |m| m.ready && m.peers.len() == 1);
    other.until(SOON, |m| m.ready);
    let own = key(&node);
    // As by SIGKILL: nothing is said, and what is on disk is what was kept at most a second after it happened.
    std::thread::sleep(Duration::from_millis(1500));
    drop(node);
    etcd.kill();
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let took = node.until(SOON, |m| m.subnet.is_some() && m.peers.len() == 1);
    println!("subnet and peers from the disk after {took:?}");
    assert_eq!(key(&node), own);
    let report = node.report();
    assert!(!report.connected, "{report:#?}");
    node.turn(Duration::from_millis(300));
    let said = format!("{:?}", node.report());
    assert!(said.contains(&etcd.url), "it says what is down: {said}");
    etcd.run();
    node.until(Duration::from_secs(60), |m| m.ready);
    assert_eq!((key(&node), node.gone), (own, 0));
}

fn address() {
    let (etcd, dir) = network(CONFIG);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let mut other = Member::join(&etcd.url, 2, dir.path());
    node.until(SOON, |m| m.ready);
    other.until(SOON, |m| m.peers.len() == 1);
    let begun = Instant::now();
    node.handle.address_changed(Ipv4Addr::new(192, 0, 2, 200), None);
    let is = |m: &Member| {
        m.peers
            .values()
            .all(|p| p.underlay.ip() == Ipv4Addr::new(192, 0, 2, 200))
    };
    other.until(SOON, |m| m.peers.len() == 1 && is(m));
    println!("a new address is known {:?} later", begun.elapsed());
}

fn waits() {
    let etcd = Etcd::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.turn(Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(500));
    let report = node.report();
    let said = format!("{} {:?}", report.doing, report.alarms);
    assert!(said.contains(&format!("{PREFIX}/config")), "{said}");
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    node.until(SOON, |m| m.ready);
}

fn late() {
    let (etcd, dir) = network(r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.until(SOON, |m| m.ready);
    // More news than there is room for; each transaction of the tool is one.
    fill(&etcd, 2000);
    for round in 0..100 {
        etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.127.{round}.0-24"), "{}"]);
    }
    let mine = node.report();
    assert!(
        mine.leases.len() >= 2000 && mine.connected,
        "it goes on without the control thread"
    );
    let own = node.subnet.unwrap().net4;
    let taken = etcd.ctl(&["get", "--prefix", "--keys-only", &format!("{PREFIX}/subnets/")]);
    let others = taken
        .split_whitespace()
        .filter(|k| !k.contains(&format!("/{}-", own.addr())))
        .count()
        - 100;
    node.until(SOON, |m| m.peers.len() == others);
}

fn memory() {
    let (etcd, dir) = network(CONFIG);
    // What is in the way of the file.
    let beside = dir.path().join("n1/state.new");
    std::fs::create_dir_all(&beside).unwrap();
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.until(SOON, |m| m.ready);
    let begun = Instant::now();
    while !node
        .report()
        .alarms
        .iter()
        .any(|a| a.contains("cannot be written"))
    {
        assert!(begun.elapsed() < SOON, "{:#?}", node.report());
        node.turn(Duration::from_millis(50));
    }
    assert!(node.ready && node.report().connected);
    // A state that is damaged does not keep a node from starting, and is not lost.
    node.stop(false);
    std::fs::remove_dir(&beside).unwrap();
    std::fs::write(dir.path().join("n1/state"), "podwire-state 1 nonsense\n{}").unwrap();
    let mut node = Member::join(&etcd.url, 1, dir.path());
    node.until(SOON, |m| m.ready);
    node.stop(false);
    assert!(dir.path().join("n1/state.refused").exists());
    let kept = Memory::new(&dir.path().join("n1")).recall().unwrap();
    assert!(matches!(kept, Recalled::Known(state) if state.own.is_some()));
}

fn thousands() {
    let (etcd, dir) = network(r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
    fill(&etcd, 5000);
    let mut node = Member::join(&etcd.url, 1, dir.path());
    let took = node.until(Duration::from_secs(30), |m| m.ready && m.peers.len() == 5000);
    println!("ready with 5000 peers after {took:?}");
    let begun = Instant::now();
    let report = node.report();
    println!(
        "a report of {} leases takes {:?}",
        report.leases.len(),
        begun.elapsed()
    );
    assert_eq!(report.leases.len(), 5001);
    assert!(
        took < Duration::from_secs(10),
        "far beyond what a busy machine explains"
    );
}
