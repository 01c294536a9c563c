//! The static file of peers, and what it means.
//!
//! ```toml
//! [[peer]]
//! name = "n2"
//! underlay = "192.0.2.2"        # or "192.0.2.2:8473", or "[2001:db8::2]:8473"
//! subnet = "10.244.2.0/24"
//! ```
//!
//! `subnet6`, `underlay6`, `vtep_mac`, `vtep_mac6` and `mtu` may follow. An entry with this node's own name is
//! skipped, so that one file serves all nodes.

use super::default_vtep_mac;
use super::strict::{Allowed, Document, Mistake, scalar, unknown_key};
use crate::model::{LocalNode, MAX_PEERS, Mac, Peer, Snapshot, UnderlayMtu};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use toml::de::{DeTable, DeValue};

const KEYS: &[&str] = &[
    "name",
    "underlay",
    "underlay6",
    "subnet",
    "subnet6",
    "vtep_mac",
    "vtep_mac6",
    "mtu",
];
const TEXT: Allowed = Allowed {
    text: true,
    number: false,
};
const NUMBER: Allowed = Allowed {
    text: false,
    number: true,
};

/// Give meaning to `text`, the content of the peers file at `path`; `port` is where a peer's socket is unless
/// its entry says otherwise.
///
/// # Errors
/// The first mistake, with line, key and remedy.
pub fn parse(path: &Path, text: &str, own: &LocalNode, port: u16) -> Result<Snapshot, Mistake> {
    let doc = Document::parse(path, text)?;
    let mut peers: Vec<Peer> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut claims = Claims::default();
    for (key, value) in doc.root() {
        let at = key.span().start;
        if key.get_ref() != "peer" {
            return Err(doc.mistake(
                at,
                key.get_ref().clone(),
                unknown_key(key.get_ref(), ["peer"].into_iter()),
            ));
        }
        let Some(entries) = value.get_ref().as_array() else {
            return Err(doc.mistake(
                at,
                "peer",
                "a list is wanted (begin each peer with a line [[peer]])",
            ));
        };
        for (i, entry) in entries.iter().enumerate() {
            let at = entry.span().start;
            let label = format!("peer[{}]", i + 1);
            let Some(table) = entry.get_ref().as_table() else {
                return Err(doc.mistake(
                    at,
                    label,
                    "a table is wanted (begin each peer with a line [[peer]])",
                ));
            };
            let entry = Entry {
                doc: &doc,
                table,
                at,
                label,
            };
            let peer = entry.peer(port)?;
            if let Some(line) = places.insert(peer.name.to_string(), i + 1) {
                return Err(entry.mistake(
                    "name",
                    format!("{} is the name of peer[{line}] too (names are unique)", peer.name),
                ));
            }
            if peer.name != own.name {
                entry.fits(&peer, &peers, &claims, own)?;
                claims.add(&peer, peers.len());
                peers.push(peer);
            }
        }
    }
    if peers.len() > MAX_PEERS {
        let what = format!("there are {} peers (a node takes {MAX_PEERS})", peers.len());
        return Err(doc.mistake(0, "peer", what));
    }
    Ok(Snapshot { peers })
}

/// What peers have, each alone: with the number of the peer. A thousand of them are not compared with each other.
#[derive(Default)]
struct Claims {
    /// Subnets by their first address; none overlaps another.
    nets: BTreeMap<IpAddr, (IpNet, usize)>,
    underlays: HashMap<SocketAddr, usize>,
    macs: HashMap<Mac, usize>,
}

impl Claims {
    fn add(&mut self, peer: &Peer, number: usize) {
        for net in nets(peer.subnet4, peer.subnet6) {
            self.nets.insert(net.network(), (net, number));
        }
        self.underlays.insert(peer.underlay, number);
        self.macs.insert(peer.vtep_mac, number);
    }

    /// A subnet that overlaps `net`, and whose it is. The last one that begins before the end of `net` reaches
    /// into it, or none does. IPv4 addresses come before all of IPv6.
    fn overlap(&self, net: IpNet) -> Option<(IpNet, usize)> {
        let (_, last) = self.nets.range(..=net.broadcast()).next_back()?;
        overlap(last.0, net).then_some(*last)
    }
}

/// One `[[peer]]`.
struct Entry<'d, 'a> {
    doc: &'d Document<'a>,
    table: &'d DeTable<'a>,
    at: usize,
    label: String,
}

