//! `podwire doctor` on hosts that lack something. The lacks are made inside a sandbox of podwire's own, whose
//! root may forbid user namespaces and hide devices there.

use podwire::pod::sandbox::{Sandbox, Spec};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

/// Exit code and checks, each of which was looked at: a remedy where there is something to remedy.
fn examine(out: &Output) -> (i32, Vec<Value>) {
    let said = String::from_utf8_lossy(&out.stdout);
    let wrong = String::from_utf8_lossy(&out.stderr);
    let checks: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}{wrong}"));
    for check in &checks {
        assert!(check["found"].as_str().is_some_and(|f| !f.is_empty()), "{check}");
        let fine = check["verdict"] == "ok";
        assert!(
            fine || ["warn", "fail"].iter().any(|v| check["verdict"] == *v),
            "{check}"
        );
        assert_eq!(fine, check["remedy"].is_null(), "{check}");
    }
    let code = out.status.code().unwrap();
    let failed = checks.iter().any(|c| c["verdict"] == "fail");
    assert_eq!(code, i32::from(failed), "{said}");
    (code, checks)
}

fn check<'c>(checks: &'c [Value], name: &str) -> &'c Value {
    let found = checks.iter().find(|c| c["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not among {checks:#?}"))
}

fn sandbox() -> Sandbox {
    let mut spec = Spec::new("patient");
    spec.program = PODWIRE.into();
    spec.spawn().unwrap()
}

/// Run the doctor after `lack` was made.
fn with(lack: &str) -> (i32, Vec<Value>) {
    let script = format!("{lack} && exec \"$0\" doctor --json");
    let sandbox = sandbox();
    let mut command = sandbox.command("sh", ["-c", &script, PODWIRE]);
    examine(&command.output().unwrap())
}

#[test]
fn everything_podwire_needs_is_looked_at() {
    let (_, checks) = examine(&Command::new(PODWIRE).args(["doctor", "--json"]).output().unwrap());
    let names: BTreeSet<&str> = checks.iter().filter_map(|c| c["name"].as_str()).collect();
    let expected = [
        "/dev/net/tun",
        "DNS",
        "MTU",
        "UDP GRO",
        "UDP GSO",
        "VXLAN port",
        "loopback",
        "namespaces",
        "open files",
        "ping",
        "receive buffer",
        "send buffer",
    ];
    assert_eq!(names, expected.into());
}

#[test]
fn a_pods_host_may_hold_pods() {
    // A user namespace within a user namespace: a container, a CI job.
    let (_, checks) = with("true");
    assert_eq!(check(&checks, "namespaces")["verdict"], "ok");
    let lonely = check(&checks, "MTU");
    assert!(
        lonely["found"]
            .as_str()
            .unwrap()
            .contains("no interface but loopback")
    );
    // It has nobody's interfaces up yet.
    assert_eq!(check(&checks, "loopback")["verdict"], "warn");
    let remedy = check(&checks, "loopback")["remedy"].as_str().unwrap();
    assert!(remedy.contains("ip link set lo up"), "{remedy}");
    let (_, checks) = with("ip link set lo up");
    assert_eq!(check(&checks, "loopback")["verdict"], "ok");
}

#[test]
fn a_host_that_forbids_pings_is_told() {
    // As a network namespace begins.
    let (code, checks) = with("true");
    let ping = check(&checks, "ping");
    assert_eq!(ping["verdict"], "warn");
    assert!(ping["remedy"].as_str().unwrap().contains("ping_group_range"));
    assert!(
        code == 0 || checks.iter().any(|c| c["verdict"] == "fail"),
        "a warning is no failure"
    );
    let (_, checks) = with("echo 0 0 > /proc/sys/net/ipv4/ping_group_range");
    assert_eq!(check(&checks, "ping")["verdict"], "ok");
}

