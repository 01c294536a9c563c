//! `etcd` processes.

use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long etcd may take to serve on a busy machine.
const START: Duration = Duration::from_secs(30);

/// Ports that were given out; two tests must not get the same one.
static PORTS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port nobody listens on.
pub fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if PORTS.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// A member. Killed when dropped.
pub struct Etcd {
    /// Its URL for clients.
    pub url: String,
    dir: TempDir,
    args: Vec<String>,
    /// What `etcdctl` needs to get in.
    login: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// One member, with more arguments; awaited.
    pub fn start(more: &[&str]) -> Etcd {
        let mut etcd = Etcd::prepare("http", "one", free_port(), &[], more);
        etcd.run();
        etcd.await_health();
        etcd
    }

    /// One member that serves by TLS, and how to talk to it; awaited.
    pub fn start_tls(more: &[&str], login: &[&str]) -> Etcd {
        let mut etcd = Etcd::prepare("https", "one", free_port(), &[], more);
        etcd.login = login.iter().map(ToString::to_string).collect();
        etcd.run();
        etcd.await_health();
        etcd
    }

    /// Three members of one cluster; awaited.
    pub fn three() -> [Etcd; 3] {
        let names = ["one", "two", "three"];
        let ports = names.map(|_| free_port());
        let members: Vec<(&str, u16)> = names.into_iter().zip(ports).collect();
        let mut all = names.map(|name| {
            let port = members.iter().find(|(n, _)| *n == name).unwrap().1;
            Etcd::prepare("http", name, port, &members, &[])
        });
        all.iter_mut().for_each(Etcd::run);
        all.iter().for_each(Etcd::await_health);
        all
    }

    fn prepare(scheme: &str, name: &str, peer: u16, members: &[(&str, u16)], more: &[&str]) -> Etcd {
        let dir = tempfile::Builder::new()
            .prefix("podwire-etcd-")
            .tempdir()
            .unwrap();
        let url = format!("{scheme}://127.0.0.1:{}", free_port());
        let peer_url = |port: u16| format!("http://127.0.0.1:{port}");
        let alone = [(name, peer)];
        let members = if members.is_empty() { &alone[..] } else { members };
        let cluster: Vec<String> = members
            .iter()
            .map(|(n, p)| format!("{n}={}", peer_url(*p)))
            .collect();
        let args = [
            "--name",
            name,
            "--data-dir",
            &dir.path().join("data").to_string_lossy(),
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            &peer_url(peer),
            "--initial-advertise-peer-urls",
            &peer_url(peer),
            "--initial-cluster",
            &cluster.join(","),
            "--initial-cluster-token",
            &cluster.join("-"),
        ]
        .map(String::from)
        .into_iter()
        .chain(more.iter().map(ToString::to_string))
        .collect();
        Etcd {
            url,
            dir,
            args,
            login: Vec::new(),
            process: None,
        }
    }

    /// Start the process (again).
    pub fn run(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        // It dies with the thread of the test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd"]).args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("etcd starts"));
    }

    /// Wait until it serves.
    pub fn await_health(&self) {
        let begun = Instant::now();
        while !self.try_ctl(&["endpoint", "health"]).status.success() {
            assert!(
                begun.elapsed() < START,
                "etcd does not come up:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it said last.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("it runs");
        rustix::process::kill_process(Pid::from_child(child), signal).expect("it is our child");
    }

    /// Kill it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Delete all it knows; it must not run.
    pub fn wipe(&self) {
        assert!(self.process.is_none(), "it runs");
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Use this login for [`Etcd::ctl`] from now on.
    pub fn log_in(&mut self, user: &str) {
        self.login = vec!["--user".into(), user.into()];
    }

    /// Run `etcdctl` against it; it must succeed. What it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let out = self.try_ctl(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            out.status.success(),
            "etcdctl {args:?}: {}{}\n{}",
            text(&out.stdout),
            text(&out.stderr),
            self.log_tail()
        );
        text(&out.stdout)
    }

    /// Put a value that may be too long for a command line.
    pub fn put(&self, key: &str, value: &[u8]) {
        self.feed(&["put", key], value);
    }

    /// Run a transaction, in etcdctl's language.
    pub fn txn(&self, text: &str) {
        self.feed(&["txn"], text.as_bytes());
    }

    fn feed(&self, args: &[&str], input: &[u8]) {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        assert!(child.wait().unwrap().success(), "etcdctl {args:?}");
    }

    fn try_ctl(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("etcdctl runs")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", &self.url);
        command.args(&self.login).args(args).stdin(Stdio::null());
        command
    }

    /// The revision it is at.
    pub fn revision(&self) -> i64 {
        let json = self.ctl(&["endpoint", "status", "--write-out", "json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json[0]["Status"]["header"]["revision"].as_i64().unwrap()
    }

    /// Whether it leads its cluster.
    pub fn leads(&self) -> bool {
        let json = self.ctl(&["endpoint", "status", "--write-out", "json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let status = &json[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    }

    /// How many leases it has.
    pub fn leases(&self) -> usize {
        let json = self.ctl(&["lease", "list", "--write-out", "json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["leases"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