impl Entry<'_, '_> {
    fn peer(&self, port: u16) -> Result<Peer, Mistake> {
        if let Some(key) = self.table.keys().find(|k| !KEYS.contains(&k.get_ref().as_ref())) {
            let what = unknown_key(key.get_ref(), KEYS.iter().copied());
            let label = format!("{}.{}", self.label, key.get_ref());
            return Err(self.doc.mistake(key.span().start, label, what));
        }
        let name = self
            .value("name", TEXT)?
            .ok_or_else(|| self.mistake("name", "is missing (name = \"n2\")"))?;
        let underlay6 = self.with("underlay6", |s| endpoint(s, port))?;
        if let Some(SocketAddr::V4(_)) = underlay6 {
            return Err(self.mistake(
                "underlay6",
                "is an IPv4 address (IPv6 is wanted; IPv4 goes to `underlay`)",
            ));
        }
        let (underlay, underlay6) = match (self.with("underlay", |s| endpoint(s, port))?, underlay6) {
            (Some(a), b) => (a, b),
            (None, Some(b)) => (b, None),
            (None, None) => {
                return Err(self.mistake("underlay", "is missing (underlay = \"192.0.2.2\")"));
            }
        };
        let subnet4 = self.with("subnet", subnet4)?;
        let subnet6 = self.with("subnet6", subnet6)?;
        if subnet4.is_none() && subnet6.is_none() {
            return Err(self.mistake("subnet", "is missing (subnet = \"10.244.2.0/24\", or subnet6)"));
        }
        let vtep_mac = self
            .with("vtep_mac", mac)?
            .unwrap_or_else(|| default_vtep_mac(subnet4, subnet6));
        let mtu = self.value("mtu", NUMBER)?.map(|n| match n.parse() {
            Ok(n @ 576..) => Ok(UnderlayMtu(n)),
            _ => Err(self.mistake("mtu", format!("{n} is no MTU (576 to 65535)"))),
        });
        Ok(Peer {
            name: name
                .parse()
                .map_err(|e: <crate::model::NodeName as FromStr>::Err| self.mistake("name", e.to_string()))?,
            underlay,
            underlay6,
            subnet4,
            subnet6,
            vtep_mac,
            vtep_mac6: self.with("vtep_mac6", mac)?.unwrap_or(vtep_mac),
            mtu: mtu.transpose()?,
        })
    }

    /// Whether a new peer leaves the `others`, and this node, their own.
    fn fits(&self, new: &Peer, others: &[Peer], claims: &Claims, own: &LocalNode) -> Result<(), Mistake> {
        for net in nets(new.subnet4, new.subnet6) {
            let key = if matches!(net, IpNet::V4(_)) {
                "subnet"
            } else {
                "subnet6"
            };
            if let Some(mine) = nets(own.subnet4, own.subnet6).find(|o| overlap(*o, net)) {
                return Err(self.mistake(
                    key,
                    format!("{net} overlaps {mine} of this node (each node needs its own)"),
                ));
            }
            if let Some((theirs, other)) = claims.overlap(net) {
                let what = format!(
                    "{net} overlaps {theirs} of peer {} (each node needs its own)",
                    others[other].name
                );
                return Err(self.mistake(key, what));
            }
        }
        if let Some(other) = claims.underlays.get(&new.underlay) {
            let what = format!(
                "{} is that of peer {} too (each node has its own)",
                new.underlay, others[*other].name
            );
            return Err(self.mistake("underlay", what));
        }
        let mac = new.vtep_mac;
        let whose = match claims.macs.get(&mac) {
            Some(other) => format!("peer {} too", others[*other].name),
            None if mac == own.vtep_mac => "this node".into(),
            None => return Ok(()),
        };
        Err(self.mistake(
            "vtep_mac",
            format!("{mac} is that of {whose} (each node has its own)"),
        ))
    }

    fn value(&self, key: &str, allowed: Allowed) -> Result<Option<String>, Mistake> {
        let value = self.table.get(key).map(|v| scalar(v.get_ref(), allowed));
        value.transpose().map_err(|what| self.mistake(key, what))
    }

