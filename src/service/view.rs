//! What people see of Services and connections.

use super::Services;
use super::conntrack::{Conn, age, second};
use super::table::Server;
use crate::model::{Backend, ConnectionFilter, Frontend, Instant, PortId, ServiceConnection, ServiceName};
use std::net::IpAddr;

/// A Service's port, for people and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceView {
    /// The Service.
    pub service: ServiceName,
    /// Name of the port.
    pub port: String,
    /// Where it is reached.
    pub frontend: Frontend,
    /// Flows that are open through this node: not closing, nor over.
    pub open: u64,
    /// Flows there have been.
    pub opened: u64,
    /// Flows that no backend was there for, that it refused, or that it never answered (UDP counts only the former two).
    pub failed: u64,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// A backend, for people and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendView {
    /// The backend.
    pub backend: Backend,
    /// New flows go to it.
    pub usable: bool,
    /// Flows that are open to it through this node.
    pub open: u32,
    /// Flows there have been.
    pub opened: u64,
}

impl Services {
    /// The connections that are meant, `limit` at most, and how many there are of them. It looks at all connections,
    /// which takes some milliseconds for 100,000.
    pub fn list(
        &self,
        filter: &ConnectionFilter,
        limit: usize,
        now: Instant,
    ) -> (Vec<ServiceConnection>, usize) {
        let mut found = Vec::new();
        let mut count = 0;
        for (_, conn) in self.conntrack.conns.iter() {
            let Some(server) = self.server_of(conn).filter(|s| matches(filter, conn, s)) else {
                continue;
            };
            count += 1;
            if found.len() < limit {
                found.push(view(conn, server, second(now)));
            }
        }
        (found, count)
    }

    /// Close the connections that are meant; how many. The next packet of TCP is answered by a reset, that of UDP and
    /// SCTP goes to a backend that is chosen anew.
    pub fn kill(&mut self, filter: &ConnectionFilter) -> usize {
        let all = self.conntrack.conns.iter();
        let meant = all.filter(|(_, c)| self.server_of(c).is_some_and(|s| matches(filter, c, s)));
        let meant: Vec<u32> = meant.map(|(n, _)| n).collect();
        for n in &meant {
            self.end(*n, false);
        }
        meant.len()
    }

    /// A pod is gone: close its connections, so that whoever gets its addresses next hears nothing of them. How many.
    pub fn forget(&mut self, pod: PortId) -> usize {
        let mut count = 0;
        while let Some(n) = self.conntrack.any_of(pod) {
            self.close(n, false);
            count += 1;
        }
        count
    }

    /// How many connections there are, or of a client's address.
    pub fn connections(&self, client: Option<IpAddr>) -> usize {
        match client {
            None => self.conntrack.conns.len(),
            Some(ip) => self.conntrack.of_client(ip),
        }
    }

    /// What stands behind a frontend.
    pub fn describe(&self, frontend: &Frontend) -> Option<ServiceView> {
        let server = self.table.servers.get(self.table.lookup(frontend)?)?;
        Some(self.service_view(server))
    }

    /// All frontends, in no order, each handed to `each`.
    pub fn describe_all(&self, mut each: impl FnMut(ServiceView)) {
        for (_, server) in self.table.servers.iter().filter(|(_, s)| s.alive) {
            each(self.service_view(server));
        }
    }

    /// How many frontends there are.
    pub fn frontends(&self) -> usize {
        self.table.len()
    }

    fn service_view(&self, server: &Server) -> ServiceView {
        let slots = server.slots.iter().filter_map(|n| self.table.slots.get(*n));
        let backends = slots.filter_map(|s| {
            Some(BackendView {
                backend: Backend {
                    at: s.at,
                    phase: s.phase?,
                    local: s.local,
                },
                usable: s.usable,
                open: s.open,
                opened: s.opened,
            })
        });
        ServiceView {
            service: server.what.service.clone(),
            port: server.what.port.clone(),
            frontend: server.frontend,
            open: server.open,
            opened: server.opened,
            failed: server.failed,
            backends: backends.collect(),
        }
    }

    pub(super) fn server_of(&self, conn: &Conn) -> Option<&Server> {
        let slot = self.table.slots.get(conn.backend)?;
        self.table.servers.get(slot.server)
    }
}

fn matches(filter: &ConnectionFilter, conn: &Conn, server: &Server) -> bool {
    fn fits<T: PartialEq>(wanted: &Option<T>, is: &T) -> bool {
        wanted.as_ref().is_none_or(|w| w == is)
    }
    let (client, frontend, backend) = (conn.original.src, conn.original.dst, conn.reply.src);
    fits(&filter.transport, &conn.original.transport)
        && fits(&filter.service, &server.what.service)
        && fits(&filter.client, &client.ip)
        && fits(&filter.client_port, &client.port)
        && fits(&filter.frontend, &frontend.ip)
        && fits(&filter.frontend_port, &frontend.port)
        && fits(&filter.backend, &backend.ip)
        && fits(&filter.backend_port, &backend.port)
        && fits(&filter.state, &conn.course.state)
}

fn view(conn: &Conn, server: &Server, now: u32) -> ServiceConnection {
    ServiceConnection {
        transport: conn.original.transport,
        service: server.what.service.clone(),
        client: conn.original.src.into(),
        frontend: conn.original.dst.into(),
        backend: conn.reply.src.into(),
        masked: conn.is_masked().then(|| conn.reply.dst.into()),
        state: conn.course.state,
        answered: conn.course.answered,
        age_s: age(now, conn.since).secs(),
        idle_s: age(now, conn.seen).secs(),
        left_s: age(conn.ends_at(), now).secs(),
    }
}
