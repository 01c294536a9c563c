//! Services and pods that nodes share by their store: all compute the same, also after they were apart, and what a store
//! has lost goes on.

use super::Case;
use super::child::{self, Body, tool};
use super::node::{Node, SOON};
use super::proxy::{Proxy, Way};
use super::server::Etcd;
use super::shell::PREFIX;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[("nodes_agree_on_services_after_partition_and_heal", agree)];
/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[("services", in_child)];

const CONFIG: &str = r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn agree() {
    child::run("services", &["--map-root-user", "--net"]);
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
    etcd.kill();
    etcd.wipe();
    etcd.run();
    etcd.await_health();
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    for node in [&n1, &n2] {
        soon("it is told", node, || {
            node.ask(&["service", "ls"])
                .contains("! etcd does not have 1 manifests any more")
        });
        assert_eq!(behind(node, "web"), ["default/a"]);
    }
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
