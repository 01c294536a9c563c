//! What DEL takes, and what it leaves alone: whoever comes late, whatever the node is, and whosever the interface is.

use super::Case;
use super::node::PODWIRE;
use super::rig::{Fake, Rig, eventually};
use podwire::api::{Client, Reply, Request};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// The tests.
pub const CASES: &[Case] = &[
    ("a_late_release_spares_a_newer_attachment", late),
    ("a_late_del_spares_a_newer_attachment", late_del),
    ("another_networks_interface_is_left", another_networks),
    ("word_is_read_tolerantly_and_rubbish_is_named", words_are_read),
    ("what_nobody_hears_of_is_undone_by_word", unheard),
    ("del_takes_its_own_only", its_own),
    ("a_tap_that_is_not_podwires_is_left", foreign_tap),
    ("a_node_of_another_generation_is_left_word", other_generation),
    ("a_node_that_hangs_is_left_word", hangs),
    ("a_node_with_too_many_clients_is_left_word", crowded),
];

/// Word that is left for the node.
fn words(rig: &Rig) -> usize {
    std::fs::read_dir(rig.node.socket.with_extension("gone")).map_or(0, Iterator::count)
}

/// The same container is attached anew, in another namespace, before somebody who means the former one asks for its end.
fn late(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    rig.add(&a, &conf);
    let former = rig.pods()[0].attachment.clone().expect("one");
    rig.del(&a, &conf);
    let again = rig.container_named(&a.id);
    rig.add(&again, &conf);
    let mut client = Client::connect(&rig.node.socket).expect("the node answers");
    let request = Request::Release { attachment: former };
    let answer = client.call(&request).expect("an answer");
    assert!(matches!(answer, Reply::Detached { existed: false }), "{answer:?}");
    assert!(again.pings("10.244.1.1"));
    rig.del(&again, &conf);
    assert!(!again.has("eth0"));
}

/// The same by the plugin: DEL means what is in the namespace that it is given, as long as that is there.
fn late_del(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let mut a = rig.container();
    rig.add(&a, &conf);
    rig.del(&a, &conf);
    let again = rig.container_named(&a.id);
    rig.add(&again, &conf);
    rig.del(&a, &conf);
    assert!(again.pings("10.244.1.1"), "the newer one stays");
    // By word, too.
    rig.node.signal(Signal::STOP);
    rig.del(&a, &conf);
    assert_eq!(words(rig), 1);
    rig.node.signal(Signal::CONT);
    eventually("the node heeds it", || words(rig) == 0);
    assert_eq!(rig.pods().len(), 1);
    assert!(again.pings("10.244.1.1"), "the newer one stays");
    // A namespace that is gone tells nothing: the container's is meant, whichever it is.
    a.vanish();
    rig.del(&a, &conf);
    assert!(!again.has("eth0"));
}

/// A network that could not have the name of the interface is deleted, and another one has it.
fn another_networks(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let other = rig.conf("1.0.0", json!({"name": "other"}));
    let a = rig.container();
    rig.add(&a, &conf);
    let e = rig.call("ADD", Some(&a), &other, &[]).unwrap_err();
    assert_eq!(e["code"], 100, "{e}");
    let msg = e["msg"].as_str().unwrap();
    assert!(
        msg.contains("eth0") && msg.contains("CNI_IFNAME") && !msg.contains("--ifname"),
        "{e}"
    );
    rig.node.signal(Signal::STOP);
    rig.del(&a, &other);
    assert!(a.has("eth0"), "it is the first network's");
    rig.node.signal(Signal::CONT);
    eventually("the node heeds it", || words(rig) == 0);
    assert!(a.pings("10.244.1.1"));
    rig.del(&a, &conf);
}

/// Word of a later podwire says more than this one knows, and what says nothing is not passed over in silence.
fn words_are_read(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    rig.add(&a, &conf);
    let dir = rig.node.socket.with_extension("gone");
    DirBuilder::new().mode(0o700).create(&dir).expect("a directory");
    let rubbish = dir.join("rubbish");
    std::fs::write(&rubbish, "rubbish").expect("a file");
    let word = json!({"network": "pods", "container": a.id, "ifname": "eth0", "since": {"then": 1}});
    std::fs::write(dir.join("word"), word.to_string()).expect("a file");
    eventually("the node heeds it", || rig.pods().is_empty() && words(rig) == 0);
    assert!(!a.has("eth0"));
    let log = rig.node.evidence();
    let named = log
        .lines()
        .filter(|l| l.contains("WARN") && l.contains(rubbish.to_str().unwrap()));
    assert_eq!(named.count(), 1, "{log}");
}

