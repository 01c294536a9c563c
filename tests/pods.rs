//! A real node, a real TAP in a real pod: `podwire run` gives the command an interface as planned, hands its
//! exit code back, and leaves nothing. What podwire made ends with its port, what it did not make lives on. Needs
//! /dev/net/tun and user namespaces; `tests/run` opens the former.

use podwire::api::{AttachRequest, Client, PROTOCOL, Reply, Request};
use podwire::pod::sandbox::{Sandbox, Spec};
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

/// A node of the test's own, ended by SIGTERM to its own pid.
struct Node {
    process: Child,
    dir: tempfile::TempDir,
}

impl Node {
    fn start(tap: &str) -> Node {
        let subnets = ["--subnet", "10.244.9.0/24", "--subnet6", "fd00:9::/64"];
        let bind = ["--bind", "127.0.0.1", "--offload-tap", tap];
        Node::with(&[subnets, bind].concat())
    }

    fn with(flags: &[&str]) -> Node {
        Node::logging(flags, Stdio::null())
    }

    fn logging(flags: &[&str], log: impl Into<Stdio>) -> Node {
        Node::start_as(&mut Command::new(PODWIRE), flags, log.into())
    }

    /// With its open files limited as by `ulimit`.
    fn limited(ulimit: &str) -> Node {
        let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
        let flags = ["--subnet", "10.244.9.0/24", "--bind", "127.0.0.1"];
        let mut shell = Command::new("sh");
        Node::start_as(shell.args(["-c", &script, PODWIRE]), &flags, Stdio::null())
    }

    fn start_as(program: &mut Command, flags: &[&str], log: Stdio) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n.sock");
        let process = program
            .args(["node", "--name", "t", "--port", "auto", "--socket"])
            .arg(&socket)
            .args(flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the node did not come up"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Node { process, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("n.sock")
    }

    fn podwire(&self, args: &[&str]) -> Output {
        Command::new(PODWIRE)
            .arg("--socket")
            .arg(self.socket())
            .args(args)
            .output()
            .unwrap()
    }
}

