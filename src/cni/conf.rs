//! The configuration on standard input: keys of the specification, what a chain and a runtime add, and podwire's own
//! section (CNI 1.1, sections 1 and 5).
//!
//! Keys that the specification does not name are other plugins' or a runtime's, and are passed over; a flannel `delegate`
//! brings those of the bridge plugin. Within `podwire` a key that is none is a mistake.

use super::call::Verb;
use super::capabilities::Wishes;
use super::error::{CniError, Code};
use super::json::{Keys, Place, expected, shown};
use super::result::{CniResult, Dns, net};
use super::version::Version;
use crate::model::{PodMtu, is_identifier};
use ipnet::IpNet;
use serde_json::Value;
use std::path::PathBuf;

/// Longest input that is read: GC lists every container of the host.
pub const MAX_INPUT: u64 = 16 << 20;
/// Keys of the section `podwire`.
const OWN: [&str; 2] = ["socket", "namespace"];
/// Keys of the bridge plugin that a flannel `delegate` may have, and that come true without being asked for: the node is
/// the gateway, lets pods out under the host's address, and gives a pod back its own packets.
const FLAGS: [&str; 4] = ["isGateway", "isDefaultGateway", "ipMasq", "hairpinMode"];

/// A configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Conf {
    /// Its version.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The node's admin socket; the only node of the user when none.
    pub socket: Option<PathBuf>,
    /// The namespace of containers that have none.
    pub namespace: String,
    /// The MTU of interfaces; the node's when none.
    pub mtu: Option<PodMtu>,
    /// Networks the node's subnet must be of; of any when there is none.
    pub ranges: Vec<IpNet>,
    /// What the container is told of name resolution; what the node says when nothing.
    pub dns: Dns,
    /// What plugins before this one have made; none when this is the first.
    pub before: Option<CniResult>,
    /// What runtime and user want of this container.
    pub wishes: Wishes,
    /// Containers and interfaces that there are, for GC.
    pub valid: Vec<(String, String)>,
}

/// The version in the input, as far as it says one: an error is told in it.
pub fn version_of(input: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(input).ok()?;
    let version = value.get("cniVersion")?.as_str()?;
    Some(shown(version))
}

impl Conf {
    /// Read the input of a verb.
    ///
    /// # Errors
    /// Code 6 when it is no JSON, 1 for its version, 7 with the key for a wrong value, 2 for what podwire does not do.
    pub fn read(input: &[u8], verb: Verb) -> Result<Conf, CniError> {
        let value: Value = serde_json::from_slice(input).map_err(|e| {
            CniError::new(
                Code::Decoding,
                format!("the network configuration on standard input is no JSON: {e}"),
            )
        })?;
        let keys = Keys::of(Some(&value), Place::Root).map_err(|_| {
            CniError::new(
                Code::Decoding,
                "the network configuration on standard input is no JSON object",
            )
        })?;
        // Without one it is of 0.1.0, as the specification once said.
        let version = Version::read(keys.text("cniVersion")?.unwrap_or("0.1.0"))?;
        let since = match verb {
            Verb::Check => Version::V040,
            Verb::Gc | Verb::Status => Version::V110,
            Verb::Add | Verb::Del | Verb::Version => Version::V030,
        };
        if version < since {
            let what = format!(
                "{} came with CNI {}, and the network configuration is of {} (raise cniVersion)",
                format!("{verb:?}").to_uppercase(),
                since.text(),
                version.text()
            );
            return Err(CniError::new(Code::IncompatibleVersion, what));
        }
        let network = keys.text("name")?.unwrap_or_default();
        if !is_identifier(network) {
            let what = format!(
                "{:?} is no network's name (letters and digits, and behind the first '_', '.' and '-')",
                shown(network)
            );
            return Err(CniError::config("name", what));
        }
        let own = Keys::of(keys.get("podwire"), keys.at("podwire"))?;
        if matches!(verb, Verb::Del | Verb::Gc) {
            return Conf::to_free(&keys, &own, version, verb);
        }
        if let Some(unknown) = own.names().find(|k| !OWN.contains(&k.as_str())) {
            let what = format!("there is no such key (known are {})", OWN.join(" and "));
            return Err(CniError::config(own.at(&shown(unknown)), what));
        }
        for key in FLAGS {
            keys.flag(key)?;
        }
        let at_add = verb == Verb::Add;
        Ok(Conf {
            version,
            network: network.into(),
            socket: socket(&own)?,
            namespace: namespace(&own)?,
            mtu: mtu(&keys)?,
            ranges: ranges(&keys)?,
            dns: Dns::read(&Keys::of(keys.get("dns"), keys.at("dns"))?)?,
            before: before(&keys, verb)?,
            // What was wished at ADD is no matter later, as is what changed since then.
            wishes: if at_add {
                Wishes::read(&keys, network)?
            } else {
                Wishes::default()
            },
            valid: Vec::new(),
        })
    }

