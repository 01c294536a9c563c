//! A `podwire node` process on a host of the underlay.

use super::netns::Netns;
use podwire::api::{Client, Request, Status};
use podwire::model::{DropReason, OffloadMode, Panics, PortCounters};
use rustix::process::{Pid, Signal};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");
/// How long a node may take to come up on a busy machine.
const START: Duration = Duration::from_secs(10);
/// How long a node may take to end.
const END: Duration = Duration::from_secs(1);

/// A node; ended when dropped.
pub struct Node {
    /// Number of the node, from 1: its name is n1, its pods are in 10.244.1.0/24 and fd00:10:244:1::/64.
    pub number: usize,
    /// Its admin socket.
    pub socket: PathBuf,
    /// Its peers file.
    pub peers: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    /// The namespace it was started in last.
    netns_id: Option<PathBuf>,
    /// The test makes it panic.
    pub provoked: bool,
    /// The program; that under test unless told otherwise.
    pub program: PathBuf,
    process: Option<Child>,
}

/// Where in the kernel the threads of a process are.
fn waits(pid: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let told = threads.map(|thread| {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        format!("{}: {}", read("comm").trim(), read("wchan").trim())
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Whether one of these threads, as [`waits`] tells of them, does more than wait for an event, a lock or a time.
fn is_at_work(waits: &str) -> bool {
    const WAITING: [&str; 4] = ["poll", "futex", "nanosleep", "skb_wait"];
    waits
        .split(", ")
        .filter_map(|thread| thread.rsplit_once(": "))
        .any(|(_, at)| !WAITING.iter().any(|w| at.contains(w)))
}

/// An entry of a peers file.
pub fn peer(number: usize, underlay: IpAddr) -> String {
    format!(
        "[[peer]]\nname = \"n{number}\"\nunderlay = \"{underlay}\"\nsubnet = \"10.244.{number}.0/24\"\n\
         subnet6 = \"fd00:10:244:{number}::/64\"\n"
    )
}

impl Node {
    /// Node `number` at an address of a host, with its files in `dir` and more arguments of `podwire node`.
    pub fn start(
        number: usize,
        (netns, bind): (&Netns, IpAddr),
        dir: &Path,
        tap: OffloadMode,
        more: &[String],
    ) -> Node {
        let file = |ending: &str| dir.join(format!("n{number}.{ending}"));
        let tap = match tap {
            OffloadMode::On => "on",
            OffloadMode::Off => "off",
        };
        let peers = file("toml");
        let mut args: Vec<String> = [
            "node",
            "--name",
            &format!("n{number}"),
            "--subnet",
            &format!("10.244.{number}.0/24"),
            "--subnet6",
            &format!("fd00:10:244:{number}::/64"),
            "--offload-tap",
            tap,
            "--bind",
            &bind.to_string(),
        ]
        .map(String::from)
        .to_vec();
        if !more.iter().any(|m| m == "--store") {
            args.extend(["--peers".into(), peers.to_string_lossy().into_owned()]);
        }
        args.extend_from_slice(more);
        let mut node = Node {
            number,
            socket: file("sock"),
            peers,
            log: file("log"),
            args,
            netns_id: None,
            provoked: false,
            program: PODWIRE.into(),
            process: None,
        };
        node.restart(netns);
        node
    }

    /// Start the process again after it ended.
    pub fn restart(&mut self, netns: &Netns) {
        self.restart_under(&[], netns);
    }

    /// Start the process again by another program, which becomes it.
    pub fn restart_under(&mut self, prefix: &[&str], netns: &Netns) {
        assert!(self.process.is_none(), "n{} runs", self.number);
        let process = self.spawn_under(prefix, netns);
        self.is(process, netns);
    }

    /// Start the process, and do not wait for it.
    pub fn begin(&mut self, netns: &Netns) {
        assert!(self.process.is_none(), "n{} runs", self.number);
        self.process = Some(self.spawn_under(&[], netns));
    }

    /// A process as this node's.
    pub fn spawn(&self, netns: &Netns) -> Child {
        self.spawn_under(&[], netns)
    }

    fn spawn_under(&self, prefix: &[&str], netns: &Netns) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log");
        let program = self.program.to_string_lossy();
        let words: Vec<&str> = prefix.iter().copied().chain([&*program]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg("--socket")
            .arg(&self.socket)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        netns.within(|| command.spawn()).expect("podwire starts")
    }

    /// This process is the node; wait until it is up.
    pub fn is(&mut self, process: Child, netns: &Netns) {
        self.netns_id = netns.within(|| fs::read_link("/proc/thread-self/ns/net")).ok();
        self.process = Some(process);
        let begun = Instant::now();
        while !self.is_up() {
            assert!(begun.elapsed() < START, "n{} does not come up", self.number);
            assert!(
                self.running(),
                "n{} ended at once:\n{}",
                self.number,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it carries frames. One that waits for its subnet says so; others are not asked, since a status has
    /// probes sent to the peers.
    fn is_up(&self) -> bool {
        let waits = self.args.iter().any(|arg| arg == "--store");
        Client::connect(&self.socket).is_ok_and(|mut client| !waits || client.call(&Request::Status).is_ok())
    }

    /// Be another node at the next start: with its name and its subnets.
    pub fn become_node(&mut self, number: usize) {
        let (old, new) = (self.number, number);
        let same = |text: &str| match text {
            _ if text == format!("n{old}") => format!("n{new}"),
            _ if text == format!("10.244.{old}.0/24") => format!("10.244.{new}.0/24"),
            _ if text == format!("fd00:10:244:{old}::/64") => format!("fd00:10:244:{new}::/64"),
            _ => text.into(),
        };
        self.args = self.args.iter().map(|arg| same(arg)).collect();
        self.number = number;
    }

    /// Another of the same name, arguments and files, which does not run.
    pub fn twin(&self) -> Node {
        Node {
            socket: self.socket.clone(),
            peers: self.peers.clone(),
            log: self.log.clone(),
            args: self.args.clone(),
            netns_id: None,
            program: self.program.clone(),
            process: None,
            ..*self
        }
    }

    /// Give a flag another value, from its next start on.
    pub fn set(&mut self, flag: &str, value: &str) {
        match self.args.iter().position(|a| a == flag) {
            Some(at) => self.args[at + 1] = value.into(),
            None => self.args.extend([flag.into(), value.into()]),
        }
    }

    /// Leave a flag and its value out, from its next start on.
    pub fn unset(&mut self, flag: &str) {
        if let Some(at) = self.args.iter().position(|a| a == flag) {
            self.args.drain(at..at + 2);
        }
    }

    /// Start the process and await its end, which comes at once: its exit code, and what it said.
    pub fn fails_to_start(&self, netns: &Netns) -> (Option<i32>, String) {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(&self.args);
        let out = netns.within(|| command.stdin(Stdio::null()).output());
        let out = out.expect("podwire starts");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    }

    /// The process of its keeper.
    pub fn keeper(&self) -> Option<u32> {
        let word = format!("n{}", self.number);
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let own = fs::read_link("/proc/self/ns/user").ok();
        let mut keepers = pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            // Other tests have nodes of this name; each has an underlay of its own.
            words.get(1..3) == Some(&[b"__keeper", word.as_bytes()])
                && fs::read_link(format!("/proc/{pid}/ns/user")).ok() == own
                && fs::read_link(format!("/proc/{pid}/ns/net")).ok() == self.netns_id
        });
        keepers.next()
    }

    /// Whether the process runs.
    pub fn running(&mut self) -> bool {
        let child = self.process.as_mut();
        child.is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_none()))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    /// Send the process a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("the node runs");
        rustix::process::kill_process(Pid::from_child(child), signal).expect("it is our child");
    }

    /// Send a signal that ends the process, and await that, for a second at most; one that is killed does nothing
    /// more itself, and the kernel takes its time to close what it had.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let patience = if signal == Signal::KILL { START } else { END };
        let begun = Instant::now();
        let child = self.process.as_mut().expect("the node runs");
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                self.process = None;
                return status;
            }
            if begun.elapsed() >= patience {
                let waits = waits(child.id());
                // On a busy machine the kernel takes seconds to take a TAP down, and nobody can leave before; that
                // it just waits for something is never right.
                assert!(
                    is_at_work(&waits) && begun.elapsed() < START,
                    "n{} did not end within {patience:?}; its threads wait in {waits}",
                    self.number
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// End the process by SIGTERM; it must succeed within a second and leave no socket.
    pub fn stop(&mut self) {
        let status = self.end(Signal::TERM);
        assert!(status.success(), "n{} ended by {status}", self.number);
        assert!(!self.socket.exists(), "n{} left its socket", self.number);
        let keeper = self.socket.with_extension("keep");
        assert!(!keeper.exists(), "the keeper of n{} left its socket", self.number);
    }

    /// Run a subcommand against the node.
    pub fn podwire(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PODWIRE);
        command
            .arg("--socket")
            .arg(&self.socket)
            .args(args)
            .stdin(Stdio::null());
        command.output().expect("podwire runs")
    }

    /// What `podwire status --json` prints.
    pub fn status(&self) -> Status {
        let out = self.podwire(&["status", "--json"]);
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "n{} tells no status: {wrong}", self.number);
        serde_json::from_slice(&out.stdout).expect("JSON of a status")
    }

    /// How many frames the node dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.status().drops.get(reason.label()).copied().unwrap_or(0)
    }

    /// Processor time of the process so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // The name, in parentheses, may hold blanks; utime and stime are fields 14 and 15, in 1/100 s.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
        Duration::from_millis(10 * (ticks(14) + ticks(15)))
    }

    /// Memory of the process that is in use, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let number = line.and_then(|l| l.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).expect("a number of KiB")
    }

    /// What was counted for a pod of the node.
    pub fn port(&self, pod: &str) -> PortCounters {
        let pods = self.status().pods;
        let pod = pods.into_iter().find(|p| p.pod.name == pod);
        pod.expect("the pod is there").counters
    }

    /// Replace the peers file as configuration management does, by renaming.
    pub fn set_peers(&self, text: &str) {
        let new = self.peers.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.peers))
            .expect("a peers file");
    }

    /// All that must hold of a node at any time: it runs, nothing panicked, each frame is accounted for.
    pub fn check(&mut self) {
        let n = self.number;
        assert!(self.running(), "n{n} has ended:\n{}", self.log_tail());
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let panicked = !self.provoked && log.contains("panicked");
        assert!(!panicked, "n{n} panicked:\n{}", self.log_tail());
        // Asking sends probes to peers, at most once a second each, which are in flight then.
        let mut status = self.status();
        for _ in 0..5 {
            if status.counters.imbalance() != 0 {
                status = self.status();
            }
        }
        if !self.provoked {
            assert_eq!(status.counters.panics, Panics::default(), "n{n}: caught panics");
        }
        let counted: u64 = status.drops.values().sum();
        assert_eq!(status.counters.dropped, counted, "n{n}: drops by reason");
        assert_eq!(
            status.counters.imbalance(),
            0,
            "n{n}: frames in = frames out + consumed + dropped does not hold:\n{}",
            evidence(&status)
        );
    }

    /// What to print when a test failed.
    pub fn evidence(&mut self) -> String {
        let n = self.number;
        let log = self.log_tail();
        if !self.running() {
            return format!("--- n{n} does not run; its log:\n{log}");
        }
        let out = self.podwire(&["status", "--json"]);
        match serde_json::from_slice::<Status>(&out.stdout) {
            Ok(status) => format!("--- n{n}: {}\n--- log of n{n}:\n{log}", evidence(&status)),
            Err(_) => format!(
                "--- n{n} tells no status: {}\n{log}",
                String::from_utf8_lossy(&out.stderr)
            ),
        }
    }

    /// All it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn evidence(status: &Status) -> String {
    let json = |r: Result<String, serde_json::Error>| r.unwrap_or_default();
    format!(
        "counters {}, drops {}, peers {}",
        json(serde_json::to_string(&status.counters)),
        json(serde_json::to_string(&status.drops)),
        json(serde_json::to_string(&status.peers))
    )
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // Only a test that failed comes here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
