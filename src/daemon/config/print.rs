//! The configuration said again: each key with its meaning, in TOML that reads back to the same.

use super::keys::{self, KEYS, Key};
use super::{Config, DnsConfig, Dscp, Password, StoreConfig};
use crate::control::default_vtep_mac;
use crate::model::{Mac, OffloadMode};
use std::fmt::Write;
use std::path::Path;
use toml::Value;

impl Config {
    /// The whole configuration as a commented TOML file.
    pub fn print(&self) -> String {
        let mut out = String::from(match self.has_subnet() || self.store.is_some() {
            true => "# Configuration of a podwire node, as it is in force.\n",
            false => "# Configuration of a podwire node, complete but for a subnet.\n",
        });
        let mut section = None;
        for key in KEYS {
            let (of, name) = key.split();
            if of != section {
                section = of;
                let _ = write!(out, "\n[{}]\n", of.unwrap_or_default());
            }
            let _ = write!(
                out,
                "\n# {} Default: {}.\n",
                key.help,
                key.fallback.trim_end_matches('.')
            );
            let _ = match self.show(key) {
                Some(value) => writeln!(out, "{name} = {value}"),
                None => writeln!(out, "# {name} = {}", key.example),
            };
        }
        out
    }

    /// The value of `key` in force; `None` when it has none.
    fn show(&self, key: &Key) -> Option<Value> {
        let text = |s: &dyn std::fmt::Display| Some(Value::String(s.to_string()));
        let path = |p: &Option<std::path::PathBuf>| {
            p.as_ref()
                .map(|p| Value::String(p.to_string_lossy().into_owned()))
        };
        let number = |n: i64| Some(Value::Integer(n));
        let switch = |on: bool| Some(Value::from(if on { "on" } else { "off" }));
        // What a draft derived from no subnet must not outlive the subnet it is given.
        let mac = |mac: &Mac| text(mac).filter(|_| self.has_subnet() || *mac != default_vtep_mac(None, None));
        match *key {
            keys::NODE => text(&self.node),
            keys::SUBNET => self.subnet4.map(|n| Value::String(n.to_string())),
            keys::SUBNET6 => self.subnet6.map(|n| Value::String(n.to_string())),
            keys::PEERS => path(&self.peers),
            keys::SOCKET => path(&self.socket),
            keys::STATE_DIR => path(&self.state_dir),
            keys::LOG => text(&self.log.to_string().to_lowercase()),
            keys::HOST_PORT => text(&self.host_port),
            keys::BIND => match &self.bind[..] {
                [one] => text(one),
                all => Some(Value::Array(
                    all.iter().map(|a| Value::String(a.to_string())).collect(),
                )),
            },
            // They come from the store.
            keys::PORT | keys::VNI if self.store.is_some() => None,
            keys::PORT => match self.port {
                Some(port) => number(port.into()),
                None => text(&"auto"),
            },
            keys::VNI => number(u32::from(self.vni).into()),
            keys::SOURCE_PORTS => number(self.source_ports.into()),
            keys::UNDERLAY_MTU => number(self.underlay_mtu.0.into()),
            keys::POD_MTU if self.store.as_ref().is_some_and(|s| s.follow_mtu) => None,
            keys::POD_MTU => number(self.pod_mtu.0.into()),
            keys::VTEP_MAC => mac(&self.vtep_mac),
            keys::VTEP_MAC6 => mac(&self.vtep_mac6),
            keys::DSCP => match self.dscp {
                Dscp::Inherit => text(&"inherit"),
                Dscp::Fixed(n) => number(n.into()),
            },
            keys::TAP => switch(self.tap == OffloadMode::On),
            keys::UDP_GSO => switch(self.udp_gso),
            keys::UDP_GRO => switch(self.udp_gro),
            keys::CHECKSUM => switch(self.partial_checksums),
            keys::ACKS => switch(self.merge_acks),
            keys::BROADCAST => number(self.broadcast_per_second.into()),
            keys::LINGER => number(self.linger.as_micros() as i64),
            keys::RECEIVE_BUFFER => number(self.receive_buffer as i64),
            keys::SEND_BUFFER => number(self.send_buffer as i64),
            keys::STORE => text(&if self.store.is_some() { "etcd" } else { "file" }),
            keys::HEALTH_IP => self.health.map(|at| Value::String(at.ip().to_string())),
            keys::HEALTH_PORT => number(self.health.map_or(0, |at| at.port()).into()),
            keys::KEEP_PODS => switch(self.keep_pods),
            keys::EGRESS => switch(self.egress.open),
            keys::EGRESS_DENY => list(&self.egress.deny),
            keys::POD_NETWORK => list(&self.egress.network),
            keys::MAP_HOST => list(&self.egress.map_host),
            keys::DNS => switch(self.dns.is_some()),
            keys::DNS_LISTEN
            | keys::DNS_UPSTREAM
            | keys::DNS_RESOLV_CONF
            | keys::DNS_DOMAIN
            | keys::DNS_RECORDS => self.dns.as_ref().and_then(|dns| show_dns(dns, key)),
            keys::SERVICES => path(&self.services.dir),
            keys::CLUSTER_IP => list(&self.services.cluster_ip),
            keys::NODE_PORTS => text(&self.services.port_range()),
            keys::SERVICE_DOMAIN => text(&self.services.domain),
            keys::METRICS => self.metrics.map(|at| Value::String(at.to_string())),
            _ => self.store.as_ref().and_then(|store| show_store(store, key)),
        }
    }
}