    /// What is needed to take something away: a mistake elsewhere must not keep it there.
    fn to_free(keys: &Keys<'_>, own: &Keys<'_>, version: Version, verb: Verb) -> Result<Conf, CniError> {
        Ok(Conf {
            version,
            network: keys.text("name")?.unwrap_or_default().into(),
            socket: socket(own)?,
            namespace: String::new(),
            mtu: None,
            ranges: Vec::new(),
            dns: Dns::default(),
            before: before(keys, verb)?,
            wishes: Wishes::default(),
            valid: if verb == Verb::Gc {
                valid(keys)?
            } else {
                Vec::new()
            },
        })
    }

    /// Whether a node with these subnets is the one that the configuration speaks of.
    ///
    /// # Errors
    /// Code 7 with what the node has.
    pub fn check_subnets(&self, subnets: &[IpNet]) -> Result<(), CniError> {
        let of_family = |n: &IpNet| {
            self.ranges
                .iter()
                .filter(|r| r.network().is_ipv4() == n.network().is_ipv4())
                .count()
        };
        let fits =
            |n: &IpNet| of_family(n) == 0 || self.ranges.iter().any(|r| r.contains(n) || n.contains(r));
        match subnets.iter().find(|n| !fits(n)) {
            None => Ok(()),
            Some(other) => Err(CniError::config(
                "ipam",
                format!(
                    "its ranges have nothing of this node's subnet {other} (leave ipam out: the node gives addresses)"
                ),
            )),
        }
    }
}

/// What is damaged keeps nothing from being taken away.
fn before(keys: &Keys<'_>, verb: Verb) -> Result<Option<CniResult>, CniError> {
    let read = keys
        .get("prevResult")
        .map(|value| CniResult::read(value, "prevResult"));
    match verb {
        Verb::Del | Verb::Gc | Verb::Status => Ok(read.and_then(Result::ok)),
        _ => read.transpose(),
    }
}

fn socket(own: &Keys<'_>) -> Result<Option<PathBuf>, CniError> {
    let Some(path) = own.text("socket")?.filter(|p| !p.is_empty()) else {
        return Ok(None);
    };
    if !path.starts_with('/') {
        let what = format!("{:?} is no absolute path (as /run/podwire/n1.sock)", shown(path));
        return Err(CniError::config(own.at("socket"), what));
    }
    Ok(Some(path.into()))
}

fn namespace(own: &Keys<'_>) -> Result<String, CniError> {
    let name = own.text("namespace")?.unwrap_or("default");
    if format!("{name}/x").parse::<crate::model::PodName>().is_err() {
        let what = format!(
            "{:?} is no namespace (letters, digits, '-', '_' and '.')",
            shown(name)
        );
        return Err(CniError::config(own.at("namespace"), what));
    }
    Ok(name.into())
}

fn mtu(keys: &Keys<'_>) -> Result<Option<PodMtu>, CniError> {
    match keys.number("mtu")? {
        None | Some(0) => Ok(None),
        Some(n) => match u16::try_from(n) {
            Ok(n) if n >= 576 => Ok(Some(PodMtu(n))),
            _ => Err(CniError::config(
                "mtu",
                format!("{n} is out of range (576 to 65521, or leave it out)"),
            )),
        },
    }
}

/// Ranges of host-local, as flannel gives them: podwire gives the addresses, and sees that they are of these.
fn ranges(keys: &Keys<'_>) -> Result<Vec<IpNet>, CniError> {
    let ipam = Keys::of(keys.get("ipam"), keys.at("ipam"))?;
    match ipam.text("type")? {
        None | Some("" | "host-local") => {}
        Some(other) => {
            let what = format!(
                "{:?} gives no addresses here: the node does (leave ipam out, or have host-local as flannel does)",
                shown(other)
            );
            return Err(CniError::config(ipam.at("type"), what));
        }
    }
    let mut all: Vec<IpNet> = net(&ipam, "subnet")?.into_iter().collect();
    let place = ipam.at("ranges");
    for (n, set) in ipam.list("ranges")?.iter().enumerate() {
        let place = Place::Item(&place, n);
        let Value::Array(set) = set else {
            return Err(expected(place, "a list", set));
        };
        for (n, range) in set.iter().enumerate() {
            let range = Keys::of(Some(range), Place::Item(&place, n))?;
            all.extend(net(&range, "subnet")?);
        }
    }
    Ok(all)
}

