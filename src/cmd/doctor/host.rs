//! Whether the host is in the pod network, as the node of this user says.

use super::{Check, Verdict};
use crate::api::place::for_client;
use crate::api::{Client, HostPortInfo, Reply, Request};
use std::path::Path;

/// How the host's own port stands; nothing where no node answers, or it is off.
pub fn port(socket: Option<&Path>) -> Option<Check> {
    let mut client = Client::connect(&for_client(socket).ok()?).ok()?;
    match client.call(&Request::Status).ok()? {
        Reply::Status(status) => status.host_port.as_ref().map(judge),
        _ => None,
    }
}

fn judge(port: &HostPortInfo) -> Check {
    const NAME: &str = "host port";
    match &port.missing {
        None => Check::ok(NAME, format!("{} reaches the pods", port.interface)),
        Some(why) => Check::bad(
            NAME,
            Verdict::Warn,
            format!("the host is not in the pod network: {why}"),
            "published ports and podwire forward reach pods all the same; start the node again once that is mended",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_a_warning_with_its_reason() {
        let mut port = HostPortInfo {
            interface: "podwire0".into(),
            ..HostPortInfo::default()
        };
        assert_eq!(judge(&port).verdict, Verdict::Ok);
        port.missing = Some("it rains".into());
        let check = judge(&port);
        assert!(check.verdict == Verdict::Warn && check.found.contains("it rains"));
    }
}
