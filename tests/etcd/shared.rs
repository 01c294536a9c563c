//! Services and pods that nodes share by their store: all compute the same, also after they were apart, and what a store
//! has lost goes on.

use super::Case;
use super::child::{self, Body, tool};
use super::node::{Node, SOON};
use super::proxy::{Proxy, Way};
use super::server::Etcd;
use super::shell::PREFIX;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    ("nodes_agree_on_services_after_partition_and_heal", agree),
    ("what_a_store_has_that_nobody_can_use_is_named", odd),
    ("addresses_that_no_service_has_do_not_lead_out", closed),
    ("a_node_has_its_services_without_its_store", storeless),
    ("who_deletes_is_told_of_copies_in_files", copies),
];
/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[
    ("services", in_child),
    ("services-odd", odd_keys),
    ("services-closed", closed_range),
    ("services-storeless", without_store),
    ("services-copies", with_copies),
];

const CONFIG: &str = r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn agree() {
    child::run("services", &["--map-root-user", "--net"]);
}

fn odd() {
    child::run("services-odd", &["--map-root-user", "--net"]);
}

fn closed() {
    child::run("services-closed", &["--map-root-user", "--net"]);
}

fn storeless() {
    child::run("services-storeless", &["--map-root-user", "--net"]);
}

fn copies() {
    child::run("services-copies", &["--map-root-user", "--net"]);
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n"
    )
}

fn apply(node: &Node, dir: &Path, name: &str) -> String {
    let path = dir.join(format!("{name}.yaml"));
    fs::write(&path, service(name)).unwrap();
    node.ask(&["service", "apply", "-f", path.to_str().unwrap()])
}

