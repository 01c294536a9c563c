//! Open vSwitch's userspace datapath as a peer: VXLAN in another program than the kernel, and another TCP/IP
//! stack's view of the tunnel only above it.
//!
//! ```text
//!   the machine's kernel
//!     | br-tun (internal port, a TAP)        configured as flannel's device
//!   br-tun --- vxlan port, remote_ip n1
//!     : OVS looks up the route and the neighbour itself
//!   br-phy (internal port) has the underlay address
//!     |
//!   eth0
//! ```

use super::foreign::{Daemon, Machine, have, outer_checksums};
use super::netns::Netns;
use super::world::{Case, World, eventually};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("open_vswitch", |w| {
        // Without outer checksums, as it does by itself.
        peer(w, (1, 8472), 1450, "", false);
    }),
    Case::new("open_vswitch_at_another_vni_and_port", |w| {
        peer(w, (70_000, 4789), 1450, "options:csum=true", true);
    })
    .node_args(&["--vni", "70000", "--port", "4789"]),
    Case::new("open_vswitch_over_ipv6", |w| {
        peer(w, (1, 8472), 1430, "", true);
    })
    .underlay6(),
];

/// MAC of the machine's underlay interface; that of its link to the relay.
const MAC: &str = "02:00:00:00:00:03";
const TOOLS: &[&str] = &[
    "ovs-vswitchd",
    "ovsdb-server",
    "ovsdb-tool",
    "ovs-vsctl",
    "ovs-appctl",
];

/// Talk to a machine whose tunnel is a VXLAN port of OVS with more `options`; look whether its outer packets
/// have checksums.
fn peer(world: &mut World, (vni, port): (u32, u16), mtu: u16, options: &str, sums: bool) {
    if !have(TOOLS) {
        return;
    }
    let [near, .., far] = &world.underlay.hosts[..] else {
        unreachable!("there are more than two");
    };
    let (own, peer): (IpAddr, IpAddr) = match world.underlay6 {
        false => (far.ip4.into(), near.ip4.into()),
        true => (far.ip6.into(), near.ip6.into()),
    };
    let prefix = if own.is_ipv4() { 24 } else { 64 };
    let ovs = Ovs::start(&far.netns, &world.dir().join("ovs"));
    far.netns.ip("addr flush dev eth0");
    ovs.vsctl(&format!(
        "add-br br-phy -- set bridge br-phy datapath_type=netdev other_config:hwaddr={MAC} \
         -- add-port br-phy eth0"
    ));
    ovs.vsctl(&format!(
        "add-br br-tun -- set bridge br-tun datapath_type=netdev other_config:hwaddr={} \
         -- add-port br-tun vx0 -- set interface vx0 type=vxlan options:remote_ip={peer} \
         options:key={vni} options:dst_port={port} {options}",
        world.vtep_mac(9)
    ));
    let nodad = if own.is_ipv4() { "" } else { "nodad" };
    far.netns.ip(&format!(
        "link set br-phy up\naddr add {own}/{prefix} dev br-phy {nodad}\nlink set br-tun addrgenmode none\n"
    ));
    let pod = Netns::new();
    let machine = Machine {
        floods: true,
        ..Machine::new(world, (&far.netns, &pod), "br-tun", mtu, own)
    };
    let (a, _) = world.pair();
    eventually("OVS knows the way", Duration::from_secs(5), || {
        machine.reaches_at_all(a)
    });
    machine.talks(world);
    let (theirs, ours) = outer_checksums(&machine, "eth0", a, port);
    assert_eq!((theirs, ours), (sums, true));
}

/// The two daemons of OVS.
struct Ovs<'a> {
    netns: &'a Netns,
    dir: PathBuf,
    _daemons: [Daemon; 2],
}

impl<'a> Ovs<'a> {
    fn start(netns: &'a Netns, dir: &Path) -> Ovs<'a> {
        std::fs::create_dir(dir).expect("a directory");
        let path = |file: &str| dir.join(file).to_string_lossy().into_owned();
        let (data, socket) = (path("conf.db"), path("db.sock"));
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        let made = tool(netns, dir, "ovsdb-tool", &["create", &data, schema]);
        assert!(made.status.success(), "ovsdb-tool: {made:?}");
        let mut server = command(dir, "ovsdb-server");
        server.args([
            &data,
            &format!("--remote=punix:{socket}"),
            "--no-chdir",
            "-vconsole:err",
        ]);
        server.arg(format!("--unixctl={}", path("db.ctl")));
        let server = Daemon::start(netns, server);
        eventually("OVS's database answers", Duration::from_secs(5), || {
            let list = tool(
                netns,
                dir,
                "ovs-vsctl",
                &["--no-wait", &format!("--db=unix:{socket}"), "init"],
            );
            list.status.success()
        });
        let mut switch = command(dir, "ovs-vswitchd");
        // Without --disable-system it looks for the kernel's datapath.
        switch.args([
            &format!("unix:{socket}"),
            "--no-chdir",
            "--disable-system",
            "-vconsole:err",
        ]);
        switch.arg(format!("--unixctl={}", path("switch.ctl")));
        Ovs {
            netns,
            dir: dir.into(),
            _daemons: [Daemon::start(netns, switch), server],
        }
    }

    /// Change the configuration, and wait until it is in force.
    fn vsctl(&self, words: &str) {
        let db = format!("--db=unix:{}", self.dir.join("db.sock").display());
        let args: Vec<&str> = [&db, "--timeout=10"]
            .into_iter()
            .chain(words.split_whitespace())
            .collect();
        let out = tool(self.netns, &self.dir, "ovs-vsctl", &args);
        assert!(out.status.success(), "ovs-vsctl {words}: {out:?}");
    }
}

fn tool(netns: &Netns, dir: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = command(dir, program);
    command.args(args);
    netns
        .within(|| command.output())
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// A program of OVS that keeps to a directory.
fn command(dir: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(name, dir);
    }
    command
}
