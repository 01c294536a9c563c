//! Many nodes' memberships, one store, a virtual clock, and a network between them that a seed makes slow, deaf or
//! forgetful. What must hold at every moment is checked at every moment.

use crate::store::Store;
use podwire::control::cluster::{
    Answer, Ask, Cluster, Event, Identity, Membership, Options, Output, Remembered, Request, StoreError,
    Watched,
};
use podwire::control::flannel::Abilities;
use podwire::model::{Change, Duration, Instant, NodeName, Peer};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;

/// The shell gives up after so long.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Chance (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What the network does, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Longest way of a message, in milliseconds.
    pub delay_ms: u64,
    pub request_lost: u64,
    /// The store does what is asked and its answer is lost.
    pub answer_lost: u64,
    /// The store does it when the shell has given up.
    pub late: u64,
    pub event_lost: u64,
    pub event_twice: u64,
    /// A watch breaks when it would tell something.
    pub watch_broken: u64,
}

pub const FAIR: Weather = Weather {
    delay_ms: 20,
    request_lost: 0,
    answer_lost: 0,
    late: 0,
    event_lost: 0,
    event_twice: 0,
    watch_broken: 0,
};

pub const FOUL: Weather = Weather {
    delay_ms: 300,
    request_lost: 10,
    answer_lost: 10,
    late: 5,
    event_lost: 2,
    event_twice: 10,
    watch_broken: 5,
};

pub struct Node {
    pub id: usize,
    pub cluster: Cluster,
    /// Counts the processes: what is meant for a former one goes nowhere.
    life: u64,
    pub up: bool,
    /// Not scheduled: nothing reaches it, and it does nothing.
    pub frozen: bool,
    pub cut_off: bool,
    pub disk: Option<Remembered>,
    pub acquired: Option<Membership>,
    pub peers: BTreeMap<NodeName, Peer>,
    pub ready: bool,
    pub stopped: bool,
    pub allocate: bool,
    /// Peers that went, all in all.
    pub gone: usize,
    pub asked: Vec<Ask>,
    open: BTreeMap<u64, Ask>,
    /// Watches that others came in the place of.
    replaced: BTreeSet<u64>,
    watch: Option<Watcher>,
    /// Messages to it keep their order.
    last_arrival: Instant,
    pub public_ip: Ipv4Addr,
}

struct Watcher {
    id: u64,
    next: i64,
}

enum Happening {
    /// The store gets a request; whether the answer comes back.
    Arrive {
        request: Request,
        answered: bool,
    },
    Tell(Event),
}

