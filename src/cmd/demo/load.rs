//! The hidden command that the demo runs inside its pods: `podwire __demo-load ping|time|receive|send`.
//!
//! Each writes a line per result as soon as it has one, so that a process that had to be killed still told
//! what it knew.

use super::{echo, stream};
use crate::cmd::{Exit, Failure};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Its name.
pub const VERB: &str = "__demo-load";

/// What to do.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    load: Load,
}

/// The kinds of load, each with a line of output per result.
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
    /// Measure one TCP connection: first the port that listens, then `BYTES NANOSECONDS`.
    Receive {
        /// How long to measure, in milliseconds.
        window: u64,
    },
    /// Write to a TCP connection until the other side closes.
    Send {
        /// Where the receiver listens.
        to: SocketAddr,
    },
}

impl Load {
    /// The command line behind [`VERB`] that means this.
    pub fn words(&self) -> Vec<String> {
        let each = |to: &[IpAddr]| to.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        match self {
            Load::Ping { patience, to } => [vec!["ping".into(), patience.to_string()], each(to)].concat(),
            Load::Time { count, to } => [vec!["time".into(), count.to_string()], each(to)].concat(),
            Load::Receive { window } => vec!["receive".into(), window.to_string()],
            Load::Send { to } => vec!["send".into(), to.to_string()],
        }
    }
}

/// Run it.
///
/// # Errors
/// When the load cannot be made; what was written until then holds.
pub fn run(args: Args) -> Result<(), Failure> {
    let what = match &args.load {
        Load::Ping { .. } | Load::Time { .. } => "no pings can be sent".into(),
        Load::Receive { .. } => "no TCP stream came".into(),
        Load::Send { to } => format!("no TCP stream to {to}"),
    };
    perform(args.load).map_err(|e| Failure::new(Exit::Failed, format!("{what}: {e}")))
}

fn perform(load: Load) -> io::Result<()> {
    match load {
        Load::Ping { patience, to } => {
            echo::reach(&to, Duration::from_millis(patience), |ip| println!("{ip}"))
        }
        Load::Time { count, to } => echo::rtt(&to, count, |ip, time| println!("{ip} {}", time.as_nanos())),
        Load::Receive { window } => {
            let window = Duration::from_millis(window);
            let measured = stream::receive(window, |port| println!("{port}"))?;
            println!("{} {}", measured.bytes, measured.time.as_nanos());
            Ok(())
        }
        Load::Send { to } => stream::send(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches};

    #[test]
    fn the_words_are_understood() {
        let to: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for load in [
            Load::Ping {
                patience: 5,
                to: to.clone(),
            },
            Load::Time { count: 3, to },
            Load::Receive { window: 900 },
            Load::Send {
                to: "[fd00::1]:7".parse().unwrap(),
            },
        ] {
            let command = Args::augment_args(clap::Command::new(VERB).no_binary_name(true));
            let matches = command.try_get_matches_from(load.words()).unwrap();
            assert_eq!(Args::from_arg_matches(&matches).unwrap().load, load);
        }
    }
}
