//! `podwire status`, gathered: what the control thread and the data path know, and what a person should see.

use super::admin::{Admin, Worker};
use super::command::Report;
use super::config::Config;
use super::host_port::HostLink;
use super::source::Source;
use crate::api::{HostPortInfo, PeerInfo, PeerReach, Status};
use crate::model::{DropReason, Instant, OffloadMode, StoreStatus};
use ipnet::IpNet;

/// Peers with one and the same problem that are named; of thousands only the first can be read.
const FEW: usize = 5;

/// Everything about the node. `more` are the control thread's problems.
pub fn status(
    config: &Config,
    admin: &Admin<'_>,
    worker: &dyn Worker,
    source: &Source,
    host: Option<&Result<HostLink, String>>,
    more: Vec<String>,
    now: Instant,
) -> Status {
    let report = admin.report();
    let store = source.store_status().map(|s| StoreStatus {
        leases: Vec::new(),
        ..s
    });
    let mut problems = match &store {
        Some(store) => store.alarms.clone(),
        None => source.problems(),
    };
    problems.extend(more);
    if report.is_none() {
        problems.insert(0, "the data path did not answer within 1 s (see the log)".into());
    }
    let report = report.unwrap_or_default();
    if let Some(Ok(port)) = host {
        problems.extend(port.problems().cloned());
    }
    problems.extend(self::problems(config, &report));
    let four = config.subnet4.map(IpNet::from);
    Status {
        node: config.node.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: u64::try_from(now.secs()).unwrap_or(0),
        pid: std::process::id(),
        underlay: worker.underlay(),
        subnets: four.into_iter().chain(config.subnet6.map(IpNet::from)).collect(),
        vni: config.vni.into(),
        pod_mtu: config.pod_mtu,
        pods: admin.pods(Some(&report), now),
        counters: report.counters.with_drops(&report.drops),
        drops: report
            .drops
            .iter()
            .map(|(r, n)| (r.label().to_string(), n))
            .collect(),
        offloads: report.offloads,
        egress: report.egress,
        store,
        dns: None,
        host_port: host.map(|host| match host {
            Ok(port) => port.info(report.host),
            Err(why) => HostPortInfo {
                interface: config.host_port.interface().into(),
                missing: Some(why.clone()),
                ..HostPortInfo::default()
            },
        }),
        peers: report.peers,
        problems,
    }
}

