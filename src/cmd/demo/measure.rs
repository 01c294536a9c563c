//! What is measured, from the outside: who reaches whom, how soon, and how much.
//!
//! First everybody pings everybody at once, which finds the pairs that work and warms the neighbour caches.
//! Then one pod after the other times its pings, so that it measures the network and not the queue for the
//! processor; the streams run one by one for the same reason. Everything has a deadline: what is not there by
//! then has failed.

use super::net::Net;
use super::report::{Family, Pair, Report, Throughput, rounded};
use crate::cmd::Failure;
use crate::cmd::lab::load::{Load, numbers, whole_lines};
use crate::cmd::lab::watch::{Job, Watch};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a pod goes on pinging who does not answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What starting and ending a process in a pod may take on a busy machine.
const SLACK: Duration = Duration::from_secs(2);
/// Timed pings in all, shared among the pairs, and the fewest and most of a pair.
const PINGS: usize = 4000;
const PER_PAIR: (usize, usize) = (3, 21);
/// How long a stream is measured, and what its beginning and a failure may take beside.
const WINDOW: Duration = Duration::from_millis(1000);
const STREAM: Duration = Duration::from_secs(4);

/// Measure everything.
///
/// # Errors
/// When the end was asked for, or no process can be started; what fails inside is part of the report.
pub fn measure(net: &Net, watch: &mut Watch) -> Result<Report, Failure> {
    watch.stage("pinging between all pods");
    let reached = reach(net, watch)?;
    watch.stage("timing pings");
    let times = time(net, &reached, watch)?;
    let mut throughput = Vec::new();
    for (from, to) in net.plan.samples() {
        throughput.push(stream(net, from, to, watch)?);
    }
    Ok(Report::new(pairs(net, &times), throughput, watch.elapsed()))
}

/// The addresses that answered each pod.
fn reach(net: &Net, watch: &mut Watch) -> Result<Vec<Vec<IpAddr>>, Failure> {
    let ping = |from| {
        let to = others(net, from);
        let patience = PATIENCE.as_millis() as u64;
        net.pods[from].start(&Load::Ping { patience, to })
    };
    // A pod by itself has nobody to ping.
    let pods = if net.pods.len() > 1 { net.pods.len() } else { 0 };
    let jobs: Result<Vec<Job>, Failure> = (0..pods).map(ping).collect();
    let mut jobs = jobs?;
    let deadline = Instant::now() + PATIENCE + SLACK;
    watch.gather(&mut jobs.iter_mut().collect::<Vec<_>>(), deadline, Job::ended)?;
    Ok(jobs.iter().map(|job| addresses(&job.said())).collect())
}

/// The median round trip from each pod to each address it reaches.
fn time(net: &Net, reached: &[Vec<IpAddr>], watch: &mut Watch) -> Result<Vec<HashMap<IpAddr, f64>>, Failure> {
    let all: usize = reached.iter().map(Vec::len).sum();
    let count = (PINGS / all.max(1)).clamp(PER_PAIR.0, PER_PAIR.1);
    // For all pods together: lost pings are waited for, and a path that broke just now must not add up.
    let deadline = Instant::now() + SLACK + Duration::from_millis((all * count) as u64);
    let mut times = Vec::new();
    for (from, to) in reached.iter().enumerate() {
        if to.is_empty() {
            times.push(HashMap::new());
            continue;
        }
        let load = Load::Time {
            count: count as u16,
            to: to.clone(),
        };
        let mut job = net.pods[from].start(&load)?;
        watch.gather(&mut [&mut job], deadline, Job::ended)?;
        times.push(medians(&job.said()));
    }
    Ok(times)
}

/// One TCP stream; one that fails reaches nothing.
fn stream(net: &Net, from: usize, to: usize, watch: &mut Watch) -> Result<Throughput, Failure> {
    let path = net.plan.path(from, to);
    let (from_name, to_name) = (&net.plan.pods[from].name, &net.plan.pods[to].name);
    watch.stage(format!("one TCP stream from {from_name} to {to_name}, {path}"));
    let deadline = Instant::now() + WINDOW + STREAM;
    let window = WINDOW.as_millis() as u64;
    // Declared first, so that it ends last: a receiver that is cut off would complain.
    let _sender;
    let mut receiver = net.pods[to].start(&Load::Receive {
        streams: 1,
        window,
        port: 0,
    })?;
    watch.gather(&mut [&mut receiver], deadline, Job::spoke)?;
    if let Ok(port) = receiver.said().trim_end().parse() {
        let to = SocketAddr::from((net.pods[to].four, port));
        _sender = net.pods[from].start(&Load::Send { streams: 1, to })?;
        watch.gather(&mut [&mut receiver], deadline, Job::ended)?;
    }
    let measured = numbers(&receiver.said(), 1);
    let reached = measured.map_or(0.0, |[bytes, ns, _busy]| bytes as f64 * 8.0 / ns.max(1) as f64);
    Ok(Throughput {
        from: from_name.clone(),
        to: to_name.clone(),
        path,
        gbit_s: rounded(reached, 3),
    })
}

fn pairs(net: &Net, times: &[HashMap<IpAddr, f64>]) -> Vec<Pair> {
    let indices = 0..net.pods.len();
    let ordered = indices
        .clone()
        .flat_map(|from| indices.clone().map(move |to| (from, to)));
    let both = ordered.filter(|(from, to)| from != to).flat_map(|(from, to)| {
        let pod = &net.pods[to];
        [(Family::Ipv4, pod.four.into()), (Family::Ipv6, pod.six.into())]
            .map(|(family, ip): (_, IpAddr)| (from, to, family, ip))
    });
    both.map(|(from, to, family, ip)| {
        let rtt_us = times.get(from).and_then(|t| t.get(&ip)).copied();
        Pair {
            from: net.plan.pods[from].name.clone(),
            to: net.plan.pods[to].name.clone(),
            family,
            ok: rtt_us.is_some(),
            rtt_us,
            path: net.plan.path(from, to),
        }
    })
    .collect()
}

fn others(net: &Net, from: usize) -> Vec<IpAddr> {
    let pods = net.pods.iter().enumerate().filter(|(i, _)| *i != from);
    pods.flat_map(|(_, pod)| [pod.four.into(), pod.six.into()])
        .collect()
}

/// The addresses [`Load::Ping`] wrote. The last line of a killed process may be cut off, so that it could
/// name another address: lines count when they are whole.
fn addresses(said: &str) -> Vec<IpAddr> {
    whole_lines(said).filter_map(|line| line.parse().ok()).collect()
}

/// The times [`Load::Time`] wrote, in microseconds.
fn medians(said: &str) -> HashMap<IpAddr, f64> {
    let pair = |line: &str| {
        let (ip, nanoseconds) = line.split_once(' ')?;
        let us = nanoseconds.parse::<u64>().ok()? as f64 / 1e3;
        Some((ip.parse().ok()?, rounded(us, 1)))
    };
    whole_lines(said).filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_said_counts_as_far_as_it_got() {
        assert_eq!(
            addresses("10.244.1.2\nfd00::2\n10.244.1.1"),
            [
                "10.244.1.2".parse::<IpAddr>().unwrap(),
                "fd00::2".parse().unwrap()
            ]
        );
        let times = medians("10.244.1.2 41260\nfd00::2 nonsense\n10.244.1.3 4");
        assert_eq!(times, HashMap::from([("10.244.1.2".parse().unwrap(), 41.3)]));
    }
}
