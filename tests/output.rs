//! Standard output that takes nothing more: a full disk is a failure in one sentence, a reader that went away is
//! none, and neither is a panic. Needs /dev/net/tun and user namespaces; `tests/run` opens the former.

use podwire::pod::sandbox::{Sandbox, Spec};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

/// A node, ended by SIGTERM to its own pid.
struct Node {
    process: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n.sock");
        let mut process = Command::new(PODWIRE)
            .args([
                "node",
                "--name",
                "t",
                "--port",
                "auto",
                "--subnet",
                "10.244.9.0/24",
            ])
            .args(["--bind", "127.0.0.1", "--socket"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The socket's file is there a moment before it can be connected to.
        let mut line = String::new();
        let out = process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.starts_with("node t is up"), "{line}");
        Node {
            process,
            socket,
            _dir: dir,
        }
    }

    fn podwire(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PODWIRE);
        command.arg("--socket").arg(&self.socket).args(args);
        command
    }

    fn pods(&self) -> Vec<String> {
        let out = self.podwire(&["pods", "--json"]).output().unwrap();
        let pods: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let pods = pods.as_array().unwrap().iter();
        pods.map(|p| p["pod"].as_str().unwrap().into()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// Exit code and what was said to standard error.
fn run(mut command: Command, out: Stdio) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

const FULL: &str = "podwire: cannot write: No space left on device (os error 28)";

#[test]
fn what_only_tells_fails_when_the_disk_is_full() {
    let node = Node::start();
    let commands: [&[&str]; 9] = [
        &["pods"],
        &["pods", "--json"],
        &["detach", "nobody"],
        &["status"],
        &["status", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["node", "--print-config"],
        &["demo", "--nodes", "1", "--pods", "1"],
    ];
    for args in commands {
        let (code, said) = run(node.podwire(args), full());
        assert_eq!((code, said), (Some(1), format!("{FULL}\n")), "{args:?}");
        let (code, said) = run(node.podwire(args), closed());
        // The doctor may have found something.
        assert!(
            code == Some(0) || args[0] == "doctor" && code == Some(1),
            "{args:?}"
        );
        assert_eq!(said, "", "{args:?}");
    }
}

#[test]
fn a_pod_nobody_could_be_told_of_is_gone_again() {
    let node = Node::start();
    let mut spec = Spec::new("mine");
    spec.program = PODWIRE.into();
    let mine: Sandbox = spec.spawn().unwrap();
    let pid = mine.pid().to_string();
    for json in [None, Some("--json")] {
        for args in [
            vec!["run", "--detach", "--name", "p"],
            vec!["attach", "--pid", &pid, "--name", "p"],
        ] {
            let args: Vec<&str> = args.into_iter().chain(json).collect();
            let (code, said) = run(node.podwire(&args), full());
            let wanted = format!("{FULL}; the pod default/p was taken off again\n");
            assert_eq!((code, said), (Some(1), wanted), "{args:?}");
            assert!(node.pods().is_empty(), "{args:?}");
            // Who does not read the answer has the pod all the same.
            let (code, said) = run(node.podwire(&args), closed());
            assert_eq!((code, said.as_str()), (Some(0), ""), "{args:?}");
            assert_eq!(node.pods(), ["default/p"], "{args:?}");
            assert_eq!(run(node.podwire(&["detach", "p"]), closed()).0, Some(0));
        }
    }
    assert!(!mine.ended(), "what was only named is not podwire's to end");
}

#[test]
fn complaints_nobody_can_read_are_no_panic_either() {
    let node = Node::start();
    let run = |args: &[&str]| {
        let mut command = node.podwire(args);
        command.stdout(Stdio::null()).stderr(full());
        command.status().unwrap().code()
    };
    assert_eq!(run(&["exec", "nobody"]), Some(6));
    assert_eq!(run(&["run", "--name", "p", "--", "/no/such/program"]), Some(127));
    assert_eq!(run(&["run", "--name", "p", "--", "/dev/null"]), Some(126));
    // Told on standard error that its pod is gone, and then told to end.
    let mut child = node
        .podwire(&["run", "--name", "p", "--", "sh", "-c", "echo up; exec sleep 60"])
        .stdout(Stdio::piped())
        .stderr(full())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    assert_eq!(run(&["detach", "p"]), Some(0));
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}
