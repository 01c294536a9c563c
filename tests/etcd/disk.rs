//! A memory on a disk that is full, and on one that is read-only: a small file system in a mount namespace of a child.

use super::Case;
use super::child::{self, Body};
use podwire::control::cluster::Remembered;
use podwire::control::memory::{Memory, Recalled};
use std::path::Path;
use std::process::Command;

/// The tests.
pub const CASES: &[Case] = &[("a_full_disk_keeps_the_old_state", full)];

/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[("full", in_child)];

fn full() {
    child::run("full", &["--map-root-user", "--mount"]);
}

fn in_child(dir: &Path) {
    let mount = |options: &str| {
        let args = ["-t", "tmpfs", "-o", options, "none"];
        assert!(
            Command::new("mount")
                .args(args)
                .arg(dir)
                .status()
                .unwrap()
                .success()
        );
    };
    let state = |peers: usize| Remembered {
        cluster: 1,
        revision: 1,
        config: String::new(),
        own: None,
        peers: vec![("10.61.7.0-24".into(), "x".repeat(100), 1); peers],
    };
    mount("size=64k");
    let memory = Memory::new(&dir.join("n1"));
    memory.keep(&state(1)).unwrap();
    let why = memory.keep(&state(1000)).unwrap_err().to_string();
    assert!(
        why.contains("No space left") && why.contains("--state-dir"),
        "{why}"
    );
    assert_eq!(memory.recall().unwrap(), Recalled::Known(state(1)));
    // What failed takes no room.
    memory.keep(&state(2)).unwrap();
    mount("remount,ro");
    let why = memory.keep(&state(3)).unwrap_err().to_string();
    assert!(why.contains("Read-only file system"), "{why}");
    assert!(memory.keep_id("0123456789abcdef0123456789abcdef").is_err());
    assert_eq!(memory.recall().unwrap(), Recalled::Known(state(2)));
}
