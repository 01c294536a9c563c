//! `podwire bench attach`: containers attached and detached as a runtime does it, by plugins that are processes: podwire's,
//! and beside it the reference plugins bridge and host-local.
//!
//! ```text
//!   16 namespaces        ADD, DEL: one after the other
//!      |  (podwire-cni -> podwire node) or (bridge -> host-local)
//!      '- ADD-16, DEL-16: all at once, the time until the last is done
//! ```
//!
//! And podwire alone on a full node: [`churn`].

mod churn;

use super::lab::{self, HOSTS, failed, hosts};
use super::turns::{self, Contestant, Figure, Report};
use crate::cmd::lab::dir::PrivateDir;
use crate::cmd::lab::nodes::{NodeSpec, Nodes};
use crate::cmd::lab::watch::Watch;
use crate::cmd::{Exit, Failure};
use crate::sys::ns::NetNs;
use churn::Churn;
use serde_json::{Value, json};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where distributions and others put the reference plugins.
const FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
/// Containers at once.
const CROWD: usize = 16;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// One after the other.
    One,
    /// All at once.
    Crowd,
}

impl Work {
    const ALL: [Work; 2] = [Work::One, Work::Crowd];

    fn name(self) -> &'static str {
        match self {
            Work::One => "one by one",
            Work::Crowd => "16 at once",
        }
    }
}

/// A plugin with what it needs.
struct Contender {
    name: &'static str,
    program: PathBuf,
    /// Where the plugin finds others.
    folder: PathBuf,
    conf: Value,
    host: NetNs,
    containers: Vec<NetNs>,
    /// The next container's number.
    next: u32,
    nodes: Option<Nodes>,
    _dir: PrivateDir,
}

impl Contestant for Contender {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Contender {
    fn start(&self, verb: &str, namespace: &NetNs, id: u32) -> Result<Child, Failure> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.fd().as_raw_fd());
        let mut command = Command::new(&self.program);
        command.arg0(self.name).env_clear();
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.folder);
        command
            .env("CNI_CONTAINERID", Contender::container(id))
            .env("CNI_NETNS", path)
            .env("CNI_IFNAME", "eth0");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let started = self.host.within(|| command.spawn())?;
        let mut child =
            started.map_err(|e| failed(format!("{} cannot be run: {e}", self.program.display())))?;
        let written = child
            .stdin
            .take()
            .map(|mut pipe| pipe.write_all(self.conf.to_string().as_bytes()));
        match written {
            Some(Ok(())) => Ok(child),
            // It says itself why it does not read.
            _ => Ok(child),
        }
    }

    /// The identifier of a container.
    fn container(id: u32) -> String {
        format!("c{id}")
    }

    /// A verb for each of these containers, at once; how long until the last is done, none when one failed.
    fn all(&self, verb: &str, first: u32, containers: &[NetNs]) -> Result<Option<Duration>, Failure> {
        let begun = Instant::now();
        let mut children = Vec::new();
        for (id, namespace) in (first..).zip(containers) {
            children.push(self.start(verb, namespace, id)?);
        }
        let mut good = true;
        for mut child in children {
            good &= child.wait().is_ok_and(|status| status.success());
        }
        Ok(good.then(|| begun.elapsed()))
    }

    fn measure(&mut self, work: Work, window: Duration, watch: &Watch) -> Result<Vec<Figure>, Failure> {
        let count = if work == Work::One { 1 } else { CROWD };
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        while adds.is_empty() || begun.elapsed() < window {
            watch.check()?;
            let first = self.next;
            self.next = self.next.wrapping_add(count as u32);
            let containers = &self.containers[..count];
            let added = self.all("ADD", first, containers)?;
            let deleted = self.all("DEL", first, containers)?;
            let (Some(added), Some(deleted)) = (added, deleted) else {
                return Ok(Vec::new());
            };
            adds.push(added);
            dels.push(deleted);
        }
        let figures = [("ADD", adds), ("DEL", dels)].map(|(verb, times)| figures(verb, work, times));
        Ok(figures.into_iter().flatten().collect())
    }
}

/// The middle of them, and for single ones what one in a hundred exceeds.
fn figures(verb: &str, work: Work, mut times: Vec<Duration>) -> Vec<Figure> {
    times.sort();
    let at = |percent: usize| percentile(&times, percent);
    match work {
        Work::One => vec![
            figure(format!("{verb}-p50"), at(50)),
            figure(format!("{verb}-p99"), at(99)),
        ],
        Work::Crowd => vec![figure(format!("{verb}-{CROWD}"), at(50))],
    }
}

