//! Whether the host gets a port of its own.

use super::given::Given;
use super::{Config, keys};
use crate::control::strict::Mistake;
use crate::sys::tap;
use ipnet::IpNet;
use std::fmt;

/// Its interface, unless another name is given.
pub const USUAL: &str = "podwire0";

/// Whether the host gets a port of its own in the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPortMode {
    /// No.
    Off,
    /// Where that can be, and nothing is in its way.
    Auto,
    /// Yes, by this name, or the node does not start.
    On(String),
}

impl HostPortMode {
    pub(super) fn understand(given: &Given) -> Result<HostPortMode, Mistake> {
        let read = |s: &str| match s {
            "off" => Ok(HostPortMode::Off),
            "auto" => Ok(HostPortMode::Auto),
            "on" => Ok(HostPortMode::On(USUAL.into())),
            name => {
                let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
                match tap::check_name(name) {
                    Ok(()) if begins => Ok(HostPortMode::On(name.into())),
                    _ => Err(format!(
                        "{name:?} is neither on, off nor auto, and names no interface (use one of these, or 1 to 15 letters, \
                         digits, '-', '_' and '.' that begin with a letter or digit)"
                    )),
                }
            }
        };
        Ok(given.value(&keys::HOST_PORT, read)?.unwrap_or(HostPortMode::Off))
    }

    /// The name its interface has, or would have.
    pub fn interface(&self) -> &str {
        match self {
            HostPortMode::On(name) => name,
            _ => USUAL,
        }
    }
}

impl fmt::Display for HostPortMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostPortMode::Off => "off",
            HostPortMode::Auto => "auto",
            HostPortMode::On(name) if name == USUAL => "on",
            HostPortMode::On(name) => name,
        })
    }
}

impl Config {
    /// What the host reaches by its own port whoever the peers are: the cluster's network as far as it is known, this
    /// node's subnets, and the ranges of Services that were set.
    pub fn host_networks(&self) -> Vec<IpNet> {
        let known = match self.egress.cluster.is_empty() {
            true => &self.egress.network,
            false => &self.egress.cluster,
        };
        let own = [self.subnet4.map(IpNet::from), self.subnet6.map(IpNet::from)];
        // Ranges that nobody set may be another cluster's.
        let services = match self.services.cluster_ip.is_empty() {
            true => Vec::new(),
            false => self.service_ranges(),
        };
        let all = known.iter().copied().chain(own.into_iter().flatten());
        all.chain(services).map(|net| net.trunc()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::links::Host;

    fn config(values: &[(&'static keys::Key, &str)]) -> Result<Config, Mistake> {
        let mut given = Given::default();
        given.flag(&keys::NODE, vec!["n1".into()]);
        given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
        for (key, value) in values {
            given.flag(key, vec![(*value).into()]);
        }
        Config::understand(&given, &Host::default())
    }

    #[test]
    fn modes_read_back_as_they_are_written() {
        assert_eq!(config(&[]).unwrap().host_port, HostPortMode::Off);
        for (text, mode) in [
            ("off", HostPortMode::Off),
            ("auto", HostPortMode::Auto),
            ("on", HostPortMode::On(USUAL.into())),
            ("pw-b", HostPortMode::On("pw-b".into())),
        ] {
            let read = config(&[(&keys::HOST_PORT, text)]).unwrap().host_port;
            assert_eq!((&read, read.to_string().as_str()), (&mode, text));
        }
        let wrong = config(&[(&keys::HOST_PORT, "a/b")]).unwrap_err().to_string();
        assert!(
            wrong.contains("host-port") && wrong.contains("neither on, off nor auto"),
            "{wrong}"
        );
    }

    #[test]
    fn the_host_reaches_the_network_where_it_is_known() {
        let nets = |values: &[(&'static keys::Key, &str)]| {
            let all = config(values).unwrap().host_networks();
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(nets(&[]), ["10.244.1.0/24"]);
        assert_eq!(
            nets(&[
                (&keys::POD_NETWORK, "10.244.0.0/16"),
                (&keys::CLUSTER_IP, "10.96.0.0/16")
            ]),
            ["10.244.0.0/16", "10.244.1.0/24", "10.96.0.0/16"]
        );
    }
}
