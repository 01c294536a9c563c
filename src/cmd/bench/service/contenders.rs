//! Who is measured: podwire through a virtual address and without one, and what the kernel does for root.

use super::super::edge::work::Work;
use super::super::lab::{self, HOSTS, failed, hosts, pod_name};
use super::super::turns::{Contestant, Figure};
use super::super::{kernel, plan::Path};
use super::{balanced, manifests};
use crate::cmd::Failure;
use crate::cmd::lab::dir::PrivateDir;
use crate::cmd::lab::nodes::Nodes;
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::Watch;
use crate::sys::ns::NetNs;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

/// Servers behind each virtual address.
pub const BACKENDS: usize = 4;
/// The virtual addresses: of servers on the client's node, and on the other.
const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 96, 0, 7), Ipv4Addr::new(10, 96, 0, 8)];
/// The kernel's client, and the router it has; it is not on the bridge, whose answers would miss the router.
const CLIENT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 245, 0, 1), Ipv4Addr::new(10, 245, 0, 2)];
/// The router of pods on the kernel's bridges.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 254);

/// Pods on two hosts.
struct Pods {
    // In this order: pods go before what they hang on.
    client: Pod,
    /// On the client's host, and on the other.
    servers: [Vec<Pod>; 2],
    _nodes: Option<Nodes>,
    _hosts: [NetNs; 2],
    _dir: Option<PrivateDir>,
}

/// A client with the addresses it asks.
pub struct Contender {
    name: &'static str,
    pods: Rc<Pods>,
    /// Whether through virtual addresses.
    through: bool,
}

impl Contestant for Contender {
    fn name(&self) -> &'static str {
        self.name
    }
}

/// What is measured where.
pub type Case = (Work, Path);

/// All cases, in the order of the table.
pub fn cases() -> Vec<Case> {
    let works = [Work::Up(1), Work::Down(1), Work::Connect, Work::Tcp, Work::Udp];
    let on = |path| works.map(|work| (work, path));
    [on(Path::Same), on(Path::Cross)].concat()
}

/// Its name.
pub fn name((work, path): Case) -> String {
    format!("{}-{}", work.name(), path.name())
}

impl Contender {
    /// One measurement; no figures when it failed.
    ///
    /// # Errors
    /// When the end was asked for, or no process can be started.
    pub fn measure(
        &self,
        (work, path): Case,
        window: Duration,
        watch: &mut Watch,
    ) -> Result<Vec<Figure>, Failure> {
        let n = usize::from(path == Path::Cross);
        let servers: Vec<&Pod> = self.pods.servers[n].iter().collect();
        let (at, servers): (IpAddr, _) = match (self.through, servers.first()) {
            (false, Some(first)) => (first.four.into(), &servers[..1]),
            _ => (VIPS[n].into(), &servers[..]),
        };
        let figures = balanced::measure(work, &self.pods.client, at, servers, window, watch)?;
        let placed = |figure: Figure| Figure {
            what: format!("{}-{}", figure.what, path.name()),
            ..figure
        };
        Ok(figures.into_iter().map(placed).collect())
    }
}

/// All that can be had here, podwire first; and a sentence for each that cannot.
///
/// # Errors
/// When podwire cannot be had.
pub fn all(watch: &mut Watch) -> Result<(Vec<Contender>, Vec<String>), Failure> {
    watch.stage("making two hosts with a podwire node each");
    let ours = Rc::new(podwire(watch)?);
    let of = |name, pods: &Rc<Pods>, through| Contender {
        name,
        pods: Rc::clone(pods),
        through,
    };
    let mut there = vec![of("podwire", &ours, true), of("direct", &ours, false)];
    watch.stage("making two hosts with a kernel bridge each");
    let mut absent = Vec::new();
    match kernel() {
        Ok(pods) => there.push(of("kernel", &Rc::new(pods), true)),
        Err(why) => absent.push(format!("the kernel's DNAT is left out: {}", why.message)),
    }
    Ok((there, absent))
}

fn podwire(watch: &mut Watch) -> Result<Pods, Failure> {
    let hosts = hosts(lab::DEVICE, HOSTS)?;
    let dir = PrivateDir::make().map_err(|e| failed(format!("no directory can be made: {e}")))?;
    let also = ["--services".to_string(), dir.path().display().to_string()];
    let nodes = lab::nodes(&hosts, &also, watch)?;
    let pod = |name: &str, node: &str| Pod::attach(pod_name(name), &nodes.socket(node), Vec::new());
    let client = pod("client", "n1")?;
    let servers = |node: &str| -> Result<Vec<Pod>, Failure> {
        (1..=BACKENDS)
            .map(|n| pod(&format!("server-{n}"), node))
            .collect()
    };
    let servers = [servers("n1")?, servers("n2")?];
    let mut text = String::new();
    for ((name, at), servers) in [("same", VIPS[0]), ("cross", VIPS[1])].iter().zip(&servers) {
        text += &manifests::service(name, *at, None);
        text += &manifests::slice(name, &servers.iter().map(|pod| pod.four).collect::<Vec<_>>());
    }
    super::put(dir.path(), "services.yaml", &text)?;
    Ok(Pods {
        client,
        servers,
        _nodes: Some(nodes),
        _hosts: hosts,
        _dir: Some(dir),
    })
}

fn kernel() -> Result<Pods, Failure> {
    let hosts = hosts(lab::DEVICE, HOSTS)?;
    kernel::bridges(&hosts, HOSTS)?;
    kernel::route(&hosts[0], ROUTER)?;
    let client = kernel::routed_pod("client", &hosts[0], CLIENT, kernel::MTU)?;
    let mut last = 0;
    let mut servers = |host: &NetNs| -> Result<Vec<Pod>, Failure> {
        let each = (1..=BACKENDS).map(|n| {
            last += 1;
            let four = Ipv4Addr::new(10, 244, 0, last);
            kernel::bridged_pod(&format!("server-{n}"), host, four, Some(ROUTER))
        });
        each.collect()
    };
    let servers = [servers(&hosts[0])?, servers(&hosts[1])?];
    let services = VIPS.iter().zip(&servers).map(|(at, servers)| {
        let endpoints = servers.iter().map(|pod| pod.four).collect();
        (IpAddr::from(*at), endpoints)
    });
    kernel::translate(&hosts[0], &manifests::rules(&services.collect::<Vec<_>>()))?;
    Ok(Pods {
        client,
        servers,
        _nodes: None,
        _hosts: hosts,
        _dir: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_work_is_done_on_one_node_and_across_two() {
        let names: Vec<String> = cases().into_iter().map(name).collect();
        assert_eq!(names.len(), 10);
        assert_eq!((&names[0][..], &names[9][..]), ("up1-same", "udp-rr-cross"));
    }
}
