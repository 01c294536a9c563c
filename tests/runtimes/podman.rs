//! podman as root, with the CNI back end.

use super::Case;
use super::machine::{Machine, NETWORK, machines, one};
use super::shell::{dir, refused, said, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Tests.
pub const CASES: &[Case] = &[
    (
        "podman::a_container_has_its_network_and_leaves_nothing",
        a_container_has_its_network,
    ),
    (
        "podman::containers_of_two_machines_reach_each_other",
        two_machines,
    ),
    ("podman::a_port_is_published", a_port_is_published),
    ("podman::names_resolve", names_resolve),
    (
        "podman::a_pod_shares_its_network_and_one_container_restarts",
        a_pod_shares,
    ),
    ("podman::address_and_mac_are_as_wished", address_and_mac),
    ("podman::the_node_may_die_at_any_time", the_node_may_die),
    ("podman::itself_may_be_killed_at_any_time", itself_may_be_killed),
    (
        "podman::an_address_that_is_taken_is_refused",
        an_address_that_is_taken,
    ),
];

/// podman on a machine, with a storage of its own.
pub struct Podman<'a> {
    /// Where it is.
    pub machine: &'a Machine,
    conf: PathBuf,
}

/// The busybox that containers are made of, as a tar of a file system.
pub fn file_system() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let root = dir().join("busybox");
        fs::create_dir_all(root.join("bin")).unwrap();
        for folder in ["etc", "proc", "sys", "tmp", "www"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.join("bin/busybox"))
            .or_else(|_| fs::copy("/bin/busybox", root.join("bin/busybox")))
            .unwrap();
        for applet in [
            "touch", "sh", "sleep", "ip", "ping", "wget", "httpd", "nslookup", "cat", "echo", "nc", "true",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let tar = dir().join("busybox.tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".");
        said(command);
        tar
    })
}

/// podman's configuration for a machine's files: `limits` as this place lets a container have them.
pub fn containers_conf(machine: &Path) -> String {
    format!(
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{0}/plugins\", \"/usr/lib/cni\"]\n\
         network_config_dir = \"{0}/conf\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nenable_port_reservation = false\nevents_logger = \"file\"\nruntime = \"runc\"\n\
         [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
        machine.display()
    )
}

