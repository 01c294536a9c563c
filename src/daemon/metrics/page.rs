//! The page: every metric once, with its name, type, meaning and values. `docs/metrics.md` says more of each.

use crate::api::{PeerInfo, PeerReach};
use crate::daemon::command::Report;
use crate::daemon::config::Config;
use crate::daemon::dns::DnsReport;
use crate::dns::counters::{AnswerKind, DnsDrop};
use crate::model::{DropReason, OffloadMode, PodName, PortCounters, StoreStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// All that a page is made of.
#[derive(Debug)]
pub struct Page {
    /// The node's name.
    pub node: String,
    /// The overlay's identifier.
    pub vni: u32,
    /// When the node started, in seconds of Unix time.
    pub start: f64,
    /// Whether checksums may stay partial within the node.
    pub partial_checksums: bool,
    /// Whether acknowledgements are merged on the way to peers.
    pub merge_acks: bool,
    /// How long pods took to attach.
    pub attaches: Histogram,
    /// What the data path tells.
    pub report: Report,
    /// How the membership stands, where there is a store; none within if its thread does not answer.
    pub membership: Option<Membership>,
    /// What DNS tells of itself; none when it is off, or does not answer.
    pub dns: Option<DnsReport>,
    /// How many problems of Services there are, as `podwire service ls` and `status` name them.
    pub service_problems: usize,
}

/// How the membership stands; none when the store's thread does not answer.
pub type Membership = Option<StoreStatus>;

/// A histogram for how long pods take to attach, in seconds: a millisecond or two is usual.
pub fn attach_histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    ])
}

impl Page {
    /// A page of a node that has run for `uptime`.
    pub fn new(
        config: &Config,
        start: SystemTime,
        attaches: &Histogram,
        report: Report,
        membership: Option<Membership>,
    ) -> Page {
        Page {
            node: config.node.to_string(),
            vni: config.vni.into(),
            start: start.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            partial_checksums: config.partial_checksums,
            merge_acks: config.merge_acks,
            attaches: attaches.clone(),
            report,
            membership,
            dns: None,
            service_problems: 0,
        }
    }

    /// The text, in Prometheus' format 0.0.4.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // A string takes everything.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }

    fn node(&self, to: &mut Families<'_>) -> fmt::Result {
        let (node, vni) = (self.node.as_str(), self.vni.to_string());
        to.gauge(
            "podwire_build_info",
            "The program's version; the value is 1.",
            &[([("version", env!("CARGO_PKG_VERSION"))], 1)],
        )?;
        to.gauge(
            "podwire_node_info",
            "The node's name and its overlay's identifier; the value is 1.",
            &[([("node", node), ("vni", &vni)], 1)],
        )?;
        to.gauge(
            "podwire_start_time_seconds",
            "When the node started, in Unix time.",
            &[([], self.start)],
        )?;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        to.gauge(
            "podwire_pods",
            "Pods attached.",
            &[([], count(self.report.ports.len()))],
        )?;
        to.gauge(
            "podwire_peers",
            "Peers known.",
            &[([], count(self.report.peers.len()))],
        )?;
        to.gauge(
            "podwire_published_ports",
            "Ports of the host that lead to pods.",
            &[([], count(self.report.published.len()))],
        )?;
        to.gauge(
            "podwire_frames_held",
            "Frames that wait for the bandwidth limits of pods.",
            &[([], i64::try_from(self.report.counters.held).unwrap_or(i64::MAX))],
        )?;
        to.gauge(
            "podwire_host_port",
            "Whether the host has a port of its own in the pod network: 1 or 0.",
            &[([], i64::from(self.report.host.is_some()))],
        )?;
        let host = self.report.host.clone().unwrap_or_default();
        for (name, help, value) in [
            (
                "podwire_host_port_received_bytes_total",
                "Bytes of the frames read from the host's own port.",
                host.bytes_from_pod,
            ),
            (
                "podwire_host_port_sent_bytes_total",
                "Bytes of the frames written to the host's own port.",
                host.bytes_to_pod,
            ),
            (
                "podwire_host_port_drops_total",
                "Frames of the host that were dropped.",
                host.drops,
            ),
        ] {
            to.counter(name, help, &[([], value)])?;
        }
        Ok(())
    }

