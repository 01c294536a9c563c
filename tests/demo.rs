//! `podwire demo` for real: nodes, namespaces, TAPs, pings and streams, and nothing of it afterwards. Needs
//! /dev/net/tun and user namespaces; `tests/run` opens the former.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

/// A demo whose files are all below a directory of the test's own.
struct Demo {
    process: Child,
    dir: tempfile::TempDir,
}

impl Demo {
    fn start(args: &[&str]) -> Demo {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(PODWIRE)
            .arg("demo")
            .args(args)
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Demo { process, dir }
    }

    /// The line of `--json`.
    fn report(&mut self) -> Value {
        let mut line = String::new();
        let out = self.process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    fn end(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    fn pid(&self) -> String {
        self.process.id().to_string()
    }

    /// The admin socket of a node.
    fn socket(&self, node: &str) -> PathBuf {
        let made = fs::read_dir(self.dir.path()).unwrap().next().unwrap().unwrap();
        made.path().join(format!("{node}.sock"))
    }

    /// The processes that belong to it, apart from itself: process ids and command lines. Each carries the
    /// demo's process id as an argument (the one it dies with), or the directory.
    fn processes(&self) -> Vec<(String, String)> {
        let (pid, dir) = (self.pid(), self.dir.path().to_str().unwrap());
        let all = fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|p| {
            let line = fs::read(p.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            Some((p.file_name().into_string().unwrap(), line))
        });
        lines
            .filter(|(_, line)| line.contains("podwire") || line.contains("__"))
            .filter(|(_, line)| line.split(' ').any(|word| word == pid) || line.contains(dir))
            .collect()
    }

    fn assert_nothing_is_left(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "still there: {left:#?}");
        let files: Vec<_> = fs::read_dir(self.dir.path()).unwrap().flatten().collect();
        assert!(files.is_empty(), "still there: {files:#?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
}

fn texts<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    let rows = list.as_array().unwrap().iter();
    rows.map(|row| row[key].as_str().unwrap()).collect()
}

#[test]
fn every_pod_reaches_every_pod() {
    let begun = Instant::now();
    let mut demo = Demo::start(&["--json"]);
    let report = demo.report();
    let status = demo.end();
    demo.assert_nothing_is_left();
    assert!(report["ok"].as_bool().unwrap(), "{report:#}");
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{report:#}");
    let seconds = report["seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < 10.0, "{seconds}");
    let pairs = report["pairs"].as_array().unwrap();
    // Four pods, three others each, two families.
    assert_eq!(pairs.len(), 4 * 3 * 2);
    for pair in pairs {
        assert!(pair["rtt_us"].as_f64().unwrap() > 0.0, "{pair}");
        assert_eq!(pair.as_object().unwrap().len(), 5, "{pair}");
    }
    let families = texts(&report["pairs"], "family");
    assert_eq!(families.iter().filter(|f| **f == "ipv6").count(), 12);
    assert_eq!(texts(&report["throughput"], "path"), ["same-node", "cross-node"]);
    for stream in report["throughput"].as_array().unwrap() {
        assert!(stream["gbit_s"].as_f64().unwrap() > 0.01, "{stream}");
        assert_eq!(stream.as_object().unwrap().len(), 4, "{stream}");
    }
}

#[test]
fn one_pod_by_itself_is_a_demo_too() {
    let mut demo = Demo::start(&["--nodes", "1", "--pods", "1", "--json"]);
    let report = demo.report();
    assert_eq!(demo.end().code(), Some(0));
    demo.assert_nothing_is_left();
    assert_eq!(report["ok"], true);
    assert_eq!(report["pairs"], Value::Array(vec![]));
    assert_eq!(report["throughput"], Value::Array(vec![]));
}

#[test]
fn kept_it_can_be_entered_and_ends_by_a_signal() {
    let mut demo = Demo::start(&["--nodes", "1", "--pods", "1", "--json", "--keep"]);
    demo.report();
    let socket = demo.socket("a");
    let podwire = |args: &[&str]| {
        let out = Command::new(PODWIRE)
            .arg("--socket")
            .arg(&socket)
            .args(args)
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(podwire(&["exec", "demo/a1", "--", "hostname"]), "a1\n");
    assert!(podwire(&["pods"]).contains("demo/a1"));
    signal("-INT", &demo.pid());
    let begun = Instant::now();
    assert_eq!(demo.end().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3));
    demo.assert_nothing_is_left();
}

#[test]
fn interrupted_half_way_it_leaves_nothing() {
    for milliseconds in [1, 10, 40, 100] {
        let mut demo = Demo::start(&["--json"]);
        std::thread::sleep(Duration::from_millis(milliseconds));
        signal("-TERM", &demo.pid());
        // 143 where the signal came before the demo listens to it.
        let status = demo.end();
        assert!(!status.success(), "{status}");
        demo.assert_nothing_is_left();
    }
}

#[test]
fn a_node_that_dies_is_named() {
    let mut demo = Demo::start(&["--nodes", "1", "--pods", "1", "--json", "--keep"]);
    assert_eq!(demo.report()["ok"], true);
    let processes = demo.processes();
    let node = processes.iter().find(|(_, line)| line.contains(" node "));
    signal("-KILL", &node.unwrap().0);
    assert_eq!(demo.end().code(), Some(1));
    let said = std::io::read_to_string(demo.process.stderr.take().unwrap()).unwrap();
    assert!(
        said.contains("node a ended by itself; its last words:\n  "),
        "{said}"
    );
    demo.assert_nothing_is_left();
}

#[test]
fn killed_it_takes_its_processes_along() {
    let mut demo = Demo::start(&["--nodes", "2", "--pods", "1", "--json", "--keep"]);
    demo.report();
    let alive = demo.processes();
    assert!(
        alive.iter().any(|(_, line)| line.contains(" node ")),
        "{alive:#?}"
    );
    assert!(
        alive.iter().any(|(_, line)| line.contains("__pause")),
        "{alive:#?}"
    );
    signal("-KILL", &demo.pid());
    demo.end();
    let begun = Instant::now();
    // A dying process loses its command line first and its sockets last.
    while !demo.processes().is_empty() || UnixStream::connect(demo.socket("a")).is_ok() {
        let left = demo.processes();
        assert!(begun.elapsed() < Duration::from_secs(3), "still there: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its files stay, since nobody was there to remove them, until the next one comes along.
    let files = || fs::read_dir(demo.dir.path()).unwrap().count();
    assert_eq!(files(), 1);
    let next = Command::new(PODWIRE)
        .args(["demo", "--nodes", "1", "--pods", "1", "--json"])
        .env("TMPDIR", demo.dir.path())
        .output()
        .unwrap();
    assert!(next.status.success(), "{}", String::from_utf8_lossy(&next.stderr));
    assert_eq!(files(), 0);
}

/// An ordinary user brings up two nodes by `unshare -Urn`: in a network namespace that has nothing, not even
/// loopback up.
#[test]
fn a_new_network_namespace_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let inside = |more: &[&str], script: &str| {
        let mut command = Command::new("unshare");
        let command = command.arg("-Urn").args(more).args(["sh", "-c", script, PODWIRE]);
        let out = command.env("TMPDIR", dir.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, out, err) = inside(&[], "\"$0\" demo --json");
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}");
    assert_eq!(report["pairs"].as_array().unwrap().len(), 4 * 3 * 2);
    assert_eq!(
        err,
        "podwire: lo was down in this network namespace, and is up now\n"
    );
    let (code, _, err) = inside(&[], "ip link set lo up && \"$0\" demo --json --nodes 1 --pods 1");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    // Who may not bring it up is told who may.
    let less = ["setpriv", "--bounding-set", "-net_admin"];
    let (code, out, err) = inside(&less, "\"$0\" demo --json");
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert_eq!(
        err,
        "podwire: the nodes of a demo meet on loopback, but lo is down in this network namespace (as its root: ip \
         link set lo up)\n"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn two_demos_at_once_do_not_meet() {
    let args = ["--nodes", "2", "--pods", "1", "--json"];
    let mut demos = [Demo::start(&args), Demo::start(&args)];
    for demo in &mut demos {
        let report = demo.report();
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(demo.end().code(), Some(0));
        demo.assert_nothing_is_left();
    }
}
