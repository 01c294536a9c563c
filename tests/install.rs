//! `podwire install` and `podwire uninstall`, by the program itself, below directories of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

struct Machine {
    dir: TempDir,
    /// Who installs: an ordinary user where the tests are root's, too.
    ordinary: bool,
}

impl Machine {
    fn new() -> Machine {
        let dir = TempDir::new().expect("a directory");
        Machine { dir, ordinary: false }
    }

    /// One whose user has no rights: the tests' own, or nobody.
    fn of_ordinary_user() -> Machine {
        let machine = Machine {
            ordinary: true,
            ..Machine::new()
        };
        let dir = machine.dir.path();
        fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).expect("a mode");
        // What root built may lie where nobody else looks.
        fs::copy(PODWIRE, dir.join("podwire")).expect("a copy");
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn run(&self, args: &[&str]) -> Output {
        let own = self.at("podwire");
        let program = if self.ordinary {
            own.as_path()
        } else {
            Path::new(PODWIRE)
        };
        let is_root = rustix::process::geteuid().is_root();
        let mut command = match self.ordinary && is_root {
            false => Command::new(program),
            true => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                    .arg(program);
                command
            }
        };
        command
            .args(args)
            .env("HOME", self.at("home"))
            .env_remove("XDG_STATE_HOME");
        command.env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
        command.output().expect("podwire runs")
    }

    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {wrong}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let wrong = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {wrong}");
        wrong
    }

    /// Every file and link below a directory.
    fn files(&self, below: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut dirs = vec![self.at(below)];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let kind = entry.file_type().expect("a kind");
                match kind.is_dir() {
                    true => dirs.push(entry.path()),
                    false => all.push(
                        entry
                            .path()
                            .strip_prefix(self.dir.path())
                            .unwrap()
                            .display()
                            .to_string(),
                    ),
                }
            }
        }
        all.sort();
        all
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn a_dry_run_shows_what_an_install_writes_and_changes_nothing() {
    let machine = Machine::new();
    let root = machine.at("root").display().to_string();
    for what in ["cni", "systemd"] {
        let args = [
            "install",
            what,
            "--prefix",
            &root,
            "--program",
            "/usr/bin/podwire",
        ];
        let shown = machine.done(&[&args[..], &["--dry-run"]].concat());
        assert_eq!(machine.files("root"), [""; 0], "{what}");
        assert!(!machine.at("root").exists());
        machine.done(&args);
        for file in machine.files("root").iter().filter(|f| !f.contains(".install")) {
            let path = machine.at(file);
            assert!(shown.contains(&path.display().to_string()), "{shown}");
            if !path.is_symlink() {
                let text = fs::read_to_string(&path).expect("a text");
                for line in text.lines() {
                    assert!(
                        shown.contains(&format!("    {line}\n")),
                        "{line} is not in\n{shown}"
                    );
                }
                assert_eq!(mode(&path), 0o644);
            }
        }
        let again = machine.done(&args);
        assert!(
            again.contains("is there as it should be") && !again.contains("wrote"),
            "{again}"
        );
        let shown = machine.done(&["uninstall", what, "--prefix", &root, "--dry-run"]);
        assert!(shown.contains("would remove"), "{shown}");
        machine.done(&["uninstall", what, "--prefix", &root]);
        assert_eq!(machine.files("root"), [""; 0]);
        let nothing = machine.done(&["uninstall", what, "--prefix", &root]);
        assert!(nothing.contains("nothing of podwire"), "{nothing}");
        fs::remove_dir_all(machine.at("root")).expect("it goes");
    }
}

#[test]
fn a_plugin_is_a_link_or_a_copy_where_the_runtime_looks() {
    let machine = Machine::new();
    let root = machine.at("root").display().to_string();
    let args = [
        "install",
        "cni",
        "--prefix",
        &root,
        "--bin-dir",
        "/usr/lib/cni",
        "--network",
        "web",
    ];
    machine.done(&[&args[..], &["--program", "/usr/bin/podwire"]].concat());
    let plugin = machine.at("root/usr/lib/cni/podwire-cni");
    assert_eq!(
        fs::read_link(&plugin).expect("a link"),
        Path::new("/usr/bin/podwire")
    );
    let list = fs::read(machine.at("root/etc/cni/net.d/10-web.conflist")).expect("a conflist");
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["name"], "web");
    assert_eq!(list["plugins"][0]["type"], "podwire-cni");
    // A copy takes the place of the own link.
    machine.done(&[&args[..], &["--copy", "--program", PODWIRE]].concat());
    assert!(!plugin.is_symlink());
    assert_eq!(mode(&plugin), 0o755);
    assert_eq!(fs::read(&plugin).unwrap(), fs::read(PODWIRE).unwrap());
    machine.done(&["uninstall", "cni", "--prefix", &root]);
    assert_eq!(machine.files("root"), [""; 0]);
    let wrong = machine.fails(&["install", "cni", "--prefix", &root, "--network", "../x"], 2);
    assert!(wrong.contains("no network's name"), "{wrong}");
}

