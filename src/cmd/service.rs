//! `podwire service`: what stands behind virtual addresses and names.

use super::attach::json;
use super::pods::labels;
use super::table::table;
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{AppliedObject, Client, MAX_REQUEST, Reply, Request};
use crate::model::{EndpointInfo, Scheduler, ServiceInfo, ServiceName, ServicePortInfo};
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Show Services, apply manifests of them, or delete them.
///
/// A Service is a name and an address for pods that have certain labels (`podwire run --label`), as Kubernetes has it:
/// NAME.NAMESPACE.svc.cluster.local. Manifests are Kubernetes' own (Service, EndpointSlice); what is applied holds at once,
/// and stays over a restart of the node. A folder of manifests is read too: `podwire node --services DIR`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire service apply -f - <<'END'
  apiVersion: v1
  kind: Service
  metadata: {name: web}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
  END
  podwire run --name web-1 --label app=web -- python3 -m http.server 8080
  podwire service ls
  podwire service describe web
  podwire service delete web")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List Services, what is wrong first
    Ls {
        /// Only those of this namespace
        #[arg(short, long)]
        namespace: Option<String>,
        /// Print JSON: all there is, for programs
        #[arg(long)]
        json: bool,
    },
    /// Tell all of one Service, and what stands behind it
    Describe {
        /// The Service: NAMESPACE/NAME, or NAME in the namespace "default"
        name: ServiceName,
        /// Print JSON: all there is, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have the objects of manifests: those of one manifest all, or none
    Apply {
        /// A manifest (YAML or JSON), or - for standard input. May be given often
        #[arg(short, required = true, value_name = "FILE")]
        file: Vec<PathBuf>,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a Service that was applied, and the EndpointSlices about it
    Delete {
        /// The Service
        name: ServiceName,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Run it.
///
/// # Errors
/// What is wrong with a manifest, or what the node refuses.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    match args.verb {
        Verb::Ls {
            namespace,
            json: as_json,
        } => {
            let (mut services, problems) = list(&mut client)?;
            services.retain(|s| namespace.as_ref().is_none_or(|n| *n == s.name.namespace));
            match as_json {
                true => say(&json(
                    &serde_json::json!({"services": services, "problems": problems}),
                )?),
                false => say(&listing(&services, &problems)),
            }
        }
        Verb::Describe { name, json: as_json } => {
            let service = describe(&mut client, name)?;
            match as_json {
                true => say(&json(&service)?),
                false => say(&described(&service)),
            }
        }
        Verb::Apply { file, json: as_json } => {
            let mut done = (Vec::new(), Vec::new());
            for path in &file {
                let request = Request::Apply { text: text(path)? };
                let (objects, problems) = applied(client.call(&request).map_err(|e| named(e.into(), path))?)?;
                done.0.extend(objects);
                done.1.extend(problems);
            }
            told(done, as_json)
        }
        Verb::Delete { name, json: as_json } => {
            let done = applied(client.call(&Request::DeleteService { name })?)?;
            told(done, as_json)
        }
    }
}

/// All Services, and what is wrong with manifests.
fn list(client: &mut Client) -> Result<(Vec<ServiceInfo>, Vec<String>), Failure> {
    match client.call(&Request::Services)? {
        Reply::Services { services, problems } => Ok((services, problems)),
        _ => Err(unfit()),
    }
}

fn describe(client: &mut Client, name: ServiceName) -> Result<ServiceInfo, Failure> {
    match client.call(&Request::Service { name })? {
        Reply::Service(service) => Ok(*service),
        _ => Err(unfit()),
    }
}

fn applied(reply: Reply) -> Result<(Vec<AppliedObject>, Vec<String>), Failure> {
    match reply {
        Reply::Applied { objects, problems } => Ok((objects, problems)),
        _ => Err(unfit()),
    }
}

fn unfit() -> Failure {
    Failure::new(Exit::Failed, "the node's answer does not fit the question")
}

/// Mistakes are told with the name of the file they are in.
fn named(mut failure: Failure, path: &Path) -> Failure {
    let name = match path == Path::new("-") {
        true => "standard input".into(),
        false => path.display().to_string(),
    };
    failure.message = failure.message.replace("the manifest:", &format!("{name}:"));
    failure.message = failure.message.replace("the manifest (", &format!("{name} ("));
    failure
}

fn text(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let most = MAX_REQUEST as u64 / 2;
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(most + 1).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text)),
    };
    match read {
        Ok(n) if n as u64 > most => {
            let what = format!(
                "{}: more than {} KiB (split it; or put it into the folder of `podwire node --services`)",
                path.display(),
                most >> 10
            );
            Err(Failure::new(Exit::Usage, what))
        }
        Ok(_) => Ok(text),
        Err(e) => Err(Failure::new(
            Exit::Usage,
            format!(
                "{}: {e} (name a manifest, or - for standard input)",
                path.display()
            ),
        )),
    }
}

fn told((objects, problems): (Vec<AppliedObject>, Vec<String>), as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&json(
            &serde_json::json!({"objects": objects, "problems": problems}),
        )?);
    }
    let mut out = String::new();
    for object in &objects {
        let _ = writeln!(out, "{} is {}", object.object, object.done);
    }
    for problem in &problems {
        let _ = writeln!(out, "! {problem}");
    }
    say(&out)
}

