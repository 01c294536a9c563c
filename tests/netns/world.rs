//! A world: an underlay, a node on each host but the last, pods on each node; made for one test, and checked
//! and taken down behind it.

use super::node::{self, Node};
use super::pod::Pod;
use super::store::Store;
use super::underlay::{Host, Underlay};
use libtest_mimic::{Failed, Trial};
use podwire::model::{Mac, OffloadMode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// A test: what it needs, and what it does.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    nodes: usize,
    pods: usize,
    node_args: &'static [&'static str],
    underlay6: bool,
    bind_any: bool,
    ignored: bool,
    cluster: bool,
    links: OffloadMode,
    body: fn(&mut World),
}

impl Case {
    /// A test of two nodes with a pod each.
    pub const fn new(name: &'static str, body: fn(&mut World)) -> Case {
        Case {
            name,
            nodes: 2,
            pods: 1,
            node_args: &[],
            underlay6: false,
            bind_any: false,
            ignored: false,
            cluster: false,
            links: OffloadMode::Off,
            body,
        }
    }

    /// With so many nodes.
    pub const fn nodes(self, nodes: usize) -> Case {
        Case { nodes, ..self }
    }

    /// With so many pods on each node.
    pub const fn pods(self, pods: usize) -> Case {
        Case { pods, ..self }
    }

    /// With these arguments to each `podwire node`.
    pub const fn node_args(self, node_args: &'static [&'static str]) -> Case {
        Case { node_args, ..self }
    }

    /// With the tunnel over IPv6.
    pub const fn underlay6(self) -> Case {
        Case {
            underlay6: true,
            ..self
        }
    }

    /// With nodes that are bound to no address.
    pub const fn bind_any(self) -> Case {
        Case {
            bind_any: true,
            ..self
        }
    }

    /// With nodes that lease their subnets, the same as ever, in an etcd on the stranger's host.
    pub const fn cluster(self) -> Case {
        Case {
            cluster: true,
            ..self
        }
    }

    /// Only on request.
    pub const fn ignored(self) -> Case {
        Case {
            ignored: true,
            ..self
        }
    }

    /// With trains of datagrams that cross the relay whole, as over a veth; single packets are the default.
    pub const fn whole_trains(self) -> Case {
        Case {
            links: OffloadMode::On,
            ..self
        }
    }

    /// The test in one offload mode.
    pub fn trial(self, mode: OffloadMode) -> Trial {
        let prefix = match mode {
            OffloadMode::On => "offload_on",
            OffloadMode::Off => "offload_off",
        };
        let name = format!("{prefix}::{}", self.name);
        Trial::test(name, move || self.run(mode)).with_ignored_flag(self.ignored)
    }

    fn run(self, mode: OffloadMode) -> Result<(), Failed> {
        let mut world = World::new(&self, mode);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            (self.body)(&mut world);
            world.check();
            world.end();
        }));
        outcome.map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said
                .or(panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic");
            Failed::from(format!("{said}\n{}", world.evidence()))
        })
    }
}

/// Everything a test plays with.
pub struct World {
    /// The hosts and the relay; the last host is a stranger without a node.
    pub underlay: Underlay,
    /// The nodes, n1 first.
    pub nodes: Vec<Node>,
    /// The pods of each node: `pods[0][1]` is the second of n1.
    pub pods: Vec<Vec<Pod>>,
    /// How the pods' TAPs are.
    pub mode: OffloadMode,
    /// Whether the tunnel is over IPv6.
    pub underlay6: bool,
    store: Option<Store>,
    dir: tempfile::TempDir,
}

