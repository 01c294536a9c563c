//! Listening sockets of the host, at which clients of pods' published ports connect.

use super::host::Watched;
use crate::model::HostError;
use mio::{Interest, Registry};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};
use std::net::SocketAddr;

/// What waits at a listening socket.
#[derive(Debug)]
pub enum Knock {
    /// A connected stream, and its client.
    Client(OwnedFd, SocketAddr),
    /// Nobody; it is told when there is somebody.
    Nobody,
    /// Somebody may, but there is no descriptor or memory for the stream: to be tried again later.
    Short(std::io::Error),
}

/// Listening TCP sockets, by their number.
pub struct Listeners(Watched<OwnedFd>);

impl Listeners {
    /// None yet; their events come under tokens from `first` on.
    pub fn new(registry: Registry, first: usize) -> Listeners {
        Listeners(Watched::new(registry, first))
    }

    /// Take a socket that listens already, and does not wait.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn put(&mut self, listener: u32, socket: OwnedFd) -> Result<(), HostError> {
        self.0.put(listener, socket, Interest::READABLE)
    }

    /// Take in one client.
    pub fn accept(&mut self, listener: u32) -> Knock {
        let Some(socket) = self.0.get(listener) else {
            return Knock::Nobody;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match rustix::net::acceptfrom_with(&*socket, flags) {
                Ok((stream, from)) => {
                    // One that is gone again has no address.
                    let Some(from) = from.and_then(|a| SocketAddr::try_from(a).ok()) else {
                        continue;
                    };
                    let _ = sockopt::set_tcp_nodelay(&stream, true);
                    return Knock::Client(stream, from);
                }
                Err(Errno::AGAIN) => return Knock::Nobody,
                Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    return Knock::Short(e.into());
                }
                // A client that went away again, or whose way here broke: the next one (accept(2)).
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PERM
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTUNREACH
                    | Errno::HOSTDOWN
                    | Errno::TIMEDOUT,
                ) => {}
                Err(e) => {
                    log::warn!("a published port takes nobody in: {e}");
                    return Knock::Nobody;
                }
            }
        }
    }

    /// Close one.
    pub fn close(&mut self, listener: u32) {
        self.0.take(listener);
    }
}

/// Break a stream off, so that its client sees that.
pub fn turn_away(stream: OwnedFd) {
    let _ = sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
}
