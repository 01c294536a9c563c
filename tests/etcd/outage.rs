//! The store killed, stopped, cut off, slow, and in part.

use super::Case;
use super::proxy::{Proxy, Way};
use super::server::Etcd;
use super::shell::{Shell, at, subnet};
use podwire::control::cluster::{Answer, Ask, StoreError};
use rustix::process::Signal;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    ("killed_and_started_again", killed),
    ("stopped_and_continued", stopped),
    ("compacted_while_cut_off", cut_off),
    ("wiped", wiped),
    ("slow_answers_are_answers", slow),
    ("an_endpoint_that_hangs_does_not_hold_us", hanging),
    ("an_endpoint_that_is_closed_does_not_hold_us", closed),
    ("the_leader_killed", leader_killed),
    ("the_member_in_use_stopped", member_stopped),
    ("a_member_without_the_others_does_not_serve", minority),
];

/// A watch that is dead is noticed in this time, on a busy machine.
const NOTICED: Duration = Duration::from_secs(15);
/// A second, and what a busy machine adds.
const SOON: Duration = Duration::from_secs(3);

fn unreachable(why: &StoreError, url: &str) {
    assert!(
        matches!(why, StoreError::Unreachable(text) if text.contains(url)),
        "{why:?}"
    );
}

fn killed() {
    let mut etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    etcd.kill();
    unreachable(
        &shell.end(watch, SOON).expect("the watch ends at once"),
        &etcd.url,
    );
    let (answer, took) = shell.timed(Ask::List);
    let why = answer.unwrap_err();
    unreachable(&why, &etcd.url);
    assert!(
        why.to_string().contains("Connection refused") && why.to_string().contains("--etcd-endpoints"),
        "{why}"
    );
    assert!(took < SOON, "{took:?}");
    etcd.run();
    shell.insist(&Ask::List, Duration::from_secs(30));
    let watch = shell.watch(from);
    shell.create(1, "a");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn stopped() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    // What tells that the store is alive was asked for once.
    shell.pass(Duration::from_secs(5));
    etcd.signal(Signal::STOP);
    let (answer, took) = shell.timed(Ask::List);
    unreachable(&answer.unwrap_err(), &etcd.url);
    assert!(took < Duration::from_secs(8), "{took:?}");
    unreachable(&shell.end(watch, NOTICED).expect("the watch ends"), &etcd.url);
    etcd.signal(Signal::CONT);
    shell.insist(&Ask::List, NOTICED);
    let watch = shell.watch(from);
    shell.create(1, "a");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn cut_off() {
    let etcd = Etcd::start(&[]);
    let proxy = Proxy::to(&etcd.url);
    let mut shell = Shell::new(&at(&[&proxy.url]));
    let mut other = Shell::new(&at(&[&etcd.url]));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    proxy.set(Way::Cut);
    unreachable(&shell.end(watch, SOON).expect("the watch ends"), &proxy.url);
    unreachable(&shell.ask(Ask::Watch { from }).unwrap_err(), &proxy.url);
    other.create(1, "a");
    other.create(2, "b");
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    proxy.set(Way::Open);
    let id = shell.begin(Ask::Watch { from });
    let why = match shell.answer(id) {
        Ok(Answer::Watching) => shell.end(id, SOON),
        Err(why) => Some(why),
        other => panic!("{other:?}"),
    };
    assert_eq!(why, Some(StoreError::Compacted));
    assert_eq!(shell.list().entries.len(), 2);
}

fn wiped() {
    let mut etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&at(&[&etcd.url]));
    for n in 1..=5 {
        shell.create(n, "a");
    }
    let from = shell.list().revision + 1;
    etcd.kill();
    etcd.wipe();
    etcd.run();
    etcd.await_health();
    assert_eq!(shell.ask(Ask::Watch { from }), Err(StoreError::Compacted));
    let listed = shell.list();
    assert!(listed.entries.is_empty() && listed.revision < from);
}

