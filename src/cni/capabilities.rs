//! What runtime and user want of one container: `runtimeConfig` by the capabilities of the configuration, and `args.cni`
//! (CNI's CONVENTIONS.md).

use super::args::address;
use super::error::{CniError, Code};
use super::json::{Keys, Place, expected, shown, text};
use super::result::Dns;
use crate::model::{
    Bandwidth, Labels, Mac, PortMapping, Protocol, Rate, RateError, is_alias, is_label_key, is_label_value,
};
use serde_json::Value;
use std::net::IpAddr;

/// What is wanted.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Wishes {
    /// Fixed addresses, one of a family at most.
    pub ips: Vec<IpAddr>,
    /// A fixed MAC.
    pub mac: Option<Mac>,
    /// Labels of the pod.
    pub labels: Labels,
    /// Ports of the host; without an address those at every address of the host.
    pub ports: Vec<PortMapping>,
    /// Limits of its traffic.
    pub bandwidth: Option<Bandwidth>,
    /// What it is told of name resolution.
    pub dns: Dns,
    /// Its other names.
    pub aliases: Vec<String>,
}

impl Wishes {
    /// Read them from the keys of a configuration for `network`.
    ///
    /// # Errors
    /// Code 7 with the key that is wrong, code 2 with one that podwire does not do.
    pub(super) fn read(conf: &Keys<'_>, network: &str) -> Result<Wishes, CniError> {
        let runtime = Keys::of(conf.get("runtimeConfig"), conf.at("runtimeConfig"))?;
        let args = Keys::of(conf.get("args"), conf.at("args"))?;
        let args = Keys::of(args.get("cni"), args.at("cni"))?;
        if runtime
            .list("ipRanges")?
            .iter()
            .any(|r| *r != Value::Array(Vec::new()))
        {
            let what = "runtimeConfig.ipRanges: podwire gives addresses of the node's subnet only (leave it out; `ips` \
                        fixes one)";
            return Err(CniError::new(Code::UnsupportedField, what));
        }
        let mut ips = Vec::new();
        for keys in [&runtime, &args] {
            let place = keys.at("ips");
            for (n, given) in keys.texts("ips")?.iter().enumerate() {
                let ip = address(given).ok_or_else(|| {
                    let what = format!(
                        "{:?} is no address (write 10.244.1.9 or 10.244.1.9/24)",
                        shown(given)
                    );
                    CniError::config(Place::Item(&place, n), what)
                })?;
                ips.push(ip);
            }
        }
        Ok(Wishes {
            ips: one_of_a_family(ips)?,
            mac: mac(&runtime)?.or(mac(&args)?),
            labels: labels(&args)?,
            ports: ports(&runtime)?,
            bandwidth: bandwidth(&Keys::of(runtime.get("bandwidth"), runtime.at("bandwidth"))?)?,
            dns: dns(&Keys::of(runtime.get("dns"), runtime.at("dns"))?)?,
            aliases: aliases(&runtime, network)?,
        })
    }

    /// The same with what `CNI_ARGS` says where the configuration says nothing.
    ///
    /// # Errors
    /// Code 7 when there are two addresses of a family.
    pub fn with(mut self, ips: &[IpAddr], mac: Option<Mac>) -> Result<Wishes, CniError> {
        self.ips = one_of_a_family(self.ips.iter().chain(ips).copied().collect())?;
        self.mac = self.mac.or(mac);
        Ok(self)
    }
}

fn one_of_a_family(mut ips: Vec<IpAddr>) -> Result<Vec<IpAddr>, CniError> {
    ips.sort();
    ips.dedup();
    match ips.windows(2).find(|w| w[0].is_ipv4() == w[1].is_ipv4()) {
        None => Ok(ips),
        Some(two) => Err(CniError::config(
            "ips",
            format!(
                "{} and {} cannot both be had (a pod has one address of a family)",
                two[0], two[1]
            ),
        )),
    }
}