struct Scheduled {
    at: Instant,
    order: u64,
    node: usize,
    life: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub struct World {
    pub now: Instant,
    pub store: Store,
    pub nodes: Vec<Node>,
    pub weather: Weather,
    pub rng: Rng,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    told: i64,
    pub options: Options,
}

pub fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

pub fn identity(id: usize, public_ip: Ipv4Addr) -> Identity {
    Identity {
        abilities: Abilities {
            name: format!("n{id}"),
            id: format!("id-{id}"),
            version: "1.0.0".into(),
            wire: vec![],
        },
        public_ip,
        public_ip6: None,
        vtep_mac: None,
    }
}

impl World {
    /// No nodes yet; the network is 10.61.0.0/16.
    pub fn new(seed: u64, weather: Weather) -> World {
        println!("seed {seed}, {weather:?}");
        let mut store = Store::new();
        store.configure(r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#);
        World {
            now: Instant::from_secs(1_000),
            store,
            nodes: Vec::new(),
            weather,
            rng: Rng(seed),
            queue: BinaryHeap::new(),
            order: 0,
            told: 0,
            options: Options::default(),
        }
    }

    /// A node that starts now.
    pub fn add(&mut self) -> usize {
        let id = self.nodes.len();
        let public_ip = Ipv4Addr::from(0xc612_0000 + id as u32 + 1);
        let cluster = Cluster::new(
            identity(id, public_ip),
            None,
            self.options.clone(),
            self.rng.below(1 << 60),
        );
        self.nodes.push(Node {
            id,
            cluster,
            life: 0,
            up: true,
            frozen: false,
            cut_off: false,
            disk: None,
            acquired: None,
            peers: BTreeMap::new(),
            ready: false,
            stopped: false,
            allocate: true,
            gone: 0,
            asked: Vec::new(),
            open: BTreeMap::new(),
            replaced: BTreeSet::new(),
            watch: None,
            last_arrival: self.now,
            public_ip,
        });
        self.poll(id);
        id
    }

    /// The process of a node is killed.
    pub fn kill(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        node.up = false;
        node.life += 1;
        node.watch = None;
        node.open.clear();
    }

    /// Its next process starts, with what is on its disk.
    pub fn start(&mut self, id: usize) {
        let seed = self.rng.below(1 << 60);
        let node = &mut self.nodes[id];
        node.cluster = Cluster::new(
            identity(id, node.public_ip),
            node.disk.clone(),
            self.options.clone(),
            seed,
        );
        (node.up, node.ready, node.stopped, node.allocate) = (true, false, false, true);
        node.peers.clear();
        node.asked.clear();
        // What it runs with must be the same again, if it kept it.
        if node.disk.as_ref().is_none_or(|d| d.own.is_none()) {
            node.acquired = None;
        }
        self.poll(id);
    }

    pub fn tell(&mut self, id: usize, event: Event) {
        let mut out = Vec::new();
        self.nodes[id].cluster.on(event, self.now, &mut out);
        self.act(id, out);
    }

    fn poll(&mut self, id: usize) {
        let mut out = Vec::new();
        self.nodes[id].cluster.poll(self.now, &mut out);
        self.act(id, out);
        let next = self.nodes[id].cluster.deadline();
        assert!(
            next.is_none_or(|t| t > self.now),
            "node {id} is polled at {} and wants to be at {next:?}",
            self.now
        );
    }

    /// Let this much time go by.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let deadlines = self.nodes.iter().filter(|n| n.up && !n.frozen);
            let wake = deadlines
                .filter_map(|n| Some((n.cluster.deadline()?, n.id)))
                .min();
            let next = self.queue.peek().map(|s| s.at);
            let lease = self.store.next_end();
            let times = [wake.map(|(t, _)| t), next, lease];
            let Some(at) = times.into_iter().flatten().min().filter(|t| *t <= end) else {
                break;
            };
            self.now = self.now.max(at);
            if lease == Some(at) {
                self.store.expire(self.now);
                self.spread();
            } else if next == Some(at) {
                self.happen();
            } else if let Some((_, id)) = wake {
                self.poll(id);
            }
        }
        self.now = end;
    }

    /// A frozen node goes on: what waited for it comes first.
    pub fn unfreeze(&mut self, id: usize) {
        self.nodes[id].frozen = false;
    }

    fn happen(&mut self) {
        let Some(next) = self.queue.pop() else { return };
        let node = &mut self.nodes[next.node];
        match next.what {
            Happening::Arrive { request, answered } => self.arrive(next.node, next.life, request, answered),
            Happening::Tell(_) if !node.up || node.life != next.life => {}
            Happening::Tell(event) if node.frozen => {
                // The kernel keeps it.
                let at = self.now + secs(1);
                self.schedule(at, next.node, Happening::Tell(event));
            }
            Happening::Tell(event) => {
                if let Event::Done { id, .. } = &event {
                    let ask = node.open.remove(id);
                    assert!(
                        ask.is_some() || node.replaced.contains(id),
                        "an answer nobody waits for"
                    );
                }
                self.tell(next.node, event);
            }
        }
    }

    /// The store changed by a test's hand: watches tell of it.
    pub fn spread(&mut self) {
        if self.store.revision() < self.told {
            // Another store: watches of the one before end.
            for id in 0..self.nodes.len() {
                self.end_watch(id, StoreError::Unreachable("connection reset".into()));
            }
        }
        self.told = self.store.revision();
        for id in 0..self.nodes.len() {
            self.feed(id);
        }
    }

    /// Cut a node off from the store, or let it back.
    pub fn cut_off(&mut self, id: usize, cut: bool) {
        self.nodes[id].cut_off = cut;
        if cut {
            self.end_watch(id, StoreError::Unreachable("no route".into()));
        }
    }

    fn end_watch(&mut self, id: usize, why: StoreError) {
        if let Some(watch) = self.nodes[id].watch.take() {
            let at = self.arrival(id);
            self.schedule(at, id, Happening::Tell(Event::WatchEnded { id: watch.id, why }));
        }
    }

