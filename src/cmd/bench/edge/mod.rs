//! `podwire bench egress`, `ports` and `dns`: what is at the node's edge beside what one would use instead, on this
//! machine, in one run.
//!
//! ```text
//!   pod -- podwire node ------\
//!   pod -- veth, nftables -----\
//!   pod -- pasta --------------- home ==== veth ==== world      198.18.1.1 and 198.18.1.2
//!   pod -- slirp4netns --------/
//!   pod -- rootlesskit -------/
//! ```
//!
//! All stand at the same time and take turns within each round. On the way out the servers are in `world`, at a
//! published port the clients are; name servers are asked by the pods, and ask one in `world` themselves.

mod contenders;
mod names;
mod report;
mod work;
mod world;

use crate::cmd::lab::watch::Watch;
use crate::cmd::{Exit, Failure, say};
use contenders::Contender;
use report::{Figure, Report};
use std::time::{Duration, Instant};
use work::Work;
use world::World;

/// The resolver configuration of the lab: the name server in `world`.
pub const RESOLV_CONF: &str = "nameserver 198.18.1.2\n";
/// How long a pod may take to reach the world.
const REACH: Duration = Duration::from_secs(5);
/// How long it is tried at a time, and when again.
const TRIAL: Duration = Duration::from_millis(1);
const AGAIN: Duration = Duration::from_millis(500);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Subject {
    /// The way out to the world, beside the kernel's masquerading (nft), pasta and slirp4netns; the pod connects
    Egress,
    /// Published ports, beside the kernel's DNAT (nft), pasta, rootlesskit's builtin driver (as root) and slirp4netns; the
    /// world connects
    Ports,
    /// The node's own names and its cache, asked by a pod, beside a server that only echoes, and pasta and slirp4netns,
    /// which hand on
    Dns,
}

impl Subject {
    fn ways(self) -> &'static str {
        match self {
            Subject::Egress => "its pod does not reach the world",
            Subject::Ports => "the world does not reach its pod",
            Subject::Dns => "its pod gets no answers",
        }
    }
}

/// Measure, and print the report.
///
/// # Errors
/// When podwire or the kernel cannot be set up, or the end was asked for.
pub fn inside(
    subject: Subject,
    rounds: u8,
    window: Duration,
    json: bool,
    watch: &mut Watch,
) -> Result<Exit, Failure> {
    let mut world = World::make(watch)?;
    if subject == Subject::Dns {
        names::serve(&mut world, watch)?;
    }
    let (contenders, mut absent) = contenders::all(&world, subject, watch)?;
    let at = |contender: &Contender, work, window, watch: &mut Watch| {
        work::measure(subject, contender, work, &world, window, watch)
    };
    let asked = |contender: &Contender, work, window, watch: &mut Watch| {
        names::measure(contender, work, window, watch)
    };
    let mut reaching = reaching(
        contenders,
        subject,
        &mut absent,
        watch,
        |contender, watch| match subject {
            Subject::Egress | Subject::Ports => at(contender, Work::Connect, TRIAL, watch),
            Subject::Dns => asked(contender, names::Work::Pairs, TRIAL, watch),
        },
    )?;
    let mut report = match subject {
        Subject::Egress | Subject::Ports => turns(
            &mut reaching,
            &Work::ALL,
            Work::name,
            rounds,
            watch,
            |c, w, watch| at(c, w, window, watch),
        )?,
        Subject::Dns => turns(
            &mut reaching,
            &names::Work::ALL,
            names::Work::name,
            rounds,
            watch,
            |c, w, watch| asked(c, w, window, watch),
        )?,
    };
    report.remarks = remarks(subject, rounds, window, absent);
    let report = report.finish();
    let whole = report.failures.is_empty();
    if json {
        let text = serde_json::to_string(&report).map_err(|e| Failure::new(Exit::Failed, e))?;
        say(&format!("{text}\n"))?;
    } else {
        say(&report.page())?;
    }
    Ok(if whole { Exit::Ok } else { Exit::Failed })
}

/// Those of `contenders` for which `attempt` gives something before long; a sentence in `absent` for each other.
fn reaching(
    contenders: Vec<Contender>,
    subject: Subject,
    absent: &mut Vec<String>,
    watch: &mut Watch,
    attempt: impl Fn(&Contender, &mut Watch) -> Result<Vec<Figure>, Failure>,
) -> Result<Vec<Contender>, Failure> {
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
        let name = contender.name;
        match reached {
            true => reaching.push(contender),
            false if name == "podwire" => {
                return Err(super::lab::failed(format!("podwire: {}", subject.ways())));
            }
            false => absent.push(format!("{name} is left out: {}", subject.ways())),
        }
    }
    Ok(reaching)
}

/// Have the contenders take turns at each of `works`.
fn turns<W: Copy>(
    contenders: &mut [Contender],
    works: &[W],
    name: fn(W) -> &'static str,
    rounds: u8,
    watch: &mut Watch,
    measure: impl Fn(&Contender, W, &mut Watch) -> Result<Vec<Figure>, Failure>,
) -> Result<Report, Failure> {
    let mut report = Report::new(contenders.iter().map(|c| c.name).collect());
    for (n, work) in (1..).zip(works) {
        let (all, work_name) = (works.len(), name(*work));
        watch.stage(format!("{n} of {all}: {work_name}, {rounds} rounds"));
        for round in 1..=rounds {
            for contender in contenders.iter_mut() {
                let who = contender.name;
                let figures = measure(contender, *work, watch)?;
                if figures.is_empty() {
                    let why = if contender.ended() {
                        ", as it has ended by itself"
                    } else {
                        ""
                    };
                    report.failed(format!("{work_name}: {who} gave nothing in round {round}{why}"));
                }
                let lost = figures.iter().find(|f| f.unit == names::LOST && f.value > 0.0);
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
    Ok(report)
}

fn remarks(subject: Subject, rounds: u8, window: Duration, absent: Vec<String>) -> Vec<String> {
    let system = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let how = format!(
        "{rounds} rounds of {} ms, contenders in turns; podwire {}; {} {}, {cores} cores for all of it; MTU of pods {}",
        window.as_millis(),
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        contenders::MTU,
    );
    let what = match subject {
        Subject::Egress => {
            "the pod is the client; a connection counts when a byte was answered on it; TCP with cubic; less is better for us and s/GB (of all processors together)"
        }
        Subject::Ports => {
            "the world is the client, up is to the pod; a connection counts when a byte was answered on it; TCP with cubic; \
             less is better for us and s/GB (of all processors together)"
        }
        Subject::Dns => {
            "questions for A, one at a time or 64; pairs of A and AAAA from a new socket each, counted as one; per-cpu-s: \
             answers for a second of processor time of the node or program (not the kernel's on behalf of others); echo: \
             podwire's way to a server that answers without looking; slirp4netns and pasta hand on all questions"
        }
    };
    [how, what.into()].into_iter().chain(absent).collect()
}