/// Whom the node will ask for names: nobody, somebody who is not there, and one who answers beside one who does not.
#[test]
fn resolvers_that_do_not_answer_are_told() {
    let with_conf = |conf: &str, more: &str| {
        let lack = format!(
            "printf '{conf}' >/mnt/c && mount --bind /mnt/c /etc/resolv.conf && ip link set lo up{more}"
        );
        with(&format!("mount -t tmpfs none /mnt && {lack}")).1
    };
    for (conf, found, remedy) in [
        ("search example\n", "names no resolver", "--dns-upstream"),
        ("nameserver 127.0.0.1\n", "answers (127.0.0.1)", "dig @127.0.0.1"),
        (
            "nameserver 192.0.2.53\n",
            "answers (192.0.2.53)",
            "dig @192.0.2.53",
        ),
    ] {
        let checks = with_conf(conf, "");
        let dns = check(&checks, "DNS");
        assert_eq!(dns["verdict"], "warn", "{dns}");
        assert!(dns["found"].as_str().unwrap().contains(found), "{dns}");
        assert!(dns["remedy"].as_str().unwrap().contains(remedy), "{dns}");
    }
    const SERVER: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"127.0.0.1\", 53))
open(\"/mnt/up\", \"w\")
b, a = s.recvfrom(512)
s.sendto(b[:2] + bytes([129]) + b[3:], a)
";
    let server = format!(" && (printf '{SERVER}' | python3 - & while [ ! -e /mnt/up ]; do sleep 0.05; done)");
    let checks = with_conf("nameserver 192.0.2.53\nnameserver 127.0.0.1\n", &server);
    let dns = check(&checks, "DNS");
    assert_eq!(dns["found"], "answered by 127.0.0.1, not by 192.0.2.53");
    let (_, checks) = with("mount -t tmpfs none /run && mount -t tmpfs none /etc");
    let dns = check(&checks, "DNS");
    assert!(dns["found"].as_str().unwrap().contains("cannot be read"), "{dns}");
    assert!(
        dns["remedy"].as_str().unwrap().contains("nameserver ADDRESS"),
        "{dns}"
    );
}

#[test]
fn user_namespaces_that_are_forbidden_are_told() {
    let (code, checks) = with("echo 0 > /proc/sys/user/max_user_namespaces");
    assert_eq!(code, 1);
    let namespaces = check(&checks, "namespaces");
    assert_eq!(namespaces["verdict"], "fail");
    let remedy = namespaces["remedy"].as_str().unwrap();
    assert!(remedy.contains("user.max_user_namespaces="), "{remedy}");
}

#[test]
fn a_device_that_is_missing_or_none_is_told() {
    let (code, checks) = with("mount -t tmpfs none /dev/net");
    assert_eq!(code, 1);
    let remedy = check(&checks, "/dev/net/tun")["remedy"].as_str().unwrap();
    assert!(remedy.contains("modprobe tun") && remedy.contains("--device /dev/net/tun"));
    assert_eq!(check(&checks, "namespaces")["verdict"], "fail");
    let (code, checks) = with("mount --bind /dev/null /dev/net/tun");
    assert_eq!(code, 1);
    let namespaces = check(&checks, "namespaces");
    assert!(namespaces["found"].as_str().unwrap().contains("no TAP in them"));
}

/// Doctor and node, asked for the same buffer of the same kernel, find the same. Half of what was asked is what a
/// kernel that counts double would hide.
#[test]
fn doctor_and_status_agree_about_buffers() {
    let Some(most) = std::fs::read_to_string("/proc/sys/net/core/rmem_max")
        .ok()
        .and_then(|n| n.trim().parse::<usize>().ok())
        .filter(|n| (65_536..1 << 29).contains(n))
    else {
        eprintln!("this kernel grants any buffer, so nothing is tested here");
        return;
    };
    for asked in [most, 2 * most] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n.sock");
        let bytes = asked.to_string();
        let mut node = Command::new(PODWIRE)
            .args([
                "node",
                "--name",
                "n",
                "--subnet",
                "10.244.9.0/24",
                "--port",
                "auto",
            ])
            .args(["--bind", "127.0.0.1", "--receive-buffer", &bytes, "--socket"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let up = BufReader::new(node.stdout.as_mut().unwrap()).read_line(&mut line);
        let ask = |args: &[&str]| {
            let mut command = Command::new(PODWIRE);
            command
                .arg("--socket")
                .arg(&socket)
                .args(args)
                .arg("--json")
                .output()
                .unwrap()
        };
        let status = ask(&["status"]);
        let (_, checks) = examine(&ask(&["doctor", "--buffer", &bytes]));
        node.kill().unwrap();
        node.wait().unwrap();
        up.unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["offloads"]["receive_buffer"], most);
        let problems = status["problems"].to_string();
        let check = check(&checks, "receive buffer");
        let fine = asked == most;
        assert_eq!(check["verdict"] == "ok", fine, "{check}");
        assert_eq!(!problems.contains("a receive buffer of"), fine, "{problems}");
        if !fine {
            let short = format!("{most} of {asked} bytes are granted");
            assert_eq!(check["found"], short);
            let short = format!("granted a receive buffer of {most} bytes of the {asked} asked");
            assert!(problems.contains(&short), "{problems}");
        }
    }
}

#[test]
fn a_port_in_use_fails_with_its_holder() {
    let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let doctor = |port: &str| {
        let mut command = Command::new(PODWIRE);
        let command = command.args([
            "--socket",
            "/nonexistent.sock",
            "doctor",
            "--json",
            "--port",
            port,
        ]);
        examine(&command.output().unwrap())
    };
    let (code, checks) = doctor(&port);
    assert_eq!(code, 1);
    let check_port = check(&checks, "VXLAN port");
    assert!(
        check_port["found"]
            .as_str()
            .unwrap()
            .contains(&format!("(pid {})", std::process::id()))
    );
    assert!(check_port["remedy"].as_str().unwrap().contains("--port"));
    drop(taken);
    let (_, checks) = doctor(&port);
    assert_eq!(check(&checks, "VXLAN port")["verdict"], "ok");
}
