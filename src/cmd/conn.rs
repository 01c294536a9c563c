//! `podwire conn`: connections through Services.

use super::attach::json;
use super::table::{age, table};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, Reply, Request};
use crate::model::{ConnState, ConnectionFilter, PodName, ServiceConnection, ServiceName, Transport};
use std::net::IpAddr;

/// So many are listed for people.
const FEW: usize = 100;

/// List connections through Services, or end them.
///
/// A node keeps the connections of its own pods, and of clients of its node ports: where each was opened to, and which backend
/// it goes to. All that is given must fit; without anything, all are listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire conn                                (all of them, 100 at most)
  podwire conn --service web --limit 1000
  podwire conn --pod client --proto udp
  podwire conn --backend 10.244.1.7:8080 --kill
  podwire conn --all --kill

A TCP connection that is killed is reset with its next packet; UDP goes to a backend that is chosen anew. Of a Service that
is balanced by maglev both go on, to the backend that its hash says.")]
pub struct Args {
    /// Only those to this Service
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// Only those of this pod of the node
    #[arg(long, value_name = "POD", conflicts_with = "client")]
    pod: Option<PodName>,
    /// Only those of this client
    #[arg(long, value_name = "ADDR[:PORT]")]
    client: Option<End>,
    /// Only those to this virtual address
    #[arg(long, value_name = "ADDR[:PORT]")]
    vip: Option<End>,
    /// Only those to this backend
    #[arg(long, value_name = "ADDR[:PORT]")]
    backend: Option<End>,
    /// Only those of this protocol
    #[arg(long, value_name = "PROTO", value_parser = transport)]
    proto: Option<Transport>,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<ConnState>,
    /// End them instead
    #[arg(long)]
    kill: bool,
    /// With --kill and nothing else: all of them
    #[arg(long)]
    all: bool,
    /// List so many at most [default: 100; with --json all, as far as the node tells them: 100,000]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print JSON: all there is, for programs
    #[arg(long)]
    json: bool,
}

/// An address, and a port perhaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End(IpAddr, Option<u16>);

impl std::str::FromStr for End {
    type Err = String;

    fn from_str(s: &str) -> Result<End, String> {
        if let Ok(ip) = s.parse() {
            return Ok(End(ip, None));
        }
        let at: std::net::SocketAddr = s
            .parse()
            .map_err(|_| "it is no address (write 10.244.1.7, 10.244.1.7:8080, fd00::7 or [fd00::7]:8080)")?;
        Ok(End(at.ip(), Some(at.port())))
    }
}

fn transport(s: &str) -> Result<Transport, String> {
    match s.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "sctp" => Ok(Transport::Sctp),
        _ => Err("there are tcp, udp and sctp".into()),
    }
}

fn state(s: &str) -> Result<ConnState, String> {
    match s {
        "opening" => Ok(ConnState::Opening),
        "open" => Ok(ConnState::Open),
        "closing" => Ok(ConnState::Closing),
        _ => Err("there are opening, open and closing".into()),
    }
}

/// Run it.
///
/// # Errors
/// What the node refuses.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let end = |end: Option<End>| end.map_or((None, None), |End(ip, port)| (Some(ip), port));
    let (client, client_port) = end(args.client);
    let (frontend, frontend_port) = end(args.vip);
    let (backend, backend_port) = end(args.backend);
    let filter = ConnectionFilter {
        transport: args.proto,
        service: args.service,
        client,
        client_port,
        frontend,
        frontend_port,
        backend,
        backend_port,
        state: args.state,
    };
    let pod = args.pod;
    if args.kill && !args.all && filter == ConnectionFilter::default() && pod.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "--kill needs to know which connections (say --service, --pod, --client, --vip, --backend, --proto or \
             --state; or --all)",
        ));
    }
    let limit = args.limit.unwrap_or(if args.json { usize::MAX } else { FEW });
    let kill = args.kill;
    let mut node = Client::connect(socket)?;
    let request = Request::Connections {
        filter,
        pod,
        limit,
        kill,
    };
    match node.call(&request)? {
        Reply::Connections { connections, count } if args.json => say(&json(
            &serde_json::json!({ "connections": connections, "count": count }),
        )?),
        Reply::Connections { count, .. } if kill => say(&format!(
            "{count} connection{} ended\n",
            if count == 1 { "" } else { "s" }
        )),
        Reply::Connections { connections, count } => say(&listing(&connections, count)),
        _ => Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        )),
    }
}

fn listing(connections: &[ServiceConnection], count: usize) -> String {
    let row = |c: &ServiceConnection| {
        vec![
            c.service.to_string(),
            c.transport.to_string(),
            c.client.to_string(),
            c.frontend.to_string(),
            c.backend.to_string(),
            c.masked.map_or("-".into(), |m| m.to_string()),
            c.state.to_string(),
            age(c.age_s),
            age(c.idle_s),
        ]
    };
    let rows: Vec<Vec<String>> = connections.iter().map(row).collect();
    let head = [
        "SERVICE",
        "PROTO",
        "CLIENT",
        "OPENED TO",
        "BACKEND",
        "SEEN AS",
        "STATE",
        "AGE",
        "IDLE",
    ];
    let mut all = table(&head, &rows);
    if count > connections.len() {
        all += &format!("{} of {count}; more with --limit\n", connections.len());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_addresses_with_and_without_ports() {
        let end = |s: &str| s.parse::<End>();
        assert_eq!(end("10.1.2.3").unwrap(), End("10.1.2.3".parse().unwrap(), None));
        assert_eq!(
            end("10.1.2.3:80").unwrap(),
            End("10.1.2.3".parse().unwrap(), Some(80))
        );
        assert_eq!(end("fd00::7").unwrap(), End("fd00::7".parse().unwrap(), None));
        assert_eq!(
            end("[fd00::7]:80").unwrap(),
            End("fd00::7".parse().unwrap(), Some(80))
        );
        assert!(end("web").unwrap_err().contains("[fd00::7]:8080"));
        assert!(transport("TCP").is_ok() && transport("icmp").is_err());
        assert!(state("open").is_ok() && state("gone").is_err());
    }

    #[test]
    fn the_table_tells_how_many_there_are_more() {
        let connections: Vec<ServiceConnection> = serde_json::from_str(
            r#"[{"transport": "TCP", "service": "default/web", "client": "10.244.1.2:4000", "frontend": "10.96.0.1:80",
                 "backend": "10.244.2.2:8080", "masked": null, "state": "open", "answered": true, "age_s": 61,
                 "idle_s": 0, "left_s": 7440}]"#,
        )
        .unwrap();
        let shown = listing(&connections, 7);
        for cell in [
            "default/web",
            "10.244.1.2:4000",
            "10.244.2.2:8080",
            "open",
            "1m",
            "1 of 7",
        ] {
            assert!(shown.contains(cell), "{cell} in {shown}");
        }
    }
}
