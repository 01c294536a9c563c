//! Commands podwire gives itself: processes of their own because entering a user namespace has no way back,
//! and because what a process must be before it is anything else is best arranged by itself.

use super::{attach, pause};
use crate::sys::ns;
use crate::sys::rights::Whose;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The verb behind [`super::sandbox::Sandbox::command`]: `podwire __enter PID PARENT COMMAND ARG...`.
pub const ENTER: &str = "__enter";

/// `podwire __tied PARENT ARG...`: be `podwire ARG...`, and die with the thread of PARENT that started this.
pub const TIED: &str = "__tied";

/// Run the hidden command that the arguments name; `None` when they name none. To be called first thing in
/// `main`, before a thread is made.
pub fn main() -> Option<ExitCode> {
    let mut argv = std::env::args_os().skip(1);
    let verb = argv.next()?;
    let verb = verb.to_str()?;
    if [pause::VERB, ENTER, attach::VERB].contains(&verb) {
        crate::sys::signal::unblock_all();
    }
    match verb {
        pause::VERB => {
            let hostname = argv.next()?.into_string().ok()?;
            let parent = parent(&argv.next()?)?;
            Some(pause::main(&hostname, parent))
        }
        ENTER => {
            let pid = argv.next()?.to_str()?.parse().ok()?;
            let parent = parent(&argv.next()?)?;
            Some(enter(pid, parent, argv.collect()))
        }
        attach::VERB => Some(attach::main(argv.next()?.to_str()?)),
        TIED => {
            let parent = parent(&argv.next()?)?;
            Some(tied(parent, argv.collect()))
        }
        _ => None,
    }
}

/// What a program of another user's gets to know of our environment; what starts with `LC_` as well.
const HARMLESS: [&str; 5] = ["PATH", "TERM", "COLORTERM", "NO_COLOR", "LANG"];

/// Replace this process by `command`, a program of `whose`; returns only when that fails, with the exit code
/// shells use.
pub fn exec(command: &[OsString], whose: Whose) -> u8 {
    let Some((program, args)) = command.split_first() else {
        return 127;
    };
    let mut command = Command::new(program);
    if whose == Whose::Others {
        let harmless = |name: &OsString| {
            let name = name.to_str().unwrap_or_default();
            HARMLESS.contains(&name) || name.starts_with("LC_")
        };
        command.env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| harmless(name)));
    }
    let e = command.args(args).exec();
    complain(format_args!(
        "{} cannot be run in the pod: {e}",
        program.display()
    ));
    if e.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}

fn enter(pid: u32, parent: Option<u32>, command: Vec<OsString>) -> ExitCode {
    let whose = match ns::join(pid) {
        Ok(whose) => whose,
        Err(e) => {
            complain(e);
            return ExitCode::from(126);
        }
    };
    // After joining: a change of ids clears the death signal.
    if let Some(Err(e)) = parent.map(pause::die_with) {
        complain(e);
        return ExitCode::from(126);
    }
    ExitCode::from(exec(&command, whose))
}

fn tied(parent: Option<u32>, args: Vec<OsString>) -> ExitCode {
    if let Some(Err(e)) = parent.map(pause::die_with) {
        complain(e);
        return ExitCode::FAILURE;
    }
    // The death signal outlives exec.
    let e = Command::new("/proc/self/exe").arg0("podwire").args(args).exec();
    complain(format_args!("it could not run itself: {e}"));
    ExitCode::FAILURE
}

/// One line to standard error, which may be closed or full.
fn complain(what: impl Display) {
    let _ = writeln!(io::stderr(), "podwire: {what}");
}

/// A process id, or `-` for none.
fn parent(word: &OsString) -> Option<Option<u32>> {
    match word.to_str()? {
        "-" => Some(None),
        pid => pid.parse().ok().map(Some),
    }
}
