//! The node's end of the admin socket.

use super::line::{Broken, Wire};
use super::{Reply, Request};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Longest line a node takes from a client.
pub const MAX_REQUEST: usize = 1 << 20;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiError, Client, ErrorKind, PROTOCOL};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::thread;
    use std::time::Duration;

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
