//! A disk that takes its time (row 31 of the fault table): an ext4 image, frozen as for a backup (FIFREEZE), so that
//! whoever writes to it waits in the kernel until it is thawed. The node goes on meanwhile. Only root may freeze.

use super::Case;
use super::child::{self, Body, tool};
use super::life::{CONFIG, stored};
use super::member::Member;
use super::node::{Node, SOON};
use super::server::Etcd;
use super::shell::{PREFIX, at};
use podwire::api::Status;
use podwire::control::cluster::Options;
use podwire::control::memory::{Memory, Recalled};
use podwire::model::Duration as Span;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[("nothing_waits_for_a_disk_that_hangs", hangs)];
/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[("hangs", in_child)];

fn hangs() {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root || !Path::new("/dev/loop-control").exists() {
        eprintln!("etcd: only root may freeze a file system, and a loop device is needed: not tested");
        return;
    }
    child::run("hangs", &["--mount", "--net", "--propagation", "private"]);
}

/// While it lives nobody's writing comes back. Also when this process is killed, it is thawed: the pipe closes.
struct Frozen(Child);

impl Frozen {
    fn new(disk: &Path) -> Frozen {
        let mut thaw = Command::new("sh");
        thaw.args(["-c", "read x; exec fsfreeze -u \"$0\""]).arg(disk);
        let thaw = thaw.stdin(Stdio::piped()).spawn().unwrap();
        let frozen = Frozen(thaw);
        tool("fsfreeze", &["-f", &disk.to_string_lossy()]);
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What a node says of records and of a state that are not written yet.
const RECORDS: &str = "pods.json is being written for more than 5 s";
const STATE: &str = "so far to keep the state";

fn says(status: &Status, what: &str) -> bool {
    status.problems.iter().any(|p| p.contains(what))
}

/// The pods of the node's records on disk.
fn recorded(file: &Path) -> BTreeSet<String> {
    let text = fs::read(file).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let pods = json["pods"].as_array().into_iter().flatten();
    let name = |pod: &serde_json::Value| pod["pod"].as_str().map(String::from);
    pods.filter_map(name).collect()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn in_child(dir: &Path) {
    tool("ip", &["link", "set", "lo", "up"]);
    let (image, disk) = (dir.join("image"), dir.join("disk"));
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    tool("mkfs.ext4", &["-q", &image.to_string_lossy()]);
    fs::create_dir(&disk).unwrap();
    tool(
        "mount",
        &["-o", "loop", &image.to_string_lossy(), &disk.to_string_lossy()],
    );
    let etcd = Etcd::start(&[]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let state = disk.join("state");
    let file = state.join("pods.json");
    let mut node = Node::start(&etcd.url, dir, &state);
    node.until("it is up", SOON, |s| {
        s.store.as_ref().is_some_and(|s| s.connected)
    });
    // A neighbour whose lease is short, on the same disk.
    let options = Options {
        ttl_s: 12,
        renew_margin: Span::from_secs(10),
        ..Options::default()
    };
    let mut other = Member::with(&at(&[&etcd.url]), 2, &disk, options);
    other.until(SOON, |m| m.ready && m.peers.len() == 1);
    let own = |key: String| format!("{PREFIX}/subnets/{key}");
    let subnet = node.status().unwrap().subnets[0];
    let mine = own(subnet.to_string().replace('/', "-"));
    let theirs = own(other.subnet.unwrap().to_string());
    let attach = |node: &Node, name: &str| {
        node.ask(&["run", "--detach", "--name", name]);
    };
    attach(&node, "a");
    attach(&node, "b");
    eventually("records of both", || recorded(&file).len() == 2);

    {
        let _frozen = Frozen::new(&disk);
        serves(&node, &mut other, &etcd, (&mine, &theirs));
        assert_eq!(recorded(&file).len(), 2, "nothing is written");
    }
    let right = ["default/a", "default/c"].map(String::from);
    eventually("the records are right", || {
        recorded(&file) == BTreeSet::from(right.clone())
    });
    node.until("no problem", SOON, |s| !says(s, RECORDS) && !says(s, STATE));
    let known = |name: &Path| match Memory::new(name).recall() {
        Ok(Recalled::Known(state)) => (state.own, state.peers.len()),
        other => panic!("{other:?}"),
    };
    let of = |key: &str| Some(key.rsplit('/').next().unwrap().to_string());
    eventually("what is known is kept", || {
        known(&state) == (of(&mine), 1) && known(&disk.join("n2")) == (of(&theirs), 1)
    });

    // Its end does not wait for the disk either, as far as anybody but the kernel is concerned.
    {
        let _frozen = Frozen::new(&disk);
        attach(&node, "d");
        let pods = node.status().unwrap().pods;
        let holders: Vec<u32> = pods.iter().filter_map(|p| p.holder).collect();
        assert_eq!(holders.len(), 3);
        node.signal(Signal::TERM);
        let runs = |pid: &u32| Path::new(&format!("/proc/{pid}/ns/net")).exists();
        eventually("its pods are gone, and its socket", || {
            !dir.join("n1.sock").exists() && !holders.iter().any(runs)
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            !node.has_ended(),
            "the kernel keeps a process that waits for a disk"
        );
    }
    node.ends();
    node.run();
    node.until("it is back", SOON, |s| {
        s.pods.is_empty() && s.subnets[0] == subnet
    });
    attach(&node, "again");
    eventually("it is recorded", || recorded(&file).contains("default/again"));
    node.signal(Signal::TERM);
    node.ends();
    other.stop(true);
    // What writes beside the neighbour lets go of its file a moment later.
    eventually("the disk is let go", || {
        let umount = std::process::Command::new("umount").arg(&disk).output();
        umount.is_ok_and(|out| out.status.success())
    });
}

/// Everything that needs no disk goes on: pods come and go and talk, leases are taken again and renewed.
fn serves(node: &Node, other: &mut Member, etcd: &Etcd, (mine, theirs): (&str, &str)) {
    let ping = |from: &str, to: &str| {
        let pods = node.status().expect("a status").pods;
        let to = pods.iter().find(|p| p.pod.name == to).expect("a pod");
        let ip = to.addresses[0].to_string();
        node.ask(&[
            "exec", from, "--", "ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", &ip,
        ]);
    };
    let begun = Instant::now();
    node.ask(&["run", "--detach", "--name", "c"]);
    ping("a", "c");
    node.ask(&["detach", "b"]);
    ping("c", "a");
    // Its lease is taken away: that is noticed, and mended.
    let (lease, _) = stored(etcd, mine).expect("its lease");
    etcd.ctl(&["lease", "revoke", &lease]);
    eventually("the lease is taken again", || {
        stored(etcd, mine).is_some_and(|(now, _)| now != lease)
    });
    // The neighbour's is renewed every few seconds.
    let mut leases = BTreeSet::new();
    while leases.len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{leases:?}");
        other.turn(Duration::from_millis(100));
        leases.insert(stored(etcd, theirs).expect("never gone").0);
    }
    node.until("it says that the disk is slow", 2 * SOON, |s| {
        says(s, RECORDS) && says(s, STATE)
    });
    ping("a", "c");
}
