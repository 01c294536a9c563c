//! Reaching the node, with one policy for what may pass by itself: it is asked again a few times, for a second and a half
//! at most, and then the runtime is told to try again. All that one call of the plugin asks shares one deadline.

use super::conf::Conf;
use super::error::{CniError, Code};
use crate::api::place::{self, PlaceError, Socket};
use crate::api::{ApiError, Client, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

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
    /// It is of another generation, and does not understand, or is not understood.
    Unfit(String),
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
            ApiError::Timeout { .. } | ApiError::Late { .. } => Trouble::Hung(e.to_string()),
            ApiError::NoNode { .. } | ApiError::Broken { .. } => Trouble::Away(e.to_string()),
            ApiError::Permission { .. } | ApiError::Stranger { .. } => {
                Trouble::Told(CniError::new(Code::Permission, e))
            }
            ApiError::Version { .. } | ApiError::Garbled { .. } => Trouble::Unfit(e.to_string()),
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
            Trouble::Unfit(why) => CniError::new(Code::Failed, why),
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

/// The way to a node.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its socket; that of the only node of this user when none.
    socket: Option<Socket>,
    /// When all that is asked must be over.
    until: Instant,
}

impl Way {
    /// To the node that the configuration means.
    pub fn to(conf: &Conf, until: Instant) -> Way {
        let socket = named(conf).map(|path| Socket { path, named: true });
        Way { socket, until }
    }

    /// To each node that may have an attachment of the configuration: the one that is named, or all of this user.
    pub fn to_each(conf: &Conf, until: Instant) -> Vec<Way> {
        let found = |path| Socket { path, named: false };
        let sockets = match named(conf) {
            Some(path) => vec![Socket { path, named: true }],
            None => all().into_iter().map(found).collect(),
        };
        let way = |socket| Way {
            socket: Some(socket),
            until,
        };
        sockets.into_iter().map(way).collect()
    }

    /// The socket of its node, when that left something behind: it may have pods, though it does not answer.
    pub fn remains(&self) -> Option<&Path> {
        let path = self.socket.as_ref()?.path.as_path();
        remains(path).then_some(path)
    }

    fn connect(&self) -> Result<Client, Trouble> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => only()?,
        };
        Client::connect_until(&socket, Some(self.until)).map_err(|e| match e {
            // It has not even said hello: too many clients, or out of files.
            ApiError::Refused { message, .. } => Trouble::Busy(message),
            other => other.into(),
        })
    }
}

/// Whether something is there of the node at `socket`, or of its keeper.
pub fn remains(socket: &Path) -> bool {
    socket.exists() || socket.with_extension("keep").exists()
}

/// Whether neither the node at `socket` is there any more nor its keeper, which had its pods.
pub fn is_deserted(socket: &Path) -> bool {
    place::is_deserted(socket) && place::is_deserted(&socket.with_extension("keep"))
}

/// Do `work` with the node; again, on a new connection, while it is away. A busy node has the patience of ADD, unless
/// there is none; one that hangs is not asked again.
///
/// # Errors
/// The last one's.
pub fn with<T>(
    way: &Way,
    patience: Patience,
    work: impl FnMut(&mut Client) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    with_kept(way, patience, work).map(|(_, done)| done)
}

/// The same, with the connection on which it was done.
///
/// # Errors
/// The last one's.
pub fn with_kept<T>(
    way: &Way,
    patience: Patience,
    mut work: impl FnMut(&mut Client) -> Result<T, Trouble>,
) -> Result<(Client, T), Trouble> {
    let busy = if patience.0.is_empty() { NONE } else { PATIENT };
    let mut asked = 0;
    loop {
        let done = way.connect().and_then(|mut client| {
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

/// The only node there is. With several it is not guessed which one is meant, also when all but one are away: that one may be
/// the wrong one.
fn only() -> Result<Socket, Trouble> {
    let all = all();
    if all.len() > 1 {
        let paths: Vec<String> = all.iter().map(|path| path.display().to_string()).collect();
        let files = |path: &PathBuf| [path.clone(), path.with_extension("keep")];
        let dead = all.iter().filter(|path| is_deserted(path)).flat_map(files);
        let dead = dead.filter(|path| path.exists());
        let dead: Vec<String> = dead.map(|path| path.display().to_string()).collect();
        let remove = match dead.is_empty() {
            true => String::new(),
            false => format!(", or, if that node does not come back, remove {}", dead.join(" ")),
        };
        let what = format!(
            "several podwire nodes are here: {} (name one{remove})",
            paths.join(", ")
        );
        return Err(CniError::config("podwire.socket", what).into());
    }
    place::for_client(None).map_err(|e| match e {
        PlaceError::None(_) => Trouble::Away(
            e.to_string()
                .replace("--socket", "podwire.socket in the conflist"),
        ),
        _ => CniError::config("podwire.socket", e.to_string().replace("--socket ", "")).into(),
    })
}

/// The socket that somebody named.
fn named(conf: &Conf) -> Option<PathBuf> {
    conf.socket.clone().or_else(|| {
        let named = std::env::var_os("PODWIRE_SOCKET").filter(|p| !p.is_empty());
        named.map(PathBuf::from)
    })
}

/// Sockets of this user's nodes that are there, or left something behind.
fn all() -> Vec<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PROTOCOL, Request};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// A node that greets, and then is busy with something else: the time that is left is all that it gets, and who waits is
    /// told for what.
    #[test]
    fn all_questions_share_one_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let node = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.next().unwrap().unwrap();
            let hello =
                format!("{{\"reply\":\"hello\",\"protocol\":{PROTOCOL},\"node\":\"n1\",\"version\":\"0\"}}");
            writeln!(&stream, "{hello}").unwrap();
            lines.count()
        });
        let way = Way {
            socket: Some((&path).into()),
            until: Instant::now() + Duration::from_millis(500),
        };
        let asked = with(&way, PATIENT, |client| Ok(client.call(&Request::Vacancy)?));
        let trouble = asked.unwrap_err();
        assert!(matches!(trouble, Trouble::Hung(_)), "{trouble:?}");
        let e = CniError::from(trouble);
        assert_eq!(e.code, Code::TryAgain);
        assert!(e.msg.contains("\"vacancy\"") && e.msg.contains("n1.sock"), "{e}");
        assert_eq!(node.join().unwrap(), 1);
    }
}
