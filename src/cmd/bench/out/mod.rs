//! `podwire bench egress`: the way out beside those one would use instead, on this machine, in one run.
//!
//! ```text
//!   pod -- podwire node --\
//!   pod -- veth, nftables --> home ==== veth ==== world      198.18.1.1 and 198.18.1.2
//!   pod -- slirp4netns   --/
//! ```
//!
//! All stand at the same time and take turns within each round; the servers run in `world`.

mod contenders;
mod report;

use super::lab::failed;
use crate::cmd::lab::load::{Load, numbers};
use crate::cmd::lab::watch::{Job, Watch};
use crate::cmd::{Exit, Failure, say};
use crate::sys::ns::NetNs;
use contenders::{Contender, World};
use report::{Figure, Report};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

/// What starting and ending processes, and the beginning of a load, may take beside its window.
const SLACK: Duration = Duration::from_secs(6);

/// A kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// Bulk from the pod, over so many TCP connections.
    Up(u8),
    /// Bulk to the pod.
    Down(u8),
    /// TCP connections, one after the other.
    Connect,
    /// Requests and responses of 64 bytes over one TCP connection.
    Tcp,
    /// The same by UDP.
    Udp,
}

impl Work {
    const ALL: [Work; 7] = [
        Work::Up(1),
        Work::Down(1),
        Work::Up(8),
        Work::Down(8),
        Work::Connect,
        Work::Tcp,
        Work::Udp,
    ];

    fn name(self) -> &'static str {
        match self {
            Work::Up(1) => "up1",
            Work::Up(_) => "up8",
            Work::Down(1) => "down1",
            Work::Down(_) => "down8",
            Work::Connect => "connect",
            Work::Tcp => "tcp-rr",
            Work::Udp => "udp-rr",
        }
    }

    /// What runs in the world.
    fn server(self, window: u64) -> Load {
        match self {
            Work::Up(streams) => Load::Receive { streams, window },
            Work::Down(streams) => Load::Serve { streams },
            Work::Connect => Load::Admit,
            Work::Tcp => Load::Answer,
            Work::Udp => Load::Echo,
        }
    }

    /// What runs in the pod.
    fn client(self, window: u64, to: SocketAddr) -> Load {
        match self {
            Work::Up(streams) => Load::Send { streams, to },
            Work::Down(streams) => Load::Fetch { streams, window, to },
            Work::Connect => Load::Knock { window, to },
            Work::Tcp => Load::Ask { window, to },
            Work::Udp => Load::Query { window, to },
        }
    }

    /// What the one of the two that measured said; no figures when it said something else.
    fn figures(self, said: &str, window: Duration) -> Vec<Figure> {
        let figure = |what: &str, unit, value| Figure {
            what: format!("{}{what}", self.name()),
            unit,
            value,
        };
        match self {
            Work::Up(_) | Work::Down(_) => {
                let line = usize::from(matches!(self, Work::Up(_)));
                numbers(said, line).map_or(Vec::new(), |[bytes, time, busy]: [u64; 3]| {
                    let (bytes, time) = (bytes as f64, time.max(1) as f64);
                    vec![
                        figure("", "Gbit/s", bytes * 8.0 / time),
                        // Nanoseconds a byte are seconds a gigabyte.
                        figure("-cpu", "s/GB", busy as f64 / bytes.max(1.0)),
                    ]
                })
            }
            Work::Connect => numbers(said, 0).map_or(Vec::new(), |[count]: [u64; 1]| {
                vec![figure("", "1/s", count as f64 / window.as_secs_f64())]
            }),
            Work::Tcp | Work::Udp => numbers(said, 0).map_or(Vec::new(), |[p50, p99, count]: [u64; 3]| {
                vec![
                    figure("", "1/s", count as f64 / window.as_secs_f64()),
                    figure("-p50", "us", p50 as f64 / 1e3),
                    figure("-p99", "us", p99 as f64 / 1e3),
                ]
            }),
        }
    }
}

