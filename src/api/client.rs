//! The client's end of the admin socket: what the subcommands use.

use super::line::{Broken, Wire};
use super::place::{self, Socket};
use super::{ErrorKind, PROTOCOL, Reply, Request};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest line a client takes from a node: 65,536 pods fit.
const MAX_REPLY: usize = 64 << 20;
/// How long a client waits for a node.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a node could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nothing listens there.
    #[error(
        "no podwire node answers at {} (start one with `podwire node`, or name its socket with --socket)",
        socket.display()
    )]
    NoNode {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error(
        "the node at {} belongs to another user (run this as the user that started it, or as root)",
        socket.display()
    )]
    Permission {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// Another user listens at a socket that nobody named.
    #[error(
        "what listens at {} belongs to the user with id {uid}, not to you or root (if you trust that user, name it \
         with --socket)",
        socket.display()
    )]
    Stranger {
        /// The socket that was found.
        socket: PathBuf,
        /// The user.
        uid: u32,
    },
    /// The node is of another generation.
    #[error(
        "the node at {} is podwire {version} and speaks protocol {protocol}, this program speaks {PROTOCOL} \
         (use the program the node was started from, or restart the node)",
        socket.display()
    )]
    Version {
        /// The socket that was tried.
        socket: PathBuf,
        /// The node's protocol.
        protocol: u32,
        /// The node's version.
        version: String,
    },
    /// The node understood and said no.
    #[error("{message}")]
    Refused {
        /// What kind of refusal it is.
        kind: ErrorKind,
        /// The node's sentence.
        message: String,
    },
    /// The node took more than five seconds.
    #[error("the node at {} did not answer within 5 s (see its log, or try again)", socket.display())]
    Timeout {
        /// The socket that was tried.
        socket: PathBuf,
    },
    /// The time that the caller had for all it asks was over.
    #[error(
        "the time there is was over while the node at {} was to answer {asked:?} (see its log, or try again)",
        socket.display()
    )]
    Late {
        /// The socket that was tried.
        socket: PathBuf,
        /// The request that was waited for.
        asked: String,
    },
    /// What came back is no answer to what was asked.
    #[error("what listens at {} does not answer like a podwire node: {what}", socket.display())]
    Garbled {
        /// The socket that was tried.
        socket: PathBuf,
        /// What was found.
        what: String,
    },
    /// The connection broke.
    #[error("the connection to the node at {} broke (see its log): {source}", socket.display())]
    Broken {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One conversation with a node. Dropping it frees a reservation that was not committed.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    wire: Wire,
    /// When all must be over.
    until: Option<Instant>,
    /// What is waited for.
    asked: String,
    node: String,
    version: String,
}

impl Client {
    /// Reach the node at `socket` and agree on the protocol. A path is a socket that was named.
    ///
    /// # Errors
    /// [`ApiError::NoNode`], [`ApiError::Permission`], [`ApiError::Stranger`] and [`ApiError::Version`], beside a
    /// broken connection.
    pub fn connect(socket: impl Into<Socket>) -> Result<Client, ApiError> {
        Client::connect_until(socket, None)
    }

