//! What many flows that say nothing cost: memory, and one that begins beside them.

use super::super::turns::Figure;
use super::Subject;
use super::contenders::Contender;
use super::work::{self, Work};
use super::world::{WORLD, World};
use crate::cmd::Failure;
use crate::cmd::lab::load::{Load, numbers};
use crate::cmd::lab::memory;
use crate::cmd::lab::pod::start_in;
use crate::cmd::lab::watch::{Job, Watch};
use std::time::{Duration, Instant};

/// Flows that say nothing.
pub const FLOWS: u16 = 10_000;
/// How long making them may take.
const MAKE: Duration = Duration::from_secs(60);
/// What this is called in the table.
pub const NAME: &str = "idle";
const BULK: [(Work, &str); 2] = [(Work::Up(1), "idle-up1"), (Work::Down(1), "idle-down1")];

/// A stream each way without and with them, one after the other: the latter in percent of the former; and what the
/// processes of a contender have grown by. No figures when something failed.
///
/// # Errors
/// When the end was asked for, or no process can be started.
pub fn measure(
    contender: &Contender,
    world: &World,
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let bulk = |watch: &mut Watch| -> Result<Vec<f64>, Failure> {
        let mut speeds = Vec::new();
        for (work, _) in BULK {
            let figures = work::measure(Subject::Egress, contender, work, world, window, watch)?;
            speeds.extend(figures.first().map(|figure| figure.value));
        }
        Ok(speeds)
    };
    let own = || -> u64 { contender.processes().into_iter().filter_map(memory::own).sum() };
    let alone = bulk(watch)?;
    let before = own();
    let deadline = Instant::now() + MAKE;
    // Declared in this order, so that who is cut off ends last.
    let mut client;
    let mut server = start_in(&world.world, &Load::Keep { port: 0 })?;
    watch.gather(&mut [&mut server], deadline, Job::spoke)?;
    let Some([port]) = numbers(&server.said(), 0) else {
        return Ok(Vec::new());
    };
    let to = (WORLD, port as u16).into();
    client = contender.crowd().start(&Load::Hold { count: FLOWS, to })?;
    watch.gather(&mut [&mut client], deadline, Job::spoke)?;
    if numbers(&client.said(), 0) != Some([u64::from(FLOWS)]) {
        return Ok(Vec::new());
    }
    let grown = own().saturating_sub(before);
    let beside = bulk(watch)?;
    Job::end(&mut [&mut client, &mut server], Duration::from_secs(2));
    if [alone.len(), beside.len()] != [BULK.len(); 2] {
        return Ok(Vec::new());
    }
    let share = |n: usize| Figure {
        what: BULK[n].1.into(),
        unit: "%",
        value: beside[n] * 100.0 / alone[n].max(f64::MIN_POSITIVE),
    };
    let memory = (grown > 0).then(|| Figure {
        what: "idle-memory".into(),
        unit: "MiB",
        value: grown as f64 / 1024.0,
    });
    Ok((0..BULK.len()).map(share).chain(memory).collect())
}
