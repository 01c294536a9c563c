//! A node with few Services and one with many: what a change takes, whether look-ups are slower, and memory.

use super::super::edge::work::{SLACK, Work as Traffic};
use super::super::lab::{failed, pod_name};
use super::super::turns::{Contestant, Figure, Report};
use super::manifests::{self, PORT};
use super::{balanced, put};
use crate::api::{Client, Reply, Request};
use crate::cmd::Failure;
use crate::cmd::lab::dir::PrivateDir;
use crate::cmd::lab::exchange::{Times, now};
use crate::cmd::lab::load::{Load, numbers, whole_lines};
use crate::cmd::lab::memory;
use crate::cmd::lab::nodes::{NodeSpec, Nodes};
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::{Job, Watch};
use crate::model::ConnectionFilter;
use crate::sys::netlink::{Batch, LOOPBACK, up};
use crate::sys::ns::NetNs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// What the node with few is called.
pub const FEW: &str = "few";
/// How many Services that is, and how many the other has.
pub const FEW_SERVICES: u32 = 10;
pub const MANY: u32 = 10_000;
/// Services in a file.
const OF_A_FILE: u32 = 100;
/// So many of them are changed or asked: these.
const OWN: u32 = 5;
const READY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const APPLIED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);
const IN_A_FILE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 13);
const LOOKED_UP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 14);
/// The last of them, by the name of its file and by its own.
const LAST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 15);
/// What the two servers answer.
const MARKS: [u8; 2] = [1, 2];
/// How long all Services may take to be in force, and one change.
const LOAD: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(2);
/// How often what the client says is looked at, and what is between changes.
const LOOK: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A change, one after the other.
    Change(How),
    /// Connections, or requests and responses, through one of the Services.
    Lookup(Traffic),
    /// The node's memory.
    Memory,
}

/// How something is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// A pod becomes ready, or is so no longer.
    Ready,
    /// A slice is applied.
    Apply,
    /// The file of a slice is replaced.
    File,
}

impl Work {
    /// All of them, in the order of the table: memory before connections have been made.
    pub const ALL: [Work; 6] = [
        Work::Memory,
        Work::Change(How::Ready),
        Work::Change(How::Apply),
        Work::Change(How::File),
        Work::Lookup(Traffic::Connect),
        Work::Lookup(Traffic::Udp),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::Change(How::Ready) => "change-ready",
            Work::Change(How::Apply) => "change-apply",
            Work::Change(How::File) => "change-file",
            Work::Lookup(Traffic::Connect) => "lookup-connect",
            Work::Lookup(_) => "lookup-udp-rr",
            Work::Memory => "memory",
        }
    }
}

/// A node, with a client and two servers.
pub struct Node {
    name: &'static str,
    pid: u32,
    // In this order: pods go before their node.
    client: Pod,
    servers: [Pod; 2],
    admin: Client,
    dir: PrivateDir,
    /// Which server answers by what can be changed.
    turn: usize,
    _nodes: Nodes,
    _host: NetNs,
}

impl Contestant for Node {
    fn name(&self) -> &'static str {
        self.name
    }
}

/// Both nodes, the one with many Services first; how long those took to be in force is in `report`.
///
/// # Errors
/// When one does not come up.
pub fn nodes(report: &mut Report, watch: &mut Watch) -> Result<Vec<Node>, Failure> {
    watch.stage("making two nodes for many Services and few");
    let made: Result<Vec<Node>, Failure> = ["podwire", FEW]
        .into_iter()
        .map(|name| Node::make(name, watch))
        .collect();
    let mut made = made?;
    for node in &mut made {
        let count = if node.name == FEW { FEW_SERVICES } else { MANY };
        watch.stage(format!("{count} Services come"));
        match node.load(count, watch)? {
            Some(time) => report.add(node.name, vec![figure("load", "ms", time)]),
            None => report.failed(format!(
                "load: {} is not in force within {} s",
                node.name,
                LOAD.as_secs()
            )),
        }
    }
    report.next_round();
    Ok(made)
}

fn figure(what: &str, unit: &'static str, time: Duration) -> Figure {
    let value = match unit {
        "us" => time.as_secs_f64() * 1e6,
        _ => time.as_secs_f64() * 1e3,
    };
    Figure {
        what: what.into(),
        unit,
        value,
    }
}

