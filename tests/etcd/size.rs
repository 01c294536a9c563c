//! Much of everything: thousands of leases, values of a megabyte.

use super::Case;
use super::server::Etcd;
use super::shell::{PREFIX, Shell, at};
use podwire::control::cluster::{Answer, Ask, Event, Watched};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    ("five_thousand_leases", thousands),
    ("hostile_values_of_a_megabyte", hostile),
];

const LEASES: usize = 5000;

/// Write `count` leases as flannel does, by etcdctl's transactions.
pub fn fill(etcd: &Etcd, count: usize) {
    let lease = etcd.ctl(&["lease", "grant", "86400"]);
    let lease = lease.split_whitespace().nth(1).unwrap().to_string();
    let numbers: Vec<usize> = (0..count).collect();
    for some in numbers.chunks(100) {
        let mut text = String::from("\n");
        for n in some {
            let value = format!(
                r#"{{"PublicIP":"198.18.{}.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:00:{:02x}:{:02x}"}}}}"#,
                n >> 8,
                n & 255,
                n >> 8,
                n & 255
            );
            let key = format!("{PREFIX}/subnets/10.{}.{}.0-24", 64 + (n >> 8), n & 255);
            writeln!(text, "put --lease={lease} {key} {value:?}").unwrap();
        }
        text += "\n\n";
        etcd.txn(&text);
    }
}

fn thousands() {
    let etcd = Etcd::start(&[]);
    fill(&etcd, LEASES);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let begun = Instant::now();
    let listed = shell.list();
    println!(
        "{LEASES} leases listed in {:?}, first connection included",
        begun.elapsed()
    );
    assert_eq!(listed.entries.len(), LEASES);
    let keys: std::collections::BTreeSet<_> = listed.entries.iter().map(|e| &e.key).collect();
    assert_eq!(keys.len(), LEASES);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "far beyond what a busy machine explains"
    );

    let watch = shell.watch(listed.revision + 1);
    let begun = Instant::now();
    shell.create(1, "a");
    shell.changes(watch, 1);
    println!("a change of one's own is told after {:?}", begun.elapsed());

    let begun = Instant::now();
    let lease = listed.entries[0].lease;
    let mut waiting: std::collections::BTreeSet<u64> = (0..LEASES)
        .map(|_| shell.begin(Ask::TimeToLive { lease }))
        .collect();
    // They hold up nothing else.
    let (other, took) = shell.timed(Ask::List);
    assert!(other.is_ok() && took < Duration::from_secs(10), "{took:?}");
    while !waiting.is_empty() {
        match shell.event(Duration::from_secs(10)).expect("answers") {
            Event::Done {
                id,
                answer: Ok(Answer::Left { ttl_s: Some(left) }),
            } => {
                assert!(waiting.remove(&id) && left > 80_000);
            }
            Event::Watched { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    println!("what is left of {LEASES} leases told in {:?}", begun.elapsed());
}

fn hostile() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    let megabyte = vec![b'['; 1 << 20];
    // More than a message may have, in all.
    for n in 0..40 {
        etcd.put(&format!("{PREFIX}/subnets/10.61.{n}.0-24"), &megabyte);
    }
    shell.create(77, "good");
    let listed = shell.list();
    assert_eq!(listed.entries.len(), 41);
    let sizes: Vec<usize> = listed.entries.iter().map(|e| e.value.len()).collect();
    assert_eq!(sizes.iter().filter(|n| **n == 64 << 10).count(), 40, "{sizes:?}");
    assert!(listed.entries.iter().any(|e| e.value == b"good"));
    // The watch catches up with all of them.
    let watch = shell.watch(from);
    let (changes, revision) = shell.changes(watch, 41);
    assert_eq!(revision, listed.revision);
    assert!(matches!(changes.last(), Some(Watched::Put(e)) if e.value == b"good"));
}
