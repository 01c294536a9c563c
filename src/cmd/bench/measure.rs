//! One measurement: load in the two pods of a path, and what came of it.

use super::lab::Lab;
use super::plan::{Path, Work};
use crate::cmd::Failure;
use crate::cmd::lab::flood::DATAGRAM;
use crate::cmd::lab::load::{Load, numbers, whole_lines};
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::{Job, Watch};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What starting and ending processes, and the beginning of a load, may take beside its window.
const SLACK: Duration = Duration::from_secs(6);
/// How long the pods of a new lab may take to reach each other: a veth is up when the kernel has noticed.
const REACH: Duration = Duration::from_secs(5);

/// One figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    /// What it is of: a work, or one side of it.
    pub what: &'static str,
    /// In what it is counted.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// Require that the pods of both paths reach each other.
///
/// # Errors
/// When they do not.
pub fn reach(lab: &Lab, watch: &mut Watch) -> Result<(), Failure> {
    for path in Path::ALL {
        let (from, to) = lab.pair(path);
        let ping = Load::Ping {
            patience: REACH.as_millis() as u64,
            to: vec![to.four.into()],
        };
        let mut job = from.start(&ping)?;
        let deadline = Instant::now() + REACH + SLACK;
        watch.gather(&mut [&mut job], deadline, Job::ended)?;
        let answered: Vec<IpAddr> = whole_lines(&job.said()).filter_map(|l| l.parse().ok()).collect();
        if answered.is_empty() {
            let (name, from, to) = (lab.contender, &from.name, &to.name);
            return Err(super::lab::failed(format!(
                "{name}: pod {from} does not reach pod {to}"
            )));
        }
    }
    Ok(())
}

/// Measure `work` once, for the time `window`; no figures when it failed.
///
/// # Errors
/// When the end was asked for, or no process can be started.
pub fn measure(
    (from, to): (&Pod, &Pod),
    work: Work,
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let deadline = Instant::now() + window + SLACK;
    let ms = window.as_millis() as u64;
    let streams = if work == Work::Tcp4 { 4 } else { 1 };
    let taker = match work {
        Work::Tcp1 | Work::Tcp4 => Load::Receive {
            streams,
            window: ms,
            port: 0,
        },
        Work::Udp64 => Load::Count { window: ms },
        Work::Rr => Load::Answer { port: 0 },
    };
    // Declared first, so that it ends last: who is cut off would complain.
    let mut giver;
    let mut taker = to.start(&taker)?;
    watch.gather(&mut [&mut taker], deadline, Job::spoke)?;
    let Some([port]) = numbers(&taker.said(), 0) else {
        return Ok(Vec::new());
    };
    let at = SocketAddr::from((to.four, port as u16));
    giver = from.start(&match work {
        Work::Tcp1 | Work::Tcp4 => Load::Send { streams, to: at },
        Work::Udp64 => Load::Flood { window: ms, to: at },
        Work::Rr => Load::Ask { window: ms, to: at },
    })?;
    let teller = if work == Work::Rr { &mut giver } else { &mut taker };
    watch.gather(&mut [&mut *teller], deadline, Job::ended)?;
    let said = teller.said();
    Ok(match work {
        Work::Rr => numbers(&said, 0).map_or(Vec::new(), round_trips),
        _ => numbers(&said, 1).map_or(Vec::new(), |measured| transfer(work, measured)),
    })
}

fn round_trips([p50, p99, _count]: [u64; 3]) -> Vec<Figure> {
    let us = |what, ns: u64| Figure {
        what,
        unit: "us",
        value: ns as f64 / 1e3,
    };
    vec![us("rr-p50", p50), us("rr-p99", p99)]
}

fn transfer(work: Work, [bytes, time, busy]: [u64; 3]) -> Vec<Figure> {
    let (bytes, time, busy) = (bytes as f64, time.max(1) as f64, busy as f64);
    let gbit = Figure {
        what: work.name(),
        unit: "Gbit/s",
        value: bytes * 8.0 / time,
    };
    match work {
        // Nanoseconds a byte are seconds a gigabyte.
        Work::Tcp1 => vec![
            gbit,
            Figure {
                what: "cpu",
                unit: "s/GB",
                value: busy / bytes.max(1.0),
            },
        ],
        Work::Udp64 => vec![Figure {
            unit: "kpps",
            value: bytes / DATAGRAM as f64 / time * 1e6,
            ..gbit
        }],
        _ => vec![gbit],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_their_units() {
        let values = |figures: Vec<Figure>| {
            figures
                .iter()
                .map(|f| (f.what, f.unit, f.value))
                .collect::<Vec<_>>()
        };
        // A gigabyte in a second, while one and a half processors worked.
        let second = [1_000_000_000, 1_000_000_000, 1_500_000_000];
        assert_eq!(
            values(transfer(Work::Tcp1, second)),
            [("tcp1", "Gbit/s", 8.0), ("cpu", "s/GB", 1.5)]
        );
        assert_eq!(values(transfer(Work::Tcp4, second)), [("tcp4", "Gbit/s", 8.0)]);
        let datagrams = [64 * 250_000, 500_000_000, 0];
        assert_eq!(
            values(transfer(Work::Udp64, datagrams)),
            [("udp64", "kpps", 500.0)]
        );
        assert_eq!(
            values(round_trips([41_500, 90_000, 7])),
            [("rr-p50", "us", 41.5), ("rr-p99", "us", 90.0)]
        );
    }
}
