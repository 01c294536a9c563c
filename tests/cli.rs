//! The command line as people and scripts meet it: help, exit codes, mistakes, and a node's life.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn podwire(dir: &Path) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_podwire"));
    c.env_remove("PODWIRE_SOCKET")
        .env_remove("NOTIFY_SOCKET")
        .env("XDG_RUNTIME_DIR", dir);
    c.current_dir(dir);
    c
}

fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = podwire(dir).args(args).output().unwrap();
    let text = |b| String::from_utf8(b).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A node at `DIR/n1.sock`, killed at the end of a test that fails.
struct Node(Child);

impl Node {
    fn start(dir: &Path, more: &[&str]) -> Node {
        let child = podwire(dir)
            .args([
                "--socket",
                "n1.sock",
                "node",
                "--name",
                "n1",
                "--subnet",
                "10.244.1.0/24",
            ])
            .args(["--bind", "127.0.0.1", "--port", "auto"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut node = Node(child);
        let mut line = String::new();
        BufReader::new(node.0.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("node n1 is up: pods 10.244.1.0/24"), "{line}");
        node
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn help_teaches() {
    let dir = tempfile::tempdir().unwrap();
    let (code, help, _) = run(dir.path(), &["--help"]);
    assert_eq!(code, 0);
    for word in ["--socket", "Exit codes", "podwire attach"] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
    assert!(!help.contains("__"), "hidden subcommands stay hidden");
    let subcommands = subcommands(&help);
    for known in [
        "node", "attach", "detach", "pods", "run", "exec", "status", "doctor",
    ] {
        assert!(
            subcommands.iter().any(|s| s == known),
            "{known} is not in\n{help}"
        );
    }
    for sub in subcommands {
        let (code, help, err) = run(dir.path(), &[&sub, "--help"]);
        assert_eq!(code, 0, "{sub}: {err}");
        let (_, examples) = help
            .split_once("\nExamples:\n")
            .unwrap_or_else(|| panic!("{sub} has no examples:\n{help}"));
        assert!(
            examples.contains(&format!("  podwire {sub}")),
            "the examples of {sub} are not its own:\n{help}"
        );
        let (short, _, _) = run(dir.path(), &[&sub, "-h"]);
        assert_eq!(short, 0, "{sub} -h");
    }
}

/// The names under `Commands:`, without `help`.
fn subcommands(help: &str) -> Vec<String> {
    let (_, listed) = help.split_once("\nCommands:\n").unwrap();
    let entries = listed.lines().take_while(|l| !l.is_empty());
    // An explanation may go on in a line of its own, which is set deeper.
    let names = entries.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    let names = names.filter_map(|l| l.split_whitespace().next());
    names.filter(|n| *n != "help").map(Into::into).collect()
}

#[test]
fn what_is_mistyped_is_guessed() {
    let dir = tempfile::tempdir().unwrap();
    for (typed, meant) in [
        (vec!["statsu"], "'status'"),
        (vec!["pods", "--jsno"], "'--json'"),
        (vec!["node", "--subnt", "10.244.1.0/24"], "'--subnet'"),
        (vec!["q"], "try '--help'"),
        (vec!["detach"], "<NAME>"),
        (vec!["attach", "--name", "a"], "--netns"),
    ] {
        let (code, out, err) = run(dir.path(), &typed);
        assert_eq!((code, out.as_str()), (2, ""), "{typed:?}: {err}");
        assert!(err.contains(meant), "{typed:?} gave\n{err}");
    }
}

/// Each code of `podwire --help` that can be had without a pod; `tests/pods.rs` has the others.
#[test]
fn exit_codes_tell_what_went_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let at = |args: &[&str]| {
        let (code, _, err) = run(dir.path(), &[&["--socket", "n1.sock"], args].concat());
        assert!(
            code == 0 || err.starts_with("podwire: ") && err.ends_with(")\n") && err.lines().count() == 1,
            "one sentence with a remedy, not {err:?}"
        );
        code
    };
    assert_eq!(at(&["pods"]), 0);
    assert_eq!(at(&["detach", "nobody"]), 0, "what is gone is detached");
    assert_eq!(at(&["node", "--subnet", "10.244.1.0/33"]), 2);
    assert_eq!(at(&["node", "--subnet", "10.244.1.0/24", "--port", "auto"]), 5);
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let other = [
        "--socket",
        "o.sock",
        "node",
        "--name",
        "o",
        "--subnet",
        "10.244.2.0/24",
        "--port",
    ];
    let (code, _, err) = run(
        dir.path(),
        &[&other[..], &[&port, "--bind", "127.0.0.1"]].concat(),
    );
    assert_eq!(
        (code, err),
        (
            5,
            format!("podwire: port {port} of 127.0.0.1 is in use (set overlay.port)\n")
        )
    );
    assert_eq!(at(&["exec", "nobody", "--", "true"]), 6);
    assert_eq!(at(&["attach", "--name", "a", "--netns", "nowhere"]), 6);
    assert_eq!(at(&["attach", "--name", "a", "--pid", "4194305"]), 6);
    assert_eq!(run(dir.path(), &[]).0, 2);
    drop(node);
    assert_eq!(at(&["status"]), 4);
    let (code, _, err) = run(dir.path(), &["--socket", "x.sock", "status"]);
    assert_eq!(code, 4);
    assert_eq!(
        err,
        "podwire: no podwire node answers at x.sock (start one with `podwire node`, or name its socket with \
         --socket)\n"
    );
    assert_eq!(stranger(dir.path(), &["--socket", "n1.sock", "status"]), Some(3));
}

/// The exit code when another user asks, or when this one may not.
fn stranger(dir: &Path, args: &[&str]) -> Option<i32> {
    fs::set_permissions(dir.join("n1.sock"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = nobody(dir);
    command.args(args).stderr(Stdio::null()).status().unwrap().code()
}

/// podwire as an ordinary user: this one, or nobody when this one is root.
fn nobody(dir: &Path) -> Command {
    // The program may lie where nobody may look, hence by descriptor, which is ours until the test ends.
    static PROGRAM: std::sync::OnceLock<fs::File> = std::sync::OnceLock::new();
    let program = PROGRAM.get_or_init(|| fs::File::open(env!("CARGO_BIN_EXE_podwire")).unwrap());
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    if fs::metadata(dir).unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    command
        .current_dir(dir)
        .env_remove("PODWIRE_SOCKET")
        .env_remove("NOTIFY_SOCKET");
    command
}

#[test]
fn mistakes_name_file_key_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let net = "subnet = \"10.244.1.0/24\"\nnode = \"n1\"\n";
    let peer = "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.1.128/25\"\n";
    fs::write(dir.path().join("peers.toml"), peer).unwrap();
    // Each: the file, and what the message says of place, key and remedy.
    let cases: &[(&str, &[&str])] = &[
        ("", &["subnet", "is missing", "--subnet 10.244.1.0/24"]),
        ("subnet = \"", &["n.toml:1", "not TOML"]),
        (
            "subnet = \"10.244.1.7/24\"",
            &["n.toml:1", "subnet", "write 10.244.1.0/24"],
        ),
        (
            &format!("{net}peer = \"x\""),
            &["n.toml:3", "peer", "did you mean `peers`?"],
        ),
        (
            &format!("{net}[overlay]\nprot = 1"),
            &["n.toml:4", "overlay.prot", "did you mean `overlay.port`?"],
        ),
        (
            &format!("{net}[overlay]\nport = 0"),
            &["n.toml:4", "overlay.port", "use 1 to 65535"],
        ),
        (
            &format!("{net}[overlay]\nunderlay_mtu = 1500\npod_mtu = 1500"),
            &["n.toml:5", "overlay.pod_mtu", "use at most 1450"],
        ),
        (
            &format!("{net}peers = \"none.toml\""),
            &["none.toml", "No such file"],
        ),
        (
            &format!("{net}peers = \"peers.toml\""),
            &[
                "peers.toml:4",
                "peer[1] (n2).subnet",
                "overlaps 10.244.1.0/24 of this node",
            ],
        ),
    ];
    for (text, wanted) in cases {
        fs::write(dir.path().join("n.toml"), text).unwrap();
        let (code, out, err) = run(dir.path(), &["node", "--config", "n.toml"]);
        assert_eq!((code, out.as_str()), (2, ""), "{text}: {err}");
        assert!(err.starts_with("podwire: ") && err.lines().count() == 1, "{err}");
        for want in *wanted {
            assert!(err.contains(want), "{text}\n  gave {err}\n  not  {want}");
        }
    }
    let (code, _, err) = run(dir.path(), &["node", "--config", "no.toml"]);
    assert_eq!(code, 2);
    assert!(err.contains("no.toml") && err.contains("--config"), "{err}");
    let (code, _, err) = run(dir.path(), &["node", "--subnet", "10.244.1.0/24", "--dscp", "64"]);
    assert_eq!(code, 2);
    assert!(err.starts_with("podwire: --dscp: 64 is out of range"), "{err}");
}

/// What cannot be had: one sentence on standard error, with the thing and the remedy, and the exit code of
/// `podwire --help`.
#[test]
fn what_cannot_be_had_is_told_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.file"), "x").unwrap();
    fs::write(dir.path().join("no.text"), [0xff, 0xfe]).unwrap();
    let long = format!("{}.sock", "x".repeat(200));
    // 104 bytes in all.
    let tight = "x".repeat(103 - dir.path().as_os_str().len());
    let node = |more: &[&str]| {
        let own = [
            "node",
            "--name",
            "n1",
            "--subnet",
            "10.244.1.0/24",
            "--port",
            "auto",
            "--bind",
        ];
        let mut args: Vec<String> = own.map(String::from).to_vec();
        if !more.contains(&"203.0.113.77") {
            args.push("127.0.0.1".into());
        }
        args.extend(more.iter().map(ToString::to_string));
        args
    };
    let cases: Vec<(Vec<String>, i32, [&str; 2])> = vec![
        (
            node(&["--socket", "a.file"]),
            1,
            ["a.file exists and is no socket", "remove it"],
        ),
        (
            node(&["--socket", "none/n.sock"]),
            1,
            ["none/n.sock", "set --socket to a path in a writable directory"],
        ),
        (
            node(&["--socket", &long]),
            2,
            ["longer than 107 bytes", "shorter one with --socket"],
        ),
        // The keeper's socket is beside it, and has a longer name.
        (
            node(&["--socket", &tight]),
            2,
            ["longer than 107 bytes", "shorter one with --socket"],
        ),
        (
            node(&["203.0.113.77"]),
            2,
            ["203.0.113.77 is no address of this host", "set overlay.bind"],
        ),
        (node(&["--peers", "none.toml"]), 2, ["none.toml", "with --peers"]),
        (node(&["--peers", "."]), 2, ["Is a directory", "with --peers"]),
        (node(&["--config", "."]), 2, ["Is a directory", "with --config"]),
        (node(&["--config", "no.text"]), 2, ["no.text", "with --config"]),
        (
            vec!["status".into(), "--socket".into(), "a.file".into()],
            4,
            ["no podwire node answers at a.file", "--socket"],
        ),
    ];
    for (args, want, says) in &cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, out, err) = run(dir.path(), &args);
        assert_eq!((code, out.as_str()), (*want, ""), "{args:?}: {err}");
        told(&err, says);
    }
    // As an ordinary user: nothing may be written here, nor read, and low ports are not to be had.
    fs::write(dir.path().join("secret.toml"), "").unwrap();
    fs::set_permissions(dir.path().join("secret.toml"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let cases: [(Vec<String>, i32, [&str; 2]); 3] = [
        (
            node(&["--socket", "n.sock"]),
            3,
            ["n.sock cannot be made: Permission denied", "writable directory"],
        ),
        (
            node(&["--config", "secret.toml"]),
            2,
            ["secret.toml: Permission denied", "with --config"],
        ),
        (
            node(&["--peers", "secret.toml"]),
            2,
            ["secret.toml: Permission denied", "with --peers"],
        ),
    ];
    for (args, want, says) in &cases {
        let out = nobody(dir.path()).args(args).output().unwrap();
        let err = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(*want), "{args:?}: {err}");
        told(&err, says);
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let lowest = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if lowest.trim().parse::<u16>().unwrap() > 53 {
        let socket = tempfile::tempdir().unwrap();
        fs::set_permissions(socket.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let args = [
            "node",
            "--name",
            "n1",
            "--subnet",
            "10.244.1.0/24",
            "--bind",
            "127.0.0.1",
            "--port",
            "53",
        ];
        let out = nobody(socket.path())
            .args(args)
            .args(["--socket", "n.sock"])
            .output()
            .unwrap();
        let err = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(3), "{err}");
        told(
            &err,
            &["port 53 of 127.0.0.1 is not yours to use", "one above 1023"],
        );
    }
}

/// One sentence with a remedy in parentheses, which says all of `words`.
#[track_caller]
fn told(err: &str, words: &[&str]) {
    let sentence = err.starts_with("podwire: ") && err.ends_with(")\n") && err.lines().count() == 1;
    assert!(sentence, "{err:?}");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in {err}");
    }
}

#[test]
fn print_config_reads_back_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "node",
        "--print-config",
        "--name",
        "n1",
        "--subnet",
        "10.244.1.0/24",
        "--bind",
        "127.0.0.1,::1",
        "--port",
        "auto",
        "--dscp",
        "46",
        "--peers",
        "p.toml",
    ];
    let (code, first, err) = run(dir.path(), &flags);
    assert_eq!(code, 0, "{err}");
    assert!(first.contains("port = \"auto\"") && first.contains("pod_mtu = 1430"));
    fs::write(dir.path().join("n.toml"), &first).unwrap();
    let (code, second, err) = run(dir.path(), &["node", "--print-config", "--config", "n.toml"]);
    assert_eq!((code, second), (0, first), "{err}");
}

