//! Several nodes of one user, of which one may be away, and a configuration that names none.

use super::Case;
use super::node::PODWIRE;
use super::rig::{Container, Rig, answer};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};

/// The tests.
pub const CASES: &[Case] = &[
    ("which_node_is_never_guessed", guessed),
    ("a_node_that_hangs_costs_no_other_network_its_interface", hangs),
];

/// The plugin, where root's nodes are those of the rig's directory.
fn begin(rig: &Rig, verb: &str, of: Option<&Container>, conf: &Value) -> Child {
    let script = "mount -t tmpfs none /run && mkdir -m 700 /run/podwire && mount --bind \"$0\" /run/podwire && exec \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script]);
    command.arg(rig.dir()).arg(PODWIRE);
    rig.begin_as(command, verb, of, conf, &[])
}

fn guessed(rig: &mut Rig) {
    let call = |verb: &str, of: Option<&Container>, conf: &Value| {
        answer(begin(rig, verb, of, conf).wait_with_output().unwrap())
    };
    let unnamed = |more: Value| {
        let mut conf = rig.conf("1.1.0", more);
        conf["podwire"] = json!({});
        conf
    };
    let conf = unnamed(json!({}));
    let (a, b) = (rig.container(), rig.container());
    // The only one is meant.
    let result = call("ADD", Some(&a), &conf).unwrap();
    // What a node leaves that was killed.
    let other = rig.dir().join("n2.sock");
    drop(UnixListener::bind(&other).unwrap());
    let later = unnamed(json!({"prevResult": result}));
    let listed = unnamed(json!({"cni.dev/valid-attachments": []}));
    for (verb, of, conf) in [
        ("ADD", Some(&b), &conf),
        ("CHECK", Some(&a), &later),
        ("GC", None, &listed),
        ("STATUS", None, &conf),
    ] {
        let e = call(verb, of, conf).unwrap_err();
        assert_eq!(e["code"], 7, "{verb}: {e}");
        for words in ["podwire.socket", "n1.sock", "remove /run/podwire/n2.sock)"] {
            assert!(e["msg"].as_str().unwrap().contains(words), "{verb}: {e}");
        }
    }
    assert!(!b.has("eth0"));
    assert_eq!(rig.pods().len(), 1, "nothing is freed either");
    // DEL asks those that answer, and leaves word for the others when none of these has it, unless nobody can ever heed it.
    let words = || std::fs::read_dir(rig.dir().join("n2.gone")).map_or(0, Iterator::count);
    assert_eq!(call("DEL", Some(&a), &conf), Ok(Value::Null));
    assert!(!a.has("eth0") && rig.pods().is_empty());
    assert_eq!(words(), 0);
    assert_eq!(call("DEL", Some(&b), &conf), Ok(Value::Null));
    assert_eq!(words(), 0, "neither a node nor a keeper is there");
    let keeper = UnixListener::bind(other.with_extension("keep")).unwrap();
    assert_eq!(call("DEL", Some(&b), &conf), Ok(Value::Null));
    assert_eq!(words(), 1);
    drop(keeper);
    std::fs::remove_file(other.with_extension("keep")).unwrap();
    // Named, there is nothing to guess.
    let named = rig.conf("1.1.0", json!({}));
    rig.add(&b, &named);
    rig.del(&b, &named);
    std::fs::remove_file(other).unwrap();
    call("ADD", Some(&b), &conf).unwrap();
    assert_eq!(call("DEL", Some(&b), &conf), Ok(Value::Null));
}

/// One node is alive, another one takes connections and answers nothing.
fn hangs(rig: &mut Rig) {
    let conf = rig.conf("1.1.0", json!({}));
    let named = rig.conf("1.1.0", json!({"name": "other"}));
    let mut unnamed = named.clone();
    unnamed["podwire"] = json!({});
    let a = rig.container();
    rig.add(&a, &conf);
    let e = rig.call("ADD", Some(&a), &named, &[]).unwrap_err();
    assert_eq!(e["code"], 100, "{e}");
    let other = rig.dir().join("n2.sock");
    let hung = UnixListener::bind(&other).unwrap();
    let del = begin(rig, "DEL", Some(&a), &unnamed).wait_with_output().unwrap();
    assert_eq!(answer(del), Ok(Value::Null));
    assert!(a.has("eth0"), "it is the first network's");
    let words = std::fs::read_dir(rig.dir().join("n2.gone")).map_or(0, Iterator::count);
    assert_eq!(words, 1);
    drop(hung);
    std::fs::remove_file(other).unwrap();
    assert!(a.pings("10.244.1.1"));
    rig.del(&a, &conf);
}
