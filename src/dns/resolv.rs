//! `/etc/resolv.conf`: whom the host asks, and what it appends (resolv.conf(5)).

use super::name::Fqdn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Most domains that are searched: glibc before 2.26 took six.
const MAX_SEARCH: usize = 32;
/// Port of DNS.
pub const PORT: u16 = 53;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Resolvers, in the order they are asked.
    pub servers: Vec<SocketAddr>,
    /// Domains that are appended to short names.
    pub search: Vec<Fqdn>,
}

impl ResolvConf {
    /// Read the file's text. What is not understood is left out, as the C library does. `index` gives an interface's
    /// number, for addresses that are its own (`fe80::1%eth0`).
    pub fn parse(text: &str, index: impl Fn(&str) -> Option<u32>) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            // A comment begins a line, or stands after blanks.
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|w| server(w, &index));
                    if let Some(server) = server.filter(|s| !conf.servers.contains(s)) {
                        conf.servers.push(server);
                    }
                }
                // Of several lines the last one counts.
                Some("search") => {
                    conf.search = words.filter_map(|w| w.parse().ok()).take(MAX_SEARCH).collect();
                }
                Some("domain") => conf.search = words.take(1).filter_map(|w| w.parse().ok()).collect(),
                _ => {}
            }
        }
        conf
    }
}

fn server(word: &str, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((ip, scope)) = word.split_once('%') {
        let ip: Ipv6Addr = ip.parse().ok()?;
        let scope = scope.parse().ok().or_else(|| index(scope))?;
        return Some(SocketAddrV6::new(ip, PORT, 0, scope).into());
    }
    let ip: IpAddr = word.parse().ok()?;
    // "Any" means this host to the C library.
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4([127, 0, 0, 1].into()),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, PORT))
}

/// The file for a pod: the node at its gateways; searched are Services as Kubernetes' pods do it, by `services` domain,
/// then the pod's namespace and domain, then what the host searches. `ndots` is Kubernetes', so that `web.shop.svc` is
/// found.
pub fn for_pod(
    gateways: impl IntoIterator<Item = IpAddr>,
    namespace: &str,
    domain: &str,
    services: &str,
    host: &[Fqdn],
) -> String {
    let mut text = String::from("# Made by podwire: the node answers, and asks the host's resolvers.\n");
    for ip in gateways {
        text += &format!("nameserver {ip}\n");
    }
    let own = [
        format!("{namespace}.svc.{services}"),
        format!("svc.{services}"),
        services.to_string(),
        format!("{namespace}.{domain}"),
        domain.to_string(),
    ];
    let own = own.iter().filter_map(|d| d.parse::<Fqdn>().ok());
    let mut search: Vec<Fqdn> = own.collect();
    search.extend(
        host.iter()
            .filter(|d| !search.contains(d))
            .cloned()
            .collect::<Vec<_>>(),
    );
    let search: Vec<String> = search.iter().map(ToString::to_string).collect();
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text + "options ndots:5 edns0\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_the_c_library_does() {
        let text = "\
# by hand
domain first.example
nameserver 192.0.2.1 # the first
nameserver 127.0.0.53
\tnameserver   2001:db8::1
nameserver fe80::1%eth7
nameserver fe80::2%3
nameserver fe80::3%none
nameserver 0.0.0.0
nameserver 192.0.2.1
nameserver nonsense
nameserver
search Corp.example lab.corp.example. -bad..name
options ndots:5 edns0
; end";
        let conf = ResolvConf::parse(text, |n| (n == "eth7").then_some(7));
        let told: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
        let servers = [
            "192.0.2.1:53",
            "127.0.0.53:53",
            "[2001:db8::1]:53",
            "[fe80::1%7]:53",
            "[fe80::2%3]:53",
            "127.0.0.1:53",
        ];
        assert_eq!(told, servers);
        let search: Vec<String> = conf.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["corp.example", "lab.corp.example"]);
        assert_eq!(ResolvConf::parse("", |_| None), ResolvConf::default());
    }

    #[test]
    fn a_pod_asks_its_gateway_and_searches_its_namespace_first() {
        let ips = ["10.244.1.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let host = ["corp.example".parse().unwrap(), "pod".parse().unwrap()];
        let text = for_pod(ips, "Shop", "pod", "cluster.local", &host);
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            [
                "nameserver 10.244.1.1",
                "nameserver fd00::1",
                "search shop.svc.cluster.local svc.cluster.local cluster.local shop.pod pod corp.example",
                "options ndots:5 edns0"
            ]
        );
        assert_eq!(ResolvConf::parse(&text, |_| None).servers.len(), 2);
    }
}
