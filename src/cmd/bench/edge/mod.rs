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
mod idle;
mod names;
pub mod work;
mod world;

use super::turns::{self, Report};
use crate::cmd::lab::watch::Watch;
use crate::cmd::{Exit, Failure};
use contenders::Contender;
use std::time::Duration;
use work::Work;
use world::World;

/// The resolver configuration of the lab: the name server in `world`.
pub const RESOLV_CONF: &str = "nameserver 198.18.1.2\n";
/// How long it is tried at a time whether a pod reaches the world.
const TRIAL: Duration = Duration::from_millis(1);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The way out of the pod network.
    Egress,
    /// Ports of the host that lead to a pod.
    Ports,
    /// The node's name server.
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
    let mut reaching = turns::reaching(
        contenders,
        subject.ways(),
        &mut absent,
        watch,
        |contender, watch| match subject {
            Subject::Egress | Subject::Ports => at(contender, Work::Connect, TRIAL, watch),
            Subject::Dns => asked(contender, names::Work::Pairs, TRIAL, watch),
        },
    )?;
    let mut report = Report::new(reaching.iter().map(|c| c.name).collect());
    match subject {
        Subject::Egress | Subject::Ports => turns::take(
            &mut report,
            &mut reaching,
            &Work::ALL,
            |work| work.name().into(),
            rounds,
            watch,
            |c, w, watch| at(c, w, window, watch),
        )?,
        Subject::Dns => turns::take(
            &mut report,
            &mut reaching,
            &names::Work::ALL,
            |work| work.name().into(),
            rounds,
            watch,
            |c, w, watch| asked(c, w, window, watch),
        )?,
    };
    if subject == Subject::Egress {
        // The others have too few ports or descriptors for so many.
        reaching.retain(|c| ["podwire", "kernel"].contains(&c.name));
        turns::take(
            &mut report,
            &mut reaching,
            &[()],
            |()| idle::NAME.into(),
            rounds,
            watch,
            |c, (), watch| idle::measure(c, &world, window, watch),
        )?;
    }
    report.remarks = remarks(subject, rounds, window, absent);
    report.finish().print(json)
}

fn remarks(subject: Subject, rounds: u8, window: Duration, absent: Vec<String>) -> Vec<String> {
    let how = format!(
        "{}; MTU of pods {}",
        turns::remark(rounds, window),
        contenders::MTU
    );
    let what = match subject {
        Subject::Egress => {
            "the pod is the client; a connection counts when a byte was answered on it; TCP with cubic; less is better for us and \
             s/GB (of all processors together); idle: a stream beside 10,000 flows that say nothing, in percent of one just \
             before them, and what these cost podwire in memory"
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