fn figure(what: String, time: Option<Duration>) -> Figure {
    Figure {
        what,
        unit: "us",
        value: time.unwrap_or_default().as_secs_f64() * 1e6,
    }
}

/// The time, of sorted ones, that so many in a hundred do not exceed; none of none.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied()
}

/// Measure, and print the report.
///
/// # Errors
/// When podwire cannot be set up, or the end was asked for.
pub fn inside(rounds: u8, window: Duration, json: bool, watch: &mut Watch) -> Result<Exit, Failure> {
    let (mut all, absent) = contenders(watch)?;
    let mut report = Report::new(all.iter().map(Contestant::name).collect());
    turns::take(
        &mut report,
        &mut all,
        &Work::ALL,
        |work| work.name().into(),
        rounds,
        watch,
        |c: &mut Contender, work, watch| c.measure(work, window, watch),
    )?;
    let full = all
        .first()
        .and_then(|c| Some((c, c.nodes.as_ref()?.socket("n1"))));
    if let Some((contender, socket)) = full {
        Churn::new(contender, &socket, watch)?.measure(&mut report, rounds, window, watch)?;
    }
    let what = format!(
        "a plugin is started for each container, and what is timed ends with its process; {CROWD}: that many at once, until \
         the last is done; bridge: the reference plugin with host-local, addresses of one subnet; both with IPv4 only; \
         less is better; churn: on a node with 250 containers ten come and ten go a second, beside a stream and a hundred pings \
         a second between two others; calm: these before it"
    );
    let how = turns::remark(rounds, window);
    report.remarks = [how, what].into_iter().chain(absent).collect();
    report.finish().print(json)
}

fn contenders(watch: &mut Watch) -> Result<(Vec<Contender>, Vec<String>), Failure> {
    watch.stage("making a node, and namespaces for containers");
    let [host, other] = hosts(lab::DEVICE, HOSTS)?;
    let pair = [host, other];
    // One family, as the other has it: for IPv6 bridge awaits duplicate address detection.
    let args = [
        "--name",
        "n1",
        "--subnet",
        "10.244.0.0/16",
        "--bind",
        &HOSTS[0].to_string(),
    ]
    .map(String::from);
    let spec = NodeSpec {
        name: "n1".into(),
        args: args.to_vec(),
        netns: Some(&pair[0]),
    };
    let nodes = Nodes::start(&[spec], "", watch)?;
    let [host, _] = pair;
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "podwire",
        "type": "podwire-cni",
        "podwire": {"socket": nodes.socket("n1")},
    });
    let mut all = vec![contender(
        "podwire-cni",
        "/proc/self/exe".into(),
        conf,
        host,
        Some(nodes),
    )?];
    let mut absent = Vec::new();
    let found = FOLDERS
        .map(|f| Path::new(f).join("bridge"))
        .into_iter()
        .find(|p| p.exists());
    match found {
        None => absent
            .push("bridge is left out: it is not installed (containernetworking-plugins in Debian)".into()),
        Some(program) => {
            let host = NetNs::make()?;
            let conf = json!({
                "cniVersion": "1.0.0",
                "name": "bridge",
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.245.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]},
            });
            let mut bridge = contender("bridge", program, conf, host, None)?;
            let data = bridge._dir.join("networks");
            bridge.conf["ipam"]["dataDir"] = json!(data);
            let one = |verb| bridge.all(verb, 0, &bridge.containers[..1]);
            match one("ADD")?.zip(one("DEL")?) {
                Some(_) => all.push(bridge),
                None => absent.push("bridge is left out: it attaches nothing here".into()),
            }
        }
    }
    Ok((all, absent))
}

fn contender(
    name: &'static str,
    program: PathBuf,
    conf: Value,
    host: NetNs,
    nodes: Option<Nodes>,
) -> Result<Contender, Failure> {
    let dir = PrivateDir::make().map_err(|e| failed(format!("no directory can be made: {e}")))?;
    let containers: Result<Vec<NetNs>, _> = (0..CROWD).map(|_| NetNs::make()).collect();
    Ok(Contender {
        name,
        folder: program.parent().unwrap_or(Path::new("/")).into(),
        program,
        conf,
        host,
        containers: containers?,
        next: 1,
        nodes,
        _dir: dir,
    })
}
