//! Container runtimes that use podwire as their network, for real: podman with its CNI back end, as root and as an
//! ordinary user, and containerd by `ctr run --cni`; the reference plugins before and after podwire in one chain.
//!
//! ```text
//!   podman, its containers      podman, its containers      a storage each; containers of busybox
//!      | podwire-cni               | podwire-cni
//!   podwire node n1  ====VXLAN==== podwire node n2          a network namespace each: 192.0.2.1, 192.0.2.2
//! ```
//!
//! The suite runs in mount and process namespaces of its own, in which the places that runtimes use (`/run/netns`, `/etc/cni`,
//! `/opt/cni`, `/var/lib/cni`, ...) are empty directories of a temporary one, so that it touches nothing of the host's and
//! sees whatever is left.

mod chain;
mod containerd;
mod cri;
mod flannel;
mod image;
mod machine;
mod podman;
mod rootless;
mod sandboxes;
mod shell;

use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use std::process::{Command, ExitCode};

/// A test: its name and what it does.
type Case = (&'static str, fn());

/// Tells the suite that it is in its own mount namespace: its directory.
const DIR: &str = "PODWIRE_RUNTIMES_DIR";
/// What runtimes share, whatever else they are told.
const PLACES: [&str; 9] = [
    "/run/runc",
    "/run/crun",
    "/run/containerd",
    "/run/netns",
    "/etc/cni",
    "/opt/cni",
    "/var/lib/cni",
    "/run/containers",
    "/var/lib/containers",
];
const TOOLS: [&str; 8] = [
    "podman",
    "containerd",
    "ctr",
    "runc",
    "busybox",
    "nsenter",
    "etcd",
    "etcdctl",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Runtimes lock their storage; each test has its own, but the machine has few cores.
    arguments.test_threads.get_or_insert(2);
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "runtimes: root starts container runtimes here, also for an ordinary user; nothing is tested"
        );
        return ExitCode::SUCCESS;
    }
    let missing: Vec<_> = TOOLS.into_iter().filter(|tool| !shell::installed(tool)).collect();
    if !missing.is_empty() {
        eprintln!("runtimes: {missing:?} missing, so nothing is tested here (tests/run installs them)");
        return ExitCode::SUCCESS;
    }
    match std::env::var_os(DIR) {
        None => supervise(),
        Some(_) => {
            hide();
            let cases = [
                podman::CASES,
                containerd::CASES,
                sandboxes::CASES,
                chain::CASES,
                flannel::CASES,
                rootless::CASES,
            ]
            .concat();
            let trial = |(name, run): Case| {
                Trial::test(name, move || {
                    run();
                    Ok(())
                })
            };
            libtest_mimic::run(&arguments, cases.into_iter().map(trial).collect()).exit_code()
        }
    }
}

/// Run the suite in a mount namespace, and clear its directory behind it.
fn supervise() -> ExitCode {
    let dir = tempfile::Builder::new()
        .prefix("podwire-runtimes-")
        .tempdir()
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let mut suite = Command::new("unshare");
    suite.args(["--mount", "--propagation", "private"]);
    // Whatever a test that failed has left ends with the suite.
    suite.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    suite
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args_os().skip(1))
        .env(DIR, dir.path());
    // Debian keeps some of the tools where only root's PATH leads.
    let path = std::env::var("PATH").unwrap_or_default();
    suite.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let status = suite
        .status()
        .expect("the suite cannot be started (is unshare installed?)");
    // Nothing runs there any more.
    let name = dir.path().file_name().expect("a name");
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let places = hierarchies
        .map(|entry| entry.path())
        .chain(["/sys/fs/cgroup".into()]);
    places.for_each(|place| remove_cgroup(&place.join(name)));
    match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Remove a cgroup, and those in it, if it is there.
fn remove_cgroup(cgroup: &Path) {
    for inside in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if inside.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&inside.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

/// Lay empty directories over the places that runtimes use.
fn hide() {
    for place in PLACES {
        let own = shell::dir().join("places").join(place.trim_start_matches('/'));
        std::fs::create_dir_all(&own).unwrap();
        std::fs::create_dir_all(place).unwrap();
        rustix::mount::mount_bind(&own, place).unwrap();
    }
    // Where an ordinary user finds it too.
    std::fs::copy(env!("CARGO_BIN_EXE_podwire"), machine::podwire()).unwrap();
}
