//! The containers of one pod share its namespace, which a pause holds. One that ends and is started again is none of the
//! network's business.

use super::Case;
use super::node::PODWIRE;
use super::rig::{Rig, addresses};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// The tests.
pub const CASES: &[Case] = &[
    ("containers_of_a_pod_come_and_go", shared),
    ("a_pod_in_another_sandbox_takes_its_place", another_sandbox),
];

fn shared(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let (pod, far) = (rig.container(), rig.container());
    let before = rig.add(&pod, &conf);
    let to = addresses(&rig.add(&far, &conf))[0].clone();
    // A connection of one container goes on while another one ends, and is started again.
    let listener = far.netns().within(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let mut near = pod
        .netns()
        .within(|| TcpStream::connect((to.as_str(), 80)))
        .unwrap();
    let (mut other, _) = listener.accept().unwrap();
    let echo = |near: &mut TcpStream, other: &mut TcpStream| {
        near.write_all(b"x").unwrap();
        let mut got = [0];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
    };
    echo(&mut near, &mut other);
    for _ in 0..3 {
        let mut container = Command::new("sleep");
        container.arg("60").stdin(Stdio::null());
        let mut container = pod.netns().within(|| container.spawn()).expect("sleep");
        container.kill().unwrap();
        container.wait().unwrap();
        echo(&mut near, &mut other);
        // Over localhost they reach each other.
        let server = pod.netns().within(|| TcpListener::bind("127.0.0.1:81")).unwrap();
        assert!(pod.netns().within(|| TcpStream::connect("127.0.0.1:81")).is_ok());
        drop(server);
    }
    let later = rig.conf("1.0.0", json!({"prevResult": before}));
    assert_eq!(
        rig.call("CHECK", Some(&pod), &later, &[]),
        Ok(serde_json::Value::Null)
    );
    rig.del(&pod, &conf);
    rig.del(&far, &conf);
}

/// A runtime that was killed while it started a pod may have forgotten what it made, and starts the pod again.
fn another_sandbox(rig: &mut Rig) {
    let port = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let conf = rig.conf("1.0.0", json!({"runtimeConfig": port}));
    let of = |uid: &str| format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;K8S_POD_UID={uid}");
    let (forgotten, later, other) = (rig.container(), rig.container(), rig.container());
    rig.add_with(&forgotten, &conf, &[("CNI_ARGS", &of("6f1c-1"))]);
    let result = rig.add_with(&later, &conf, &[("CNI_ARGS", &of("6f1c-1"))]);
    assert!(!forgotten.has("eth0") && later.has("eth0"));
    assert!(later.pings(addresses(&result)[0].as_str()));
    assert_eq!(rig.pods().len(), 1);
    // What the runtime remembers after all takes nothing away.
    rig.del(&forgotten, &conf);
    assert!(later.has("eth0"));
    // Nor does the plugin of a runtime that is dead, and that nobody hears any more.
    let go = rig.dir().join("go");
    let mut late = Command::new("sh");
    let wait = r#"while [ ! -e "$1" ]; do sleep 0.01; done; exec "$0""#;
    late.args(["-c", wait, PODWIRE]).arg(&go);
    let env = of("6f1c-1");
    let mut late = rig.begin_as(late, "ADD", Some(&other), &conf, &[("CNI_ARGS", &env)]);
    drop(late.stdout.take());
    std::fs::write(&go, "").unwrap();
    assert!(!late.wait().unwrap().success());
    assert!(later.has("eth0") && !other.has("eth0"));
    // Another pod of that name waits until this one is gone.
    let refused = rig.call("ADD", Some(&other), &conf, &[("CNI_ARGS", &of("6f1c-2"))]);
    assert_eq!(refused.unwrap_err()["code"], 11);
    rig.del(&later, &conf);
    rig.add_with(&other, &conf, &[("CNI_ARGS", &of("6f1c-2"))]);
    rig.del(&other, &conf);
}
