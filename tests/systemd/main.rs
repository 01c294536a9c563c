//! The units of `podwire install systemd`, by a real systemd: process 1 of a machine that is made of namespaces (see
//! `boot.sh`), with the sandbox the units ask for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/boot.sh");
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine whose process 1 is systemd.
struct Machine {
    unshare: Child,
    /// Process 1 of it, as it is seen from here.
    init: u32,
    cgroup: Cgroup,
    _dir: TempDir,
}

impl Machine {
    /// Boot one. None where it cannot be, which is told.
    fn boot() -> Option<Machine> {
        if !rustix::process::geteuid().is_root() || !Path::new(SYSTEMD).exists() {
            eprintln!("systemd: only root can boot one here, where it is installed; nothing is tested");
            return None;
        }
        let dir = TempDir::new().expect("a directory");
        let cgroup = Cgroup::new();
        let mut command = Command::new("sh");
        // It enters the group before it becomes the one whose view begins there.
        command
            .arg("-c")
            .arg("echo $$ > \"$1\"/cgroup.procs && shift && exec \"$@\"")
            .arg("sh")
            .arg(&cgroup.0)
            .args([
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount",
                "--mount-proc",
            ])
            .args(["--cgroup", "--uts", "--ipc", "--net", BOOT])
            .arg(dir.path())
            .arg(PODWIRE)
            .stdin(Stdio::null());
        let mut unshare = command.spawn().expect("unshare runs");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let (mut init, mut ended) = (0, None);
        until("systemd is process 1", || {
            ended = unshare.try_wait().expect("it is a child");
            let child = fs::read_to_string(&children).unwrap_or_default();
            init = child.trim().parse().unwrap_or(0);
            ended.is_some()
                || fs::read_link(format!("/proc/{init}/exe")).is_ok_and(|exe| exe == Path::new(SYSTEMD))
        });
        if let Some(status) = ended {
            eprintln!("systemd: nothing is tested: {BOOT} ends with {status} here");
            cgroup.remove();
            return None;
        }
        let machine = Machine {
            unshare,
            init,
            cgroup,
            _dir: dir,
        };
        until("it is up", || {
            machine.succeeds(&["systemctl", "is-active", "default.target"])
        });
        Some(machine)
    }

    /// A command of it, by root or an ordinary user.
    fn command(&self, user: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string()]);
        if user == "ann" {
            command.args(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]);
        }
        command.args(["env", "-i", "PATH=/opt:/usr/sbin:/usr/bin"]);
        match user {
            "ann" => command.args(["HOME=/home/ann", "XDG_RUNTIME_DIR=/run/ann"]),
            _ => command.arg("HOME=/root"),
        };
        command.args(args).stdin(Stdio::null());
        command
    }

    fn output(&self, user: &str, args: &[&str]) -> Output {
        self.command(user, args).output().expect("nsenter runs")
    }

    fn succeeds(&self, args: &[&str]) -> bool {
        self.output("root", args).status.success()
    }

    #[track_caller]
    fn said(&self, user: &str, args: &[&str]) -> String {
        let out = self.output(user, args);
        let all = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(out.status.success(), "{user}: {args:?}: {text}");
        text
    }

    #[track_caller]
    fn does(&self, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        self.said("root", &args)
    }

    /// Properties of the service, in the order of their names.
    fn properties(&self, user: &str, names: &str) -> String {
        let mut args = vec!["systemctl"];
        args.extend((user == "ann").then_some("--user"));
        args.extend(["show", "--value", "--property", names, "podwire"]);
        self.said(user, &args).trim().into()
    }

    /// Kill the node, which systemd starts again.
    fn kill(&self, user: &str) {
        let before = self.properties(user, "MainPID");
        assert_ne!(before, "0");
        self.does(&format!("kill -KILL {before}"));
        let still = format!("{before}\n");
        until("another node is up", || {
            let now = self.properties(user, "MainPID,ActiveState");
            now.ends_with("\nactive") && !now.starts_with(&still) && !now.starts_with("0\n")
        });
    }

    fn processes(&self) -> String {
        self.does("ps -e -o pid=,args=")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.output("root", &["sh", "-c", "ps -ef; tail -n 50 /tmp/*.log"]);
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        self.cgroup.remove();
    }
}