impl Node {
    fn make(name: &'static str, watch: &mut Watch) -> Result<Node, Failure> {
        let host = NetNs::make()?;
        host.within(|| {
            let mut batch = Batch::default();
            batch.set("lo up", up(LOOPBACK));
            batch.send()
        })?
        .map_err(|e| failed(format!("no host can be made: {e}")))?;
        let dir = PrivateDir::make().map_err(|e| failed(format!("no directory can be made: {e}")))?;
        let services = dir.path().display().to_string();
        let args = [
            "--name",
            "n1",
            "--subnet",
            "10.244.1.0/24",
            "--subnet6",
            "fd00:10:244:1::/64",
            "--bind",
            "127.0.0.1",
            "--services",
            &services,
        ];
        let spec = NodeSpec {
            name: "n1".into(),
            args: args.map(String::from).to_vec(),
            netns: Some(&host),
        };
        let nodes = Nodes::start(&[spec], "", watch)?;
        let socket = nodes.socket("n1");
        let pod = |name: &str| Pod::attach(pod_name(name), &socket, Vec::new());
        let (client, servers) = (pod("client")?, [pod("one")?, pod("two")?]);
        let mut admin = Client::connect(&socket)?;
        for pod in &servers {
            ask(
                &mut admin,
                &Request::Label {
                    pod: pod.name.clone(),
                    changes: vec!["app=bench".parse().map_err(|e| failed(format!("a label: {e}")))?],
                },
            )?;
        }
        // It answers while the other is not ready.
        ask(
            &mut admin,
            &Request::Drain {
                pod: servers[1].name.clone(),
                grace_ms: None,
            },
        )?;
        let pid = nodes.processes().next().unwrap_or_default();
        Ok(Node {
            name,
            pid,
            client,
            servers,
            admin,
            dir,
            turn: 0,
            _nodes: nodes,
            _host: host,
        })
    }

    /// Have so many Services: how long until the last answers, none when it does not.
    fn load(&mut self, count: u32, watch: &mut Watch) -> Result<Option<Duration>, Failure> {
        let others = count.saturating_sub(OWN);
        let files = (0..others).step_by(OF_A_FILE as usize);
        let texts: Vec<String> = files
            .map(|first| manifests::many(first, others.min(first + OF_A_FILE)))
            .collect();
        let [one, two] = [self.servers[0].four, self.servers[1].four];
        let changed = manifests::service("ready", READY, Some("bench"))
            + &manifests::service("applied", APPLIED, None)
            + &manifests::service("filed", IN_A_FILE, None)
            + &manifests::service("looked-up", LOOKED_UP, None)
            + &manifests::slice("looked-up", &[one, two]);
        let last = manifests::service("zz-last", LAST, None) + &manifests::slice("zz-last", &[one]);
        let mut server = self.answer(0)?;
        let mut client = self.follow(LAST)?;
        let begun = Instant::now();
        let at = now();
        for (n, text) in texts.iter().enumerate() {
            put(self.dir.path(), &format!("many-{n:04}.yaml"), text)?;
        }
        put(self.dir.path(), "changed.yaml", &changed)?;
        put(self.dir.path(), "last.yaml", &last)?;
        loop {
            Job::look(&mut [&mut server, &mut client]);
            if let Some([_, answered]) = numbers(&client.said(), 0) {
                self.change(How::Apply)?;
                self.change(How::File)?;
                return Ok(Some(Duration::from_nanos(answered.saturating_sub(at))));
            }
            if begun.elapsed() > LOAD {
                return Ok(None);
            }
            if server.ended() {
                // Nobody asked it for a while.
                server = self.answer(0)?;
            }
            watch.check()?;
            std::thread::sleep(PAUSE);
        }
    }

    /// One measurement; no figures when it failed.
    ///
    /// # Errors
    /// When the end was asked for, or no process can be started.
    pub fn measure(
        &mut self,
        work: Work,
        window: Duration,
        watch: &mut Watch,
    ) -> Result<Vec<Figure>, Failure> {
        match work {
            Work::Change(how) => {
                let times = self.changes(how, window, watch)?;
                let name = work.name();
                if times.count == 0 {
                    return Ok(Vec::new());
                }
                Ok(vec![
                    figure(&format!("{name}-p50"), "us", times.p50),
                    figure(&format!("{name}-p99"), "us", times.p99),
                ])
            }
            Work::Lookup(traffic) => {
                let servers: Vec<&Pod> = self.servers.iter().collect();
                let at = LOOKED_UP.into();
                let figures = balanced::measure(traffic, &self.client, at, &servers, window, watch)?;
                let named = |figure: Figure| Figure {
                    what: format!("lookup-{}", figure.what),
                    ..figure
                };
                Ok(figures.into_iter().map(named).collect())
            }
            Work::Memory => {
                let kib = memory::own(self.pid);
                let figure = |kib: u64| Figure {
                    what: work.name().into(),
                    unit: "MiB",
                    value: kib as f64 / 1024.0,
                };
                Ok(kib.map(figure).into_iter().collect())
            }
        }
    }

