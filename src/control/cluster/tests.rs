//! Stories of one node, told event by event; many nodes and a store that fails are in `tests/membership`.

mod decisions;
mod nonsense;

use super::*;
use crate::control::flannel::LeaseValue;
use crate::model::{Change, Instant};

const PREFIX: &str = "/coreos.com/network";
const NETWORK: &str = r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A node, the time, and what it said.
struct Story {
    cluster: Cluster,
    now: Instant,
    said: Vec<Output>,
}

impl Story {
    fn new(remembered: Option<Remembered>, options: Options) -> Story {
        let me = Identity {
            abilities: abilities("me", "my-id"),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            public_ip6: None,
            vtep_mac: None,
        };
        let mut story = Story {
            cluster: Cluster::new(me, remembered, options, 1),
            now: Instant::from_secs(1000),
            said: Vec::new(),
        };
        story.poll();
        story
    }

    /// A node that has 10.61.7.0/24 and watches; the revision is 20.
    fn settled(others: Vec<Entry>) -> Story {
        let mut story = Story::new(None, Options::default());
        let mut all = vec![entry("10.61.7.0-24", &value(1, "me", "my-id"), 10)];
        all.extend(others);
        story.list(20, all);
        assert!(story.said.contains(&Output::Ready), "{:?}", story.said);
        let watch = story.open(|a| matches!(a, Ask::Watch { from: 21 })).unwrap();
        story.done(watch, Ok(Answer::Watching));
        story
    }

    fn poll(&mut self) {
        self.cluster.poll(self.now, &mut self.said);
    }

    fn on(&mut self, event: Event) {
        self.cluster.on(event, self.now, &mut self.said);
    }

    fn later(&mut self, s: u64) {
        let end = self.now + Duration::from_secs(s);
        while let Some(at) = self.cluster.deadline().filter(|t| *t <= end) {
            self.now = self.now.max(at);
            self.poll();
        }
        self.now = end;
    }

    /// The last request like that.
    fn open(&self, like: impl Fn(&Ask) -> bool) -> Option<u64> {
        let asks = self.said.iter().filter_map(|o| match o {
            Output::Ask(r) if like(&r.what) => Some(r.id),
            _ => None,
        });
        asks.last()
    }

    fn done(&mut self, id: u64, answer: Result<Answer, StoreError>) {
        self.on(Event::Done { id, answer });
    }

    /// Answer the list that was asked for.
    fn list(&mut self, revision: Revision, entries: Vec<Entry>) {
        let id = self.open(|a| *a == Ask::List).expect("a list was asked for");
        self.said.clear();
        self.done(id, Ok(listed(revision, entries)));
    }

    fn watched(&mut self, changes: Vec<Watched>) {
        let id = self.cluster.talk.watch.as_ref().expect("watches").id;
        self.said.clear();
        self.on(Event::Watched {
            id,
            revision: 0,
            changes,
        });
    }

    /// What was written last.
    fn write(&self) -> Option<(u64, Ask)> {
        let id = self.open(|a| matches!(a, Ask::Create { .. } | Ask::Renew { .. } | Ask::Delete { .. }))?;
        self.said.iter().find_map(|o| match o {
            Output::Ask(r) if r.id == id => Some((id, r.what.clone())),
            _ => None,
        })
    }

    fn writes_key(&self) -> Option<String> {
        match self.write()?.1 {
            Ask::Create { key, .. } => Some(format!("create {key}")),
            Ask::Renew { key, .. } => Some(format!("renew {key}")),
            Ask::Delete { key, .. } => Some(format!("delete {key}")),
            _ => None,
        }
    }

    fn changes(&self) -> Vec<String> {
        let told = self.said.iter().filter_map(|o| match o {
            Output::Peers(changes) => Some(changes),
            _ => None,
        });
        let text = |c: &Change| match c {
            Change::PeerSet(p) => format!("{} at {}", p.name, p.underlay),
            Change::PeerGone(name) => format!("{name} gone"),
        };
        told.flatten().map(text).collect()
    }

    fn alarms(&self) -> String {
        self.cluster.status(self.now).alarms.join("\n")
    }
}

