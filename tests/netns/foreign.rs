//! A machine with someone else's VXLAN end, number 9: what those of all makes have in common. Its tunnel device
//! is configured as flannel does it (`formats.md` F3), and its pod is behind a bridge, as CNI has it:
//!
//! ```text
//!   pod 10.244.9.2          fd00:10:244:9::2
//!     | eth0, veth
//!   cni0 10.244.9.1
//!     | the kernel routes
//!   tunnel device 10.244.9.0: a permanent neighbour 10.244.1.0 at n1's MAC,
//!     |                       10.244.1.0/24 via 10.244.1.0 onlink
//!   underlay
//! ```

use super::netns::Netns;
use super::node;
use super::pod::{FAMILIES, Family, Ping, Place, Pod};
use super::raw::Raw;
use super::traffic::{MB, at_once, datagrams, stream};
use super::world::{World, eventually};
use podwire::model::DropReason;
use podwire::wire::{Headers, L3};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The machine.
pub struct Machine<'a> {
    /// Where its tunnel ends.
    pub host: Spot<'a>,
    /// Its pod.
    pub pod: Spot<'a>,
    /// Its address on the underlay.
    pub underlay: IpAddr,
    /// MTU of its tunnel device and pod.
    pub mtu: u16,
    /// Whether its tunnel brings n1 what is for all, as the reports of its kernel's multicast groups. The node
    /// drops that: what is for all stays on a node.
    pub floods: bool,
}

/// Somewhere on the machine.
pub struct Spot<'a> {
    name: &'static str,
    netns: &'a Netns,
    /// The last number of its addresses.
    last: u8,
}

impl Place for Spot<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn netns(&self) -> &Netns {
        self.netns
    }

    fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => [10, 244, 9, self.last].into(),
            Family::V6 => [0xfd00, 0x10, 0x244, 9, 0, 0, 0, u16::from(self.last)].into(),
        }
    }
}

impl<'a> Machine<'a> {
    /// Configure the tunnel device of `host` and, in the new namespace `pod`, a pod of it; tell n1 that the
    /// machine is at `underlay`.
    pub fn new(
        world: &World,
        (host, pod): (&'a Netns, &'a Netns),
        device: &str,
        mtu: u16,
        underlay: IpAddr,
    ) -> Machine<'a> {
        Machine::introduced(world, (host, pod), device, mtu, underlay, || {
            let node = &world.nodes[0];
            node.set_peers(&(world.peers_but(9) + &node::peer(9, underlay)));
            eventually("it is known", Duration::from_secs(1), || {
                node.status().peers.iter().any(|p| p.name.as_str() == "n9")
            });
        })
    }

    /// The same, where `introduce` tells n1 of the machine.
    pub fn introduced(
        world: &World,
        (host, pod): (&'a Netns, &'a Netns),
        device: &str,
        mtu: u16,
        underlay: IpAddr,
        introduce: impl FnOnce(),
    ) -> Machine<'a> {
        let theirs = world.vtep_mac(1);
        set(pod, "ipv6/conf/default/accept_dad", "0");
        set(host, "ipv6/conf/default/accept_dad", "0");
        set(host, "ipv4/ip_forward", "1");
        set(host, "ipv6/conf/all/forwarding", "1");
        host.ip(&format!(
            "addr add 10.244.9.0/32 dev {device}\n\
             addr add fd00:10:244:9::/128 dev {device} nodad\n\
             link set {device} mtu {mtu} up\n\
             neigh add 10.244.1.0 lladdr {theirs} dev {device} nud permanent\n\
             neigh add fd00:10:244:1:: lladdr {theirs} dev {device} nud permanent\n\
             route add 10.244.1.0/24 via 10.244.1.0 dev {device} onlink\n\
             route add fd00:10:244:1::/64 via fd00:10:244:1:: dev {device} onlink\n\
             link add cni0 type bridge\n\
             link set cni0 address 0a:58:0a:f4:09:01 mtu {mtu} up\n\
             addr add 10.244.9.1/24 dev cni0\n\
             addr add fd00:10:244:9::1/64 dev cni0 nodad\n\
             link add veth9 mtu {mtu} type veth peer name pod9 mtu {mtu}\n\
             link set veth9 master cni0 up\n"
        ));
        pod.adopt(host, "pod9");
        pod.ip("link set pod9 name eth0\n\
             link set eth0 up\n\
             addr add 10.244.9.2/24 dev eth0\n\
             addr add fd00:10:244:9::2/64 dev eth0 nodad\n\
             route add default via 10.244.9.1\n\
             route add default via fd00:10:244:9::1\n");
        eventually("its pod's link is up", Duration::from_secs(3), || {
            is_up(host, "veth9") && is_up(pod, "eth0")
        });
        introduce();
        Machine {
            host: Spot {
                name: "the foreign host",
                netns: host,
                last: 0,
            },
            pod: Spot {
                name: "the foreign pod",
                netns: pod,
                last: 2,
            },
            underlay,
            mtu,
            floods: false,
        }
    }

    /// Require that a pod of n1, and the machine and its pod, reach each other in all ways, and that no frame
    /// was dropped for it.
    pub fn talks(&self, world: &World) {
        let (a, b) = world.pair();
        let before = self.refused(world);
        let pod = usize::from(self.mtu);
        for family in FAMILIES {
            let headers = if family == Family::V4 { 28 } else { 48 };
            at_once(a, &self.pod, family);
            at_once(&self.pod, a, family);
            // Two routers on the way.
            let near = a.ping(self.pod.ip(family), 3, Ping::PATIENT);
            near.all(3);
            assert!(near.text.contains("ttl=62"), "{}", near.text);
            self.pod.reaches(a.ip(family), &[]);
            a.reaches(self.host.ip(family), 3, &[]);
            self.host.reaches(a.ip(family), &[]);
            // As long as may be, in one packet.
            let full = (pod - headers).to_string();
            a.reaches(self.pod.ip(family), 3, &["-M", "do", "-s", &full]);
            self.pod.reaches(a.ip(family), &["-M", "do", "-s", &full]);
            let sizes = [0, 1, 17, 1000, pod - 48, pod - 28, 1500, 9000, 60_000];
            datagrams(a, &self.pod, family, &sizes);
            datagrams(&self.pod, a, family, &sizes);
            stream(a, &self.pod, family, 6 * MB);
            stream(&self.pod, a, family, 6 * MB);
            stream(a, &self.host, family, 2 * MB);
            stream(&self.host, a, family, 2 * MB);
        }
        a.reaches(b.ip4, 3, &[]);
        assert_eq!(self.refused(world), before, "something was refused");
    }

    /// Whether a ping from its pod to `to` is answered.
    pub fn reaches_at_all(&self, to: &Pod) -> bool {
        let brief = ["-W", "0.1", "-w", "1"];
        FAMILIES
            .iter()
            .all(|f| self.pod.ping(to.ip(*f), &brief).answered > 0)
    }

    /// What n1 dropped, and what kernels refused for their checksums.
    fn refused(&self, world: &World) -> String {
        let (a, _) = world.pair();
        let netns = [
            &a.netns,
            self.host.netns,
            self.pod.netns,
            &world.underlay.hosts[0].netns,
        ];
        let sums = netns.map(|netns| {
            let troubles = netns.troubles();
            let sums = troubles.split(", ").filter(|t| t.contains("Csum"));
            sums.map(String::from).collect::<Vec<_>>()
        });
        let mut drops = world.nodes[0].status().drops;
        drops.retain(|reason, _| !(self.floods && reason == DropReason::WrongVtepMac.label()));
        format!("{drops:?} {sums:?}")
    }
}

