//! containerd and runc, by `ctr run --cni`.

use super::Case;
use super::machine::{Machine, one};
use super::podman::{Podman, file_system};
use super::shell::{refused, said, until};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Tests. `ctr` looks for plugins and configuration where distributions have them, so they are one test.
pub const CASES: &[Case] = &[("containerd::containers_come_and_go", containers_come_and_go)];

/// A containerd that ends with it.
struct Containerd<'a> {
    machine: &'a Machine,
    daemon: Child,
}

impl<'a> Containerd<'a> {
    fn on(machine: &'a Machine) -> Containerd<'a> {
        let dir = machine.dir.display();
        let config = format!(
            "version = 2\nroot = \"{dir}/ctd-root\"\nstate = \"{dir}/ctd-state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\"]\n[grpc]\naddress = \"{dir}/ctd.sock\"\n"
        );
        let file = machine.dir.join("containerd.toml");
        fs::write(&file, config).unwrap();
        let mut daemon = machine.run("containerd", &["-c", &file.display().to_string()]);
        let log = fs::File::create(machine.dir.join("containerd.log")).unwrap();
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let made = Containerd {
            daemon: daemon.spawn().unwrap(),
            machine,
        };
        until("containerd answers", || {
            made.ctr(&["version"])
                .output()
                .is_ok_and(|out| out.status.success())
        });
        made
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let socket = self.machine.dir.join("ctd.sock");
        let mut command = self.machine.run("ctr", &["-a", &socket.display().to_string()]);
        command.args(args);
        command
    }

    fn container(&self, id: &str, options: &[&str], program: &[&str]) -> Command {
        let before = ["run", "--cni", "--snapshotter", "native"];
        self.ctr(&[&before[..], options, &["localhost/busybox:latest", id], program].concat())
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn containers_come_and_go() {
    let machine = one();
    fs::create_dir_all("/opt/cni/bin").unwrap();
    fs::create_dir_all("/etc/cni/net.d").unwrap();
    let conf = PathBuf::from("/etc/cni/net.d/10-podwire.conflist");
    fs::copy(machine.dir.join("conf/10-podwire.conflist"), &conf).unwrap();
    for (folder, plugin) in [
        (machine.dir.join("plugins"), "podwire-cni"),
        ("/usr/lib/cni".into(), "loopback"),
    ] {
        std::os::unix::fs::symlink(folder.join(plugin), format!("/opt/cni/bin/{plugin}")).unwrap();
    }
    // podman packs the image.
    let podman = Podman::on(&machine);
    let image = machine.dir.join("image.tar").display().to_string();
    said(podman.run(&["save", "--format", "docker-archive", "-o", &image, "busybox"]));
    assert!(file_system().exists());
    let containerd = Containerd::on(&machine);
    said(containerd.ctr(&["image", "import", "--snapshotter", "native", &image]));
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
    let ping = [
        "task",
        "exec",
        "--exec-id",
        "p",
        "b",
        "/bin/ping",
        "-c",
        "1",
        "-W",
        "2",
        &address,
    ];
    said(containerd.ctr(&ping));
    assert_eq!(machine.pods().len(), 2);
    // Without the plugin's network none is started, and nothing is left of it.
    fs::rename(&conf, "/etc/cni/net.d/off").unwrap();
    refused(containerd.container("none", &["--rm"], &["/bin/true"]));
    fs::rename("/etc/cni/net.d/off", &conf).unwrap();
    for id in ["a", "b"] {
        said(containerd.ctr(&["task", "kill", "-s", "SIGKILL", id]));
        until("the task has ended", || {
            containerd
                .ctr(&["container", "rm", id])
                .output()
                .is_ok_and(|out| out.status.success())
        });
    }
    // `ctr run -d` has nobody who would call DEL; the node sees that the namespaces are gone.
    until("the node has let go", || machine.pods().is_empty());
    podman.end();
}
