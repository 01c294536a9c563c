//! The containers of one pod share its namespace, which a pause holds. One that ends and is started again is none of the
//! network's business.

use super::Case;
use super::rig::{Rig, addresses};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// The tests.
pub const CASES: &[Case] = &[("containers_of_a_pod_come_and_go", shared)];

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
