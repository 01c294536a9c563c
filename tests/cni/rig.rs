//! A node, containers that are nothing but a namespace at a path, and the plugin as a runtime calls it.

use super::isolate;
use super::netns::Netns;
use super::node::{Node, PODWIRE};
use podwire::api::{IpamInfo, PodInfo};
use podwire::model::OffloadMode;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long something may take that a busy machine has to do.
pub const SOON: Duration = Duration::from_secs(10);

/// Everything a test plays with.
pub struct Rig {
    /// The node.
    pub node: Node,
    /// The namespace it runs in.
    pub host: Netns,
    dir: tempfile::TempDir,
    made: Cell<u32>,
}

impl Rig {
    /// A node without containers.
    pub fn new() -> Rig {
        let dir = tempfile::Builder::new()
            .tempdir_in(isolate::dir())
            .expect("a directory");
        let host = Netns::new();
        host.ip("addr add 192.0.2.1/32 dev lo");
        std::fs::write(dir.path().join("n1.toml"), "").expect("a peers file");
        let bind = "192.0.2.1".parse().expect("an address");
        let node = Node::start(1, (&host, bind), dir.path(), OffloadMode::On, &[]);
        Rig {
            node,
            host,
            dir,
            made: Cell::new(0),
        }
    }

    /// Where files may be put.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A container with an identifier as runtimes give them.
    pub fn container(&self) -> Container {
        let n = self.made.get();
        self.container_named(&format!("{n:08x}{}", "c0ffee00".repeat(7)))
    }

    /// A container of this identifier.
    pub fn container_named(&self, id: &str) -> Container {
        let n = self.made.get();
        self.made.set(n + 1);
        Container::new(id, self.dir.path().join(format!("ns-{n}")))
    }

    /// A configuration of this version, with more keys.
    pub fn conf(&self, version: &str, more: Value) -> Value {
        let mut conf = json!({
            "cniVersion": version,
            "name": "pods",
            "type": "podwire-cni",
            "podwire": {"socket": self.node.socket},
        });
        let (Some(map), Value::Object(more)) = (conf.as_object_mut(), more) else {
            panic!("objects");
        };
        map.extend(more);
        conf
    }

    /// Start the plugin.
    pub fn begin(&self, verb: &str, of: Option<&Container>, conf: &Value, env: &[(&str, &str)]) -> Child {
        let mut command = Command::new(PODWIRE);
        command.arg0("podwire-cni").env_clear();
        self.begin_as(command, verb, of, conf, env)
    }

