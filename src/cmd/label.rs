//! `podwire label`, `ready` and `drain`: what Services must know of a pod.

use super::attach::json;
use super::pods::{find, labels, state};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, PodInfo, Reply, Request};
use crate::model::{LabelChange, PodName};
use std::time::Duration;

/// How often it is looked whether a pod that drains is gone.
const LOOK: Duration = Duration::from_millis(100);

/// Set labels of a pod, or take them away: all of them, or none.
///
/// Services select pods by labels, so that a pod joins a Service, or leaves it, at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire label web app=web tier=front
  podwire label web tier-                  (takes it away)")]
pub struct Args {
    /// The pod
    pod: PodName,
    /// KEY=VALUE, or KEY- to take it away
    #[arg(required = true, value_name = "LABEL", allow_hyphen_values = true)]
    labels: Vec<LabelChange>,
    /// Print the pod as JSON
    #[arg(long)]
    json: bool,
}

/// Say that a pod is ready, or with --not that it is not: Services send it nothing then.
///
/// A pod that was told to drain, and is there still, drains no longer when it is ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire ready web --not
  podwire ready web")]
pub struct ReadyArgs {
    /// The pod
    pod: PodName,
    /// It is not ready
    #[arg(long)]
    not: bool,
    /// Print the pod as JSON
    #[arg(long)]
    json: bool,
}

/// Take a pod off the node without breaking what it has begun.
///
/// From now on Services send it no new flows while another pod is ready; flows it has go on until the time is over. Then it
/// is detached. The node counts the time, also when this command is interrupted; `podwire ready` calls it off.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire drain web
  podwire drain web --grace 5m --wait")]
pub struct DrainArgs {
    /// The pod
    pod: PodName,
    /// How long its flows may go on: 500ms, 30s, 5m, or seconds
    #[arg(long, default_value = "30s", value_parser = grace)]
    grace: Duration,
    /// Return when the pod is gone
    #[arg(long)]
    wait: bool,
    /// Print the pod as JSON
    #[arg(long, conflicts_with = "wait")]
    json: bool,
}

/// Change labels.
///
/// # Errors
/// What the node refuses.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let request = Request::Label {
        pod: args.pod,
        changes: args.labels,
    };
    let pod = ask(&mut Client::connect(socket)?, &request)?;
    match args.json {
        true => say(&json(&pod)?),
        false => say(&format!("{} has {}\n", pod.pod, told(&pod))),
    }
}

fn told(pod: &PodInfo) -> String {
    match pod.labels.is_empty() {
        true => "no labels".into(),
        false => labels(&pod.labels),
    }
}

/// Say whether a pod is ready.
///
/// # Errors
/// What the node refuses.
pub fn ready(args: &ReadyArgs, socket: &Socket) -> Result<(), Failure> {
    let request = Request::Ready {
        pod: args.pod.clone(),
        ready: !args.not,
    };
    let pod = ask(&mut Client::connect(socket)?, &request)?;
    match args.json {
        true => say(&json(&pod)?),
        false => say(&format!("{} is {}\n", pod.pod, state(&pod))),
    }
}

/// Drain a pod.
///
/// # Errors
/// What the node refuses.
pub fn drain(args: &DrainArgs, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let grace_ms = u64::try_from(args.grace.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Drain {
        pod: args.pod.clone(),
        grace_ms: Some(grace_ms),
    };
    let pod = ask(&mut client, &request)?;
    if args.json {
        return say(&json(&pod)?);
    }
    if !args.wait {
        return say(&format!("{} is {}: it is detached then\n", pod.pod, state(&pod)));
    }
    while let Some(there) = find(&mut client, &args.pod)? {
        if !there.state.draining {
            return Err(Failure::new(
                Exit::Failed,
                format!("{} drains no longer: somebody said that it is ready", args.pod),
            ));
        }
        std::thread::sleep(LOOK);
    }
    say(&format!("{} is detached\n", args.pod))
}

/// Have a pod drain whose end is somebody else's affair.
///
/// # Errors
/// What the node refuses.
pub(super) fn drain_only(socket: &Socket, pod: &PodName) -> Result<(), Failure> {
    let request = Request::Drain {
        pod: pod.clone(),
        grace_ms: None,
    };
    ask(&mut Client::connect(socket)?, &request).map(drop)
}

fn ask(client: &mut Client, request: &Request) -> Result<PodInfo, Failure> {
    match client.call(request)? {
        Reply::Pod(pod) => Ok(*pod),
        _ => Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        )),
    }
}

/// A span of time: `500ms`, `30s`, `5m`, `30`.
pub(super) fn grace(s: &str) -> Result<Duration, String> {
    let split = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let unit = match &s[split..] {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number = s[..split].parse::<u32>().ok();
    match (number, unit) {
        (Some(n), Some(unit)) if u64::from(n) * unit <= 86_400_000 => {
            Ok(Duration::from_millis(u64::from(n) * unit))
        }
        _ => Err(format!(
            "{s:?} is no span of time (write 500ms, 30s or 5m; a day at most)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        for (s, ms) in [
            ("30s", 30_000),
            ("30", 30_000),
            ("500ms", 500),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("0", 0),
        ] {
            assert_eq!(grace(s), Ok(Duration::from_millis(ms)), "{s}");
        }
        for bad in ["", "s", "1d", "-1", "1.5s", "25h", "99999999999s"] {
            assert!(grace(bad).is_err(), "{bad}");
        }
    }
}
