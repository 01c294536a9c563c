//! The configuration said again: each key with its meaning, in TOML that reads back to the same.

use super::keys::{self, KEYS, Key};
use super::{Config, Dscp};
use crate::control::default_vtep_mac;
use crate::model::{Mac, OffloadMode};
use std::fmt::Write;
use toml::Value;

impl Config {
    /// The whole configuration as a commented TOML file.
    pub fn print(&self) -> String {
        let mut out = String::from(match self.has_subnet() {
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
            keys::BIND => match &self.bind[..] {
                [one] => text(one),
                all => Some(Value::Array(
                    all.iter().map(|a| Value::String(a.to_string())).collect(),
                )),
            },
            keys::PORT => match self.port {
                Some(port) => number(port.into()),
                None => text(&"auto"),
            },
            keys::VNI => number(u32::from(self.vni).into()),
            keys::SOURCE_PORTS => number(self.source_ports.into()),
            keys::UNDERLAY_MTU => number(self.underlay_mtu.0.into()),
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
            keys::KEEP_PODS => switch(self.keep_pods),
            keys::METRICS => self.metrics.map(|at| Value::String(at.to_string())),
            _ => None,
        }
    }
}