    /// Start the plugin by another command, which becomes it.
    pub fn begin_as(
        &self,
        mut command: Command,
        verb: &str,
        of: Option<&Container>,
        conf: &Value,
        env: &[(&str, &str)],
    ) -> Child {
        command.env("CNI_COMMAND", verb).env("CNI_PATH", "/opt/cni/bin");
        if let Some(of) = of {
            command
                .env("CNI_CONTAINERID", &of.id)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", &of.path);
        }
        for (name, value) in env {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Runtimes call plugins in the host's namespace.
        let mut child = self.host.within(|| command.spawn()).expect("podwire runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        // One that refuses at once does not read.
        let _ = stdin.write_all(conf.to_string().as_bytes());
        child
    }

    /// Run the plugin: what it prints, or the error it prints.
    pub fn call(
        &self,
        verb: &str,
        of: Option<&Container>,
        conf: &Value,
        env: &[(&str, &str)],
    ) -> Result<Value, Value> {
        answer(
            self.begin(verb, of, conf, env)
                .wait_with_output()
                .expect("it ends"),
        )
    }

    /// ADD, which must succeed.
    #[track_caller]
    pub fn add(&self, of: &Container, conf: &Value) -> Value {
        self.add_with(of, conf, &[])
    }

    /// ADD with more of the environment, which must succeed.
    #[track_caller]
    pub fn add_with(&self, of: &Container, conf: &Value, env: &[(&str, &str)]) -> Value {
        self.call("ADD", Some(of), conf, env)
            .unwrap_or_else(|e| panic!("ADD: {e}"))
    }

    /// DEL, which must succeed.
    #[track_caller]
    pub fn del(&self, of: &Container, conf: &Value) {
        let said = self.call("DEL", Some(of), conf, &[]);
        assert_eq!(said, Ok(Value::Null));
    }

    /// The pods of the node.
    pub fn pods(&self) -> Vec<PodInfo> {
        let out = self.node.podwire(&["pods", "--json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
    }

    /// The addresses of the node.
    pub fn ipam(&self) -> IpamInfo {
        let out = self.node.podwire(&["ipam", "--json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
    }

    /// Nothing of any container is left: no pod, address, port, TAP or file.
    #[track_caller]
    pub fn is_empty(&mut self) {
        assert_eq!(self.ipam().held, 0, "addresses are held");
        assert!(self.pods().is_empty(), "pods are there");
        let ports = self.node.podwire(&["port", "ls", "--json"]);
        assert_eq!(
            String::from_utf8_lossy(&ports.stdout).trim(),
            "[]",
            "ports are published"
        );
        let pid = self.node.pid();
        eventually("no TAP is open", || {
            taps(pid) == 0 && self.node.keeper().is_none_or(|k| taps(k) == 0)
        });
        let gone = self.node.socket.with_extension("gone");
        let files = std::fs::read_dir(gone).map_or(0, Iterator::count);
        assert_eq!(files, 0, "word of containers that are gone");
    }

    /// Check the node, and end it.
    pub fn end(&mut self) {
        self.is_empty();
        self.node.check();
        self.node.stop();
    }
}

/// What the plugin said.
pub fn answer(out: Output) -> Result<Value, Value> {
    let text = String::from_utf8_lossy(&out.stdout);
    let said = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")),
    };
    match out.status.code() {
        Some(0) => Ok(said),
        Some(1) => {
            assert!(
                said["code"].is_u64() && said["msg"].is_string() && said["cniVersion"].is_string(),
                "{said}"
            );
            Err(said)
        }
        other => panic!(
            "the plugin ended by {other:?}: {text} {}",
            String::from_utf8_lossy(&out.stderr)
        ),
    }
}

/// How many descriptors of TAPs a process has.
pub fn taps(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter(|l| l == Path::new("/dev/net/tun")).count()
}

/// Wait until `holds`.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A container: a namespace that a path holds.
pub struct Container {
    /// Its identifier.
    pub id: String,
    /// Its namespace's path.
    pub path: PathBuf,
    /// Its namespace; none once the runtime has given it up.
    pub netns: Option<Netns>,
}

impl Container {
    fn new(id: &str, path: PathBuf) -> Container {
        std::fs::write(&path, "").expect("a file");
        let netns = Netns::new();
        netns
            .within(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &path))
            .expect("a bind mount");
        Container {
            id: id.into(),
            path,
            netns: Some(netns),
        }
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        self.netns.as_ref().expect("it is there")
    }

    /// Whether it has such an interface.
    pub fn has(&self, ifname: &str) -> bool {
        self.netns().run("ip", &["link", "show", ifname]).status.success()
    }

    /// Whether it gets an answer from there.
    pub fn pings(&self, to: &str) -> bool {
        self.netns()
            .run("ping", &["-c", "1", "-W", "2", to])
            .status
            .success()
    }

    /// The runtime gives its namespace up.
    pub fn vanish(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.path);
        self.netns = None;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// A mount namespace, as rootless podman has one, in which alone a container's namespace is mounted at its path. Elsewhere
/// an empty file is there.
pub struct Hidden(Child);

impl Hidden {
    /// Move a container's namespace there.
    pub fn new(rig: &Rig, container: &mut Container) -> Hidden {
        let path = rig.dir().join("hidden");
        std::fs::write(&path, "").expect("a file");
        let mut holder = Command::new("unshare");
        let script = "mount --bind /proc/self/ns/net \"$0\" && echo && exec sleep 1000";
        holder
            .args(["-m", "--propagation", "private", "sh", "-c", script])
            .arg(&path);
        holder.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = container.netns().within(|| holder.spawn()).expect("unshare");
        let mut ready = [0];
        let pipe = holder.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(pipe, &mut ready).expect("a mount");
        container.vanish();
        container.path = path;
        Hidden(holder)
    }

    /// A program that is run in it.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-m", "--", program]);
        command
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who listens at a node's socket in its place, and answers each line of a client with another one.
pub struct Fake {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// Listen, and answer each line.
    pub fn at(socket: &Path, answer: fn(&str) -> String) -> Fake {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("a socket");
        listener.set_nonblocking(true).expect("a flag");
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).expect("a flag");
                let mut writer = stream.try_clone().expect("a descriptor");
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    // A client that has gone is not there to be told.
                    let _ = writeln!(writer, "{}", answer(&line));
                }
            }
        });
        Fake {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The addresses of a result, without their lengths.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("addresses").iter();
    let texts = ips.map(|ip| ip["address"].as_str().expect("an address"));
    texts
        .map(|a| a.split('/').next().unwrap_or(a).to_string())
        .collect()
}
