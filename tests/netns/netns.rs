//! Network namespaces: made, entered by threads, and configured with `ip`.
//!
//! A network namespace belongs to a thread, and a socket stays in the one it was made in. So a short-lived
//! thread enters, makes what is wanted, and hands it out.
#![allow(unsafe_code)] // unshare(CLONE_NEWNET) has no safe wrapper.

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};

/// A network namespace, which lives as long as this does.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A new one, with nothing in it but `lo`.
    pub fn new() -> Netns {
        let fd = in_thread(|| {
            // SAFETY: the call's contract is about CLONE_FILES, which is not asked for.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
            open("/proc/thread-self/ns/net")
        });
        let new = Netns(fd);
        new.ip("link set lo up");
        new
    }

    /// That of the process `pid`.
    pub fn of(pid: u32) -> Netns {
        Netns(open(&format!("/proc/{pid}/ns/net")))
    }

    /// Do `work` in it, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a namespace of our own");
            work()
        })
    }

    /// Configure it with lines of `ip -batch`.
    ///
    /// # Panics
    /// When `ip` refuses.
    pub fn ip(&self, batch: &str) {
        let mut ip = Command::new("ip");
        ip.args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut ip = self.within(|| ip.spawn()).expect("ip");
        let mut pipe = ip.stdin.take().expect("a pipe");
        pipe.write_all(batch.as_bytes()).expect("ip reads");
        drop(pipe);
        let out = ip.wait_with_output().expect("ip ends");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "ip refuses:\n{batch}\n{said}");
    }

    /// Move an interface of another namespace here.
    pub fn adopt(&self, from: &Netns, interface: &str) {
        // `ip` takes the number of a process, or a name; a descriptor of this process has a path as well.
        let own = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        from.ask("ip", &["link", "set", interface, "netns", &own]);
    }

    /// Run a tool in it.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        self.within(|| command.output())
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Run a tool that must succeed, for what it prints.
    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let out = self.run(program, args);
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{program} {args:?}: {wrong}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}

fn open(path: &str) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Do `work` on a thread that ends with it, and with it the namespace the thread is in.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| s.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
