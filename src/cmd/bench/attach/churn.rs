//! Containers that come and go on a full node, ten a second each way (row 55 of the fault table), and what two others notice.
//!
//! ```text
//!   250 containers stand; ADD of a new one and DEL of the oldest, each every 100 ms
//!   two others: a stream from one to the other, and a hundred pings a second
//! ```
//!
//! Each round measures stream and pings before it (calm), and then during it (churn).

use super::{CROWD, Contender, figure, percentile};
use crate::api::{Client, Reply, Request};
use crate::cmd::Failure;
use crate::cmd::bench::lab::failed;
use crate::cmd::bench::turns::{Figure, LOST, Report};
use crate::cmd::lab::load::{Load, numbers};
use crate::cmd::lab::pod;
use crate::cmd::lab::watch::{Job, Watch};
use crate::model::AttachmentFilter;
use crate::sys::ns::NetNs;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Containers that stand.
const STANDING: usize = 250;
/// Namespaces for those that come while others still go.
const SPARE: usize = 16;
/// How often one comes, and one goes.
const PERIOD: Duration = Duration::from_millis(100);
/// How much longer than a window of the other works it goes on: its p99 is of few.
const LONGER: u32 = 5;
/// How long a load may take beside its window.
const PATIENCE: Duration = Duration::from_secs(10);

/// A full node.
pub struct Churn<'c> {
    contender: &'c Contender,
    next: AtomicU32,
    /// Those that stand, the oldest first.
    standing: Mutex<VecDeque<(u32, NetNs)>>,
    /// Namespaces that nobody has.
    free: Mutex<VecDeque<NetNs>>,
    /// Who sends, and who receives.
    talkers: [NetNs; 2],
    to: IpAddr,
}

