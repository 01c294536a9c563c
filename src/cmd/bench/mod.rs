//! `podwire bench`: podwire beside the kernel's bridge and VXLAN, on this machine, in one run.
//!
//! ```text
//!  podwire bench ── a sandbox of its own: user and network namespaces (this is what needs no root)
//!       └── podwire __bench ── hosts, veths, nodes and pods of both contenders; load in the pods
//! ```
//!
//! Both networks stand at the same time, and take turns within each round: podwire, kernel, podwire, kernel. A
//! machine that is slow for a while is so for both, and the ratio is taken round by round.

mod attach;
mod edge;
mod kernel;
mod lab;
mod measure;
mod plan;
mod report;
mod service;
mod turns;

use super::lab::watch::{Job, Watch};
use super::{Exit, Failure, doctor, say};
use crate::pod::sandbox::Spec;
use clap::ValueEnum;
use edge::Subject;
use lab::Lab;
use plan::{Case, Only, Underlay};
use report::Report;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The hidden command that measures, within a sandbox.
pub const VERB: &str = "__bench";

/// What is measured instead of the two networks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    /// The way out to the world, beside the kernel's masquerading (nft), pasta and slirp4netns; the pod connects
    Egress,
    /// Published ports, beside the kernel's DNAT (nft), pasta, rootlesskit's builtin driver (as root) and slirp4netns; the
    /// world connects
    Ports,
    /// The node's own names and its cache, asked by a pod, beside a server that only echoes, and pasta and slirp4netns,
    /// which hand on
    Dns,
    /// Virtual addresses of Services, beside the same pods without them (direct) and the kernel's DNAT (nft)
    Service,
    /// Containers attached and detached by the CNI plugin, beside the reference plugins bridge and host-local
    Attach,
}

/// Measure podwire beside the kernel's own bridge and VXLAN on this machine, in one run.
///
/// Builds two nodes with pods twice, once with podwire and once with a kernel bridge and a VXLAN device, lets
/// them take turns, and prints what each carried: TCP over 1 and 4 connections (tcp1, tcp4), UDP packets of 64
/// bytes a second (udp64), requests and responses of 64 bytes (rr), and what tcp1 cost all processors (cpu).
/// Between nodes (cross) over two underlays: a veth as it is, which passes trains of packets whole, and one made
/// like a wire, with packets of the MTU's size; and between two pods of a node (same).
///
/// Figures are medians of the rounds, with least and most in brackets; ratios are taken round by round. Less is
/// better for us and s/GB. No figure is a pass or a fail; exits with 0 when everything could be measured. Needs
/// no root. Leave the machine alone meanwhile: everything runs on its processors, load included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire bench --quick                              (about a minute)
  podwire bench                                      (about five minutes)
  podwire bench --only tcp1-cross --underlay wire
  podwire bench --only rr --only udp64 --rounds 9
  podwire bench --quick --json | jq .ratios
  podwire bench egress --quick                       (about two minutes)
  podwire bench ports --quick                        (about two minutes)
  podwire bench dns --quick                          (about two minutes)
  podwire bench service --quick                      (about two minutes)
  podwire bench service --quick --json | jq .ratios
  podwire bench attach --quick                       (half a minute)")]
pub struct Args {
    /// Measure something else instead, beside what one would use for it, as far as that is installed
    ///
    /// Of egress and ports: bulk over 1 and 8 TCP connections each way and what it costs all processors (up1, down1, up8,
    /// down8), connections one after the other (connect), requests and responses of 64 bytes (tcp-rr, udp-rr);
    /// of egress also a stream beside 10,000 idle flows in percent of one without them, and their memory (idle-). Of dns:
    /// questions one at a time (static, pod, cached) and 64 at a time, pairs of A and AAAA as C libraries send them, and
    /// how many were lost; one that podwire loses is a failure. Of service: the same through a virtual address on one node
    /// (-same) and across two (-cross); then of a node with 10,000 Services of 10 endpoints beside one with 10 (few): how
    /// long until all are in force (load), the node's memory, how long one change takes until a client has an answer by it
    /// (change-ready: of a pod's readiness; change-apply and change-file: of an EndpointSlice), and whether look-ups are
    /// slower for it (lookup-). Of attach: ADD and DEL of a container, one after the other and 16 at once; and with podwire on
    /// a node with 250 containers of which ten come and ten go each second (churn-), also what two others notice: a stream, and
    /// a hundred pings a second, before (calm-) and meanwhile.
    #[arg(value_name = "WHAT", conflicts_with_all = ["only", "underlay"])]
    what: Option<What>,
    /// Only this work: tcp1, tcp4, udp64 or rr, alone or with -cross or -same; may be repeated
    #[arg(long, value_name = "WORK")]
    only: Vec<Only>,
    /// Only over this underlay
    #[arg(long, value_name = "KIND")]
    underlay: Option<Underlay>,
    /// Turns of each contender [default: 5, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
    /// Shorter measurements
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The command line that means this.
    fn words(&self) -> Vec<String> {
        let only = self.only.iter().map(|only| format!("--only={only}"));
        let underlay = self.underlay.map(|u| format!("--underlay={u}"));
        let rounds = self.rounds.map(|n| format!("--rounds={n}"));
        let flags = [(self.quick, "--quick"), (self.json, "--json")];
        let flags = flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, flag)| flag.into());
        let what = self.what.and_then(|what| what.to_possible_value());
        let what = what.map(|what| what.get_name().to_string());
        what.into_iter()
            .chain(only)
            .chain(underlay)
            .chain(rounds)
            .chain(flags)
            .collect()
    }

    fn rounds(&self) -> u8 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    fn window(&self) -> Duration {
        Duration::from_millis(if self.quick { 600 } else { 2000 })
    }

    fn cases(&self) -> Vec<Case> {
        let all = [Underlay::Wire, Underlay::Veth];
        let underlays = all
            .into_iter()
            .filter(|u| self.underlay.is_none_or(|only| only == *u));
        plan::cases(&self.only, &underlays.collect::<Vec<_>>())
    }
}

