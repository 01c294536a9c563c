//! Who is measured: podwire, the kernel's own masquerading, and slirp4netns. pasta is not
//! here yet: one that is killed leaves a process behind that never rests.

use super::super::lab::{failed, hosts, index, net, pod_name, veth};
use crate::cmd::Failure;
use crate::cmd::lab::load::{Load, whole_lines};
use crate::cmd::lab::nodes::{NodeSpec, Nodes};
use crate::cmd::lab::pod::{IFNAME, Pod};
use crate::cmd::lab::watch::{Job, Watch};
use crate::pod::link::default_route;
use crate::sys::netlink::{Batch, LOOPBACK, NetlinkError, address, link, up};
use crate::sys::ns::{NetNs, Target};
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::LinkAttribute;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Addresses of the host whose pods they are, and of the machine they reach (RFC 2544 section C.2.2).
const HOME: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// The same of the world.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// The host's default router, which is not there: what is measured is on the link.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 9);
/// The host's end of the kernel's pod, and the pod.
const KERNEL: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 2, 1), Ipv4Addr::new(198, 18, 2, 2)];
/// MTU of all pods.
pub const MTU: u16 = 1500;
/// The device between the two machines.
const DEVICE: &str = "up0";
/// How long a pod may take to reach the world.
const REACH: Duration = Duration::from_secs(5);
/// What the kernel is told: packets of the pod leave with the host's address.
const MASQUERADE: &str = "table ip podwire_bench { chain out { type nat hook postrouting priority 100; ip saddr \
                          198.18.2.0/24 masquerade; }; };\n";

/// The two machines.
pub struct World {
    /// Where the pods' ways out are.
    pub home: NetNs,
    /// Where the servers are.
    pub world: NetNs,
}

impl World {
    /// Make them, with a veth between.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make(watch: &mut Watch) -> Result<World, Failure> {
        watch.stage("making a host and a world outside of it");
        let [home, world] = hosts(DEVICE, [HOME, WORLD])?;
        let made = World { home, world };
        let refused = |e: NetlinkError| failed(format!("no route can be made: {e}"));
        made.home
            .within(|| {
                let mut batch = Batch::default();
                let way = default_route(index(DEVICE)?, IpAddr::V4(ROUTER), false);
                batch.create("a default route", way);
                batch.send()
            })?
            .map_err(refused)?;
        // Each in its own way; where it is refused, pings of pods are not measured anyway.
        let _ = made.home.within(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })?;
        Ok(made)
    }
}

/// A pod with its way out.
pub struct Contender {
    /// What it is called.
    pub name: &'static str,
    // In this order: the pod goes before what it hangs on.
    pod: Pod,
    _nodes: Option<Nodes>,
    _job: Option<Job>,
}