fn abilities(name: &str, id: &str) -> Abilities {
    Abilities {
        name: name.into(),
        id: id.into(),
        version: "1".into(),
        wire: vec![],
    }
}

/// The value of a node at 192.0.2.`last`; without an identity it is flannel's.
fn value(last: u8, name: &str, id: &str) -> Vec<u8> {
    let mac = match id {
        "my-id" => default_mac(),
        _ => Mac([0x0e, 0, 0, 0, 1, last]),
    };
    let value = LeaseValue {
        public_ip: Ipv4Addr::new(192, 0, 2, last),
        public_ip6: None,
        vtep: (1, mac),
        vtep6: None,
        podwire: (!id.is_empty()).then(|| abilities(name, id)),
    };
    value.write()
}

fn default_mac() -> Mac {
    "0e:57:0a:3d:07:00".parse().unwrap()
}

fn entry(key: &str, value: &[u8], modified: Revision) -> Entry {
    Entry {
        key: format!("{PREFIX}/subnets/{key}").into_bytes(),
        value: value.into(),
        created: modified,
        modified,
        lease: 100 + modified,
        ttl_s: Some(86_400),
    }
}

fn put(key: &str, value: &[u8], modified: Revision) -> Watched {
    Watched::Put(Entry {
        ttl_s: None,
        ..entry(key, value, modified)
    })
}

fn deleted(key: &str, modified: Revision) -> Watched {
    Watched::Deleted {
        key: format!("{PREFIX}/subnets/{key}").into_bytes(),
        modified,
    }
}

fn listed(revision: Revision, entries: Vec<Entry>) -> Answer {
    Answer::Listed {
        cluster: 5,
        revision,
        config: Some(NETWORK.into()),
        entries,
    }
}

fn unreachable() -> StoreError {
    StoreError::Unreachable("no answer".into())
}

#[test]
fn the_subnet_is_chosen_in_flannels_order_with_the_identity_first() {
    let previous = |text: &str| Options {
        previous: Some(text.parse().unwrap()),
        ..Options::default()
    };
    let mine = ("10.61.3.0-24", value(99, "me", "my-id"));
    let flannels = ("10.61.4.0-24", value(1, "", ""));
    let other = ("10.61.5.0-24", value(1, "n5", "other-id"));
    let outside = ("10.61.4.0-25", value(1, "", ""));
    let had = || previous("10.61.9.0-24");
    let cases = [
        (had(), vec![&flannels, &mine], "renew 10.61.3.0-24"),
        (had(), vec![&flannels, &other], "renew 10.61.4.0-24"),
        (had(), vec![&outside], "delete 10.61.4.0-25"),
        (had(), vec![&other], "create 10.61.9.0-24"),
        (previous("10.62.9.0-24"), vec![&other], "create 10.61."),
        (previous("10.61.5.0-24"), vec![&other], "create 10.61."),
        (Options::default(), vec![], "create 10.61."),
    ];
    for (options, there, want) in cases {
        let mut story = Story::new(None, options);
        let entries = there
            .iter()
            .enumerate()
            .map(|(n, (k, v))| entry(k, v, 5 + n as i64));
        story.list(20, entries.collect());
        let wrote = story.writes_key().unwrap();
        assert!(
            wrote.starts_with(want) && wrote != "create 10.61.5.0-24",
            "{wrote}, not {want}"
        );
    }
}

#[test]
fn a_configured_subnet_is_the_only_one() {
    let fixed = |text: &str| Options {
        fixed: Some(text.parse().unwrap()),
        ..Options::default()
    };
    let mut story = Story::new(None, fixed("10.61.5.0-24"));
    story.list(20, vec![entry("10.61.3.0-24", &value(1, "me", "my-id"), 5)]);
    assert_eq!(
        story.writes_key().unwrap(),
        "delete 10.61.3.0-24",
        "what it had is given back"
    );
    let (id, _) = story.write().unwrap();
    story.done(id, Ok(Answer::Deleted));
    assert_eq!(story.writes_key().unwrap(), "create 10.61.5.0-24");

    let mut story = Story::new(None, fixed("10.61.5.0-24"));
    story.list(20, vec![entry("10.61.5.0-24", &value(2, "n2", "other"), 5)]);
    assert_eq!(story.write(), None);
    assert_eq!(
        story.alarms(),
        "the subnet 10.61.5.0-24 that is configured is taken: podwire node n2 at 192.0.2.2 has 10.61.5.0-24"
    );
    let mut story = Story::new(None, fixed("10.62.5.0-24"));
    story.list(20, vec![]);
    assert!(
        story
            .alarms()
            .contains("10.62.5.0-24 that is configured is none of the network 10.61.0.0/16")
    );
}

