//! The network that a runtime is told of.

use serde_json::json;

/// The conflist of a network, as a file has it.
pub fn conflist(network: &str) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": network,
        "plugins": [{
            "type": "podwire-cni",
            "capabilities": {
                "portMappings": true,
                "bandwidth": true,
                "ips": true,
                "mac": true,
                "dns": true,
                "aliases": true
            }
        }]
    });
    format!("{list:#}\n")
}
