//! The network's configuration, written by the administrator at `<prefix>/config`.
//!
//! ```json
//! {"Network": "10.61.0.0/16", "Backend": {"Type": "vxlan"}}
//! ```
//!
//! Defaults and bounds are flannel's (`ParseConfig` and `CheckNetworkConfig` of `pkg/subnet/config.go`). Beyond them,
//! what podwire would not do as it is written is refused, so that a cluster never works in part.

use super::json::Json;
use super::key::SubnetKey;
use super::range::{Range4, Range6};
use crate::model::{UnderlayMtu, Vni};
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::json;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Where a Linux kernel has VXLAN when nobody says otherwise.
const PORT: u16 = 8472;
/// Smallest MTU of an underlay (RFC 791), and with IPv6 pods: 1280 (RFC 8200) and the overhead over IPv6.
const MIN_MTU: (u16, u16) = (576, 1350);

/// The network all subnets are cut from, and how nodes reach each other. Complete: defaults are filled in, bounds
/// checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Where IPv4 subnets come from.
    pub range4: Range4,
    /// Where IPv6 subnets come from, when the network is dual-stack.
    pub range6: Option<Range6>,
    /// VNI of the overlay.
    pub vni: u32,
    /// UDP port of the overlay; flannel's zero is 8472 here.
    pub port: u16,
    /// MTU of the underlay the administrator asks for, instead of that of each node's interface. Pods get what
    /// remains of it behind the overhead.
    pub mtu: Option<UnderlayMtu>,
}

/// What is wrong with a network's configuration: the key, what it says, what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {what}")]
pub struct NetworkError {
    /// The key of the JSON, `config` for the whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl Network {
    /// Read the configuration.
    ///
    /// # Errors
    /// The first key that says what podwire cannot do, and what would be right.
    pub fn parse(bytes: &[u8]) -> Result<Network, NetworkError> {
        Network::parse_with_notes(bytes).map(|(network, _)| network)
    }

    /// The same, with what a person should know of a configuration that is accepted: a sentence for each.
    ///
    /// # Errors
    /// As [`Network::parse`].
    pub fn parse_with_notes(bytes: &[u8]) -> Result<(Network, Vec<String>), NetworkError> {
        let json = Json::read(bytes).map_err(|e| error("config", e))?;
        let Json::Object(_) = json else {
            let what =
                format!("{json} stands where an object is wanted ({{\"Network\": \"10.61.0.0/16\", ...}})");
            return Err(error("config", what));
        };
        let top = Keys {
            json: &json,
            path: "",
        };
        if !top.flag("EnableIPv4", true)? {
            // Subnets, keys and their parser all have an IPv4 part in flannel's etcd layout.
            let what = "is false (IPv6 alone cannot be kept in etcd in flannel's layout: use IPv4 too, or peers files)";
            return Err(error("EnableIPv4", what));
        }
        let mut notes = Vec::new();
        let six = top.flag("EnableIPv6", false)?;
        let range4 = range4(&top, &mut notes)?;
        let range6 = six.then(|| range6(&top, &mut notes)).transpose()?;
        let (vni, port, mtu) = backend(&json, six, &mut notes)?;
        let network = Network {
            range4,
            range6,
            vni,
            port,
            mtu,
        };
        Ok((network, notes))
    }

    /// The configuration with everything said, as JSON that flannel reads to the same.
    pub fn write(&self) -> Vec<u8> {
        let mut config = json!({
            "Network": self.range4.net,
            "SubnetLen": self.range4.min.prefix_len(),
            "SubnetMin": self.range4.min.addr(),
            "SubnetMax": self.range4.max.addr(),
            "Backend": { "Type": "vxlan", "VNI": self.vni, "Port": self.port },
        });
        if let Some(range) = self.range6 {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = json!(range.net);
            config["IPv6SubnetLen"] = range.min.prefix_len().into();
            config["IPv6SubnetMin"] = json!(range.min.addr());
            config["IPv6SubnetMax"] = json!(range.max.addr());
        }
        if let Some(mtu) = self.mtu {
            config["Backend"]["MTU"] = mtu.0.into();
        }
        config.to_string().into_bytes()
    }

    /// Whether the subnet is one a node of this network may take: in the range, of the right length, with an IPv6
    /// part exactly when the network has one. flannel's rule for what it takes up again.
    pub fn fits(&self, key: &SubnetKey) -> bool {
        let six = match (self.range6, key.net6) {
            (Some(range), Some(net)) => range.fits(net),
            (None, None) => true,
            _ => false,
        };
        self.range4.fits(key.net4) && six
    }

    /// Whether the subnet lies in this network at all, whatever its length: routes of a peer must not reach beyond.
    /// An IPv6 part does not count where the network has none.
    pub fn contains(&self, key: &SubnetKey) -> bool {
        let six = match (self.range6, key.net6) {
            (Some(range), Some(net)) => range.net.contains(&net),
            _ => true,
        };
        self.range4.net.contains(&key.net4) && six
    }
}

/// An object of the configuration, and where it is.
struct Keys<'a> {
    json: &'a Json,
    path: &'a str,
}

