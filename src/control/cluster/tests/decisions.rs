//! Decisions that a story with one outcome would not miss: each of these tests fails when the comparison it is about is
//! turned round or left out.

use super::*;

/// The own lease, with so much left.
fn own(modified: Revision, ttl_s: i64) -> Entry {
    Entry {
        ttl_s: Some(ttl_s),
        ..entry("10.61.7.0-24", &value(1, "me", "my-id"), modified)
    }
}

fn peer(n: u8, modified: Revision) -> Entry {
    let name = format!("n{n}");
    entry(
        &format!("10.61.{n}.0-24"),
        &value(100 + n, &name, &format!("id-{n}")),
        modified,
    )
}

/// A node whose renewal failed when so much was left of its lease, and that has looked at the store since.
fn renewal_failed(left: i64) -> Story {
    let mut story = Story::settled(vec![]);
    story.later(300);
    story.list(20, vec![own(10, left)]);
    let (id, ask) = story.write().expect("it is high time");
    assert!(matches!(ask, Ask::Renew { .. }), "{ask:?}");
    story.said.clear();
    story.done(id, Err(unreachable()));
    story.list(20, vec![own(10, left)]);
    story.said.clear();
    story
}

#[test]
fn the_less_is_left_of_a_lease_the_sooner_it_is_tried_again() {
    for (left, after) in [(3000, 60), (40, 10), (3, 1)] {
        let mut story = renewal_failed(left);
        story.later(after - 1);
        assert_eq!(story.write(), None, "of {left} s");
        story.later(2);
        assert_eq!(
            story.writes_key().as_deref(),
            Some("renew 10.61.7.0-24"),
            "of {left} s"
        );
    }
}

#[test]
fn a_lease_that_is_gone_is_taken_again_though_its_renewal_had_to_wait() {
    let mut story = renewal_failed(3000);
    story.watched(vec![deleted("10.61.7.0-24", 21)]);
    story.later(1);
    assert_eq!(story.writes_key().as_deref(), Some("create 10.61.7.0-24"));
}

#[test]
fn an_own_lease_is_taken_unless_somebody_has_an_older_claim() {
    let mine = || entry("10.61.16.0-24", &value(99, "me", "my-id"), 6);
    let theirs = |created| entry("10.61.16.0-20", &value(3, "b", "id-3"), created);
    for (created, wrote) in [(5, "delete 10.61.16.0-24"), (7, "renew 10.61.16.0-24")] {
        let mut story = Story::new(None, Options::default());
        story.list(20, vec![theirs(created), mine()]);
        assert_eq!(story.writes_key().as_deref(), Some(wrote), "created {created}");
    }
}

#[test]
fn a_list_does_not_bring_back_what_the_watch_saw_deleted_since() {
    let mut story = Story::settled(vec![peer(1, 15)]);
    story.watched(vec![put("10.61.1.0-24", &value(101, "n1", "id-1"), 29)]);
    story.later(300);
    let list = story.cluster.talk.list.as_ref().expect("compares").id;
    story.watched(vec![deleted("10.61.1.0-24", 30)]);
    assert_eq!(story.changes(), ["n1 gone"]);
    story.said.clear();
    story.done(list, Ok(listed(29, vec![own(10, 80_000), peer(1, 29)])));
    assert_eq!(story.changes(), [""; 0]);
}

#[test]
fn a_second_list_proves_what_is_gone_only_when_it_is_later_by_five_seconds() {
    let mut story = Story::settled(vec![peer(1, 11), peer(2, 12), peer(3, 13)]);
    story.later(300);
    story.list(30, vec![own(10, 80_000)]);
    // It is empty but for this node's own: three of three at once.
    assert_eq!(story.changes(), [""; 0]);
    assert!(
        story
            .alarms()
            .contains("3 leases are gone from the store at once"),
        "{}",
        story.alarms()
    );
    story.now += Duration::from_secs(4);
    story.cluster.talk.list_by(story.now);
    story.poll();
    story.list(31, vec![own(10, 80_000)]);
    assert_eq!(story.changes(), [""; 0], "too early to be proof");
    story.later(1);
    story.list(32, vec![own(10, 80_000)]);
    assert_eq!(story.changes(), ["n1 gone", "n2 gone", "n3 gone"]);
}

#[test]
fn changes_of_one_revision_may_come_one_by_one() {
    let mut story = Story::settled(vec![]);
    for n in [1, 2] {
        let name = format!("n{n}");
        let at = value(100 + n, &name, &format!("id-{n}"));
        story.watched(vec![put(&format!("10.61.{n}.0-24"), &at, 22)]);
        assert_eq!(story.changes(), [format!("{name} at 192.0.2.{}:8472", 100 + n)]);
    }
}

#[test]
fn a_process_that_slept_through_its_renewal_looks_before_it_writes() {
    let mut story = Story::settled(vec![]);
    story.later(300);
    // It is renewed in 50 s, and the machine wakes up at least once a minute.
    story.list(20, vec![own(10, 3650)]);
    story.said.clear();
    story.now += Duration::from_secs(100);
    story.poll();
    assert_eq!(story.write(), None, "others may have the subnet by now");
    story.list(90, vec![entry("10.61.7.0-24", &value(9, "n9", "id-9"), 80)]);
    story.later(10);
    assert_eq!(story.write(), None);
    assert!(
        story.alarms().contains("belongs to podwire node n9"),
        "{}",
        story.alarms()
    );
}

#[test]
fn after_compaction_a_list_comes_before_the_next_watch() {
    let mut story = Story::settled(vec![]);
    let id = story.cluster.talk.watch.as_ref().expect("watches").id;
    story.said.clear();
    story.on(Event::WatchEnded {
        id,
        why: StoreError::Compacted,
    });
    story.later(10);
    assert_eq!(story.open(|a| matches!(a, Ask::Watch { .. })), None);
    story.list(40, vec![own(10, 80_000)]);
    assert!(
        story.open(|a| *a == Ask::Watch { from: 41 }).is_some(),
        "{:?}",
        story.said
    );
}

#[test]
fn a_node_that_runs_as_remembered_is_ready_when_the_store_has_told_all() {
    let kept = Story::settled(vec![peer(1, 11)]).cluster.remember();
    let mut story = Story::new(Some(kept), Options::default());
    story.later(3);
    assert_eq!(story.changes(), ["n1 at 192.0.2.101:8472"]);
    assert!(!story.said.contains(&Output::Ready), "{:?}", story.said);
    story.list(20, vec![own(10, 80_000), peer(1, 11)]);
    assert!(story.said.contains(&Output::Ready), "{:?}", story.said);
}
