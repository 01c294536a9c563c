//! Tests that need a machine more of their own than this process has: each runs in a child of the suite, in namespaces
//! that `unshare` makes for it.

use std::path::Path;
use std::process::{Command, ExitCode};

/// What a child says at the end of all it had to do.
const DONE: &str = "the child is done";

/// What a child does, in a directory of its own.
pub type Body = fn(&Path);

/// Tells this program that it is a child: which one, and its directory.
const NAME: &str = "PODWIRE_ETCD_TESTS_CHILD";
const DIR: &str = "PODWIRE_ETCD_TESTS_DIR";

/// Run the child `name` with these namespaces; it must succeed.
pub fn run(name: &str, namespaces: &[&str]) {
    let dir = tempfile::Builder::new()
        .prefix("podwire-etcd-")
        .tempdir()
        .unwrap();
    // Not /proc/self/exe: that would be `unshare` again by then, which starts a shell and is content.
    let program = std::env::current_exe().unwrap();
    let child = Command::new("unshare")
        .args(namespaces)
        .arg(program)
        .env(NAME, name)
        .env(DIR, dir.path())
        .output()
        .expect("unshare runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&child.stdout) + &text(&child.stderr);
    assert!(
        child.status.success() && said.contains(DONE),
        "{name}: {} {said}",
        child.status
    );
    print!("{}", said.replace(DONE, ""));
}

/// In a child: do its part, and end.
pub fn child(all: &[(&str, Body)]) -> Option<ExitCode> {
    let (name, dir) = (std::env::var(NAME).ok()?, std::env::var_os(DIR)?);
    let (_, body) = all.iter().find(|(n, _)| *n == name)?;
    body(Path::new(&dir));
    println!("{DONE}");
    Some(ExitCode::SUCCESS)
}

/// Run a tool, which must succeed.
pub fn tool(name: &str, args: &[&str]) {
    let out = Command::new(name).args(args).output();
    let out = out.unwrap_or_else(|e| panic!("{name}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name} {args:?}: {said}");
}