impl<'a> Podman<'a> {
    /// With the image `busybox`.
    pub fn on(machine: &'a Machine) -> Podman<'a> {
        let conf = machine.dir.join("containers.conf");
        fs::write(&conf, containers_conf(&machine.dir)).unwrap();
        let podman = Podman { machine, conf };
        said(podman.run(&["import", &file_system().display().to_string(), "busybox"]));
        podman
    }

    /// A command of podman.
    pub fn run(&self, args: &[&str]) -> Command {
        let place = |name: &str| self.machine.dir.join(name).display().to_string();
        let (root, runroot) = (place("storage"), place("runroot"));
        let all = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        let mut command = self.machine.run("podman", &[&all[..], args].concat());
        command.env("CONTAINERS_CONF", &self.conf);
        command
    }

    /// Start a container that stays.
    pub fn start(&self, name: &str, options: &[&str], program: &[&str]) {
        let before = ["run", "-d", "--name", name, "--network", NETWORK];
        said(self.run(&[&before[..], options, &["busybox"], program].concat()));
    }

    /// What a program in a container says.
    pub fn exec(&self, name: &str, program: &[&str]) -> String {
        said(self.run(&[&["exec", name], program].concat()))
    }

    /// The first IPv4 address of a container.
    pub fn address(&self, name: &str) -> String {
        let all = self.exec(name, &["/bin/ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
        let words: Vec<&str> = all.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "inet").unwrap();
        words[at + 1].split('/').next().unwrap().into()
    }

    /// End and remove everything; nothing may be left of it.
    pub fn end(self) {
        said(self.run(&["pod", "rm", "-fa", "-t", "0"]));
        said(self.run(&["rm", "-fa", "-t", "0"]));
        assert_eq!(self.machine.pods(), Vec::<String>::new());
        assert_eq!(self.machine.interfaces(), Vec::<String>::new());
    }
}

const SLEEP: &[&str] = &["/bin/sleep", "600"];
/// A web server that says whose it is.
pub const SERVE: &[&str] = &[
    "/bin/sh",
    "-c",
    "echo hello from $WHO > /www/index.html; exec /bin/httpd -f -p 80 -h /www",
];

/// A shell's words for the page of a server. Debian's static busybox cannot run its own wget: it needs the C library's
/// plugins.
pub fn fetch(at: &str) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {at} 80")
}

fn a_container_has_its_network() {
    let machine = one();
    let podman = Podman::on(&machine);
    podman.start("a", &[], SLEEP);
    assert_eq!(machine.pods(), ["default/a"]);
    let address = podman.address("a");
    assert!(address.starts_with("10.244.1."), "{address}");
    let route = podman.exec("a", &["/bin/ip", "route"]);
    assert!(route.contains("default via 10.244.1.1"), "{route}");
    podman.exec("a", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    let six = podman.exec("a", &["/bin/ip", "-6", "-o", "addr", "show", "dev", "eth0"]);
    assert!(six.contains("fd00:10:244:1:"), "{six}");
    // podman knows it too.
    let known = said(podman.run(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", "a"]));
    assert!(known.contains(&address), "{known}");
    said(podman.run(&["restart", "-t", "0", "a"]));
    podman.exec("a", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    assert_eq!(machine.pods(), ["default/a"]);
    podman.end();
}

fn two_machines() {
    let both = machines(2, &[]);
    let (one, two) = (Podman::on(&both[0]), Podman::on(&both[1]));
    one.start("a", &["-e", "WHO=a"], SERVE);
    two.start("b", &["-e", "WHO=b"], SERVE);
    let (a, b) = (one.address("a"), two.address("b"));
    let page = |podman: &Podman<'_>, from: &str, at: &str| {
        until("a page comes", || {
            let mut fetch = podman.run(&["exec", from, "/bin/sh", "-c", &fetch(at)]);
            fetch.output().is_ok_and(|out| !out.stdout.is_empty())
        });
        podman.exec(from, &["/bin/sh", "-c", &fetch(at)])
    };
    assert!(page(&one, "a", &b).ends_with("hello from b"));
    assert!(page(&two, "b", &a).ends_with("hello from a"));
    one.end();
    two.end();
}

fn a_port_is_published() {
    let machine = one();
    let podman = Podman::on(&machine);
    podman.start(
        "web",
        &["-e", "WHO=web", "-p", "8080:80", "-p", "127.0.0.1:8081:80"],
        SERVE,
    );
    for port in [8080, 8081] {
        let url = format!("http://127.0.0.1:{port}/");
        until("the port answers", || {
            machine
                .run("curl", &["-sf", "-m", "5", &url])
                .output()
                .is_ok_and(|out| out.status.success())
        });
        assert_eq!(
            said(machine.run("curl", &["-sf", "-m", "5", &url])),
            "hello from web"
        );
    }
    // A second one cannot have it, and is told who does; nothing of it is left.
    let second = [
        "run",
        "-d",
        "--name",
        "second",
        "--network",
        NETWORK,
        "-p",
        "8080:80",
        "busybox",
        "/bin/sleep",
        "600",
    ];
    let why = refused(podman.run(&second));
    assert!(why.contains("8080") && why.contains("default/web"), "{why}");
    assert_eq!(machine.pods(), ["default/web"]);
    said(podman.run(&["rm", "-f", "-t", "0", "web"]));
    refused(machine.run("curl", &["-sf", "-m", "5", "http://127.0.0.1:8080/"]));
    podman.end();
}

fn names_resolve() {
    let both = machines(2, &[]);
    let (one, _two) = (Podman::on(&both[0]), Podman::on(&both[1]));
    one.start("a", &[], SLEEP);
    one.start("b", &["--network-alias", "backend"], SLEEP);
    let b = one.address("b");
    let conf = one.exec("a", &["/bin/cat", "/etc/resolv.conf"]);
    assert!(conf.contains("nameserver 10.244.1.1"), "{conf}");
    for name in ["b.default.pod", "backend.default.pod"] {
        let found = one.exec("a", &["/bin/nslookup", "-type=a", name]);
        assert!(found.contains(&b), "{name}: {found}");
    }
    one.end();
}

fn a_pod_shares() {
    let machine = one();
    let podman = Podman::on(&machine);
    let infra = [
        "pod",
        "create",
        "--name",
        "shop",
        "--network",
        NETWORK,
        "--infra-image",
        "busybox",
    ];
    said(
        podman.run(
            &[
                &infra[..],
                &["--infra-command", "/bin/sleep 600", "--infra-name", "shop-infra"],
            ]
            .concat(),
        ),
    );
    for name in ["web", "side"] {
        let program: &[&str] = if name == "web" { SERVE } else { SLEEP };
        let start = [
            "run", "-d", "--pod", "shop", "--name", name, "-e", "WHO=web", "busybox",
        ];
        said(podman.run(&[&start[..], program].concat()));
    }
    assert_eq!(machine.pods().len(), 1);
    let page = fetch("127.0.0.1");
    let reached = || {
        let mut fetch = podman.run(&["exec", "side", "/bin/sh", "-c", &page]);
        fetch
            .output()
            .is_ok_and(|out| out.stdout.ends_with(b"hello from web\n"))
    };
    until("the sidecar reaches it on localhost", reached);
    // A connection of the sidecar goes on while the other container restarts.
    podman.start("peer", &[], &["/bin/nc", "-l", "-p", "9000", "-e", "/bin/cat"]);
    let (address, peer) = (podman.address("side"), podman.address("peer"));
    let talk = format!(
        "(echo before; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo after) | nc {peer} 9000 > /tmp/heard"
    );
    said(podman.run(&["exec", "-d", "side", "/bin/sh", "-c", &talk]));
    let heard = |what: &str| {
        let mut heard = podman.run(&["exec", "side", "/bin/cat", "/tmp/heard"]);
        heard
            .output()
            .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(what))
    };
    until("the connection stands", || heard("before"));
    said(podman.run(&["restart", "-t", "0", "web"]));
    podman.exec("side", &["/bin/sh", "-c", "echo > /tmp/go"]);
    until("the connection went on", || heard("after"));
    assert_eq!(podman.address("web"), address);
    assert_eq!(podman.address("side"), address);
    until("it answers again", reached);
    podman.exec("side", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    podman.end();
}

fn address_and_mac() {
    let machine = one();
    let podman = Podman::on(&machine);
    let mac = "02:11:22:33:44:55";
    podman.start("a", &["--ip", "10.244.1.77", "--mac-address", mac], SLEEP);
    assert_eq!(podman.address("a"), "10.244.1.77");
    let link = podman.exec("a", &["/bin/ip", "link", "show", "eth0"]);
    assert!(link.contains(mac), "{link}");
    podman.end();
}

fn an_address_that_is_taken() {
    let machine = one();
    let podman = Podman::on(&machine);
    podman.start("a", &["--ip", "10.244.1.77"], SLEEP);
    for (wish, word) in [
        ("10.244.1.77", "default/a"),
        ("10.9.9.9", "10.244.1.0/24"),
        ("10.244.1.1", "10.244.1.1"),
    ] {
        let b = [
            "run",
            "--rm",
            "--network",
            NETWORK,
            "--ip",
            wish,
            "busybox",
            "/bin/true",
        ];
        let why = refused(podman.run(&b));
        assert!(why.contains(word), "{wish}: {why}");
    }
    assert_eq!(machine.pods(), ["default/a"]);
    podman.end();
}

fn itself_may_be_killed() {
    let machine = one();
    let podman = Podman::on(&machine);
    podman.start("stays", &["-p", "8079:80"], SLEEP);
    for (n, delay) in (20..420).step_by(25).enumerate() {
        let name = format!("c{n}");
        let run = [
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            NETWORK,
            "-p",
            "8080:80",
            "busybox",
            "/bin/sleep",
            "600",
        ];
        let mut run = podman.run(&run);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        // Its own process, and what it started: the plugin may be at any step.
        let _ = run.kill();
        run.wait().unwrap();
        let removed = podman.run(&["rm", "-f", "-t", "0", &name]).output();
        removed.unwrap();
    }
    // podman 4.3 does not collect what it forgot; who does says what there is.
    let id = said(podman.run(&["ps", "-a", "--no-trunc", "--format", "{{.ID}}"]));
    let conf = format!(
        r#"{{"cniVersion": "1.1.0", "name": "{NETWORK}", "type": "podwire-cni", "podwire": {{"socket": "{}"}},
            "cni.dev/valid-attachments": [{{"containerID": "{id}", "ifname": "eth0"}}]}}"#,
        machine.socket().display()
    );
    let file = machine.dir.join("gc.json");
    fs::write(&file, conf).unwrap();
    let mut gc = machine.run(
        &machine.dir.join("plugins/podwire-cni").display().to_string(),
        &[],
    );
    gc.env("CNI_COMMAND", "GC")
        .env("CNI_PATH", machine.dir.join("plugins"));
    let out = gc.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    until("only the one is left", || machine.pods() == ["default/stays"]);
    let published = said(machine.podwire(&["port", "ls"]));
    assert!(
        published.contains("8079") && !published.contains("8080"),
        "{published}"
    );
    podman.exec("stays", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    podman.end();
}

fn the_node_may_die() {
    let machine = one();
    let podman = Podman::on(&machine);
    podman.start("a", &[], SLEEP);
    podman.start("b", &[], SLEEP);
    machine.kill();
    machine.start();
    let b = podman.address("b");
    podman.exec("a", &["/bin/ping", "-c", "1", "-W", "2", &b]);
    machine.kill();
    // A container can be removed without a node, and none can be started.
    said(podman.run(&["rm", "-f", "-t", "0", "a"]));
    let c = ["run", "--rm", "--network", NETWORK, "busybox", "/bin/true"];
    let why = refused(podman.run(&c));
    assert!(why.contains("node"), "{why}");
    machine.start();
    until("only the other is left", || machine.pods() == ["default/b"]);
    podman.exec("b", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    podman.start("a", &[], SLEEP);
    let b = podman.address("b");
    podman.exec("a", &["/bin/ping", "-c", "1", "-W", "2", &b]);
    podman.end();
}