impl<'c> Churn<'c> {
    /// Fill the node whose admin socket is at `socket`.
    ///
    /// # Errors
    /// When a container cannot be attached.
    pub fn new(contender: &'c Contender, socket: &Path, watch: &mut Watch) -> Result<Churn<'c>, Failure> {
        watch.stage(format!("attaching {STANDING} containers"));
        let first = contender.next;
        let talkers = [NetNs::make()?, NetNs::make()?];
        contender.all("ADD", first, &talkers)?;
        let filter = AttachmentFilter {
            container: Some(Contender::container(first + 1)),
            ..AttachmentFilter::default()
        };
        let asked = Client::connect(socket).and_then(|mut c| c.call(&Request::Attachments { filter }));
        let address = match asked.map_err(failed)? {
            Reply::Pods { pods } => pods.first().and_then(|pod| pod.addresses.first().copied()),
            _ => None,
        };
        let to = address.ok_or_else(|| failed("the node does not know the containers that talk"))?;
        let (mut standing, mut next) = (VecDeque::new(), first + 2);
        while standing.len() < STANDING {
            watch.check()?;
            let count = CROWD.min(STANDING - standing.len());
            let some: Result<Vec<NetNs>, _> = (0..count).map(|_| NetNs::make()).collect();
            let some = some?;
            contender
                .all("ADD", next, &some)?
                .ok_or_else(|| failed("not all containers could be attached"))?;
            standing.extend((next..).zip(some));
            next += count as u32;
        }
        let free: Result<_, _> = (0..SPARE).map(|_| NetNs::make()).collect();
        Ok(Churn {
            contender,
            next: next.into(),
            standing: standing.into(),
            free: Mutex::new(free?),
            talkers,
            to,
        })
    }

    /// Measure, so many rounds.
    ///
    /// # Errors
    /// When a load cannot be started, a container cannot be attached or detached, or the end was asked for.
    pub fn measure(
        &self,
        report: &mut Report,
        rounds: u8,
        window: Duration,
        watch: &mut Watch,
    ) -> Result<(), Failure> {
        let who = self.contender.name;
        watch.stage(format!("churn, {rounds} rounds"));
        for round in 1..=rounds {
            let calm = self.traffic("calm", window, watch)?;
            let over = AtomicBool::new(false);
            let (churn, adds, dels) = thread::scope(|s| {
                let adds = s.spawn(|| paced(&over, || self.come()));
                let dels = s.spawn(|| paced(&over, || self.go()));
                let churn = self.traffic("churn", window * LONGER, watch);
                over.store(true, Ordering::Relaxed);
                (churn, joined(adds), joined(dels))
            });
            let all = [calm, churn?, times("ADD", adds?), times("DEL", dels?)];
            if all.iter().any(Vec::is_empty) {
                report.failed(format!("churn: {who} gave not everything in round {round}"));
            }
            report.add(who, all.concat());
            report.next_round();
        }
        Ok(())
    }

    /// A container comes.
    fn come(&self) -> Result<Option<Duration>, Failure> {
        let Some(netns) = locked(&self.free).pop_front() else {
            // Those that go are late.
            return Ok(None);
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let took = self.contender.all("ADD", id, std::slice::from_ref(&netns))?;
        locked(&self.standing).push_back((id, netns));
        took.map(Some)
            .ok_or_else(|| failed("a container could not be attached"))
    }

    /// The oldest container goes.
    fn go(&self) -> Result<Option<Duration>, Failure> {
        let Some((id, netns)) = locked(&self.standing).pop_front() else {
            return Ok(None);
        };
        let took = self.contender.all("DEL", id, std::slice::from_ref(&netns))?;
        locked(&self.free).push_back(netns);
        took.map(Some)
            .ok_or_else(|| failed("a container could not be detached"))
    }

    /// What the two that talk notice: the stream's rate, and the pings.
    fn traffic(&self, when: &str, window: Duration, watch: &mut Watch) -> Result<Vec<Figure>, Failure> {
        let [from, to] = &self.talkers;
        let ms = window.as_millis() as u64;
        let mut receive = pod::start_in(
            to,
            &Load::Receive {
                streams: 1,
                window: ms,
                port: 0,
            },
        )?;
        watch.gather(&mut [&mut receive], Instant::now() + PATIENCE, Job::spoke)?;
        let Some([port]) = numbers::<1>(&receive.said(), 0) else {
            return Ok(Vec::new());
        };
        let at = SocketAddr::new(self.to, port as u16);
        let _send = pod::start_in(from, &Load::Send { streams: 1, to: at })?;
        let mut pings = pod::start_in(
            from,
            &Load::Pace {
                window: ms,
                to: self.to,
            },
        )?;
        let deadline = Instant::now() + window + PATIENCE;
        watch.gather(&mut [&mut receive, &mut pings], deadline, Job::ended)?;
        let stream = numbers::<3>(&receive.said(), 1).filter(|[bytes, ..]| *bytes > 0);
        let pings = numbers::<4>(&pings.said(), 0);
        let Some(([bytes, ns, _], [_, p99, _, lost])) = stream.zip(pings) else {
            return Ok(Vec::new());
        };
        let of = |what: &str, unit, value| Figure {
            what: format!("{when}-{what}"),
            unit,
            value,
        };
        Ok(vec![
            of("stream", "Gbit/s", bytes as f64 * 8.0 / ns.max(1) as f64),
            of("ping-p99", "us", p99 as f64 / 1e3),
            of("ping-lost", LOST, lost as f64),
        ])
    }
}

/// Do `step` once each period until `over`; how long each took. One that is late is made up for.
fn paced(
    over: &AtomicBool,
    mut step: impl FnMut() -> Result<Option<Duration>, Failure>,
) -> Result<Vec<Duration>, Failure> {
    let begun = Instant::now();
    let (mut times, mut steps) = (Vec::new(), 0);
    while !over.load(Ordering::Relaxed) {
        times.extend(step()?);
        steps += 1;
        thread::sleep((begun + PERIOD * steps).saturating_duration_since(Instant::now()));
    }
    Ok(times)
}

fn times(verb: &str, mut times: Vec<Duration>) -> Vec<Figure> {
    times.sort();
    if times.is_empty() {
        return Vec::new();
    }
    let of = |percent| figure(format!("churn-{verb}-p{percent}"), percentile(&times, percent));
    vec![of(50), of(99)]
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    let ended = thread.join();
    ended.unwrap_or_else(|_| Err(failed("a thread of the measurement panicked")))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