    fn accounts(&self, to: &mut Families<'_>) -> fmt::Result {
        let c = &self.report.counters;
        for (name, help, value) in [
            (
                "podwire_frames_from_pods_total",
                "Frames read from pods; a super-frame is one.",
                c.frames_from_pods,
            ),
            (
                "podwire_datagrams_from_peers_total",
                "Datagrams that came from the underlay.",
                c.datagrams_from_peers,
            ),
            (
                "podwire_frames_originated_total",
                "Frames the node made itself: answers, ICMP errors, probes.",
                c.originated,
            ),
            (
                "podwire_frames_copied_total",
                "Further copies of broadcast and multicast frames.",
                c.copied,
            ),
            (
                "podwire_frames_to_pods_total",
                "Frames written to pods; a super-frame is one.",
                c.frames_to_pods,
            ),
            (
                "podwire_frames_to_peers_total",
                "Frames sent to peers, before segmentation.",
                c.frames_to_peers,
            ),
            (
                "podwire_datagrams_coalesced_total",
                "Datagrams merged into the super-frame of the one before them.",
                c.coalesced,
            ),
            (
                "podwire_acks_merged_total",
                "Acknowledgements of pods that a newer one stood for on the way to a peer.",
                c.acks_merged,
            ),
            (
                "podwire_frames_consumed_total",
                "Frames the node answered or used itself.",
                c.consumed,
            ),
        ] {
            to.counter(name, help, &[([], value)])?;
        }
        let drops = DropReason::ALL
            .iter()
            .map(|r| ([("reason", r.label())], self.report.drops.count(*r)));
        to.counter(
            "podwire_drops_total",
            "Frames and datagrams that went nowhere, by reason.",
            &drops.collect::<Vec<_>>(),
        )?;
        to.counter(
            "podwire_panics_total",
            "Panics of the data path, each of them a bug, by what was given up for it.",
            &[
                ([("at", "pod")], c.panics.pod),
                ([("at", "flow")], c.panics.flow),
                ([("at", "peer")], c.panics.peer),
                ([("at", "frames")], c.panics.frames),
                ([("at", "node")], c.panics.node),
            ],
        )?;
        for (name, help, value) in [
            (
                "podwire_datagrams_to_peers_total",
                "Datagrams sent to peers.",
                c.datagrams_to_peers,
            ),
            (
                "podwire_tap_reads_total",
                "Reads of TAPs that gave a frame.",
                c.tap_reads,
            ),
            (
                "podwire_tap_read_bytes_total",
                "Bytes read from TAPs.",
                c.tap_read_bytes,
            ),
            ("podwire_tap_writes_total", "Writes to TAPs.", c.tap_writes),
            (
                "podwire_tap_write_bytes_total",
                "Bytes written to TAPs.",
                c.tap_write_bytes,
            ),
            (
                "podwire_underlay_sends_total",
                "Send calls on underlay sockets.",
                c.underlay_sends,
            ),
            (
                "podwire_underlay_receives_total",
                "Receive calls on underlay sockets that gave data.",
                c.underlay_recvs,
            ),
            (
                "podwire_underlay_messages_total",
                "Messages those calls gave; a train of datagrams is one.",
                c.underlay_messages,
            ),
            ("podwire_wakeups_total", "Times the data path woke up.", c.wakeups),
        ] {
            to.counter(name, help, &[([], value)])?;
        }
        Ok(())
    }