#[test]
fn a_lost_race_tries_the_next_and_an_unanswered_one_is_looked_at() {
    let mut story = Story::new(None, Options::default());
    story.list(20, vec![]);
    let (id, first) = story.write().unwrap();
    story.done(id, Ok(Answer::Otherwise));
    let (id, second) = story.write().unwrap();
    let Ask::Create { key, value, .. } = second.clone() else {
        panic!("{second:?}")
    };
    assert_ne!(first, second);
    story.said.clear();
    story.done(id, Err(unreachable()));
    story.later(1);
    assert_eq!(story.write(), None, "nothing is assumed");
    story.list(21, vec![entry(&key.to_string(), &value, 21)]);
    story.later(1);
    assert!(
        story
            .said
            .iter()
            .any(|o| matches!(o, Output::Acquired(m) if m.subnet == key))
    );
    assert_eq!(story.write(), None, "it was done, and says what it should");
}

#[test]
fn a_creation_that_is_done_late_is_taken_back() {
    let mut story = Story::new(None, Options::default());
    story.list(20, vec![]);
    let (id, ask) = story.write().unwrap();
    let Ask::Create {
        key: lost,
        value: said,
        ..
    } = ask
    else {
        panic!()
    };
    story.done(id, Err(unreachable()));
    story.later(1);
    // Another has it for a moment, so that a second one is taken.
    story.list(21, vec![entry(&lost.to_string(), &value(2, "n2", "other"), 21)]);
    story.later(1);
    let (id, _) = story.write().unwrap();
    let second = story.writes_key().unwrap();
    assert_ne!(second, format!("create {lost}"));
    story.done(
        id,
        Ok(Answer::Written {
            revision: 22,
            lease: 9,
        }),
    );
    story.later(1);
    story.watched(vec![
        deleted(&lost.to_string(), 23),
        put(&lost.to_string(), &said, 24),
    ]);
    story.later(1);
    assert_eq!(story.writes_key().unwrap(), format!("delete {lost}"));
}

#[test]
fn a_lease_is_renewed_one_margin_before_its_end_and_each_minute_after_an_error() {
    let mut story = Story::settled(vec![]);
    // Lists that come every five minutes show the time that is left.
    let begun = story.now;
    story.said.clear();
    while story.write().is_none() {
        story.later(1);
        if let Some(id) = story.cluster.talk.list.as_ref().map(|l| l.id) {
            let left = 86_400 - (story.now - begun).secs() as i64;
            let own = entry("10.61.7.0-24", &value(1, "me", "my-id"), 10);
            story.done(
                id,
                Ok(listed(
                    20,
                    vec![Entry {
                        ttl_s: Some(left),
                        ..own
                    }],
                )),
            );
        }
        if let Some((id, _)) = story.cluster.talk.left {
            story.done(
                id,
                Ok(Answer::Left {
                    ttl_s: Some(86_400 - (story.now - begun).secs() as i64),
                }),
            );
        }
    }
    let after = (story.now - begun).secs();
    assert!((82_798..=82_802).contains(&after), "{after} s");
    let (id, ask) = story.write().unwrap();
    assert!(
        matches!(
            ask,
            Ask::Renew {
                modified: 10,
                ttl_s: Some(86_400),
                ..
            }
        ),
        "{ask:?}"
    );
    story.said.clear();
    story.done(id, Err(unreachable()));
    story.later(1);
    let own = entry("10.61.7.0-24", &value(1, "me", "my-id"), 10);
    story.list(
        20,
        vec![Entry {
            ttl_s: Some(3_598),
            ..own
        }],
    );
    story.later(57);
    assert_eq!(story.write(), None);
    assert!(story.alarms().contains("could not be written: no answer"));
    story.later(3);
    let (id, _) = story.write().unwrap();
    story.done(
        id,
        Ok(Answer::Written {
            revision: 21,
            lease: 5,
        }),
    );
    assert_eq!(story.alarms(), "");
}

