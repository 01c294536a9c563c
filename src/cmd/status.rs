//! `podwire status`: a node at a glance.

use super::pods::listing;
use super::table::{age, bytes, table};
use super::{Exit, Failure, Paint, leases, say};
use crate::api::place::Socket;
use crate::api::{Client, DnsServer, DnsStatus, HostPortInfo, PeerInfo, PeerReach, Reply, Request, Status};
use crate::model::{DropReason, NodeCounters, OffloadMode};
use std::fmt::Write;

/// Networks of the host's port that are named; of thousands nobody reads all.
const FEW: usize = 4;

/// The head of the table of peers.
pub(super) const PEERS: [&str; 11] = [
    "PEER", "UNDERLAY", "SUBNETS", "STATE", "HEARD", "RTT", "LOSS", "MTU", "GSO", "SENT", "RECEIVED",
];

/// The flags of `podwire status`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  podwire status
  podwire status --json | jq .peers
  podwire status --socket /run/podwire/n2.sock")]
pub struct Args {
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// Show the node at `socket`.
///
/// # Errors
/// When it does not answer.
pub fn run(args: &Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let status = match client.call(&Request::Status)? {
        Reply::Status(status) => *status,
        other => {
            return Err(Failure::new(
                Exit::Failed,
                format!("the node answered something else: {other:?}"),
            ));
        }
    };
    if args.json {
        let text = serde_json::to_string_pretty(&status);
        return say(&format!(
            "{}\n",
            text.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?
        ));
    }
    say(&show(&status, Paint::stdout()))
}

/// The whole page.
pub fn show(s: &Status, paint: Paint) -> String {
    let mut out = String::new();
    let join = |v: Vec<String>| v.join(", ");
    let _ = writeln!(
        out,
        "{}  podwire {}, pid {}, up {}",
        paint.with(1, &s.node),
        s.version,
        s.pid,
        age(s.uptime_s)
    );
    let _ = writeln!(
        out,
        "  pods      {}, MTU {}",
        join(s.subnets.iter().map(ToString::to_string).collect()),
        s.pod_mtu.0
    );
    let _ = writeln!(
        out,
        "  underlay  {}, VNI {}",
        join(s.underlay.iter().map(ToString::to_string).collect()),
        s.vni
    );
    if let Some(store) = &s.store {
        let _ = writeln!(out, "  store     {}", leases::line(store));
    }
    if let Some(dns) = &s.dns {
        let _ = writeln!(out, "  dns       {}", self::dns(dns));
    }
    if let Some(host) = &s.host_port {
        let _ = writeln!(out, "  host      {}", self::host(host));
    }
    let _ = writeln!(out, "  offloads  {}", offloads(s));
    let _ = writeln!(out, "  egress    {}", egress(s));
    let _ = writeln!(out, "  traffic   {}", traffic(&s.counters));
    if !s.problems.is_empty() {
        let _ = writeln!(out, "\n{}", paint.with(1, "problems"));
    }
    for problem in &s.problems {
        let _ = writeln!(out, "  {} {problem}", paint.with(33, "!"));
    }
    let peers: Vec<_> = s.peers.iter().map(peer).collect();
    list(&mut out, paint, "peers", peers.len(), &table(&PEERS, &peers));
    list(&mut out, paint, "pods", s.pods.len(), &listing(&s.pods));
    let drops = s.drops.iter().map(|(label, n)| {
        let reason = DropReason::ALL.iter().find(|r| r.label() == label);
        vec![
            label.clone(),
            n.to_string(),
            reason.map_or("", |r| r.explain()).into(),
        ]
    });
    let drops: Vec<_> = drops.collect();
    let drops_table = table(&["REASON", "COUNT", "MEANING"], &drops);
    list(&mut out, paint, "drops", drops.len(), &drops_table);
    out
}

fn host(h: &HostPortInfo) -> String {
    if let Some(why) = &h.missing {
        return format!("has no port in the pod network: {why}");
    }
    let join = |all: Vec<String>| all.join(", ");
    let networks = match h.networks.len() {
        0..=FEW => join(h.networks.iter().map(ToString::to_string).collect()),
        n => format!("{n} networks"),
    };
    format!(
        "{} {}, reaches {networks}; {} in, {} out, {} dropped",
        h.interface,
        join(h.addresses.iter().map(ToString::to_string).collect()),
        bytes(h.counters.bytes_to_pod),
        bytes(h.counters.bytes_from_pod),
        h.counters.drops
    )
}

fn dns(d: &DnsStatus) -> String {
    let server = |s: &DnsServer| {
        // The port of DNS goes without saying.
        let at = match s.at.port() {
            53 => s.at.ip().to_string(),
            _ => s.at.to_string(),
        };
        if s.silent { format!("{at} (silent)") } else { at }
    };
    let servers: Vec<String> = d.servers.iter().map(server).collect();
    let asked = match servers.is_empty() {
        true => "asks nobody".into(),
        false => format!("asks {}", servers.join(", ")),
    };
    let count = |kind: &str| d.answers.get(kind).copied().unwrap_or(0);
    format!(
        "{} names, pods below {}, {asked}; {} answers of its own, {} from {} cached, {} by resolvers, {} failed",
        d.names,
        d.domain,
        count("zone"),
        count("cache"),
        d.cached,
        count("upstream"),
        count("failed")
    )
}

fn offloads(s: &Status) -> String {
    let o = &s.offloads;
    format!(
        "TAP {}, UDP GSO {}, UDP GRO {}, {} segments a send, buffers {} in, {} out",
        on(o.tap == OffloadMode::On),
        on(o.udp_gso),
        on(o.udp_gro),
        o.gso_max_segs,
        bytes(o.receive_buffer as u64),
        bytes(o.send_buffer as u64)
    )
}

fn egress(s: &Status) -> String {
    let e = &s.egress;
    format!(
        "{}, {} TCP flows, {} datagram sockets",
        on(e.open),
        e.tcp_flows,
        e.datagram_sockets
    )
}

fn on(b: bool) -> &'static str {
    if b { "on" } else { "off" }
}

