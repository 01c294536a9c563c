//! Pods that podwire makes itself: user, network, mount, UTS and IPC namespaces around a pause process.

use super::attach::{self, AttachError, Attached};
use super::{hidden, idmap, pause};
use crate::api::AttachRequest;
use crate::api::place::Socket;
use crate::sys::ns::{self, NsError};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The pause process did not start.
    #[error("podwire could not run itself as the pod's pause process: {0}")]
    Start(io::Error),
    /// The kernel gives no user namespace.
    #[error(
        "this kernel gives you no user namespace: {0} (look at `sysctl user.max_user_namespaces`, \
         `kernel.unprivileged_userns_clone` and `kernel.apparmor_restrict_unprivileged_userns`, or at the \
         seccomp profile of the container this runs in)"
    )]
    NoUserNs(io::Error),
    /// The ids could not be mapped.
    #[error(
        "mapping user ids into the pod failed: {0} (root without CAP_SETFCAP cannot; run as an ordinary user)"
    )]
    IdMap(io::Error),
    /// A later step failed.
    #[error("setting up the pod's namespaces failed: {step}: {source}")]
    Step {
        /// The step.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended at once.
    #[error(transparent)]
    Gone(#[from] NsError),
}

/// How a sandbox is made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Podwire's binary; the running one unless told otherwise.
    pub program: PathBuf,
    /// Host name inside.
    pub hostname: String,
    /// Whether the pause process, and each command in the sandbox, dies with the thread that started it.
    pub tied: bool,
    /// The text of its own /etc/resolv.conf; the host's when there is none.
    pub resolv_conf: Option<String>,
}

impl Spec {
    /// A sandbox tied to the calling thread.
    pub fn new(hostname: &str) -> Spec {
        Spec {
            program: "/proc/self/exe".into(),
            hostname: hostname.into(),
            tied: true,
            resolv_conf: None,
        }
    }

    /// Make it.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left then.
    pub fn spawn(self) -> Result<Sandbox, SandboxError> {
        let child = Command::new(&self.program)
            .arg0("podwire")
            .args([pause::VERB, &self.hostname, &self.parent()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(SandboxError::Start)?;
        let pidfd = ns::pidfd(child.id());
        let mut pause = Reaper(Some(child));
        let pidfd = pidfd?;
        let (lifeline, notes) = pause.settle(self.resolv_conf.as_deref())?;
        Ok(Sandbox {
            pause,
            pidfd,
            lifeline: Some(lifeline),
            notes,
            spec: self,
        })
    }

    fn parent(&self) -> String {
        match self.tied {
            true => std::process::id().to_string(),
            false => "-".into(),
        }
    }
}

/// A command that will run in the namespaces of the process `pid`, as [`Sandbox::command`] has it for its own.
pub fn enter<A: AsRef<OsStr>>(
    spec: &Spec,
    pid: u32,
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(&spec.program);
    command
        .arg0("podwire")
        .args([hidden::ENTER, &pid.to_string(), &spec.parent()])
        .arg(program)
        .args(args);
    command
}

/// A running sandbox. Dropping it ends its pause process; what else runs inside is the caller's.
#[derive(Debug)]
pub struct Sandbox {
    pause: Reaper,
    pidfd: OwnedFd,
    /// This side's end, until the pod is left to the node.
    lifeline: Option<ChildStdin>,
    notes: Vec<String>,
    spec: Spec,
}

impl Sandbox {
    /// Make a sandbox that dies with the calling thread.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn spawn(hostname: &str) -> Result<Sandbox, SandboxError> {
        Spec::new(hostname).spawn()
    }

    /// Process id of the pause, which names the namespaces.
    pub fn pid(&self) -> u32 {
        self.pause.0.as_ref().map_or(0, Child::id)
    }

    /// What it lacks, though it works.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A descriptor of the pause, readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the pause has ended.
    pub fn ended(&self) -> bool {
        ns::ended(self.pidfd())
    }

    /// A command that will run inside, to be spawned by this process. Its exit code is that of `program`, or
    /// 127 and 126 as shells have it when it cannot be run.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        enter(&self.spec, self.pid(), program, args)
    }

