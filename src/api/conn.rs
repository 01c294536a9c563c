//! The conversation over the admin socket, for both ends: a JSON value per line, descriptors beside it.
//!
//! The kernel delivers descriptors with the bytes they were sent with, yet a read may begin in an earlier
//! line. Descriptors therefore belong to the next line that becomes complete, which is right as long as a
//! client awaits each answer before it asks again. [`Client`] does.

use super::{ErrorKind, PROTOCOL, Reply, Request};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest line a node takes from a client.
pub const MAX_REQUEST: usize = 1 << 20;
/// Longest line a client takes from a node: 65,536 pods fit.
const MAX_REPLY: usize = 64 << 20;
/// Most descriptors beside one line.
pub const MAX_FDS: usize = 4;
/// How long a client waits for a node.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes taken from the socket at once.
const CHUNK: usize = 16 << 10;

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
    /// Reach the node at `socket` and agree on the protocol.
    ///
    /// # Errors
    /// [`ApiError::NoNode`], [`ApiError::Permission`] and [`ApiError::Version`], beside a broken connection.
    pub fn connect(socket: &Path) -> Result<Client, ApiError> {
        let path = socket.to_path_buf();
        let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                ApiError::NoNode { socket: path.clone() }
            }
            io::ErrorKind::PermissionDenied => ApiError::Permission { socket: path.clone() },
            _ => ApiError::Broken {
                socket: path.clone(),
                source,
            },
        })?;
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

    /// Ask with descriptors beside the request (at most [`MAX_FDS`]); the caller keeps its own copies.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_with_fds(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ApiError> {
        let mut line = serde_json::to_vec(request).map_err(|e| self.garbled(e.to_string()))?;
        line.push(b'\n');
        let (mut rest, mut beside) = (&line[..], fds);
        while !rest.is_empty() {
            let sent = self.wire.send(rest, beside).map_err(|e| self.broken(e))?;
            (rest, beside) = (&rest[sent..], &[]);
        }
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

/// A request as it came, or the sentence why it is none, with its descriptors.
pub type Received = (Result<Request, String>, Vec<OwnedFd>);

/// The node's end of a conversation: never waits, and holds a bounded amount of what the client sends.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    unsent: Vec<u8>,
}