/// What is wrong, then the Services.
fn listing(services: &[ServiceInfo], problems: &[String]) -> String {
    let mut out = String::new();
    for problem in problems {
        let _ = writeln!(out, "! {problem}");
    }
    for service in services {
        for problem in &service.problems {
            let _ = writeln!(out, "! Service {}: {problem}", service.name);
        }
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let row = |s: &ServiceInfo| {
        vec![
            s.name.to_string(),
            s.kind.clone(),
            addresses(s),
            ports(&s.ports),
            match s.kind.as_str() {
                "ExternalName" => "-".into(),
                _ => format!("{}/{}", s.ready, s.in_all),
            },
            labels(&s.selector),
        ]
    };
    let rows: Vec<Vec<String>> = services.iter().map(row).collect();
    out + &table(
        &["SERVICE", "TYPE", "ADDRESSES", "PORTS", "READY", "SELECTS"],
        &rows,
    )
}

fn addresses(service: &ServiceInfo) -> String {
    let own = service.addresses.iter().chain(&service.external_ips);
    let all: Vec<String> = own
        .map(ToString::to_string)
        .chain(service.external_name.clone())
        .collect();
    match all.is_empty() {
        true => "-".into(),
        false => all.join(","),
    }
}

fn ports(ports: &[ServicePortInfo]) -> String {
    let one = |p: &ServicePortInfo| match p.node_port {
        Some(node) => format!("{}:{node}/{}", p.port, p.transport),
        None => format!("{}/{}", p.port, p.transport),
    };
    match ports.is_empty() {
        true => "-".into(),
        false => ports.iter().map(one).collect::<Vec<_>>().join(","),
    }
}

fn described(s: &ServiceInfo) -> String {
    let mut out = String::new();
    for problem in &s.problems {
        let _ = writeln!(out, "! {problem}");
    }
    let mut line = |what: &str, value: String| {
        if !value.is_empty() && value != "-" {
            let _ = writeln!(out, "{what:<22}{value}");
        }
    };
    line("service", s.name.to_string());
    line("type", s.kind.clone());
    line("addresses", addresses(s));
    line("selects", labels(&s.selector));
    line("labels", labels(&s.labels));
    line("annotations", labels(&s.annotations));
    let scheduler = match s.scheduler {
        Scheduler::Random => "random",
        Scheduler::RoundRobin => "round-robin",
        Scheduler::LeastConnections => "least-connections",
        Scheduler::Maglev => "maglev",
    };
    let balanced = matches!(s.kind.as_str(), "ClusterIP" | "NodePort");
    line(
        "backends are chosen",
        if balanced { scheduler.into() } else { String::new() },
    );
    line(
        "clients stay",
        s.affinity_s.map(|n| format!("{n} s")).unwrap_or_default(),
    );
    let local = |on: bool| if on { "backends of this node only" } else { "" };
    line("from pods", local(s.internal_local).into());
    line("from outside", local(s.external_local).into());
    line(
        "health check port",
        s.health_check_port.map(|p| p.to_string()).unwrap_or_default(),
    );
    line(
        "not ready ones",
        if s.publish_not_ready {
            "count too".into()
        } else {
            String::new()
        },
    );
    line(
        "flows",
        if balanced {
            format!(
                "{} open, {} in all, {} failed (through this node)",
                s.open, s.opened, s.failed
            )
        } else {
            String::new()
        },
    );
    line(
        "stated in",
        if s.source.is_empty() {
            String::new()
        } else {
            format!("{}, document {}", s.source, s.document)
        },
    );
    if !s.ports.is_empty() {
        let row = |p: &ServicePortInfo| {
            vec![
                if p.name.is_empty() {
                    "-".into()
                } else {
                    p.name.clone()
                },
                p.transport.to_string(),
                p.port.to_string(),
                p.target.clone(),
                p.node_port.map_or("-".into(), |n| n.to_string()),
                p.app_protocol.clone().unwrap_or_else(|| "-".into()),
            ]
        };
        let rows: Vec<Vec<String>> = s.ports.iter().map(row).collect();
        out += "\n";
        out += &table(
            &["PORT", "PROTO", "NUMBER", "LEADS TO", "ON NODES", "SPEAKS"],
            &rows,
        );
    }
    if !s.endpoints.is_empty() {
        let row = |e: &EndpointInfo| {
            let numbers: Vec<String> = e.ports.iter().map(ToString::to_string).collect();
            vec![
                e.at.to_string(),
                numbers.join(","),
                e.state.clone(),
                e.open.to_string(),
                (if e.local { "this node" } else { "-" }).into(),
                if e.what.is_empty() {
                    "-".into()
                } else {
                    e.what.clone()
                },
            ]
        };
        let rows: Vec<Vec<String>> = s.endpoints.iter().map(row).collect();
        out += "\n";
        out += &table(&["BEHIND IT", "PORTS", "STATE", "OPEN", "WHERE", "WHAT"], &rows);
    } else if s.kind != "ExternalName" {
        out += "\nnothing stands behind it\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_first() {
        let service = ServiceInfo {
            name: "web".parse().unwrap(),
            kind: "NodePort".into(),
            addresses: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![ServicePortInfo {
                name: String::new(),
                transport: crate::model::Transport::Tcp,
                port: 80,
                target: "8080".into(),
                node_port: Some(30_080),
                app_protocol: None,
            }],
            ready: 1,
            in_all: 2,
            problems: vec!["something".into()],
            ..ServiceInfo::default()
        };
        let shown = listing(std::slice::from_ref(&service), &["a file is wrong".into()]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..2],
            ["! a file is wrong", "! Service default/web: something"]
        );
        assert!(
            lines[4].contains("80:30080/TCP") && lines[4].contains("1/2"),
            "{shown}"
        );
        let shown = described(&service);
        assert!(
            shown.starts_with("! something\n") && shown.contains("nothing stands behind it"),
            "{shown}"
        );
    }
}