    fn feed(&mut self, id: usize) {
        let Some(watch) = &mut self.nodes[id].watch else {
            return;
        };
        let changes = match self.store.changes(watch.next) {
            Ok(changes) => changes,
            // A watch that runs has seen what is compacted.
            Err(_) => return,
        };
        if changes.is_empty() {
            return;
        }
        let watch_id = watch.id;
        watch.next = self.store.revision() + 1;
        if self.rng.below(100) < self.weather.watch_broken {
            self.end_watch(id, StoreError::Unreachable("connection reset".into()));
            return;
        }
        let lost = self.weather.event_lost;
        let kept: Vec<Watched> = changes
            .into_iter()
            .filter(|_| self.rng.below(100) >= lost)
            .collect();
        if kept.is_empty() {
            return;
        }
        let times = 1 + u64::from(self.rng.below(100) < self.weather.event_twice);
        for _ in 0..times {
            let at = self.arrival(id);
            let event = Event::Watched {
                id: watch_id,
                revision: self.store.revision(),
                changes: kept.clone(),
            };
            self.schedule(at, id, Happening::Tell(event));
        }
    }

    fn arrive(&mut self, id: usize, life: u64, request: Request, answered: bool) {
        if let Ask::Watch { from } = request.what {
            if self.nodes[id].life != life || !answered {
                return;
            }
            let answer = match self.store.changes(from) {
                Ok(_) => Ok(Answer::Watching),
                Err(e) => Err(e),
            };
            let begun = answer.is_ok();
            let at = self.arrival(id);
            self.schedule(
                at,
                id,
                Happening::Tell(Event::Done {
                    id: request.id,
                    answer,
                }),
            );
            if begun {
                self.nodes[id].watch = Some(Watcher {
                    id: request.id,
                    next: from,
                });
                self.feed(id);
            }
            return;
        }
        let answer = self.store.answer(&request.what, self.now);
        self.spread();
        if answered && self.nodes[id].life == life {
            let at = self.arrival(id);
            let event = Event::Done {
                id: request.id,
                answer: Ok(answer),
            };
            self.schedule(at, id, Happening::Tell(event));
        }
    }

    /// When a message sent now arrives; those before arrive before.
    fn arrival(&mut self, id: usize) -> Instant {
        let way = Duration::from_millis(1 + self.rng.below(self.weather.delay_ms.max(1)));
        let at = (self.now + way).max(self.nodes[id].last_arrival + Duration::from_micros(1));
        self.nodes[id].last_arrival = at;
        at
    }

    fn schedule(&mut self, at: Instant, node: usize, what: Happening) {
        self.order += 1;
        let life = self.nodes[node].life;
        self.queue.push(Scheduled {
            at,
            order: self.order,
            node,
            life,
            what,
        });
    }

    fn ask(&mut self, id: usize, request: Request) {
        let node = &mut self.nodes[id];
        node.asked.push(request.what.clone());
        if let Ask::Watch { .. } = request.what {
            // The new watch replaces the old one.
            node.watch = None;
            let watches = node.open.extract_if(.., |_, a| matches!(a, Ask::Watch { .. }));
            node.replaced.extend(watches.map(|(id, _)| id));
        }
        let writes = |a: &Ask| matches!(a, Ask::Create { .. } | Ask::Renew { .. } | Ask::Delete { .. });
        for open in node.open.values() {
            let both_write = writes(open) && writes(&request.what);
            let same = std::mem::discriminant(open) == std::mem::discriminant(&request.what);
            assert!(
                !same && !both_write,
                "node {id} asks {:?} beside {open:?}",
                request.what
            );
        }
        node.open.insert(request.id, request.what.clone());
        let answer = |at: Instant| (at, StoreError::Unreachable("timeout".into()));
        let chance = self.rng.below(100);
        let w = self.weather;
        let lost = self.nodes[id].cut_off || chance < w.request_lost;
        let late = chance < w.request_lost + w.late;
        let deaf = chance < w.request_lost + w.late + w.answer_lost;
        if lost || late || deaf {
            let (at, why) = answer(self.now + TIMEOUT);
            let event = Event::Done {
                id: request.id,
                answer: Err(why),
            };
            self.schedule(at, id, Happening::Tell(event));
        }
        if !lost {
            let way = if late {
                2_000 + self.rng.below(8_000)
            } else {
                1 + self.rng.below(w.delay_ms.max(1))
            };
            let at = self.now + Duration::from_millis(way);
            let answered = !(late || deaf);
            self.schedule(at, id, Happening::Arrive { request, answered });
        }
    }

