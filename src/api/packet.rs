//! Packets and descriptors over a Unix socket that keeps their bounds (SOCK_SEQPACKET), without a meaning.
//!
//! The node and its keeper speak like this and not in lines: each packet has descriptors, many are under way at
//! once, and here the kernel sees to it that each arrives with its own.

use super::line::{Broken, MAX_FDS, give, take};
use rustix::net::{ReturnFlags, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest packet, in bytes: a pod's record with the longest path, escaped, fits.
pub const MAX_PACKET: usize = 32 << 10;

/// A connected socket.
#[derive(Debug)]
pub struct Packets(OwnedFd);

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// What it says.
    pub bytes: Vec<u8>,
    /// What came beside it.
    pub fds: Vec<OwnedFd>,
    /// Descriptors are missing, because this process may open no more.
    pub short: bool,
}

impl Packets {
    /// Take over a socket, which may wait or not.
    pub fn new(socket: OwnedFd) -> Packets {
        Packets(socket)
    }

    /// Whether this user is at the other end: the process and the user there when not.
    ///
    /// # Errors
    /// Who it is; zero and `u32::MAX` when the kernel does not tell.
    pub fn of_this_user(&self) -> Result<u32, (u32, u32)> {
        let there = sockopt::socket_peercred(&self.0);
        let (pid, uid) = there.map_or((0, u32::MAX), |c| {
            (c.pid.as_raw_nonzero().get().unsigned_abs(), c.uid.as_raw())
        });
        let ours = uid == rustix::process::geteuid().as_raw();
        ours.then_some(pid).ok_or((pid, uid))
    }

    /// Send a packet, whole or not at all, and at most [`MAX_FDS`] descriptors with it.
    ///
    /// # Errors
    /// What the kernel says, [`io::ErrorKind::WouldBlock`] included.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        give(&self.0, bytes, fds).map(drop)
    }

    /// The next packet; a socket that does not wait gives [`Broken::Io`] of [`io::ErrorKind::WouldBlock`] when there
    /// is none.
    ///
    /// # Errors
    /// [`Broken`]: the conversation is over.
    pub fn receive(&self) -> Result<Packet, Broken> {
        let (mut bytes, mut fds) = (vec![0; MAX_PACKET], Vec::new());
        let (n, flags) = take(&self.0, &mut bytes, &mut fds).map_err(Broken::Io)?;
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(Broken::LongLine(MAX_PACKET));
        }
        let short = flags.contains(ReturnFlags::CTRUNC);
        if fds.len() > MAX_FDS || (short && fds.len() == MAX_FDS) {
            return Err(Broken::ManyFds);
        }
        if n == 0 {
            return Err(Broken::Eof);
        }
        bytes.truncate(n);
        Ok(Packet { bytes, fds, short })
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Packets, Packets) {
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        (Packets::new(near), Packets::new(far))
    }

    #[test]
    fn packets_keep_their_bounds_and_their_descriptors() {
        let (near, far) = pair();
        assert_eq!(near.of_this_user(), Ok(std::process::id()));
        let stdin = io::stdin();
        for n in 0..4 {
            near.send(&[b'x'; 10][..n + 1], &vec![stdin.as_fd(); n]).unwrap();
        }
        for n in 0..4 {
            let packet = far.receive().unwrap();
            assert_eq!((packet.bytes.len(), packet.fds.len()), (n + 1, n));
        }
        assert!(matches!(far.receive(), Err(Broken::Io(e)) if e.kind() == io::ErrorKind::WouldBlock));
        assert!(near.send(b"x", &[stdin.as_fd(); MAX_FDS + 1]).is_err());
        near.send(&[b'x'; MAX_PACKET + 1], &[]).unwrap();
        assert!(matches!(far.receive(), Err(Broken::LongLine(_))));
        drop(near);
        assert!(matches!(far.receive(), Err(Broken::Eof)));
    }
}
