//! A pod on a node: a sandbox of the library's own making, and what tests do in it.

use super::netns::Netns;
use super::node::{Node, PODWIRE};
use super::world::eventually;
use podwire::api::AttachRequest;
use podwire::model::{Bandwidth, Mac, PodMtu};
use podwire::pod::sandbox::{Sandbox, Spec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Output, Stdio};
use std::time::Duration;

/// How long a socket waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A pod, held until dropped.
pub struct Pod {
    /// Its name, in the namespace "default".
    pub name: String,
    /// Number of its node.
    pub node: usize,
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
    /// Its MAC.
    pub mac: Mac,
    /// Its network namespace.
    pub netns: Netns,
    sandbox: Sandbox,
}

impl Pod {
    /// A new pod on `node`, with the next free addresses.
    pub fn attach(node: &Node, name: &str) -> Pod {
        Pod::attach_with(node, name, None)
    }

    /// A new pod on `node`, with a certain address.
    pub fn attach_with(node: &Node, name: &str, ip4: Option<Ipv4Addr>) -> Pod {
        Pod::attach_now(node, name, ip4).ready()
    }

    /// A new pod on `node`, with a certain MTU.
    pub fn attach_sized(node: &Node, name: &str, mtu: u16) -> Pod {
        Pod::make(node, name, None, Some(PodMtu(mtu)), None).ready()
    }

    /// A new pod on `node`, with bandwidth limits.
    pub fn attach_limited(node: &Node, name: &str, bandwidth: Option<Bandwidth>) -> Pod {
        Pod::make(node, name, None, None, bandwidth).ready()
    }

    /// A new pod on `node`, without a look whether it is ready.
    pub fn attach_now(node: &Node, name: &str, ip4: Option<Ipv4Addr>) -> Pod {
        Pod::make(node, name, ip4, None, None)
    }

    fn ready(self) -> Pod {
        eventually("its IPv6 address works", PATIENCE, || self.has_ip6());
        self
    }

    fn make(
        node: &Node,
        name: &str,
        ip4: Option<Ipv4Addr>,
        mtu: Option<PodMtu>,
        bandwidth: Option<Bandwidth>,
    ) -> Pod {
        let mut spec = Spec::new(name);
        spec.program = PODWIRE.into();
        let sandbox = spec.spawn().unwrap_or_else(|e| panic!("{e}"));
        let request = AttachRequest {
            pod: name.parse().expect("a name"),
            ip4,
            ip6: None,
            mac: None,
            mtu,
            ifname: "eth0".into(),
            netns: None,
            holder: None,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            bandwidth,
        };
        let attached = sandbox.attach(&node.socket, request);
        let pod = attached.unwrap_or_else(|e| panic!("{name}: {e}")).pod;
        let addresses = pod.addresses.iter();
        let four = addresses.clone().find_map(|a| match a {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        });
        let six = addresses.clone().find_map(|a| match a {
            IpAddr::V6(a) => Some(*a),
            IpAddr::V4(_) => None,
        });
        Pod {
            name: name.into(),
            node: node.number,
            ip4: four.expect("an IPv4 address"),
            ip6: six.expect("an IPv6 address"),
            mac: pod.mac,
            netns: Netns::of(sandbox.pid()),
            sandbox,
        }
    }

