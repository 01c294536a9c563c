//! A full node on which containers come and go (row 55 of the fault table): what the others send arrives whole, and afterwards
//! nothing is left.
//!
//! `PODWIRE_CHURN` says how many are replaced, `PODWIRE_CHURN_PROGRAM` by which podwire when it is not the one under test:
//! `PODWIRE_CHURN=10000 PODWIRE_CHURN_PROGRAM=target/release/podwire cargo test --test cni churn -- --nocapture`.

use super::Case;
use super::node::{Node, PODWIRE};
use super::rig::{Container, Rig, SOON, addresses, answer, eventually, taps};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[("churn_on_a_full_node_leaves_nothing", churn)];

/// Containers that stand, beside the two that talk.
const STANDING: usize = 250;
/// How many are replaced when nobody says.
const USUAL: usize = 400;
/// How many are attached or detached at once.
const AT_ONCE: usize = 10;
/// How much more a process may have in memory afterwards, in KiB: the node's tables, with the addresses that rest, grow and level
/// off (seen: 1.5 MiB after 4000 were replaced). Ten thousand pods that each left half a kilobyte would be found.
const MORE: u64 = 4 << 10;

/// What a process has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    files: usize,
    threads: usize,
    taps: usize,
}

fn held(pid: u32) -> Held {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    Held {
        files: count("fd"),
        threads: count("task"),
        taps: taps(pid),
    }
}

/// Memory that is a process's own, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.expect("a number of KiB")
}

/// Files below the directory that has the node's socket and all that it keeps, but for the containers' own.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type().is_ok_and(|t| t.is_dir()) {
            true => all.extend(files(&entry.path())),
            false if name.starts_with("ns-") => {}
            false => all.push(entry.path()),
        }
    }
    all.sort();
    all
}

/// A stream that goes on until it is told to end, with a checksum at both ends.
struct Stream {
    near: TcpStream,
    far: TcpStream,
}

/// Bytes that are sent at once, and summed.
const PIECE: usize = 16 << 10;

impl Stream {
    fn between(from: &Container, to: &Container, at: &str) -> Stream {
        let listen = || TcpListener::bind("0.0.0.0:9000");
        let listener = to.netns().within(listen).expect("a port");
        let connect = || TcpStream::connect((at, 9000));
        let near = from.netns().within(connect).expect("a connection");
        let (far, _) = listener.accept().expect("a connection");
        for end in [&near, &far] {
            end.set_read_timeout(Some(SOON)).expect("a timeout");
            end.set_write_timeout(Some(SOON)).expect("a timeout");
        }
        Stream { near, far }
    }

    fn send(&self, over: &AtomicBool) -> (u64, u64) {
        let (mut sum, mut bytes) = (DefaultHasher::new(), 0_u64);
        let mut piece = vec![0; PIECE];
        while !over.load(Ordering::Relaxed) {
            for (byte, n) in piece.iter_mut().zip(bytes..) {
                *byte = (n ^ (n >> 8) ^ (n >> 16)) as u8;
            }
            sum.write(&piece);
            (&self.near).write_all(&piece).expect("the stream goes on");
            bytes += PIECE as u64;
            // It leaves the processors to those who come.
            std::thread::sleep(Duration::from_millis(2));
        }
        self.near.shutdown(std::net::Shutdown::Write).expect("a shutdown");
        (bytes, sum.finish())
    }

    fn receive(&self) -> (u64, u64) {
        let (mut sum, mut bytes) = (DefaultHasher::new(), 0);
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            piece.clear();
            let read = (&self.far).take(PIECE as u64).read_to_end(&mut piece);
            if read.expect("the stream goes on") == 0 {
                return (bytes, sum.finish());
            }
            sum.write(&piece);
            bytes += piece.len() as u64;
        }
    }
}

struct Churn<'r> {
    rig: &'r Rig,
    conf: Value,
    program: PathBuf,
}

