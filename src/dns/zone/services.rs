//! The names of Services, as Kubernetes has them (DNS-Based Service Discovery, version 1.1.0).
//!
//! ```text
//! web.default.svc.DOMAIN              A, AAAA: its addresses, or those of what stands behind a headless one
//! _http._tcp.web.default.svc.DOMAIN   SRV: a port by its name, at each of these
//! db-0.db.shop.svc.DOMAIN             A, AAAA: one of those behind a headless Service
//! out.default.svc.DOMAIN              CNAME (ExternalName)
//! 10.0.96.10.in-addr.arpa             PTR: of the Service, or of what stands behind a headless one
//! ```

use super::super::entry::{Data, Entry};
use super::super::name::Fqdn;
use super::{Claim, Rank, Says, Who, Zone};
use crate::model::{ServiceName, ServicePortRecord, ServiceRecords, Transport};
use ipnet::IpNet;
use std::collections::HashMap;

/// What is answered of Services.
#[derive(Default)]
pub(super) struct Services {
    /// Below which their names are; none when nobody asks for them.
    domain: Option<Fqdn>,
    /// The names each has.
    names: HashMap<ServiceName, Vec<Fqdn>>,
}

impl Zone {
    /// The same, answering `svc.DOMAIN` and what is below it, and the addresses of these ranges: nobody else is asked for
    /// them.
    pub fn with_services(mut self, domain: Fqdn, ranges: &[IpNet]) -> Zone {
        // A range wider than whole octets shares its zone with others.
        let whole = |n: &&IpNet| {
            let unit = if n.network().is_ipv4() { 8 } else { 4 };
            n.prefix_len().is_multiple_of(unit)
        };
        let reverse = ranges.iter().filter(whole).map(|n| Fqdn::reverse_zone(*n));
        for apex in [domain.clone()].into_iter().chain(reverse) {
            if !self.apexes.contains(&apex) {
                self.apexes.push(apex);
            }
        }
        self.services.domain = Some(domain);
        self
    }

    /// Give a Service its names, or take them away.
    pub fn set_service(&mut self, service: &ServiceName, records: Option<&ServiceRecords>) {
        let who = Who::Service(service.clone());
        for name in self.services.names.remove(service).unwrap_or_default() {
            self.unsay(&name, Rank::Service, &who);
        }
        let (Some(domain), Some(records)) = (self.services.domain.clone(), records) else {
            return;
        };
        let mut names = Vec::new();
        for (name, says) in says(service, records, &domain) {
            let claim = Claim {
                rank: Rank::Service,
                who: who.clone(),
            };
            names.push(name.clone());
            self.say(name, claim, says);
        }
        names.sort_unstable();
        names.dedup();
        if !names.is_empty() {
            self.services.names.insert(service.clone(), names);
        }
    }
}

/// What is said of a Service's names. A name that is too long is left out.
fn says(service: &ServiceName, records: &ServiceRecords, domain: &Fqdn) -> Vec<(Fqdn, Says)> {
    let domain = domain.to_string();
    let below = |front: &str| {
        format!("{front}{}.{}.svc.{domain}", service.name, service.namespace)
            .parse::<Fqdn>()
            .ok()
    };
    let Some(own) = below("") else {
        return Vec::new();
    };
    let mut all = Vec::new();
    if let Some(alias) = &records.alias {
        let to = alias.parse::<Fqdn>().ok().filter(|to| *to != own);
        return to
            .map(|to| (own, Says::Record(Data::Cname(to))))
            .into_iter()
            .collect();
    }
    for ip in &records.addresses {
        let entry = Entry::address(own.clone(), *ip);
        all.push((entry.name, Says::Record(entry.data)));
        if records.hosts.is_empty() {
            all.push((Fqdn::reverse(*ip), Says::Is(own.clone())));
        }
    }
    let port = |port: &ServicePortRecord, target: &Fqdn| {
        let protocol = match port.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        };
        let data = Data::Srv {
            priority: 0,
            weight: 100,
            port: port.port,
            target: target.clone(),
        };
        let name = below(&format!("_{}._{protocol}.", port.name));
        name.map(|name| (name, Says::Record(data)))
    };
    let mut more: Vec<(Fqdn, Says)> = records.ports.iter().filter_map(|p| port(p, &own)).collect();
    for host in &records.hosts {
        let Some(name) = below(&format!("{}.", host.name)) else {
            continue;
        };
        let entry = Entry::address(name.clone(), host.at);
        more.push((entry.name, Says::Record(entry.data)));
        more.push((Fqdn::reverse(host.at), Says::Is(name.clone())));
        more.extend(host.ports.iter().filter_map(|p| port(p, &name)));
    }
    all.extend(more);
    all
}