/// What in `report` a person should look at, worst first.
pub fn problems(config: &Config, report: &Report) -> Vec<String> {
    let mut found = Vec::new();
    let host = report
        .host
        .iter()
        .map(|c| ("this host's own port in the pod network".into(), c));
    let pods = report.ports.iter().map(|(pod, c)| (format!("pod {pod}"), c));
    let parked = host.chain(pods).filter(|(_, c)| c.parked_ms > 0);
    let parked = parked.map(|(what, c)| {
        format!(
            "{what} is not read for {} s more, as podwire panicked at its frames, {} times in all: that is a bug, which \
             the log tells more of (please report it)",
            c.parked_ms.div_ceil(1000),
            c.panics
        )
    });
    a_few(&mut found, parked, "so are also");
    let panics = report.counters.panics;
    let others = panics.flow + panics.peer + panics.frames + panics.node;
    if others > 0 {
        found.push(format!(
            "podwire panicked {others} times at flows to the outside, at what peers sent or were sent, or at nothing in \
             particular: that is a bug, which the log tells more of (please report it)"
        ));
    }
    let segments = report.offloads.udp_gso;
    let since = |ms: Option<u64>| format!("{} s", ms.unwrap_or(0) / 1000);
    let silent = report.peers.iter().filter(|p| p.state == PeerReach::Silent);
    let silent = silent.map(|peer| {
        format!(
            "peer {} is silent since {}, so most frames to it are dropped (peer_silent) and it is asked along with \
             them: check that its node runs, and the network between here and {}",
            peer.name,
            since(peer.state_ms),
            peer.underlay
        )
    });
    a_few(&mut found, silent, "silent are also");
    let deaf = |p: &&PeerInfo| p.state != PeerReach::Silent && p.deaf_ms.is_some();
    let deaf = report.peers.iter().filter(deaf).map(|peer| {
        format!(
            "peer {} does not hear this node since {}, as it says, though it is heard: something on the way from \
             here to {} drops datagrams (a firewall, a route)",
            peer.name,
            since(peer.deaf_ms),
            peer.underlay
        )
    });
    a_few(&mut found, deaf, "deaf are also");
    let slow = report.peers.iter().filter(|p| segments && !p.gso).map(|peer| {
        format!(
            "the kernel refuses trains of datagrams (UDP_SEGMENT) on the way to peer {}, so each costs a call; it \
             is tried again each minute (look at checksum offload and IPsec on that way)",
            peer.name
        )
    });
    a_few(&mut found, slow, "the same holds for");
    let unheard = |p: &&PeerInfo| p.last_heard_ms.is_none() && p.datagrams_to_peer > 0;
    let unheard = report.peers.iter().filter(unheard).map(|peer| {
        format!(
            "peer {} was sent {} datagrams and was never heard: check that a node runs at {}, that its \
             peers file names this node, and that UDP port {} is open both ways",
            peer.name,
            peer.datagrams_to_peer,
            peer.underlay,
            peer.underlay.port()
        )
    });
    a_few(&mut found, unheard, "never heard are also");
    for (reason, n) in report.drops.iter() {
        found.extend(hint(reason).map(|hint| format!("{n} drops for {}: {hint}", reason.label())));
    }
    let o = &report.offloads;
    let buffer = |what: &str, got: usize, want: usize, sysctl: &str| {
        (got > 0 && got < want).then(|| {
            format!(
                "the kernel granted a {what} buffer of {got} bytes of the {want} asked \
                 (as root: sysctl -w net.core.{sysctl}={want})"
            )
        })
    };
    found.extend(buffer(
        "receive",
        o.receive_buffer,
        config.receive_buffer,
        "rmem_max",
    ));
    found.extend(buffer("send", o.send_buffer, config.send_buffer, "wmem_max"));
    let known = *o != Default::default();
    if known && config.udp_gso && !o.udp_gso {
        found.push("the kernel refuses UDP_SEGMENT: each datagram costs a call (Linux 4.18 has it)".into());
    }
    if known && config.udp_gro && !o.udp_gro {
        found
            .push("the kernel refuses UDP_GRO: each datagram is handled by itself (Linux 5.0 has it)".into());
    }
    if known && config.tap == OffloadMode::On && o.tap == OffloadMode::Off {
        found.push(
            "some pods' TAPs are without offloads, so each of their packets crosses by itself (the kernel has none, or \
             they were attached with offload.tap off)"
                .into(),
        );
    }
    found
}

/// The first of many problems that differ by the peer only, and how many there are besides.
fn a_few(found: &mut Vec<String>, mut problems: impl Iterator<Item = String>, more: &str) {
    found.extend(problems.by_ref().take(FEW));
    match problems.count() {
        0 => {}
        1 => found.push(format!("{more} 1 peer (see the list of peers)")),
        n => found.push(format!("{more} {n} peers (see the list of peers)")),
    }
}

