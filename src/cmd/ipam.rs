//! `podwire ipam`: who holds which address of this node.

use super::attach::json;
use super::table::{age, table};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{AddressInfo, AddressState, Client, IpamInfo, Reply, Request};

/// List the addresses of this node: who holds them, and which rest after a pod has gone.
///
/// An address rests for 60 s, so that what still talks to the pod that had it does not reach another; it is given
/// earlier when it is asked for by name, or nothing else is left.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire ipam
  podwire ipam --json | jq '.free'")]
pub struct Args {
    /// Print JSON: all there is, for programs
    #[arg(long)]
    pub json: bool,
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let info = match Client::connect(socket)?.call(&Request::Ipam)? {
        Reply::Ipam(info) => info,
        _ => {
            return Err(Failure::new(
                Exit::Failed,
                "the node's answer does not fit the question",
            ));
        }
    };
    if args.json {
        say(&json(&info)?)
    } else {
        say(&show(&info))
    }
}

fn show(info: &IpamInfo) -> String {
    let nets: Vec<String> = info.subnets.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = info.addresses.iter().map(row).collect();
    let head = ["POD", "IPV4", "IPV6", "MAC", "STATE", "SINCE", "HELD BY"];
    format!(
        "{}: {} held, {} resting, {} free\n{}",
        nets.join(" and "),
        info.held,
        info.resting,
        info.free,
        table(&head, &rows)
    )
}

fn row(address: &AddressInfo) -> Vec<String> {
    let or_none = |a: Option<String>| a.unwrap_or_else(|| "-".into());
    let (state, since, by) = match &address.state {
        AddressState::Held { age_s, netns, holder } => {
            let path = netns.as_ref().map(|p| p.display().to_string());
            let by = holder.map(|pid| format!("process {pid}")).or(path);
            ("held".into(), age(*age_s), or_none(by))
        }
        AddressState::Resting { left_s } => (format!("rests {left_s}s more"), "-".into(), "-".into()),
    };
    vec![
        address.pod.to_string(),
        or_none(address.ip4.map(|ip| ip.to_string())),
        or_none(address.ip6.map(|ip| ip.to_string())),
        address.mac.to_string(),
        state,
        since,
        by,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_who_holds_what() {
        let info: IpamInfo = serde_json::from_str(
            r#"{"subnets": ["10.244.1.0/24"], "held": 1, "resting": 1, "free": 251, "addresses": [
                {"pod": "default/a", "ip4": "10.244.1.2", "ip6": null, "mac": "0a:58:0a:f4:01:02",
                 "state": "held", "age_s": 90, "netns": "/run/netns/a", "holder": null},
                {"pod": "default/b", "ip4": "10.244.1.3", "ip6": null, "mac": "0a:58:0a:f4:01:03",
                 "state": "resting", "left_s": 41}]}"#,
        )
        .unwrap();
        let shown = show(&info);
        assert!(
            shown.starts_with("10.244.1.0/24: 1 held, 1 resting, 251 free\n"),
            "{shown}"
        );
        for cell in ["1m", "/run/netns/a", "rests 41s more", "10.244.1.3"] {
            assert!(shown.contains(cell), "{cell} in {shown}");
        }
    }
}
