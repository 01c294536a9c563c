//! What runtimes wish beside an address.

use super::Case;
use super::rig::{Rig, addresses};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    ("ports_lead_to_the_container", ports),
    ("names_labels_and_resolvers", names),
    ("a_second_network_leaves_the_way_out_alone", second),
];

/// Whether somebody at this address of the host says hello.
fn greets(rig: &Rig, at: &str) -> bool {
    rig.host.within(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&at.parse().unwrap(), Duration::from_secs(2)) else {
            return false;
        };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut said = String::new();
        stream.read_to_string(&mut said).is_ok() && said == "hello"
    })
}

fn ports(rig: &mut Rig) {
    let (a, b) = (rig.container(), rig.container());
    let conf = rig.conf(
        "1.0.0",
        json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
            {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
        ]}}),
    );
    rig.add(&a, &conf);
    let listener = a.netns().within(|| TcpListener::bind("[::]:80")).expect("a port");
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(4) {
            let _ = stream.expect("a client").write_all(b"hello");
        }
    });
    for at in ["127.0.0.1:8080", "192.0.2.1:8080", "[::1]:8080", "127.0.0.1:8081"] {
        assert!(greets(rig, at), "{at}");
    }
    assert!(!greets(rig, "192.0.2.1:8081"));
    server.join().unwrap();
    // Who has it is said, and everything else undone.
    let e = rig.call("ADD", Some(&b), &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 100, "{e}");
    let said = e["msg"].as_str().unwrap();
    assert!(said.contains("8080") && said.contains(&a.id[..12]), "{e}");
    assert!(!b.has("eth0"));
    assert_eq!(rig.ipam().held, 1);
    rig.del(&a, &conf);
    rig.add(&b, &conf);
    rig.del(&b, &conf);
    assert!(!greets(rig, "127.0.0.1:8080"));
}

/// The addresses of a name, as a container resolves it.
fn resolve(of: &super::rig::Container, name: &str) -> Vec<String> {
    use std::net::UdpSocket;
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let answer = of.netns().within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time");
        socket.send_to(&question, "10.244.1.1:53").expect("a way");
        let mut answer = vec![0; 1500];
        let n = socket.recv(&mut answer).expect("an answer");
        answer.truncate(n);
        answer
    });
    // Each record begins with a pointer to the question, or its name, and ends with four bytes here.
    let count = usize::from(answer[7]);
    let records = &answer[question.len()..];
    let each = records.chunks(16).take(count);
    let mut ips: Vec<String> = each
        .map(|r| r[12..16].iter().map(u8::to_string).collect::<Vec<_>>().join("."))
        .collect();
    ips.sort();
    ips
}

fn names(rig: &mut Rig) {
    let (a, b) = (rig.container(), rig.container());
    let labels = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
    let plain = rig.conf("1.0.0", json!({"args": labels}));
    let conf = |aliases: Value| {
        let mut conf = plain.clone();
        conf["runtimeConfig"] = json!({"aliases": aliases});
        conf
    };
    let first = rig.add_with(
        &a,
        &conf(json!(["web", "cache"])),
        &[("CNI_ARGS", "K8S_POD_NAME=one")],
    );
    let second = rig.add_with(
        &b,
        &conf(json!({"pods": ["web"]})),
        &[("CNI_ARGS", "K8S_POD_NAME=two")],
    );
    let (one, two) = (addresses(&first)[0].clone(), addresses(&second)[0].clone());
    assert_eq!(resolve(&a, "one.default.pod"), std::slice::from_ref(&one));
    assert_eq!(resolve(&a, "cache.default.pod"), std::slice::from_ref(&one));
    let mut both = [one.clone(), two.clone()];
    both.sort();
    assert_eq!(resolve(&b, "web.default.pod"), both);
    let pod = &rig.pods()[0];
    assert_eq!(pod.labels["app"], "web");
    assert_eq!(pod.aliases, ["web", "cache"]);
    // A node that is killed comes back with all of it.
    rig.node.end(rustix::process::Signal::KILL);
    rig.node.restart(&rig.host);
    assert_eq!(resolve(&b, "cache.default.pod"), [one]);
    rig.del(&a, &conf(json!([])));
    assert_eq!(resolve(&b, "web.default.pod"), [two]);
    assert!(resolve(&b, "cache.default.pod").is_empty());
    rig.del(&b, &conf(json!([])));
    // What is said wins over what the node says.
    let dns = json!({"servers": ["192.0.2.53"], "searches": ["x.y"], "options": ["ndots:1"]});
    let more = json!({"runtimeConfig": {"dns": dns}, "dns": {"nameservers": ["192.0.2.54"]}});
    let result = rig.add(&a, &rig.conf("1.0.0", more));
    let said = json!({"nameservers": ["192.0.2.53"], "search": ["x.y"], "options": ["ndots:1"]});
    assert_eq!(result["dns"], said);
    rig.del(&a, &conf(json!([])));
}

fn second(rig: &mut Rig) {
    let a = rig.container();
    a.netns().ip("link add net0 type veth peer name net9\naddr add 192.0.2.9/24 dev net0\nlink set net0 up\nroute add default via 192.0.2.1");
    let conf = rig.conf("1.1.0", json!({}));
    let result = rig.add(&a, &conf);
    let routes = a.netns().ask("ip", &["-4", "route"]);
    assert!(routes.contains("default via 192.0.2.1 dev net0"), "{routes}");
    assert!(!routes.contains("default via 10.244.1.1"), "{routes}");
    // IPv6 had none.
    assert_eq!(
        result["routes"],
        json!([{"dst": "::/0", "gw": "fd00:10:244:1::1"}])
    );
    let later = rig.conf("1.1.0", json!({"prevResult": result}));
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
    rig.del(&a, &conf);
}