impl World {
    fn new(case: &Case, mode: OffloadMode) -> World {
        let dir = tempfile::Builder::new().tempdir_in(super::isolate::dir());
        let dir = dir.expect("a directory");
        let underlay = Underlay::new(case.nodes + 1, 0x706f_6477, case.links);
        let hosts = &underlay.hosts[..case.nodes];
        let address = |host: &Host| address(host, case.underlay6);
        let peers: String = (1..)
            .zip(hosts)
            .map(|(n, host)| node::peer(n, address(host)))
            .collect();
        let stranger = underlay.hosts.last().expect("a stranger");
        let store = case
            .cluster
            .then(|| Store::start(&stranger.netns, stranger.ip4, dir.path()));
        let nodes: Vec<Node> = (1..)
            .zip(hosts)
            .map(|(n, host)| {
                std::fs::write(dir.path().join(format!("n{n}.toml")), &peers).expect("a peers file");
                let bind = match (case.bind_any, case.underlay6) {
                    (true, false) => Ipv4Addr::UNSPECIFIED.into(),
                    (true, true) => Ipv6Addr::UNSPECIFIED.into(),
                    (false, _) => address(host),
                };
                let mut more: Vec<String> = case.node_args.iter().map(ToString::to_string).collect();
                if let Some(store) = &store {
                    let env = dir.path().join(format!("n{n}.flannel/subnet.env"));
                    let args = [
                        "--store",
                        "etcd",
                        "--etcd-endpoints",
                        &store.url,
                        "--healthz-port",
                        "9473",
                    ];
                    more.extend(args.map(String::from));
                    more.extend(["--subnet-file".into(), env.to_string_lossy().into_owned()]);
                    if case.bind_any {
                        host.netns.ip("route replace default dev eth0");
                    }
                }
                Node::start(n, (&host.netns, bind), dir.path(), mode, &more)
            })
            .collect();
        for node in nodes.iter().filter(|_| case.cluster) {
            eventually("all nodes are known", Duration::from_secs(5), || {
                node.status().peers.len() == case.nodes - 1
            });
        }
        let letters = ["a", "b", "c", "d"];
        let pods = nodes.iter().map(|node| {
            let names = letters[..case.pods].iter().map(|l| format!("{l}{}", node.number));
            names.map(|name| Pod::attach(node, &name)).collect()
        });
        World {
            pods: pods.collect(),
            underlay,
            nodes,
            mode,
            underlay6: case.underlay6,
            store,
            dir,
        }
    }

    /// The only pods of n1 and n2, or the first ones.
    pub fn pair(&self) -> (&Pod, &Pod) {
        (&self.pods[0][0], &self.pods[1][0])
    }

    /// All pods.
    pub fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().flatten()
    }

    /// The store of a cluster.
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("a cluster")
    }

    /// The same, to be killed.
    pub fn store_mut(&mut self) -> &mut Store {
        self.store.as_mut().expect("a cluster")
    }

    /// Start the store again.
    pub fn restart_store(&mut self) {
        let stranger = self.underlay.hosts.last().expect("a stranger");
        self.store.as_mut().expect("a cluster").restart(&stranger.netns);
    }

    /// Run etcdctl, which must succeed, for what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let stranger = self.underlay.hosts.last().expect("a stranger");
        self.store().ask(&stranger.netns, args)
    }

    /// Where files may be put.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The MAC of a node's gateway.
    pub fn gateway_mac(&self, node: usize) -> Mac {
        Mac::of_ipv4(Ipv4Addr::new(10, 244, node as u8, 1))
    }

    /// The MAC of a node in the tunnel, derived from its subnet.
    pub fn vtep_mac(&self, node: usize) -> Mac {
        Mac::of_vtep(Ipv4Addr::new(10, 244, node as u8, 0))
    }

    /// The peers file that names all nodes but `without`.
    pub fn peers_but(&self, without: usize) -> String {
        let all = (1..).zip(&self.underlay.hosts[..self.nodes.len()]);
        let others = all.filter(|(n, _)| *n != without);
        others
            .map(|(n, host)| node::peer(n, address(host, self.underlay6)))
            .collect()
    }

    /// Require what must hold of each node that runs.
    pub fn check(&mut self) {
        for node in &mut self.nodes {
            node.check();
        }
    }

    /// Take everything down in order: each node ends within a second by SIGTERM.
    fn end(&mut self) {
        for node in &mut self.nodes {
            node.stop();
        }
        self.pods.clear();
    }

    fn evidence(&mut self) -> String {
        let nodes: Vec<String> = self.nodes.iter_mut().map(Node::evidence).collect();
        let pods = self
            .all_pods()
            .map(|pod| format!("--- {}: {}", pod.name, pod.netns.troubles()));
        let hosts = self.underlay.hosts.iter();
        let hosts = hosts.map(|h| format!("--- {}: {}", h.ip4, h.netns.troubles()));
        let stacks: Vec<String> = pods.chain(hosts).collect();
        let relay = self.underlay.relay.counters();
        format!(
            "{}\n{}\n--- relay: {relay:?}",
            nodes.join("\n"),
            stacks.join("\n")
        )
    }
}

fn address(host: &Host, six: bool) -> IpAddr {
    if six { host.ip6.into() } else { host.ip4.into() }
}

/// Wait until `holds`, for as long as `patience`.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
