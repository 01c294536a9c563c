//! The node is away: what is attached stays, what is deleted is gone when it comes back, and ADD says when to try again.

use super::Case;
use super::rig::{Rig, addresses};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    ("a_node_that_is_away_is_asked_again", away),
    ("what_is_deleted_meanwhile_is_gone_at_its_return", deleted),
    ("a_start_is_waited_for", started),
    ("after_a_stop_there_is_nothing_to_delete", stopped),
];

fn away(rig: &mut Rig) {
    let conf = rig.conf("1.1.0", json!({}));
    let a = rig.container();
    let result = rig.add(&a, &conf);
    rig.node.end(Signal::KILL);
    let b = rig.container();
    let begun = Instant::now();
    let e = rig.call("ADD", Some(&b), &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 11, "{e}");
    assert!(
        e["msg"]
            .as_str()
            .unwrap()
            .contains("start one with `podwire node`"),
        "{e}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!b.has("eth0"));
    let later = rig.conf("1.1.0", json!({"prevResult": result}));
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]).unwrap_err()["code"], 11);
    let listed = rig.conf("1.1.0", json!({"cni.dev/valid-attachments": []}));
    assert_eq!(rig.call("GC", None, &listed, &[]).unwrap_err()["code"], 11);
    assert_eq!(rig.call("STATUS", None, &conf, &[]).unwrap_err()["code"], 50);
    rig.node.restart(&rig.host);
    // What a runtime calls it outlives the node.
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
    let pods = rig.pods();
    assert_eq!(
        pods[0].attachment.as_ref().map(|a| a.container.as_str()),
        Some(a.id.as_str())
    );
    rig.del(&a, &conf);
}

fn deleted(rig: &mut Rig) {
    let conf = rig.conf(
        "1.0.0",
        json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}),
    );
    let plain = rig.conf("1.0.0", json!({}));
    let (a, mut b, c) = (rig.container(), rig.container(), rig.container());
    rig.add(&a, &conf);
    rig.add(&b, &plain);
    let kept = addresses(&rig.add(&c, &plain));
    rig.node.end(Signal::KILL);
    // One with its namespace, one whose namespace is gone with the container.
    rig.del(&a, &conf);
    assert!(!a.has("eth0"), "it is deleted though nobody answers");
    rig.del(&a, &conf);
    b.vanish();
    rig.del(&b, &plain);
    assert_eq!(
        rig.call("DEL", Some(&b), &plain, &[("CNI_NETNS", "")]),
        Ok(Value::Null)
    );
    rig.node.restart(&rig.host);
    let pods = rig.pods();
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!(pods[0].addresses[0].to_string(), kept[0]);
    assert!(c.pings("10.244.1.1"));
    // The same container again, which the word about the former one does not concern.
    rig.add(&a, &conf);
    rig.node.end(Signal::KILL);
    rig.node.restart(&rig.host);
    assert_eq!(rig.pods().len(), 2);
    rig.del(&a, &conf);
    rig.del(&c, &plain);
}

fn started(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    rig.node.end(Signal::KILL);
    let a = rig.container();
    let add = rig.begin("ADD", Some(&a), &conf, &[]);
    std::thread::sleep(Duration::from_millis(100));
    rig.node.restart(&rig.host);
    let added = super::rig::answer(add.wait_with_output().unwrap());
    assert!(added.is_ok(), "{added:?}");
    rig.del(&a, &conf);
}

fn stopped(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    rig.add(&a, &conf);
    rig.node.stop();
    assert!(!a.has("eth0"));
    rig.del(&a, &conf);
    assert!(
        !rig.node.socket.with_extension("gone").exists(),
        "there is nobody to tell"
    );
    rig.node.restart(&rig.host);
}
