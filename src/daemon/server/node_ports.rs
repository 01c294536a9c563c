//! Node ports: sockets of the host that lead to Services, and the ports at which a node tells whether it has backends of
//! its own (`healthCheckNodePort`).
//!
//! What could not be had is tried again: whoever has the port may end. A Service whose port is missing goes on otherwise.

use super::Server;
use crate::daemon::command::Socket;
use crate::daemon::metrics::{Endpoint, Serves};
use crate::daemon::published::Wanted;
use crate::daemon::published::bind::{bind_all, is_held};
use crate::model::{Frontend, HostPort, Instant, PortMapping, Protocol, ServiceName, Transport};
use mio::Token;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// When a port that could not be had is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A port at which a node tells of a Service's backends.
struct Health {
    service: ServiceName,
    /// How many of them are ready on this node.
    local: usize,
    token: Token,
    endpoint: Endpoint,
}

/// The sockets there are for Services.
#[derive(Default)]
pub(super) struct NodePorts {
    bound: BTreeMap<HostPort, ServiceName>,
    /// Those of health checks, by their port.
    health: BTreeMap<u16, Health>,
    /// What could not be had, and why.
    missing: BTreeMap<String, String>,
    /// What cannot be had at all.
    unknown: Vec<String>,
    tried: Option<Instant>,
}

impl NodePorts {
    /// Whether a token is that of a health check, or of one of its clients.
    pub(super) fn has(&self, token: Token) -> bool {
        let mut all = self.health.values();
        all.any(|h| h.token == token || h.endpoint.has(token))
    }

    /// How long until something is due.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let clients = self.health.values().filter_map(|h| h.endpoint.patience(now));
        clients.chain((!self.missing.is_empty()).then_some(AGAIN)).min()
    }

    /// What a person should look at.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.unknown.iter().chain(self.missing.values()).cloned()
    }
}