impl Connection {
    /// Take over an accepted stream.
    ///
    /// # Errors
    /// When the stream cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            wire: Wire::new(stream, MAX_REQUEST),
            unsent: Vec::new(),
        })
    }

    /// The next request; `None` when there is none yet, or while an earlier answer waits for the client to
    /// read it.
    ///
    /// # Errors
    /// The conversation is over: end of stream, a broken connection, or a bound was exceeded.
    pub fn receive(&mut self) -> Result<Option<Received>, Broken> {
        if !self.unsent.is_empty() {
            return Ok(None);
        }
        loop {
            if let Some((line, fds)) = self.wire.line() {
                let request = serde_json::from_slice(&line).map_err(|e| format!("not a request: {e}"));
                return Ok(Some((request, fds)));
            }
            match self.wire.fill() {
                Ok(()) => {}
                Err(Broken::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Answer the last request.
    ///
    /// # Errors
    /// The conversation is over.
    pub fn reply(&mut self, reply: &Reply) -> Result<(), Broken> {
        let mut line = serde_json::to_vec(reply).map_err(|e| Broken::Io(e.into()))?;
        line.push(b'\n');
        self.unsent.append(&mut line);
        self.flush()
    }

    /// Send what the client had no room for; to be called when the stream becomes writable.
    ///
    /// # Errors
    /// The conversation is over.
    pub fn flush(&mut self) -> Result<(), Broken> {
        let mut sent = 0;
        let outcome = loop {
            if sent == self.unsent.len() {
                break Ok(());
            }
            match self.wire.send(&self.unsent[sent..], &[]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(e) => break Err(Broken::Io(e)),
            }
        };
        self.unsent.drain(..sent);
        outcome
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.stream.as_fd()
    }
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Eof,
    /// No newline within the limit.
    #[error("a line is longer than {0} bytes")]
    LongLine(usize),
    /// More descriptors than [`MAX_FDS`] for one line.
    #[error("more than {MAX_FDS} file descriptors came with one line")]
    ManyFds,
    /// The connection broke.
    #[error(transparent)]
    Io(io::Error),
}

/// Lines and descriptors over a stream, without a meaning.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    limit: usize,
    inbox: Vec<u8>,
    /// Bytes of `inbox` known to hold no newline.
    seen: usize,
    fds: Vec<OwnedFd>,
}

impl Wire {
    fn new(stream: UnixStream, limit: usize) -> Wire {
        Wire {
            stream,
            limit,
            inbox: Vec::new(),
            seen: 0,
            fds: Vec::new(),
        }
    }

    /// A complete line that was read before, without its newline.
    fn line(&mut self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let Some(at) = self.inbox[self.seen..].iter().position(|b| *b == b'\n') else {
            self.seen = self.inbox.len();
            return None;
        };
        let rest = self.inbox.split_off(self.seen + at + 1);
        let mut line = std::mem::replace(&mut self.inbox, rest);
        line.pop();
        self.seen = 0;
        Some((line, std::mem::take(&mut self.fds)))
    }

    /// Read once.
    fn fill(&mut self) -> Result<(), Broken> {
        if self.inbox.len() > self.limit {
            return Err(Broken::LongLine(self.limit));
        }
        let held = self.inbox.len();
        self.inbox.resize(held + CHUNK, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut to = [IoSliceMut::new(&mut self.inbox[held..])];
            match rustix::net::recvmsg(&self.stream, &mut to, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                other => break other,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.inbox.truncate(held + got.as_ref().map_or(0, |g| g.bytes));
        let got = got.map_err(|e| Broken::Io(e.into()))?;
        if got.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_FDS {
            return Err(Broken::ManyFds);
        }
        if got.bytes == 0 {
            return Err(Broken::Eof);
        }
        Ok(())
    }

    /// Send a part of `bytes`, and all of `fds` with its first byte.
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                Broken::ManyFds.to_string(),
            ));
        }
        loop {
            let from = [IoSlice::new(bytes)];
            match rustix::net::sendmsg(&self.stream, &from, &mut control, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => continue,
                other => return Ok(other?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    fn pair() -> (UnixStream, Connection) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, Connection::new(far).unwrap())
    }

    fn serve(hello: Reply) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let mut conn = Connection::new(listener.accept().unwrap().0).unwrap();
            let mut answer = Some(hello);
            loop {
                match conn.receive() {
                    Ok(Some((_, fds))) => {
                        let pods = Reply::Detached {
                            existed: fds.len() == 2,
                        };
                        conn.reply(&answer.take().unwrap_or(pods)).unwrap();
                    }
                    Ok(None) => thread::sleep(Duration::from_millis(1)),
                    Err(_) => return,
                }
            }
        });
        (dir, path, server)
    }

    #[test]
    fn a_client_asks_with_descriptors() {
        let hello = Reply::Hello {
            protocol: PROTOCOL,
            node: "n1".into(),
            version: "0".into(),
        };
        let (_dir, path, server) = serve(hello);
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.node(), "n1");
        let stdin = io::stdin();
        let reply = client.call_with_fds(&Request::Pods, &[stdin.as_fd(), stdin.as_fd()]);
        assert!(
            matches!(reply, Ok(Reply::Detached { existed: true })),
            "{reply:?}"
        );
        let five = [stdin.as_fd(); 5];
        assert!(client.call_with_fds(&Request::Pods, &five).is_err());
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn errors_name_the_remedy() {
        let missing = Client::connect(Path::new("/nonexistent/x.sock")).unwrap_err();
        assert!(missing.to_string().contains("start one with `podwire node`"));
        let hello = Reply::Hello {
            protocol: PROTOCOL + 1,
            node: "n1".into(),
            version: "9.9".into(),
        };
        let (_dir, path, server) = serve(hello);
        let version = Client::connect(&path).unwrap_err().to_string();
        assert!(version.contains("podwire 9.9"), "{version}");
        server.join().unwrap();
        let refusal = Reply::Error {
            message: "no".into(),
            kind: ErrorKind::Taken,
        };
        let (_dir, path, server) = serve(refusal);
        let refused = Client::connect(&path).unwrap_err();
        assert!(matches!(
            refused,
            ApiError::Refused {
                kind: ErrorKind::Taken,
                ..
            }
        ));
        server.join().unwrap();
    }

    #[test]
    fn lines_arrive_in_pieces_and_together() {
        let (mut near, mut conn) = pair();
        assert!(conn.receive().unwrap().is_none());
        near.write_all(br#"{"request":"po"#).unwrap();
        assert!(conn.receive().unwrap().is_none());
        near.write_all(b"ds\"}\n{\"request\":\"status\"}\nrubbish\n")
            .unwrap();
        assert!(matches!(conn.receive(), Ok(Some((Ok(Request::Pods), _)))));
        assert!(matches!(conn.receive(), Ok(Some((Ok(Request::Status), _)))));
        assert!(matches!(conn.receive(), Ok(Some((Err(_), _)))));
        drop(near);
        assert!(matches!(conn.receive(), Err(Broken::Eof)));
    }

    #[test]
    fn a_client_that_floods_or_never_reads_is_bounded() {
        let (mut near, mut conn) = pair();
        let flood = thread::spawn(move || near.write_all(&[b'x'; 4 * MAX_REQUEST]));
        let end = loop {
            match conn.receive() {
                Ok(_) => thread::yield_now(),
                Err(e) => break e,
            }
        };
        assert!(matches!(end, Broken::LongLine(_)), "{end}");
        drop(conn);
        assert!(flood.join().unwrap().is_err());

        let (mut near, mut conn) = pair();
        near.write_all(b"{\"request\":\"pods\"}\n{\"request\":\"pods\"}\n")
            .unwrap();
        let big = Reply::Error {
            message: "x".repeat(1 << 20),
            kind: ErrorKind::Internal,
        };
        assert!(conn.receive().unwrap().is_some());
        conn.reply(&big).unwrap();
        assert!(
            conn.receive().unwrap().is_none(),
            "an answer waits, no request is taken"
        );
        let reader = thread::spawn(move || {
            let mut all = vec![0; 1 << 20];
            near.read_exact(&mut all).unwrap();
            near
        });
        while !reader.is_finished() {
            conn.flush().unwrap();
            thread::yield_now();
        }
        let _near = reader.join().unwrap();
        conn.flush().unwrap();
        assert!(matches!(conn.receive(), Ok(Some((Ok(Request::Pods), _)))));
    }
}