fn slow() {
    let etcd = Etcd::start(&[]);
    let proxy = Proxy::to(&etcd.url);
    let mut shell = Shell::new(&at(&[&proxy.url]));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    proxy.set(Way::Slow(Duration::from_secs(3)));
    let (answer, took) = shell.timed(Ask::List);
    assert!(
        answer.is_ok() && took >= Duration::from_secs(3),
        "{took:?} {answer:?}"
    );
    // A watch that is only late goes on.
    let late = shell.end(watch, Duration::from_secs(20));
    assert_eq!(late, None);
    let mut other = Shell::new(&at(&[&etcd.url]));
    other.create(1, "a");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn hanging() {
    let etcd = Etcd::start(&[]);
    let proxy = Proxy::to(&etcd.url);
    proxy.set(Way::Frozen);
    let mut shell = Shell::new(&at(&[&proxy.url, &etcd.url]));
    let (answer, took) = shell.timed(Ask::List);
    assert!(answer.is_ok(), "{answer:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    // It stays with the one that answers.
    let (answer, took) = shell.timed(Ask::List);
    assert!(
        answer.is_ok() && took < Duration::from_secs(1),
        "{took:?} {answer:?}"
    );
}

fn closed() {
    let etcd = Etcd::start(&[]);
    let nobody = format!("http://127.0.0.1:{}", super::server::free_port());
    let mut shell = Shell::new(&at(&[&nobody, &etcd.url]));
    let (answer, took) = shell.timed(Ask::Create {
        key: subnet(1),
        value: "a".into(),
        ttl_s: 60,
    });
    assert!(matches!(answer, Ok(Answer::Written { .. })), "{answer:?}");
    assert!(took < SOON, "{took:?}");
    let mut nowhere = Shell::new(&at(&[&nobody, &nobody]));
    let why = nowhere.ask(Ask::List).unwrap_err().to_string();
    assert!(why.contains(&nobody) && why.contains("2 endpoints"), "{why}");
}

fn leader_killed() {
    let mut members = Etcd::three();
    let urls: Vec<String> = members.iter().map(|m| m.url.clone()).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let leader = members.iter().position(Etcd::leads).expect("there is a leader");
    // Begin with the leader, so that its loss is felt in both ways.
    let mut order = urls.clone();
    order.rotate_left(leader);
    let mut shell = Shell::new(&at(&order));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    members[leader].kill();
    assert!(shell.end(watch, SOON).is_some(), "the watch ends");
    let create = Ask::Create {
        key: subnet(1),
        value: "a".into(),
        ttl_s: 60,
    };
    let written = shell.insist(&create, Duration::from_secs(20));
    // It may have been written by a try whose answer was lost.
    assert!(
        matches!(written, Answer::Written { .. } | Answer::Otherwise),
        "{written:?}"
    );
    assert_eq!(shell.list().entries.len(), 1);
    let watch = shell.watch(from);
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn member_stopped() {
    let members = Etcd::three();
    let urls: Vec<&str> = members.iter().map(|m| m.url.as_str()).collect();
    let mut shell = Shell::new(&at(&urls));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    members[0].signal(Signal::STOP);
    shell.insist(&Ask::List, Duration::from_secs(10));
    unreachable(&shell.end(watch, NOTICED).expect("the watch ends"), urls[0]);
    let watch = shell.watch(from);
    let create = Ask::Create {
        key: subnet(1),
        value: "a".into(),
        ttl_s: 60,
    };
    shell.insist(&create, Duration::from_secs(10));
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
    members[0].signal(Signal::CONT);
}

fn minority() {
    let mut members = Etcd::three();
    let first = members[0].url.clone();
    let mut shell = Shell::new(&at(&[&first]));
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    members[1].kill();
    members[2].kill();
    // A member that may be behind all others is no source of truth.
    unreachable(&shell.end(watch, NOTICED).expect("the watch ends"), &first);
    unreachable(&shell.ask(Ask::List).unwrap_err(), &first);
    members[1].run();
    shell.insist(&Ask::List, Duration::from_secs(30));
}