impl Spot<'_> {
    /// Ping an address three times; each must be answered.
    #[track_caller]
    pub fn reaches(&self, to: IpAddr, more: &[&str]) {
        self.ping(to, more).all(3);
    }

    /// Ping an address three times.
    pub fn ping(&self, to: IpAddr, more: &[&str]) -> Ping {
        let to = to.to_string();
        let args = [&["-n", "-c", "3", "-i", "0.01"], Ping::PATIENT, more, &[&to]].concat();
        Ping::of(&self.netns.run("ping", &args))
    }
}

/// Whether outer packets have checksums, as the machine's host hears them on `interface`: those it sends, and
/// those of n1, to `port` each.
pub fn outer_checksums(machine: &Machine<'_>, interface: &str, a: &Pod, port: u16) -> (bool, bool) {
    let ear = Raw::on(machine.host.netns, interface);
    // Whether they are answered does not matter.
    a.ping(machine.pod.ip(Family::V4), 3, &["-W", "0.2"]);
    machine.pod.ping(a.ip4.into(), &["-W", "0.2", "-w", "1"]);
    let (mut theirs, mut ours) = (vec![], vec![]);
    ear.frames(|frame| {
        let Ok(h) = Headers::parse(frame) else { return };
        let field = |at: usize| u16::from_be_bytes([frame[h.l4 + at], frame[h.l4 + at + 1]]);
        let udp = h.proto == 17 && h.l3 != L3::Arp;
        if !udp || field(2) != port {
            return;
        }
        match h.src(frame) == machine.underlay {
            true => theirs.push(field(6) != 0),
            false => ours.push(field(6) != 0),
        }
    });
    let one = |heard: Vec<bool>| {
        assert!(
            heard.len() >= 3 && heard.iter().all(|h| *h == heard[0]),
            "{heard:?}"
        );
        heard[0]
    };
    (one(theirs), one(ours))
}

/// Whether the kernel has noticed that an interface works: with a veth that takes it up to a second.
pub fn is_up(netns: &Netns, interface: &str) -> bool {
    netns.ask("ip", &["link", "show", interface]).contains("state UP")
}

/// Set a sysctl below `net`.
pub fn set(netns: &Netns, key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    let written = netns.within(|| std::fs::write(&path, value));
    written.unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Whether the tools are here; if not, says so. `tests/run` installs them.
pub fn have(tools: &[&str]) -> bool {
    let missing = |tool: &&&str| {
        let mut command = Command::new(tool);
        command.arg("--version").stdin(Stdio::null());
        command.output().is_err()
    };
    let missing: Vec<_> = tools.iter().filter(missing).collect();
    if !missing.is_empty() {
        eprintln!("netns: {missing:?} missing, so nothing is tested here (tests/run installs them)");
    }
    missing.is_empty()
}

/// A process in a namespace, ended when dropped.
pub struct Daemon(Child);

impl Daemon {
    /// Start it.
    pub fn start(netns: &Netns, mut command: Command) -> Daemon {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Daemon(
            netns
                .within(|| command.spawn())
                .unwrap_or_else(|e| panic!("{command:?}: {e}")),
        )
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
