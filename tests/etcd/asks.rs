//! Every request, at an etcd that is well.

use super::Case;
use super::server::Etcd;
use super::shell::{PREFIX, Shell, at, subnet};
use podwire::control::cluster::{Answer, Ask, Event, StoreError, Watched};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    ("a_lease_from_creation_to_deletion", lease),
    ("a_reservation_stays_one", reservation),
    ("the_watch_tells_leases_and_config_and_nothing_else", watch),
    ("a_new_watch_replaces_the_old", replaced),
    ("a_watch_from_a_compacted_revision_ends", compacted),
    ("a_watch_beyond_what_the_store_has_does_not_wait", beyond),
    ("another_prefix_is_another_network", prefix),
];

const CONFIG: &str = r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn lease() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let empty = shell.list();
    assert!(empty.config.is_none() && empty.entries.is_empty());

    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let (created, lease) = shell.create(7, "mine");
    assert_eq!(created, etcd.revision());
    let taken = shell.ask(Ask::Create {
        key: subnet(7),
        value: "other".into(),
        ttl_s: 600,
    });
    assert_eq!(taken, Ok(Answer::Otherwise));
    assert_eq!(etcd.leases(), 1, "the loser gives its lease back");

    let listed = shell.list();
    assert_eq!(listed.config.as_deref(), Some(CONFIG.as_bytes()));
    assert_eq!(listed.revision, created);
    let entry = &listed.entries[0];
    assert_eq!(entry.key, format!("{PREFIX}/subnets/10.61.7.0-24").as_bytes());
    assert_eq!(
        (&entry.value[..], entry.created, entry.modified),
        (&b"mine"[..], created, created)
    );
    assert_eq!((entry.lease, entry.ttl_s), (lease, None));
    assert_eq!(
        etcd.ctl(&[
            "get",
            "--print-value-only",
            &format!("{PREFIX}/subnets/10.61.7.0-24")
        ])
        .trim(),
        "mine"
    );

    let left = |shell: &mut Shell, lease| match shell.ask(Ask::TimeToLive { lease }) {
        Ok(Answer::Left { ttl_s }) => ttl_s,
        other => panic!("{other:?}"),
    };
    assert!((590..=600).contains(&left(&mut shell, lease).unwrap()));
    assert_eq!(left(&mut shell, 4711), None);

    let renew = |modified| Ask::Renew {
        key: subnet(7),
        value: "again".into(),
        modified,
        ttl_s: Some(900),
    };
    assert_eq!(shell.ask(renew(created - 1)), Ok(Answer::Otherwise));
    assert_eq!(etcd.leases(), 1);
    let Ok(Answer::Written {
        revision,
        lease: second,
    }) = shell.ask(renew(created))
    else {
        panic!("not renewed");
    };
    assert!(revision > created && second != lease);
    assert!(left(&mut shell, second).unwrap() > 890);
    let entry = &shell.list().entries[0];
    assert_eq!(
        (entry.lease, entry.created, entry.modified),
        (second, created, revision)
    );

    let delete = |modified| Ask::Delete {
        key: subnet(7),
        modified,
    };
    assert_eq!(shell.ask(delete(created)), Ok(Answer::Otherwise));
    assert_eq!(shell.ask(delete(revision)), Ok(Answer::Deleted));
    assert_eq!(shell.ask(delete(revision)), Ok(Answer::Otherwise));
    assert_eq!(
        shell.ask(renew(revision)),
        Ok(Answer::Otherwise),
        "nothing to renew"
    );
    assert!(shell.list().entries.is_empty());
}

fn reservation() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/10.61.9.0-24"), "reserved"]);
    let entry = shell.list().entries.remove(0);
    assert_eq!(entry.lease, 0);
    let renew = Ask::Renew {
        key: subnet(9),
        value: "used".into(),
        modified: entry.modified,
        ttl_s: None,
    };
    assert!(matches!(shell.ask(renew), Ok(Answer::Written { lease: 0, .. })));
    let entry = shell.list().entries.remove(0);
    assert_eq!((entry.lease, &entry.value[..]), (0, &b"used"[..]));
    assert_eq!(etcd.leases(), 0);
}