    fn with<T>(&self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Mistake> {
        let text = self.value(key, TEXT)?;
        text.map(|t| read(&t))
            .transpose()
            .map_err(|what| self.mistake(key, what))
    }

    fn mistake(&self, key: &str, what: impl Into<String>) -> Mistake {
        let at = self.table.get(key).map_or(self.at, |v| v.span().start);
        let name = self
            .table
            .get("name")
            .and_then(|n: &toml::Spanned<DeValue<'_>>| n.get_ref().as_str());
        let name = name.map(|n| format!(" ({n})")).unwrap_or_default();
        self.doc.mistake(at, format!("{}{name}.{key}", self.label), what)
    }
}

/// An IPv4 subnet of a node: /8 to /30, without host bits.
///
/// # Errors
/// The sentence that says what would be right.
pub fn subnet4(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IPv4 subnet (write it as 10.244.1.0/24)"))?;
    if !(8..=30).contains(&net.prefix_len()) {
        return Err(format!(
            "/{} cannot hold pods (use /8 to /30, /24 is usual)",
            net.prefix_len()
        ));
    }
    if net.trunc() != net {
        return Err(format!("{text} has host bits set (write {})", net.trunc()));
    }
    if net.network().is_multicast() || net.network().is_loopback() || net.network().is_unspecified() {
        return Err(format!(
            "{text} is not for hosts (use a private range, as 10.244.1.0/24)"
        ));
    }
    Ok(net)
}

/// An IPv6 subnet of a node: /32 to /126, without host bits.
///
/// # Errors
/// The sentence that says what would be right.
pub fn subnet6(text: &str) -> Result<Ipv6Net, String> {
    let net: Ipv6Net = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IPv6 subnet (write it as fd00:10:244:1::/64)"))?;
    if !(32..=126).contains(&net.prefix_len()) {
        return Err(format!(
            "/{} cannot hold pods (use /32 to /126, /64 is usual)",
            net.prefix_len()
        ));
    }
    if net.trunc() != net {
        return Err(format!("{text} has host bits set (write {})", net.trunc()));
    }
    if net.network().is_multicast() || net.network().is_unicast_link_local() {
        return Err(format!(
            "{text} cannot be routed (use a unique local range, as fd00:10:244:1::/64)"
        ));
    }
    Ok(net)
}

/// A MAC one host may have.
///
/// # Errors
/// The sentence that says what would be right.
pub fn mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse().map_err(|e| format!("{e}"))?;
    if mac.is_multicast() || mac == Mac::default() {
        return Err(format!(
            "{mac} is not the address of one host (the first octet must be even, as in 0e:57:0a:f4:01:00)"
        ));
    }
    Ok(mac)
}

fn endpoint(text: &str, port: u16) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let addr = bare
        .unwrap_or(text)
        .parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, port))
        .or_else(|_| text.parse::<SocketAddr>())
        .map_err(|_| {
            format!(
                "{text:?} is not an address (write 192.0.2.2, 192.0.2.2:8473 or [2001:db8::2]:8473; names \
                 are not looked up)"
            )
        })?;
    if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
        return Err(format!(
            "nothing can be sent to {text} (name the node's own address)"
        ));
    }
    Ok(addr)
}