impl Churn<'_> {
    fn begin(&self, verb: &str, of: &Container) -> Child {
        let mut command = Command::new(&self.program);
        command.arg0("podwire-cni").env_clear();
        self.rig.begin_as(command, verb, Some(of), &self.conf, &[])
    }

    fn all<'c>(&self, verb: &str, containers: impl IntoIterator<Item = &'c Container>) {
        let children: Vec<_> = containers.into_iter().map(|c| self.begin(verb, c)).collect();
        for child in children {
            let said = answer(child.wait_with_output().expect("it ends"));
            assert!(said.is_ok(), "{verb}: {said:?}");
        }
    }

    fn many(&self, count: usize) -> VecDeque<Container> {
        let mut all = VecDeque::new();
        while all.len() < count {
            let some = AT_ONCE.min(count - all.len());
            let some: Vec<_> = (0..some).map(|_| self.rig.container()).collect();
            self.all("ADD", &some);
            all.extend(some);
        }
        all
    }

    fn none(&self, containers: VecDeque<Container>) {
        let all: Vec<_> = containers.into();
        all.chunks(AT_ONCE).for_each(|some| self.all("DEL", some));
    }

    /// Replace the oldest `count` of them.
    fn replace(&self, standing: &mut VecDeque<Container>, count: usize) {
        let leave: Vec<Container> = standing.drain(..count).collect();
        self.all("DEL", &leave);
        standing.extend(self.many(count));
    }
}

fn churn(rig: &mut Rig) {
    let said = std::env::var("PODWIRE_CHURN").ok();
    let cycles = said.map_or(USUAL, |n| n.parse().expect("a number"));
    let program = std::env::var_os("PODWIRE_CHURN_PROGRAM").unwrap_or(PODWIRE.into());
    let program = std::fs::canonicalize(program).expect("a program");
    // More than a /24 has: an address rests a minute before somebody else gets it.
    rig.node.stop();
    rig.node.set("--subnet", "10.244.0.0/16");
    rig.node.program = program.clone();
    rig.node.restart(&rig.host);
    let (rig, conf) = (&*rig, rig.conf("1.0.0", json!({})));
    let node = &rig.node;
    let churn = Churn { rig, conf, program };
    let (a, b) = (rig.container(), rig.container());
    rig.add(&a, &churn.conf);
    let to = addresses(&rig.add(&b, &churn.conf))[0].clone();
    let mut standing = churn.many(STANDING);
    // Once all tables are as large as they get.
    churn.replace(&mut standing, AT_ONCE);
    let pods = |node: &Node| node.status().pods.len();
    assert_eq!(pods(node), STANDING + 2);
    let state = || {
        (
            held(node.pid()),
            node.keeper().map(held),
            pods(node),
            rig.ipam().held,
        )
    };
    let (before, paths) = (state(), files(rig.dir()));
    let (own, kept) = (memory(node.pid()), node.keeper().map(memory));
    println!("{STANDING} pods stand: {own} KiB, keeper {kept:?} KiB, {before:?}");
    let stream = Stream::between(&a, &b, &to);
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let (sent, received) = std::thread::scope(|s| {
        let sender = s.spawn(|| stream.send(&over));
        let receiver = s.spawn(|| stream.receive());
        let mut done = 0;
        while done < cycles && !sender.is_finished() && !receiver.is_finished() {
            let some = AT_ONCE.min(cycles - done);
            churn.replace(&mut standing, some);
            done += some;
            if done % 1000 == 0 {
                let (took, now) = (begun.elapsed(), memory(node.pid()));
                println!("{done} replaced in {took:.1?}: {now} KiB");
            }
        }
        over.store(true, Ordering::Relaxed);
        let (sent, received) = (sender.join(), receiver.join());
        (sent.expect("it is sent"), received.expect("it arrives"))
    });
    let (took, mib) = (begun.elapsed(), sent.0 >> 20);
    assert_eq!(sent, received, "bytes and checksum of the stream");
    assert!(sent.0 > 0);
    drop(stream);
    println!("{cycles} replaced in {took:.1?}; {mib} MiB of the stream arrived whole");
    eventually(
        "as many files, threads, TAPs, pods and addresses as before",
        || state() == before,
    );
    assert_eq!(files(rig.dir()), paths);
    let (now, keeper) = (memory(node.pid()), node.keeper().map(memory));
    println!("afterwards: {now} KiB, keeper {keeper:?} KiB, {:?}", state());
    assert!(now <= own + MORE, "{own} KiB before, {now} now");
    assert!(
        keeper <= kept.map(|k| k + MORE),
        "keeper: {kept:?} KiB before, {keeper:?} now"
    );
    standing.extend([a, b]);
    churn.none(standing);
}
