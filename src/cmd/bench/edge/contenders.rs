//! Who is measured: podwire, what the kernel does for root, and the programs that do it without root, as far as they are
//! installed.

use super::super::kernel;
use super::super::lab::{failed, installed, pod_name};
use super::super::turns::Contestant;
use super::Subject;
use super::names;
use super::world::{HOME, Place, WORLD, World};
use crate::cmd::Failure;
use crate::cmd::lab::alone::Alone;
use crate::cmd::lab::dir::PrivateDir;
use crate::cmd::lab::nodes::{NodeSpec, Nodes};
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::Watch;
use crate::model::{PortMapping, Protocol};
use crate::sys::ns::{NetNs, Target};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// MTU of all pods.
pub const MTU: u16 = 1500;
/// The host's end of the kernel's pod, and the pod.
const KERNEL: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 2, 1), Ipv4Addr::new(198, 18, 2, 2)];
/// The gateway of podwire's pod.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// slirp4netns's pod and name server, as slirp4netns(1) has them.
const SLIRP: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 100), Ipv4Addr::new(10, 0, 2, 3)];
/// Where pasta's pod asks for names.
const PASTA_DNS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 53);
/// From where to where its pod's ports are: the host's begin with 32768.
const PASTA_PORTS: &str = "12000 31999";
/// Subordinate ids for rootlesskit: the first, and how many (subuid(5)).
const FIRST_ID: u64 = 100_000;
const IDS: u64 = 65_536;
/// How long a program may take to make what it is asked for.
const START: Duration = Duration::from_secs(5);
/// What the kernel is told: packets of the pod leave with the host's address, and those to its port lead to it.
const NAT: &str = "table ip podwire_bench {
  chain out { type nat hook postrouting priority 100; ip saddr 198.18.2.0/24 masquerade; };
  chain in { type nat hook prerouting priority -100; meta l4proto { tcp, udp } th dport 7002 dnat to 198.18.2.2; };
};
";

/// A pod with what it is measured for: a way out, a published port, or a name server.
pub struct Contender {
    /// What it is called.
    pub name: &'static str,
    /// Where its pod's port is published, or the name server that its pod asks.
    pub at: SocketAddr,
    // In this order: the pod goes before what it hangs on.
    /// The pod.
    pub place: Place,
    /// Another that goes the same way; one pod may not have all flows.
    other: Option<Place>,
    nodes: Option<Rc<Nodes>>,
    alone: Option<Alone>,
    _dir: Option<PrivateDir>,
}

impl Contender {
    /// Wait until the program has set up the pod.
    fn settle(&mut self) -> Result<(), Failure> {
        let pid = match &self.place {
            Place::Pod(pod) => pod.pid(),
            Place::Beside(pid) => *pid,
        };
        match &mut self.alone {
            Some(alone) => until(alone, "a way out of its pod", |_| routed(pid).then_some(())),
            None => Ok(()),
        }
    }

    /// From where many flows go the same way.
    pub fn crowd(&self) -> &Place {
        self.other.as_ref().unwrap_or(&self.place)
    }

    /// The processes that do the work; none when the kernel does.
    pub fn processes(&self) -> Vec<u32> {
        let nodes = self.nodes.iter().flat_map(|nodes| nodes.processes());
        nodes
            .chain(self.alone.iter().flat_map(Alone::processes))
            .collect()
    }
}

impl Contestant for Contender {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ended(&mut self) -> bool {
        self.alone.as_mut().is_some_and(Alone::ended)
    }
}

/// Whether the process `pid` has a default route.
fn routed(pid: u32) -> bool {
    let routes = fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap_or_default();
    routes
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(1) == Some("00000000"))
}