/// Everything a node says of its Services, but for what is its own: which backends are local.
fn said(node: &Node) -> Vec<Value> {
    let Some(list) = node.json::<Value>(&["service", "ls", "--json"]) else {
        return Vec::new();
    };
    let names = list["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap());
    let describe = |name: &str| {
        let mut one = node.json::<Value>(&["service", "describe", name, "--json"])?;
        for endpoint in one["endpoints"].as_array_mut()? {
            endpoint.as_object_mut()?.remove("local");
        }
        Some(one)
    };
    names.filter_map(describe).collect()
}

/// The pods behind a Service.
fn behind(node: &Node, name: &str) -> Vec<String> {
    let all = said(node);
    let one = all
        .iter()
        .find(|s| s["name"] == format!("default/{name}").as_str());
    let endpoints = one.and_then(|s| s["endpoints"].as_array());
    let names = endpoints
        .into_iter()
        .flatten()
        .map(|e| e["what"].as_str().unwrap().to_string());
    // They are in the order of their addresses, which are by chance.
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[track_caller]
fn soon(what: &str, node: &Node, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < 2 * SOON,
            "{what}: {:?}\n{}",
            said(node),
            node.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn in_child(dir: &Path) {
    tool("ip", &["link", "set", "lo", "up"]);
    let mut etcd = Etcd::start(&[]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let proxy = Proxy::to(&etcd.url);
    let place = |n: u8| {
        let place = dir.join(n.to_string());
        fs::create_dir(&place).unwrap();
        place
    };
    let (one, two) = (place(1), place(2));
    let n1 = Node::nth(1, &etcd.url, &one, &one.join("state"), &[]);
    let n2 = Node::nth(2, &proxy.url, &two, &two.join("state"), &[]);
    for node in [&n1, &n2] {
        node.until("it is up", SOON, |s| s.peers.len() == 1);
    }
    n1.ask(&["run", "--name", "a", "--label", "app=web", "--detach"]);
    n2.ask(&["run", "--name", "b", "--label", "app=web", "--detach"]);
    assert_eq!(apply(&n1, dir, "web"), "Service default/web is created\n");
    let both = ["default/a", "default/b"];
    for node in [&n1, &n2] {
        soon("both pods are behind it", node, || behind(node, "web") == both);
    }
    assert_eq!(said(&n1), said(&n2));
    soon("the other's pod has its name", &n1, || {
        n1.ask(&["dns", "ls"]).contains("b.default.pod")
    });

    // Apart: what is known stays, and nothing can be applied.
    proxy.set(Way::Cut);
    apply(&n1, dir, "api");
    n2.ask(&["label", "b", "app=other"]);
    soon("it is known here", &n1, || behind(&n1, "api") == both);
    let before = said(&n2);
    assert_eq!(before.len(), 1, "{before:?}");
    assert_eq!(behind(&n2, "web"), ["default/a"]);
    let path = dir.join("api.yaml");
    let refused = n2.podwire(&["service", "apply", "-f", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(4) && text.contains("etcd: "),
        "{refused:?}"
    );
    soon("it says so", &n2, || {
        n2.ask(&["service", "ls"])
            .contains("! Services in etcd are not followed")
    });

    // Together again.
    proxy.set(Way::Open);
    for node in [&n1, &n2] {
        soon("they agree", node, || {
            behind(node, "web") == ["default/a"] && behind(node, "api") == ["default/a"]
        });
    }
    assert_eq!(said(&n1), said(&n2));
    soon("nothing is wrong", &n2, || {
        !n2.ask(&["service", "ls"]).contains('!')
    });

    // What is wrong there is named, and costs nobody else.
    etcd.ctl(&[
        "put",
        &format!("{PREFIX}/podwire/services/default/odd"),
        "kind: Nonsense",
    ]);
    soon("it is named", &n2, || {
        n2.ask(&["service", "ls"])
            .contains("etcd:services/default/odd:1 (document 1): kind: \"Nonsense\" is not supported")
    });
    etcd.ctl(&["del", &format!("{PREFIX}/podwire/services/default/odd")]);
    n2.ask(&["service", "delete", "api"]);
    for node in [&n1, &n2] {
        soon("it is gone", node, || {
            said(node).len() == 1 && !node.ask(&["service", "ls"]).contains('!')
        });
    }

    // A store that has lost everything proves nothing.
    apply(&n1, dir, "old");
    for node in [&n1, &n2] {
        soon("there are two", node, || said(node).len() == 2);
    }
    etcd.kill();
    etcd.wipe();
    etcd.run();
    etcd.await_health();
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    for node in [&n1, &n2] {
        soon("it is told", node, || {
            node.ask(&["service", "ls"])
                .contains("! etcd does not have 2 manifests any more")
        });
        assert_eq!(behind(node, "web"), ["default/a"]);
    }
    // What somebody deletes then is gone everywhere, though the store had nothing to delete.
    n2.ask(&["service", "delete", "old"]);
    for node in [&n1, &n2] {
        soon("it is deleted", node, || {
            said(node).len() == 1
                && node
                    .ask(&["service", "ls"])
                    .contains("! etcd does not have 1 manifests any more")
        });
    }
    assert_eq!(etcd.ctl(&["get", &key("services/default/old")]), "");
    apply(&n2, dir, "web");
    for node in [&n1, &n2] {
        soon("it is whole again", node, || {
            !node.ask(&["service", "ls"]).contains('!')
        });
    }
    let key = format!("{PREFIX}/podwire/pods/n1/default/a");
    soon("its pods are told again", &n1, || {
        etcd.ctl(&["get", &key]).contains("app")
    });
    // A node that ends takes its pods along, at once.
    drop(n1);
    soon("its pods are gone", &n2, || behind(&n2, "web").is_empty());
}

/// Connect from a pod; what that ends with.
fn connect(node: &Node, pod: &str, to: &str) -> String {
    let script = format!(
        "import socket,errno\ns=socket.socket(); s.settimeout(5)\ntry:\n  s.connect(('{to}',80)); print('connected')\nexcept OSError as e:\n  print(errno.errorcode.get(e.errno, 'timeout'))"
    );
    node.ask(&["exec", pod, "--", "python3", "-c", &script])
        .trim()
        .into()
}

const BOTH: [&str; 2] = ["default/a", "default/b"];
/// The pod of another node, as that would tell of it.
const OTHER: &str = r#"{"labels":{"app":"web"},"ip4":"10.61.250.9","ip6":null}"#;

fn key(of: &str) -> String {
    format!("{PREFIX}/podwire/{of}")
}

/// A store, and a node with a Service that has one pod here and one elsewhere; the latter's key has no lease.
fn one_node(dir: &Path, more: &[&str]) -> (Etcd, Node) {
    tool("ip", &["link", "set", "lo", "up"]);
    let etcd = Etcd::start(&[]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let node = Node::nth(1, &etcd.url, dir, &dir.join("state"), more);
    node.until("it is up", SOON, |_| true);
    node.ask(&["run", "--name", "a", "--label", "app=web", "--detach"]);
    apply(&node, dir, "web");
    etcd.ctl(&["put", &key("pods/n2/default/b"), OTHER]);
    soon("both are behind it", &node, || behind(&node, "web") == BOTH);
    (etcd, node)
}

fn odd_keys(dir: &Path) {
    let (etcd, node) = one_node(dir, &[]);
    etcd.ctl(&["put", &key("pods/n2/default/b"), "{"]);
    etcd.ctl(&["put", &key("services/Default/web"), "{}"]);
    for told in [
        "! etcd:pods/n2/default/b is no pod",
        "! etcd: the key services/Default/web is no Service",
    ] {
        soon(told, &node, || node.ask(&["service", "ls"]).contains(told));
    }
    assert_eq!(behind(&node, "web"), BOTH, "nothing is removed without proof");
    etcd.ctl(&["put", &key("pods/n2/default/b"), OTHER]);
    etcd.ctl(&["del", &key("services/Default/web")]);
    soon("nothing is wrong", &node, || {
        !node.ask(&["service", "ls"]).contains('!')
    });
}

fn closed_range(dir: &Path) {
    let (_etcd, node) = one_node(dir, &[]);
    assert_eq!(connect(&node, "a", "10.96.200.200"), "ECONNREFUSED");
    let dropped = || {
        let status = node.status()?;
        status.drops.get("no_service").copied()
    };
    soon("it is counted", &node, || dropped().is_some_and(|n| n > 0));
}

fn without_store(dir: &Path) {
    let (mut etcd, mut node) = one_node(dir, &[]);
    // What is kept is a second or two old at most.
    std::thread::sleep(Duration::from_millis(2500));
    let before = said(&node);
    node.signal(Signal::KILL);
    node.ends();
    etcd.kill();
    node.run();
    soon("it knows them still", &node, || behind(&node, "web") == BOTH);
    assert_eq!(said(&node)[0]["addresses"], before[0]["addresses"]);
    soon("it says so", &node, || {
        node.ask(&["service", "ls"])
            .contains("! Services in etcd are not followed")
    });
    let kept = dir.join("state/shared");
    let mode = fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // What is deleted goes when the store is back, and no sooner.
    etcd.run();
    etcd.await_health();
    etcd.ctl(&["del", &key("pods/n2/default/b")]);
    soon("the pod is gone", &node, || behind(&node, "web") == ["default/a"]);

    // A file that is damaged is named, and proves nothing.
    node.signal(Signal::KILL);
    node.ends();
    let mut bytes = fs::read(&kept).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&kept, bytes).unwrap();
    node.run();
    soon("all is there from the store", &node, || {
        behind(&node, "web") == ["default/a"]
    });
    assert!(node.log().contains("shared.refused"), "{}", node.log());
    assert!(dir.join("state/shared.refused").exists());
}

fn with_copies(dir: &Path) {
    let files = dir.join("files");
    fs::create_dir(&files).unwrap();
    let (_etcd, node) = one_node(dir, &["--services", files.to_str().unwrap()]);
    fs::write(files.join("web.yaml"), service("web")).unwrap();
    soon("it is named", &node, || {
        node.ask(&["service", "ls"]).contains("the first counts")
    });
    let told = node.ask(&["service", "delete", "web"]);
    assert!(
        told.contains("Service default/web stands in")
            && told.contains("web.yaml: that stays, and is in force now"),
        "{told}"
    );
    soon("the copy is in force", &node, || behind(&node, "web") == BOTH);
}
