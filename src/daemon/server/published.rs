//! Ports of the host that lead to pods: asked for with a pod, or while it runs; taken up again at the node's next start.

use super::Server;
use crate::api::{ErrorKind, Reply};
use crate::daemon::admin::{self, Refusal};
use crate::daemon::published::Addresses;
use crate::daemon::published::bind::bind_all;
use crate::model::{HostPort, Instant, PodName, PortMapping};
use std::collections::HashMap;
use std::os::fd::AsFd;

impl Server<'_> {
    /// Make the sockets of a pod's ports, all or none; they wait for [`Server::open_published`].
    pub(super) fn bind_published(
        &mut self,
        pod: &PodName,
        addresses: Addresses,
        mappings: &[PortMapping],
        tied: Option<u64>,
        now: Instant,
    ) -> Result<Vec<HostPort>, Refusal> {
        let wanted = self.published.plan(pod, addresses, mappings, now)?;
        let held = wanted
            .iter()
            .find_map(|w| Some((w.port, self.service_at(&w.port)?)));
        if let Some((port, service)) = held {
            let what = format!("{port} is held by Service {service} of this node (publish another port)");
            return Err(Refusal::new(ErrorKind::Taken, what));
        }
        let bound = bind_all(wanted)?;
        let ports = bound.iter().map(|(wanted, _)| wanted.port).collect();
        for (wanted, socket) in bound {
            self.published.insert(pod, wanted, socket, tied, now);
        }
        Ok(ports)
    }

    /// Give the worker the sockets of a pod that it has not yet.
    pub(super) fn open_published(&mut self, pod: &PodName) -> Result<(), Refusal> {
        let sockets = self.published.sockets(pod);
        if sockets.is_empty() {
            return Ok(());
        }
        let opened = self.admin.open(Some(pod), sockets);
        opened.map_err(|what| Refusal::new(ErrorKind::Internal, what))
    }

    /// The number by which ports are tied to a conversation.
    pub(super) fn tie(&mut self, tied: &mut Option<u64>) -> u64 {
        // Tokens are numbers that no conversation at the same time has as well.
        *tied.get_or_insert_with(|| self.token().0 as u64)
    }

    /// A conversation is over, and what was published for as long.
    pub(super) fn untie(&mut self, tied: Option<u64>) {
        let ports = tied.map(|tied| self.published.remove_tied(tied));
        if let Some(ports) = ports.filter(|p| !p.is_empty()) {
            self.admin.shut(ports);
        }
    }

    /// Publish ports of a pod.
    pub(super) fn publish(
        &mut self,
        pod: &PodName,
        mappings: &[PortMapping],
        tied: Option<u64>,
        now: Instant,
    ) -> Result<Reply, Refusal> {
        let addresses = self.addresses_of(pod)?;
        let ports = self.bind_published(pod, addresses, mappings, tied, now)?;
        if let Err(refusal) = self.open_published(pod) {
            self.published.remove(pod, &ports);
            return Err(refusal);
        }
        self.unpublished
            .retain(|(other, mapping, _)| other != pod || !mappings.contains(mapping));
        if tied.is_none() {
            self.remember_published(pod);
        }
        for mapping in mappings {
            log::info!("{mapping} of pod {pod} is published");
        }
        let mut all = self.published.list(Some(pod), &HashMap::new(), now);
        all.retain(|p| {
            let port = HostPort {
                protocol: p.protocol,
                at: p.host,
            };
            ports.contains(&port)
        });
        Ok(Reply::Published { ports: all })
    }

    /// Publish ports of a pod no longer.
    pub(super) fn unpublish(
        &mut self,
        pod: &PodName,
        mappings: &[PortMapping],
        now: Instant,
    ) -> Result<Reply, Refusal> {
        self.addresses_of(pod)?;
        // What could not be taken up again has no sockets, and can be given up all the same.
        let given_up = |m: &&PortMapping| self.unpublished.iter().any(|(p, u, _)| p == pod && u == *m);
        let (given_up, there): (Vec<&PortMapping>, Vec<&PortMapping>) = mappings.iter().partition(given_up);
        let there: Vec<PortMapping> = there.into_iter().copied().collect();
        let given_up: Vec<PortMapping> = given_up.into_iter().copied().collect();
        let ports = self.published.named(pod, &there).map_err(|missing| {
            let what = format!(
                "pod {pod} has no published port {missing} (`podwire port ls {pod}` lists those it has)"
            );
            Refusal::new(ErrorKind::NotFound, what)
        })?;
        let report = self.admin.report().unwrap_or_default();
        let mut gone = self.published.list(Some(pod), &report.published, now);
        gone.retain(|p| {
            let port = HostPort {
                protocol: p.protocol,
                at: p.host,
            };
            ports.contains(&port)
        });
        self.published.remove(pod, &ports);
        self.unpublished
            .retain(|(other, mapping, _)| other != pod || !given_up.contains(mapping));
        self.admin.shut(ports);
        self.remember_published(pod);
        for mapping in mappings {
            log::info!("{mapping} of pod {pod} is published no longer");
        }
        Ok(Reply::Published { ports: gone })
    }

    /// The published ports, of one pod or of all.
    pub(super) fn published(&self, pod: Option<&PodName>, now: Instant) -> Result<Reply, Refusal> {
        if let Some(pod) = pod {
            self.addresses_of(pod)?;
        }
        let report = self.admin.report().unwrap_or_default();
        Ok(Reply::Published {
            ports: self.published.list(pod, &report.published, now),
        })
    }

    fn addresses_of(&self, pod: &PodName) -> Result<Addresses, Refusal> {
        let record = self.admin.record(pod).ok_or_else(|| {
            let what = format!("there is no pod {pod} on this node (`podwire pods` lists those there are)");
            Refusal::new(ErrorKind::NotFound, what)
        })?;
        let lease = admin::lease(record);
        Ok((lease.ip4, lease.ip6))
    }

    /// A pod is gone, and its ports with it; who published some for as long as it listens is told.
    pub(super) fn forget_published(&mut self, pod: &PodName) {
        self.unpublished.retain(|(other, ..)| other != pod);
        let over = self.published.remove_pod(pod);
        let those = self.conversations.values_mut();
        for conversation in those.filter(|c| c.tied.is_some_and(|tied| over.contains(&tied))) {
            let what = format!("pod {pod} is gone, and its ports with it");
            // One that cannot be told is gone itself.
            let _ = conversation
                .wire
                .reply(&Refusal::new(ErrorKind::NotFound, what).into());
        }
    }

    /// Have a pod's published ports outlive this process of the node.
    fn remember_published(&mut self, pod: &PodName) {
        let mut mappings = self.published.mappings(pod);
        let missing = self.unpublished.iter().filter(|(other, ..)| other == pod);
        mappings.extend(missing.map(|(_, mapping, _)| *mapping));
        self.admin.set_published(pod, mappings);
        self.remember_pod(pod);
    }

    /// Have what is recorded of a pod outlive this process of the node.
    pub(super) fn remember_pod(&mut self, pod: &PodName) {
        self.recorder.touch();
        let Some(record) = self.admin.record(pod) else {
            return;
        };
        match self.admin.taps(Some(pod)).pop() {
            Some((_, Ok(tap))) => {
                let process = self.holders.values().find(|(other, _)| other == pod);
                let process = process.map(|(_, fd)| fd.as_fd());
                let lifeline = self.lifelines.get(pod).map(AsFd::as_fd);
                self.keeping.keep(record, tap.as_fd(), process, lifeline);
            }
            Some((_, Err(e))) => log::warn!("the keeper does not know what is new of pod {pod}: {e}"),
            None => {
                log::warn!("the keeper does not know what is new of pod {pod}: the data path is silent")
            }
        }
    }

    /// Publish once more what an earlier process of this node had published of a pod.
    pub(super) fn publish_again(&mut self, pod: &PodName) {
        let Some(record) = self.admin.record(pod) else {
            return;
        };
        let lease = admin::lease(record);
        let addresses = (lease.ip4, lease.ip6);
        let now = self.now();
        for mapping in record.publish.clone() {
            let done = self
                .bind_published(pod, addresses, &[mapping], None, now)
                .and_then(|ports| {
                    self.open_published(pod)
                        .inspect_err(|_| self.published.remove(pod, &ports))
                });
            if let Err(refusal) = done {
                log::warn!(
                    "{mapping} of pod {pod} is not published again: {}",
                    refusal.message
                );
                self.unpublished.push((pod.clone(), mapping, refusal.message));
            }
        }
    }

    /// What could not be published again, as a problem.
    pub(super) fn unpublished(&self) -> impl Iterator<Item = String> {
        self.unpublished.iter().map(|(pod, mapping, why)| {
            format!("{mapping} of pod {pod} is not published since the node's start: {why} (then: podwire port add {pod} {mapping})")
        })
    }
}
