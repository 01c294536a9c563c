//! Services of a real node: manifests by folder and by command, pods by label and state, and the names that follow.

use super::node::{Node, free_port, podwire};
use std::fs;
use std::time::{Duration, Instant};

const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

const DB: &str = "apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: pg, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
";

fn node(more: &[&str]) -> Node {
    Node::start(&[&["--dns-upstream", &free_port().to_string()], more].concat())
}

/// The data of the answers, in order.
fn dig(node: &Node, asked: &str) -> Vec<String> {
    let (_, lines) = node.answer(asked);
    let data = |l: &String| l.split(' ').skip(4).collect::<Vec<_>>().join(" ");
    lines.iter().map(data).collect()
}

fn json(node: &Node, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&node.ok(args)).unwrap()
}

/// Wait for something that follows by itself.
fn soon(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn services_have_names_and_pods_behind_them() {
    let node = node(&[]);
    fs::write(node.dir.path().join("web.yaml"), WEB).unwrap();
    fs::write(node.dir.path().join("db.yaml"), DB).unwrap();
    let said = node.ok(&["service", "apply", "-f", "web.yaml", "-f", "db.yaml"]);
    assert_eq!(
        said,
        "Service default/web is created\nService shop/db is created\nService shop/out is created\n"
    );
    assert!(
        node.ok(&["service", "apply", "-f", "web.yaml"])
            .contains("is unchanged")
    );
    node.ok(&[
        "run",
        "--name",
        "w1",
        "--label",
        "app=web",
        "--container-port",
        "http:8080",
        "--detach",
    ]);
    node.ok(&["run", "--name", "w2", "--detach"]);
    for n in 0..2 {
        node.ok(&[
            "run",
            "--name",
            &format!("shop/db-{n}"),
            "-l",
            "app=db",
            "--detach",
        ]);
    }
    assert_eq!(dig(&node, "web.default.svc.cluster.local A"), ["10.96.0.10"]);
    assert_eq!(
        dig(&node, "_http._tcp.web.default.svc.cluster.local SRV"),
        ["0 100 80 web.default.svc.cluster.local."]
    );
    assert_eq!(dig(&node, "-x 10.96.0.10"), ["web.default.svc.cluster.local."]);
    assert_eq!(
        dig(&node, "db.shop.svc.cluster.local A"),
        ["10.244.1.4", "10.244.1.5"]
    );
    assert_eq!(dig(&node, "db-0.db.shop.svc.cluster.local A"), ["10.244.1.4"]);
    assert_eq!(dig(&node, "-x 10.244.1.4"), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(
        dig(&node, "out.shop.svc.cluster.local A").last().unwrap(),
        "10.96.0.10"
    );
    assert_eq!(node.answer("nobody.default.svc.cluster.local A").0, "NXDOMAIN");

    // By label, and by state.
    let behind = || json(&node, &["service", "describe", "web", "--json"])["endpoints"].clone();
    let states = || -> Vec<(String, String)> {
        let all = behind();
        let one = |e: &serde_json::Value| {
            (
                e["what"].as_str().unwrap().into(),
                e["state"].as_str().unwrap().into(),
            )
        };
        all.as_array().unwrap().iter().map(one).collect()
    };
    let is = |all: &[(&str, &str)]| {
        all.iter()
            .map(|(a, b)| ((*a).into(), (*b).into()))
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), is(&[("default/w1", "ready")]));
    assert_eq!(
        node.ok(&["label", "w2", "app=web", "tier=x"]),
        "default/w2 has app=web,tier=x\n"
    );
    assert_eq!(states(), is(&[("default/w1", "ready"), ("default/w2", "ready")]));
    let shown = node.ok(&["service", "ls"]);
    assert!(
        shown.starts_with("! Service default/web: default/w2 have no TCP port named http"),
        "{shown}"
    );
    assert!(node.ok(&["status"]).contains("have no TCP port named http"));
    assert_eq!(node.ok(&["ready", "w1", "--not"]), "default/w1 is not ready\n");
    assert_eq!(
        states(),
        is(&[("default/w1", "not ready"), ("default/w2", "ready")])
    );
    assert!(
        node.ok(&["drain", "w1", "--grace", "1h"])
            .contains("is draining (1h)")
    );
    node.ok(&["ready", "w1"]);
    assert_eq!(node.ok(&["label", "w2", "app-"]), "default/w2 has tier=x\n");
    assert_eq!(states(), is(&[("default/w1", "ready")]));
    node.ok(&["ready", "shop/db-0", "--not"]);
    assert_eq!(dig(&node, "db.shop.svc.cluster.local A"), ["10.244.1.5"]);
    let pods = node.ok(&["pods"]);
    assert!(pods.contains("not ready") && pods.contains("app=db"), "{pods}");

    // A pod that drains goes by itself.
    node.ok(&["drain", "w1", "--grace", "300ms", "--wait"]);
    assert_eq!(states(), is(&[]));
    for (args, code, told) in [
        (&["label", "nope", "a=b"][..], 6, "there is no pod default/nope"),
        (&["label", "w2", "a b"], 2, "is no label"),
        (
            &["run", "--name", "x", "--label", "app-", "--detach"],
            2,
            "has no value",
        ),
        (&["drain", "w2", "--grace", "1d"], 2, "is no span of time"),
        (
            &["service", "describe", "nope"],
            6,
            "there is no Service default/nope",
        ),
        (&["service", "delete", "nope"], 6, "there is no Service"),
        (&["service", "apply", "-f", "nope.yaml"], 2, "nope.yaml"),
    ] {
        let (exit, text) = node.run(args);
        assert!(exit == code && text.contains(told), "{args:?}: {exit} {text}");
    }
    let bad = WEB.replace("80,", "0,") + "---\nkind: Ingress\n";
    fs::write(node.dir.path().join("bad.yaml"), bad).unwrap();
    let (code, text) = node.run(&["service", "apply", "-f", "bad.yaml"]);
    assert_eq!(code, 2);
    assert!(
        text.contains("bad.yaml:7 (document 1, Service default/web): spec.ports[0].port: "),
        "{text}"
    );
    assert!(
        text.contains("bad.yaml:9 (document 2): kind: \"Ingress\" is not supported"),
        "{text}"
    );
    assert_eq!(
        dig(&node, "web.default.svc.cluster.local A"),
        ["10.96.0.10"],
        "nothing of it is taken"
    );
}

#[test]
fn what_was_applied_and_what_pods_are_outlives_the_node() {
    let first = node(&[]);
    fs::write(first.dir.path().join("db.yaml"), DB).unwrap();
    first.ok(&["service", "apply", "-f", "db.yaml"]);
    let holder = [
        "run",
        "--name",
        "shop/db-0",
        "--label",
        "app=db",
        "--container-port",
        "pg:5432",
        "--detach",
    ];
    first.ok(&holder);
    first.ok(&["run", "--name", "shop/db-1", "--label", "app=db", "--detach"]);
    first.ok(&["ready", "shop/db-1", "--not"]);
    let mut first = first;
    first.process.kill().unwrap();
    first.process.wait().unwrap();
    let dir = std::mem::replace(&mut first.dir, tempfile::tempdir().unwrap());
    drop(first);
    let node = Node::start_in(dir, &["--dns-upstream", &free_port().to_string()]);
    let pods = json(&node, &["pods", "--json"]);
    assert_eq!(pods[0]["labels"]["app"], "db");
    assert_eq!(pods[0]["ports"][0]["name"], "pg");
    assert_eq!(pods[1]["state"]["ready"], false);
    assert_eq!(dig(&node, "db.shop.svc.cluster.local A"), ["10.244.1.2"]);
    assert!(
        node.ok(&["service", "delete", "shop/db"])
            .contains("Service shop/db is deleted")
    );
    assert_eq!(node.answer("db.shop.svc.cluster.local A").0, "NXDOMAIN");
    assert_eq!(dig(&node, "-x 10.244.1.2"), ["db-0.shop.pod."]);
}

#[test]
fn a_folder_of_manifests_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("svc");
    let at = folder.to_str().unwrap().to_string();
    let output = podwire(dir.path())
        .args([
            "node",
            "--name",
            "n1",
            "--subnet",
            "10.244.1.0/24",
            "--services",
            &at,
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && text.contains("is no folder"),
        "{text}"
    );

    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("web.yaml"), WEB).unwrap();
    let node = node(&["--services", &at]);
    assert_eq!(dig(&node, "web.default.svc.cluster.local A"), ["10.96.0.10"]);
    let a = |ip: &'static str| dig(&node, "web.default.svc.cluster.local A") == [ip];
    fs::write(folder.join("web.yaml"), WEB.replace("0.10", "0.11")).unwrap();
    soon("a file that is written", || a("10.96.0.11"));
    fs::write(folder.join("web.yaml"), &WEB[..60]).unwrap();
    soon("a complaint", || node.ok(&["service", "ls"]).starts_with("! "));
    assert!(a("10.96.0.11"), "half of a file removes nothing");
    assert!(node.ok(&["status"]).contains("web.yaml"));
    fs::write(folder.join(".web"), WEB).unwrap();
    fs::rename(folder.join(".web"), folder.join("web.yaml")).unwrap();
    soon("a file that is replaced", || a("10.96.0.10"));
    // Of another one with the same address the first by name counts, and the loser is named.
    fs::write(folder.join("z.yaml"), WEB.replace("name: web", "name: aaa")).unwrap();
    soon("the other one", || {
        let shown = node.ok(&["service", "ls"]);
        shown.starts_with(
            "! Service default/web: it is not in force: 10.96.0.10 is the address of default/aaa",
        )
    });
    let (code, text) = node.run(&["service", "delete", "web"]);
    assert!(
        code == 5 && text.contains("web.yaml (delete it there)"),
        "{code} {text}"
    );
    fs::remove_file(folder.join("z.yaml")).unwrap();
    soon("a file that is deleted", || a("10.96.0.10"));
}