impl Contender {
    /// Begin `load` in its pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, load: &Load) -> Result<Job, Failure> {
        self.pod.start(load)
    }

    fn reaches(&self, world: &World, watch: &mut Watch) -> Result<bool, Failure> {
        let deadline = Instant::now() + REACH;
        while Instant::now() < deadline {
            let mut server = super::start(&world.world, &Load::Admit)?;
            watch.gather(&mut [&mut server], deadline, Job::spoke)?;
            let port: Option<u16> = whole_lines(&server.said()).next().and_then(|l| l.parse().ok());
            let Some(port) = port else { continue };
            let load = Load::Knock {
                window: 1,
                to: (WORLD, port).into(),
            };
            let mut client = self.start(&load)?;
            watch.gather(&mut [&mut client], deadline, Job::ended)?;
            let reached = whole_lines(&client.said()).next().is_some();
            Job::end(&mut [&mut client, &mut server], Duration::from_secs(1));
            if reached {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// All that can be had here, podwire first; and a sentence for each that cannot.
///
/// # Errors
/// When podwire cannot be had.
pub fn all(world: &World, watch: &mut Watch) -> Result<(Vec<Contender>, Vec<String>), Failure> {
    watch.stage("making a pod behind each way out");
    let podwire = podwire(world, watch)?;
    let (mut there, mut absent) = (vec![podwire], Vec::new());
    for (name, made) in [
        ("the kernel's masquerading", kernel(world)),
        ("slirp4netns", slirp(world)),
    ] {
        match made {
            Ok(contender) => there.push(contender),
            Err(why) => absent.push(format!("{name} is left out: {}", why.message)),
        }
    }
    let mut reaching = Vec::new();
    for contender in there {
        let name = contender.name;
        if contender.reaches(world, watch)? {
            reaching.push(contender);
        } else if name == "podwire" {
            return Err(failed("podwire: the pod does not reach the world".into()));
        } else {
            absent.push(format!("{name} is left out: its pod does not reach the world"));
        }
    }
    Ok((reaching, absent))
}

fn podwire(world: &World, watch: &mut Watch) -> Result<Contender, Failure> {
    let at = HOME.to_string();
    let mtu = MTU.to_string();
    let args = [
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
        "--dns",
        "off",
    ];
    let spec = NodeSpec {
        name: "n1".into(),
        args: args.map(String::from).to_vec(),
        netns: Some(&world.home),
    };
    let nodes = Nodes::start(&[spec], "", watch)?;
    let pod = Pod::attach(pod_name("podwire"), &nodes.socket("n1"))?;
    Ok(Contender {
        name: "podwire",
        pod,
        _nodes: Some(nodes),
        _job: None,
    })
}

fn kernel(world: &World) -> Result<Contender, Failure> {
    installed("nft")?;
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let failure = |e: std::io::Error| failed(format!("nft: {e}"));
    let mut nft = world.home.within(|| nft.spawn())?.map_err(failure)?;
    if let Some(mut pipe) = nft.stdin.take() {
        pipe.write_all(MASQUERADE.as_bytes()).map_err(failure)?;
    }
    if !nft.wait().map_err(failure)?.success() {
        return Err(failed("the kernel does not masquerade here (nft refuses)".into()));
    }
    let [host, four] = KERNEL;
    let pod = Pod::bare(pod_name("kernel"), four, four.to_ipv6_mapped())?;
    let inside = NetNs::open(&Target::Pid(pod.pid()))?;
    let refused = |e: NetlinkError| failed(format!("no veth can be made: {e}"));
    world
        .home
        .within(|| {
            let mut batch = Batch::default();
            batch.create("a pod's veth", veth("pod0", IFNAME, inside.fd()));
            batch.send()?;
            let port = index("pod0")?;
            let mut batch = Batch::default();
            batch.set("a pod's veth up", up(port));
            batch.create("its address", address(port, net(host), AddressScope::Universe));
            batch.send()
        })?
        .map_err(refused)?;
    inside
        .within(|| {
            let eth0 = index(IFNAME)?;
            let mut batch = Batch::default();
            batch.set(
                "a pod's MTU",
                link(eth0, vec![LinkAttribute::Mtu(u32::from(MTU))]),
            );
            batch.set("a pod's lo up", up(LOOPBACK));
            batch.set("a pod's interface up", up(eth0));
            batch.create(
                "a pod's address",
                address(eth0, net(four), AddressScope::Universe),
            );
            batch.send()?;
            let mut batch = Batch::default();
            batch.create("its default route", default_route(eth0, IpAddr::V4(host), false));
            batch.send()
        })?
        .map_err(refused)?;
    Ok(Contender {
        name: "kernel",
        pod,
        _nodes: None,
        _job: None,
    })
}

fn slirp(world: &World) -> Result<Contender, Failure> {
    installed("slirp4netns")?;
    let four = Ipv4Addr::new(10, 0, 2, 100);
    let pod = Pod::bare(pod_name("slirp"), four, four.to_ipv6_mapped())?;
    let pid = pod.pid().to_string();
    let mut command = Command::new("slirp4netns");
    command
        .args(["--configure", "--mtu", &MTU.to_string(), "--userns-path"])
        .arg(format!("/proc/{pid}/ns/user"))
        .args([&pid, "tap0"])
        .stderr(Stdio::null());
    let started = world.home.within(|| Job::spawn(&mut command))?;
    let job = started.map_err(|e| failed(format!("slirp4netns could not be started: {e}")))?;
    Ok(Contender {
        name: "slirp4netns",
        pod,
        _nodes: None,
        _job: Some(job),
    })
}

/// Whether a program is there.
fn installed(program: &str) -> Result<(), Failure> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    let found = std::env::split_paths(&paths)
        .chain(also)
        .any(|dir| dir.join(program).is_file());
    match found {
        true => Ok(()),
        false => Err(failed(format!("{program} is not installed"))),
    }
}
