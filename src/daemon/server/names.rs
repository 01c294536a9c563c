//! What has to do with names: the DNS thread is told of pods and of what people add, and asked how it stands.

use super::Server;
use crate::api::{DnsRecord, DnsServer, DnsStatus, ErrorKind, Reply};
use crate::daemon::admin::Refusal;
use crate::daemon::config::{Config, DnsConfig};
use crate::daemon::dns::{Dns, DnsReport, Settings, resolv_conf};
use crate::daemon::keeper::Record;
use crate::dns::counters::{AnswerKind, DnsDrop};
use crate::dns::entry::{self, Entry};
use crate::dns::name::Fqdn;
use crate::dns::resolv;
use crate::dns::zone::{PodAddresses, Rank};
use crate::model::PodName;
use crate::stack::egress::policy::POD_SOURCES;
use ipnet::IpNet;
use std::net::IpAddr;

/// What a node's DNS is made of; none when it is off.
pub fn settings(config: &Config) -> Option<Settings> {
    let dns = config.dns.as_ref()?;
    let (local, hosts) = (config.local_node(), config.hosts());
    let four = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    let six = |ip: &IpAddr| match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    };
    let subnets = [config.subnet4.map(IpNet::from), config.subnet6.map(IpNet::from)];
    Some(Settings {
        domain: dns.domain.clone(),
        subnets: subnets.into_iter().flatten().collect(),
        services: (config.services.domain.clone(), config.service_ranges()),
        // Where the host is open to pods; the gateway is the host in any case.
        gateways: PodAddresses {
            ip4: hosts.iter().find_map(four).or(local.gateway4()),
            ip6: hosts.iter().find_map(six).or(local.gateway6()),
        },
        upstream: dns.upstream.clone(),
        resolv_conf: dns.resolv_conf.clone(),
        // Whoever names resolvers wants them asked.
        isolated: (!config.egress.open && dns.upstream.is_none()).then(|| POD_SOURCES.into()),
        entries: dns.records.clone(),
        cache: Default::default(),
    })
}

