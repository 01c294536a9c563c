//! `podwire dns`: the names a node answers, and records of one's own.

use super::attach::json;
use super::table::table;
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, DnsRecord, Reply, Request};

/// Show the names this node answers, add records of your own, or remove them.
///
/// Pods are NAME.NAMESPACE.pod; those called NAME-0, NAME-1 and so on are also NAME-0.NAME.NAMESPACE.pod, and
/// NAME.NAMESPACE.pod is all of them. host.podwire.internal is the gateway. What you add holds at once, and stays over
/// a restart of the node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire dns ls
  podwire dns add db.internal 192.0.2.7
  podwire dns add www.internal web.default.pod      (an alias)
  podwire dns add _http._tcp.web.internal SRV 0 0 80 web.default.pod
  podwire dns rm db.internal")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the names: of pods, of the host, and those people gave
    Ls {
        /// The addresses' names (PTR) too
        #[arg(long)]
        all: bool,
        /// Print JSON: all there is, for programs
        #[arg(long)]
        json: bool,
    },
    /// Add a record: an address, the name it is an alias of, or TYPE and data (A, AAAA, CNAME, SRV, TXT)
    Add {
        /// The name; it needs no domain of the node's
        name: String,
        /// What it says: ADDRESS, OTHER, or TYPE DATA...
        #[arg(required = true, num_args = 1.., allow_hyphen_values = true)]
        record: Vec<String>,
        /// Print the records that are new as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove records that were added: all of a name, or one
    Rm {
        /// The name
        name: String,
        /// Only this record of it
        #[arg(allow_hyphen_values = true)]
        record: Vec<String>,
        /// Print the records that are gone as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked, or refuses.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let (change, as_json) = match args.verb {
        Verb::Ls { all, json: as_json } => {
            let records = match client.call(&Request::Dns)? {
                Reply::Dns { records } => records,
                _ => return Err(unfit()),
            };
            return match as_json {
                true => say(&json(&records)?),
                false => say(&show(&records, all)),
            };
        }
        Verb::Add { name, record, json } => (change(&name, &record, true), json),
        Verb::Rm { name, record, json } => (change(&name, &record, false), json),
    };
    let records = match client.call(&change)? {
        Reply::DnsChanged { records } => records,
        _ => return Err(unfit()),
    };
    if as_json {
        return say(&json(&records)?);
    }
    let added = matches!(change, Request::DnsChange { there: true, .. });
    let told = if added { "is answered" } else { "is gone" };
    let lines: Vec<String> = records.iter().map(|r| format!("{r} {told}\n")).collect();
    match lines.is_empty() {
        true => say("it is there already\n"),
        false => say(&lines.concat()),
    }
}

fn change(name: &str, record: &[String], there: bool) -> Request {
    let words: Vec<&str> = [name]
        .into_iter()
        .chain(record.iter().map(String::as_str))
        .collect();
    Request::DnsChange {
        record: words.join(" "),
        there,
    }
}

fn unfit() -> Failure {
    Failure::new(Exit::Failed, "the node's answer does not fit the question")
}

fn show(records: &[DnsRecord], all: bool) -> String {
    let shown = records.iter().filter(|r| all || r.kind != "PTR");
    let rows: Vec<Vec<String>> = shown
        .map(|r| vec![r.name.clone(), r.kind.clone(), r.data.clone(), r.source.clone()])
        .collect();
    table(&["NAME", "TYPE", "DATA", "OF"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_are_shown_when_asked_for() {
        let record = |name: &str, kind: &str| DnsRecord {
            name: name.into(),
            kind: kind.into(),
            data: "x".into(),
            source: "pod".into(),
        };
        let records = [
            record("web.default.pod", "A"),
            record("2.1.244.10.in-addr.arpa", "PTR"),
        ];
        assert_eq!(show(&records, false).lines().count(), 2);
        assert_eq!(show(&records, true).lines().count(), 3);
    }
}