#[test]
fn print_config_explains_every_key_before_anything_is_decided() {
    let dir = tempfile::tempdir().unwrap();
    let (code, draft, err) = run(dir.path(), &["node", "--print-config"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let commented = "# IPv4 subnet of this node's pods; `.1` is their gateway. Default: none; one of subnet and \
                     subnet6 is needed.\n# subnet = \"10.244.1.0/24\"\n";
    assert!(draft.contains(commented), "{draft}");
    // The way of the reader: take the comment off, and it is a configuration as if said by flags.
    let edited = draft.replace(
        "\n# subnet = \"10.244.1.0/24\"\n",
        "\nsubnet = \"10.244.7.0/24\"\n",
    );
    fs::write(dir.path().join("n.toml"), edited).unwrap();
    let read = run(dir.path(), &["node", "--print-config", "--config", "n.toml"]);
    let said = run(
        dir.path(),
        &["node", "--print-config", "--subnet", "10.244.7.0/24"],
    );
    assert_eq!(read, said);
    assert!(
        read.0 == 0 && read.1.contains("\nvtep_mac = \"0e:57:0a:f4:07:00\"\n"),
        "{read:?}"
    );
    // A node needs one all the same.
    fs::write(dir.path().join("n.toml"), draft).unwrap();
    let (code, _, err) = run(dir.path(), &["node", "--config", "n.toml"]);
    assert!(code == 2 && err.contains("subnet: is missing"), "{err}");
}

#[test]
fn a_node_lives_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let (code, out, err) = run(dir.path(), &["status", "--socket", "n1.sock", "--json"]);
    assert_eq!(code, 0, "{err}");
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["node"], "n1");
    assert_eq!(status["pid"], node.0.id());
    let (code, out, _) = run(dir.path(), &["status", "--socket", "n1.sock"]);
    assert!(code == 0 && out.contains("offloads") && !out.contains('\x1b'));
    let again = [
        "node",
        "--socket",
        "n1.sock",
        "--subnet",
        "10.244.1.0/24",
        "--name",
        "n1",
        "--port",
        "auto",
    ];
    let (code, _, err) = run(dir.path(), &again);
    assert_eq!(code, 5, "{err}");
    assert!(
        err.contains(&format!("node n1 already runs, pid {}", node.0.id())),
        "{err}"
    );
    node.signal("-TERM");
    let asked = Instant::now();
    assert!(node.0.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A node's socket is where the flag, the file or the environment says, in this order; clients in the same
/// environment find it.
#[test]
fn a_node_takes_its_socket_from_the_environment_too() {
    let dir = tempfile::tempdir().unwrap();
    let print = |more: &[&str]| {
        let out = podwire(dir.path())
            .args(["node", "--print-config"])
            .args(more)
            .env("PODWIRE_SOCKET", "env.sock")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let said = String::from_utf8(out.stdout).unwrap();
        let line = said.lines().find(|l| l.starts_with("socket = "));
        line.map(|l| l.trim_end_matches('"').rsplit('/').next().unwrap().to_string())
    };
    fs::write(dir.path().join("n.toml"), "socket = \"file.sock\"\n").unwrap();
    assert_eq!(print(&[]).as_deref(), Some("env.sock"));
    assert_eq!(print(&["--config", "n.toml"]).as_deref(), Some("file.sock"));
    let flag = ["--socket", "flag.sock", "--config", "n.toml"];
    assert_eq!(print(&flag).as_deref(), Some("flag.sock"));
    let (_, help, _) = run(dir.path(), &["node", "--help"]);
    let help: Vec<&str> = help.split_whitespace().collect();
    let help = help.join(" ");
    let told = "--socket <PATH> Socket that `podwire attach`, `status` and the others talk to. [default: \
                $PODWIRE_SOCKET, or NODE.sock in /run/podwire or $XDG_RUNTIME_DIR/podwire]";
    assert!(help.contains(told), "{help}");
    let mut child = podwire(dir.path());
    let child = child
        .args(["node", "--name", "n1", "--subnet", "10.244.1.0/24"])
        .args(["--bind", "127.0.0.1", "--port", "auto"])
        .env("PODWIRE_SOCKET", "env.sock")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut node = Node(child.unwrap());
    let mut line = String::new();
    let out = node.0.stdout.as_mut().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    assert!(line.ends_with("/env.sock\n"), "{line}");
    let asked = podwire(dir.path())
        .arg("pods")
        .env("PODWIRE_SOCKET", "env.sock")
        .status()
        .unwrap();
    assert!(asked.success());
}

#[test]
fn a_stale_socket_is_replaced_and_peers_follow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    node.0.kill().unwrap();
    node.0.wait().unwrap();
    assert!(dir.path().join("n1.sock").exists());
    fs::write(dir.path().join("peers.toml"), "").unwrap();
    let mut node = Node::start(dir.path(), &["--peers", "peers.toml", "--log", "info"]);
    let peer = "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.2.0/24\"\n";
    fs::write(dir.path().join("peers.new"), peer).unwrap();
    fs::rename(dir.path().join("peers.new"), dir.path().join("peers.toml")).unwrap();
    let log = BufReader::new(node.0.stderr.take().unwrap());
    let told = log
        .lines()
        .map_while(Result::ok)
        .find(|l| l.contains("peer n2 is at 192.0.2.2:8472"));
    assert!(told.is_some());
    node.signal("-INT");
    assert!(node.0.wait().unwrap().success());
}

#[test]
fn the_only_node_is_found_and_doctor_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(dir.path(), &["doctor", "--json"]);
    assert!(code < 2, "{err}");
    let checks: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(checks.as_array().unwrap().len() >= 8);
    let failed = checks.as_array().unwrap().iter().any(|c| c["verdict"] == "fail");
    assert_eq!(code, i32::from(failed));
    let (_, out, _) = run(dir.path(), &["doctor"]);
    assert!(out.contains("namespaces"), "{out}");
}
