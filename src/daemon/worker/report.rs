//! What the worker tells of itself, for status and metrics.

use super::{Loop, add};
use crate::api::{EgressInfo, OffloadInfo, PeerInfo, PeerReach};
use crate::daemon::admin;
use crate::daemon::command::Report;
use crate::model::{Instant, NodeCounters, OffloadMode, PortCounters, PortId};
use crate::overlay::Reach;
use ipnet::IpNet;

impl Loop {
    fn counters_of(&self, port: PortId, now: Instant) -> Option<PortCounters> {
        let parked = self.node.rests_until(port, now).map(|until| until - now);
        Some(PortCounters {
            parked_ms: parked.map_or(0, |left| left.total_millis().max(1)),
            ..self.node.port_counters(port)?.clone()
        })
    }

    pub(super) fn report(&self, now: Instant) -> Report {
        let mut counters = NodeCounters {
            wakeups: self.counters.wakeups,
            tap_reads: self.counters.tap_reads,
            tap_read_bytes: self.counters.tap_read_bytes,
            tap_writes: self.counters.tap_writes,
            tap_write_bytes: self.counters.tap_write_bytes,
            underlay_sends: self.exits.sender.calls,
            underlay_recvs: self.receiver.calls,
            underlay_messages: self.receiver.messages,
            ..self.node.counters()
        };
        for tap in self.exits.taps.iter().flatten() {
            add(&mut counters, tap);
        }
        let settings = self.node.settings();
        let local = &settings.local;
        let host = self.node.host().and_then(|id| self.counters_of(id, now));
        let ports = self
            .pods()
            .filter_map(|(id, spec)| Some((spec.pod.clone(), self.counters_of(id, now)?)));
        let peers = self.node.peers().iter().map(|(_, state)| {
            let four = state.peer.subnet4.map(IpNet::from);
            let probes = &state.path(state.worst()).probes;
            PeerInfo {
                name: state.peer.name.to_string(),
                underlay: state.endpoint(state.worst()),
                subnets: four
                    .into_iter()
                    .chain(state.peer.subnet6.map(IpNet::from))
                    .collect(),
                state: match probes.reach() {
                    Reach::Unheard => PeerReach::Unheard,
                    Reach::Up(_) => PeerReach::Up,
                    Reach::Silent(_) => PeerReach::Silent,
                },
                state_ms: probes.reach().since().map(|at| (now - at).total_millis()),
                deaf_ms: probes.deaf().map(|at| (now - at).total_millis()),
                last_heard_ms: state.last_heard().map(|at| (now - at).total_millis()),
                rtt_us: probes.rtt_us(),
                loss_percent: probes.loss_percent(),
                pod_mtu: state.pod_mtu(state.peer.subnet4.is_none(), local.underlay_mtu),
                gso: state.gso,
                datagrams_to_peer: state.datagrams_to,
                bytes_to_peer: state.bytes_to,
                datagrams_from_peer: state.datagrams_from,
                bytes_from_peer: state.bytes_from,
            }
        });
        let plain = self.pods().any(|(_, spec)| !spec.caps.vnet_hdr);
        Report {
            counters,
            drops: self.node.drops().clone(),
            ports: ports.collect(),
            host,
            published: self.published(),
            frontends: self.node.services().frontends(),
            connections: self.node.services().connections(None),
            peers: peers.collect(),
            egress: self.node.egress().map_or_else(EgressInfo::default, |egress| {
                let (tcp_flows, datagram_sockets) = egress.counts();
                EgressInfo {
                    open: egress.policy().open,
                    tcp_flows: tcp_flows as u64,
                    datagram_sockets: datagram_sockets as u64,
                }
            }),
            offloads: OffloadInfo {
                tap: if plain { OffloadMode::Off } else { self.mode },
                udp_gso: self.exits.sender.gso,
                udp_gro: self.receiver.gro,
                receive_buffer: self.receiver.buffer,
                send_buffer: self.exits.sender.buffer,
                gso_max_segs: admin::gso_max_segs(local.pod_mtu, settings.underlay.1),
            },
        }
    }
}