impl Node {
    /// Make a pod that outlives the command; the process that holds it.
    fn detached(&self, name: &str) -> u32 {
        let out = self.podwire(&["run", "--detach", "--json", "--name", name]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let pod: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        u32::try_from(pod["holder"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = Command::new("kill").arg(self.process.id().to_string()).status();
            let _ = self.process.wait();
        }
    }
}

fn a_pod_has_its_interface(tap: &str, vnet_hdr: &str) {
    let node = Node::start(tap);
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /sys/class/net/eth0/tx_queue_len; \
                  ip -d link show eth0; ip addr show eth0; ip route; ip -6 route; hostname; exit 7";
    let out = node.podwire(&[
        "run",
        "--name",
        "web",
        "--ip",
        "10.244.9.77",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let said = String::from_utf8_lossy(&out.stdout);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{said}{wrong}");
    for expected in [
        "0a:58:0a:f4:09:4d\n1450\n4000\n",
        vnet_hdr,
        "gso_max_segs 44",
        "inet 10.244.9.77/24",
        "default via 10.244.9.1 dev eth0",
        "default via fd00:9::1 dev eth0",
        "nodad",
        "\nweb\n",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    let pods = node.podwire(&["pods", "--json"]);
    assert!(pods.status.success());
    assert!(
        !String::from_utf8_lossy(&pods.stdout).contains("web"),
        "the pod is still there"
    );
}

#[test]
fn a_pod_has_its_interface_with_offloads() {
    a_pod_has_its_interface("on", "vnet_hdr on");
}

#[test]
fn a_pod_has_its_interface_without_offloads() {
    a_pod_has_its_interface("off", "vnet_hdr off");
}

#[test]
fn an_address_in_use_is_refused_with_its_owner() {
    let node = Node::start("on");
    let made = node.podwire(&["run", "--detach", "--name", "first", "--ip", "10.244.9.5"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let refused = node.podwire(&["run", "--name", "second", "--ip", "10.244.9.5", "--", "true"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("default/first"));
    let inside = node.podwire(&["exec", "first", "--", "hostname"]);
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "first\n");
    assert!(node.podwire(&["detach", "first"]).status.success());
    // The address rests for a while, the name is free at once.
    let made = node.podwire(&["run", "--name", "first", "--", "true"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_pod_that_podwire_made_ends_with_its_port() {
    let node = Node::start("on");
    let (kept, gone) = (node.detached("kept"), node.detached("gone"));
    assert!(alive(kept) && alive(gone));
    assert!(node.podwire(&["detach", "gone"]).status.success());
    assert!(ends(gone) && alive(kept));
    drop(node);
    assert!(ends(kept), "the node's end is that of its pods");

    let mut node = Node::start("on");
    let pod = node.detached("pod");
    node.process.kill().unwrap();
    node.process.wait().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        alive(pod),
        "a node that is killed leaves its pods to the next start"
    );
    // Without its socket, which went with the directory, no start would find them.
    drop(node);
    assert!(ends(pod), "pods that nobody can find are not kept");
}

#[test]
fn a_subnet_has_an_end() {
    // The network's own address, the gateway's and the broadcast address leave one.
    let node = Node::with(&["--subnet", "10.244.9.0/30", "--bind", "127.0.0.1"]);
    node.detached("only");
    let refused = node.podwire(&["run", "--name", "another", "--", "true"]);
    assert_eq!(refused.status.code(), Some(7));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("10.244.9.0/30"), "{why}");
    let code = |args: &[&str]| node.podwire(args).status.code();
    assert_eq!(code(&["exec", "only", "--", "sh", "-c", "exit 9"]), Some(9));
    assert_eq!(code(&["exec", "only", "--", "/no/such/program"]), Some(127));
    assert_eq!(code(&["exec", "only", "--", "/dev/null"]), Some(126));
}

#[test]
fn a_command_is_told_when_its_pod_is_detached() {
    let node = Node::start("on");
    let mut command = Command::new(PODWIRE);
    let mut run = command
        .arg("--socket")
        .arg(node.dir.path().join("n.sock"))
        .args(["run", "--name", "web", "--", "sh", "-c", "echo up; exec sleep 60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    assert!(node.podwire(&["detach", "web"]).status.success());
    let out = run.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(128 + 15));
    assert!(String::from_utf8_lossy(&out.stderr).contains("was detached"));
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let node = Node::start("on");
    // In the background, in a session of its own, deaf to signals, and with children of its own.
    let script = "sleep 300 & echo $!; setsid sh -c 'trap \"\" TERM HUP; sleep 301 & echo $!; echo $$; wait' & \
                  sleep 0.5; exit 3";
    let begun = Instant::now();
    let out = node.podwire(&["run", "--name", "web", "--", "sh", "-c", script]);
    let took = begun.elapsed();
    assert_eq!(
        out.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    // Awaiting the output is awaiting the last of them: each holds the pipe.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let said = String::from_utf8(out.stdout).unwrap();
    let pids: Vec<u32> = said.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "{said}");
    for pid in pids {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "{pid} is still there"
        );
    }
    let other = node.detached("other");
    let out = node.podwire(&["run", "--name", "web", "--", "true"]);
    assert!(out.status.success() && alive(other), "only its own");
}

#[test]
fn orphans_of_a_command_are_buried_while_it_runs() {
    let node = Node::start("on");
    let script = "for n in 1 2 3 4 5; do (true &); done; sleep 0.2; echo up; exec sleep 60";
    let mut run = Command::new(PODWIRE)
        .arg("--socket")
        .arg(node.dir.path().join("n.sock"))
        .args(["run", "--name", "web", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let parent = format!(" {} ", run.id());
    let children = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = all.filter_map(|p| std::fs::read_to_string(p.path().join("stat")).ok());
        let own = |stat: &String| {
            let rest = stat.rsplit(')').next().unwrap_or_default();
            rest.get(2..).is_some_and(|r| r.starts_with(&parent))
        };
        stats.filter(own).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while children().len() != 2 && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let left = children();
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(left.len(), 2, "the pause and the command: {left:#?}");
}

#[test]
fn a_process_that_was_only_named_lives_on() {
    let node = Node::start("on");
    let mut spec = Spec::new("mine");
    spec.program = PODWIRE.into();
    // Even a pause of podwire's own making, as long as it was not made for this pod.
    let mine = spec.spawn().unwrap();
    let attach = |name: &str| {
        let pid = mine.pid().to_string();
        let out = node.podwire(&["attach", "--pid", &pid, "--name", name, "--ifname", name]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    attach("one");
    assert!(node.podwire(&["detach", "one"]).status.success());
    attach("two");
    let links = mine.command("ls", ["/sys/class/net"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(links.contains("two") && !links.contains("one"), "{links}");
    drop(node);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!mine.ended());
}

/// Pods of the test's own on `node`, each with its process.
fn crowd(node: &Node, pods: usize) -> Vec<(AttachRequest, Sandbox)> {
    let make = |n: usize| {
        let request = AttachRequest {
            pod: format!("crowd/p{n}").parse().unwrap(),
            ip4: None,
            ip6: None,
            mac: None,
            mtu: None,
            ifname: "eth0".into(),
            netns: None,
            holder: None,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            bandwidth: None,
        };
        let mut spec = Spec::new("crowd");
        spec.program = PODWIRE.into();
        let sandbox = spec.spawn().unwrap();
        sandbox.attach(&node.socket(), request.clone()).unwrap();
        (request, sandbox)
    };
    (0..pods).map(make).collect()
}

fn links(pod: &Sandbox) -> String {
    let out = pod.command("ls", ["/sys/class/net"]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The kernel awaits a grace period for each TAP that goes: they must go at the same time.
#[test]
fn a_hundred_pods_end_with_their_node_within_a_second() {
    let mut node = Node::start("on");
    let pods = crowd(&node, 100);
    let begun = Instant::now();
    let killed = Command::new("kill").arg(node.process.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert!(node.process.wait().unwrap().success());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    for (_, pod) in pods.iter().step_by(33) {
        assert_eq!(links(pod), "lo\n");
    }
}

#[test]
fn a_hundred_pods_detached_at_once_keep_nobody_waiting() {
    let node = Node::start("on");
    let pods = crowd(&node, 100);
    let socket = node.socket();
    let ask = |request: &Request| Client::connect(&socket).unwrap().call(request).unwrap();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    std::thread::scope(|s| {
        let detach = |request: &AttachRequest| {
            let pod = request.pod.clone();
            s.spawn(|| ask(&Request::Detach { pod }))
        };
        let detached: Vec<_> = pods.iter().map(|(request, _)| detach(request)).collect();
        while !detached.iter().all(|d| d.is_finished()) {
            let begun = Instant::now();
            ask(&Request::Status);
            slowest = slowest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        for reply in detached {
            assert!(matches!(reply.join().unwrap(), Reply::Detached { existed: true }));
        }
    });
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(slowest < Duration::from_millis(500), "a status took {slowest:?}");
}

/// Who was told that a pod is detached may use its name and that of its interface again at once.
#[test]
fn a_detached_pod_may_come_back_at_once() {
    let node = Node::start("on");
    let pods = crowd(&node, 1);
    let (request, pod) = &pods[0];
    for _ in 0..10 {
        assert!(node.podwire(&["detach", "crowd/p0"]).status.success());
        assert_eq!(links(pod), "lo\n");
        pod.attach(&node.socket(), request.clone()).unwrap();
        // One that does not stay to hear the answer.
        let mut hasty = UnixStream::connect(node.socket()).unwrap();
        let hello = format!("{{\"request\":\"hello\",\"protocol\":{PROTOCOL}}}");
        let lines = format!("{hello}\n{{\"request\":\"detach\",\"pod\":\"crowd/p0\"}}\n");
        hasty.write_all(lines.as_bytes()).unwrap();
        BufReader::new(&hasty).read_line(&mut String::new()).unwrap();
        let gone = || !String::from_utf8_lossy(&node.podwire(&["pods"]).stdout).contains("crowd/p0");
        while !gone() {}
        drop(hasty);
        pod.attach(&node.socket(), request.clone()).unwrap();
    }
}

/// What a pod's root does to its interface ends the pod, not the node's patience.
#[test]
fn a_pod_that_deletes_its_interface_is_detached() {
    for tap in ["on", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let bind = ["--bind", "127.0.0.1", "--offload-tap", tap];
        let node = Node::logging(&[&["--subnet", "10.244.9.0/24"], &bind[..]].concat(), log);
        let pods = crowd(&node, 2);
        let ip = |args: &[&str]| assert!(pods[0].1.command("ip", args).status().unwrap().success());
        let there = || {
            let mut client = Client::connect(&node.socket()).unwrap();
            match client.call(&Request::Pods).unwrap() {
                Reply::Pods { pods } => pods.into_iter().map(|p| p.pod.to_string()).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        // Down is not gone.
        ip(&["link", "set", "eth0", "down"]);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(there(), ["crowd/p0", "crowd/p1"]);
        ip(&["link", "delete", "eth0"]);
        let begun = Instant::now();
        while there() != ["crowd/p1"] {
            assert!(begun.elapsed() < Duration::from_secs(2), "it is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
        // All of it: the name may be used again, in the same place.
        pods[0].1.attach(&node.socket(), pods[0].0.clone()).unwrap();
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let of_it: Vec<&str> = log.lines().filter(|l| l.contains("crowd/p0")).collect();
        assert_eq!(of_it.len(), 3, "{log}");
        assert!(
            of_it[1].contains("pod crowd/p0 is gone: its interface eth0 was deleted; 10.244.9.2 is free"),
            "{log}"
        );
    }
}

/// The fields of a process's limit of open files.
fn open_files(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))
        .unwrap();
    line.split_whitespace().take(2).map(Into::into).collect()
}

#[test]
fn a_node_takes_all_open_files_it_may_have() {
    let node = Node::limited("-S -n 64");
    let limit = open_files(node.process.id());
    assert_eq!(limit[0], limit[1]);
    assert_ne!(limit[1], "64", "the test cannot see it here");
}

/// Who finds no descriptor left is told so, and the next one is served as soon as one is free.
#[test]
fn clients_are_answered_when_open_files_run_out() {
    let node = Node::limited("-n 64");
    let call = || Client::connect(&node.socket());
    let held = || {
        std::fs::read_dir(format!("/proc/{}/fd", node.process.id()))
            .unwrap()
            .count()
    };
    // The node is complete once it answers.
    drop(call().unwrap());
    let idle = held();
    for round in 0..3 {
        let mut clients = Vec::new();
        let refused = loop {
            match call() {
                Ok(client) => clients.push(client),
                Err(e) => break e.to_string(),
            }
            assert!(clients.len() < 64, "64 clients with 64 descriptors");
        };
        assert!(
            refused.contains("64 files") && refused.contains("ulimit -n"),
            "round {round}: {refused}"
        );
        let more: Vec<String> = (0..20).filter_map(|_| Some(call().err()?.to_string())).collect();
        assert_eq!(more, vec![refused; 20]);
        for client in &mut clients {
            assert!(matches!(client.call(&Request::Pods), Ok(Reply::Pods { .. })));
        }
        clients.pop();
        // The node sees the end of a conversation in its own time.
        let begun = Instant::now();
        while call().is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(2),
                "nobody is served any more"
            );
        }
        drop(clients);
        while held() > idle {
            assert!(begun.elapsed() < Duration::from_secs(2), "{} are held", held());
        }
    }
}

/// What the doctor says of open files is true, and one pod too many is refused with a reason.
#[test]
fn the_doctor_counts_pods_right() {
    let limit = "152";
    let script = format!("ulimit -n {limit}; exec \"$@\"");
    let out = Command::new("sh")
        .args(["-c", &script, "sh", PODWIRE, "doctor", "--json"])
        .output()
        .unwrap();
    let checks: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut checks = checks.as_array().unwrap().iter();
    let files = checks.find(|c| c["name"] == "open files").unwrap();
    let found = files["found"].as_str().unwrap();
    let enough = found.split_once("enough for ").unwrap().1;
    let pods: usize = enough.split(' ').next().unwrap().parse().unwrap();
    assert!(pods > 4, "{found}");
    let node = Node::limited(&format!("-n {limit}"));
    for n in 0..pods {
        node.detached(&format!("p{n}"));
    }
    let refused = (0..100).find_map(|n| {
        let out = node.podwire(&["run", "--detach", "--name", &format!("more{n}")]);
        (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).into_owned())
    });
    let refused = refused.expect("at some point it is enough");
    assert!(
        refused.contains("152 files") && refused.contains("ulimit -n"),
        "{refused}"
    );
}

#[test]
fn a_namespace_with_a_default_route_is_not_given_another() {
    let node = Node::start("on");
    let mut spec = Spec::new("mine");
    spec.program = PODWIRE.into();
    let mine = spec.spawn().unwrap();
    let pid = mine.pid().to_string();
    let attach = |name: &str| {
        let out = node.podwire(&["attach", "--pid", &pid, "--name", name, "--ifname", name]);
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let routes = || {
        let mut look = mine.command("sh", ["-c", "ip route; ip -6 route; ls /sys/class/net"]);
        String::from_utf8_lossy(&look.output().unwrap().stdout).into_owned()
    };
    for (own, family, gateway) in [
        (
            "ip link set lo up; ip route add default dev lo",
            "-4",
            "10.244.9.1",
        ),
        (
            "ip route del default; ip -6 route add default dev lo metric 1024",
            "-6",
            "fd00:9::1",
        ),
    ] {
        assert!(mine.command("sh", ["-c", own]).status().unwrap().success());
        let before = routes();
        let (code, said) = attach("one");
        assert_eq!(
            (code, said),
            (
                Some(5),
                format!(
                    "podwire: one cannot be the way to {gateway}: the pod's network namespace has a default route \
                     already (`ip {family} route del default` in it, or detach the pod that brought it)\n"
                )
            )
        );
        assert_eq!(routes(), before, "what was there is as it was");
    }
    assert!(
        mine.command("ip", ["-6", "route", "del", "default"])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(attach("one"), (Some(0), String::new()));
    let before = routes();
    let (code, said) = attach("two");
    assert!(
        code == Some(5) && said.contains("has a default route already"),
        "{said}"
    );
    assert_eq!(routes(), before);
    let pods = node.podwire(&["pods", "--json"]);
    let pods = String::from_utf8_lossy(&pods.stdout).into_owned();
    assert!(
        pods.contains("default/one") && !pods.contains("default/two"),
        "{pods}"
    );
}

#[test]
fn an_idle_node_sleeps_and_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peers = dir.path().join("peers.toml");
    let text = format!(
        "[[peer]]\nname = \"p\"\nunderlay = \"{}\"\nsubnet = \"10.244.8.0/24\"\n",
        peer.local_addr().unwrap()
    );
    std::fs::write(&peers, text).unwrap();
    let peers = peers.to_str().unwrap();
    let node = Node::with(&[
        "--subnet",
        "10.244.9.0/24",
        "--bind",
        "127.0.0.1",
        "--peers",
        peers,
    ]);
    node.detached("quiet");
    // The pod's kernel has some multicast to send at first.
    std::thread::sleep(Duration::from_secs(2));
    let pid = node.process.id();
    let before = wake_ups(pid);
    std::thread::sleep(Duration::from_secs(3));
    let after = wake_ups(pid);
    let woken: u64 = after.iter().map(|(_, n)| n).sum::<u64>() - before.iter().map(|(_, n)| n).sum::<u64>();
    assert!(woken <= 1, "{woken} wake-ups in 3 s: {before:?}, then {after:?}");
    let resident = figure(&format!("/proc/{pid}/status"), "VmRSS:");
    let most = if cfg!(debug_assertions) { 40_000 } else { 15_000 };
    assert!(resident < most, "{resident} kB are resident");
}

/// How often each thread of a process gave up its processor, that is, has gone to sleep.
fn wake_ups(pid: u32) -> Vec<(String, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let sleeps = |thread: std::fs::DirEntry| {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let status = thread.path().join("status");
        let slept = figure(status.to_str().unwrap(), "voluntary_ctxt_switches:");
        (name.trim_end().to_string(), slept)
    };
    threads.map(sleeps).collect()
}

/// The number behind `key` in a file of /proc.
fn figure(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn alive(pid: u32) -> bool {
    // A zombie has ended; whoever inherited it may be slow to bury it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|s| !['Z', 'X'].contains(&s))
}

fn ends(pid: u32) -> bool {
    let begun = Instant::now();
    while alive(pid) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    !alive(pid)
}

/// The kernel finishes an IPv6 address behind the scenes; until then the pod drops what is sent to it.
#[test]
fn a_pod_takes_ipv6_packets_as_soon_as_it_is_attached() {
    let node = Node::start("on");
    for n in 0x100..0x120 {
        let ip = format!("fd00:9::{n:x}");
        // Destination, length 128, ..., flags with RTF_LOCAL, interface.
        let local = format!("^fd00000900000000000000000000{n:04x} 80 .* 8[0-9a-f]* *eth0$");
        let out = node.podwire(&[
            "run",
            "--name",
            &format!("p{n}"),
            "--ip6",
            &ip,
            "--",
            "grep",
            "-q",
            &local,
            "/proc/net/ipv6_route",
        ]);
        assert!(
            out.status.success(),
            "{ip}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
