//! Whoever is killed, at whatever moment: after the runtime's DEL or GC nothing is left (row 27 of the fault table).

use super::Case;
use super::rig::{Container, Rig, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    ("plugins_killed_at_any_moment_of_add", plugin_add),
    ("plugins_killed_at_any_moment_of_del", plugin_del),
    ("nodes_killed_at_any_moment_of_add", node_add),
    ("nodes_killed_at_any_moment_of_del", node_del),
];

/// How many moments of a call are tried.
const MOMENTS: u32 = 16;

fn conf(rig: &Rig) -> Value {
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    rig.conf("1.1.0", json!({"runtimeConfig": ports}))
}

/// How long a call takes when nobody is killed.
fn whole(rig: &Rig, verb: &str, of: &Container) -> Duration {
    let begun = Instant::now();
    let out = rig
        .begin(verb, Some(of), &conf(rig), &[])
        .wait_with_output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    begun.elapsed() * 5 / 4
}

/// The runtime lists what it has: nothing.
fn collect(rig: &Rig) {
    let listed = rig.conf("1.1.0", json!({"cni.dev/valid-attachments": []}));
    assert_eq!(rig.call("GC", None, &listed, &[]), Ok(Value::Null));
}

fn nothing_left(rig: &mut Rig, of: &Container) {
    // What a plugin that was killed had open, the kernel closes in its own time.
    eventually("the interface is gone", || !of.has("eth0"));
    eventually("the reservation is gone", || rig.ipam().held == 0);
    rig.is_empty();
}

fn plugin_add(rig: &mut Rig) {
    let a = rig.container();
    let took = whole(rig, "ADD", &a);
    rig.del(&a, &conf(rig));
    for moment in 0..MOMENTS {
        let mut add = rig.begin("ADD", Some(&a), &conf(rig), &[]);
        std::thread::sleep(took * moment / MOMENTS);
        add.kill().unwrap();
        add.wait().unwrap();
        match moment % 2 {
            0 => collect(rig),
            _ => rig.del(&a, &conf(rig)),
        }
        nothing_left(rig, &a);
        // And it works again.
        rig.add(&a, &conf(rig));
        rig.del(&a, &conf(rig));
    }
}

fn plugin_del(rig: &mut Rig) {
    let a = rig.container();
    rig.add(&a, &conf(rig));
    let took = whole(rig, "DEL", &a);
    for moment in 0..MOMENTS {
        rig.add(&a, &conf(rig));
        let mut del = rig.begin("DEL", Some(&a), &conf(rig), &[]);
        std::thread::sleep(took * moment / MOMENTS);
        del.kill().unwrap();
        del.wait().unwrap();
        match moment % 2 {
            0 => collect(rig),
            _ => rig.del(&a, &conf(rig)),
        }
        nothing_left(rig, &a);
    }
}

fn node_add(rig: &mut Rig) {
    let a = rig.container();
    let took = whole(rig, "ADD", &a);
    rig.del(&a, &conf(rig));
    for moment in 0..MOMENTS {
        let add = rig.begin("ADD", Some(&a), &conf(rig), &[]);
        std::thread::sleep(took * moment / MOMENTS);
        rig.node.end(Signal::KILL);
        if moment % 2 == 0 {
            rig.node.restart(&rig.host);
        }
        let added = super::rig::answer(add.wait_with_output().unwrap());
        if moment % 2 == 1 {
            rig.node.restart(&rig.host);
        }
        match added {
            Ok(result) => {
                let later = rig.conf("1.1.0", json!({"prevResult": result}));
                assert_eq!(
                    rig.call("CHECK", Some(&a), &later, &[]),
                    Ok(Value::Null),
                    "moment {moment}"
                );
            }
            // Runtimes delete what could not be added.
            Err(e) => assert!(
                [11, 100, 103].contains(&e["code"].as_u64().unwrap()),
                "moment {moment}: {e}"
            ),
        }
        rig.del(&a, &conf(rig));
        nothing_left(rig, &a);
    }
}

fn node_del(rig: &mut Rig) {
    let a = rig.container();
    rig.add(&a, &conf(rig));
    let took = whole(rig, "DEL", &a);
    for moment in 0..MOMENTS {
        rig.add(&a, &conf(rig));
        let del = rig.begin("DEL", Some(&a), &conf(rig), &[]);
        std::thread::sleep(took * moment / MOMENTS);
        rig.node.end(Signal::KILL);
        if moment % 2 == 0 {
            rig.node.restart(&rig.host);
        }
        let deleted = super::rig::answer(del.wait_with_output().unwrap());
        assert_eq!(deleted, Ok(Value::Null), "moment {moment}");
        if moment % 2 == 1 {
            rig.node.restart(&rig.host);
        }
        nothing_left(rig, &a);
    }
}
