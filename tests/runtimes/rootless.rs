//! podman, and the node, of an ordinary user.

use super::Case;
use super::machine::{Machine, NETWORK, of_user};
use super::podman::{containers_conf, fetch, file_system};
use super::shell::{dir, said, until};
use std::fs;
use std::process::Command;
use std::sync::Once;

/// Tests.
pub const CASES: &[Case] = &[(
    "rootless::containers_of_an_ordinary_user",
    containers_of_an_ordinary_user,
)];

/// The user, who exists in this suite only, with subordinate ids (subuid(5)).
pub const USER: &str = "podwire-rt";
const ID: u32 = 64_321;

/// Have the user from now on.
pub fn make_user() {
    static MADE: Once = Once::new();
    MADE.call_once(|| {
        let home = dir().join("home");
        fs::create_dir_all(&home).unwrap();
        let lines = [
            (
                "/etc/passwd",
                format!("{USER}:x:{ID}:{ID}::{}:/bin/sh\n", home.display()),
            ),
            ("/etc/group", format!("{USER}:x:{ID}:\n")),
            ("/etc/shadow", format!("{USER}:!::0:99999:7:::\n")),
            ("/etc/subuid", format!("{USER}:300000:65536\n")),
            ("/etc/subgid", format!("{USER}:300000:65536\n")),
        ];
        for (file, line) in lines {
            let own = dir().join("places").join(file.trim_start_matches('/'));
            let text = fs::read_to_string(file).unwrap_or_default();
            fs::write(&own, text + &line).unwrap();
            if !std::path::Path::new(file).exists() {
                fs::write(file, "").unwrap();
            }
            rustix::mount::mount_bind(&own, file).unwrap();
        }
        give(&home);
    });
}

/// Let the user have a directory and all in it.
pub fn give(path: &std::path::Path) {
    let mut command = Command::new("chown");
    command.arg("-R").arg(format!("{ID}:{ID}")).arg(path);
    said(command);
}

fn podman(machine: &Machine, args: &[&str]) -> Command {
    let place = |name: &str| machine.dir.join(name).display().to_string();
    let (root, runroot) = (place("storage"), place("runroot"));
    let all = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
    let mut command = machine.run("podman", &[&all[..], args].concat());
    command.env("CONTAINERS_CONF", machine.dir.join("containers.conf"));
    command
}

fn containers_of_an_ordinary_user() {
    let machine = of_user();
    fs::write(machine.dir.join("containers.conf"), containers_conf(&machine.dir)).unwrap();
    let run = |args: &[&str]| said(podman(&machine, args));
    run(&["import", &file_system().display().to_string(), "busybox"]);
    let serve = "echo hello > /www/index.html; exec /bin/httpd -f -p 80 -h /www";
    run(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        NETWORK,
        "-p",
        "8080:80",
        "busybox",
        "/bin/sh",
        "-c",
        serve,
    ]);
    run(&[
        "run",
        "-d",
        "--name",
        "a",
        "--network",
        NETWORK,
        "busybox",
        "/bin/sleep",
        "600",
    ]);
    assert_eq!(machine.pods(), ["default/a", "default/web"]);
    let pods: serde_json::Value = serde_json::from_str(&said(machine.podwire(&["pods", "--json"]))).unwrap();
    let address = pods[1]["addresses"][0].as_str().unwrap().to_string();
    let page = fetch(&address);
    let page = ["exec", "a", "/bin/sh", "-c", &page];
    until("the other answers", || {
        let fetched = podman(&machine, &page).output();
        fetched.is_ok_and(|out| out.stdout.ends_with(b"hello\n"))
    });
    assert!(run(&["exec", "a", "/bin/nslookup", "-type=a", "web.default.pod"]).contains(&address));
    let url = "http://127.0.0.1:8080/";
    assert_eq!(said(machine.run("curl", &["-sf", "-m", "5", url])), "hello");
    run(&["rm", "-fa", "-t", "0"]);
    assert_eq!(machine.pods(), Vec::<String>::new());
}
