//! Results: what a chain of plugins has made so far, in any version's shape (CNI 1.1, section 5, "Success").
//!
//! Inside it is always the newest shape. Older ones lack some fields (an interface's mtu, socketPath and pciID; all of a
//! route but dst and gw), and before 1.0.0 each address names its IP version.

use super::error::CniError;
use super::json::{Keys, Place, expected, shown};
use super::version::Version;
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Most items of each kind that an earlier plugin may have made.
const MOST: usize = 1024;

/// What plugins have made.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CniResult {
    /// Interfaces, in containers and beside them.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
    /// What names are resolved with.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC, as it was written.
    pub mac: Option<String>,
    /// Its MTU.
    pub mtu: Option<u64>,
    /// The namespace it is in; none on the host.
    pub sandbox: Option<String>,
    /// The socket of one in user space.
    pub socket_path: Option<String>,
    /// The PCI address of one in hardware.
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ip {
    /// It, and its network's length.
    pub address: IpNet,
    /// The gateway of its network.
    pub gateway: Option<IpAddr>,
    /// The number of its interface.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where it leads.
    pub dst: IpNet,
    /// By which gateway.
    pub gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table` and `scope`, as they are there.
    pub more: Vec<(&'static str, i64)>,
}

/// What is said of name resolution.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Dns {
    /// Resolvers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Domains that are appended to short names.
    pub search: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

/// What a route may have beside, from 1.1.0 on.
const ROUTE_EXTRAS: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

impl CniResult {
    /// Read a result of any version.
    ///
    /// # Errors
    /// Code 7 with the key that is wrong; code 1 when it says a version that podwire does not speak.
    pub fn read(value: &Value, at: &str) -> Result<CniResult, CniError> {
        let root = Place::Root;
        let keys = Keys::of(Some(value), Place::Key(&root, at))?;
        if let Some(version) = keys.text("cniVersion")? {
            Version::read(version)?;
        }
        let mut result = CniResult::default();
        let place = keys.at("interfaces");
        for (n, value) in some(keys.list("interfaces")?, place)? {
            let keys = Keys::of(Some(value), Place::Item(&place, n))?;
            let text = |key| Ok::<_, CniError>(keys.text(key)?.map(String::from));
            result.interfaces.push(Interface {
                name: text("name")?.unwrap_or_default(),
                mac: text("mac")?,
                mtu: keys.number("mtu")?,
                sandbox: text("sandbox")?.filter(|s| !s.is_empty()),
                socket_path: text("socketPath")?,
                pci_id: text("pciID")?,
            });
        }
        let place = keys.at("ips");
        for (n, value) in some(keys.list("ips")?, place)? {
            let keys = Keys::of(Some(value), Place::Item(&place, n))?;
            let address = net(&keys, "address")?;
            let interface = keys.number("interface")?;
            let interface = interface.map(|i| usize::try_from(i).unwrap_or(usize::MAX));
            if interface.is_some_and(|i| i >= result.interfaces.len()) {
                let what = "there is no interface of that number";
                return Err(CniError::config(keys.at("interface"), what));
            }
            result.ips.push(Ip {
                address: address.ok_or_else(|| CniError::config(keys.at("address"), "it is missing"))?,
                gateway: address_at(&keys, "gateway")?,
                interface,
            });
        }
        let place = keys.at("routes");
        for (n, value) in some(keys.list("routes")?, place)? {
            result.routes.push(Route::read(value, Place::Item(&place, n))?);
        }
        let dns = Keys::of(keys.get("dns"), keys.at("dns"))?;
        result.dns = Dns::read(&dns)?;
        Ok(result)
    }

    /// In a version's shape.
    pub fn to_json(&self, version: Version) -> Value {
        let new = version >= Version::V110;
        let mut all = Map::new();
        all.insert("cniVersion".into(), version.text().into());
        let interfaces = self.interfaces.iter().map(|i| {
            let mut map = Map::new();
            map.insert("name".into(), i.name.clone().into());
            put(&mut map, "mac", i.mac.clone());
            put(&mut map, "sandbox", i.sandbox.clone());
            if new {
                put(&mut map, "mtu", i.mtu);
                put(&mut map, "socketPath", i.socket_path.clone());
                put(&mut map, "pciID", i.pci_id.clone());
            }
            Value::Object(map)
        });
        list(&mut all, "interfaces", interfaces.collect());
        let ips = self.ips.iter().map(|ip| {
            let mut map = Map::new();
            if version < Version::V100 {
                let number = if ip.address.addr().is_ipv4() { "4" } else { "6" };
                map.insert("version".into(), number.into());
            }
            map.insert("address".into(), ip.address.to_string().into());
            put(&mut map, "gateway", ip.gateway.map(|g| g.to_string()));
            put(&mut map, "interface", ip.interface);
            Value::Object(map)
        });
        list(&mut all, "ips", ips.collect());
        let routes = self.routes.iter().map(|route| {
            let mut map = Map::new();
            map.insert("dst".into(), route.dst.to_string().into());
            put(&mut map, "gw", route.gw.map(|g| g.to_string()));
            for (key, value) in route.more.iter().filter(|_| new) {
                map.insert((*key).into(), (*value).into());
            }
            Value::Object(map)
        });
        list(&mut all, "routes", routes.collect());
        all.insert("dns".into(), self.dns.to_json());
        Value::Object(all)
    }
}

impl Route {
    /// Read one.
    ///
    /// # Errors
    /// Code 7 with the key that is wrong.
    pub(super) fn read(value: &Value, place: Place<'_>) -> Result<Route, CniError> {
        let keys = Keys::of(Some(value), place)?;
        let mut more = Vec::new();
        for key in ROUTE_EXTRAS {
            if let Some(value) = keys.get(key) {
                let number = value.as_i64();
                more.push((
                    key,
                    number.ok_or_else(|| expected(keys.at(key), "a whole number", value))?,
                ));
            }
        }
        Ok(Route {
            dst: net(&keys, "dst")?.ok_or_else(|| CniError::config(keys.at("dst"), "it is missing"))?,
            gw: address_at(&keys, "gw")?,
            more,
        })
    }
}

impl Dns {
    /// Read a result's, or a configuration's.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Dns, CniError> {
        Ok(Dns {
            nameservers: keys.texts("nameservers")?,
            domain: keys.text("domain")?.filter(|d| !d.is_empty()).map(Into::into),
            search: keys.texts("search")?,
            options: keys.texts("options")?,
        })
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    /// What a resolv.conf says.
    pub fn of_resolv_conf(text: &str) -> Dns {
        let mut dns = Dns::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace().map(String::from);
            match words.next().as_deref() {
                Some("nameserver") => dns.nameservers.extend(words.next()),
                Some("search") => dns.search = words.collect(),
                Some("domain") => dns.domain = words.next(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let texts = |t: &[String]| t.iter().map(|s| json!(s)).collect();
        list(&mut map, "nameservers", texts(&self.nameservers));
        put(&mut map, "domain", self.domain.clone());
        list(&mut map, "search", texts(&self.search));
        list(&mut map, "options", texts(&self.options));
        Value::Object(map)
    }
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.into(), value.into());
    }
}

fn list(map: &mut Map<String, Value>, key: &str, items: Vec<Value>) {
    if !items.is_empty() {
        map.insert(key.into(), items.into());
    }
}

fn some<'v>(
    items: &'v [Value],
    place: Place<'_>,
) -> Result<impl Iterator<Item = (usize, &'v Value)>, CniError> {
    if items.len() > MOST {
        return Err(CniError::config(place, format!("it has more than {MOST} items")));
    }
    Ok(items.iter().enumerate())
}

/// An address with the length of its network; one without is a host's.
pub(super) fn net<'v>(keys: &'v Keys<'v>, key: &'v str) -> Result<Option<IpNet>, CniError> {
    let parse = |text: &str| {
        let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(alone).ok_or_else(|| {
            let what = format!("{:?} is no network (write 10.244.1.0/24)", shown(text));
            CniError::config(keys.at(key), what)
        })
    };
    keys.text(key)?.filter(|t| !t.is_empty()).map(parse).transpose()
}

fn address_at<'v>(keys: &'v Keys<'v>, key: &'v str) -> Result<Option<IpAddr>, CniError> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| CniError::config(keys.at(key), format!("{:?} is no address", shown(text))))
    };
    keys.text(key)?.filter(|t| !t.is_empty()).map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> CniResult {
        let value = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "sandbox": "/run/netns/a", "mac": "02:00:00:00:00:02", "pciID": "0", "socketPath": "/s"},
            ],
            "ips": [
                {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
                {"address": "fd00::2/64", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "scope": 0}, {"dst": "::/0"}],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "x", "search": ["y"], "options": ["ndots:5"]},
        });
        let read = CniResult::read(&value, "prevResult").unwrap();
        assert_eq!(read.to_json(Version::V110), value);
        read
    }

    /// What every version can say is the same in all.
    #[test]
    fn results_cross_versions() {
        let full = full();
        for version in Version::ALL {
            let there = full.to_json(version);
            let back = CniResult::read(&there, "prevResult").unwrap();
            assert_eq!(back.to_json(version), there);
            let old = version < Version::V100;
            assert_eq!(there["ips"][0].get("version").is_some(), old, "{version:?}");
            if old {
                assert_eq!(
                    (&there["ips"][0]["version"], &there["ips"][1]["version"]),
                    (&json!("4"), &json!("6"))
                );
            }
            let new = version >= Version::V110;
            assert_eq!(there["interfaces"][0].get("mtu").is_some(), new);
            assert_eq!(there["routes"][0].get("mtu").is_some(), new);
            assert_eq!(back.ips, full.ips);
            assert_eq!(back.dns, full.dns);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        for (value, place) in [
            (json!([]), "prevResult"),
            (json!({"ips": {}}), "prevResult.ips"),
            (json!({"ips": [{"address": "x"}]}), "prevResult.ips[0].address"),
            (json!({"ips": [{}]}), "prevResult.ips[0].address"),
            (
                json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
                "prevResult.ips[0].interface",
            ),
            (
                json!({"interfaces": [{"name": 1}]}),
                "prevResult.interfaces[0].name",
            ),
            (
                json!({"routes": [{"dst": "0.0.0.0/0", "gw": "y"}]}),
                "prevResult.routes[0].gw",
            ),
            (json!({"dns": {"search": [1]}}), "prevResult.dns.search[0]"),
        ] {
            let e = CniResult::read(&value, "prevResult").unwrap_err();
            assert!(e.msg.starts_with(&format!("{place}: ")), "{e}");
        }
        assert!(CniResult::read(&json!({"cniVersion": "0.2.0"}), "p").is_err());
        assert_eq!(
            CniResult::read(&json!({"dns": null, "ips": null}), "p"),
            Ok(CniResult::default())
        );
    }

    #[test]
    fn a_resolv_conf_is_read() {
        let dns = Dns::of_resolv_conf(
            "# x\nnameserver 10.1.0.1\nnameserver fd00::1\nsearch a b\noptions ndots:5\n",
        );
        assert_eq!(dns.nameservers, ["10.1.0.1", "fd00::1"]);
        assert_eq!((dns.search.len(), dns.options.len()), (2, 1));
    }

    fn any_result() -> impl proptest::strategy::Strategy<Value = CniResult> {
        use proptest::prelude::*;
        let text = "[a-z0-9./:]{1,12}";
        let interface = (
            text,
            proptest::option::of(text),
            proptest::option::of(0u64..70_000),
        )
            .prop_map(|(name, mac, mtu)| Interface {
                name,
                mac,
                mtu,
                ..Interface::default()
            });
        let ip = (any::<u32>(), 0u8..=32, any::<bool>());
        let ips = proptest::collection::vec(ip, 0..4);
        (
            proptest::collection::vec(interface, 1..4),
            ips,
            proptest::collection::vec(text, 0..3),
        )
            .prop_map(|(interfaces, ips, search)| CniResult {
                ips: ips
                    .into_iter()
                    .map(|(ip, len, at)| Ip {
                        address: IpNet::new(IpAddr::V4(ip.into()), len).unwrap(),
                        gateway: at.then_some(IpAddr::V4(ip.into())),
                        interface: at.then_some(0),
                    })
                    .collect(),
                interfaces,
                dns: Dns {
                    search,
                    ..Dns::default()
                },
                ..CniResult::default()
            })
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(result in any_result()) {
            let newest = result.to_json(Version::V110);
            proptest::prop_assert_eq!(CniResult::read(&newest, "p").unwrap(), result.clone());
            for version in Version::ALL {
                let there = result.to_json(version);
                proptest::prop_assert_eq!(CniResult::read(&there, "p").unwrap().to_json(version), there);
            }
        }
    }
}