/// What root's runtimes run must be root's: a link would hand root to whoever may write the program. Only root can see that.
#[test]
fn root_is_not_linked_to_a_program_that_others_may_write() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let machine = Machine::new();
    let (dir, program, link) = (machine.at("open"), machine.at("open/podwire"), machine.at("link"));
    fs::create_dir(&dir).expect("a directory");
    fs::copy(PODWIRE, &program).expect("a copy");
    std::os::unix::fs::symlink(&program, &link).expect("a link");
    let by = |file: &Path, more: &[&str]| {
        let file = file.display().to_string();
        let args = ["install", "cni", "--dry-run", "--program", &file];
        let args = [&args[..], more].concat();
        let out = machine.run(&args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code(), said)
    };
    let modes = |dir_mode: u32, file_mode: u32| {
        fs::set_permissions(&dir, PermissionsExt::from_mode(dir_mode)).expect("a mode");
        fs::set_permissions(&program, PermissionsExt::from_mode(file_mode)).expect("a mode");
    };
    modes(0o755, 0o755);
    assert_eq!(by(&program, &[]).0, Some(0));
    let root = machine.at("root").display().to_string();
    for (dir_mode, file_mode, named) in [(0o777, 0o755, &dir), (0o755, 0o775, &program)] {
        modes(dir_mode, file_mode);
        for file in [&program, &link] {
            let (code, wrong) = by(file, &[]);
            assert_eq!(code, Some(3), "{wrong}");
            for words in [named.to_str().expect("text"), "--copy"] {
                assert!(wrong.contains(words), "{wrong}");
            }
        }
        // A copy is root's own, and a package's program is wherever it will be.
        assert_eq!(by(&program, &["--copy"]).0, Some(0));
        assert_eq!(by(&program, &["--prefix", &root]).0, Some(0));
    }
    modes(0o755, 0o755);
    // Nor is it by a link that somebody else may replace: to the program, or to its folder.
    let shared = machine.at("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::set_permissions(&shared, PermissionsExt::from_mode(0o777)).expect("a mode");
    let (inner, folder) = (shared.join("podwire"), shared.join("folder"));
    std::os::unix::fs::symlink("../open/podwire", &inner).expect("a link");
    std::os::unix::fs::symlink(&dir, &folder).expect("a link");
    let outer = machine.at("outer");
    std::os::unix::fs::symlink(&inner, &outer).expect("a link");
    for file in [&inner, &outer, &folder.join("podwire")] {
        let (code, wrong) = by(file, &[]);
        assert_eq!(code, Some(3), "{}: {wrong}", file.display());
        assert!(wrong.contains(shared.to_str().expect("text")), "{wrong}");
    }
    assert_eq!(by(&link, &[]).0, Some(0));
    std::os::unix::fs::chown(&program, Some(65534), None).expect("root may");
    assert_eq!(by(&program, &[]).0, Some(3));
}

#[test]
fn uninstall_says_that_pods_stay() {
    let machine = Machine::new();
    let help = machine.done(&["uninstall", "--help"]);
    assert!(help.contains("podwire detach"), "{help}");
}

#[test]
fn what_others_wrote_or_changed_is_neither_replaced_nor_removed() {
    let machine = Machine::new();
    let root = machine.at("root").display().to_string();
    let unit = machine.at("root/etc/systemd/system/podwire.service");
    fs::create_dir_all(unit.parent().unwrap()).expect("a directory");
    fs::write(&unit, "mine").expect("a file");
    let args = [
        "install",
        "systemd",
        "--prefix",
        &root,
        "--program",
        "/usr/bin/podwire",
    ];
    for dry in [&["--dry-run"][..], &[]] {
        let wrong = machine.fails(&[&args[..], dry].concat(), 5);
        assert!(
            wrong.contains("podwire.service") && wrong.contains("move it away"),
            "{wrong}"
        );
    }
    assert_eq!(machine.files("root"), ["root/etc/systemd/system/podwire.service"]);
    fs::remove_file(&unit).expect("it goes");
    // Another program: the own unit is replaced.
    machine.done(&args);
    machine.done(&[
        "install",
        "systemd",
        "--prefix",
        &root,
        "--program",
        "/opt/podwire",
    ]);
    let text = fs::read_to_string(&unit).expect("a unit");
    assert!(text.contains("ExecStart=/opt/podwire node"), "{text}");
    // Changed by hand: it stays, the directories too, and the rest goes.
    fs::write(&unit, text + "# mine\n").expect("a file");
    machine.fails(&args, 5);
    let told = machine.done(&["uninstall", "systemd", "--prefix", &root]);
    assert!(
        told.contains("left ") && told.contains("somebody changed it"),
        "{told}"
    );
    assert_eq!(machine.files("root"), ["root/etc/systemd/system/podwire.service"]);
    // Removed by hand: that is as well.
    fs::remove_file(&unit).expect("it goes");
    machine.done(&args);
    fs::remove_file(&unit).expect("it goes");
    let told = machine.done(&["uninstall", "systemd", "--prefix", &root]);
    assert!(told.contains("was gone already"), "{told}");
    // A record that is none.
    let record = machine.at("root/var/lib/podwire/.install/systemd.json");
    fs::create_dir_all(record.parent().unwrap()).expect("a directory");
    fs::write(&record, "{").expect("a file");
    let wrong = machine.fails(&["uninstall", "systemd", "--prefix", &root], 1);
    assert!(wrong.contains("no record of podwire's"), "{wrong}");
}

