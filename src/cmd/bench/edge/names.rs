//! What is measured of a name server: questions of a pod.

use super::super::turns::{Figure, LOST};
use super::contenders::Contender;
use super::work::SLACK;
use super::world::World;
use crate::cmd::Failure;
use crate::cmd::lab::cpu;
use crate::cmd::lab::load::{Load, numbers};
use crate::cmd::lab::watch::{Job, Watch};
use std::time::{Duration, Instant};

/// The name that the node was given.
pub const STATIC: &str = "static.bench.example";
/// The name of podwire's own pod.
const POD: &str = "podwire.bench.pod";
/// Names that others know, enough of them that a cache is a table.
const OTHERS: usize = 100;
/// Where name servers are asked (RFC 1035 section 4.2).
pub const PORT: u16 = 53;
/// Where the one is that podwire stands beside: on the host's loopback, as podwire's own.
pub const ECHO: u16 = 5300;
/// Questions at a time where there are many.
const MANY: u8 = 64;

/// Whose name it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The node was given it.
    Static,
    /// A pod's.
    Pod,
    /// Of others, and in the cache.
    Cached,
}

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// For A, one question at a time.
    One(Known),
    /// The same, many at a time.
    Many(Known),
    /// For A and AAAA at once, one pair after the other, from a new socket each.
    Pairs,
}

impl Work {
    /// All of them, in the order of the table.
    pub const ALL: [Work; 7] = [
        Work::One(Known::Static),
        Work::One(Known::Pod),
        Work::One(Known::Cached),
        Work::Many(Known::Static),
        Work::Many(Known::Pod),
        Work::Many(Known::Cached),
        Work::Pairs,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::One(Known::Static) => "static",
            Work::One(Known::Pod) => "pod",
            Work::One(Known::Cached) => "cached",
            Work::Many(Known::Static) => "static-64",
            Work::Many(Known::Pod) => "pod-64",
            Work::Many(Known::Cached) => "cached-64",
            Work::Pairs => "pairs",
        }
    }

    fn load(self, contender: &Contender, window: u64) -> Load {
        let (flight, known) = match self {
            Work::One(known) => (1, known),
            Work::Many(known) => (MANY, known),
            Work::Pairs => (0, Known::Cached),
        };
        let names = match known {
            Known::Static => vec![STATIC.into()],
            Known::Pod => vec![POD.into()],
            Known::Cached => (1..=OTHERS).map(|n| format!("n{n}.example")).collect(),
        };
        Load::Resolve {
            flight,
            window,
            to: contender.at,
            names,
        }
    }

    /// What the client said, and how long the server's processes ran meanwhile; no figures when it said something else.
    fn figures(self, said: &str, window: Duration, spent: Option<Duration>) -> Vec<Figure> {
        let figure = |what: &str, unit, value| Figure {
            what: format!("{}{what}", self.name()),
            unit,
            value,
        };
        let Some([p50, p99, count, lost, answered]) = numbers(said, 0) else {
            return Vec::new();
        };
        let mut figures = vec![
            figure("", "1/s", count as f64 / window.as_secs_f64()),
            figure("-p50", "us", p50 as f64 / 1e3),
            figure("-p99", "us", p99 as f64 / 1e3),
        ];
        if let (Work::Many(_), Some(spent)) = (self, spent) {
            figures.push(figure("-per-cpu-s", "1/s", answered as f64 / spent.as_secs_f64()));
        }
        figures.push(figure("-lost", LOST, lost as f64));
        figures
    }
}

/// What has to be there before contenders are made: who knows names in the world, and beside the node.
///
/// # Errors
/// When it cannot be started.
pub fn serve(world: &mut World, watch: &mut Watch) -> Result<(), Failure> {
    world.serve(|w| &w.world, &Load::Names { port: PORT }, watch)?;
    world.serve(|w| &w.home, &Load::Names { port: ECHO }, watch)
}

/// One measurement; no figures when it failed.
///
/// # Errors
/// When the end was asked for, or no process can be started.
pub fn measure(
    contender: &Contender,
    work: Work,
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let deadline = Instant::now() + window + SLACK;
    let processes = contender.processes();
    let before = cpu::spent(&processes);
    let mut client = contender
        .place
        .start(&work.load(contender, window.as_millis() as u64))?;
    watch.gather(&mut [&mut client], deadline, Job::ended)?;
    let after = cpu::spent(&processes);
    let spent = after
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    let spent = spent.filter(|spent| !spent.is_zero());
    Ok(work.figures(&client.said(), window, spent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_becomes_figures() {
        let half = Duration::from_millis(500);
        let values = |work: Work, said: &str, spent| -> Vec<(String, f64)> {
            let figures = work.figures(said, half, spent);
            figures.into_iter().map(|f| (f.what, f.value)).collect()
        };
        let of = |figures: &[(&str, f64)]| -> Vec<(String, f64)> {
            figures
                .iter()
                .map(|(what, value)| (what.to_string(), *value))
                .collect()
        };
        let spent = Some(Duration::from_millis(250));
        let said = "50000 90000 20000 0 30000\n";
        let many = of(&[
            ("pod-64", 40_000.0),
            ("pod-64-p50", 50.0),
            ("pod-64-p99", 90.0),
            ("pod-64-per-cpu-s", 120_000.0),
            ("pod-64-lost", 0.0),
        ]);
        assert_eq!(values(Work::Many(Known::Pod), said, spent), many);
        assert_eq!(values(Work::Many(Known::Pod), said, None).len(), 4);
        let pairs = values(Work::Pairs, "50000 90000 2000 3 5000\n", spent);
        assert_eq!(pairs[0], ("pairs".to_string(), 4000.0));
        assert_eq!(pairs[3], ("pairs-lost".to_string(), 3.0));
        assert!(values(Work::Pairs, "50000 90000 20", spent).is_empty());
    }
}
