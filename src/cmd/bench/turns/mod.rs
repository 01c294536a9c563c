//! Any number of contenders that take turns within each round: a machine that is slow for a while is so for all.

mod report;

pub use report::{Figure, LOST, Report};

use super::lab::failed;
use crate::cmd::Failure;
use crate::cmd::lab::watch::Watch;
use std::time::{Duration, Instant};

/// How long a contender may take until its way is open, and when that is tried again.
const REACH: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(500);

/// Who takes turns.
pub trait Contestant {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Whether its program was seen to have ended by itself.
    fn ended(&mut self) -> bool {
        false
    }
}

/// Those of `contenders` for which `attempt` gives something before long; of each other a sentence in `absent`, which says
/// that `closed`.
///
/// # Errors
/// When podwire is one of the others, or the end was asked for.
pub fn reaching<C: Contestant>(
    contenders: Vec<C>,
    closed: &str,
    absent: &mut Vec<String>,
    watch: &mut Watch,
    attempt: impl Fn(&C, &mut Watch) -> Result<Vec<Figure>, Failure>,
) -> Result<Vec<C>, Failure> {
    let mut reaching = Vec::new();
    for contender in contenders {
        let deadline = Instant::now() + REACH;
        let reached = loop {
            if !attempt(&contender, watch)?.is_empty() {
                break true;
            }
            if Instant::now() >= deadline {
                break false;
            }
            std::thread::sleep(AGAIN);
        };
        match (reached, contender.name()) {
            (true, _) => reaching.push(contender),
            (false, "podwire") => return Err(failed(format!("podwire: {closed}"))),
            (false, name) => absent.push(format!("{name} is left out: {closed}")),
        }
    }
    Ok(reaching)
}

/// Have the contenders take turns at each of `works`, and put what they give into `report`.
///
/// # Errors
/// When the end was asked for, or no load can be started.
pub fn take<C: Contestant, W: Copy>(
    report: &mut Report,
    contenders: &mut [C],
    works: &[W],
    name: impl Fn(W) -> String,
    rounds: u8,
    watch: &mut Watch,
    mut measure: impl FnMut(&mut C, W, &mut Watch) -> Result<Vec<Figure>, Failure>,
) -> Result<(), Failure> {
    for (n, work) in (1..).zip(works) {
        let (all, work_name) = (works.len(), name(*work));
        watch.stage(format!("{n} of {all}: {work_name}, {rounds} rounds"));
        for round in 1..=rounds {
            for contender in contenders.iter_mut() {
                let who = contender.name();
                let figures = measure(contender, *work, watch)?;
                if figures.is_empty() {
                    let why = if contender.ended() {
                        ", as it has ended by itself"
                    } else {
                        ""
                    };
                    report.failed(format!("{work_name}: {who} gave nothing in round {round}{why}"));
                }
                let lost = figures.iter().find(|f| f.unit == LOST && f.value > 0.0);
                if let (Some(lost), "podwire") = (lost, who) {
                    report.failed(format!(
                        "{work_name}: podwire lost {} in round {round}",
                        lost.value
                    ));
                }
                report.add(who, figures);
            }
            report.next_round();
        }
    }
    Ok(())
}

/// How all of it was measured.
pub fn remark(rounds: u8, window: Duration) -> String {
    let system = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{rounds} rounds of {} ms, contenders in turns; podwire {}; {} {}, {cores} cores for all of it",
        window.as_millis(),
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
    )
}