impl Server<'_> {
    /// Have `dns` answer the names of the pods there are and will be, and of what people added earlier.
    pub fn name(&mut self, dns: Dns) {
        for record in self.admin.records() {
            dns.set_pod(&record.pod, Some(addresses(record)), record.aliases.clone());
        }
        for (service, records) in self.services.catalogue.names() {
            dns.set_service(service, Some(records.clone()));
        }
        self.dns = Some(dns);
        self.tell_entries();
    }

    /// Take what people added while an earlier process ran.
    pub(super) fn remember_names(&mut self, names: &[String]) {
        for text in names {
            match text.parse::<Entry>() {
                Ok(entry) => self.added.push(entry),
                Err(e) => log::warn!("a record that was added is not used: {e}"),
            }
        }
        // The configuration may say otherwise now.
        if let Err(e) = entry::check(&self.entries()) {
            log::warn!("records that were added are not used beside those of dns.records: {e}");
            self.added.clear();
        }
    }

    /// What people added, for the file.
    pub(super) fn added_names(added: &[Entry]) -> Vec<String> {
        added.iter().map(ToString::to_string).collect()
    }

    /// Tell Services and DNS that a pod came, or went.
    pub(super) fn tell_name(&mut self, pod: &PodName) {
        self.tell_services(pod);
        self.name_pod(pod);
    }

    /// Have DNS know the addresses of a pod's name.
    pub(super) fn name_pod(&self, pod: &PodName) {
        if let Some(dns) = &self.dns {
            let aliases = self.admin.record(pod).map(|r| r.aliases.clone());
            dns.set_pod(pod, self.addresses_of_name(pod), aliases.unwrap_or_default());
        }
    }

    /// How DNS stands, and what a person should look at.
    pub(super) fn dns_status(&self) -> (Option<DnsStatus>, Vec<String>) {
        let (Some(dns), Some(config)) = (&self.dns, &self.config.dns) else {
            return (None, Vec::new());
        };
        let Some(report) = dns.report(false) else {
            let what = "DNS did not answer within 1 s: no names are answered (see the log; restart the node)";
            return (None, vec![what.into()]);
        };
        let problems = report.problems.clone();
        (Some(dns_status(config, dns, report)), problems)
    }

    /// Every name the node answers.
    pub(super) fn dns_list(&self) -> Result<Reply, Refusal> {
        let dns = self.dns.as_ref().ok_or_else(off)?;
        let report = dns.report(true).ok_or_else(|| {
            Refusal::new(
                ErrorKind::Internal,
                "DNS did not answer within 1 s (see the node's log)",
            )
        })?;
        let mut added = Self::added_names(&self.added);
        let reverse = |e: &Entry| Some(format!("{} PTR {}", Fqdn::reverse(e.data.ip()?), e.name));
        added.extend(self.added.iter().filter_map(reverse));
        let record = |(name, kind, data, label): (String, String, String, &str)| {
            let source = match label == Rank::Entry.label() {
                true if added.contains(&format!("{name} {kind} {data}")) => "added",
                true => "config",
                false => label,
            };
            DnsRecord {
                name,
                kind,
                data,
                source: source.into(),
            }
        };
        Ok(Reply::Dns {
            records: report.list.into_iter().map(record).collect(),
        })
    }

    /// Add a record, or remove it.
    pub(super) fn dns_change(&mut self, text: &str, there: bool) -> Result<Reply, Refusal> {
        if self.dns.is_none() {
            return Err(off());
        }
        let records = if there {
            self.dns_add(text)?
        } else {
            self.dns_remove(text)?
        };
        if !records.is_empty() {
            self.tell_entries();
            self.recorder.touch();
        }
        Ok(Reply::DnsChanged { records })
    }

    fn dns_add(&mut self, text: &str) -> Result<Vec<String>, Refusal> {
        let usage = |e: &dyn std::fmt::Display| Refusal::new(ErrorKind::Usage, e.to_string());
        let entry: Entry = text.parse().map_err(|e| usage(&e))?;
        let mut all = self.entries();
        if all.contains(&entry) {
            return Ok(Vec::new());
        }
        all.push(entry.clone());
        entry::check(&all).map_err(|e| Refusal::new(ErrorKind::Taken, e.to_string()))?;
        let told = entry.to_string();
        self.added.push(entry);
        Ok(vec![told])
    }

    fn dns_remove(&mut self, text: &str) -> Result<Vec<String>, Refusal> {
        let usage = |e: &dyn std::fmt::Display| Refusal::new(ErrorKind::Usage, e.to_string());
        let gone: Box<dyn Fn(&Entry) -> bool> = match text.split_ascii_whitespace().count() {
            0 | 1 => {
                let name: Fqdn = text.trim().parse().map_err(|e| usage(&e))?;
                Box::new(move |e| e.name == name)
            }
            _ => {
                let entry: Entry = text.parse().map_err(|e| usage(&e))?;
                Box::new(move |e| *e == entry)
            }
        };
        let found: Vec<String> = self
            .added
            .iter()
            .filter(|e| gone(e))
            .map(ToString::to_string)
            .collect();
        let fixed = self
            .config
            .dns
            .as_ref()
            .is_some_and(|dns| dns.records.iter().any(&gone));
        if found.is_empty() && fixed {
            let what =
                format!("{text} stands in the node's configuration (remove it from dns.records and restart)");
            return Err(Refusal::new(ErrorKind::Taken, what));
        }
        if found.is_empty() {
            let what = format!("{text:?} was not added (`podwire dns ls` shows what is there)");
            return Err(Refusal::new(ErrorKind::NotFound, what));
        }
        self.added.retain(|e| !gone(e));
        Ok(found)
    }

    /// The resolv.conf of a pod; none without DNS.
    pub(super) fn dns_conf(&self, pod: &PodName) -> Reply {
        let text = self
            .config
            .dns
            .as_ref()
            .filter(|_| self.dns.is_some())
            .map(|dns| {
                let local = self.config.local_node();
                let four = local.gateway4().map(IpAddr::from);
                let gateways = four.into_iter().chain(local.gateway6().map(IpAddr::from));
                let host = resolv_conf(&dns.resolv_conf);
                let services = self.config.services.domain.to_string();
                let domain = dns.domain.to_string();
                resolv::for_pod(gateways, &pod.namespace, &domain, &services, &host.search)
            });
        Reply::ResolvConf { text }
    }

    fn entries(&self) -> Vec<Entry> {
        let fixed = self.config.dns.iter().flat_map(|dns| &dns.records);
        fixed.chain(&self.added).cloned().collect()
    }

    fn tell_entries(&self) {
        if let Some(dns) = &self.dns {
            dns.set_entries(self.entries());
        }
    }
}

pub(super) fn addresses(record: &Record) -> PodAddresses {
    PodAddresses {
        ip4: record.ip4.map(|n| n.addr()),
        ip6: record.ip6.map(|n| n.addr()),
    }
}

fn off() -> Refusal {
    let what = "this node does not answer names (start it with --dns on)";
    Refusal::new(ErrorKind::NotFound, what)
}

fn dns_status(config: &DnsConfig, dns: &Dns, report: DnsReport) -> DnsStatus {
    let count = |label: &str, n: u64| (label.to_string(), n);
    let answers = AnswerKind::ALL.iter();
    let drops = DnsDrop::ALL.iter();
    DnsStatus {
        domain: config.domain.to_string(),
        listen: dns.listen().to_vec(),
        servers: report
            .servers
            .iter()
            .map(|(at, silent)| DnsServer {
                at: *at,
                silent: *silent,
            })
            .collect(),
        names: report.names,
        cached: report.cached,
        in_flight: report.in_flight,
        answers: answers
            .map(|k| count(k.label(), report.counters.answers(*k)))
            .collect(),
        drops: drops
            .map(|d| count(d.label(), report.counters.drops(*d)))
            .filter(|(_, n)| *n > 0)
            .collect(),
        timeouts: report.upstream.timeouts,
    }
}
