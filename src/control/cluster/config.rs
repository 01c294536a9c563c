//! The network's configuration, as the store has it and as it is in force.

use super::Revision;
use crate::control::flannel::Network;
use crate::model::UnderlayMtu;

/// Configuration of the network.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// The last good one.
    pub(super) network: Option<Network>,
    /// Its text.
    pub(super) text: String,
    /// What the running node was set up with; it cannot change.
    pub(super) running: Option<Network>,
    /// Why what the store has now is not good.
    pub(super) fault: Option<String>,
    /// Whether the store was asked and has none.
    pub(super) missing: bool,
    /// The revision at which it is known.
    at: Revision,
}

impl Config {
    /// What the store has at `revision`. Whether the last good one is another now.
    pub(super) fn set(&mut self, value: Option<&[u8]>, revision: Revision) -> bool {
        if revision < self.at {
            return false;
        }
        self.at = revision;
        self.missing = value.is_none();
        self.fault = None;
        let Some(value) = value else {
            return false;
        };
        match (Network::parse(value), std::str::from_utf8(value)) {
            (Ok(network), Ok(text)) => {
                let changed = self.network.as_ref() != Some(&network) || self.text != text;
                self.network = Some(network);
                self.text = text.into();
                changed
            }
            (Ok(_), Err(e)) => self.refuse(e.to_string()),
            (Err(e), _) => self.refuse(e.to_string()),
        }
    }

    /// Another store: its revisions have nothing to do with those before.
    pub(super) fn restart(&mut self) {
        self.at = 0;
    }

    /// What the store's configuration changes that a running node cannot.
    pub(super) fn differs(&self) -> Option<String> {
        let (new, old) = (self.network.as_ref()?, self.running.as_ref()?);
        let six = |n: &Network| n.range6.map(|r| r.net);
        let mut what = Vec::new();
        if new.range4.net != old.range4.net {
            what.push(format!(
                "Network {} instead of {}",
                new.range4.net, old.range4.net
            ));
        }
        if six(new) != six(old) {
            let text = |n| six(n).map_or("none".into(), |n| n.to_string());
            what.push(format!("IPv6Network {} instead of {}", text(new), text(old)));
        }
        if new.vni != old.vni {
            what.push(format!("VNI {} instead of {}", new.vni, old.vni));
        }
        if new.port != old.port {
            what.push(format!("Port {} instead of {}", new.port, old.port));
        }
        if new.mtu != old.mtu {
            let text = |mtu: Option<UnderlayMtu>| mtu.map_or("none".into(), |m| m.0.to_string());
            what.push(format!("MTU {} instead of {}", text(new.mtu), text(old.mtu)));
        }
        (!what.is_empty()).then(|| what.join(", "))
    }

    fn refuse(&mut self, why: String) -> bool {
        self.fault = Some(why);
        false
    }
}
