//! A machine: a network namespace with a podwire node, a folder with the plugin and one with the conflist.

use super::rootless::{USER, give, make_user};
use super::shell::{dir, said, until};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the network is called.
pub const NETWORK: &str = "wire";
static MADE: AtomicU32 = AtomicU32::new(0);

/// The binary under test.
pub fn podwire() -> PathBuf {
    dir().join("podwire")
}

/// A machine; what it holds ends with it, and nothing may be left then.
pub struct Machine {
    /// `n1`, `n2`, ...
    name: String,
    /// Its network namespace, by name.
    pub netns: String,
    /// Its files.
    pub dir: PathBuf,
    node: RefCell<Option<Child>>,
    args: Vec<String>,
    /// All that is run here is an ordinary user's.
    rootless: bool,
}

/// One machine.
pub fn one() -> Machine {
    let mut made = machines(1, &[]);
    made.remove(0)
}

/// One machine, whose node and runtime are those of an ordinary user.
pub fn of_user() -> Machine {
    make_user();
    let world = world();
    let mut machine = Machine::bare(&world, 1);
    machine.rootless = true;
    // As a user would write it.
    let mut conflist = machine.podwire(&["cni", "conflist", "--no-ports", "--cni-version", "0.4.0"]);
    conflist.args(["--name", NETWORK]);
    fs::write(machine.dir.join("conf/10-podwire.conflist"), said(conflist)).unwrap();
    give(&machine.dir);
    let own = "node --name n1 --subnet 10.244.1.0/24 --subnet6 fd00:10:244:1::/64 --bind 127.0.0.1";
    machine.args.extend(own.split(' ').map(String::from));
    machine
        .args
        .extend(["--socket".into(), machine.socket().display().to_string()]);
    machine.start();
    machine
}