/// A list; none when it is empty.
fn list(all: &[impl std::fmt::Display]) -> Option<Value> {
    let all: Vec<Value> = all.iter().map(|one| Value::String(one.to_string())).collect();
    (!all.is_empty()).then_some(Value::Array(all))
}

/// The value of a key of `[dns]`.
fn show_dns(dns: &DnsConfig, key: &Key) -> Option<Value> {
    match *key {
        keys::DNS_LISTEN => list(&dns.listen),
        keys::DNS_UPSTREAM => list(dns.upstream.as_deref().unwrap_or_default()),
        keys::DNS_RESOLV_CONF => Some(Value::String(dns.resolv_conf.to_string_lossy().into_owned())),
        keys::DNS_DOMAIN => Some(Value::String(dns.domain.to_string())),
        keys::DNS_RECORDS => list(&dns.records),
        _ => None,
    }
}

/// The value of a key of `[store]`; a password that was given is nobody's to see.
fn show_store(store: &StoreConfig, key: &Key) -> Option<Value> {
    let text = |s: &String| Value::String(s.clone());
    let path = |p: &Path| Value::String(p.to_string_lossy().into_owned());
    match *key {
        keys::ENDPOINTS => Some(Value::Array(store.endpoints.iter().map(text).collect())),
        keys::PREFIX => Some(text(&store.prefix)),
        keys::CA_FILE => store.ca_file.as_deref().map(path),
        keys::CERT_FILE => store.identity.as_ref().map(|(cert, _)| path(cert)),
        keys::KEY_FILE => store.identity.as_ref().map(|(_, key)| path(key)),
        keys::USER => store.user.as_ref().map(text),
        keys::PASSWORD_FILE => match &store.password {
            Some(Password::File(file)) => Some(path(file)),
            _ => None,
        },
        keys::RENEW_MARGIN => Some(Value::Integer(store.renew_margin.as_secs() as i64 / 60)),
        keys::PUBLIC_IP => store.public_ip.map(|ip| Value::String(ip.to_string())),
        keys::PUBLIC_IP6 => store.public_ip6.map(|ip| Value::String(ip.to_string())),
        keys::SUBNET_FILE => store.subnet_file.as_deref().map(path),
        _ => None,
    }
}