    /// Hang the sandbox on the node at `socket`; `request.holder` is filled in.
    ///
    /// # Errors
    /// See [`AttachError`]; a sandbox that was left to a node cannot be attached once more.
    pub fn attach(
        &self,
        socket: impl Into<Socket>,
        mut request: AttachRequest,
    ) -> Result<Attached, AttachError> {
        let lifeline = self.lifeline.as_ref().ok_or(NsError::NoProcess(self.pid()))?;
        request.holder = Some(self.pid());
        attach::in_child(&self.spec.program, socket.into(), &request, lifeline.as_fd())
    }

    /// From now on the sandbox ends with the port of the pod that was made of it, at the latest: with a detach
    /// and with the node.
    pub fn leave_to_node(&mut self) {
        self.lifeline = None;
    }

    /// Let the pause live on as long as its pod has a port.
    pub fn release(mut self) {
        self.leave_to_node();
        self.pause.0 = None;
    }
}

/// A child that is killed and awaited when dropped.
#[derive(Debug)]
struct Reaper(Option<Child>);

impl Reaper {
    /// The parent's side of the handshake drawn in [`pause`]; gives the lifeline, and what is not as it should be.
    fn settle(&mut self, resolv_conf: Option<&str>) -> Result<(ChildStdin, Vec<String>), SandboxError> {
        let child = self.0.as_mut();
        let broken = || SandboxError::Start(io::ErrorKind::BrokenPipe.into());
        let child = child.ok_or_else(broken)?;
        let mut to = child.stdin.take().ok_or_else(broken)?;
        let mut from = BufReader::new(child.stdout.take().ok_or_else(broken)?);
        expect(&mut from, "unshared")?;
        idmap::map_child(child.id()).map_err(SandboxError::IdMap)?;
        let conf = serde_json::to_string(&resolv_conf).map_err(|e| SandboxError::Start(e.into()))?;
        to.write_all(format!("mapped\n{conf}\n").as_bytes())
            .map_err(SandboxError::Start)?;
        let notes = expect(&mut from, "ready")?;
        Ok((to, notes))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Both fail only when it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Await `word`; what is noted before it.
fn expect(from: &mut impl BufRead, word: &str) -> Result<Vec<String>, SandboxError> {
    let mut line = String::new();
    let mut notes = Vec::new();
    loop {
        line.clear();
        from.read_line(&mut line).map_err(SandboxError::Start)?;
        match line.strip_prefix("note ") {
            Some(note) => notes.push(note.trim_end().to_string()),
            None => break,
        }
    }
    if line.trim_end() == word {
        return Ok(notes);
    }
    let mut words = line.split_ascii_whitespace();
    match (
        words.next(),
        words.next(),
        words.next().and_then(|n| n.parse().ok()),
    ) {
        (Some("failed"), Some("unshare"), Some(errno)) => {
            Err(SandboxError::NoUserNs(io::Error::from_raw_os_error(errno)))
        }
        (Some("failed"), Some(step), Some(errno)) => Err(SandboxError::Step {
            step: step.into(),
            source: io::Error::from_raw_os_error(errno),
        }),
        _ => Err(SandboxError::Start(io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_becomes_a_sentence() {
        let said = |line: &str| expect(&mut line.as_bytes(), "ready");
        assert!(said("ready\n").is_ok());
        assert_eq!(said("note no luck\nready\n").unwrap(), ["no luck"]);
        assert!(matches!(said(""), Err(SandboxError::Start(_))));
        let e = said("failed unshare 28\n").unwrap_err().to_string();
        assert!(e.contains("user.max_user_namespaces"), "{e}");
        let e = said("failed mount 1\n").unwrap_err().to_string();
        assert!(e.contains("mount: Operation not permitted"), "{e}");
    }
}