#[test]
fn names_are_unique_and_do_not_jump() {
    let mut story = Story::settled(vec![
        entry("10.61.1.0-24", &value(2, "a", "id-2"), 2),
        entry("10.61.2.0-24", &value(3, "a", "id-3"), 1),
        entry("10.61.3.0-24", &value(4, "me", "id-4"), 3),
        entry("10.61.4.0-24", &value(5, "10.61.1.0-24", "id-5"), 4),
        entry("10.61.5.0-24", &value(6, "", ""), 5),
    ]);
    let at = |n: u8| format!("at 192.0.2.{n}:8472");
    let want = [
        format!("a {}", at(3)),
        format!("10.61.1.0-24 {}", at(2)),
        format!("10.61.3.0-24 {}", at(4)),
        format!("10.61.4.0-24 {}", at(5)),
        format!("10.61.5.0-24 {}", at(6)),
    ];
    assert_eq!(story.changes(), want);
    // The name is free now; who was called otherwise stays so.
    story.watched(vec![deleted("10.61.2.0-24", 21)]);
    assert_eq!(story.changes(), ["a gone"]);
    story.watched(vec![put("10.61.1.0-24", &value(20, "a", "id-2"), 22)]);
    assert_eq!(story.changes(), ["10.61.1.0-24 at 192.0.2.20:8472"]);
    // A name of its own is one a node asked for.
    story.watched(vec![put("10.61.5.0-24", &value(6, "b", "id-6"), 23)]);
    assert_eq!(story.changes(), ["10.61.5.0-24 gone", "b at 192.0.2.6:8472"]);
    // Who comes from disk is called as before.
    let kept = serde_json::to_string(&story.cluster.remember()).unwrap();
    let again = Story::new(serde_json::from_str(&kept).unwrap(), Options::default());
    assert!(again.changes().contains(&"b at 192.0.2.6:8472".to_string()));
    assert!(matches!(&again.said[0], Output::Acquired(m) if m.subnet.to_string() == "10.61.7.0-24"));
}

#[test]
fn of_two_claims_the_older_wins_and_both_are_named() {
    let mut story = Story::settled(vec![
        entry("10.61.16.0-24", &value(2, "a", "id-2"), 5),
        entry("10.61.16.0-20", &value(3, "b", "id-3"), 6),
        entry("10.61.40.0-24", &value(4, "c", "id-4"), 7),
        entry("10.61.41.0-24", &value(4, "", ""), 8),
        entry("10.61.42.0-24", &value(1, "", ""), 9),
    ]);
    let told = story.changes();
    assert_eq!(told.len(), 3, "{told:?}");
    let alarms = story.alarms();
    for want in [
        "10.61.16.0-20 (podwire node b at 192.0.2.3) overlaps 10.61.16.0-24 (podwire node a at 192.0.2.2), which is older",
        "10.61.41.0-24 (the node at 192.0.2.4) and 10.61.40.0-24 (podwire node c at 192.0.2.4) both have address 192.0.2.4",
        "10.61.42.0-24 (the node at 192.0.2.1): its address 192.0.2.1 is this node's own",
    ] {
        assert!(alarms.contains(want), "{alarms}\n  not {want}");
    }
    // A younger claim to this node's subnet changes nothing; the older one's goes when it does.
    story.watched(vec![put("10.61.0.0-20", &value(9, "z", "id-9"), 21)]);
    assert!(
        story
            .alarms()
            .contains("10.61.0.0-20 (podwire node z at 192.0.2.9) overlaps 10.61.7.0-24 of this node")
    );
    assert_eq!(story.said, []);
    let older = Entry {
        created: 3,
        ttl_s: None,
        ..entry("10.61.4.0-22", &value(8, "y", "id-8"), 22)
    };
    story.watched(vec![Watched::Put(older)]);
    assert_eq!(story.said, [Output::Allocate(false)]);
    assert!(
        story
            .alarms()
            .starts_with("this node's subnet 10.61.7.0-24 is claimed by another: podwire node y")
    );
    story.watched(vec![deleted("10.61.4.0-22", 23)]);
    assert_eq!(story.said, [Output::Allocate(true)]);
}

