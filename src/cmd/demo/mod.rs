//! `podwire demo`: a pod network on one machine, made, measured and taken down within seconds.
//!
//! ```text
//!  podwire demo ──┬── podwire node (a) ── 127.77.x.1 ─┐   one process per node, in the host's own
//!   plans,        ├── podwire node (b) ── 127.77.x.2 ─┘   network namespace; VXLAN over loopback
//!   starts,       │
//!   asks,         ├── pause (demo/a1) ─ eth0, a TAP of node a    one pause per pod: user, network
//!   reports,      ├── pause (demo/a2) ─ eth0, a TAP of node a    and other namespaces
//!   clears        ├── pause (demo/b1) ─ eth0, a TAP of node b
//!                 └── pings and streams, run in the pods for as long as they measure
//! ```
//!
//! Everything is this one binary under other names, so nothing needs to be installed. All processes are
//! children of the demo: they are ended in order when it ends, and die with it when it is killed.

mod measure;
mod net;
mod plan;
mod report;

use super::lab::watch::Watch;
use super::{Exit, Failure, complain, doctor, say};
use crate::daemon::links::links;
use crate::sys::netlink::{Batch, LOOPBACK, NetlinkError, up};
use net::Net;
use plan::{MAX_NODES, MAX_PODS, Plan};
use report::Report;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Show podwire at work: nodes and pods on this machine, measured and taken down again.
///
/// Starts nodes that know each other, hangs pods on them, and measures in the pods: the round-trip time of
/// pings between each two, over IPv4 and IPv6, and what one TCP stream carries between two pods of a node and
/// between pods of two nodes. No root needed, nothing to install, nothing left behind; it takes some seconds.
/// The nodes are ordinary ones that tunnel over loopback addresses with an MTU of 1500.
///
/// Exits with 0 only when every pair and every stream worked, and no node ended by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire demo
  podwire demo --nodes 3 --pods 4
  podwire demo --keep                               (then enter a pod and look around)
  podwire demo --json | jq .throughput")]
pub struct Args {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// Number of pods on each node; 128 in all at most
    #[arg(long, value_name = "M", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=MAX_PODS as i64))]
    pods: u8,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// Leave it running until Ctrl-C, and tell how to enter a pod
    #[arg(long)]
    keep: bool,
}

/// Run it.
///
/// # Errors
/// When the demo cannot run here or is interrupted; pairs that fail are an exit code.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let (nodes, pods) = (args.nodes, usize::from(args.pods));
    plan::fits(nodes, pods).map_err(|e| Failure::new(Exit::Usage, e))?;
    doctor::pods_can_be_made()?;
    let talks = !args.json || std::io::stderr().is_terminal();
    let mut watch =
        Watch::new(talks).map_err(|e| Failure::new(Exit::Failed, format!("signals cannot be taken: {e}")))?;
    bring_lo_up()?;
    let plan = Plan::new(nodes, pods, std::process::id()).map_err(no_underlay)?;
    let mut net = Net::up(plan, &mut watch)?;
    if !args.json {
        say(&greeting(args, &watch))?;
    }
    let report = measure::measure(&net, &mut watch)?;
    show(&report, args.json)?;
    let mut dead = net.nodes.casualties();
    if args.keep && dead.is_empty() {
        keep(&mut net, &watch, args.json)?;
        dead = net.nodes.casualties();
        // Who ended the demo may have ended its nodes with it.
        dead.retain(|_| watch.check().is_ok());
    }
    for sentence in &dead {
        complain(sentence);
    }
    drop(net);
    Ok(if report.ok && dead.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// The nodes meet on loopback, which a new network namespace (`unshare -Urn`) has down; packets for it vanish then
/// without an error.
fn bring_lo_up() -> Result<(), Failure> {
    // Where the kernel does not list interfaces, pairs that fail will tell.
    if links().unwrap_or_default().iter().all(|l| l.up || !l.loopback) {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.set("bringing lo up", up(LOOPBACK));
    let what = "the nodes of a demo meet on loopback, but lo is down in this network namespace";
    let remedy = "as its root: ip link set lo up";
    let failed = |e| match e {
        NetlinkError::Refused {
            errno: libc::EPERM, ..
        } => Failure::new(Exit::Permission, format!("{what} ({remedy})")),
        e => Failure::new(Exit::Failed, format!("{what}: {e} ({remedy})")),
    };
    batch.send().map_err(failed)?;
    complain("lo was down in this network namespace, and is up now");
    Ok(())
}

fn greeting(args: &Args, watch: &Watch) -> String {
    let count = |n: u8, what| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let user = rustix::process::geteuid();
    format!(
        "{} with {} each, up in {} ms as {}.\n\n",
        count(args.nodes, "node"),
        count(args.pods, "pod"),
        watch.elapsed().as_millis(),
        if user.is_root() {
            "root (which is not needed)".into()
        } else {
            format!("user {}, without root", user.as_raw())
        }
    )
}

fn show(report: &Report, json: bool) -> Result<(), Failure> {
    if !json {
        return say(&report.page());
    }
    let text = serde_json::to_string(report).map_err(|e| Failure::new(Exit::Failed, e))?;
    say(&format!("{text}\n"))
}

fn keep(net: &mut Net, watch: &Watch, json: bool) -> Result<(), Failure> {
    let text = hints(net, &program());
    if json {
        let _ = std::io::stderr().write_all(text.as_bytes());
    } else {
        say(&format!("\n{text}"))?;
    }
    watch.until_asked(&mut net.nodes.jobs());
    Ok(())
}

/// How to look around in a demo that stays.
fn hints(net: &Net, program: &str) -> String {
    let (first, last) = (&net.plan.pods[0], &net.plan.pods[net.plan.pods.len() - 1]);
    let podwire = |node: usize| {
        let socket = net.nodes.socket(&net.plan.nodes[node].name);
        format!("{program} --socket {}", socket.display())
    };
    let (a, z) = (podwire(first.node), podwire(last.node));
    let mut text = format!(
        "The demo stays until Ctrl-C. In another terminal:\n  {a} exec {} -- sh\n  {a} status\n",
        first.name
    );
    if last.node != first.node {
        text += &format!("  {z} exec {} -- sh\n", last.name);
    }
    let addresses = net.plan.pods.iter().zip(&net.pods);
    for (plan, pod) in addresses {
        text += &format!("{} has {} and {}\n", plan.name, pod.four, pod.six);
    }
    text
}

/// The path to this binary, as a person in this directory would write it.
fn program() -> String {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("podwire"));
    let here = std::env::current_dir().unwrap_or_default();
    match exe.strip_prefix(&here) {
        Ok(below) if below.components().count() > 1 => below.display().to_string(),
        Ok(below) => Path::new(".").join(below).display().to_string(),
        Err(_) => exe.display().to_string(),
    }
}

fn no_underlay(e: std::io::Error) -> Failure {
    let message = match e.kind() {
        std::io::ErrorKind::AddrNotAvailable => {
            "no address in 127.77.0.0/16 can be used (as root: ip link set lo up)".into()
        }
        std::io::ErrorKind::AddrInUse => {
            "UDP ports 8472 and 18472 are in use on all addresses of 127.77.0.0/16 that were tried (end other \
             demos, or what holds these ports on all addresses)"
                .into()
        }
        _ => format!("no UDP socket can be bound in 127.77.0.0/16: {e}"),
    };
    Failure::new(Exit::Failed, message)
}
