//! `podwire leases`: the subnets of the cluster and who has them.

use super::attach::json;
use super::table::{age, table};
use super::{Exit, Failure, Paint, say};
use crate::api::place::Socket;
use crate::api::{Client, Reply, Request};
use crate::model::{LeaseInfo, StoreStatus};
use std::fmt::Write;

/// Show the leases of the cluster, when they expire, and how the store of leases stands.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire leases
  podwire leases --json | jq '.leases[] | select(.own)'

EXPIRES counts down to when the store lets the lease go; a node renews its own an hour before. A reservation has no
expiry. A node that still waits for its subnet answers too.")]
pub struct Args {
    /// Print JSON: all there is, for programs
    #[arg(long)]
    json: bool,
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked, or keeps no leases.
pub fn run(args: &Args, socket: &Socket) -> Result<(), Failure> {
    let status = match Client::connect(socket)?.call(&Request::Store)? {
        Reply::Store { store: Some(status) } => *status,
        Reply::Store { store: None } => {
            return Err(Failure::new(
                Exit::NotFound,
                "this node has no leases: its subnet and peers are given (start it with --store etcd to lease one)",
            ));
        }
        _ => {
            return Err(Failure::new(
                Exit::Failed,
                "the node's answer does not fit the question",
            ));
        }
    };
    match args.json {
        true => say(&json(&status)?),
        false => say(&show(&status, Paint::stdout())),
    }
}

fn show(status: &StoreStatus, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "store  {}", line(status));
    for alarm in &status.alarms {
        let _ = writeln!(out, "  {} {alarm}", paint.with(33, "!"));
    }
    let rows: Vec<_> = status.leases.iter().map(row).collect();
    let head = ["SUBNET", "NODE", "ADDRESS", "KIND", "EXPIRES", "SEEN"];
    let _ = write!(out, "\n{}", table(&head, &rows));
    if status.skipped_total > 0 {
        let _ = writeln!(
            out,
            "\n{} keys are no leases of this network:",
            status.skipped_total
        );
        for (key, why) in &status.skipped {
            let _ = writeln!(out, "  {key}: {why}");
        }
    }
    out
}

/// How the store stands, on one line; also for `podwire status`.
pub fn line(status: &StoreStatus) -> String {
    let state = if status.connected {
        "connected"
    } else {
        "not connected"
    };
    let silent = status
        .silent_ms
        .map_or("never heard".into(), |ms| format!("heard {} ago", age(ms / 1000)));
    format!(
        "{state}, {silent}, revision {}; {}",
        status.revision, status.doing
    )
}

fn row(lease: &LeaseInfo) -> Vec<String> {
    let kind = match &lease.podwire {
        Some(version) => format!("podwire {version}"),
        None => "flannel".into(),
    };
    let name = if lease.own {
        format!("{} (this node)", lease.name)
    } else {
        lease.name.clone()
    };
    let expires = match (lease.reservation, lease.expires_s) {
        (true, _) => "never".into(),
        (false, Some(s)) => u64::try_from(s).map_or("now".into(), countdown),
        (false, None) => "-".into(),
    };
    vec![
        lease.subnet.clone(),
        name,
        lease.public_ip.clone(),
        kind,
        expires,
        format!("{} ago", age(lease.seen_s)),
    ]
}

/// What is left of a time, in two units: `23h59m`, `4m10s`.
fn countdown(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shown_with_what_is_left() {
        let lease = |subnet: &str, name: &str, podwire: Option<&str>, expires_s| LeaseInfo {
            subnet: subnet.into(),
            name: name.into(),
            public_ip: "192.0.2.1".into(),
            podwire: podwire.map(Into::into),
            own: podwire.is_some(),
            reservation: expires_s == Some(0),
            expires_s,
            seen_s: 61,
        };
        let status = StoreStatus {
            connected: true,
            doing: "all is well".into(),
            silent_ms: Some(2500),
            revision: 7,
            failures: 0,
            alarms: vec!["look here".into()],
            allocate: true,
            skipped: vec![("x".into(), "is no subnet".into())],
            skipped_total: 1,
            leases: vec![
                lease("10.1.2.0-24", "n1", Some("0.1.0"), Some(86_399)),
                lease("10.1.3.0-24", "10.1.3.0-24", None, Some(0)),
                lease("10.1.4.0-24", "10.1.4.0-24", None, None),
            ],
        };
        let page = show(&status, Paint(false));
        for line in [
            "store  connected, heard 2s ago, revision 7; all is well",
            "  ! look here",
            "SUBNET       NODE            ADDRESS    KIND           EXPIRES  SEEN",
            "10.1.2.0-24  n1 (this node)  192.0.2.1  podwire 0.1.0  23h59m   1m ago",
            "10.1.3.0-24  10.1.3.0-24     192.0.2.1  flannel        never    1m ago",
            "10.1.4.0-24  10.1.4.0-24     192.0.2.1  flannel        -        1m ago",
            "  x: is no subnet",
        ] {
            assert!(page.lines().any(|l| l == line), "{page}\nlacks {line}");
        }
    }
}