#[test]
fn a_package_is_unpacked_elsewhere_and_uninstalled_there() {
    let machine = Machine::new();
    let (from, to) = (machine.at("destdir"), machine.at("image"));
    let args = ["install", "cni", "--program", "/usr/bin/podwire", "--prefix"];
    machine.done(&[&args[..], &[&from.display().to_string()]].concat());
    fs::rename(&from, &to).expect("it moves");
    machine.done(&["uninstall", "cni", "--prefix", &to.display().to_string()]);
    assert_eq!(machine.files("image"), [""; 0]);
}

#[test]
fn a_user_installs_for_himself_and_is_told_of_root_otherwise() {
    let machine = Machine::of_ordinary_user();
    let shown = machine.done(&["install", "cni", "--user"]);
    assert!(shown.contains("containers.conf"), "{shown}");
    machine.done(&["install", "systemd", "--user"]);
    let files: Vec<String> = machine
        .files("home")
        .into_iter()
        .filter(|f| !f.contains(".install"))
        .collect();
    assert_eq!(
        files,
        [
            "home/.config/cni/net.d/10-podwire.conflist",
            "home/.config/systemd/user/podwire.service",
            "home/.local/lib/cni/podwire-cni"
        ]
    );
    let unit = fs::read_to_string(machine.at("home/.config/systemd/user/podwire.service")).expect("a unit");
    let config = machine.at("home/.config/podwire/podwire.toml");
    assert!(unit.contains(&format!("--config {}", config.display())), "{unit}");
    machine.done(&["uninstall", "cni", "--user"]);
    machine.done(&["uninstall", "systemd", "--user"]);
    assert_eq!(machine.files("home"), [""; 0]);
    for what in ["cni", "systemd"] {
        let wrong = machine.fails(&["install", what], 3);
        assert!(
            wrong.contains("sudo podwire") && wrong.contains("--user"),
            "{wrong}"
        );
    }
    // A dry run needs no rights.
    machine.done(&["install", "systemd", "--dry-run"]);
}

/// What systemd itself says of the units.
#[test]
fn systemd_takes_the_units() {
    let machine = Machine::new();
    let found = Command::new("systemd-analyze").arg("--version").output();
    if found.is_err() {
        eprintln!("skipped: systemd-analyze is not installed (Debian's package systemd)");
        return;
    }
    let root = machine.at("root").display().to_string();
    // It looks for the program.
    machine.done(&["install", "systemd", "--prefix", &root, "--program", PODWIRE]);
    machine.done(&["install", "systemd", "--user", "--program", PODWIRE]);
    for (unit, user) in [
        ("root/etc/systemd/system/podwire.service", "--system"),
        ("home/.config/systemd/user/podwire.service", "--user"),
    ] {
        let mut verify = Command::new("systemd-analyze");
        verify.env("XDG_RUNTIME_DIR", machine.dir.path());
        let out = verify
            .args([user, "verify"])
            .arg(machine.at(unit))
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let about: Vec<&str> = said.lines().filter(|l| l.contains("podwire.service")).collect();
        assert!(out.status.success() && about.is_empty(), "{unit}: {said}");
    }
}

/// What was there before is another's, however alike; so is what lies beside it.
#[test]
fn an_uninstall_leaves_what_install_did_not_write() {
    let machine = Machine::new();
    let root = machine.at("root").display().to_string();
    let install = [
        "install",
        "systemd",
        "--prefix",
        &root,
        "--program",
        "/usr/bin/podwire",
    ];
    let uninstall = ["uninstall", "systemd", "--prefix", &root];
    let unit = machine.at("root/etc/systemd/system/podwire.service");
    machine.done(&install);
    let text = fs::read(&unit).expect("a unit");
    machine.done(&uninstall);
    let beside = unit.with_extension("service.new");
    fs::create_dir_all(unit.parent().unwrap()).expect("a directory");
    fs::write(&beside, "precious").expect("a file");
    machine.done(&install);
    machine.done(&uninstall);
    assert_eq!(fs::read(&beside).expect("it is left"), b"precious");
    fs::write(&unit, &text).expect("the same by another hand");
    machine.done(&install);
    machine.done(&uninstall);
    assert_eq!(fs::read(&unit).expect("it is left"), text);
}