    /// Change something for the time `window`, and see how long each takes; none when one is not seen.
    fn changes(&mut self, how: How, window: Duration, watch: &mut Watch) -> Result<Times, Failure> {
        let deadline = Instant::now() + SLACK;
        let (mut one, mut two) = (self.answer(0)?, self.answer(1)?);
        watch.gather(&mut [&mut one, &mut two], deadline, Job::spoke)?;
        let mut client = self.follow(match how {
            How::Ready => READY,
            How::Apply => APPLIED,
            How::File => IN_A_FILE,
        })?;
        // Whoever it is.
        watch.gather(&mut [&mut client], deadline, Job::spoke)?;
        let Some([mark, _]) = numbers(&client.said(), 0) else {
            return Ok(Times::of(Vec::new()));
        };
        self.turn = usize::from(mark == u64::from(MARKS[1]));
        let begun = Instant::now();
        let mut times = Vec::new();
        while begun.elapsed() < window || times.is_empty() {
            watch.check()?;
            let seen = whole_lines(&client.said()).count();
            // A port that is used again would stay with the backend that drains.
            self.forget(READY)?;
            let asked = now();
            self.change(how)?;
            let deadline = Instant::now() + CHANGE;
            let answered = loop {
                Job::look(&mut [&mut client]);
                if let Some([mark, at]) = numbers(&client.said(), seen)
                    && mark == u64::from(MARKS[self.turn])
                {
                    break at;
                }
                if Instant::now() >= deadline {
                    return Ok(Times::of(Vec::new()));
                }
                std::thread::sleep(LOOK);
            };
            times.push(Duration::from_nanos(answered.saturating_sub(asked)));
            std::thread::sleep(PAUSE);
        }
        Job::end(&mut [&mut client, &mut one, &mut two], Duration::from_secs(2));
        Ok(Times::of(times))
    }

    /// Have the node forget the connections to a virtual address.
    fn forget(&mut self, vip: Ipv4Addr) -> Result<(), Failure> {
        let filter = ConnectionFilter {
            frontend: Some(vip.into()),
            ..ConnectionFilter::default()
        };
        let request = Request::Connections {
            filter,
            pod: None,
            limit: 0,
            kill: true,
        };
        ask(&mut self.admin, &request)
    }

    /// Have the other server answer.
    fn change(&mut self, how: How) -> Result<(), Failure> {
        self.turn = 1 - self.turn;
        let four = self.servers[self.turn].four;
        match how {
            How::Ready => ask(
                &mut self.admin,
                &Request::Ready {
                    pod: self.servers[0].name.clone(),
                    ready: self.turn == 0,
                },
            ),
            How::Apply => ask(
                &mut self.admin,
                &Request::Apply {
                    text: manifests::slice("applied", &[four]),
                },
            ),
            How::File => put(self.dir.path(), "filed.yaml", &manifests::slice("filed", &[four])),
        }
    }

    fn answer(&self, n: usize) -> Result<Job, Failure> {
        self.servers[n].start(&Load::Echo {
            port: PORT,
            mark: MARKS[n],
        })
    }

    fn follow(&self, at: Ipv4Addr) -> Result<Job, Failure> {
        let window = 2 * LOAD.as_millis() as u64;
        let to = SocketAddr::new(at.into(), PORT);
        self.client.start(&Load::Follow { window, to })
    }
}

/// Have a node do something.
fn ask(admin: &mut Client, request: &Request) -> Result<(), Failure> {
    match admin.call(request)? {
        Reply::Applied { problems, .. } if !problems.is_empty() => Err(failed(problems.join("; "))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_their_units() {
        let time = Duration::from_micros(1500);
        assert_eq!(figure("load", "ms", time).value, 1.5);
        assert_eq!(figure("change", "us", time).value, 1500.0);
    }
}