/// A way to make a contender: what it is called in a sentence, and how.
type Recipe = (&'static str, fn(&World, Subject) -> Result<Contender, Failure>);

/// All that can be had here, podwire first; and a sentence for each that cannot.
///
/// # Errors
/// When podwire cannot be had.
pub fn all(
    world: &World,
    subject: Subject,
    watch: &mut Watch,
) -> Result<(Vec<Contender>, Vec<String>), Failure> {
    watch.stage("making a pod of each contender");
    let mut there = podwire(world, subject, watch)?;
    let mut absent = Vec::new();
    let others: &[Recipe] = match subject {
        Subject::Egress => &[
            ("the kernel's masquerading", kernel),
            ("pasta", pasta),
            ("slirp4netns", slirp),
        ],
        Subject::Ports => &[
            ("the kernel's DNAT", kernel),
            ("pasta", pasta),
            ("rootlesskit's builtin port driver", rootlesskit),
            ("slirp4netns's port forwarding", slirp),
        ],
        Subject::Dns => &[("pasta", pasta), ("slirp4netns", slirp)],
    };
    let mut left_out = |name: &str, why: Failure| absent.push(format!("{name} is left out: {}", why.message));
    let mut made = Vec::new();
    for (name, make) in others {
        watch.check()?;
        match make(world, subject) {
            Ok(contender) => made.push((name, contender)),
            Err(why) => left_out(name, why),
        }
    }
    // By now most have done it.
    for (name, mut contender) in made {
        match contender.settle() {
            Ok(()) => there.push(contender),
            Err(why) => left_out(name, why),
        }
    }
    Ok((there, absent))
}

fn podwire(world: &World, subject: Subject, watch: &mut Watch) -> Result<Vec<Contender>, Failure> {
    let (at, mtu) = (HOME.to_string(), MTU.to_string());
    let mut args: Vec<String> = [
        "--name",
        "n1",
        "--subnet",
        "10.244.1.0/24",
        "--subnet6",
        "fd00:10:244:1::/64",
        "--bind",
        &at,
        "--underlay-mtu",
        "1550",
        "--pod-mtu",
        &mtu,
    ]
    .map(String::from)
    .to_vec();
    match subject {
        Subject::Egress | Subject::Ports => args.extend(["--dns", "off"].map(String::from)),
        Subject::Dns => {
            // The way to the echo beside it.
            args.extend(["--map-host", "gateway", "--dns-upstream"].map(String::from));
            args.push(WORLD.to_string());
            for address in ["192.0.2.7", "2001:db8::7"] {
                args.extend(["--dns-record".into(), format!("{} {address}", names::STATIC)]);
            }
        }
    }
    let spec = NodeSpec {
        name: "n1".into(),
        args,
        netns: Some(&world.home),
    };
    let nodes = Rc::new(Nodes::start(&[spec], "", watch)?);
    let published = |port| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| PortMapping {
            host: Some(HOME.into()),
            first: port,
            pod: port,
            count: 1,
            protocol,
        })
    };
    let make = |name: &'static str, port, at: SocketAddr| {
        let publish = match subject {
            Subject::Ports => published(port).to_vec(),
            Subject::Egress | Subject::Dns => Vec::new(),
        };
        let pod = |name, publish| {
            let pod = Pod::attach(pod_name(name), &nodes.socket("n1"), publish)?;
            Ok::<_, Failure>(Place::Pod(Box::new(pod)))
        };
        Ok::<_, Failure>(Contender {
            name,
            at,
            place: pod(name, publish)?,
            other: match subject {
                Subject::Egress => Some(pod("crowd", Vec::new())?),
                Subject::Ports | Subject::Dns => None,
            },
            nodes: Some(Rc::clone(&nodes)),
            alone: None,
            _dir: None,
        })
    };
    Ok(match subject {
        Subject::Egress | Subject::Ports => vec![make("podwire", 7001, (HOME, 7001).into())?],
        Subject::Dns => vec![
            make("podwire", 0, (GATEWAY, names::PORT).into())?,
            make("echo", 0, (GATEWAY, names::ECHO).into())?,
        ],
    })
}

fn kernel(world: &World, _: Subject) -> Result<Contender, Failure> {
    kernel::translate(&world.home, NAT)?;
    Ok(Contender {
        name: "kernel",
        at: (HOME, 7002).into(),
        place: Place::Pod(Box::new(kernel::routed_pod(
            "kernel",
            &world.home,
            KERNEL,
            MTU.into(),
        )?)),
        other: None,
        nodes: None,
        alone: None,
        _dir: None,
    })
}

fn pasta(world: &World, subject: Subject) -> Result<Contender, Failure> {
    installed("pasta")?;
    // Its pod has the host's own address.
    let pod = Pod::bare(pod_name("pasta"), HOME, HOME.to_ipv6_mapped())?;
    // It wants the pod's own ports for its sockets on the host, and loses what others have there.
    let inside = NetNs::open(&Target::Pid(pod.pid()))?;
    inside
        .within(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", PASTA_PORTS))?
        .map_err(|e| failed(format!("its pod's ports cannot be chosen: {e}")))?;
    let (port, at): (_, SocketAddr) = match subject {
        Subject::Ports => ("7003", (HOME, 7003).into()),
        Subject::Egress | Subject::Dns => ("none", (PASTA_DNS, names::PORT).into()),
    };
    // Root would be made nobody, who may not enter the pod's user namespace.
    let mut args: Vec<String> = [
        "--runas",
        "0",
        "--foreground",
        "--config-net",
        "--ipv4-only",
        "--mtu",
    ]
    .map(String::from)
    .to_vec();
    args.push(MTU.to_string());
    args.extend(["-t", port, "-u", port, "-T", "none", "-U", "none"].map(String::from));
    if subject == Subject::Dns {
        args.extend(["--dns-forward".into(), PASTA_DNS.to_string()]);
    }
    args.push(pod.pid().to_string());
    let alone = Alone::start(&world.home, false, "pasta", args)?;
    Ok(Contender {
        name: "pasta",
        at,
        place: Place::Pod(Box::new(pod)),
        other: None,
        nodes: None,
        alone: Some(alone),
        _dir: None,
    })
}

fn slirp(world: &World, subject: Subject) -> Result<Contender, Failure> {
    installed("slirp4netns")?;
    let [four, dns] = SLIRP;
    let pod = Pod::bare(pod_name("slirp"), four, four.to_ipv6_mapped())?;
    let pid = pod.pid().to_string();
    let dir = dir()?;
    let api = dir.join("slirp.sock");
    let mut args = vec!["--configure".into(), "--mtu".into(), MTU.to_string()];
    args.extend(["--userns-path".into(), format!("/proc/{pid}/ns/user")]);
    args.extend(["--api-socket".into(), api.display().to_string()]);
    args.extend([pid, "tap0".into()]);
    let mut alone = Alone::start(&world.home, false, "slirp4netns", args)?;
    let at = match subject {
        Subject::Ports => {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                forward(&mut alone, &api, protocol, 7005)?;
            }
            (HOME, 7005)
        }
        Subject::Egress | Subject::Dns => (dns, names::PORT),
    };
    Ok(Contender {
        name: "slirp4netns",
        at: at.into(),
        place: Place::Pod(Box::new(pod)),
        other: None,
        nodes: None,
        alone: Some(alone),
        _dir: Some(dir),
    })
}