#[test]
fn a_malformed_value_leaves_the_last_good_state_and_another_backend_ends_it() {
    let mut story = Story::settled(vec![entry("10.61.1.0-24", &value(2, "a", "id-2"), 5)]);
    story.watched(vec![put("10.61.1.0-24", b"{\"PublicIP\":", 21)]);
    assert_eq!(story.changes(), [""; 0]);
    let status = story.cluster.status(story.now);
    assert_eq!((status.skipped.len(), status.skipped_total), (1, 1));
    assert!(
        status.skipped[0].1.ends_with("; its node stays as it was"),
        "{:?}",
        status.skipped
    );
    story.watched(vec![put("10.61.1.0-24", &value(3, "a", "id-2"), 22)]);
    assert_eq!(story.changes(), ["a at 192.0.2.3:8472"]);
    assert_eq!(story.cluster.status(story.now).skipped, []);
    story.watched(vec![put(
        "10.61.1.0-24",
        br#"{"PublicIP":"192.0.2.3","BackendType":"host-gw"}"#,
        23,
    )]);
    assert_eq!(story.changes(), ["a gone"]);
    let vni = String::from_utf8(value(3, "a", "id-2"))
        .unwrap()
        .replace("\"VNI\":1", "\"VNI\":2");
    story.watched(vec![
        put("10.61.1.0-24", vni.as_bytes(), 24),
        put("nonsense", b"", 25),
    ]);
    let skipped = story.cluster.status(story.now).skipped;
    assert!(
        skipped
            .iter()
            .any(|(k, why)| k == "10.61.1.0-24" && why == "its VNI is 2, not 1"),
        "{skipped:?}"
    );
    assert!(
        skipped.iter().any(|(k, _)| k.ends_with("/subnets/nonsense")),
        "{skipped:?}"
    );
}

#[test]
fn what_is_older_is_never_applied() {
    let mut story = Story::settled(vec![entry("10.61.1.0-24", &value(2, "a", "id-2"), 15)]);
    // One that is new, the same again, and old ones.
    for (modified, told) in [(22, 1), (22, 0), (19, 0), (14, 0)] {
        let at = value(modified as u8, "a", "id-2");
        story.watched(vec![put("10.61.1.0-24", &at, modified)]);
        assert_eq!(story.changes().len(), told, "{modified}");
    }
    // While a list is under way the lease is deleted: the list is older than that.
    story.later(300);
    let list = story.cluster.talk.list.as_ref().unwrap().id;
    story.watched(vec![deleted("10.61.1.0-24", 30)]);
    assert_eq!(story.changes(), ["a gone"]);
    story.said.clear();
    let own = entry("10.61.7.0-24", &value(1, "me", "my-id"), 10);
    story.done(
        list,
        Ok(listed(
            25,
            vec![own, entry("10.61.1.0-24", &value(22, "a", "id-2"), 22)],
        )),
    );
    assert_eq!(story.changes(), [""; 0]);
}