impl Keys<'_> {
    fn error(&self, key: &str, what: impl Into<String>) -> NetworkError {
        error(&format!("{}{key}", self.path), what)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, NetworkError> {
        match self.json.field(key) {
            None => Ok(default),
            Some(Json::Bool(b)) => Ok(*b),
            Some(other) => Err(self.error(
                key,
                format!("is {other} (true or false is wanted, without quotes)"),
            )),
        }
    }

    /// A number; `None` for zero too, which is what Go's decoder leaves where nothing is said.
    fn number(&self, key: &str, what: &str) -> Result<Option<u64>, NetworkError> {
        match self.json.field(key) {
            None => Ok(None),
            Some(Json::Whole(n)) => Ok(Some(*n).filter(|n| *n > 0)),
            Some(other) => Err(self.error(key, format!("is {other} ({what})"))),
        }
    }

    fn text<T: FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, NetworkError> {
        let Some(json) = self.json.field(key) else {
            return Ok(None);
        };
        let value = json.text().and_then(|t| t.parse().ok());
        value
            .map(Some)
            .ok_or_else(|| self.error(key, format!("is {json} ({what})")))
    }
}

fn error(key: &str, what: impl Into<String>) -> NetworkError {
    NetworkError {
        key: key.into(),
        what: what.into(),
    }
}

/// Length of the subnets: what is said, or `usual` where four of them fit the network, or a quarter of it.
fn subnet_len(top: &Keys<'_>, key: &str, net: u8, usual: u8, most: u8) -> Result<u8, NetworkError> {
    let least = net + 2;
    match top.number(key, &format!("a length of a prefix is wanted, as {usual}"))? {
        Some(len) => match u8::try_from(len).ok().filter(|len| (least..=most).contains(len)) {
            Some(len) => Ok(len),
            None => {
                let what = format!(
                    "is {len} (four subnets must fit the network, and pods a subnet: {least} to {most})"
                );
                Err(top.error(key, what))
            }
        },
        None => Ok(usual.max(least)),
    }
}

fn range4(top: &Keys<'_>, notes: &mut Vec<String>) -> Result<Range4, NetworkError> {
    let example = "an IPv4 network is wanted, as 10.61.0.0/16";
    let said: Ipv4Net = top
        .text("Network", example)?
        .ok_or_else(|| top.error("Network", format!("is missing ({example})")))?;
    let net = said.trunc();
    let ip = net.network();
    // What is larger holds addresses that are not for hosts.
    if net.prefix_len() < 8 || ip.octets()[0] == 0 || ip.is_loopback() || ip.octets()[0] >= 224 {
        let what =
            format!("{said} is not for pods (a private network of /8 to /28 is wanted, as 10.61.0.0/16)");
        return Err(top.error("Network", what));
    }
    if net.prefix_len() > 28 {
        let what = format!("{said} is too small for four subnets (/28 is the smallest)");
        return Err(top.error("Network", what));
    }
    if net != said {
        notes.push(format!("Network: {said} has host bits set and is taken as {net}"));
    }
    let len = subnet_len(top, "SubnetLen", net.prefix_len(), 24, 30)?;
    let size = 1u32 << (32 - len);
    let end = |key, default: u32| -> Result<Ipv4Net, NetworkError> {
        let said: Option<Ipv4Addr> = top.text(key, "the address of a subnet is wanted, as 10.61.7.0")?;
        let ip = said
            .filter(|ip| !ip.is_unspecified())
            .unwrap_or(Ipv4Addr::from_bits(default));
        let subnet = Ipv4Net::new_assert(ip, len);
        if !net.contains(&ip) {
            return Err(top.error(key, format!("{ip} is not in the network {net}")));
        }
        if subnet != subnet.trunc() {
            let right = subnet.trunc().addr();
            return Err(top.error(key, format!("{ip} is not where a /{len} begins (write {right})")));
        }
        Ok(subnet)
    };
    // The first subnet is not used: its .0 is the network's own address.
    let min = end("SubnetMin", ip.to_bits() + size)?;
    let max = end("SubnetMax", net.broadcast().to_bits() - (size - 1))?;
    if min > max {
        let what = format!(
            "{} is above SubnetMax {} (no subnet is between them)",
            min.addr(),
            max.addr()
        );
        return Err(top.error("SubnetMin", what));
    }
    Ok(Range4 { net, min, max })
}

