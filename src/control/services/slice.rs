//! `EndpointSlice`, key by key.

use super::manifest::{Endpoint, EndpointSlice, Family, SlicePort};
use super::read::Reader;
use super::spec::{FAMILIES, MAX_PORTS, TRANSPORTS, join, metadata, port_label};
use super::yaml::{Node, quoted};
use crate::model::{NodeName, ServiceName, Transport, is_dns_label};
use std::net::IpAddr;
use std::sync::Arc;

/// The label that says which Service an EndpointSlice is about.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Most endpoints of a slice: Kubernetes' own limit.
const MAX_ENDPOINTS: usize = 1000;

const SLICE: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "addressType",
    "endpoints",
    "ports",
];

/// An EndpointSlice; what it gives counts only if there was no mistake.
pub(super) fn slice(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Arc<EndpointSlice>> {
    let metadata = metadata(node, "EndpointSlice", path, reader)?;
    let at = |key: &str| join(path, key);
    let (mut family, mut endpoints, mut ports) = (None, Vec::new(), Vec::new());
    for (at, key, value) in reader.map(node, path) {
        match key {
            "apiVersion" | "kind" | "metadata" => {}
            "addressType" => {
                if value.text() == Ok("FQDN") {
                    let what = "FQDN is not supported (use a Service of type ExternalName)";
                    reader.wrong(value.line, &at, what);
                    return None;
                }
                family = Some(reader.choice(value, &at, FAMILIES)?);
            }
            "endpoints" => {
                for (at, one) in reader.list(value, &at, MAX_ENDPOINTS) {
                    endpoints.extend(endpoint(one, &at, reader).map(|e| (e, at, one.line)));
                }
            }
            "ports" => {
                for (at, one) in reader.list(value, &at, MAX_PORTS) {
                    let found = slice_port(one, &at, reader)?;
                    if ports.iter().any(|p: &SlicePort| p.name == found.name) {
                        let what = format!("{} is another port's too", quoted(&found.name));
                        reader.wrong(one.line, &format!("{at}.name"), what);
                    }
                    ports.push(found);
                }
            }
            _ => reader.unknown(value.line, &at, SLICE),
        }
    }
    let Some(family) = family else {
        reader.wrong(node.line, &at("addressType"), "is missing (write IPv4 or IPv6)");
        return None;
    };
    for (endpoint, at, line) in &endpoints {
        if Family::of(endpoint.at) != family {
            let what = format!("{} is no {family} address, which addressType says", endpoint.at);
            reader.wrong(*line, &format!("{at}.addresses[0]"), what);
        }
    }
    let label = format!("{}.\"{SERVICE_LABEL}\"", at("metadata.labels"));
    let Some(service) = metadata.labels.get(SERVICE_LABEL) else {
        reader.wrong(node.line, &label, "is missing (it names the Service)");
        return None;
    };
    if !is_dns_label(service) {
        reader.wrong(
            node.line,
            &label,
            format!("{} is no name of a Service", quoted(service)),
        );
        return None;
    }
    Some(Arc::new(EndpointSlice {
        service: ServiceName {
            namespace: metadata.namespace.clone(),
            name: service.clone(),
        },
        namespace: metadata.namespace,
        name: metadata.name,
        family,
        endpoints: endpoints.into_iter().map(|(e, _, _)| e).collect(),
        ports,
    }))
}

fn endpoint(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Endpoint> {
    let known = [
        "addresses",
        "conditions",
        "hostname",
        "nodeName",
        "targetRef",
        "zone",
    ];
    let (mut found, mut ready, mut serving, mut terminating) = (None, None, None, None);
    let (mut hostname, mut on, mut target) = (None, None, None);
    for (at, key, value) in reader.map(node, path) {
        match key {
            "addresses" => {
                let all = reader.list(value, &at, 100);
                if let [(at, one)] = &all[..] {
                    found = Some(endpoint_address(one, at, reader)?);
                } else {
                    reader.wrong(
                        value.line,
                        &at,
                        "one address is wanted (write an endpoint for each)",
                    );
                    return None;
                }
            }
            "conditions" => {
                for (at, key, value) in reader.map(value, &at) {
                    match key {
                        "ready" => ready = reader.switch(value, &at),
                        "serving" => serving = reader.switch(value, &at),
                        "terminating" => terminating = reader.switch(value, &at),
                        _ => reader.unknown(value.line, &at, &["ready", "serving", "terminating"]),
                    }
                }
            }
            "hostname" => {
                let name = value.text().and_then(|s| match is_dns_label(s) {
                    true => Ok(s.to_string()),
                    false => Err(format!("{} is no host name (one label of DNS)", quoted(s))),
                });
                hostname = reader.take(value, &at, name);
            }
            "nodeName" => {
                let name = value
                    .text()
                    .and_then(|s| s.parse::<NodeName>().map_err(|e| e.to_string()));
                on = reader.take(value, &at, name);
            }
            "targetRef" => {
                let word = |key: &str| value.at(key).and_then(|n| n.text().ok()).unwrap_or_default();
                let name = format!("{} {}/{}", word("kind"), word("namespace"), word("name"));
                target = reader
                    .take(value, &at, value.map())
                    .map(|_| name.chars().take(200).collect());
            }
            // Where it is, which nothing follows from.
            "zone" => {}
            "hints" => reader.wrong(value.line, &at, "is not supported (leave it out)"),
            "deprecatedTopology" => reader.wrong(value.line, &at, "is not supported (use nodeName)"),
            _ => reader.unknown(value.line, &at, &known),
        }
    }
    let Some(at) = found else {
        reader.wrong(
            node.line,
            &format!("{path}.addresses"),
            "is missing (write one address)",
        );
        return None;
    };
    // Nothing said means ready, serving is as ready, and terminating not.
    let ready = ready.unwrap_or(true);
    Some(Endpoint {
        at,
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
        hostname,
        node: on,
        target,
    })
}

fn endpoint_address(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<IpAddr> {
    reader.host_address(value, at, "cannot stand behind a Service (write a pod's address)")
}

fn slice_port(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<SlicePort> {
    let mut port = SlicePort {
        name: String::new(),
        transport: Transport::Tcp,
        port: 0,
    };
    for (at, key, value) in reader.map(node, path) {
        match key {
            "name" => port.name = port_label(value, &at, reader).unwrap_or_default(),
            "protocol" => port.transport = reader.choice(value, &at, TRANSPORTS).unwrap_or(Transport::Tcp),
            "port" => port.port = reader.port(value, &at)?,
            "appProtocol" => drop(reader.text(value, &at)),
            _ => reader.unknown(value.line, &at, &["name", "protocol", "port", "appProtocol"]),
        }
    }
    if port.port == 0 {
        reader.wrong(
            node.line,
            &format!("{path}.port"),
            "is missing (all ports at once are not supported: name each)",
        );
        return None;
    }
    Some(port)
}
