//! An etcd on the stranger's host, which the relay can cut off like any other.

use super::netns::Netns;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long etcd may take to serve on a busy machine.
const START: Duration = Duration::from_secs(30);
/// The network of all worlds: n1 has 10.244.1.0/24 of it.
const NETWORK: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48",
    "Backend":{"Type":"vxlan"}}"#;
/// Where leases are kept.
pub const PREFIX: &str = "/coreos.com/network";

/// The store. Killed when dropped.
pub struct Store {
    /// Its URL.
    pub url: String,
    dir: PathBuf,
    process: Option<Child>,
}

impl Store {
    /// An etcd at `ip` in `netns` that has the network's configuration, with its files in `dir`.
    pub fn start(netns: &Netns, ip: Ipv4Addr, dir: &Path) -> Store {
        let mut store = Store {
            url: format!("http://{ip}:2379"),
            dir: dir.join("etcd"),
            process: None,
        };
        store.restart(netns);
        let done = store.ctl(netns, &["put", &format!("{PREFIX}/config"), NETWORK]);
        assert!(done.status.success(), "{done:?}");
        store
    }

    /// Start it again after it was killed.
    pub fn restart(&mut self, netns: &Netns) {
        assert!(self.process.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.with_extension("log"));
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(&self.dir);
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            etcd.args([flag, &self.url]);
        }
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        etcd.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"));
        let started = netns.within(|| etcd.spawn());
        self.process = Some(started.expect("these tests need etcd (tests/run installs it)"));
        let begun = Instant::now();
        while !self.ctl(netns, &["endpoint", "health"]).status.success() {
            assert!(begun.elapsed() < START, "etcd does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Run etcdctl.
    pub fn ctl(&self, netns: &Netns, args: &[&str]) -> Output {
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(args);
        ctl.stdin(Stdio::null());
        netns
            .within(|| ctl.output())
            .expect("these tests need etcdctl (tests/run installs it)")
    }

    /// Run etcdctl, which must succeed, for what it prints.
    pub fn ask(&self, netns: &Netns, args: &[&str]) -> String {
        let out = self.ctl(netns, args);
        assert!(
            out.status.success(),
            "etcdctl {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Kill it as a crash does.
    pub fn kill(&mut self) {
        let mut etcd = self.process.take().expect("it runs");
        rustix::process::kill_process(Pid::from_child(&etcd), Signal::KILL).expect("it is our child");
        let _ = etcd.wait();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}
