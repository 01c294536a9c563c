//! What the nodes are told of Services, as Kubernetes has it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// The namespace of all Services of the lab.
pub const NAMESPACE: &str = "bench";
/// The port of Services and of what stands behind them.
pub const PORT: u16 = 7001;
/// Endpoints of each of many Services.
pub const ENDPOINTS: u32 = 10;
/// Addresses of the many Services begin here, those of their endpoints there: behind them is nobody.
const MANY: u32 = u32::from_be_bytes([10, 96, 16, 0]);
const NOBODY: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// A Service with TCP and UDP at one address, and what it selects; without that, a slice tells.
pub fn service(name: &str, at: Ipv4Addr, selects: Option<&str>) -> String {
    let selector = selects.map_or(String::new(), |app| format!("selector: {{app: {app}}}, "));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: {{clusterIP: {at}, {selector}\
         ports: [{{name: tcp, port: {PORT}}}, {{name: udp, port: {PORT}, protocol: UDP}}]}}\n---\n"
    )
}

/// The slice about a Service of [`service`].
pub fn slice(service: &str, endpoints: &[Ipv4Addr]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|ip| format!("{{addresses: [{ip}]}}"))
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}, namespace: {NAMESPACE}, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: tcp, port: {PORT}}}, {{name: udp, \
         port: {PORT}, protocol: UDP}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

/// Services `from..to` of many, each with a port and [`ENDPOINTS`] endpoints.
pub fn many(from: u32, to: u32) -> String {
    let mut text = String::new();
    for n in from..to {
        let (at, name) = (Ipv4Addr::from(MANY + n), format!("many-{n}"));
        let _ = write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec: {{clusterIP: {at}, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: \
             {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: ["
        );
        for i in 0..ENDPOINTS {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(
                text,
                "{comma}{{addresses: [{}]}}",
                Ipv4Addr::from(NOBODY + n * ENDPOINTS + i)
            );
        }
        text += "]\n---\n";
    }
    text
}

/// What the kernel is told: connections to each virtual address lead to one of its endpoints, by chance.
pub fn rules(services: &[(IpAddr, Vec<Ipv4Addr>)]) -> String {
    let mut text = String::from(
        "table ip podwire_bench {\n  chain services { type nat hook prerouting priority -100;\n",
    );
    for (at, endpoints) in services {
        let map: Vec<String> = (0..)
            .zip(endpoints)
            .map(|(n, ip): (u32, _)| format!("{n} : {ip}"))
            .collect();
        let _ = writeln!(
            text,
            "    ip daddr {at} meta l4proto {{ tcp, udp }} th dport {PORT} dnat to numgen random mod {} map {{ {} }};",
            endpoints.len(),
            map.join(", ")
        );
    }
    text + "  };\n};\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::services::manifest::{Source, read};

    #[test]
    fn a_node_understands_what_it_is_told() {
        let ip = |s: &str| s.parse::<Ipv4Addr>().unwrap();
        let text = service("web", ip("10.96.0.7"), None)
            + &slice("web", &[ip("10.244.1.2"), ip("10.244.2.2")])
            + &service("app", ip("10.96.0.8"), Some("app"));
        let found = read(&Source::Given, &text);
        assert!(found.mistakes.is_empty(), "{:?}", found.mistakes);
        assert_eq!(found.manifests.len(), 3);
        let found = read(&Source::Given, &many(0, 300));
        assert!(found.mistakes.is_empty(), "{:?}", found.mistakes);
        assert_eq!(found.manifests.len(), 600);
        let last = serde_json::to_string(&found.manifests[599].json).unwrap();
        assert!(last.contains("10.128.11.183"), "{last}");
    }

    #[test]
    fn the_kernel_chooses_among_as_many() {
        let ip = |s: &str| s.parse::<Ipv4Addr>().unwrap();
        let text = rules(&[(ip("10.96.0.7").into(), vec![ip("10.244.0.1"), ip("10.244.0.2")])]);
        assert!(
            text.contains("dnat to numgen random mod 2 map { 0 : 10.244.0.1, 1 : 10.244.0.2 };"),
            "{text}"
        );
    }
}
