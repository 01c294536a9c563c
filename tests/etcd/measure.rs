//! What thousands of leases cost a node, beside ten: from its start until it is ready, and from a change until it is
//! seen. Measured on request, as a debug build or a busy machine tells nothing, with a build that takes less time than
//! the one that is shipped:
//!
//! ```text
//! CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo test --release --target-dir target/fast \
//!     --test etcd -- --ignored --nocapture measure
//! ```

use super::Case;
use super::child::{self, Body, tool};
use super::many::CONFIG;
use super::node::Node;
use super::server::{Etcd, free_port};
use super::shell::{PREFIX, Shell, at};
use super::size::fill;
use podwire::api::{Client, Reply, Request, Status};
use podwire::control::cluster::Ask;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[("measure_thousands_of_leases", measure)];
/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[("measure", in_child)];

/// How often each is measured.
const STARTS: usize = 10;
const CHANGES: u8 = 30;

fn measure() {
    child::run("measure", &["--map-root-user", "--net"]);
}

fn in_child(dir: &Path) {
    tool("ip", &["link", "set", "lo", "up"]);
    tool("ip", &["route", "add", "local", "198.18.0.0/15", "dev", "lo"]);
    for leases in [10, 5000] {
        let mut etcd = Etcd::start(&[]);
        etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
        fill(&etcd, leases);
        let (state, port) = (dir.join(format!("state-{leases}")), free_port().to_string());
        let start = || {
            let more = ["--healthz-port", &port];
            let begun = Instant::now();
            let node = Node::start_with(&etcd.url, dir, &state, &more);
            until(|| is_ready(&port));
            let ready = begun.elapsed();
            let all = until(|| status(&mut client(&node)).peers.len() == leases);
            (node, ready, ready + all)
        };
        // Each as the first: neither disk nor store know it.
        let (mut ready, mut all) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let (mut node, one, other) = start();
            ready.push(one);
            all.push(other);
            let own = status(&mut client(&node)).subnets[0]
                .to_string()
                .replace('/', "-");
            node.signal(Signal::TERM);
            node.ends();
            std::fs::remove_dir_all(&state).unwrap();
            std::fs::remove_file(dir.join("subnet.env")).unwrap();
            etcd.ctl(&["del", &format!("{PREFIX}/subnets/{own}")]);
        }
        tell(leases, "start until /readyz says 200", ready);
        tell(leases, "start until a status has all peers", all);

        let (mut node, ..) = start();
        let mut client = client(&node);
        let asked = (0..CHANGES).map(|_| until(|| !status(&mut client).node.is_empty()));
        tell(leases, "a status, by itself", asked.collect());
        let mut shell = Shell::new(&at(&[&etcd.url]));
        let (mut written, mut seen) = (Vec::new(), Vec::new());
        for n in 0..CHANGES {
            let begun = Instant::now();
            let ask = Ask::Create {
                key: format!("10.127.{n}.0-24").parse().unwrap(),
                value: value(n).into(),
                ttl_s: 600,
            };
            shell.ask(ask).expect("it is free");
            written.push(begun.elapsed());
            let there = leases + usize::from(n) + 1;
            until(|| status(&mut client).peers.len() == there);
            seen.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        tell(leases, "a new lease until etcd has written it", written);
        tell(leases, "a new lease until a status has the peer", seen);
        // What it learned is on disk after a second.
        std::thread::sleep(Duration::from_secs(3));
        println!("{leases:5} leases  {} KiB of memory of its own", node.memory());
        etcd.kill();
        let mut again = Vec::new();
        for _ in 0..STARTS {
            node.signal(Signal::KILL);
            node.ends();
            let begun = Instant::now();
            node.run();
            let there = leases + usize::from(CHANGES);
            until(|| asked_again(&node).is_some_and(|s| s.peers.len() == there));
            again.push(begun.elapsed());
        }
        tell(leases, "start without etcd until a status has all", again);
    }
}

/// What flannel writes for a node.
fn value(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"198.19.{n}.1","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:01:00:{n:02x}"}}}}"#
    )
}

/// Wait until it is so, looking each millisecond at least; how long that took.
fn until(mut so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

fn is_ready(port: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        std::io::Result::Ok(said)
    };
    ask().is_ok_and(|said| said.starts_with("HTTP/1.1 200"))
}

fn client(node: &Node) -> Client {
    Client::connect(node.socket().as_path()).expect("it is up")
}

fn status(client: &mut Client) -> Status {
    match client.call(&Request::Status) {
        Ok(Reply::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

/// The status of a node that may not be up yet.
fn asked_again(node: &Node) -> Option<Status> {
    let mut client = Client::connect(node.socket().as_path()).ok()?;
    match client.call(&Request::Status) {
        Ok(Reply::Status(status)) => Some(*status),
        _ => None,
    }
}

fn tell(leases: usize, what: &str, mut all: Vec<Duration>) {
    all.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let (least, middle, most) = (all[0], all[all.len() / 2], all[all.len() - 1]);
    println!(
        "{leases:5} leases  {what:42} {:7.1} {:7.1} {:7.1} ms (least, median, most of {})",
        ms(least),
        ms(middle),
        ms(most),
        all.len()
    );
}