/// Run it: in a sandbox, whose root may make the hosts.
///
/// # Errors
/// When no sandbox can be made here, or the end was asked for.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    doctor::pods_can_be_made()?;
    let mut watch = signals(false)?;
    let sandbox = Spec {
        // Whom programs of others ask that hand on questions for names.
        resolv_conf: args.what.map(|_| edge::RESOLV_CONF.into()),
        ..Spec::new("bench")
    };
    let sandbox = sandbox.spawn()?;
    let words = [VERB.to_string()].into_iter().chain(args.words());
    let mut job = Job::spawn(&mut sandbox.command("/proc/self/exe", words))
        .map_err(|e| lab::failed(format!("podwire could not run itself: {e}")))?;
    let long = Instant::now() + Duration::from_secs(24 * 3600);
    let waited = watch.gather(&mut [&mut job], long, Job::ended);
    if let Err(asked) = waited {
        Job::end(&mut [&mut job], Duration::from_secs(5));
        return Err(asked);
    }
    say(&job.said())?;
    match job.exit_code() {
        Some(0) => Ok(Exit::Ok),
        Some(2) => Ok(Exit::Usage),
        Some(3) => Ok(Exit::Permission),
        _ => Ok(Exit::Failed),
    }
}

/// Body of the hidden command: measure, and print the report.
///
/// # Errors
/// When a contender cannot be set up, or the end was asked for.
pub fn inside(args: &Args) -> Result<Exit, Failure> {
    let mut watch = signals(!args.json || std::io::stderr().is_terminal())?;
    let (rounds, window) = (args.rounds(), args.window());
    let subject = match args.what {
        Some(What::Egress) => Some(Subject::Egress),
        Some(What::Ports) => Some(Subject::Ports),
        Some(What::Dns) => Some(Subject::Dns),
        Some(What::Attach) => return attach::inside(rounds, window, args.json, &mut watch),
        Some(What::Service) => return service::inside(rounds, window, args.json, &mut watch),
        None => None,
    };
    if let Some(subject) = subject {
        return edge::inside(subject, rounds, window, args.json, &mut watch);
    }
    let labs = [Lab::podwire(&mut watch)?, Lab::kernel(&mut watch)?];
    for lab in &labs {
        measure::reach(lab, &mut watch)?;
    }
    let contenders = [labs[0].contender, labs[1].contender];
    let cases = args.cases();
    let mut report = Report::default();
    let mut laid = None;
    for (n, case) in (1..).zip(&cases) {
        watch.stage(format!("{n} of {}: {case}, {rounds} rounds", cases.len()));
        if let Some(underlay) = case.underlay.filter(|u| laid != Some(*u)) {
            for lab in &labs {
                lab.lay(underlay)?;
            }
            laid = Some(underlay);
        }
        let mut results = Vec::new();
        for _ in 0..rounds {
            let mut round = [Vec::new(), Vec::new()];
            for (figures, lab) in round.iter_mut().zip(&labs) {
                *figures = measure::measure(lab.pair(case.path), case.work, args.window(), &mut watch)?;
            }
            results.push(round);
        }
        report.add(*case, contenders, &results);
    }
    report.remarks = remarks(args, &labs);
    let ok = report.failures.is_empty();
    if args.json {
        let text = serde_json::to_string(&report).map_err(|e| Failure::new(Exit::Failed, e))?;
        say(&format!("{text}\n"))?;
    } else {
        say(&report.page())?;
    }
    Ok(if ok { Exit::Ok } else { Exit::Failed })
}

fn remarks(args: &Args, labs: &[Lab]) -> Vec<String> {
    let system = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let how = format!(
        "{} rounds of {} ms, contenders in turns; podwire {}; {} {}, {cores} cores for nodes, pods and load; TCP \
         with cubic",
        args.rounds(),
        args.window().as_millis(),
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
    );
    let of_labs = labs.iter().flat_map(Lab::remarks);
    [how].into_iter().chain(of_labs).collect()
}

fn signals(talks: bool) -> Result<Watch, Failure> {
    Watch::new(talks).map_err(|e| lab::failed(format!("signals cannot be taken: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    #[test]
    fn the_words_mean_the_same() {
        let parse = |words: Vec<String>| {
            let command = Args::augment_args(clap::Command::new("bench").no_binary_name(true));
            let matches = command.try_get_matches_from(words).unwrap();
            Args::from_arg_matches(&matches).unwrap()
        };
        for line in [
            "",
            "egress --rounds=2 --json",
            "ports --quick",
            "dns --rounds=9",
            "service --quick --json",
            "attach --rounds=3",
            "--only=tcp1-cross --only=rr --underlay=veth --rounds=7 --quick --json",
        ] {
            let words: Vec<String> = line.split_ascii_whitespace().map(String::from).collect();
            assert_eq!(parse(words.clone()).words(), words);
        }
        let quick = parse(vec!["--quick".into()]);
        assert_eq!((quick.rounds(), quick.cases().len()), (3, 12));
    }
}
