//! Lines and descriptors over a Unix stream, without a meaning.
//!
//! The kernel delivers descriptors with the bytes they were sent with, yet a read may begin in an earlier
//! line. Descriptors therefore belong to the next line that becomes complete, which is right as long as a
//! client awaits each answer before it asks again. [`super::Client`] does.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most descriptors beside one line.
pub const MAX_FDS: usize = 4;
/// Bytes taken from the socket at once.
const CHUNK: usize = 16 << 10;

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
    /// This process may open no more.
    #[error("a file descriptor came, and this process may open no more files")]
    OutOfFiles,
    /// The connection broke.
    #[error(transparent)]
    Io(io::Error),
}

/// Lines and descriptors over a stream, without a meaning.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    limit: usize,
    inbox: Vec<u8>,
    /// Bytes of `inbox` known to hold no newline.
    seen: usize,
    fds: Vec<OwnedFd>,
}

impl Wire {
    pub(super) fn new(stream: UnixStream, limit: usize) -> Wire {
        Wire {
            stream,
            limit,
            inbox: Vec::new(),
            seen: 0,
            fds: Vec::new(),
        }
    }

    /// A complete line that was read before, without its newline.
    pub(super) fn line(&mut self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
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
    pub(super) fn fill(&mut self) -> Result<(), Broken> {
        if self.inbox.len() > self.limit {
            return Err(Broken::LongLine(self.limit));
        }
        let held = self.inbox.len();
        self.inbox.resize(held + CHUNK, 0);
        let got = take(&self.stream, &mut self.inbox[held..], &mut self.fds);
        self.inbox.truncate(held + got.as_ref().map_or(0, |(n, _)| *n));
        let (bytes, flags) = got.map_err(Broken::Io)?;
        // There was room for as many as a line may have: fewer came because the kernel found no number for more.
        let truncated = flags.contains(ReturnFlags::CTRUNC);
        if truncated && self.fds.len() < MAX_FDS {
            return Err(Broken::OutOfFiles);
        }
        if truncated || self.fds.len() > MAX_FDS {
            return Err(Broken::ManyFds);
        }
        if bytes == 0 {
            return Err(Broken::Eof);
        }
        Ok(())
    }

    /// Send a part of `bytes`, and all of `fds` with its first byte.
    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        give(&self.stream, bytes, fds)
    }
}

/// Receive once, and add the descriptors that came to `fds`: how many bytes, and the kernel's flags.
pub(super) fn take(
    socket: impl AsFd,
    to: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<(usize, ReturnFlags)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut to = [IoSliceMut::new(to)];
        match rustix::net::recvmsg(&socket, &mut to, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            fds.extend(came);
        }
    }
    let got = got?;
    Ok((got.bytes, got.flags))
}

/// Send once, `fds` with the first byte.
pub(super) fn give(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // Alignment leaves room for more than that.
    let fits = fds.len() <= MAX_FDS;
    if !fits || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            Broken::ManyFds.to_string(),
        ));
    }
    loop {
        let from = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(&socket, &from, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return Ok(other?),
        }
    }
}
