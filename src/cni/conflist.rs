//! The configuration list that a runtime needs, as text.

use super::version::Version;
use std::path::Path;

/// Capabilities of the plugin.
const CAPABILITIES: [&str; 6] = ["portMappings", "bandwidth", "ips", "mac", "dns", "aliases"];

/// Ten lines for a runtime's configuration folder. `kind` is the name of the plugin's file; without `ports` the runtime
/// publishes ports itself, as rootless podman does whatever it is told.
pub fn conflist(network: &str, version: Version, kind: &str, socket: Option<&Path>, ports: bool) -> String {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let capabilities = &CAPABILITIES[usize::from(!ports)..];
    let capabilities: Vec<String> = capabilities
        .iter()
        .map(|c| format!("{}: true", text(c)))
        .collect();
    let capabilities = capabilities.join(", ");
    let own = match socket {
        Some(socket) => format!("{{\"socket\": {}}}", text(&socket.to_string_lossy())),
        None => "{}".into(),
    };
    // libcni since 1.1 takes the highest it knows, and has GC and STATUS; others pass the list over.
    let versions = match version {
        Version::V100 => " \"cniVersions\": [\"0.4.0\", \"1.0.0\", \"1.1.0\"],",
        _ => "",
    };
    format!(
        "{{\n  \"cniVersion\": {},{versions}\n  \"name\": {},\n  \"plugins\": [{{\n    \"type\": {},\n    \"podwire\": {own},\n    \
         \"capabilities\": {{{capabilities}}}\n  }}]\n}}\n",
        text(version.text()),
        text(network),
        text(kind),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::call::Verb;
    use crate::cni::conf::Conf;
    use serde_json::Value;

    #[test]
    fn it_is_what_the_plugin_understands() {
        let socket = Path::new("/run/podwire/n1.sock");
        let text = conflist("pods", Version::V100, "podwire-cni", Some(socket), true);
        let without = conflist("pods", Version::V100, "podwire-cni", Some(socket), false);
        assert_eq!(text.replace("\"portMappings\": true, ", ""), without);
        assert!(text.lines().count() <= 10, "{text}");
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["cniVersions"][2], "1.1.0");
        let older = conflist("pods", Version::V040, "podwire-cni", None, true);
        assert!(!older.contains("cniVersions"), "it was asked for");
        // As libcni makes a plugin's configuration of it.
        let mut conf = list["plugins"][0].clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        let conf = Conf::read(conf.to_string().as_bytes(), Verb::Add).unwrap();
        assert_eq!(
            (conf.network.as_str(), conf.socket.as_deref()),
            ("pods", Some(socket))
        );
    }
}