fn traffic(c: &NodeCounters) -> String {
    let mean = |n: u64, by: u64| bytes(n.checked_div(by).unwrap_or(0));
    format!(
        "{} a TAP read, {} a TAP write, {:.1} datagrams a send, {:.1} a receive, {} dropped",
        mean(c.tap_read_bytes, c.tap_reads),
        mean(c.tap_write_bytes, c.tap_writes),
        ratio(c.datagrams_to_peers, c.underlay_sends),
        ratio(c.datagrams_from_peers, c.underlay_recvs),
        c.dropped
    )
}

/// A row of the table of peers.
pub(super) fn peer(p: &PeerInfo) -> Vec<String> {
    vec![
        p.name.clone(),
        p.underlay.to_string(),
        p.subnets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(","),
        state(p),
        p.last_heard_ms
            .map_or("never".into(), |ms| format!("{} ago", age(ms / 1000))),
        p.rtt_us
            .map_or("-".into(), |us| format!("{:.2} ms", us as f64 / 1000.0)),
        p.loss_percent.map_or("-".into(), |l| format!("{l} %")),
        p.pod_mtu.0.to_string(),
        on(p.gso).into(),
        bytes(p.bytes_to_peer),
        bytes(p.bytes_from_peer),
    ]
}

/// Whether a peer is there, and since when. One that does not hear this node is of little use either.
fn state(p: &PeerInfo) -> String {
    let since = |ms: Option<u64>| age(ms.unwrap_or(0) / 1000);
    match (p.state, p.deaf_ms) {
        (PeerReach::Silent, _) => format!("SILENT {}", since(p.state_ms)),
        (_, Some(ms)) => format!("DEAF {}", since(Some(ms))),
        (PeerReach::Up, None) => format!("up {}", since(p.state_ms)),
        (PeerReach::Unheard, None) => "-".into(),
    }
}

