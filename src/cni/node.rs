//! Reaching the node, with one policy for what may pass by itself: it is asked again a few times, for a second and a half
//! at most, and then the runtime is told to try again.

use super::conf::Conf;
use super::error::{CniError, Code};
use crate::api::place::{self, PlaceError};
use crate::api::{ApiError, Client, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Milliseconds between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Patience(&'static [u64]);

/// Of ADD and CHECK: a node that is started again is there by then.
pub const PATIENT: Patience = Patience(&[20, 50, 100, 200, 400, 800]);
/// Of DEL and GC, which can do without.
pub const BRIEF: Patience = Patience(&[20, 50, 100]);
/// Of STATUS, which tells how it is.
pub const NONE: Patience = Patience(&[]);

/// Why a node was not asked, or did not do it.
#[derive(Debug)]
pub enum Trouble {
    /// It may work later.
    Away(String),
    /// It runs, and serves others.
    Busy(String),
    /// It hangs: it has had all the time there is.
    Hung(String),
    /// What the runtime is to be told.
    Told(CniError),
    /// The node said no.
    Refused(ErrorKind, String),
}

impl From<ApiError> for Trouble {
    fn from(e: ApiError) -> Trouble {
        match e {
            ApiError::Refused {
                kind: ErrorKind::Waiting,
                message,
            } => Trouble::Away(message),
            ApiError::Refused { kind, message } => Trouble::Refused(kind, message),
            ApiError::Timeout { .. } => Trouble::Hung(e.to_string()),
            ApiError::NoNode { .. } | ApiError::Broken { .. } => Trouble::Away(e.to_string()),
            ApiError::Permission { .. } | ApiError::Stranger { .. } => {
                Trouble::Told(CniError::new(Code::Permission, e))
            }
            ApiError::Version { .. } | ApiError::Garbled { .. } => {
                Trouble::Told(CniError::new(Code::Failed, e))
            }
        }
    }
}

impl From<CniError> for Trouble {
    fn from(e: CniError) -> Trouble {
        Trouble::Told(e)
    }
}

impl From<Trouble> for CniError {
    fn from(trouble: Trouble) -> CniError {
        match trouble {
            Trouble::Away(why) | Trouble::Busy(why) | Trouble::Hung(why) => {
                CniError::new(Code::TryAgain, why)
            }
            Trouble::Told(e) => e,
            Trouble::Refused(kind, message) => CniError::new(code(kind), message),
        }
    }
}

/// What a refusal is to a runtime.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Usage => Code::Config,
        ErrorKind::Taken => Code::Taken,
        ErrorKind::NotFound => Code::UnknownContainer,
        ErrorKind::Exhausted | ErrorKind::Waiting => Code::TryAgain,
        ErrorKind::Permission => Code::Permission,
        ErrorKind::Internal => Code::Failed,
    }
}

/// Do `work` with the node; again, on a new connection, while it is away. A busy node has the patience of ADD, unless
/// there is none; one that hangs is not asked again.
///
/// # Errors
/// The last one's.
pub fn with<T>(
    conf: &Conf,
    patience: Patience,
    work: impl FnMut(&mut Client) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    with_kept(conf, patience, work).map(|(_, done)| done)
}

/// The same, with the connection on which it was done.
///
/// # Errors
/// The last one's.
pub fn with_kept<T>(
    conf: &Conf,
    patience: Patience,
    mut work: impl FnMut(&mut Client) -> Result<T, Trouble>,
) -> Result<(Client, T), Trouble> {
    let busy = if patience.0.is_empty() { NONE } else { PATIENT };
    let mut asked = 0;
    loop {
        let done = connect(conf).and_then(|mut client| {
            let done = work(&mut client)?;
            Ok((client, done))
        });
        let pause = match &done {
            Err(Trouble::Away(_)) => patience.0.get(asked),
            Err(Trouble::Busy(_)) => busy.0.get(asked),
            _ => None,
        };
        let Some(pause) = pause else { return done };
        sleep(Duration::from_millis(*pause));
        asked += 1;
    }
}

fn connect(conf: &Conf) -> Result<Client, Trouble> {
    let socket = place::for_client(conf.socket.as_deref()).map_err(|e| match e {
        PlaceError::None(_) => Trouble::Away(
            e.to_string()
                .replace("--socket", "podwire.socket in the conflist"),
        ),
        _ => CniError::config("podwire.socket", e.to_string().replace("--socket ", "")).into(),
    })?;
    Client::connect(&socket).map_err(|e| match e {
        // It has not even said hello: too many clients, or out of files.
        ApiError::Refused { message, .. } => Trouble::Busy(message),
        other => other.into(),
    })
}

/// Sockets of the nodes that may have this network's pods, though they do not answer: those that left something behind.
pub fn absent(conf: &Conf) -> Vec<PathBuf> {
    let remains = |socket: &Path| socket.exists() || socket.with_extension("keep").exists();
    let named = conf.socket.clone().or_else(|| {
        let named = std::env::var_os("PODWIRE_SOCKET").filter(|p| !p.is_empty());
        named.map(PathBuf::from)
    });
    if let Some(socket) = named {
        return Some(socket).filter(|s| remains(s)).into_iter().collect();
    }
    let entries = place::directories()
        .into_iter()
        // Anybody can make one in /tmp.
        .filter(|dir| place::ours_alone(dir).is_ok())
        .filter_map(|dir| std::fs::read_dir(dir).ok());
    let files = entries.flatten().flatten().map(|e| e.path());
    let mut sockets: Vec<PathBuf> = files
        .filter(|p| p.extension().is_some_and(|e| e == "sock" || e == "keep"))
        .map(|p| p.with_extension("sock"))
        .collect();
    sockets.sort();
    sockets.dedup();
    sockets
}