impl Server<'_> {
    /// Have the sockets that Services want, and no others.
    pub(super) fn bind_node_ports(&mut self) {
        let now = self.now();
        self.node_ports.tried = Some(now);
        let before = std::mem::take(&mut self.node_ports.missing);
        self.node_ports.unknown.clear();
        let mut wanted = BTreeMap::new();
        for port in self.services.catalogue.node_ports() {
            match host_port(&port.frontend) {
                Some(at) => {
                    wanted.insert(at, (port.service.clone(), port.frontend));
                }
                None => {
                    let what = format!(
                        "Service {}: {} is not taken in from outside, since podwire has no sockets of SCTP (pods reach the Service)",
                        port.service, port.frontend
                    );
                    self.node_ports.unknown.push(what);
                }
            }
        }
        let gone = |(port, service): &(&HostPort, &ServiceName)| {
            wanted.get(port).is_none_or(|(other, _)| other != *service)
        };
        let gone: Vec<HostPort> = self
            .node_ports
            .bound
            .iter()
            .filter(gone)
            .map(|(p, _)| *p)
            .collect();
        if !gone.is_empty() {
            self.node_ports.bound.retain(|port, _| !gone.contains(port));
            self.admin.shut(gone);
        }
        for (port, (service, frontend)) in wanted {
            if self.node_ports.bound.contains_key(&port) {
                continue;
            }
            let whose = format!("Service {service}: ");
            let known = before.get(&port.to_string()).filter(|w| w.starts_with(&whose));
            let what = match known {
                Some(what) if is_held(&port) => what.clone(),
                _ => match self.bind_node_port(port, &service, &frontend) {
                    Ok(()) => continue,
                    Err(why) => whose + &why,
                },
            };
            self.node_ports.missing.insert(port.to_string(), what);
        }
        self.listen_for_health();
    }

    fn bind_node_port(
        &mut self,
        port: HostPort,
        service: &ServiceName,
        frontend: &Frontend,
    ) -> Result<(), String> {
        let Some(to) = self.config.local_node().service_address(frontend.at) else {
            // The node has no pods of that family.
            return Ok(());
        };
        let wanted = Wanted {
            port,
            to,
            mapping: PortMapping {
                host: Some(port.at.ip()),
                first: port.at.port(),
                pod: to.port(),
                count: 1,
                protocol: port.protocol,
            },
            // An external address is another node's, if it is none of this one.
            optional: true,
        };
        let bound = bind_all(vec![wanted]).map_err(|refusal| refusal.message)?;
        let sockets: Vec<Socket> = bound.into_iter().map(|(_, fd)| Socket { port, to, fd }).collect();
        if sockets.is_empty() {
            return Ok(());
        }
        self.admin.open(None, sockets)?;
        log::info!("{port} leads to Service {service}");
        self.node_ports.bound.insert(port, service.clone());
        Ok(())
    }

    fn listen_for_health(&mut self) {
        let checks: BTreeMap<u16, (ServiceName, usize)> = self
            .services
            .catalogue
            .health_checks()
            .map(|c| (c.port, (c.service.clone(), c.local)))
            .collect();
        self.node_ports
            .health
            .retain(|port, h| checks.get(port).is_some_and(|(service, _)| *service == h.service));
        for (port, (service, local)) in checks {
            if let Some(health) = self.node_ports.health.get_mut(&port) {
                health.local = local;
                continue;
            }
            let token = self.token();
            let listening = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()];
            // At every address of both families, where the host has IPv6.
            let endpoint = match Endpoint::bind(SocketAddr::new(listening[0], port), Serves::Backends) {
                Err(_) => Endpoint::bind(SocketAddr::new(listening[1], port), Serves::Backends),
                bound => bound,
            };
            let registered = endpoint.and_then(|mut endpoint| {
                endpoint.register(self.poll.registry(), token)?;
                Ok(endpoint)
            });
            match registered {
                Ok(endpoint) => {
                    let health = Health {
                        service,
                        local,
                        token,
                        endpoint,
                    };
                    self.node_ports.health.insert(port, health);
                }
                Err(e) => {
                    let what = format!("Service {service}: healthCheckNodePort: {e}");
                    self.node_ports.missing.insert(format!("health {port}"), what);
                }
            }
        }
    }

    /// Somebody asks a health check.
    pub(super) fn tell_health(&mut self, token: Token) {
        let now = self.now();
        for health in self.node_ports.health.values_mut() {
            if health.token == token {
                let registry = self.poll.registry();
                health
                    .endpoint
                    .accept(registry, now, || super::take_token(&mut self.next));
                return;
            }
            if health.endpoint.has(token) {
                let (service, local) = (&health.service, health.local);
                health
                    .endpoint
                    .serve(token, now, local > 0, || Some(health_page(service, local)));
                return;
            }
        }
    }

    /// Do what is due.
    pub(super) fn node_ports_on_time(&mut self) {
        let now = self.now();
        for health in self.node_ports.health.values_mut() {
            health.endpoint.expire(now);
            // Somebody may have given a descriptor back: who waits is not told of again.
            if health.endpoint.is_short() {
                let registry = self.poll.registry();
                let token = || super::take_token(&mut self.next);
                health.endpoint.accept(registry, now, token);
            }
        }
        let long_ago = self
            .node_ports
            .tried
            .is_none_or(|tried| now - tried >= AGAIN.into());
        if !self.node_ports.missing.is_empty() && long_ago {
            self.bind_node_ports();
        }
    }

    /// The Service that has a port of the host already.
    pub(super) fn service_at(&self, port: &HostPort) -> Option<&ServiceName> {
        let mut bound = self.node_ports.bound.iter();
        bound
            .find(|(other, _)| other.collides(port))
            .map(|(_, service)| service)
    }
}

/// The host's port of a frontend; none where it cannot have one.
fn host_port(frontend: &Frontend) -> Option<HostPort> {
    let protocol = match frontend.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => return None,
    };
    let at = frontend.at;
    Some(HostPort { protocol, at })
}

/// What kube-proxy answers, so that balancers outside understand it.
fn health_page(service: &ServiceName, local: usize) -> String {
    let page = serde_json::json!({
        "service": { "namespace": service.namespace, "name": service.name },
        "localEndpoints": local,
    });
    format!("{page}\n")
}