/// A control group of the hierarchy systemd uses.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Cgroup {
        let one = Path::new("/sys/fs/cgroup");
        let all = if one.join("cgroup.controllers").exists() {
            one.into()
        } else {
            one.join("systemd")
        };
        let group = all.join(format!("podwire-test-{}", std::process::id()));
        fs::create_dir_all(&group).expect("a control group");
        Cgroup(group)
    }

    /// With what is below it, as soon as its processes are gone.
    fn remove(&self) {
        fn below(group: &Path) {
            for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    below(&entry.path());
                }
            }
            let _ = fs::remove_dir(group);
        }
        let begun = Instant::now();
        while self.0.exists() && begun.elapsed() < PATIENCE {
            below(&self.0);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One machine for both services, one after the other: booting is what takes time.
#[test]
fn services() {
    let Some(machine) = Machine::boot() else {
        return;
    };
    of_the_machine(&machine);
    of_a_user(&machine);
}

fn of_the_machine(machine: &Machine) {
    let printed =
        machine.does("podwire node --subnet 10.244.1.0/24 --bind 127.0.0.1 --name n1 --print-config");
    let write = |text: &str| {
        let script = "mkdir -p /etc/podwire && printf %s \"$1\" > /etc/podwire/podwire.toml";
        machine.said("root", &["sh", "-c", script, "sh", text]);
    };
    machine.does("podwire install systemd");
    machine.does("systemctl daemon-reload");

    // A configuration that is wrong is told, and not tried again and again.
    write("subnet = \"10.244.1.0/240\"\n");
    assert!(!machine.succeeds(&["systemctl", "start", "podwire"]));
    until("it has failed", || {
        machine.properties("root", "ActiveState") == "failed"
    });
    assert_eq!(machine.properties("root", "ExecMainStatus"), "2");
    assert_eq!(machine.properties("root", "NRestarts"), "0");

    write(&printed);
    machine.does("systemctl start podwire");
    let status = machine.properties("root", "StatusText");
    assert!(
        status.starts_with("node n1 is up: pods 10.244.1.0/24"),
        "{status}"
    );
    let own = machine.does("ip -br addr show podwire0");
    assert!(own.contains("10.244.1.1/32"), "{own}");

    // Pods are reached, and outlive whatever happens to the node.
    machine.does("ip netns add a");
    machine.does("podwire attach --name default/a --netns /run/netns/a");
    let ping = || machine.does("ping -c 1 -W 5 10.244.1.2");
    ping();
    machine.kill("root");
    ping();
    machine.does("systemctl restart podwire");
    ping();
    machine.does("systemctl reload podwire");
    machine.does("systemctl stop podwire");
    let left = machine.processes();
    assert!(
        !left.contains("podwire node") && left.contains("__keeper n1"),
        "{left}"
    );
    machine.does("systemctl start podwire");
    ping();
    let pods = machine.does("podwire pods");
    assert!(
        pods.contains("default/a") && pods.contains("10.244.1.2"),
        "{pods}"
    );

    // Gone without a trace.
    machine.does("podwire detach default/a");
    machine.does("systemctl stop podwire");
    machine.does("podwire uninstall systemd");
    machine.does("systemctl daemon-reload");
    assert_eq!(machine.properties("root", "LoadState"), "not-found");
    let left = machine.processes();
    assert!(!left.contains("podwire"), "{left}");
    let links = machine.does("ip -br link");
    assert_eq!(links.lines().count(), 1, "{links}");
}

fn of_a_user(machine: &Machine) {
    machine.does("systemctl start manager");
    let does = |line: &str| machine.said("ann", &line.split(' ').collect::<Vec<_>>());
    let printed = does("podwire node --subnet 10.245.1.0/24 --bind 127.0.0.1 --name u1 --print-config");
    let script = "mkdir -p ~/.config/podwire && printf %s \"$1\" > ~/.config/podwire/podwire.toml";
    machine.said("ann", &["sh", "-c", script, "sh", &printed]);
    does("podwire install systemd --user");
    does("systemctl --user daemon-reload");
    does("systemctl --user start podwire");
    let status = machine.properties("ann", "StatusText");
    assert!(
        status.starts_with("node u1 is up: pods 10.245.1.0/24"),
        "{status}"
    );
    assert!(does("podwire run --name default/a -- ip -br addr").contains("10.245.1.2"));
    machine.kill("ann");
    assert!(does("podwire run --name default/b -- ip -br addr").contains("10.245.1."));
    does("systemctl --user stop podwire");
    does("podwire uninstall systemd --user");
    does("systemctl --user daemon-reload");
    assert_eq!(machine.properties("ann", "LoadState"), "not-found");
    let left = machine.processes();
    assert!(!left.contains("podwire"), "{left}");
}
