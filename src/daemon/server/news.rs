//! What the sources of truth tell, on its way to the worker; and what the store must know of this node.

use super::{ADDRESSES, Server, Source, drain, watch_fd};
use crate::control::etcd::Told;
use crate::control::file::PeersFile;
use crate::daemon::addresses::AddressWatch;
use crate::daemon::command::Command;
use crate::model::{Change, NodeName};
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Changes of peers that are told one by one; of more at once only the numbers are.
const FEW_CHANGES: usize = 16;

impl Server<'_> {
    /// Follow the host's addresses, and tell store and worker of changes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow(&mut self, addresses: AddressWatch) -> io::Result<()> {
        watch_fd(&self.poll, addresses.as_fd(), ADDRESSES)?;
        self.addresses = Some(addresses);
        // What has changed since they were asked for, while the node waited for its subnet.
        self.move_house();
        Ok(())
    }

    /// Take the news of the peers file.
    pub(super) fn reload(&mut self, news: impl FnOnce(&mut PeersFile) -> Vec<Change>) {
        if let Source::File(file) = &mut self.source {
            let changes = news(file);
            self.tell(changes);
        }
    }

    /// Tell the store where this node is now, and the worker what is the host's.
    pub(super) fn move_house(&mut self) {
        let Some(addresses) = &mut self.addresses else {
            return;
        };
        let moved = addresses.changed(&self.config);
        if let Some(host) = moved.host {
            let policy = Arc::new(self.config.policy(&host));
            if let Err(e) = self.worker.send(Command::Policy(policy)) {
                log::error!("new addresses of this host are not closed to pods yet: {e}");
            }
            // One of them may be an external address of a Service.
            self.bind_node_ports();
        }
        if let (Some((four, six)), Source::Store(store, _)) = (moved.published, &self.source) {
            log::info!("this node is at {four} now: its peers are told");
            store.address_changed(four, six);
        }
    }

    /// Take the news of the store.
    pub(super) fn hear(&mut self) {
        let Source::Store(store, wake) = &mut self.source else {
            return;
        };
        drain(wake);
        let mut changes = Vec::new();
        while let Some(news) = store.told() {
            match news {
                Told::Peers(more) => changes.extend(more),
                Told::Ready => self.ready = true,
                Told::Allocate(may) => self.allocate = may,
                // Told before there was a server, and never changes; and nobody asked it to stop.
                Told::Acquired(_) | Told::Stopped => {}
            }
        }
        if store.ended() && !self.orphaned {
            self.orphaned = true;
            log::error!("the thread that keeps the lease ended: the node goes on with the peers it knows");
        }
        self.tell(changes);
        self.hear_shared();
    }

    /// Pass changes to the worker, after those it had no room for.
    pub(super) fn tell(&mut self, changes: Vec<Change>) {
        let one_by_one = match changes.len() {
            0..=FEW_CHANGES => log::Level::Info,
            _ => log::Level::Debug,
        };
        for change in &changes {
            match change {
                Change::PeerSet(p) => log::log!(one_by_one, "peer {} is at {}", p.name, p.underlay),
                Change::PeerGone(name) => log::log!(one_by_one, "peer {name} is gone"),
            }
        }
        if changes.len() > FEW_CHANGES {
            let gone = changes.iter().filter(|c| matches!(c, Change::PeerGone(_)));
            let gone = gone.count();
            log::info!(
                "{} peers are new or changed, {gone} are gone",
                changes.len() - gone
            );
        }
        if let Some(Ok(port)) = &mut self.host_port {
            port.follow(&changes);
        }
        if !changes.is_empty() {
            // Of what was not told yet, the newest of each peer counts.
            let newer: HashSet<&NodeName> = changes.iter().map(Change::name).collect();
            self.untold.0.retain(|c| !newer.contains(c.name()));
            self.untold.0.extend(changes);
            self.offer();
        }
    }

    /// Offer the worker what it was not told yet. What it has no room for is offered again.
    pub(super) fn offer(&mut self) {
        match self.worker.send(Command::Changes(self.untold.0.clone())) {
            Ok(()) => self.untold.0.clear(),
            Err(e) => log::error!("{} changes of peers wait: {e}", self.untold.0.len()),
        }
        self.untold.1 = self.now();
    }
}