fn nets(four: Option<Ipv4Net>, six: Option<Ipv6Net>) -> impl Iterator<Item = IpNet> {
    four.map(IpNet::from).into_iter().chain(six.map(IpNet::from))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{PodMtu, Vni};

    /// Node n1 with 10.244.1.0/24.
    pub(crate) fn own() -> LocalNode {
        let subnet = "10.244.1.0/24".parse().unwrap();
        LocalNode {
            name: "n1".parse().unwrap(),
            subnet4: Some(subnet),
            subnet6: None,
            vtep_mac: default_vtep_mac(Some(subnet), None),
            vtep_mac6: default_vtep_mac(Some(subnet), None),
            gateway_mac: Mac::of_ipv4([10, 244, 1, 1].into()),
            vni: Vni::try_from(1).unwrap(),
            pod_mtu: PodMtu(1450),
            underlay_mtu: UnderlayMtu(1500),
        }
    }

    fn read(text: &str) -> Result<Snapshot, String> {
        parse(Path::new("peers.toml"), text, &own(), 8472).map_err(|e| e.to_string())
    }

    const TWO: &str = "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.2.0/24\"\n";

    #[test]
    fn one_file_serves_all_nodes() {
        let text = format!(
            "{TWO}\n[[peer]]\nname = \"n1\"\nunderlay = \"192.0.2.1\"\nsubnet = \"10.244.1.0/24\"\n\n\
             [[peer]]\nname = \"n3\"\nunderlay = \"[2001:db8::3]:8473\"\nsubnet6 = \"fd00:3::/64\"\nmtu = 1400\n"
        );
        let peers = read(&text).unwrap().peers;
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].underlay, "192.0.2.2:8472".parse().unwrap());
        assert_eq!(peers[0].vtep_mac, "0e:57:0a:f4:02:00".parse().unwrap());
        assert_eq!(peers[1].underlay, "[2001:db8::3]:8473".parse().unwrap());
        assert_eq!(peers[1].mtu, Some(UnderlayMtu(1400)));
        assert!(read("peer = []").unwrap().peers.is_empty());
    }

    #[test]
    fn mistakes_name_line_key_and_remedy() {
        let cases = [
            ("peer = 3", "peers.toml:1: peer: a list is wanted"),
            ("[[pear]]", "did you mean `peer`"),
            (
                "[[peer]]\nnmae = \"x\"",
                "peers.toml:2: peer[1].nmae: there is no such key (did you mean `name`?)",
            ),
            ("[[peer]]\n", "peer[1].name: is missing"),
            ("[[peer]]\nname = \"n2\"\n", "peer[1] (n2).underlay: is missing"),
            (
                "[[peer]]\nname = \"n2\"\nunderlay = \"host\"\n",
                "peers.toml:3: peer[1] (n2).underlay: \"host\" is not an address",
            ),
            (
                "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.2.5/24\"\n",
                "(write 10.244.2.0/24)",
            ),
            (
                "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nsubnet = \"10.244.0.0/16\"\n",
                "peers.toml:4: peer[1] (n2).subnet: 10.244.0.0/16 overlaps 10.244.1.0/24 of this node",
            ),
            (
                "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nmtu = 9\nsubnet = \"10.9.0.0/16\"",
                "9 is no MTU",
            ),
            (
                "[[peer]]\nname = \"n2\"\nunderlay = \"192.0.2.2\"\nvtep_mac = \"01:00:5e:00:00:01\"\nsubnet = \"10.9.0.0/16\"",
                "first octet must be even",
            ),
        ];
        for (text, want) in cases {
            let got = read(text).unwrap_err();
            assert!(got.contains(want), "{text}\n  gave {got}\n  not  {want}");
        }
        let twice = read(&format!("{TWO}{TWO}")).unwrap_err();
        assert!(twice.contains("n2 is the name of peer[1] too"), "{twice}");
        let overlap = TWO
            .replace("n2", "n3")
            .replace("10.244.2.0/24", "10.244.2.128/25");
        let overlap = read(&format!("{TWO}{overlap}")).unwrap_err();
        assert!(overlap.contains("of peer n2"), "{overlap}");
    }

    /// Whatever is wrong with whichever key: line, peer, key, and in parentheses what would be right.
    #[test]
    fn each_key_says_what_would_be_right() {
        let good = [
            ("name", "\"n2\""),
            ("underlay", "\"192.0.2.2\""),
            ("underlay6", "\"2001:db8::2\""),
            ("subnet", "\"10.244.2.0/24\""),
            ("subnet6", "\"fd00:2::/64\""),
            ("vtep_mac", "\"02:00:00:00:00:02\""),
            ("vtep_mac6", "\"02:00:00:00:00:03\""),
            ("mtu", "1500"),
        ];
        assert_eq!(good.map(|(key, _)| key), KEYS);
        let wrong = [
            "1.5",
            "true",
            "[]",
            "{}",
            "\"\"",
            "\"?\"",
            "-1",
            "70000",
            "99999999999999999999",
        ];
        for (at, (key, _)) in good.iter().enumerate() {
            for value in wrong {
                let lines = good.map(|(k, v)| format!("{k} = {}\n", if k == *key { value } else { v }));
                let told = read(&format!("[[peer]]\n{}", lines.concat())).unwrap_err();
                let of = if *key == "name" && !value.starts_with('"') {
                    ""
                } else {
                    " (n2)"
                };
                let begins = match (*key, value) {
                    ("name", _) => told.starts_with("peers.toml:2: peer[1]"),
                    _ => told.starts_with(&format!("peers.toml:{}: peer[1]{of}.{key}: ", at + 2)),
                };
                assert!(
                    begins && told.contains(" (") && !told.contains('\n'),
                    "{key} = {value}: {told}"
                );
            }
        }
    }

    /// What two peers, or a peer and this node, cannot have both.
    #[test]
    fn what_must_be_ones_own_is_named_with_its_other_owner() {
        let peer = |n: u8, more: &str| {
            format!(
                "[[peer]]\nname = \"n{n}\"\nunderlay = \"192.0.2.{n}\"\nsubnet = \"10.244.{n}.0/24\"\n{more}\n"
            )
        };
        let mac = "vtep_mac = \"02:00:00:00:00:02\"";
        let own = format!("vtep_mac = \"{}\"", own().vtep_mac);
        let cases = [
            (
                peer(2, "") + &peer(3, "").replace("192.0.2.3", "192.0.2.2"),
                "peer[2] (n3).underlay: 192.0.2.2:8472 is that of peer n2 too (",
            ),
            (
                peer(2, mac) + &peer(3, mac),
                "peer[2] (n3).vtep_mac: 02:00:00:00:00:02 is that of peer n2 too (",
            ),
            (
                peer(2, &own),
                "peer[1] (n2).vtep_mac: 0e:57:0a:f4:01:00 is that of this node (",
            ),
            (
                peer(2, "") + &peer(2, ""),
                "peer[2] (n2).name: n2 is the name of peer[1] too (",
            ),
        ];
        for (text, want) in cases {
            let told = read(&text).unwrap_err();
            assert!(told.contains(want), "{told}\n  not  {want}");
        }
    }
}