/// The directory of machines that know each other.
fn world() -> PathBuf {
    let world = dir().join(format!("world{}", MADE.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&world).unwrap();
    world
}

/// So many machines on one link, each with a node that knows the others, and `args`.
pub fn machines(count: u8, args: &[&str]) -> Vec<Machine> {
    let world = world();
    let mut made: Vec<Machine> = (1..=count).map(|n| Machine::bare(&world, n)).collect();
    if let [one, two] = &made[..] {
        connect(one, two);
    }
    let peers: String = (1..=count)
        .map(|n| {
            format!(
                "[[peer]]\nname = \"n{n}\"\nunderlay = \"192.0.2.{n}\"\nsubnet = \"10.244.{n}.0/24\"\nsubnet6 = \"fd00:10:244:{n}::/64\"\n"
            )
        })
        .collect();
    let file = world.join("peers.toml");
    fs::write(&file, peers).unwrap();
    for (n, machine) in (1..=count).zip(&mut made) {
        let own = format!(
            "node --name n{n} --subnet 10.244.{n}.0/24 --subnet6 fd00:10:244:{n}::/64 --underlay-mtu 1500"
        );
        machine.args.extend(own.split(' ').map(String::from));
        if count > 1 {
            machine.args.extend(["--bind".into(), format!("192.0.2.{n}")]);
            machine
                .args
                .extend(["--peers".into(), file.display().to_string()]);
        } else {
            machine.args.extend(["--bind".into(), "127.0.0.1".into()]);
        }
        machine
            .args
            .extend(["--socket".into(), machine.socket().display().to_string()]);
        machine.args.extend(args.iter().map(|a| a.to_string()));
        machine.start();
    }
    made
}

/// A link between two machines: 192.0.2.1 and 192.0.2.2.
fn connect(one: &Machine, two: &Machine) {
    let mut link = ip(&["link", "add", "eth0", "netns", &one.netns, "type", "veth"]);
    link.args(["peer", "name", "eth0", "netns", &two.netns]);
    said(link);
    for (n, machine) in (1..).zip([one, two]) {
        said(machine.run("ip", &["addr", "add", &format!("192.0.2.{n}/24"), "dev", "eth0"]));
        said(machine.run("ip", &["link", "set", "eth0", "up"]));
    }
}

/// An etcd, which ends with this.
pub struct Store(Child);

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two machines on one link whose nodes share a store, an etcd on the first. Each writes `subnet.env` among its files. The
/// store has to end last.
pub fn sharing() -> (Store, [Machine; 2]) {
    const URL: &str = "http://192.0.2.1:2379";
    let world = world();
    let mut made = [1, 2].map(|n| Machine::bare(&world, n));
    connect(&made[0], &made[1]);
    let peers = "http://192.0.2.1:2380";
    let mut etcd = made[0].run("etcd", &["--name", "n1", "--unsafe-no-fsync", "--data-dir"]);
    etcd.arg(world.join("etcd"));
    etcd.args(["--listen-client-urls", URL, "--advertise-client-urls", URL]);
    etcd.args([
        "--listen-peer-urls",
        peers,
        "--initial-advertise-peer-urls",
        peers,
    ]);
    etcd.args(["--initial-cluster", &format!("n1={peers}")]);
    etcd.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let store = Store(etcd.spawn().unwrap());
    let config = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    let put = ["--endpoints", URL, "put", "/coreos.com/network/config", config];
    until("etcd takes the network", || {
        let mut put = made[0].run("etcdctl", &put);
        put.env("ETCDCTL_API", "3");
        put.output().is_ok_and(|out| out.status.success())
    });
    for (n, machine) in (1..).zip(&mut made) {
        let own = format!(
            "node --name n{n} --store etcd --etcd-endpoints {URL} --bind 192.0.2.{n} --underlay-mtu 1500 \
             --socket {socket} --state-dir {dir}/state --subnet-file {dir}/subnet.env",
            socket = machine.socket().display(),
            dir = machine.dir.display()
        );
        machine.args.extend(own.split(' ').map(String::from));
        machine.start();
    }
    (store, made)
}

fn ip(args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(args);
    command
}

impl Machine {
    fn bare(world: &Path, n: u8) -> Machine {
        let name = format!("n{n}");
        let dir = world.join(&name);
        for folder in ["plugins", "conf", "run"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(podwire(), dir.join("plugins/podwire-cni")).unwrap();
        let world = world.file_name().unwrap().to_string_lossy().into_owned();
        let netns = format!("{world}{name}");
        said(ip(&["netns", "add", &netns]));
        let machine = Machine {
            name,
            netns,
            dir,
            node: RefCell::default(),
            args: Vec::new(),
            rootless: false,
        };
        said(machine.run("ip", &["link", "set", "lo", "up"]));
        machine.conflist(&format!(
            r#"{{"type": "podwire-cni", "podwire": {{"socket": "{}"}}, {}}}"#,
            machine.socket().display(),
            CAPABILITIES
        ));
        machine
    }

    /// Have these plugins, in JSON, as the network.
    pub fn conflist(&self, plugins: &str) {
        let text = format!(r#"{{"cniVersion": "0.4.0", "name": "{NETWORK}", "plugins": [{plugins}]}}"#);
        fs::write(self.dir.join("conf/10-podwire.conflist"), text).unwrap();
    }

    /// Where the node is asked.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/node.sock")
    }

    /// A program in the machine's network namespace.
    pub fn run(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns));
        if self.rootless {
            command.args(["runuser", "-u", USER, "--"]);
            command
                .env("XDG_RUNTIME_DIR", self.dir.join("run"))
                .current_dir(&self.dir);
            command.env("HOME", dir().join("home"));
        }
        command.arg(program).args(args);
        command
    }

    /// A verb of podwire, to the machine's node.
    pub fn podwire(&self, args: &[&str]) -> Command {
        let mut command = self.run(&podwire().display().to_string(), args);
        command.arg("--socket").arg(self.socket());
        command
    }

    /// The names of the node's pods.
    pub fn pods(&self) -> Vec<String> {
        let pods: serde_json::Value = serde_json::from_str(&said(self.podwire(&["pods", "--json"]))).unwrap();
        let all = pods.as_array().unwrap().iter();
        all.map(|pod| pod["pod"].as_str().unwrap().to_string()).collect()
    }

    /// Start the node.
    pub fn start(&self) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let mut node = self.run(&podwire().display().to_string(), &args);
        node.env("XDG_RUNTIME_DIR", self.dir.join("run"));
        let log = fs::File::create(self.dir.join("node.log")).unwrap();
        node.stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.node.replace(Some(node.spawn().unwrap()));
        until(&format!("node {} answers", self.name), || {
            self.podwire(&["status"])
                .output()
                .is_ok_and(|out| out.status.success())
        });
    }

    /// SIGKILL the node.
    pub fn kill(&self) {
        let mut node = self.node.take().unwrap();
        node.kill().unwrap();
        node.wait().unwrap();
    }

    /// The TAPs and other interfaces of the machine, but its loopback and link, and the node's own.
    pub fn interfaces(&self) -> Vec<String> {
        let all = said(self.run("ip", &["-o", "link"]));
        let names = all.lines().filter_map(|line| line.split(' ').nth(1));
        names
            .map(|name| name.trim_end_matches(':').split('@').next().unwrap().to_string())
            .filter(|name| !["lo", "eth0", "podwire0"].contains(&name.as_str()))
            .collect()
    }
}

/// What the plugin is told by the runtime.
pub const CAPABILITIES: &str = r#""capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "dns": true, "aliases": true}"#;

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let pid = rustix::process::Pid::from_child(&node);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = node.wait();
        }
        let _ = ip(&["netns", "del", &self.netns]).status();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("node.log")).unwrap_or_default();
            eprintln!("log of node {}:\n{log}", self.name);
        }
    }
}