/// The runtime is killed while ADD tells it of the container, and the node hangs just then.
fn unheard(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    let mut shell = Command::new("sh");
    // A pipe has room for so much, and ADD waits for more.
    shell.args(["-c", "head -c 65536 /dev/zero && exec \"$0\"", PODWIRE]);
    let mut add = rig.begin_as(shell, "ADD", Some(&a), &conf, &[]);
    eventually("it is attached", || rig.pods().len() == 1);
    rig.node.signal(Signal::STOP);
    drop(add.stdout.take());
    let out = add.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert_eq!(words(rig), 1);
    rig.node.signal(Signal::CONT);
    eventually("the node heeds it", || rig.pods().is_empty() && words(rig) == 0);
    assert!(!a.has("eth0"));
}

fn its_own(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let other = rig.conf("1.0.0", json!({"name": "other"}));
    let (a, b) = (rig.container(), rig.container());
    let second = [("CNI_IFNAME", "net1")];
    rig.add(&a, &conf);
    rig.add_with(&a, &other, &second);
    rig.add(&b, &conf);
    // Another network, another interface, another container.
    rig.del(&a, &other);
    assert_eq!(rig.call("DEL", Some(&a), &conf, &second), Ok(Value::Null));
    let stranger = [("CNI_CONTAINERID", "c0ffee")];
    assert_eq!(rig.call("DEL", Some(&a), &conf, &stranger), Ok(Value::Null));
    assert_eq!(rig.pods().len(), 3);
    assert!(a.has("eth0") && a.has("net1") && b.has("eth0"));
    rig.del(&a, &conf);
    assert!(!a.has("eth0") && a.has("net1") && b.has("eth0"));
    assert_eq!(rig.call("DEL", Some(&a), &other, &second), Ok(Value::Null));
    rig.del(&b, &conf);
}

/// Without a prevResult nothing tells what the interface was like; podwire's own bears its mark.
fn foreign_tap(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let (a, b) = (rig.container(), rig.container());
    let make = ["tuntap", "add", "dev", "eth0", "mode", "tap"];
    a.netns().ask("ip", &make);
    // As an older podwire made it: nobody can tell of which network.
    let old = rig.container();
    rig.add(&old, &conf);
    old.netns().ip("link set eth0 alias podwire");
    // The longest names there are.
    let longest = rig.conf("1.0.0", json!({"name": "n".repeat(128)}));
    let long = rig.container_named(&"c".repeat(128));
    rig.add(&long, &longest);
    rig.add_with(&b, &conf, &[("CNI_ARGS", "MAC=02:00:00:00:00:78")]);
    rig.node.end(Signal::KILL);
    rig.del(&a, &conf);
    assert!(a.has("eth0"), "it is somebody else's");
    rig.del(&b, &conf);
    assert!(!b.has("eth0"), "it is podwire's, whatever its MAC");
    rig.del(&long, &longest);
    assert!(!long.has("eth0"));
    rig.del(&old, &conf);
    assert!(old.has("eth0"), "the node takes it by its word");
    rig.node.restart(&rig.host);
    assert!(!old.has("eth0"));
}

/// The program was replaced, and the node is not restarted yet.
fn other_generation(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    rig.add(&a, &conf);
    rig.node.end(Signal::KILL);
    let fake = Fake::at(&rig.node.socket, |_| {
        json!({"reply": "hello", "protocol": 4711, "node": "n1", "version": "47.11"}).to_string()
    });
    let e = rig.call("ADD", Some(&rig.container()), &conf, &[]).unwrap_err();
    assert!(e["msg"].as_str().unwrap().contains("protocol 4711"), "{e}");
    rig.del(&a, &conf);
    assert!(!a.has("eth0"));
    assert_eq!(words(rig), 1);
    drop(fake);
    rig.node.restart(&rig.host);
    assert!(rig.pods().is_empty());
}

fn hangs(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let (a, b) = (rig.container(), rig.container());
    rig.add(&a, &conf);
    rig.add(&b, &conf);
    rig.node.signal(Signal::STOP);
    rig.del(&a, &conf);
    assert!(!a.has("eth0"));
    assert_eq!(words(rig), 1);
    rig.node.signal(Signal::CONT);
    eventually("the node heeds it", || rig.pods().len() == 1 && words(rig) == 0);
    assert!(b.pings("10.244.1.1"));
    rig.del(&b, &conf);
}

fn crowded(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    rig.add(&a, &conf);
    let there = || Client::connect(&rig.node.socket).is_ok();
    let mut clients = Vec::new();
    while there() {
        assert!(clients.len() < 4096, "it takes any number");
        clients.push(UnixStream::connect(&rig.node.socket).expect("a connection"));
    }
    rig.del(&a, &conf);
    assert!(!a.has("eth0"));
    drop(clients);
    eventually("there is room again", there);
    eventually("the node heeds it", || rig.pods().is_empty() && words(rig) == 0);
}