fn watch() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    // Before it begins as well as after.
    let (created, _) = shell.create(1, "a");
    let watch = shell.watch(from);
    etcd.ctl(&["put", &format!("{PREFIX}/other"), "not ours"]);
    etcd.ctl(&["put", "/elsewhere", "not ours"]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    etcd.ctl(&["put", &format!("{PREFIX}/subnets/garbage"), "\u{1}"]);
    etcd.ctl(&["del", &format!("{PREFIX}/subnets/10.61.1.0-24")]);
    let (changes, revision) = shell.changes(watch, 4);
    let told: Vec<(String, Option<Vec<u8>>)> = changes
        .iter()
        .map(|change| match change {
            Watched::Put(e) => (String::from_utf8_lossy(&e.key).into(), Some(e.value.clone())),
            Watched::Deleted { key, .. } => (String::from_utf8_lossy(key).into(), None),
        })
        .collect();
    let key = |name: &str| format!("{PREFIX}/subnets/{name}");
    assert_eq!(
        told,
        [
            (key("10.61.1.0-24"), Some(b"a".to_vec())),
            (format!("{PREFIX}/config"), Some(CONFIG.into())),
            (key("garbage"), Some(b"\x01".to_vec())),
            (key("10.61.1.0-24"), None)
        ]
    );
    assert!(matches!(&changes[0], Watched::Put(e) if e.modified == created && e.lease != 0));
    let deleted = changes.iter().find_map(|c| match c {
        Watched::Deleted { modified, .. } => Some(*modified),
        Watched::Put(_) => None,
    });
    assert_eq!(Some(revision), deleted);
    // With nothing to tell it tells that it lives, and no revision that was not told.
    match shell.event(Duration::from_secs(10)) {
        Some(Event::Watched {
            revision: same,
            changes,
            ..
        }) => assert_eq!((same, changes), (revision, vec![])),
        other => panic!("{other:?}"),
    }
}

fn replaced() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    let first = shell.watch(from);
    let second = shell.watch(from);
    shell.create(1, "a");
    let (changes, _) = shell.changes(second, 1);
    assert_eq!(changes.len(), 1);
    while let Some(event) = shell.event(Duration::from_secs(1)) {
        let old = matches!(event, Event::Watched { id, .. } | Event::WatchEnded { id, .. } if id == first);
        assert!(!old, "{event:?}");
    }
}

fn compacted() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    for n in 1..=5 {
        shell.create(n, "a");
    }
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    let id = shell.begin(Ask::Watch { from });
    let why = match shell.answer(id) {
        Ok(Answer::Watching) => shell.end(id, Duration::from_secs(5)),
        Err(why) => Some(why),
        other => panic!("{other:?}"),
    };
    assert_eq!(why, Some(StoreError::Compacted));
    // Another list helps.
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    shell.create(9, "b");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn beyond() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    // As after a wipe: etcd would wait for revision 1000 in silence.
    assert_eq!(shell.ask(Ask::Watch { from: 1000 }), Err(StoreError::Compacted));
}

fn prefix() {
    let etcd = Etcd::start(&[]);
    let mut here = Shell::new(&at(&[&etcd.url]));
    here.create(1, "a");
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let mut there = at(&[&etcd.url]);
    there.prefix = "/coreos.com/networks".into();
    let mut there = Shell::new(&there);
    let listed = there.list();
    assert!(listed.config.is_none() && listed.entries.is_empty());
    let watch = there.watch(listed.revision + 1);
    here.create(2, "b");
    let (_, lease) = there.create(2, "c");
    let (changes, _) = there.changes(watch, 1);
    assert!(matches!(&changes[..], [Watched::Put(e)] if e.lease == lease));
}