fn valid(keys: &Keys<'_>) -> Result<Vec<(String, String)>, CniError> {
    let key = "cni.dev/valid-attachments";
    if keys.get(key).is_none() {
        let what = "GC needs the list of what there is (nothing is freed without it)";
        return Err(CniError::config(key, what));
    }
    let place = keys.at(key);
    let one = |(n, value)| {
        let item = Keys::of(Some(value), Place::Item(&place, n))?;
        let text = |key| {
            let text = item.text(key)?;
            text.map(String::from)
                .ok_or_else(|| CniError::config(item.at(key), "it is missing"))
        };
        Ok((text("containerID")?, text("ifname")?))
    };
    keys.list(key)?.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(verb: Verb, more: Value) -> Result<Conf, CniError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "podwire", "type": "podwire-cni"});
        let (Some(map), Value::Object(more)) = (conf.as_object_mut(), more) else {
            unreachable!()
        };
        map.extend(more);
        Conf::read(conf.to_string().as_bytes(), verb)
    }

    #[test]
    fn the_least_is_enough() {
        let conf = read(Verb::Add, json!({})).unwrap();
        assert_eq!(
            (conf.network.as_str(), conf.namespace.as_str()),
            ("podwire", "default")
        );
        assert_eq!((conf.socket, conf.mtu, conf.before), (None, None, None));
    }

    #[test]
    fn flannels_delegate_is_understood() {
        let conf = read(
            Verb::Add,
            json!({
                "name": "cbr0", "cniVersion": "0.3.1", "hairpinMode": true, "isDefaultGateway": true, "isGateway": true,
                "ipMasq": false, "mtu": 1450,
                "ipam": {"type": "host-local", "routes": [{"dst": "10.244.0.0/16"}],
                         "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]},
            }),
        )
        .unwrap();
        assert_eq!(conf.mtu, Some(PodMtu(1450)));
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        assert!(
            conf.check_subnets(&[net("10.244.1.0/24"), net("fd00:1::/64")])
                .is_ok()
        );
        assert!(conf.check_subnets(&[net("10.244.1.0/24")]).is_ok());
        let e = conf.check_subnets(&[net("10.244.2.0/24")]).unwrap_err();
        assert!(e.msg.contains("10.244.2.0/24"), "{e}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (more, key) in [
            (json!({"name": "a/b"}), "name: "),
            (json!({"name": null}), "name: "),
            (json!({"mtu": 100}), "mtu: "),
            (json!({"mtu": "1500"}), "mtu: "),
            (json!({"podwire": {"sokcet": "/x"}}), "podwire.sokcet: "),
            (json!({"podwire": {"socket": "x"}}), "podwire.socket: "),
            (json!({"podwire": {"namespace": "a/b"}}), "podwire.namespace: "),
            (json!({"podwire": []}), "podwire: "),
            (json!({"ipMasq": "yes"}), "ipMasq: "),
            (json!({"ipam": {"type": "dhcp"}}), "ipam.type: "),
            (json!({"ipam": {"ranges": [{}]}}), "ipam.ranges[0]: "),
            (
                json!({"ipam": {"ranges": [[{"subnet": "x"}]]}}),
                "ipam.ranges[0][0].subnet: ",
            ),
            (json!({"prevResult": 1}), "prevResult: "),
            (json!({"dns": {"nameservers": "x"}}), "dns.nameservers: "),
        ] {
            let e = read(Verb::Add, more).unwrap_err();
            assert_eq!(e.code, Code::Config, "{e}");
            assert!(e.msg.starts_with(key), "{key}: {e}");
        }
        let wrong = json!({"mtu": 1, "ipam": {"type": "dhcp"}, "podwire": {"x": 1}, "dns": 1, "ipMasq": 1});
        assert!(read(Verb::Del, wrong).is_ok());
        let e = Conf::read(b"{", Verb::Add).unwrap_err();
        assert_eq!(e.code, Code::Decoding);
        assert_eq!(Conf::read(b"[]", Verb::Add).unwrap_err().code, Code::Decoding);
        let e = Conf::read(b"{\"name\": \"a\"}", Verb::Add).unwrap_err();
        assert_eq!(e.code, Code::IncompatibleVersion);
    }

    #[test]
    fn verbs_have_their_versions() {
        let of = |verb, version: &str| {
            read(
                verb,
                json!({"cniVersion": version, "cni.dev/valid-attachments": []}),
            )
        };
        assert!(of(Verb::Check, "0.4.0").is_ok());
        assert_eq!(
            of(Verb::Check, "0.3.1").unwrap_err().code,
            Code::IncompatibleVersion
        );
        assert!(
            of(Verb::Gc, "1.0.0")
                .unwrap_err()
                .msg
                .starts_with("GC came with CNI 1.1.0")
        );
        assert!(of(Verb::Status, "1.1.0").is_ok());
    }

    #[test]
    fn gc_needs_its_list() {
        assert!(
            read(Verb::Gc, json!({}))
                .unwrap_err()
                .msg
                .starts_with("cni.dev/valid-attachments: ")
        );
        let list = json!({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]});
        assert_eq!(
            read(Verb::Gc, list).unwrap().valid,
            [("a".to_string(), "eth0".to_string())]
        );
        let list = json!({"cni.dev/valid-attachments": [{"containerID": "a"}]});
        let e = read(Verb::Gc, list).unwrap_err();
        assert!(e.msg.starts_with("cni.dev/valid-attachments[0].ifname: "), "{e}");
    }

    #[test]
    fn errors_are_told_in_the_inputs_version() {
        assert_eq!(version_of(b"{\"cniVersion\": \"9\"}").as_deref(), Some("9"));
        assert_eq!(version_of(b"{"), None);
    }
}