fn mac(keys: &Keys<'_>) -> Result<Option<Mac>, CniError> {
    let parse = |m: &str| {
        m.parse()
            .map_err(|_| CniError::config(keys.at("mac"), format!("{:?} is no MAC address", shown(m))))
    };
    keys.text("mac")?.filter(|m| !m.is_empty()).map(parse).transpose()
}

/// A list of keys and values, as CONVENTIONS.md has it, or an object.
fn labels(args: &Keys<'_>) -> Result<Labels, CniError> {
    let place = args.at("labels");
    let mut labels = Labels::new();
    let mut add = |key: &str, value: &str| {
        if !is_label_key(key) || !is_label_value(value) {
            let what = format!(
                "{:?} is no label (letters, digits, '-', '_' and '.', at most 63 each)",
                shown(&format!("{key}={value}"))
            );
            return Err(CniError::config(place, what));
        }
        labels.insert(key.into(), value.into());
        Ok(())
    };
    match args.get("labels") {
        None => {}
        Some(Value::Object(map)) => {
            for (key, value) in map {
                add(key, text(value, Place::Key(&place, key))?)?;
            }
        }
        Some(Value::Array(items)) => {
            for (n, item) in items.iter().enumerate() {
                let keys = Keys::of(Some(item), Place::Item(&place, n))?;
                add(
                    keys.text("key")?.unwrap_or_default(),
                    keys.text("value")?.unwrap_or_default(),
                )?;
            }
        }
        Some(other) => return Err(expected(place, "a list", other)),
    }
    Ok(labels)
}

fn ports(runtime: &Keys<'_>) -> Result<Vec<PortMapping>, CniError> {
    let place = runtime.at("portMappings");
    let mut all = Vec::new();
    for (n, item) in runtime.list("portMappings")?.iter().enumerate() {
        let keys = Keys::of(Some(item), Place::Item(&place, n))?;
        let number = |key| {
            let n = keys.number(key)?.unwrap_or(0);
            let out_of_range = || CniError::config(keys.at(key), format!("there is no port {n}"));
            u16::try_from(n).map_err(|_| out_of_range())
        };
        let (first, pod, count) = (
            number("hostPort")?,
            number("containerPort")?,
            number("range")?.max(1),
        );
        // As for portmap: it is known, and not published.
        if first == 0 {
            continue;
        }
        let over = |port: u16| port == 0 || u32::from(port) + u32::from(count) > 1 << 16;
        if over(pod) || over(first) || count > crate::model::MAX_RANGE {
            return Err(CniError::config(
                keys.at("containerPort"),
                format!("{count} ports from {pod} on there are not"),
            ));
        }
        let protocol = match keys
            .text("protocol")?
            .unwrap_or("tcp")
            .to_ascii_lowercase()
            .as_str()
        {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => {
                let what = format!(
                    "{}: sctp ports are not published (only tcp and udp are)",
                    keys.at("protocol")
                );
                return Err(CniError::new(Code::UnsupportedField, what));
            }
            other => {
                let what = format!("{:?} is neither tcp nor udp", shown(other));
                return Err(CniError::config(keys.at("protocol"), what));
            }
        };
        let host = keys.text("hostIP")?.filter(|h| !h.is_empty());
        let host = host.map(|h| {
            let ip: Option<IpAddr> = h.trim_matches(['[', ']']).parse().ok();
            let ip = ip.filter(|ip| !ip.is_multicast());
            ip.ok_or_else(|| {
                CniError::config(keys.at("hostIP"), format!("{:?} cannot be listened at", shown(h)))
            })
        });
        all.push(PortMapping {
            host: host.transpose()?,
            first,
            pod,
            count,
            protocol,
        });
    }
    Ok(all)
}