#[test]
fn a_store_that_was_replaced_proves_nothing_whatever_its_revision() {
    let peer = |modified| entry("10.61.1.0-24", &value(2, "a", "id-2"), modified);
    let another = || entry("10.61.2.0-24", &value(3, "b", "id-3"), 15);
    let own = || entry("10.61.7.0-24", &value(1, "me", "my-id"), 10);
    let lists = [
        // It is empty.
        (5, 30, vec![]),
        // It has another history: a lease is older than it was.
        (
            5,
            30,
            vec![own(), entry("10.61.2.0-24", &value(3, "b", "id-3"), 11)],
        ),
        // It has another identity.
        (6, 30, vec![own(), another()]),
    ];
    for (cluster, revision, entries) in lists {
        let mut story = Story::settled(vec![peer(14), another()]);
        story.later(300);
        let id = story.open(|a| *a == Ask::List).expect("compares");
        story.said.clear();
        let has_own = entries.iter().any(|e| *e == own());
        let Answer::Listed { config, .. } = listed(0, vec![]) else {
            unreachable!()
        };
        let answer = Answer::Listed {
            cluster,
            revision,
            config,
            entries,
        };
        story.done(id, Ok(answer));
        assert_eq!(story.changes(), [""; 0]);
        assert!(
            story.alarms().contains("the store is not what it was"),
            "{}",
            story.alarms()
        );
        assert!(
            story.open(|a| *a == Ask::Watch { from: 31 }).is_some(),
            "{:?}",
            story.said
        );
        let created = story.writes_key() == Some("create 10.61.7.0-24".into());
        assert_ne!(created, has_own, "{:?}", story.said);
    }
    // The same store without the lease: this is proof.
    let mut story = Story::settled(vec![peer(14), another()]);
    story.later(300);
    story.list(30, vec![own(), another()]);
    assert_eq!(story.changes(), ["a gone"]);
}

#[test]
fn a_copy_of_this_node_is_not_fought() {
    let mut story = Story::settled(vec![]);
    story.watched(vec![put("10.61.7.0-24", &value(66, "me", "my-id"), 21)]);
    assert_eq!(story.said, [Output::Allocate(false)]);
    assert!(
        story
            .alarms()
            .contains("a node at 192.0.2.66 with this node's own identity (a copied disk?)")
    );
    story.said.clear();
    story.later(3600 * 30);
    assert_eq!(story.write(), None);
    // Garbage in its place is nobody's.
    let mut story = Story::settled(vec![]);
    story.watched(vec![put("10.61.7.0-24", b"garbage", 21)]);
    assert!(
        matches!(story.write(), Some((_, Ask::Renew { modified: 21, .. }))),
        "{:?}",
        story.said
    );
}

#[test]
fn a_reconnection_that_finds_no_lease_looks_at_once() {
    let mut story = Story::settled(vec![]);
    let watch = story.cluster.talk.watch.as_ref().unwrap().id;
    story.on(Event::WatchEnded {
        id: watch,
        why: unreachable(),
    });
    story.said.clear();
    story.later(1);
    let watch = story
        .open(|a| matches!(a, Ask::Watch { from: 21 }))
        .expect("resumes");
    story.done(watch, Ok(Answer::Watching));
    let left = story
        .open(|a| matches!(a, Ask::TimeToLive { lease: 110 }))
        .expect("asks for its lease");
    story.said.clear();
    story.done(left, Ok(Answer::Left { ttl_s: None }));
    assert!(story.open(|a| *a == Ask::List).is_some());
}

#[test]
fn what_is_remembered_may_be_anything() {
    let good = Story::settled(vec![entry("10.61.1.0-24", &value(2, "a", "id-2"), 5)])
        .cluster
        .remember();
    let bad = [
        Remembered {
            config: "?".into(),
            ..good.clone()
        },
        Remembered {
            own: Some("10.99.0.0-24".into()),
            ..good.clone()
        },
        Remembered {
            own: Some("\u{0}".into()),
            peers: vec![("x".into(), "y".into(), i64::MIN)],
            ..good.clone()
        },
        Remembered {
            revision: i64::MAX,
            cluster: 0,
            own: None,
            ..good.clone()
        },
    ];
    for remembered in bad {
        let mut story = Story::new(Some(remembered), Options::default());
        assert!(!story.said.iter().any(|o| matches!(o, Output::Acquired(_))));
        story.list(20, vec![entry("10.61.7.0-24", &value(1, "me", "my-id"), 10)]);
        story.later(6);
        if let Some(list) = story.cluster.talk.list.as_ref().map(|l| l.id) {
            story.done(
                list,
                Ok(listed(
                    20,
                    vec![entry("10.61.7.0-24", &value(1, "me", "my-id"), 10)],
                )),
            );
        }
        assert!(story.cluster.ready, "{:?}", story.cluster.status(story.now));
    }
    let story = Story::new(Some(good), Options::default());
    assert_eq!(story.changes(), ["a at 192.0.2.2:8472"]);
}
