//! `podwire port`: ports of the host that lead to pods, while these run.

use super::attach::json;
use super::table::{age, table};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, PublishedPort, Reply, Request};
use crate::model::{PodName, PortMapping};

/// Publish ports of running pods, list them, take them back.
///
/// PORTS is [HOSTIP:]HOSTPORT[-LAST]:PODPORT[-LAST][/tcp|/udp] as for `podwire run -p`, or one port that is the same on
/// both. Without HOSTIP only this host reaches it (127.0.0.1 and ::1); 0.0.0.0 is every IPv4 address of the host, [::]
/// every IPv6 address.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire port add web 8080:80                 (then: curl http://127.0.0.1:8080)
  podwire port add web 0.0.0.0:8443:443 '[::]:8443:443'
  podwire port add dns 127.0.0.1:5353:53/udp 8000-8009
  podwire port ls
  podwire port rm web 8080:80")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Publish ports of a pod: all of them, or none.
    Add(Which),
    /// Take ports back: all of them, or none. Nobody can connect any more; connections there are go on.
    Rm(Which),
    /// List the published ports.
    Ls {
        /// Only this pod's
        pod: Option<PodName>,
        /// Print JSON: all there is, for programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The pod
    pod: PodName,
    /// The ports
    #[arg(required = true)]
    ports: Vec<PortMapping>,
}

/// Run it.
///
/// # Errors
/// What the node refuses.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let (request, as_json, done) = match args.verb {
        Verb::Add(Which { pod, ports }) => {
            let tied = false;
            (Request::Publish { pod, ports, tied }, false, "published")
        }
        Verb::Rm(Which { pod, ports }) => (Request::Unpublish { pod, ports }, false, "no longer published"),
        Verb::Ls { pod, json } => (Request::Published { pod }, json, ""),
    };
    let ports = ask(&mut client, &request)?;
    if as_json {
        return say(&json(&ports)?);
    }
    if done.is_empty() {
        return say(&listing(&ports));
    }
    let lines = ports.iter().map(|p| format!("{} is {done}\n", sentence(p)));
    say(&lines.collect::<String>())
}

/// Ask for a request's ports.
///
/// # Errors
/// What the node refuses.
pub(super) fn ask(client: &mut Client, request: &Request) -> Result<Vec<PublishedPort>, Failure> {
    match client.call(request)? {
        Reply::Published { ports } => Ok(ports),
        _ => Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        )),
    }
}

/// Where a port leads.
pub(super) fn sentence(port: &PublishedPort) -> String {
    format!(
        "{}/{} -> {} port {}",
        port.host,
        port.protocol,
        port.pod,
        port.to.port()
    )
}

fn listing(ports: &[PublishedPort]) -> String {
    let row = |p: &PublishedPort| {
        vec![
            p.pod.to_string(),
            p.protocol.to_string(),
            p.host.to_string(),
            p.to.port().to_string(),
            p.connections.to_string(),
            p.accepted.to_string(),
            p.refused.to_string(),
            age(p.age_s),
            (if p.tied { "forward" } else { "-" }).into(),
        ]
    };
    let rows: Vec<Vec<String>> = ports.iter().map(row).collect();
    let head = [
        "POD",
        "PROTO",
        "HOST",
        "POD PORT",
        "OPEN",
        "IN ALL",
        "TURNED AWAY",
        "AGE",
        "BY",
    ];
    table(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_where_ports_lead() {
        let ports: Vec<PublishedPort> = serde_json::from_str(
            r#"[{"pod": "default/web", "protocol": "tcp", "host": "127.0.0.1:8080", "to": "10.244.1.2:80",
                 "tied": false, "age_s": 61, "connections": 2, "accepted": 7, "refused": 0},
                {"pod": "default/web", "protocol": "udp", "host": "[::1]:53", "to": "[fd00::2]:5353",
                 "tied": true, "age_s": 1, "connections": 0, "accepted": 0, "refused": 0}]"#,
        )
        .unwrap();
        let shown = listing(&ports);
        for cell in ["127.0.0.1:8080", "[::1]:53", "5353", "1m", "forward"] {
            assert!(shown.contains(cell), "{cell} in {shown}");
        }
        assert_eq!(sentence(&ports[0]), "127.0.0.1:8080/tcp -> default/web port 80");
    }
}