    fn offloads(&self, to: &mut Families<'_>) -> fmt::Result {
        let o = &self.report.offloads;
        let on = |name, on| ([("offload", name)], i64::from(on));
        to.gauge(
            "podwire_offload_enabled",
            "Whether an offload is in force: 1 or 0.",
            &[
                on("tap", o.tap == OffloadMode::On),
                on("udp_gso", o.udp_gso),
                on("udp_gro", o.udp_gro),
                on("checksum", self.partial_checksums),
                on("acks", self.merge_acks),
            ],
        )?;
        let e = &self.report.egress;
        let count = |name, n| ([("kind", name)], i64::try_from(n).unwrap_or(i64::MAX));
        to.gauge(
            "podwire_egress_flows",
            "What pods have outside of the pod network now.",
            &[count("tcp", e.tcp_flows), count("datagram", e.datagram_sockets)],
        )?;
        let known = |name, n| ([("kind", name)], i64::try_from(n).unwrap_or(i64::MAX));
        to.gauge(
            "podwire_services",
            "Addresses and ports of Services, and connections to them through this node.",
            &[
                known("frontend", self.report.frontends),
                known("connection", self.report.connections),
            ],
        )?;
        let problems = i64::try_from(self.service_problems).unwrap_or(i64::MAX);
        to.gauge(
            "podwire_service_problems",
            "What is wrong with Services and their manifests, by number: `podwire service ls` names it.",
            &[([], problems)],
        )?;
        let bytes = |name, n| ([("direction", name)], i64::try_from(n).unwrap_or(i64::MAX));
        to.gauge(
            "podwire_socket_buffer_bytes",
            "Socket buffer the kernel granted, the smallest of the sockets.",
            &[bytes("receive", o.receive_buffer), bytes("send", o.send_buffer)],
        )?;
        to.gauge(
            "podwire_send_segments_max",
            "Most segments of a super-frame, so that one call sends it.",
            &[([], i64::from(o.gso_max_segs))],
        )
    }

    fn pods(&self, to: &mut Families<'_>) -> fmt::Result {
        type Counter = fn(&PortCounters) -> u64;
        let each: [(&str, &str, Counter); 8] = [
            (
                "podwire_pod_frames_from_pod_total",
                "Frames read from the pod.",
                |c| c.frames_from_pod,
            ),
            (
                "podwire_pod_bytes_from_pod_total",
                "Bytes of the frames read from the pod.",
                |c| c.bytes_from_pod,
            ),
            (
                "podwire_pod_frames_to_pod_total",
                "Frames written to the pod.",
                |c| c.frames_to_pod,
            ),
            (
                "podwire_pod_bytes_to_pod_total",
                "Bytes of the frames written to the pod.",
                |c| c.bytes_to_pod,
            ),
            (
                "podwire_pod_drops_total",
                "Frames of the pod that were dropped.",
                |c| c.drops,
            ),
            (
                "podwire_pod_held_to_pod_total",
                "Frames for the pod that its bandwidth limit made wait.",
                |c| c.held_to_pod,
            ),
            (
                "podwire_pod_limited_to_pod_total",
                "Frames for the pod that its bandwidth limit dropped.",
                |c| c.limited_to_pod,
            ),
            (
                "podwire_pod_panics_total",
                "Panics of the data path at frames of the pod.",
                |c| c.panics,
            ),
        ];
        for (name, help, value) in each {
            let ports = self.report.ports.iter();
            let series = ports.map(|(pod, c)| {
                let labels = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
                (labels, value(c))
            });
            to.counter(name, help, &series.collect::<Vec<_>>())?;
        }
        let ports = self.report.ports.iter();
        let paused = ports.map(|(pod, c)| {
            let labels = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
            (labels, c.paused_from_pod_us as f64 / 1e6)
        });
        to.counter(
            "podwire_pod_paused_from_pod_seconds_total",
            "Time in which nothing was read from the pod, as its bandwidth limit had it.",
            &paused.collect::<Vec<_>>(),
        )?;
        let host_name = PodName::of_host();
        let host = self.report.host.as_ref().map(|c| (&host_name, c));
        let ports = self.report.ports.iter().map(|(pod, c)| (pod, c));
        let parked = ports.chain(host).map(|(pod, c)| {
            let labels = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
            (labels, i64::from(c.parked_ms > 0))
        });
        to.gauge(
            "podwire_pod_parked",
            "Whether nothing is read from the pod for a while, after a panic at one of its frames: 1 or 0.",
            &parked.collect::<Vec<_>>(),
        )
    }