fn bandwidth(keys: &Keys<'_>) -> Result<Option<Bandwidth>, CniError> {
    let rate = |rate_key, burst_key| {
        let (rate, burst) = (
            keys.number(rate_key)?.unwrap_or(0),
            keys.number(burst_key)?.unwrap_or(0),
        );
        match (rate, burst) {
            (0, 0) => Ok(None),
            (0, _) => Err(CniError::config(
                keys.at(burst_key),
                format!("it says nothing without {rate_key}"),
            )),
            _ => match Rate::new(rate, burst) {
                Ok(rate) => Ok(Some(rate)),
                Err(e @ RateError::Burst(_)) => Err(CniError::config(keys.at(burst_key), e.to_string())),
                Err(e) => Err(CniError::config(keys.at(rate_key), e.to_string())),
            },
        }
    };
    let ingress = rate("ingressRate", "ingressBurst")?;
    Ok(Bandwidth::of(ingress, rate("egressRate", "egressBurst")?))
}

fn dns(keys: &Keys<'_>) -> Result<Dns, CniError> {
    Ok(Dns {
        nameservers: keys.texts("servers")?,
        domain: None,
        search: keys.texts("searches")?,
        options: keys.texts("options")?,
    })
}

/// A list, as CONVENTIONS.md has it, or a list for each network, as podman has it.
fn aliases(runtime: &Keys<'_>, network: &str) -> Result<Vec<String>, CniError> {
    let place = runtime.at("aliases");
    let all = match runtime.get("aliases") {
        Some(Value::Object(of_networks)) if !of_networks.contains_key(network) => Vec::new(),
        Some(Value::Object(_)) => {
            let networks = Keys::of(runtime.get("aliases"), place)?;
            let items = networks.list(network)?.iter().enumerate();
            let place = networks.at(network);
            let items = items.map(|(n, v)| text(v, Place::Item(&place, n)).map(String::from));
            items.collect::<Result<_, _>>()?
        }
        _ => runtime.texts("aliases")?,
    };
    match all.iter().find(|a| !is_alias(a)) {
        None => Ok(all),
        Some(bad) => {
            let what = format!(
                "{:?} is no name (letters, digits, '-' and '_', at most 63)",
                shown(bad)
            );
            Err(CniError::config(place, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(conf: Value) -> Result<Wishes, CniError> {
        Wishes::read(&Keys::of(Some(&conf), Place::Root)?, "net")
    }

    #[test]
    fn everything_is_read() {
        let wishes = read(json!({
            "runtimeConfig": {
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                    {"hostPort": 53, "containerPort": 5353, "protocol": "UDP"},
                    {"hostPort": 0, "containerPort": 81},
                ],
                "bandwidth": {"ingressRate": 1000000, "ingressBurst": 80000, "egressRate": 2000000, "egressBurst": 1},
                "ips": ["10.1.0.9/24", "fd00::9"],
                "mac": "0a:58:00:00:00:09",
                "dns": {"servers": ["9.9.9.9"], "searches": ["x"], "options": ["ndots:1"]},
                "aliases": ["a", "b"],
                "ipRanges": [],
            },
            "args": {"cni": {"labels": [{"key": "app", "value": "web"}], "ips": ["10.1.0.9"]}},
        }))
        .unwrap();
        let ports: Vec<String> = wishes.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports.len(), 2, "{ports:?}");
        assert_eq!(wishes.ports[1].protocol, Protocol::Udp);
        assert_eq!(wishes.ips.len(), 2);
        assert_eq!(wishes.labels["app"], "web");
        assert_eq!(wishes.aliases, ["a", "b"]);
        assert_eq!(wishes.dns.nameservers, ["9.9.9.9"]);
        assert_eq!(
            wishes.bandwidth.and_then(|b| b.egress).map(|r| r.bits_per_second),
            Some(2_000_000)
        );
        assert_eq!(read(json!({"runtimeConfig": null})).unwrap(), Wishes::default());
        let podman = read(json!({"runtimeConfig": {"aliases": {"net": ["c"], "other": ["d"]}}})).unwrap();
        assert_eq!(podman.aliases, ["c"]);
    }

    /// containerd's go-cni writes the keys of Go's fields; the reference plugins read any case.
    #[test]
    fn keys_may_be_as_containerd_writes_them() {
        let wishes = read(json!({"runtimeConfig": {
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "127.0.0.1"}],
            "bandwidth": {"IngressRate": 1000000, "IngressBurst": 80000, "EgressRate": 0, "EgressBurst": 0},
            "dns": {"Servers": ["9.9.9.9"], "Searches": ["x"], "Options": ["ndots:1"]},
            "ipRanges": null,
        }}))
        .unwrap();
        let [port] = &wishes.ports[..] else {
            panic!("{:?}", wishes.ports)
        };
        assert_eq!((port.first, port.pod, port.protocol), (8080, 80, Protocol::Udp));
        assert_eq!(port.host, Some([127, 0, 0, 1].into()));
        let ingress = wishes.bandwidth.and_then(|b| b.ingress);
        assert_eq!(ingress.map(|r| r.bits_per_second), Some(1_000_000));
        assert_eq!(wishes.dns.search, ["x"]);
        // Of networks the names count as they are.
        let other = read(json!({"runtimeConfig": {"aliases": {"Net": ["a"]}}})).unwrap();
        assert_eq!(other.aliases, Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_or_not_done_is_named() {
        let runtime = |value: Value| read(json!({"runtimeConfig": value})).unwrap_err();
        let port = |more: Value| {
            let mut port = json!({"hostPort": 80, "containerPort": 80});
            port.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            runtime(json!({"portMappings": [port]}))
        };
        for (e, code, key) in [
            (port(json!({"protocol": "sctp"})), 2, "portMappings[0].protocol"),
            (port(json!({"protocol": "icmp"})), 7, "portMappings[0].protocol"),
            (port(json!({"containerPort": 0})), 7, "containerPort"),
            (port(json!({"hostPort": 65536})), 7, "hostPort"),
            (port(json!({"hostIP": "x"})), 7, "hostIP"),
            (
                runtime(json!({"ipRanges": [[{"subnet": "10.0.0.0/8"}]]})),
                2,
                "ipRanges",
            ),
            (runtime(json!({"ips": ["x"]})), 7, "runtimeConfig.ips[0]"),
            (runtime(json!({"ips": ["10.0.0.1", "10.0.0.2"]})), 7, "10.0.0.2"),
            (runtime(json!({"mac": "x"})), 7, "runtimeConfig.mac"),
            (runtime(json!({"aliases": ["a b"]})), 7, "runtimeConfig.aliases"),
            (
                runtime(json!({"bandwidth": {"ingressBurst": 1}})),
                7,
                "bandwidth.ingressBurst",
            ),
            (
                runtime(json!({"bandwidth": {"egressRate": -1}})),
                7,
                "bandwidth.egressRate",
            ),
            (
                read(json!({"args": {"cni": {"labels": {"a b": ""}}}})).unwrap_err(),
                7,
                "args.cni.labels",
            ),
        ] {
            assert_eq!(e.code as u32, code, "{e}");
            assert!(e.msg.contains(key), "{key}: {e}");
        }
    }

    #[test]
    fn arguments_fill_in() {
        let mac: Mac = "0a:58:00:00:00:09".parse().unwrap();
        let four = ["10.1.0.9".parse().unwrap()];
        let wishes = Wishes::default().with(&four, Some(mac)).unwrap();
        assert_eq!((wishes.ips.as_slice(), wishes.mac), (&four[..], Some(mac)));
        assert!(wishes.with(&["10.1.0.10".parse().unwrap()], None).is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(text in r#"[\[\]{}":,a-z0-9 ]{0,80}"#) {
            let _ = Wishes::default();
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = read(json!({"runtimeConfig": value}));
            }
        }
    }
}
