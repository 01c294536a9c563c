//! `podwire exec` across users: a pod's owner decides what its programs are, so they get nothing that the caller
//! holds outside. Makes namespaces with `unshare` of util-linux; needs /dev/net/tun, which `tests/run` opens.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");
/// A user who is not the one that runs the tests.
const NOBODY: u32 = 65_534;

/// A process of the test's own, killed at its end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Start it and wait for its first line.
    fn start(command: &mut Command) -> Process {
        let mut process = Process(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        let pipe = process.0.stdout.as_mut().unwrap();
        BufReader::new(pipe).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} did not come up");
        process
    }

    /// A process in namespaces that `unshare` makes, of this user or another.
    fn unshared(flags: &[&str], user: Option<u32>) -> Process {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", "echo up; exec sleep 60"]);
        if let Some(id) = user {
            command.uid(id).gid(id);
        }
        Process::start(&mut command)
    }
}

/// A node with one pod, "web".
struct World {
    dir: tempfile::TempDir,
    _node: Process,
    _holder: Process,
}

impl World {
    fn new(holder: Process) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(PODWIRE);
        command
            .args(["node", "--name", "t", "--port", "auto", "--log", "warn"])
            .args(["--subnet", "10.244.9.0/24", "--bind", "127.0.0.1", "--socket"])
            .arg(dir.path().join("n.sock"));
        let world = World {
            _node: Process::start(&mut command),
            dir,
            _holder: holder,
        };
        let pid = world._holder.0.id().to_string();
        let out = world
            .podwire(&["attach", "--name", "web", "--pid", &pid])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        world
    }

    fn podwire(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PODWIRE);
        command.arg("--socket").arg(self.path("n.sock")).args(args);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sh(&self, script: &str) -> Output {
        let mut command = self.podwire(&["exec", "web", "--", "sh", "-c", script]);
        command.output().unwrap()
    }
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Nothing is run with an id that counts outside: a program of another user's would have it.
#[test]
fn a_pod_of_another_user_without_root_is_refused() {
    if !root() {
        return; // Nobody else's pod may be entered.
    }
    let of = |map: &[&str]| Process::unshared(map, Some(NOBODY));
    // One of root's own making, where another user is at work.
    let lent = Process::unshared(&["-Umn"], None);
    fs::write(format!("/proc/{}/uid_map", lent.0.id()), format!("5 {NOBODY} 1")).unwrap();
    for (case, holder) in [
        ("another id", of(&["-Umn", "--map-user=5", "--map-group=5"])),
        ("no id", of(&["-Umn"])),
        ("no group", of(&["-Umn", "--map-user=0"])),
        ("lent", lent),
    ] {
        let world = World::new(holder);
        let proof = world.path("proof");
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let out = world.sh(&format!("id > {}", proof.display()));
        let said = stderr(&out);
        assert_eq!(out.status.code(), Some(3), "{case}: {said}");
        assert!(said.contains("--map-root-user"), "{case}: {said}");
        assert_eq!(said.lines().count(), 1, "{case}: {said}");
        assert!(!proof.exists(), "{case}: the command was run");
    }
}

#[test]
fn our_own_id_may_be_any_in_a_pod_of_ours() {
    for (map, ids) in [
        (&["-Umn", "--map-user=5", "--map-group=5"] as &[_], "5 5"),
        (&["-Urmn"], "0 0"),
        (&["-Umn", "--map-user=0"], "0 65534"),
        (&["-Un"], "65534 65534"),
    ] {
        let world = World::new(Process::unshared(map, None));
        let mut command = world.podwire(&["exec", "web", "--", "sh", "-c", "echo $(id -u; id -g) $OURS"]);
        let out = command.env("OURS", "kept").output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(said, format!("{ids} kept\n"), "{map:?}: {}", stderr(&out));
    }
}

#[test]
fn a_pod_of_another_user_gets_nothing_of_ours() {
    if !root() {
        return; // Nobody else's pod may be entered.
    }
    let world = World::new(Process::unshared(&["-Urmn"], Some(NOBODY)));
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let secret = fs::File::open("/etc/shadow").unwrap();
    let script = format!(
        "touch {}; head -c 1 /etc/shadow; grep -E '^(Groups|Seccomp):' /proc/self/status; env; ls /proc/self/fd",
        world.path("made").display()
    );
    let command = world.podwire(&["exec", "web", "--", "sh", "-c", &script]);
    // Descriptors are inherited from root's scripts, groups from root's session.
    let line = "exec 9<&0 </dev/null; exec setpriv --groups 0,4 \"$@\"";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", line, "sh", PODWIRE])
        .args(command.get_args())
        .stdin(secret);
    let out = shell
        .env("TOKEN", "secret")
        .env("TERM", "vt100")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(stderr(&out).contains("/etc/shadow"), "it was read:\n{said}");
    let made = fs::metadata(world.path("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    assert!(lines.contains(&"Groups:"), "{said}");
    assert!(
        lines.contains(&"Seccomp:\t2"),
        "it may type into our terminal:\n{said}"
    );
    assert!(!said.contains("TOKEN") && lines.contains(&"TERM=vt100"), "{said}");
    assert!(!lines.contains(&"9"), "a descriptor came along:\n{said}");
}
