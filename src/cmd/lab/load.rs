//! The hidden command that runs inside a lab's pods: `podwire __load ping|time|receive|send|...`.
//!
//! Each writes a line per result as soon as it has one, so that a process that had to be killed still told
//! what it knew. A line counts when it is whole.

use super::exchange::MARK;
use super::stream::Measured;
use super::{crowd, echo, exchange, flood, names, stream};
use crate::cmd::{Exit, Failure, say};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Its name.
pub const VERB: &str = "__load";

/// What to do.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    load: Load,
}

/// The kinds of load, each with a line of output per result. Windows are in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug, clap::Subcommand)]
pub enum Load {
    /// Ping all addresses at once: `ADDRESS` of each that answers.
    Ping {
        /// How long to go on, in milliseconds.
        patience: u64,
        /// Whom.
        to: Vec<IpAddr>,
    },
    /// Time pings: `ADDRESS NANOSECONDS` of each that answers.
    Time {
        /// Pings to each.
        count: u16,
        /// Whom.
        to: Vec<IpAddr>,
    },
    /// Ping a hundred times a second: `MEDIAN P99 COUNT LOST`, in nanoseconds.
    Pace {
        /// How long.
        window: u64,
        /// Whom.
        to: IpAddr,
    },
    /// Measure TCP streams: first the port that listens, then `BYTES NANOSECONDS BUSY-NANOSECONDS`.
    Receive {
        /// How many connections.
        streams: u8,
        /// How long to measure.
        window: u64,
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Write to TCP connections until the other side closes.
    Send {
        /// How many connections.
        streams: u8,
        /// Where the receiver listens.
        to: SocketAddr,
    },
    /// Answer requests of one TCP connection: the port that listens.
    Answer {
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Exchange requests and responses: `MEDIAN P99 COUNT`, in nanoseconds.
    Ask {
        /// How long to measure.
        window: u64,
        /// Where the other side answers.
        to: SocketAddr,
    },
    /// Write to TCP connections that come: the port that listens.
    Serve {
        /// How many connections.
        streams: u8,
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Make TCP connections and measure what they bring: as [`Load::Receive`], without a port.
    Fetch {
        /// How many connections.
        streams: u8,
        /// How long to measure.
        window: u64,
        /// Where the other side listens.
        to: SocketAddr,
    },
    /// Take TCP connections, answer a byte on each: the port that listens.
    Greet {
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Make one TCP connection after the other: `COUNT`.
    Knock {
        /// How long to measure.
        window: u64,
        /// Where the other side listens.
        to: SocketAddr,
    },
    /// Take TCP connections and keep them: the port that listens.
    Keep {
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Make TCP connections that say nothing: how many, once all are there.
    Hold {
        /// How many.
        count: u16,
        /// Where the other side listens.
        to: SocketAddr,
    },
    /// Answer datagrams: the port.
    Echo {
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
        /// The first byte of answers
        #[arg(default_value_t = MARK)]
        mark: u8,
    },
    /// Ask by datagrams who answers: `MARK NANOSECONDS` each time that it is another, by the clock of
    /// [`exchange::now`].
    Follow {
        /// How long.
        window: u64,
        /// Where the other side answers.
        to: SocketAddr,
    },
    /// Ask by datagrams: as [`Load::Ask`].
    Query {
        /// How long to measure.
        window: u64,
        /// Where the other side answers.
        to: SocketAddr,
    },
    /// Know an address of every name: the port.
    Names {
        /// The port, when it is not any
        #[arg(default_value_t = 0)]
        port: u16,
    },
    /// Ask for addresses of names: `MEDIAN P99 COUNT LOST ANSWERED`, the first three within the window.
    Resolve {
        /// How many questions at a time; 0 for pairs of A and AAAA, one after the other.
        flight: u8,
        /// How long to measure.
        window: u64,
        /// The name server.
        to: SocketAddr,
        /// The names, each in its turn.
        names: Vec<String>,
    },
    /// Count small datagrams: first the port, then as [`Load::Receive`].
    Count {
        /// How long to measure.
        window: u64,
    },
    /// Send small datagrams as fast as they go.
    Flood {
        /// How long the counter measures.
        window: u64,
        /// Where it is.
        to: SocketAddr,
    },
}

impl Load {
    /// Podwire's command line that means this.
    pub fn command(&self) -> Vec<String> {
        [vec![VERB.into()], self.words()].concat()
    }

    /// The command line behind [`VERB`].
    fn words(&self) -> Vec<String> {
        let words = |first: &str, rest: &[&dyn ToString]| {
            let rest = rest.iter().map(|word| word.to_string());
            [first.to_string()].into_iter().chain(rest).collect::<Vec<_>>()
        };
        let each = |to: &[IpAddr]| to.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        match self {
            Load::Ping { patience, to } => [words("ping", &[patience]), each(to)].concat(),
            Load::Time { count, to } => [words("time", &[count]), each(to)].concat(),
            Load::Pace { window, to } => words("pace", &[window, to]),
            Load::Receive {
                streams,
                window,
                port,
            } => words("receive", &[streams, window, port]),
            Load::Send { streams, to } => words("send", &[streams, to]),
            Load::Answer { port } => words("answer", &[port]),
            Load::Ask { window, to } => words("ask", &[window, to]),
            Load::Serve { streams, port } => words("serve", &[streams, port]),
            Load::Fetch { streams, window, to } => words("fetch", &[streams, window, to]),
            Load::Greet { port } => words("greet", &[port]),
            Load::Knock { window, to } => words("knock", &[window, to]),
            Load::Keep { port } => words("keep", &[port]),
            Load::Hold { count, to } => words("hold", &[count, to]),
            Load::Echo { port, mark } => words("echo", &[port, mark]),
            Load::Follow { window, to } => words("follow", &[window, to]),
            Load::Query { window, to } => words("query", &[window, to]),
            Load::Names { port } => words("names", &[port]),
            Load::Resolve {
                flight,
                window,
                to,
                names,
            } => [words("resolve", &[flight, window, to]), names.clone()].concat(),
            Load::Count { window } => words("count", &[window]),
            Load::Flood { window, to } => words("flood", &[window, to]),
        }
    }
}

/// Run it.
///
/// # Errors
/// When the load cannot be made; what was written until then holds.
pub fn run(args: Args) -> Result<(), Failure> {
    let what = match &args.load {
        Load::Ping { .. } | Load::Time { .. } | Load::Pace { .. } => "no pings can be sent".into(),
        Load::Receive { .. } | Load::Serve { .. } | Load::Greet { .. } | Load::Keep { .. } => {
            "no TCP stream came".into()
        }
        Load::Send { to, .. } | Load::Fetch { to, .. } | Load::Knock { to, .. } | Load::Hold { to, .. } => {
            format!("no TCP stream to {to}")
        }
        Load::Answer { .. } | Load::Echo { .. } | Load::Names { .. } => "no requests came".into(),
        Load::Ask { to, .. }
        | Load::Query { to, .. }
        | Load::Follow { to, .. }
        | Load::Resolve { to, .. } => format!("no answers from {to}"),
        Load::Count { .. } => "no datagrams came".into(),
        Load::Flood { to, .. } => format!("no datagrams to {to}"),
    };
    perform(args.load).map_err(|e| Failure::new(Exit::Failed, format!("{what}: {e}")))
}

fn perform(load: Load) -> io::Result<()> {
    let ready = |port: u16| tell(port);
    match load {
        Load::Ping { patience, to } => echo::reach(&to, Duration::from_millis(patience), tell),
        Load::Time { count, to } => echo::rtt(&to, count, |ip, time| {
            tell(format_args!("{ip} {}", time.as_nanos()))
        }),
        Load::Pace { window, to } => {
            let (times, lost) = echo::pace(to, Duration::from_millis(window))?;
            let (p50, p99) = (times.p50.as_nanos(), times.p99.as_nanos());
            tell(format_args!("{p50} {p99} {} {lost}", times.count));
            Ok(())
        }
        Load::Receive {
            streams,
            window,
            port,
        } => {
            figures(stream::receive(
                port,
                streams,
                Duration::from_millis(window),
                ready,
            )?);
            Ok(())
        }
        Load::Send { streams, to } => stream::send(streams, to),
        Load::Answer { port } => exchange::answer(port, ready),
        Load::Ask { window, to } => {
            times(&exchange::ask(to, Duration::from_millis(window))?);
            Ok(())
        }
        Load::Query { window, to } => {
            times(&exchange::query(to, Duration::from_millis(window))?);
            Ok(())
        }
        Load::Follow { window, to } => exchange::follow(to, Duration::from_millis(window), |mark, at| {
            tell(format_args!("{mark} {at}"));
        }),
        Load::Echo { port, mark } => exchange::echo(port, mark, ready),
        Load::Serve { streams, port } => stream::serve(port, streams, ready),
        Load::Fetch { streams, window, to } => {
            figures(stream::fetch(streams, to, Duration::from_millis(window))?);
            Ok(())
        }
        Load::Greet { port } => stream::greet(port, ready),
        Load::Knock { window, to } => {
            tell(stream::knock(to, Duration::from_millis(window))?);
            Ok(())
        }
        Load::Keep { port } => crowd::keep(port, ready),
        Load::Hold { count, to } => crowd::hold(count, to, ready),
        Load::Names { port } => names::serve(port, ready),
        Load::Resolve {
            flight,
            window,
            to,
            names: all,
        } => {
            let window = Duration::from_millis(window);
            let asked = match flight {
                0 => names::pairs(to, &all, window)?,
                _ => names::ask(to, flight, &all, window)?,
            };
            let (p50, p99) = (asked.times.p50.as_nanos(), asked.times.p99.as_nanos());
            let (count, lost) = (asked.times.count, asked.lost);
            tell(format_args!("{p50} {p99} {count} {lost} {}", asked.answered));
            Ok(())
        }
        Load::Count { window } => {
            figures(flood::count(Duration::from_millis(window), ready)?);
            Ok(())
        }
        Load::Flood { window, to } => flood::flood(to, Duration::from_millis(window)),
    }
}

fn times(times: &exchange::Times) {
    let (p50, p99) = (times.p50.as_nanos(), times.p99.as_nanos());
    tell(format_args!("{p50} {p99} {}", times.count));
}

fn figures(m: Measured) {
    let (time, busy) = (m.time.as_nanos(), m.busy.as_nanos());
    tell(format_args!("{} {time} {busy}", m.bytes));
}

/// Write a line. A lab that is gone does not want to know.
fn tell(line: impl Display) {
    let _ = say(&format!("{line}\n"));
}

/// The lines of what a load wrote that are whole: the last one of a killed process may be cut off, so that it
/// could mean something else.
pub fn whole_lines(said: &str) -> impl Iterator<Item = &str> {
    said.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}

/// The numbers of line `n` of what a load wrote, when there are so many and no more.
pub fn numbers<const N: usize>(said: &str, n: usize) -> Option<[u64; N]> {
    let line = whole_lines(said).nth(n)?;
    let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    #[test]
    fn the_words_are_understood() {
        let ips: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let to: SocketAddr = "[fd00::1]:7".parse().unwrap();
        for load in [
            Load::Ping {
                patience: 5,
                to: ips.clone(),
            },
            Load::Time { count: 3, to: ips },
            Load::Receive {
                streams: 4,
                window: 900,
                port: 7,
            },
            Load::Pace {
                window: 5,
                to: to.ip(),
            },
            Load::Send { streams: 4, to },
            Load::Answer { port: 0 },
            Load::Ask { window: 5, to },
            Load::Serve { streams: 8, port: 7 },
            Load::Fetch {
                streams: 8,
                window: 5,
                to,
            },
            Load::Greet { port: 7 },
            Load::Knock { window: 5, to },
            Load::Keep { port: 7 },
            Load::Hold { count: 5, to },
            Load::Echo { port: 7, mark: 3 },
            Load::Follow { window: 5, to },
            Load::Names { port: 53 },
            Load::Resolve {
                flight: 64,
                window: 5,
                to,
                names: vec!["a.example".into(), "b.example".into()],
            },
            Load::Query { window: 5, to },
            Load::Count { window: 5 },
            Load::Flood { window: 5, to },
        ] {
            let command = Args::augment_args(clap::Command::new(VERB).no_binary_name(true));
            let matches = command.try_get_matches_from(load.words()).unwrap();
            assert_eq!(Args::from_arg_matches(&matches).unwrap().load, load);
        }
    }

    #[test]
    fn what_a_killed_process_said_counts_as_far_as_it_got() {
        let lines = |said| whole_lines(said).collect::<Vec<_>>();
        assert_eq!(
            lines("10.244.1.2\nfd00::2\n10.244.1.1"),
            ["10.244.1.2", "fd00::2"]
        );
        assert_eq!(numbers::<2>("40123\n125000 10", 1), None);
        assert_eq!(numbers::<2>("40123\n125000 1000\n", 1), Some([125_000, 1000]));
        assert_eq!(numbers::<3>("40123\n125000 1000\n", 1), None);
        assert_eq!(numbers::<1>("40123\n", 0), Some([40_123]));
    }
}