    /// The same, with a moment when all that is asked on this connection must be over: [`ApiError::Late`] then.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_until(socket: impl Into<Socket>, until: Option<Instant>) -> Result<Client, ApiError> {
        let Socket { path, named } = socket.into();
        let hello = Request::Hello { protocol: PROTOCOL };
        let Some(patience) = patience(until) else {
            let asked = "hello".into();
            return Err(ApiError::Late { socket: path, asked });
        };
        let stream = place::dial(&path, patience).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ApiError::Timeout { socket: path.clone() },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                ApiError::NoNode { socket: path.clone() }
            }
            io::ErrorKind::PermissionDenied => ApiError::Permission { socket: path.clone() },
            _ => ApiError::Broken {
                socket: path.clone(),
                source,
            },
        })?;
        if let (false, Err(uid)) = (named, place::of_ours(&stream)) {
            return Err(ApiError::Stranger { socket: path, uid });
        }
        let patient = stream.set_read_timeout(Some(patience));
        patient.map_err(|source| ApiError::Broken {
            socket: path.clone(),
            source,
        })?;
        let mut client = Client {
            socket: path,
            wire: Wire::new(stream, MAX_REPLY),
            until,
            asked: String::new(),
            node: String::new(),
            version: String::new(),
        };
        match client.call(&hello)? {
            Reply::Hello {
                protocol,
                node,
                version,
            } if protocol == PROTOCOL => {
                (client.node, client.version) = (node, version);
                Ok(client)
            }
            Reply::Hello {
                protocol, version, ..
            } => Err(ApiError::Version {
                socket: client.socket,
                protocol,
                version,
            }),
            other => Err(client.garbled(format!("{other:?}"))),
        }
    }

    /// Where the node listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The node's version of podwire.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ask and await the answer.
    ///
    /// # Errors
    /// [`ApiError::Refused`] for a [`Reply::Error`], and all that can befall a connection.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ApiError> {
        self.call_with_fds(request, &[])
    }

    /// Ask with descriptors beside the request (at most [`super::MAX_FDS`]); the caller keeps its own copies.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_with_fds(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ApiError> {
        let mut line = serde_json::to_vec(request).map_err(|e| self.garbled(e.to_string()))?;
        line.push(b'\n');
        self.asked = name(&line);
        let (mut rest, mut beside) = (&line[..], fds);
        while !rest.is_empty() {
            self.hurry()?;
            match self.wire.send(rest, beside) {
                Ok(sent) => (rest, beside) = (&rest[sent..], &[]),
                // A node that turned this client away has said why before it hung up.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
                Err(e) => return Err(self.broken(e)),
            }
        }
        self.answer()
    }

    /// Wait, for as long as it takes, for what the node says of itself after its last answer.
    ///
    /// # Errors
    /// As [`Client::call`]; the end of the node is [`ApiError::Broken`].
    pub fn listen(&mut self) -> Result<Reply, ApiError> {
        self.wire
            .stream
            .set_read_timeout(None)
            .map_err(|e| self.broken(e))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Reply, ApiError> {
        let answer = loop {
            if let Some((line, _)) = self.wire.line() {
                break line;
            }
            self.hurry()?;
            match self.wire.fill() {
                Ok(()) => {}
                Err(Broken::Io(e)) => return Err(self.broken(e)),
                Err(Broken::Eof) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Err(e) => return Err(self.garbled(e.to_string())),
            }
        };
        match serde_json::from_slice(&answer) {
            Ok(Reply::Error { message, kind }) => Err(ApiError::Refused { kind, message }),
            Ok(reply) => Ok(reply),
            Err(e) => Err(self.garbled(e.to_string())),
        }
    }

    /// Let the next step take no longer than there is time.
    fn hurry(&self) -> Result<(), ApiError> {
        if self.until.is_none() {
            return Ok(());
        }
        let Some(patience) = patience(self.until) else {
            return Err(self.late());
        };
        let stream = &self.wire.stream;
        let set = stream.set_read_timeout(Some(patience));
        let set = set.and_then(|()| stream.set_write_timeout(Some(patience)));
        set.map_err(|e| self.broken(e))
    }

    fn late(&self) -> ApiError {
        ApiError::Late {
            socket: self.socket.clone(),
            asked: self.asked.clone(),
        }
    }

    fn garbled(&self, what: String) -> ApiError {
        ApiError::Garbled {
            socket: self.socket.clone(),
            what,
        }
    }

    fn broken(&self, source: io::Error) -> ApiError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => match patience(self.until) {
                Some(_) => ApiError::Timeout { socket },
                None => self.late(),
            },
            _ => ApiError::Broken { socket, source },
        }
    }
}

/// How long a step may take; none when the time is over.
fn patience(until: Option<Instant>) -> Option<Duration> {
    let Some(until) = until else {
        return Some(PATIENCE);
    };
    let left = until.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left.min(PATIENCE))
}

/// What a request is called, whose line begins with `{"request":"NAME"`.
fn name(line: &[u8]) -> String {
    let name = line.split(|b| *b == b'"').nth(3).unwrap_or(b"a request");
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// Who listens, and takes nobody: the kernel has room for one that waits.
    #[test]
    fn a_node_that_takes_nobody_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.sock");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting = place::dial(&path, PATIENCE).unwrap();
        let soon = Instant::now() + Duration::from_millis(100);
        let e = Client::connect_until(&path, Some(soon)).unwrap_err();
        assert!(matches!(e, ApiError::Timeout { .. }), "{e}");
        drop(waiting);
        let e = Client::connect_until(&path, Some(Instant::now())).unwrap_err();
        assert!(e.to_string().contains("\"hello\""), "{e}");
    }

    #[test]
    fn who_is_turned_away_hears_why() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut client = Client {
            socket: "n1.sock".into(),
            wire: Wire::new(near, MAX_REPLY),
            until: None,
            asked: String::new(),
            node: String::new(),
            version: String::new(),
        };
        let reply = Reply::Error {
            message: "another time".into(),
            kind: ErrorKind::Internal,
        };
        writeln!(far, "{}", serde_json::to_string(&reply).unwrap()).unwrap();
        drop(far);
        let mut why = || client.call(&Request::Pods).unwrap_err().to_string();
        assert_eq!(why(), "another time");
        assert!(why().contains("broke"));
    }
}
