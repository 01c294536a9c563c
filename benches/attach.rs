//! How long it takes to attach a pod, from the request to the answer, with which the pod is usable; to detach it,
//! alone and with all others, and meanwhile to ask for the status; and to end the node. Runs as an ordinary user or
//! as root alike:
//!
//! ```text
//! cargo bench --bench attach             200 pods, one after the other
//! cargo bench --bench attach -- 50       so many (a node serves 256 clients at once)
//! ```
//!
//! The pods' namespaces are made beforehand. `cargo test` runs it with three pods, to see that it works.

use podwire::api::{ApiError, AttachRequest, Client, Reply, Request};
use podwire::cmd::table::table;
use podwire::model::PodName;
use podwire::pod::sandbox::{Sandbox, Spec};
use rustix::process::{Pid, Signal, kill_process};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let measured = args.iter().any(|a| a == "--bench");
    let asked = args.iter().find_map(|a| a.parse().ok());
    let pods = asked.unwrap_or(if measured { 200 } else { 3 });

    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("n.sock");
    let mut node = Node::start(&socket)?;
    let sandboxes: Result<Vec<Sandbox>, _> = (0..pods).map(|_| spawn()).collect();
    let sandboxes = sandboxes?;

    let (mut whole, mut inside) = (Vec::new(), Vec::new());
    let mut attach = || -> Result<(), Box<dyn Error>> {
        for (n, sandbox) in sandboxes.iter().enumerate() {
            let request = request(n);
            let begun = Instant::now();
            let attached = sandbox.attach(&socket, request)?;
            whole.push(begun.elapsed());
            inside.push(attached.in_namespace);
        }
        Ok(())
    };
    let mut client = Client::connect(&socket)?;
    attach()?;
    let Reply::Pods { pods: there } = client.call(&Request::Pods)? else {
        return Err("the node does not list its pods".into());
    };
    assert_eq!(there.len(), pods);
    let detach: Result<Vec<Duration>, ApiError> = (0..pods).map(|n| detach(&mut client, n)).collect();
    let detach = detach?;

    attach()?;
    let mut clients = Vec::new();
    for _ in 0..pods {
        clients.push(Client::connect(&socket)?);
    }
    let mut status = Vec::new();
    let at_once: Result<Vec<Duration>, ApiError> = std::thread::scope(|s| {
        let threads = clients.iter_mut().enumerate();
        let threads: Vec<_> = threads
            .map(|(n, client)| s.spawn(move || self::detach(client, n)))
            .collect();
        while !threads.iter().all(|t| t.is_finished()) {
            let begun = Instant::now();
            client.call(&Request::Status)?;
            status.push(begun.elapsed());
        }
        let ended = threads.into_iter().map(|t| t.join());
        ended
            .map(|t| t.unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    });

    attach()?;
    let begun = Instant::now();
    node.end()?;
    let end = begun.elapsed();

    println!("{pods} pods; milliseconds");
    let rows = [
        row("attach, one after the other", whole),
        row("of it in the pod's namespace", inside),
        row("detach, one after the other", detach),
        row("detach, all at once", at_once?),
        row("status meanwhile", status),
        row("SIGTERM to the node, till its end", vec![end]),
    ];
    print!("{}", table(&["", "P50", "P99", "MAX"], &rows));
    Ok(())
}

fn detach(client: &mut Client, n: usize) -> Result<Duration, ApiError> {
    let pod = name(n);
    let begun = Instant::now();
    client.call(&Request::Detach { pod })?;
    Ok(begun.elapsed())
}

fn spawn() -> Result<Sandbox, Box<dyn Error>> {
    let mut spec = Spec::new("pod");
    spec.program = PODWIRE.into();
    Ok(spec.spawn()?)
}

fn name(n: usize) -> PodName {
    PodName {
        namespace: "bench".into(),
        name: format!("p{n}"),
    }
}

fn request(n: usize) -> AttachRequest {
    AttachRequest {
        pod: name(n),
        ip4: None,
        ip6: None,
        mac: None,
        mtu: None,
        ifname: "eth0".into(),
        netns: None,
        holder: None,
        attachment: None,
        aliases: Vec::new(),
        publish: Vec::new(),
        labels: Default::default(),
        ports: Vec::new(),
        bandwidth: None,
    }
}

fn row(name: &str, mut times: Vec<Duration>) -> Vec<String> {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    let shown = [50, 99, 100].map(|p| format!("{:.2}", at(p).as_secs_f64() * 1e3));
    [name.to_string()].into_iter().chain(shown).collect()
}

/// A node of this benchmark's own.
struct Node(Child);

impl Node {
    fn start(socket: &Path) -> Result<Node, Box<dyn Error>> {
        let child = Command::new(PODWIRE)
            .args(["node", "--name", "bench", "--log", "warn"])
            .args(["--subnet", "10.244.0.0/20", "--subnet6", "fd00:8::/64"])
            .args(["--bind", "127.0.0.1", "--port", "auto", "--socket"])
            .arg(socket)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut node = Node(child);
        let mut line = String::new();
        BufReader::new(node.0.stdout.as_mut().ok_or("no pipe")?).read_line(&mut line)?;
        if line.is_empty() {
            return Err("the node did not come up".into());
        }
        Ok(node)
    }
}

impl Node {
    /// End it as a service manager does.
    fn end(&mut self) -> Result<(), Box<dyn Error>> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = self.0.wait()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| format!("the node ended by {status}").into())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The socket's directory goes anyway, so that nothing is left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