/// Have slirp4netns lead a port of the host to the same port of its pod.
fn forward(slirp: &mut Alone, api: &Path, protocol: Protocol, port: u16) -> Result<(), Failure> {
    let refused = |e: io::Error| failed(format!("it does not forward: {e}"));
    let mut socket = until(slirp, "its API socket", |_| UnixStream::connect(api).ok())?;
    let (host, pod) = (HOME, SLIRP[0]);
    let request = serde_json::json!({"execute": "add_hostfwd", "arguments": {
        "proto": protocol.to_string(), "host_addr": host, "host_port": port, "guest_addr": pod, "guest_port": port,
    }});
    socket.set_read_timeout(Some(START)).map_err(refused)?;
    socket
        .write_all(request.to_string().as_bytes())
        .map_err(refused)?;
    socket.shutdown(std::net::Shutdown::Write).map_err(refused)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).map_err(refused)?;
    match answer.contains("return") {
        true => Ok(()),
        false => Err(failed(format!("it does not forward: {}", answer.trim()))),
    }
}

fn rootlesskit(world: &World, _: Subject) -> Result<Contender, Failure> {
    for program in ["rootlesskit", "slirp4netns", "newuidmap"] {
        installed(program)?;
    }
    let ids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !has_ids(&ids) {
        let why = "it takes subordinate ids, and an ordinary user's sandbox has none (measure as root)";
        return Err(failed(why));
    }
    let dir = dir()?;
    subordinates(&dir).map_err(|e| failed(format!("it is given no subordinate ids: {e}")))?;
    let state = dir.join("state");
    let mut args: Vec<String> = [
        "--net=slirp4netns",
        "--disable-host-loopback",
        "--port-driver=builtin",
    ]
    .map(String::from)
    .to_vec();
    args.push(format!("--mtu={MTU}"));
    args.push(format!("--state-dir={}", state.display()));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        args.push(format!("--publish={HOME}:7004:7004/{protocol}"));
    }
    args.extend(["sleep", "infinity"].map(String::from));
    let mut alone = Alone::start(&world.home, true, "rootlesskit", args)?;
    let sleeps = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name == "sleep\n")
    };
    let pid = until(&mut alone, "its pod", |alone| {
        alone.processes().into_iter().find(sleeps)
    });
    Ok(Contender {
        name: "rootlesskit",
        at: (HOME, 7004).into(),
        place: Place::Beside(pid?),
        other: None,
        nodes: None,
        alone: Some(alone),
        _dir: Some(dir),
    })
}

/// Whether a user namespace with this map has the ids of [`subordinates`].
fn has_ids(map: &str) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(|n| n.parse::<u64>());
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(first)), Some(_), Some(Ok(count))) => {
                first <= FIRST_ID && first.saturating_add(count) >= FIRST_ID + IDS
            }
            _ => false,
        }
    })
}

/// Give root, who is asked for them by rootlesskit, subordinate ids; for the processes of this lab only, as its mounts
/// are its own.
fn subordinates(dir: &PrivateDir) -> io::Result<()> {
    let file = dir.join("subids");
    fs::write(&file, format!("root:{FIRST_ID}:{IDS}\n"))?;
    for place in ["/etc/subuid", "/etc/subgid"] {
        rustix::mount::mount_bind(&file, place)?;
    }
    Ok(())
}

/// Wait for what a program makes; a sentence when it does not.
fn until<T>(alone: &mut Alone, what: &str, mut look: impl FnMut(&Alone) -> Option<T>) -> Result<T, Failure> {
    let deadline = Instant::now() + START;
    loop {
        if let Some(found) = look(alone) {
            return Ok(found);
        }
        if alone.ended() {
            return Err(failed("it ended at once"));
        }
        if Instant::now() >= deadline {
            return Err(failed(format!("it does not make {what}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn dir() -> Result<PrivateDir, Failure> {
    PrivateDir::make().map_err(|e| failed(format!("no directory can be made: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_users_sandbox_has_no_subordinate_ids() {
        assert!(has_ids("         0          0 4294967295\n"));
        assert!(has_ids("0 0 1\n1 100000 165535\n"));
        assert!(!has_ids("         0       1000          1\n"));
        assert!(!has_ids("0 0 165535\n"));
        assert!(!has_ids("0 0\nx y z\n"));
    }
}
