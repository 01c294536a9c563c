//! A lab's nodes: child processes of this very binary, in a directory nobody else can look into.

use super::dir::PrivateDir;
use super::watch::{Job, Watch};
use crate::api::place;
use crate::cmd::{Exit, Failure};
use crate::pod::hidden;
use crate::sys::ns::NetNs;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take to come up, and to go.
const START: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(2);
/// Lines of a failed node's log that are shown.
const LAST_WORDS: usize = 8;

/// What a node is started with.
pub struct NodeSpec<'n> {
    /// Its name.
    pub name: String,
    /// Arguments of `podwire node` beside its peers file and its socket.
    pub args: Vec<String>,
    /// The network namespace it runs in, when that is not this process's own.
    pub netns: Option<&'n NetNs>,
}

/// Running nodes and their files. Dropping it ends the nodes in order and removes the files.
pub struct Nodes {
    nodes: Vec<Node>,
    dir: PrivateDir,
}

struct Node {
    name: String,
    job: Job,
}

impl Nodes {
    /// Start nodes with one peers file for all of them, and wait until each is up.
    ///
    /// # Errors
    /// When one does not come up, with its last words.
    pub fn start(specs: &[NodeSpec<'_>], peers: &str, watch: &mut Watch) -> Result<Nodes, Failure> {
        let dir = PrivateDir::make().map_err(|e| {
            let place = std::env::temp_dir();
            failed(format!(
                "no directory can be made in {}: {e} (set TMPDIR to one of yours)",
                place.display()
            ))
        })?;
        let unready = |e: io::Error| failed(format!("{}: {e}", dir.path().display()));
        fs::write(dir.join("peers.toml"), peers).map_err(unready)?;
        let mut nodes = Nodes {
            nodes: Vec::new(),
            dir,
        };
        for spec in specs {
            let job = nodes.spawn(spec)?;
            let name = spec.name.clone();
            nodes.nodes.push(Node { name, job });
        }
        watch.gather(&mut nodes.jobs(), Instant::now() + START, Job::spoke)?;
        match nodes.nodes.iter().find(|n| n.job.said().is_empty()) {
            None => Ok(nodes),
            Some(node) if node.job.ended() => Err(failed(format!(
                "node {} ended at once{}",
                node.name,
                nodes.last_words(&node.name)
            ))),
            Some(node) => Err(failed(format!(
                "node {} was not up within {} s (is this machine overloaded?){}",
                node.name,
                START.as_secs(),
                nodes.last_words(&node.name)
            ))),
        }
    }

    /// The admin socket of the node `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }

    /// The processes of the nodes.
    pub fn jobs(&mut self) -> Vec<&mut Job> {
        self.nodes.iter_mut().map(|n| &mut n.job).collect()
    }

    /// Their process ids.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().map(|n| n.job.pid())
    }

    /// A sentence for each node that ended by itself.
    pub fn casualties(&mut self) -> Vec<String> {
        Job::look(&mut self.jobs());
        let dead = self.nodes.iter().filter(|n| n.job.ended());
        dead.map(|n| format!("node {} ended by itself{}", n.name, self.last_words(&n.name)))
            .collect()
    }

    fn spawn(&self, spec: &NodeSpec<'_>) -> Result<Job, Failure> {
        let socket = place::fits(self.socket(&spec.name)).map_err(|_| {
            let place = std::env::temp_dir();
            failed(format!(
                "the path of {} is too long for sockets in it (set TMPDIR to a shorter one)",
                place.display()
            ))
        })?;
        let start = || {
            let log = File::create(self.log(&spec.name))?;
            Job::spawn(
                Command::new("/proc/self/exe")
                    .arg0("podwire")
                    .args([hidden::TIED, &std::process::id().to_string()])
                    .arg("node")
                    .args(&spec.args)
                    .arg("--peers")
                    .arg(self.dir.join("peers.toml"))
                    .arg("--socket")
                    .arg(socket)
                    // These nodes are no service of anybody's.
                    .env_remove("NOTIFY_SOCKET")
                    .stderr(Stdio::from(log)),
            )
        };
        let started = match spec.netns {
            Some(netns) => netns.within(start).map_err(io::Error::other).flatten(),
            None => start(),
        };
        started.map_err(|e| failed(format!("node {} could not be started: {e}", spec.name)))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The end of a node's log, to be appended to a sentence.
    fn last_words(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        match last {
            [] => " and said nothing".into(),
            lines => format!("; its last words:\n  {}", lines.join("\n  ")),
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        Job::end(&mut self.jobs(), END);
    }
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