    fn peers(&self, to: &mut Families<'_>) -> fmt::Result {
        type Gauge = fn(&PeerInfo) -> Option<f64>;
        type Counter = fn(&PeerInfo) -> u64;
        let gauges: [(&str, &str, Gauge); 7] = [
            (
                "podwire_peer_up",
                "Whether the peer is there, 1, or silent, 0; absent before it is heard first.",
                |p| (p.state != PeerReach::Unheard).then_some(f64::from(u8::from(p.state == PeerReach::Up))),
            ),
            (
                "podwire_peer_deaf",
                "Whether the peer says that it does not hear this node: 1 or 0.",
                |p| Some(f64::from(u8::from(p.deaf_ms.is_some()))),
            ),
            (
                "podwire_peer_last_heard_age_seconds",
                "Time since the last valid datagram of the peer; absent before the first.",
                |p| p.last_heard_ms.map(|ms| ms as f64 / 1e3),
            ),
            (
                "podwire_peer_rtt_seconds",
                "Round-trip time of the last answered probe; absent before the first.",
                |p| p.rtt_us.map(|us| us as f64 / 1e6),
            ),
            (
                "podwire_peer_probe_loss_ratio",
                "Share of the last eight probes that was not answered; absent before the first.",
                |p| p.loss_percent.map(|percent| f64::from(percent) / 100.0),
            ),
            (
                "podwire_peer_pod_mtu_bytes",
                "Largest packet of a pod that the path to the peer takes.",
                |p| Some(p.pod_mtu.0.into()),
            ),
            (
                "podwire_peer_udp_gso_enabled",
                "Whether trains of datagrams go to the peer in one call: 1 or 0.",
                |p| Some(f64::from(u8::from(p.gso))),
            ),
        ];
        for (name, help, value) in gauges {
            let peers = self.report.peers.iter();
            let series = peers.filter_map(|p| Some(([("peer", p.name.as_str())], value(p)?)));
            to.gauge(name, help, &series.collect::<Vec<_>>())?;
        }
        let counters: [(&str, &str, Counter); 4] = [
            (
                "podwire_peer_datagrams_to_peer_total",
                "Datagrams sent to the peer.",
                |p| p.datagrams_to_peer,
            ),
            (
                "podwire_peer_bytes_to_peer_total",
                "Bytes sent to the peer, as UDP payload.",
                |p| p.bytes_to_peer,
            ),
            (
                "podwire_peer_datagrams_from_peer_total",
                "Datagrams accepted from the peer.",
                |p| p.datagrams_from_peer,
            ),
            (
                "podwire_peer_bytes_from_peer_total",
                "Bytes accepted from the peer, as UDP payload.",
                |p| p.bytes_from_peer,
            ),
        ];
        for (name, help, value) in counters {
            let series = self
                .report
                .peers
                .iter()
                .map(|p| ([("peer", p.name.as_str())], value(p)));
            to.counter(name, help, &series.collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// What is known of the store and of the node's own lease there. Nothing but whether it is connected when its thread
/// does not answer.
fn store(status: Option<&StoreStatus>, to: &mut Families<'_>) -> fmt::Result {
    type Gauge = fn(&StoreStatus) -> Option<f64>;
    let connected = status.is_some_and(|s| s.connected);
    to.gauge(
        "podwire_store_connected",
        "Whether the store's changes are followed: 1 or 0.",
        &[([], i64::from(connected))],
    )?;
    let gauges: [(&str, &str, Gauge); 7] = [
        (
            "podwire_store_last_heard_age_seconds",
            "Time since the store last said anything; absent before the first.",
            |s| s.silent_ms.map(|ms| ms as f64 / 1e3),
        ),
        (
            "podwire_store_revision",
            "Revision of the store that is applied.",
            |s| Some(s.revision as f64),
        ),
        (
            "podwire_store_leases",
            "Leases known, the node's own and reservations included.",
            |s| Some(s.leases.len() as f64),
        ),
        (
            "podwire_store_keys_skipped",
            "Keys and values beside the leases that are none.",
            |s| Some(s.skipped_total as f64),
        ),
        (
            "podwire_store_lease_remaining_seconds",
            "Time until the node's own lease runs out; absent when it never does, or that is not known.",
            |s| Some(s.leases.iter().find(|l| l.own)?.expires_s? as f64),
        ),
        (
            "podwire_store_allocation_enabled",
            "Whether new pods get addresses, 1, or not, 0, since another node has this node's subnet.",
            |s| Some(f64::from(u8::from(s.allocate))),
        ),
        (
            "podwire_store_alarms",
            "Things of the store that a person should look at.",
            |s| Some(s.alarms.len() as f64),
        ),
    ];
    for (name, help, value) in gauges {
        let series: Vec<_> = status.and_then(value).map(|v| ([], v)).into_iter().collect();
        to.gauge(name, help, &series)?;
    }
    let failures: Vec<_> = status.map(|s| ([], s.failures)).into_iter().collect();
    to.counter(
        "podwire_store_failures_total",
        "Requests to the store that failed, and watches of it that broke.",
        &failures,
    )
}

/// What is known of DNS.
fn dns(report: &DnsReport, to: &mut Families<'_>) -> fmt::Result {
    let c = &report.counters;
    to.counter(
        "podwire_dns_messages_total",
        "Messages of clients, by transport.",
        &[
            ([("transport", "udp")], c.messages_udp),
            ([("transport", "tcp")], c.messages_tcp),
        ],
    )?;
    let answers = AnswerKind::ALL
        .iter()
        .map(|k| ([("kind", k.label())], c.answers(*k)));
    to.counter(
        "podwire_dns_answers_total",
        "Answers to clients, by where they came from.",
        &answers.collect::<Vec<_>>(),
    )?;
    let drops = DnsDrop::ALL
        .iter()
        .map(|d| ([("reason", d.label())], c.drops(*d)));
    to.counter(
        "podwire_dns_drops_total",
        "Messages of clients that got no answer or a failure at once, and clients that were closed, by reason.",
        &drops.collect::<Vec<_>>(),
    )?;
    let u = &report.upstream;
    to.counter(
        "podwire_dns_upstream_questions_total",
        "Questions sent to resolvers, by transport.",
        &[
            ([("transport", "udp")], u.sent_udp),
            ([("transport", "tcp")], u.sent_tcp),
        ],
    )?;
    for (name, help, value) in [
        (
            "podwire_dns_upstream_timeouts_total",
            "Questions that a resolver did not answer in time.",
            u.timeouts,
        ),
        (
            "podwire_dns_upstream_refusals_total",
            "Questions that a resolver or the network refused.",
            u.refused,
        ),
        (
            "podwire_dns_upstream_ignored_total",
            "Messages that were not the answer to what was asked.",
            u.ignored,
        ),
        (
            "podwire_dns_upstream_given_up_total",
            "Questions that no resolver answered.",
            u.given_up,
        ),
        (
            "podwire_dns_cache_evictions_total",
            "Answers that left the cache before their time, for want of room.",
            report.evicted,
        ),
    ] {
        to.counter(name, help, &[([], value)])?;
    }
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    for (name, help, value) in [
        (
            "podwire_dns_in_flight",
            "Questions to resolvers under way.",
            report.in_flight,
        ),
        (
            "podwire_dns_cache_answers",
            "Answers in the cache.",
            report.cached,
        ),
        (
            "podwire_dns_cache_bytes",
            "Bytes they take, roughly.",
            report.cached_bytes,
        ),
        ("podwire_dns_names", "Names of the node.", report.names),
        ("podwire_dns_tcp_clients", "Clients over TCP.", report.clients),
        (
            "podwire_dns_resolvers",
            "Resolvers that are asked.",
            report.servers.len(),
        ),
    ] {
        to.gauge(name, help, &[([], count(value))])?;
    }
    Ok(())
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut Families(encoder);
        self.node(to)?;
        self.accounts(to)?;
        self.offloads(to)?;
        let attaches = to.0.encode_descriptor(
            "podwire_attach_duration_seconds",
            "Time from a pod's request to its working port.",
            None,
            MetricType::Histogram,
        )?;
        self.attaches.encode(attaches)?;
        if let Some(membership) = &self.membership {
            store(membership.as_ref(), to)?;
        }
        if let Some(report) = &self.dns {
            dns(report, to)?;
        }
        self.pods(to)?;
        self.peers(to)
    }
}

/// Writes metrics, each with all its series.
struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    /// `name` ends in `_total`.
    fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: &[([(&str, &str); N], impl EncodeCounterValue)],
    ) -> fmt::Result {
        // The encoder adds it again.
        let name = name.trim_end_matches("_total");
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            let mut one = family.encode_family(labels)?;
            one.encode_counter::<NoLabelSet, _, f64>(value, None)?;
        }
        Ok(())
    }

    fn gauge<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: &[([(&str, &str); N], impl EncodeGaugeValue)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
        Ok(())
    }
}