    fn act(&mut self, id: usize, out: Vec<Output>) {
        assert!(out.len() <= 12, "node {id} says {} things at once", out.len());
        for output in out {
            let node = &mut self.nodes[id];
            match output {
                Output::Ask(request) => self.ask(id, request),
                Output::Acquired(m) => {
                    if let Some(before) = &node.acquired {
                        assert_eq!(before.subnet, m.subnet, "node {id} is renumbered");
                    }
                    node.acquired = Some(m);
                }
                Output::Peers(changes) => {
                    assert!(node.acquired.is_some());
                    for change in changes {
                        self.apply(id, change);
                    }
                    self.check_peers(id);
                }
                Output::Remember => node.disk = Some(node.cluster.remember()),
                Output::Ready => {
                    assert!(!node.ready, "told twice");
                    node.ready = true;
                }
                Output::Allocate(allow) => {
                    assert_ne!(node.allocate, allow);
                    node.allocate = allow;
                }
                Output::Stopped => {
                    node.stopped = true;
                    node.up = false;
                }
            }
        }
    }

    fn apply(&mut self, id: usize, change: Change) {
        let node = &mut self.nodes[id];
        match change {
            Change::PeerSet(peer) => {
                node.peers.insert(peer.name.clone(), peer);
            }
            Change::PeerGone(name) => {
                node.gone += 1;
                assert!(
                    node.peers.remove(&name).is_some(),
                    "{name} went and was not there"
                );
            }
        }
    }

    fn check_peers(&self, id: usize) {
        let node = &self.nodes[id];
        let own = node.acquired.as_ref().map(|m| m.subnet.net4);
        let mut seen = BTreeSet::new();
        for net in node.peers.values().filter_map(|p| p.subnet4) {
            assert!(own != Some(net) && seen.insert(net), "node {id} has {net} twice");
        }
    }

    /// All nodes that are up have a subnet of their own, the lease for it, and each other as peers.
    pub fn check_converged(&self) {
        let up: Vec<_> = self.nodes.iter().filter(|n| n.up).collect();
        let mut subnets = BTreeMap::new();
        for node in &up {
            let status = node.cluster.status(self.now);
            assert!(node.ready, "node {} is not ready: {status:?}", node.id);
            let subnet = node.acquired.as_ref().unwrap().subnet;
            let other = subnets.insert(subnet, node.id);
            assert_eq!(other, None, "{subnet} belongs to {} too", node.id);
            let entry = self.store.entry(&subnet.to_string());
            let text = entry
                .map(|e| String::from_utf8_lossy(&e.value).into_owned())
                .unwrap_or_default();
            let said = format!("\"id-{}\"", node.id);
            assert!(
                text.contains(&said),
                "{subnet} of node {} in the store: {text}",
                node.id
            );
            assert!(
                status.connected && status.allocate && node.allocate,
                "node {}: {status:?}",
                node.id
            );
        }
        for node in &up {
            for other in up.iter().filter(|o| o.id != node.id) {
                let net = other.acquired.as_ref().unwrap().subnet.net4;
                let peer = node.peers.values().find(|p| p.subnet4 == Some(net));
                let peer =
                    peer.unwrap_or_else(|| panic!("node {} does not know {net} of {}", node.id, other.id));
                assert_eq!(peer.underlay, (other.public_ip, 8472).into());
                assert_eq!(peer.name.as_str(), format!("n{}", other.id));
            }
        }
    }

    /// Where in the store a subnet of a node is.
    pub fn key(&self, id: usize) -> String {
        self.nodes[id]
            .acquired
            .as_ref()
            .expect("has a subnet")
            .subnet
            .to_string()
    }

    pub fn alarms(&self, id: usize) -> String {
        self.nodes[id].cluster.status(self.now).alarms.join("\n")
    }
}
