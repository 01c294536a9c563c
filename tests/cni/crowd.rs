//! Many containers at once, and one after the other (rows 32 and 55 of the fault table).

use super::Case;
use super::rig::{Container, Rig, eventually, taps};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    ("a_hundred_at_once", at_once),
    ("many_come_and_go", come_and_go),
    ("out_of_files_new_ones_are_refused", out_of_files),
];

/// Containers at a time, and how often some of them are replaced.
const CROWD: usize = 100;
const ROUNDS: usize = 6;

fn add_all(rig: &Rig, containers: &[Container], conf: &Value) {
    let children: Vec<_> = containers
        .iter()
        .map(|c| rig.begin("ADD", Some(c), conf, &[]))
        .collect();
    for child in children {
        let added = super::rig::answer(child.wait_with_output().unwrap());
        assert!(added.is_ok(), "{added:?}");
    }
}

fn del_all(rig: &Rig, containers: &[Container], conf: &Value) {
    let children: Vec<_> = containers
        .iter()
        .map(|c| rig.begin("DEL", Some(c), conf, &[]))
        .collect();
    for child in children {
        assert_eq!(
            super::rig::answer(child.wait_with_output().unwrap()),
            Ok(Value::Null)
        );
    }
}

fn at_once(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let containers: Vec<Container> = (0..CROWD).map(|_| rig.container()).collect();
    add_all(rig, &containers, &conf);
    let pods = rig.pods();
    assert_eq!(pods.len(), CROWD);
    let mut addresses: Vec<_> = pods.iter().flat_map(|p| p.addresses.clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 2 * CROWD);
    assert!(containers.iter().step_by(10).all(|c| c.pings("10.244.1.1")));
    del_all(rig, &containers, &conf);
    assert!(containers.iter().all(|c| !c.has("eth0")));
}

fn come_and_go(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let files = |rig: &Rig| {
        std::fs::read_dir(format!("/proc/{}/fd", rig.node.pid()))
            .unwrap()
            .count()
    };
    let (before, mut worst) = (files(rig), Duration::ZERO);
    let mut containers: Vec<Container> = (0..CROWD / 2).map(|_| rig.container()).collect();
    add_all(rig, &containers, &conf);
    for _ in 0..ROUNDS {
        let leave: Vec<Container> = containers.drain(..10).collect();
        del_all(rig, &leave, &conf);
        for _ in 0..10 {
            let new = rig.container();
            let begun = Instant::now();
            rig.add(&new, &conf);
            worst = worst.max(begun.elapsed());
            containers.push(new);
        }
        assert!(containers[0].pings("10.244.1.1"));
    }
    println!("the slowest ADD of {} took {worst:?}", 10 * ROUNDS);
    del_all(rig, &containers, &conf);
    let pid = rig.node.pid();
    eventually("no TAP is open", || taps(pid) == 0);
    eventually("no file more than before is open", || files(rig) <= before);
}

fn out_of_files(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let limit = |n: usize| {
        let pid = rig.node.pid().to_string();
        let arg = format!("--nofile={n}:");
        let out = rig.host.run("prlimit", &["--pid", &pid, &arg]);
        assert!(out.status.success(), "{out:?}");
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", rig.node.pid()))
        .unwrap()
        .count();
    limit(open + 12);
    let containers: Vec<Container> = (0..16).map(|_| rig.container()).collect();
    let said: Vec<_> = containers
        .iter()
        .map(|c| rig.call("ADD", Some(c), &conf, &[]))
        .collect();
    // At the limit it depends on what else is open at the moment, as a file that is being written.
    let refused: Vec<usize> = (0..said.len()).filter(|n| said[*n].is_err()).collect();
    assert!((1..16).contains(&refused.len()) && said[0].is_ok(), "{said:?}");
    for n in &refused {
        let e = said[*n].as_ref().unwrap_err();
        assert!(e["msg"].as_str().unwrap().contains("ulimit -n"), "{e}");
        assert!(!containers[*n].has("eth0"));
    }
    assert!(containers[0].pings("10.244.1.1"), "those that are there go on");
    let before = rig.node.cpu();
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        rig.node.cpu() - before < Duration::from_millis(250),
        "it does not spin"
    );
    limit(4096);
    rig.add(&containers[refused[0]], &conf);
    del_all(rig, &containers, &conf);
}
