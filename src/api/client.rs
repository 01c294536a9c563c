//! The client's end of the admin socket: what the subcommands use.

use super::line::{Broken, Wire};
use super::place::{self, Socket};
use super::{ErrorKind, PROTOCOL, Reply, Request};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

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
        let Socket { path, named } = socket.into();
        let stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
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
        let patient = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        patient.map_err(|source| ApiError::Broken {
            socket: path.clone(),
            source,
        })?;
        let mut client = Client {
            socket: path,
            wire: Wire::new(stream, MAX_REPLY),
            node: String::new(),
            version: String::new(),
        };
        match client.call(&Request::Hello { protocol: PROTOCOL })? {
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
        let (mut rest, mut beside) = (&line[..], fds);
        while !rest.is_empty() {
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

    fn garbled(&self, what: String) -> ApiError {
        ApiError::Garbled {
            socket: self.socket.clone(),
            what,
        }
    }

    fn broken(&self, source: io::Error) -> ApiError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ApiError::Timeout { socket },
            _ => ApiError::Broken { socket, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn who_is_turned_away_hears_why() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut client = Client {
            socket: "n1.sock".into(),
            wire: Wire::new(near, MAX_REPLY),
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
