//! A pod's TAP.

use crate::buf::{Arena, Span};
use crate::wire::{VNET_HDR_LEN, VnetHdr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Longest frame: Ethernet header and 65,535 bytes.
const LONGEST: usize = 14 + 65_535;
/// Most slices of one write: virtio-net header, made header, and the pieces of the longest train.
const SLICES: usize = 2 + 128;

/// A TAP, non-blocking.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    vnet_hdr: bool,
    /// Whether the interface is gone: somebody deleted it in the pod, and the descriptor is of no more use.
    pub lost: bool,
    /// Read calls that gave a frame.
    pub reads: u64,
    /// Bytes of those frames.
    pub read_bytes: u64,
    /// Write calls the kernel took.
    pub writes: u64,
    /// Bytes of those frames.
    pub written_bytes: u64,
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> OwnedFd {
        tap.fd
    }
}

impl Tap {
    /// Own a TAP; `vnet_hdr` tells whether its frames carry a virtio-net header.
    pub fn new(fd: OwnedFd, vnet_hdr: bool) -> Tap {
        Tap {
            fd,
            vnet_hdr,
            lost: false,
            reads: 0,
            read_bytes: 0,
            writes: 0,
            written_bytes: 0,
        }
    }

    /// The descriptor's number, for the poller.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// A second descriptor of it.
    ///
    /// # Errors
    /// When this process may open no more.
    pub fn try_clone(&self) -> std::io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Look whether the interface is gone, without a read. It is [lost](Tap::lost) then.
    pub fn is_lost(&mut self) -> bool {
        let mut asked = [PollFd::new(&self.fd, PollFlags::empty())];
        let told = poll(&mut asked, Some(&Timespec::default()));
        self.lost |= told.is_ok() && asked[0].revents().contains(PollFlags::ERR);
        self.lost
    }

    /// Read one frame into the arena, its virtio-net header (or room for one) before it. `None` when there is
    /// none, as from a TAP that is [lost](Tap::lost).
    ///
    /// # Errors
    /// What else the kernel says.
    pub fn read(&mut self, arena: &mut Arena) -> Result<Option<Span>, Errno> {
        let before = if self.vnet_hdr { 0 } else { VNET_HDR_LEN };
        let free = arena.free_mut();
        let end = (VNET_HDR_LEN + LONGEST).min(free.len());
        let room = free.get_mut(before..end).unwrap_or_default();
        let n = loop {
            match rustix::io::read(&self.fd, &mut *room) {
                Ok(n) => break n,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::BADFD | Errno::NODEV) => {
                    self.lost = true;
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        };
        let whole = arena.take((before + n).max(VNET_HDR_LEN));
        let frame = whole.part(VNET_HDR_LEN, whole.len());
        self.reads += 1;
        self.read_bytes += u64::from(frame.len);
        Ok(Some(frame))
    }

    /// Write one frame: `head`, then pieces of `memory`. Whether the kernel took it; with the default send
    /// buffer it never says "full".
    pub fn write(&mut self, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        let vnet = vnet.emit();
        let first: &[u8] = if self.vnet_hdr { &vnet } else { &[] };
        // Most frames are in one piece: room for those costs less to set up.
        let written = if pieces.len() <= 2 {
            self.gather(&mut [IoSlice::new(&[]); 4], first, head, memory, pieces)
        } else {
            self.gather(&mut [IoSlice::new(&[]); SLICES], first, head, memory, pieces)
        };
        let n = match written {
            Ok(n) => n,
            Err(e) => {
                self.lost |= matches!(e, Errno::BADFD | Errno::NODEV);
                return false;
            }
        };
        self.writes += 1;
        self.written_bytes += (n - first.len().min(n)) as u64;
        true
    }

    fn gather<'a>(
        &self,
        slices: &mut [IoSlice<'a>],
        vnet: &'a [u8],
        head: &'a [u8],
        memory: &'a [u8],
        pieces: &[Span],
    ) -> Result<usize, Errno> {
        let parts = [vnet, head].into_iter().filter(|s| !s.is_empty());
        let all = parts.chain(pieces.iter().map(|p| p.of(memory)));
        let mut used = 0;
        for (slot, part) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        loop {
            match rustix::io::writev(&self.fd, &slices[..used]) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Arena;

    /// A descriptor of the driver without an interface answers as one whose interface was deleted.
    #[test]
    fn a_tap_without_its_interface_is_lost() {
        for vnet_hdr in [true, false] {
            let tap = || {
                let tun = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/net/tun");
                Tap::new(tun.unwrap().into(), vnet_hdr)
            };
            let mut read = tap();
            assert_eq!(read.read(&mut Arena::new(1 << 18)), Ok(None));
            assert!(read.lost);
            let mut written = tap();
            let vnet = VnetHdr::default();
            assert!(!written.write(&vnet, &[0; 60], &[], &[]) && written.lost);
            assert_eq!((read.reads, written.writes), (0, 0));
            assert!(tap().is_lost());
        }
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut other = Tap::new(full.into(), false);
        assert!(!other.write(&VnetHdr::default(), &[0; 60], &[], &[]) && !other.lost);
        assert!(!other.is_lost());
    }
}
