//! Running programs, and waiting for what they bring about.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The directory for the suite's files.
pub fn dir() -> PathBuf {
    std::env::var_os(super::DIR)
        .map(PathBuf::from)
        .expect("the suite runs under its supervisor")
}

/// The cgroup for the suite's containers.
pub fn cgroup() -> String {
    format!("/{}", dir().file_name().unwrap().to_string_lossy())
}

/// Whether a program can be started.
pub fn installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .any(|dir| std::path::Path::new(dir).join(tool).is_file())
}

/// What a command wrote, without the last line end; fails with all that it said when it fails.
pub fn said(mut command: Command) -> String {
    let out = output(&mut command);
    assert!(out.status.success(), "{command:?}: {}", told(&out));
    String::from_utf8_lossy(&out.stdout).trim_end().into()
}

/// What a command said that had to fail.
pub fn refused(mut command: Command) -> String {
    let out = output(&mut command);
    assert!(!out.status.success(), "{command:?} succeeded: {}", told(&out));
    told(&out)
}

/// What a command says that is fed this, and whether it succeeds.
pub fn fed(mut command: Command, input: &str) -> (bool, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut to = child.stdin.take().unwrap();
    // One that does not read is told nothing.
    let _ = to.write_all(input.as_bytes());
    drop(to);
    let out = child.wait_with_output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into())
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null());
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn told(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Wait until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it is not so that {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