#[test]
fn a_command_that_is_told_to_end_drains_first() {
    let node = node(&[]);
    let command = [
        "run", "--name", "w", "--label", "app=web", "--grace", "1s", "--", "sleep", "60",
    ];
    let child = podwire(node.dir.path()).args(command).spawn().unwrap();
    let state = || json(&node, &["pods", "--json"])[0]["state"].clone();
    soon("the pod", || state()["ready"] == true);
    let pid = rustix::process::Pid::from_child(&child);
    let start = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    soon("it drains", || state()["draining"] == true);
    let mut child = child;
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(json(&node, &["pods", "--json"]).as_array().unwrap().len(), 0);
}

#[test]
fn a_health_check_port_serves_those_who_waited_for_a_descriptor() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let node = node(&[]);
    // Of the range for them, and nobody's.
    let port = (30_500..32_000)
        .find(|p| std::net::TcpListener::bind(("0.0.0.0", *p)).is_ok())
        .unwrap();
    let text = WEB.replace(
        "spec:\n",
        &format!("spec:\n  type: NodePort\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n"),
    );
    fs::write(node.dir.path().join("web.yaml"), text).unwrap();
    node.ok(&["service", "apply", "-f", "web.yaml"]);
    let ask = || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        client.write_all(b"HEAD / HTTP/1.0\r\n\r\n").unwrap();
        client
    };
    let mut text = String::new();
    ask().read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 503") && text.ends_with("\r\n\r\n"),
        "{text}"
    );
    // It has more descriptors than it may, so that there is none for a client.
    let pid = rustix::process::Pid::from_child(&node.process);
    let limit = |n| rustix::process::Rlimit {
        current: Some(n),
        maximum: Some(1024),
    };
    let set = |n| rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit(n)).unwrap();
    set(3);
    let mut client = ask();
    std::thread::sleep(Duration::from_millis(500));
    set(1024);
    node.ok(&["status"]);
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
}