fn range6(top: &Keys<'_>, notes: &mut Vec<String>) -> Result<Range6, NetworkError> {
    let example = "an IPv6 network is wanted, as fd61::/48";
    let said: Ipv6Net = top.text("IPv6Network", example)?.ok_or_else(|| {
        top.error(
            "IPv6Network",
            format!("is missing while EnableIPv6 is true ({example})"),
        )
    })?;
    let net = said.trunc();
    let ip = net.network();
    // The addresses that begin with a zero octet stand for other things, IPv4 addresses among them.
    if net.prefix_len() < 8 || ip.octets()[0] == 0 || ip.is_multicast() || ip.is_unicast_link_local() {
        let what =
            format!("{said} is not for pods (a unique local network of /8 to /124 is wanted, as fd61::/48)");
        return Err(top.error("IPv6Network", what));
    }
    if net.prefix_len() > 124 {
        let what = format!("{said} is too small for four subnets (/124 is the smallest)");
        return Err(top.error("IPv6Network", what));
    }
    if net != said {
        notes.push(format!(
            "IPv6Network: {said} has host bits set and is taken as {net}"
        ));
    }
    let len = subnet_len(top, "IPv6SubnetLen", net.prefix_len(), 64, 126)?;
    let size = 1u128 << (128 - len);
    let end = |key, default: u128| -> Result<Ipv6Net, NetworkError> {
        let said: Option<Ipv6Addr> = top.text(key, "the address of a subnet is wanted, as fd61:0:0:7::")?;
        let ip = said
            .filter(|ip| !ip.is_unspecified())
            .unwrap_or(Ipv6Addr::from_bits(default));
        let subnet = Ipv6Net::new_assert(ip, len);
        if !net.contains(&ip) {
            return Err(top.error(key, format!("{ip} is not in the network {net}")));
        }
        if subnet != subnet.trunc() {
            let right = subnet.trunc().addr();
            return Err(top.error(key, format!("{ip} is not where a /{len} begins (write {right})")));
        }
        Ok(subnet)
    };
    let min = end("IPv6SubnetMin", ip.to_bits() + size)?;
    let max = end("IPv6SubnetMax", net.broadcast().to_bits() - (size - 1))?;
    if min > max {
        let what = format!(
            "{} is above IPv6SubnetMax {} (no subnet is between them)",
            min.addr(),
            max.addr()
        );
        return Err(top.error("IPv6SubnetMin", what));
    }
    Ok(Range6 { net, min, max })
}

/// VNI, port and MTU, of the only backend there is.
fn backend(
    json: &Json,
    six: bool,
    notes: &mut Vec<String>,
) -> Result<(u32, u16, Option<UnderlayMtu>), NetworkError> {
    let remedy = "podwire speaks VXLAN: write \"Backend\": {\"Type\": \"vxlan\"}";
    let Some(object) = json.field("Backend") else {
        return Err(error(
            "Backend",
            format!("is missing, which means udp to flannel ({remedy})"),
        ));
    };
    let Json::Object(_) = object else {
        return Err(error("Backend", format!("is {object} ({remedy})")));
    };
    let backend = Keys {
        json: object,
        path: "Backend.",
    };
    match object.field("Type") {
        None => return Err(backend.error("Type", format!("is missing ({remedy})"))),
        Some(Json::Text(t)) if t.to_lowercase() == "vxlan" => {}
        Some(other) => return Err(backend.error("Type", format!("is {other} ({remedy})"))),
    }
    if backend.flag("DirectRouting", false)? {
        let what = "is true (nodes of one link would send podwire packets without VXLAN, which only a kernel can \
                    take: write false)";
        return Err(backend.error("DirectRouting", what));
    }
    // A kernel peer puts the mark of a packet, where it has one (kube-proxy's 0x4000), into the VXLAN header as
    // a policy, with a flag that RFC 7348 reserves; podwire drops such frames. Refused, because only some packets
    // would be lost.
    if backend.flag("GBP", false)? {
        let what = "is true (packets with a mark would carry a group policy, which podwire does not read: write \
                    false)";
        return Err(backend.error("GBP", what));
    }
    // A kernel peer that learns sends the same frames. It drops those of a VTEP MAC that come from another address
    // than the lease says; podwire sends from the address in its lease.
    if backend.flag("Learning", false)? {
        notes.push(
            "Backend.Learning: is true; podwire never learns, and kernel peers learn nothing new from it"
                .into(),
        );
    }
    let what = "a number of 24 bits is wanted, 0 to 16777215";
    let vni = match object.field("VNI") {
        None => 1,
        Some(Json::Whole(n)) => u32::try_from(*n)
            .ok()
            .and_then(|n| Vni::try_from(n).ok())
            .map(u32::from)
            .ok_or_else(|| backend.error("VNI", format!("is {n} ({what})")))?,
        Some(other) => return Err(backend.error("VNI", format!("is {other} ({what})"))),
    };
    let what = "a port is wanted, 1 to 65535, or 0 for 8472";
    let port = match backend.number("Port", what)? {
        None => PORT,
        Some(n) => u16::try_from(n).map_err(|_| backend.error("Port", format!("is {n} ({what})")))?,
    };
    let least = if six { MIN_MTU.1 } else { MIN_MTU.0 };
    let what = format!("the underlay's MTU is wanted, {least} to 65535, or nothing for that of each node");
    let mtu = match object.field("MTU") {
        None => None,
        Some(Json::Whole(n)) if (u64::from(least)..=65_535).contains(n) => Some(UnderlayMtu(*n as u16)),
        Some(other) => return Err(backend.error("MTU", format!("is {other} ({what})"))),
    };
    Ok((vni, port, mtu))
}

#[cfg(test)]
mod tests;
