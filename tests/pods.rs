//! A real node, a real TAP in a real pod: `podwire run` gives the command an interface as planned, hands its
//! exit code back, and leaves nothing. Needs /dev/net/tun and user namespaces; `tests/run` opens the former.

use std::path::Path;
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
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n.sock");
        let process = Command::new(PODWIRE)
            .args([
                "node",
                "--name",
                "t",
                "--subnet",
                "10.244.9.0/24",
                "--subnet6",
                "fd00:9::/64",
            ])
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                "auto",
                "--offload-tap",
                tap,
                "--socket",
            ])
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the node did not come up"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Node { process, dir }
    }

    fn podwire(&self, args: &[&str]) -> Output {
        let socket = self.dir.path().join("n.sock");
        Command::new(PODWIRE)
            .arg("--socket")
            .arg(Path::new(&socket))
            .args(args)
            .output()
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
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
    let pods: serde_json::Value = serde_json::from_slice(&node.podwire(&["pods", "--json"]).stdout).unwrap();
    let text = pods.to_string();
    let holder = text
        .split("\"holder\":")
        .nth(1)
        .and_then(|t| t.split([',', '}']).next())
        .unwrap();
    assert!(node.podwire(&["detach", "first"]).status.success());
    // A detached pod's namespaces outlive its port; they end with their holder.
    assert!(Command::new("kill").arg(holder).status().unwrap().success());
}
