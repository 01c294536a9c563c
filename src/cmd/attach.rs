//! `podwire attach`: hang an existing network namespace on the node.

use super::detach::say_or_undo;
use super::{Exit, Failure};
use crate::api::place::Socket;
use crate::api::{AttachRequest, Client};
use crate::model::{Bandwidth, LabelChange, Labels, Mac, NamedPort, PodMtu, PodName, PortMapping, Rate};
use crate::pod::attach::{AttachError, Attached, Blame, attach};
use crate::sys::ns::{NetNs, Target};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// Attach an existing network namespace as a pod.
///
/// Makes an interface in the namespace, with addresses and default routes, and hands it to the node. Works
/// without root for namespaces of your own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire attach --netns blue --name web            (made by `ip netns add blue`)
  podwire attach --pid 4711 --name shop/db --ip 10.244.1.9
  podwire attach --netns blue --name web --label app=web --container-port http:8080
  podwire attach --netns blue --name web --ingress-rate 100M --egress-rate 20M:1M
  podwire attach --netns blue --name web -p 0.0.0.0:8080:80 -p 127.0.0.1:5353:53/udp")]
pub struct Args {
    /// The namespace: a name of `ip netns`, or a path such as /run/netns/blue
    #[arg(
        long,
        value_name = "PATH|NAME",
        required_unless_present = "pid",
        conflicts_with = "pid"
    )]
    pub netns: Option<String>,
    /// A process in the namespace; the pod goes when it ends
    #[arg(long)]
    pub pid: Option<u32>,
    /// What the pod shall have.
    #[command(flatten)]
    pub wishes: Wishes,
    /// Print the pod as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a person may choose for a pod.
#[derive(Clone, Debug, clap::Args)]
pub struct Wishes {
    /// The pod's name: NAMESPACE/NAME, or NAME in the namespace "default"
    #[arg(long, value_name = "NAME")]
    pub name: PodName,
    /// A certain IPv4 address of the node's subnet; the next free one otherwise
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// A certain IPv6 address of the node's subnet; otherwise one that mirrors the IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// A certain MAC; otherwise one derived from the address
    #[arg(long)]
    pub mac: Option<Mac>,
    /// MTU of the interface; the node's otherwise. A larger one serves between pods of this node that have it:
    /// towards others the pod is told what the path takes (path MTU discovery)
    #[arg(long)]
    pub mtu: Option<u16>,
    /// Publish a port, or a range of them: [HOSTIP:]HOSTPORT[-LAST]:PODPORT[-LAST][/tcp|/udp], or one port that is the
    /// same on both. On this host only (127.0.0.1 and ::1) unless HOSTIP says more: 0.0.0.0 is every IPv4 address of the
    /// host, [::] every IPv6 address. May be given often
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<PortMapping>,
    /// A label, KEY=VALUE, by which Services select the pod. May be given often
    #[arg(short, long, value_name = "LABEL", value_parser = label)]
    pub label: Vec<LabelChange>,
    /// A name for one of the pod's ports, NAME:PORT[/tcp|/udp|/sctp], which Services may have as targetPort. May be given
    /// often
    #[arg(long, value_name = "NAME:PORT")]
    pub container_port: Vec<NamedPort>,
    /// Limit what the pod receives, in bits per second: RATE[:BURST], as 100M or 100M:2M. BURST bits pass at once after a
    /// time of silence; without it what the rate gives in 10 ms, at least 64 KiB
    #[arg(long, value_name = "RATE")]
    pub ingress_rate: Option<Rate>,
    /// Limit what the pod sends, in the same way
    #[arg(long, value_name = "RATE")]
    pub egress_rate: Option<Rate>,
    /// Name of the interface in the pod
    #[arg(long, default_value = "eth0")]
    pub ifname: String,
}

impl Wishes {
    /// The request to the node, with neither path nor holder yet.
    pub fn request(&self) -> AttachRequest {
        AttachRequest {
            pod: self.name.clone(),
            ip4: self.ip,
            ip6: self.ip6,
            mac: self.mac,
            mtu: self.mtu.map(PodMtu),
            ifname: self.ifname.clone(),
            netns: None,
            holder: None,
            attachment: None,
            aliases: Vec::new(),
            publish: self.publish.clone(),
            labels: self.labels(),
            ports: self.container_port.clone(),
            bandwidth: Bandwidth::of(self.ingress_rate, self.egress_rate),
        }
    }

    fn labels(&self) -> Labels {
        let given = self.label.iter().cloned();
        given.filter_map(|l| Some((l.key, l.value?))).collect()
    }
}

/// A label that is set.
fn label(s: &str) -> Result<LabelChange, String> {
    match s.parse::<LabelChange>() {
        Ok(change) if change.value.is_some() => Ok(change),
        Ok(_) => Err(format!("{s:?} has no value (write KEY=VALUE)")),
        Err(e) => Err(e.to_string()),
    }
}

/// Run it.
///
/// # Errors
/// Whatever keeps the pod from being attached; nothing is left then.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let target = match (args.netns, args.pid) {
        (Some(name), _) => name.parse().map_err(AttachError::Ns)?,
        (None, Some(pid)) => Target::Pid(pid),
        (None, None) => {
            return Err(Failure::new(
                Exit::Usage,
                "name a namespace with --netns or --pid",
            ));
        }
    };
    let netns = NetNs::open(&target).map_err(AttachError::Ns)?;
    let mut request = args.wishes.request();
    match target {
        Target::Path(path) => request.netns = Some(absolute(path)?),
        Target::Pid(pid) => request.holder = Some(pid),
    }
    // No lifeline: what made the namespace is not podwire's to end.
    let attached = attach(Client::connect(socket)?, &request, &netns, None)?;
    let said = if args.json {
        json(&attached.pod)?
    } else {
        format!("{}\n", sentence(&attached))
    };
    say_or_undo(&said, &attached.pod.pod, socket)
}

/// One friendly line.
pub fn sentence(attached: &Attached) -> String {
    let pod = &attached.pod;
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let published = match &pod.publish[..] {
        [] => String::new(),
        some => format!(
            ", publishes {}",
            some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        ),
    };
    format!(
        "{} is attached: {} on {} (mtu {}, {:.1} ms){published}",
        pod.pod,
        addresses.join(" and "),
        pod.ifname,
        pod.mtu.0,
        attached.in_namespace.as_secs_f64() * 1e3,
    )
}

/// `value` as indented JSON, with a line end.
///
/// # Errors
/// When it has no JSON form, which is a bug.
pub fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(Exit::Failed, e))?;
    Ok(text + "\n")
}

/// The node may run elsewhere in the tree, and outlives this shell's working directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|e| Failure::new(Exit::Usage, format!("{}: {e}", path.display())))
}

impl From<AttachError> for Failure {
    fn from(e: AttachError) -> Failure {
        let exit = match e.blame() {
            Blame::Usage => Exit::Usage,
            Blame::Permission => Exit::Permission,
            Blame::NoNode => Exit::Unavailable,
            Blame::Taken => Exit::Taken,
            Blame::NotFound => Exit::NotFound,
            Blame::Exhausted => Exit::Exhausted,
            Blame::Failed => Exit::Failed,
        };
        Failure::new(exit, e)
    }
}
