//! containerd and runc, by `ctr run --cni`.

use super::Case;
use super::image::{IMAGE, archive};
use super::machine::{Machine, one};
use super::shell::{cgroup, refused, said, until};
use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Tests.
pub const CASES: &[Case] = &[
    ("containerd::containers_come_and_go", containers_come_and_go),
    ("containerd::it_and_ctr_may_be_killed_at_any_time", may_be_killed),
];

/// A containerd with its CRI plugin; it ends with this.
pub struct Containerd<'a> {
    /// Where it is.
    pub machine: &'a Machine,
    daemon: RefCell<Option<Child>>,
}

impl<'a> Containerd<'a> {
    /// One that has the image.
    pub fn on(machine: &'a Machine) -> Containerd<'a> {
        // What this machine's kernel and limits refuse, and no test is about, is left out.
        let config = format!(
            r#"version = 2
root = "{dir}/ctd-root"
state = "{dir}/ctd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{dir}/ctd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/plugins"
conf_dir = "{dir}/conf"
"#,
            dir = machine.dir.display()
        );
        fs::write(machine.dir.join("containerd.toml"), config).unwrap();
        // It brings the loopback interface up by this one.
        let _ = std::os::unix::fs::symlink("/usr/lib/cni/loopback", machine.dir.join("plugins/loopback"));
        let made = Containerd {
            machine,
            daemon: RefCell::default(),
        };
        made.start();
        for namespace in ["default", "k8s.io"] {
            let import = ["-n", namespace, "image", "import", "--snapshotter", "native"];
            let mut import = made.ctr(&import);
            import.arg(archive());
            said(import);
        }
        made
    }

    /// Start it, after it was killed.
    pub fn start(&self) {
        let file = self.machine.dir.join("containerd.toml");
        let mut daemon = self
            .machine
            .run("containerd", &["-c", &file.display().to_string()]);
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true);
        let log = log.open(self.machine.dir.join("containerd.log")).unwrap();
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon.replace(Some(daemon.spawn().unwrap()));
        until("containerd answers", || {
            self.ctr(&["version"])
                .output()
                .is_ok_and(|out| out.status.success())
        });
    }

    /// SIGKILL it.
    pub fn kill(&self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.machine.dir.join("ctd.sock")
    }

    /// The namespaces that it has made for pods: where, and none but its own.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        let place = self.machine.dir.join("ctd-state/io.containerd.grpc.v1.cri/netns");
        let made = fs::read_dir(place).map(|all| all.map(|entry| entry.unwrap().path()).collect());
        made.unwrap_or_default()
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = self
            .machine
            .run("ctr", &["-a", &self.socket().display().to_string()]);
        command.args(args);
        command
    }

    fn container(&self, id: &str, options: &[&str], program: &[&str]) -> Command {
        let cgroup = format!("{}/{id}", cgroup());
        let before = ["run", "--cni", "--snapshotter", "native", "--cgroup", &cgroup];
        self.ctr(&[&before[..], options, &[IMAGE, id], program].concat())
    }

    /// End a container of `ctr`, whatever there is of it.
    fn remove(&self, id: &str) {
        until("the container has gone", || {
            let _ = self.ctr(&["task", "kill", "-s", "SIGKILL", id]).output();
            let _ = self.ctr(&["task", "rm", "-f", id]).output();
            let _ = self.ctr(&["container", "rm", id]).output();
            !said(self.ctr(&["container", "ls", "-q"]))
                .lines()
                .any(|c| c == id)
        });
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = rustix::process::Pid::from_child(&daemon);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.machine.dir.join("containerd.log")).unwrap_or_default();
            let said: Vec<_> = log.lines().filter(|l| !l.contains("level=info")).collect();
            eprintln!("log of containerd:\n{}", said.join("\n"));
        }
    }
}

/// Have the machine's network and plugins where `ctr` looks for them, which is the same for all machines: one test at a
/// time.
fn have_ctr_find(machine: &Machine) -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    for place in ["/opt/cni/bin", "/etc/cni/net.d"] {
        let _ = fs::remove_dir_all(place);
        fs::create_dir_all(place).unwrap();
    }
    fs::copy(machine.dir.join("conf/10-podwire.conflist"), CONF).unwrap();
    for (folder, plugin) in [
        (machine.dir.join("plugins"), "podwire-cni"),
        ("/usr/lib/cni".into(), "loopback"),
    ] {
        std::os::unix::fs::symlink(folder.join(plugin), format!("/opt/cni/bin/{plugin}")).unwrap();
    }
    one
}

const CONF: &str = "/etc/cni/net.d/10-podwire.conflist";

fn containers_come_and_go() {
    let machine = one();
    let _one = have_ctr_find(&machine);
    let containerd = Containerd::on(&machine);
    // One that says what it has, and goes.
    let shown = said(containerd.container("once", &["--rm"], &["/bin/ip", "-o", "addr"]));
    assert!(shown.contains("10.244.1.") && shown.contains("eth0"), "{shown}");
    assert_eq!(machine.pods(), Vec::<String>::new());
    // Two that reach each other.
    said(containerd.container("a", &["-d"], &["/bin/sleep", "600"]));
    said(containerd.container("b", &["-d"], &["/bin/sleep", "600"]));
    let pods = said(machine.podwire(&["pods", "--json"]));
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    let address = pods[0]["addresses"][0].as_str().unwrap().to_string();
    let exec = ["task", "exec", "--exec-id", "p", "b"];
    let ping = ["/bin/ping", "-c", "1", "-W", "2", &address];
    said(containerd.ctr(&[&exec[..], &ping].concat()));
    assert_eq!(machine.pods().len(), 2);
    // Without the plugin's network none is started, and nothing is left of it.
    fs::rename(CONF, "/etc/cni/net.d/off").unwrap();
    refused(containerd.container("none", &["--rm"], &["/bin/true"]));
    fs::rename("/etc/cni/net.d/off", CONF).unwrap();
    for id in ["a", "b"] {
        containerd.remove(id);
    }
    // `ctr run -d` has nobody who would call DEL; the node sees that the namespaces are gone.
    until("the node has let go", || machine.pods().is_empty());
}

/// `ctr` calls the plugin, containerd starts and ends the task: either may end at any step.
fn may_be_killed() {
    let machine = one();
    let _one = have_ctr_find(&machine);
    let containerd = Containerd::on(&machine);
    said(containerd.container("stays", &["-d"], &["/bin/sleep", "600"]));
    for (n, delay) in (40..440).step_by(50).enumerate() {
        let id = format!("c{n}");
        let mut run = containerd.container(&id, &["--rm"], &["/bin/sleep", "0.1"]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        if n % 2 == 0 {
            run.kill().unwrap();
        } else {
            containerd.kill();
            containerd.start();
        }
        run.wait().unwrap();
        containerd.remove(&id);
    }
    until("only the one is left", || {
        machine.pods() == ["default/default-stays"]
    });
    let exec = ["task", "exec", "--exec-id", "p", "stays"];
    let ping = ["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"];
    said(containerd.ctr(&[&exec[..], &ping].concat()));
    containerd.remove("stays");
    until("the node has let go", || machine.pods().is_empty());
}