/// Measure, and print the report.
///
/// # Errors
/// When podwire or the kernel cannot be set up, or the end was asked for.
pub fn inside(rounds: u8, window: Duration, json: bool, watch: &mut Watch) -> Result<Exit, Failure> {
    let world = World::make(watch)?;
    let (contenders, absent) = contenders::all(&world, watch)?;
    let names: Vec<&'static str> = contenders.iter().map(|c| c.name).collect();
    let mut report = Report::new(names.clone());
    for (n, work) in (1..).zip(Work::ALL) {
        watch.stage(format!(
            "{n} of {}: {}, {rounds} rounds",
            Work::ALL.len(),
            work.name()
        ));
        for round in 1..=rounds {
            for contender in &contenders {
                let figures = measure(contender, work, &world, window, watch)?;
                if figures.is_empty() {
                    let who = contender.name;
                    report.failed(format!("{}: {who} gave nothing in round {round}", work.name()));
                }
                report.add(contender.name, figures);
            }
            report.next_round();
        }
    }
    report.remarks = remarks(rounds, window, absent);
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

fn remarks(rounds: u8, window: Duration, absent: Vec<String>) -> Vec<String> {
    let system = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let how = format!(
        "{rounds} rounds of {} ms, contenders in turns; podwire {}; {} {}, {cores} cores for all of it; MTU of pods \
         {}; TCP with cubic; less is better for us and s/GB (of all processors together)",
        window.as_millis(),
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        contenders::MTU,
    );
    [how].into_iter().chain(absent).collect()
}

/// One measurement; no figures when it failed.
fn measure(
    contender: &Contender,
    work: Work,
    world: &World,
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let deadline = Instant::now() + window + SLACK;
    let ms = window.as_millis() as u64;
    // Declared first, so that it ends last: who is cut off would complain.
    let mut client;
    let mut server = start(&world.world, &work.server(ms))?;
    watch.gather(&mut [&mut server], deadline, Job::spoke)?;
    let Some([port]) = numbers(&server.said(), 0) else {
        return Ok(Vec::new());
    };
    let at = SocketAddr::from((contenders::WORLD, port as u16));
    client = contender.start(&work.client(ms, at))?;
    let teller = match work {
        Work::Up(_) => &mut server,
        _ => &mut client,
    };
    watch.gather(&mut [&mut *teller], deadline, Job::ended)?;
    let figures = work.figures(&teller.said(), window);
    Job::end(&mut [&mut client, &mut server], Duration::from_secs(2));
    Ok(figures)
}

/// Begin `load` in a network namespace.
fn start(netns: &NetNs, load: &Load) -> Result<Job, Failure> {
    let words = [crate::cmd::lab::load::VERB.to_string()]
        .into_iter()
        .chain(load.words());
    let mut command = Command::new("/proc/self/exe");
    command.args(words);
    netns
        .within(|| Job::spawn(&mut command))?
        .map_err(|e| failed(format!("podwire could not run itself: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_becomes_figures() {
        let second = Duration::from_secs(1);
        let values = |work: Work, said: &str| -> Vec<(String, f64)> {
            let figures = work.figures(said, second);
            figures.into_iter().map(|f| (f.what, f.value)).collect()
        };
        let gigabyte = "1000000000 1000000000 1500000000\n";
        let of = |name: &str| vec![(name.to_string(), 8.0), (format!("{name}-cpu"), 1.5)];
        assert_eq!(values(Work::Up(1), &format!("40123\n{gigabyte}")), of("up1"));
        assert_eq!(values(Work::Down(8), gigabyte), of("down8"));
        assert_eq!(
            values(Work::Connect, "12000\n"),
            [("connect".to_string(), 12_000.0)]
        );
        let rr = values(Work::Udp, "41500 90000 7\n");
        assert_eq!(rr[1], ("udp-rr-p50".to_string(), 41.5));
        assert_eq!(rr.len(), 3);
        assert!(values(Work::Tcp, "").is_empty());
    }
}
