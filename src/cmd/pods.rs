//! `podwire pods`: the pods of this node.

use super::attach::json;
use super::table::{age, bytes, table};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, PodInfo, Reply, Request};
use crate::model::{Bandwidth, Labels, PodName, PodState, PortCounters, Rate};

/// List the pods of this node, with their addresses and traffic.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire pods
  podwire pods --json | jq -r '.[].addresses[]'")]
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
    let pods = pods(&mut Client::connect(socket)?)?;
    if args.json {
        say(&json(&pods)?)
    } else {
        say(&listing(&pods))
    }
}

/// The pods of the node.
///
/// # Errors
/// When the node cannot be asked.
pub fn pods(client: &mut Client) -> Result<Vec<PodInfo>, Failure> {
    match client.call(&Request::Pods)? {
        Reply::Pods { pods } => Ok(pods),
        _ => Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        )),
    }
}

/// One pod of the node.
///
/// # Errors
/// When the node cannot be asked.
pub fn find(client: &mut Client, name: &PodName) -> Result<Option<PodInfo>, Failure> {
    Ok(pods(client)?.into_iter().find(|p| p.pod == *name))
}

/// The table; also used by `podwire status`.
pub fn listing(pods: &[PodInfo]) -> String {
    let mut head = vec![
        "POD",
        "ADDRESSES",
        "MAC",
        "MTU",
        "IN",
        "OUT",
        "DROPS",
        "AGE",
        "HELD BY",
    ];
    let mut rows: Vec<Vec<String>> = pods.iter().map(row).collect();
    // Only where there are any: the table is wide already.
    if pods.iter().any(|p| !p.publish.is_empty()) {
        head.push("PUBLISHED");
        for (row, pod) in rows.iter_mut().zip(pods) {
            let ports: Vec<String> = pod.publish.iter().map(ToString::to_string).collect();
            row.push(if ports.is_empty() {
                "-".into()
            } else {
                ports.join(",")
            });
        }
    }
    if pods.iter().any(|p| p.state != PodState::default()) {
        head.push("STATE");
        for (row, pod) in rows.iter_mut().zip(pods) {
            row.push(state(pod));
        }
    }
    if pods.iter().any(|p| !p.labels.is_empty()) {
        head.push("LABELS");
        for (row, pod) in rows.iter_mut().zip(pods) {
            row.push(labels(&pod.labels));
        }
    }
    if pods.iter().any(|p| p.counters.panics > 0) {
        head.push("PANICS");
        for (row, pod) in rows.iter_mut().zip(pods) {
            row.push(panics(&pod.counters));
        }
    }
    if pods.iter().any(|p| p.bandwidth.is_some()) {
        head.push("LIMITS");
        for (row, pod) in rows.iter_mut().zip(pods) {
            row.push(limits(pod.bandwidth.unwrap_or_default()));
        }
    }
    table(&head, &rows)
}

/// Whether a pod is there for others, and how long it is still there at all.
pub fn state(pod: &PodInfo) -> String {
    match pod.drain_ms {
        Some(ms) => format!("{} ({})", pod.state, age(ms.div_ceil(1000))),
        None => pod.state.to_string(),
    }
}

/// Panics of the node at frames of a pod, and how long it is not read yet, in one cell.
fn panics(c: &PortCounters) -> String {
    match c.parked_ms {
        0 => c.panics.to_string(),
        ms => format!("{} (parked for {})", c.panics, age(ms.div_ceil(1000))),
    }
}

/// Bandwidth limits in one cell.
fn limits(bandwidth: Bandwidth) -> String {
    let one = |name, rate: Option<Rate>| rate.map(|r| format!("{name} {r}"));
    let all: Vec<String> = [one("in", bandwidth.ingress), one("out", bandwidth.egress)]
        .into_iter()
        .flatten()
        .collect();
    match all.is_empty() {
        true => "-".into(),
        false => all.join(", "),
    }
}

/// Labels in one cell.
pub fn labels(labels: &Labels) -> String {
    let all: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    match all.is_empty() {
        true => "-".into(),
        false => all.join(","),
    }
}

fn row(pod: &PodInfo) -> Vec<String> {
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let held = match (&pod.holder, &pod.netns) {
        (Some(pid), _) => format!("process {pid}"),
        (None, Some(path)) => path.display().to_string(),
        (None, None) => "-".into(),
    };
    vec![
        pod.pod.to_string(),
        addresses.join(","),
        pod.mac.to_string(),
        pod.mtu.0.to_string(),
        bytes(pod.counters.bytes_to_pod),
        bytes(pod.counters.bytes_from_pod),
        pod.counters.drops.to_string(),
        age(pod.age_s),
        held,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_with_what_they_cost() {
        let counters = |panics, parked_ms| PortCounters {
            panics,
            parked_ms,
            ..PortCounters::default()
        };
        assert_eq!(panics(&counters(0, 0)), "0");
        assert_eq!(panics(&counters(2, 0)), "2");
        assert_eq!(panics(&counters(3, 3001)), "3 (parked for 4s)");
    }
}
