//! `podwire node` in the network namespace of a child, with a store.

use podwire::api::Status;
use rustix::process::{Pid, Signal};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");
/// How long anything of a node may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// A node, n1 unless it is another. Ended when dropped, with its pods.
pub struct Node {
    dir: PathBuf,
    args: Vec<String>,
    process: Option<Child>,
}

impl Node {
    /// One whose leases are at `url`, with its files in `dir` and its state in `state`; not awaited.
    pub fn start(url: &str, dir: &Path, state: &Path) -> Node {
        Node::start_with(url, dir, state, &[])
    }

    /// The same, with more flags.
    pub fn start_with(url: &str, dir: &Path, state: &Path, more: &[&str]) -> Node {
        Node::nth(1, url, dir, state, more)
    }

    /// One of several, each with a directory of its own.
    pub fn nth(n: u8, url: &str, dir: &Path, state: &Path, more: &[&str]) -> Node {
        let (name, bind, public) = (format!("n{n}"), format!("127.0.0.{n}"), format!("192.0.2.10{n}"));
        let mut args = [
            "node",
            "--name",
            &name,
            "--store",
            "etcd",
            "--etcd-endpoints",
            url,
        ]
        .map(String::from)
        .to_vec();
        args.extend(["--bind", &bind, "--public-ip", &public].map(String::from));
        for (flag, path) in [
            ("--state-dir", state.to_path_buf()),
            ("--subnet-file", dir.join("subnet.env")),
        ] {
            args.extend([flag.into(), path.to_string_lossy().into_owned()]);
        }
        args.extend(more.iter().map(ToString::to_string));
        let mut node = Node {
            dir: dir.into(),
            args,
            process: None,
        };
        node.run();
        node
    }

    /// Start the process (again).
    pub fn run(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("n1.log"))
            .unwrap();
        // It dies with the child, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", PODWIRE, "--socket"])
            .arg(self.socket());
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.process = Some(command.stderr(log).spawn().expect("podwire starts"));
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("n1.sock")
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Its anonymous memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .expect("a number of KiB")
    }

    /// Run a subcommand, for ten seconds at most.
    pub fn podwire(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["10", PODWIRE, "--socket"]).arg(self.socket());
        command
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("timeout runs")
    }

    /// Run a subcommand, which must succeed, for what it prints.
    #[track_caller]
    pub fn ask(&self, args: &[&str]) -> String {
        let out = self.podwire(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "podwire {args:?}: {} {said}\n{}",
            out.status,
            self.log()
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// What a subcommand prints as JSON, if it succeeds.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Option<T> {
        let out = self.podwire(args);
        let json = || serde_json::from_slice(&out.stdout).expect("JSON");
        out.status.success().then(json)
    }

    /// How it stands, once it is up.
    pub fn status(&self) -> Option<Status> {
        self.json(&["status", "--json"])
    }

    /// Wait until its status is so; the time that took.
    #[track_caller]
    pub fn until(&self, what: &str, patience: Duration, holds: impl Fn(&Status) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(&holds) {
                return begun.elapsed();
            }
            if begun.elapsed() >= patience {
                let problems = status.map(|s| (s.problems, s.peers.len()));
                panic!("not within {patience:?}: {what}; {problems:?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("it runs");
        rustix::process::kill_process(Pid::from_child(child), signal).expect("it is our child");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        let child = self.process.as_mut();
        let ended = child.is_none_or(|c| c.try_wait().expect("our child").is_some());
        if ended {
            self.process = None;
        }
        ended
    }

    /// Await its end.
    #[track_caller]
    pub fn ends(&mut self) {
        let begun = Instant::now();
        while !self.has_ended() {
            assert!(begun.elapsed() < SOON, "it does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it logged last.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("n1.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while !self.has_ended() && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