    /// Whether its stack takes packets for its IPv6 address: the kernel gives an address its local route in its
    /// own time.
    pub fn has_ip6(&self) -> bool {
        let routes = self
            .netns
            .within(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route"));
        let own: String = self.ip6.octets().iter().map(|b| format!("{b:02x}")).collect();
        // Destination and prefix length are first, flags are ninth; RTF_LOCAL is the highest bit.
        let local = |line: &str| {
            let flags = line.split_whitespace().nth(8).unwrap_or("0");
            line.starts_with(&format!("{own} 80 "))
                && u32::from_str_radix(flags, 16).is_ok_and(|f| f >> 31 == 1)
        };
        routes.expect("it can be read").lines().any(local)
    }

    /// Give it a second interface, which is another port of its node; returns its MAC and IPv4 address.
    pub fn attach_also(&self, node: &Node, name: &str, ifname: &str) -> (Mac, Ipv4Addr) {
        let request = AttachRequest {
            pod: name.parse().expect("a name"),
            ip4: None,
            ip6: None,
            mac: None,
            mtu: None,
            ifname: ifname.into(),
            netns: None,
            holder: None,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            bandwidth: None,
        };
        let attached = self.sandbox.attach(&node.socket, request);
        let pod = attached.unwrap_or_else(|e| panic!("{name}: {e}")).pod;
        let ip4 = pod.addresses.iter().find_map(|a| match a {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        });
        (pod.mac, ip4.expect("an IPv4 address"))
    }

    /// Frames it sent that its TAP had no room for: they never reached the node.
    pub fn lost_in_ring(&self) -> u64 {
        let told = self.netns.ask("ip", &["-s", "-j", "link", "show", "eth0"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON of ip");
        told[0]["stats64"]["tx"]["dropped"].as_u64().expect("a number")
    }

    /// Run a command in it, in all of its namespaces.
    pub fn run(&self, program: &str, args: &[String]) -> Output {
        let mut command = self.sandbox.command(program, args);
        command.stdin(Stdio::null()).output().expect("it runs")
    }

    /// Ping an address so often, 10 ms apart, with more arguments of ping.
    pub fn ping(&self, to: impl Into<IpAddr>, count: u32, more: &[&str]) -> Ping {
        Ping::of(&self.run("ping", &args(to.into(), count, more)))
    }

    /// Ping an address so often; each request must be answered, once.
    #[track_caller]
    pub fn reaches(&self, to: impl Into<IpAddr>, count: u32, more: &[&str]) {
        let more = [more, Ping::PATIENT].concat();
        self.ping(to, count, &more).all(count);
    }

    /// Ping an address so often; no answer may come, as no error does.
    #[track_caller]
    pub fn unanswered(&self, to: impl Into<IpAddr>, count: u32) {
        self.ping(to, count, &["-W", "0.2"]).none();
    }
}

/// Somewhere with an address in each family, from which and to which traffic goes.
pub trait Place: Sync {
    /// What it is called.
    fn name(&self) -> &str;

    /// Its network namespace.
    fn netns(&self) -> &Netns;

    /// Its address of a family.
    fn ip(&self, family: Family) -> IpAddr;

    /// A listener on any port of one of its addresses.
    fn listen(&self, family: Family) -> TcpListener {
        let at = SocketAddr::new(self.ip(family), 0);
        self.netns().within(|| TcpListener::bind(at)).expect("a listener")
    }

    /// A socket on a port of one of its addresses.
    fn udp(&self, family: Family, port: u16) -> UdpSocket {
        let at = SocketAddr::new(self.ip(family), port);
        let socket = self.netns().within(|| UdpSocket::bind(at)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    }
}

impl Place for Pod {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ip4.into(),
            Family::V6 => self.ip6.into(),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn args(to: IpAddr, count: u32, more: &[&str]) -> Vec<String> {
    let count = count.to_string();
    let mut args = vec!["-n", "-c", &count, "-i", "0.01", "-W", "1"];
    args.extend(more);
    let to = to.to_string();
    args.push(&to);
    args.into_iter().map(String::from).collect()
}

/// What ping told.
#[derive(Debug)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub answered: u32,
    /// Numbers of the answers, in the order they came.
    pub numbers: Vec<u32>,
    /// Round-trip times of the answers, sorted.
    pub times: Vec<Duration>,
    /// Everything it printed.
    pub text: String,
}

impl Ping {
    /// Without this, ping counts an answer as lost that takes twice as long as those before, as on a busy
    /// machine. With it, it asks on until it has as many answers as it shall have, or five seconds are over.
    pub const PATIENT: &[&str] = &["-w", "5"];

    /// Read what `ping` printed.
    pub fn of(out: &Output) -> Ping {
        let text = [&out.stdout[..], &out.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let before = |what: &str| {
            let (number, _) = text.split_once(what)?;
            number.rsplit([' ', '\n']).next()?.parse().ok()
        };
        let number = |line: &str| {
            let (_, number) = line.split_once(" bytes from ")?.1.split_once("icmp_seq=")?;
            number.split(' ').next()?.parse().ok()
        };
        let time = |line: &str| {
            let (_, time) = line.split_once(" time=")?;
            let ms: f64 = time.split(' ').next()?.parse().ok()?;
            Some(Duration::from_secs_f64(ms / 1000.0))
        };
        let mut times: Vec<Duration> = text.lines().filter_map(time).collect();
        times.sort();
        Ping {
            times,
            sent: before(" packets transmitted").unwrap_or(0),
            answered: before(" received").unwrap_or(0),
            numbers: text.lines().filter_map(number).collect(),
            text,
        }
    }

    /// Require that the first `count` requests were answered, once and in order, of those of a patient ping.
    #[track_caller]
    pub fn all(&self, count: u32) {
        // Several may have come at once in the end.
        let some = self.numbers.len().max(count as usize) as u32;
        let want: Vec<u32> = (1..=some).collect();
        assert_eq!(self.numbers, want, "{}", self.text);
    }

    /// The median round-trip time.
    pub fn median(&self) -> Duration {
        self.times
            .get(self.times.len() / 2)
            .copied()
            .unwrap_or(Duration::MAX)
    }

    /// Require that no request was answered.
    #[track_caller]
    pub fn none(&self) {
        assert!(self.sent > 0 && self.answered == 0, "{}", self.text);
    }
}