/// A table under its title and the number of its rows; nothing when there are none.
fn list(out: &mut String, paint: Paint, title: &str, rows: usize, table: &str) {
    if rows > 0 {
        let _ = writeln!(out, "\n{} ({rows})", paint.with(1, title));
        for line in table.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
}

fn ratio(n: u64, by: u64) -> f64 {
    if by == 0 { 0.0 } else { n as f64 / by as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodMtu;

    #[test]
    fn a_page_aligns_and_explains() {
        let mut status = Status {
            node: "n1".into(),
            version: "0".into(),
            uptime_s: 200,
            pid: 1,
            underlay: vec!["0.0.0.0:8472".parse().unwrap()],
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            vni: 1,
            pod_mtu: PodMtu(1450),
            offloads: Default::default(),
            egress: Default::default(),
            store: None,
            host_port: Some(HostPortInfo {
                interface: "podwire0".into(),
                addresses: vec!["10.244.1.1".parse().unwrap()],
                networks: vec!["10.244.0.0/16".parse().unwrap()],
                ..HostPortInfo::default()
            }),
            dns: Some(DnsStatus {
                domain: "pod".into(),
                servers: vec![
                    DnsServer {
                        at: "192.0.2.53:53".parse().unwrap(),
                        silent: true,
                    },
                    DnsServer {
                        at: "127.0.0.1:5353".parse().unwrap(),
                        silent: false,
                    },
                ],
                names: 4,
                answers: [("zone".to_string(), 7)].into(),
                ..DnsStatus::default()
            }),
            peers: vec![],
            pods: vec![],
            counters: NodeCounters {
                tap_reads: 2,
                tap_read_bytes: 131_072,
                ..Default::default()
            },
            drops: [("wrong_vni".to_string(), 3), ("ttl_exceeded".to_string(), 1234)].into(),
            problems: vec!["look here".into()],
        };
        status.peers.push(PeerInfo {
            name: "n2".into(),
            underlay: "192.0.2.2:8472".parse().unwrap(),
            subnets: vec!["10.244.2.0/24".parse().unwrap()],
            state: PeerReach::Up,
            state_ms: Some(60_000),
            deaf_ms: None,
            last_heard_ms: Some(3000),
            rtt_us: Some(250),
            loss_percent: Some(0),
            pod_mtu: PodMtu(1450),
            gso: false,
            datagrams_to_peer: 1,
            bytes_to_peer: 100,
            datagrams_from_peer: 1,
            bytes_from_peer: 100,
        });
        let page = show(&status, Paint(false));
        for line in [
            "n1  podwire 0, pid 1, up 3m",
            "  host      podwire0 10.244.1.1, reaches 10.244.0.0/16; 0B in, 0B out, 0 dropped",
            "  egress    off, 0 TCP flows, 0 datagram sockets",
            "  dns       4 names, pods below pod, asks 192.0.2.53 (silent), 127.0.0.1:5353; 7 answers of its own, 0 from 0 \
             cached, 0 by resolvers, 0 failed",
            "  traffic   64K a TAP read, 0B a TAP write, 0.0 datagrams a send, 0.0 a receive, 0 dropped",
            "problems",
            "  ! look here",
            "  PEER  UNDERLAY        SUBNETS        STATE  HEARD   RTT      LOSS   MTU  GSO  SENT  RECEIVED",
            "  n2    192.0.2.2:8472  10.244.2.0/24  up 1m  3s ago  0.25 ms  0 %   1450  off  100B  100B",
            "  ttl_exceeded   1234  TTL or hop limit ran out here.",
            "  wrong_vni         3  The VXLAN network identifier is not ours.",
        ] {
            assert!(page.lines().any(|l| l == line), "{page}\nlacks {line}");
        }
        let peer = &mut status.peers[0];
        for (state, deaf_ms, shown) in [
            (PeerReach::Up, Some(5000), "DEAF 5s"),
            (PeerReach::Silent, Some(5000), "SILENT 1m"),
            (PeerReach::Unheard, None, "-"),
        ] {
            (peer.state, peer.deaf_ms) = (state, deaf_ms);
            assert_eq!(super::state(peer), shown);
        }
    }
}