/// The remedy for drops that come from configuration rather than from traffic.
fn hint(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::UnknownPeer => "a node sends here that no entry of the peers file names (add it)",
        DropReason::WrongVni => "a node sends with another VNI (set the same overlay.vni everywhere)",
        DropReason::WrongVtepMac => {
            "a node believes in another VTEP MAC (set vtep_mac in its peers file to this node's)"
        }
        DropReason::NotPeersAddress => {
            "a peer sends from addresses outside its subnet (compare its subnet with the peers file)"
        }
        DropReason::NoUnderlay => {
            "a peer's address is of a family this node does not bind (add an address to overlay.bind)"
        }
        DropReason::ReceiveOverflow => {
            "datagrams came faster than they were read (raise limits.receive_buffer and net.core.rmem_max)"
        }
        DropReason::UnderlaySend => {
            "the kernel refuses datagrams (check overlay.underlay_mtu against the network, and the routes)"
        }
        DropReason::PingForbidden => {
            "this host lets the node's group send no echo requests (as root: sysctl -w \
             net.ipv4.ping_group_range=\"0 2147483647\")"
        }
        DropReason::HostSockets => {
            "this host has no more sockets or descriptors for what pods open outside (raise ulimit -n of the node)"
        }
        DropReason::SpoofedIp | DropReason::SpoofedMac => {
            "a pod sends from an address that is not its own (`podwire pods` tells which)"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::OffloadInfo;
    use crate::daemon::config::given::Given;
    use crate::daemon::config::keys;
    use crate::daemon::links::Host;
    use crate::model::{PodMtu, PortCounters};

    #[test]
    fn problems_come_with_remedies() {
        let mut given = Given::default();
        given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
        given.flag(&keys::NODE, vec!["n1".into()]);
        let config = Config::understand(&given, &Host::default()).unwrap();
        let mut report = Report::default();
        assert_eq!(problems(&config, &report), [""; 0]);
        let parked = PortCounters {
            panics: 3,
            parked_ms: 2500,
            ..PortCounters::default()
        };
        report.ports.push(("a".parse().unwrap(), parked));
        report.counters.panics.flow = 2;
        let told = problems(&config, &report);
        assert!(
            told[0].starts_with(
                "pod default/a is not read for 3 s more, as podwire panicked at its frames, 3 times in all"
            ) && told[1].starts_with("podwire panicked 2 times at flows"),
            "{told:?}"
        );
        report.host = Some(report.ports[0].1.clone());
        let told = problems(&config, &report);
        assert!(
            told[0].starts_with("this host's own port in the pod network is not read for 3 s more"),
            "{told:?}"
        );
        report = Report::default();
        report.drops.add(DropReason::WrongVni, 3);
        report.drops.add(DropReason::TtlExceeded, 3);
        report.offloads = OffloadInfo {
            receive_buffer: 4 << 20,
            send_buffer: 8 << 20,
            udp_gro: true,
            ..OffloadInfo::default()
        };
        report.peers.push(PeerInfo {
            name: "n2".into(),
            underlay: "192.0.2.2:8472".parse().unwrap(),
            subnets: vec![],
            state: PeerReach::Unheard,
            state_ms: None,
            deaf_ms: None,
            last_heard_ms: None,
            rtt_us: None,
            loss_percent: None,
            pod_mtu: PodMtu(1450),
            gso: true,
            datagrams_to_peer: 12,
            bytes_to_peer: 1200,
            datagrams_from_peer: 0,
            bytes_from_peer: 0,
        });
        let found = problems(&config, &report);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].contains("n2 was sent 12 datagrams"));
        assert!(found[1].contains("overlay.vni"));
        assert!(found[2].contains("net.core.rmem_max=8388608"));
        assert!(found[3].contains("UDP_SEGMENT"));
        // A kernel that segments, but not along this way.
        report.offloads.udp_gso = true;
        report.peers[0].gso = false;
        let found = problems(&config, &report);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found[0].contains("UDP_SEGMENT) on the way to peer n2"),
            "{found:#?}"
        );
        // Thousands of peers are not thousands of lines.
        report.peers = vec![report.peers[0].clone(); 5000];
        let found = problems(&config, &report);
        assert_eq!(found.len(), 2 * (FEW + 1) + 2, "{found:#?}");
        assert_eq!(found[5], "the same holds for 4995 peers (see the list of peers)");
        assert_eq!(
            found[11],
            "never heard are also 4995 peers (see the list of peers)"
        );
        report.peers.truncate(6);
        assert!(problems(&config, &report)[5].ends_with("1 peer (see the list of peers)"));
        // One that was heard, and is no longer; and one that does not hear.
        report.peers.truncate(1);
        let peer = &mut report.peers[0];
        (peer.gso, peer.last_heard_ms) = (true, Some(9000));
        (peer.state, peer.state_ms) = (PeerReach::Silent, Some(5000));
        let found = problems(&config, &report)[0].clone();
        assert!(found.starts_with("peer n2 is silent since 5 s"), "{found}");
        let peer = &mut report.peers[0];
        (peer.state, peer.deaf_ms) = (PeerReach::Up, Some(7000));
        let found = problems(&config, &report)[0].clone();
        assert!(
            found.starts_with("peer n2 does not hear this node since 7 s"),
            "{found}"
        );
    }
}
