//! A node with thousands of peers (row 54 of the fault table): it starts in time, takes little memory, and does not
//! flood them. Its peers are leases in etcd, and one socket for each on loopback, in a network namespace of a child.

use super::Case;
use super::child::{self, Body, tool};
use super::node::{Node, SOON};
use super::server::Etcd;
use super::shell::PREFIX;
use super::size::fill;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[("a_node_with_five_thousand_peers", many)];
/// Their children.
pub const CHILDREN: &[(&str, Body)] = &[("many", in_child)];

const PEERS: usize = 5000;
/// The network that `fill` writes leases of.
pub const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
/// Memory of the node's own that it may have with them, in KiB: 3 for each, what it needs alone, and what it tells.
const MEMORY: u64 = 24 << 10;
/// Peers that are probed each time somebody asks how it stands, at most.
const PROBED: usize = 64;

fn many() {
    child::run("many", &["--map-root-user", "--net"]);
}

/// What stands where the peers should be: their sockets.
struct Crowd(Vec<UdpSocket>);

impl Crowd {
    fn new() -> Crowd {
        tool("ip", &["route", "add", "local", "198.18.0.0/15", "dev", "lo"]);
        let all = (0..PEERS).map(|n| {
            let ip = Ipv4Addr::new(198, 18, (n >> 8) as u8, (n & 255) as u8);
            let socket = UdpSocket::bind((ip, 8472)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Crowd(all.collect())
    }

    /// How many datagrams came for each since this was asked last.
    fn heard(&self) -> Vec<usize> {
        let count = |s: &UdpSocket| {
            std::iter::repeat_with(|| s.recv(&mut [0; 64]))
                .take_while(Result::is_ok)
                .count()
        };
        self.0.iter().map(count).collect()
    }
}

fn in_child(dir: &Path) {
    tool("ip", &["link", "set", "lo", "up"]);
    // The child's limit is that of an ordinary user.
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(PEERS as u64 + 200),
            maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
        },
    );
    let crowd = Crowd::new();
    let mut etcd = Etcd::start(&[]);
    etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    fill(&etcd, PEERS);
    let begun = Instant::now();
    let mut node = Node::start(&etcd.url, dir, &dir.join("state"));
    node.until("all are peers", SOON, |s| s.peers.len() == PEERS);
    println!("{PEERS} peers {:?} after the node was started", begun.elapsed());
    let kib = node.memory();
    println!("it has {kib} KiB of memory of its own");
    assert!(kib < MEMORY, "{kib} KiB");

    // Nobody asks, and no pod talks: no peer hears anything.
    std::thread::sleep(Duration::from_millis(1200));
    crowd.heard();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(
        crowd.heard().iter().sum::<usize>(),
        0,
        "probes that nobody asked for"
    );
    // When somebody asks how it stands, some are probed, and the others in their turn.
    for _ in 0..5 {
        assert!(node.status().is_some(), "{}", node.log());
    }
    std::thread::sleep(Duration::from_millis(500));
    let heard = crowd.heard();
    assert_eq!(heard.iter().sum::<usize>(), 5 * PROBED);
    assert!(heard.iter().all(|n| *n <= 1), "each in its turn");

    // One that is gone, and one that comes, among so many.
    let key = |n: usize| format!("{PREFIX}/subnets/10.{}.{}.0-24", 64 + (n >> 8), n & 255);
    let begun = Instant::now();
    etcd.ctl(&["del", &key(7)]);
    node.until("one is gone", SOON, |s| s.peers.len() == PEERS - 1);
    println!(
        "a change is in status {:?} after etcdctl was started",
        begun.elapsed()
    );

    // It starts as fast while the store is down, and knows them all. What it learned is on disk after a second.
    std::thread::sleep(Duration::from_millis(1500));
    etcd.kill();
    node.signal(rustix::process::Signal::KILL);
    node.ends();
    let begun = Instant::now();
    node.run();
    node.until("all are peers", SOON, |s| s.peers.len() == PEERS - 1);
    println!(
        "{PEERS} peers from the disk {:?} after the start",
        begun.elapsed()
    );
}
