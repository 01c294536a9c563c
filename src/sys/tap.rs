//! Making a TAP and asking what it accepts.
//!
//! The device belongs to the network namespace the caller is in when `/dev/net/tun` is opened; afterwards the
//! descriptor works from anywhere. Its flags are settled by the first TUNSETIFF, so both ways of making one
//! are here: our own with a virtio-net header, and the `tun-tap` crate for plain frames.
#![allow(unsafe_code)]

use crate::model::{OffloadMode, TapCaps};
use rustix::fs::{Mode, OFlags};
use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// Bytes of `struct virtio_net_hdr` in front of each frame when [`TapCaps::vnet_hdr`] is set.
pub const VNET_HDR_LEN: usize = 10;

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The driver is absent.
    #[error(
        "/dev/net/tun is missing (load the driver with `sudo modprobe tun`; in a container, pass the device in)"
    )]
    NoDevice,
    /// The device node is closed to this user.
    #[error(
        "/dev/net/tun is not readable and writable by you (`sudo chmod 666 /dev/net/tun`, or a udev rule as \
         distributions ship it)"
    )]
    DevicePermission,
    /// The name cannot be an interface's.
    #[error(
        "{0:?} cannot name an interface (use 1 to 15 letters, digits, '-', '_' or '.', and neither lo, all nor \
         default)"
    )]
    BadName(String),
    /// Something of that name is there.
    #[error("the pod already has an interface named {0} (choose another with --ifname)")]
    Taken(String),
    /// The namespace is not ours to change.
    #[error(
        "making {0} in the pod's network namespace needs CAP_NET_ADMIN there (run this as the user who made the \
         namespace, or as root)"
    )]
    NotPermitted(String),
    /// A system call failed for another reason.
    #[error("making the TAP {name} failed: {call}: {source}")]
    Call {
        /// The interface.
        name: String,
        /// The system call or ioctl.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Make the TAP `name` in the current network namespace and find out what it accepts.
///
/// The descriptor is non-blocking and closes on exec; the interface lives as long as it, and goes with its
/// addresses and routes. A kernel without virtio-net headers gets a plain TAP whatever `offload` says.
///
/// # Errors
/// See [`TapError`]; an interface that exists is never touched.
pub fn create(name: &str, offload: OffloadMode) -> Result<(OwnedFd, TapCaps), TapError> {
    check_name(name)?;
    let fd = open()?;
    if offload == OffloadMode::On && features(&fd, name)? & libc::IFF_VNET_HDR as c_uint != 0 {
        with_vnet_hdr(fd, name)
    } else {
        drop(fd);
        plain(name)
    }
}

/// A TAP that exists, as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The name of its interface, which whoever is root in the pod may have changed.
    pub name: String,
    /// Whether its frames carry a virtio-net header.
    pub vnet_hdr: bool,
}

/// What the descriptor of a TAP stands for.
///
/// # Errors
/// EBADFD when the interface is gone, ENOTTY and EINVAL when it is no TAP.
pub fn inspect(fd: impl AsFd) -> io::Result<Found> {
    // SAFETY: an all-zero ifreq is valid: it holds integers and byte arrays only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq through the pointer; on anything but a TUN or TAP it fails with ENOTTY.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    checked(rc)?;
    // SAFETY: TUNGETIFF has set the flags of the union.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_TAP == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let name = request.ifr_name.iter().take_while(|c| **c != 0);
    Ok(Found {
        name: name.map(|c| char::from(*c as u8)).collect(),
        vnet_hdr: flags & libc::IFF_VNET_HDR != 0,
    })
}

/// Have the offloads of `caps` in force again on a TAP with a virtio-net header, as [`create`] left them.
///
/// # Errors
/// When the kernel takes them no longer.
pub fn renew_offloads(fd: impl AsFd, caps: TapCaps) -> io::Result<()> {
    use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
    let known = [
        (caps.csum, TUN_F_CSUM),
        (caps.tso4, TUN_F_TSO4),
        (caps.tso6, TUN_F_TSO6),
        (caps.uso, TUN_F_USO4 | TUN_F_USO6),
    ];
    let known = known.iter().filter(|(on, _)| *on);
    let mask = known.fold(0, |mask, (_, bits)| mask | bits);
    // Nobody recorded whether ECN was taken; it is refused only by kernels without TSO.
    let with_ecn = mask | TUN_F_TSO_ECN;
    if (caps.tso4 || caps.tso6) && set_offload(fd.as_fd(), with_ecn) || set_offload(fd.as_fd(), mask) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether `name` can be an interface's and cannot be confused with a directory of its sysctls.
///
/// # Errors
/// [`TapError::BadName`].
pub fn check_name(name: &str) -> Result<(), TapError> {
    let good = (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !["lo", "all", "default", ".", ".."].contains(&name);
    good.then_some(()).ok_or_else(|| TapError::BadName(name.into()))
}

fn open() -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|e| device_error(e.into()))
}

fn device_error(e: io::Error) -> TapError {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDevice,
        Some(libc::EACCES | libc::EPERM) => TapError::DevicePermission,
        _ => TapError::Call {
            name: "device".into(),
            call: "open /dev/net/tun",
            source: e,
        },
    }
}

fn with_vnet_hdr(fd: OwnedFd, name: &str) -> Result<(OwnedFd, TapCaps), TapError> {
    // IFF_TUN_EXCL: a persistent TAP of that name is somebody else's, not ours to join.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // SAFETY: an all-zero ifreq is valid: it holds integers and byte arrays only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is; its name ends in a zero because
    // `check_name` bounds it below IFNAMSIZ.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(rc).map_err(|e| setiff_error(name, e))?;
    let size = VNET_HDR_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
    checked(rc).map_err(|e| call_error(name, "TUNSETVNETHDRSZ", e))?;
    let caps = probe(|mask| set_offload(fd.as_fd(), mask));
    Ok((fd, caps))
}

/// Ask for everything, and step by step when that is refused; the last mask that was taken stays in force.
fn probe(mut accepts: impl FnMut(c_uint) -> bool) -> TapCaps {
    use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
    // The kernel takes segmentation only on top of checksums, and the two UDP bits only together.
    let steps = [
        TUN_F_CSUM,
        TUN_F_TSO4,
        TUN_F_TSO6,
        TUN_F_TSO_ECN,
        TUN_F_USO4 | TUN_F_USO6,
    ];
    let all = steps.iter().fold(0, |mask, step| mask | step);
    let mut mask = 0;
    if accepts(all) {
        mask = all;
    } else {
        for step in steps {
            if accepts(mask | step) {
                mask |= step;
            }
        }
    }
    TapCaps {
        vnet_hdr: true,
        csum: mask & TUN_F_CSUM != 0,
        tso4: mask & TUN_F_TSO4 != 0,
        tso6: mask & TUN_F_TSO6 != 0,
        uso: mask & TUN_F_USO4 != 0,
    }
}

fn set_offload(fd: BorrowedFd<'_>, mask: c_uint) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its mask by value.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) };
    rc >= 0
}

fn features(fd: &OwnedFd, name: &str) -> Result<c_uint, TapError> {
    let mut bits: c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int through the pointer.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &raw mut bits) };
    checked(rc).map_err(|e| call_error(name, "TUNGETFEATURES", e))?;
    Ok(bits)
}

fn plain(name: &str) -> Result<(OwnedFd, TapCaps), TapError> {
    // tun-tap cannot ask for IFF_TUN_EXCL and would join a persistent TAP, so look first.
    if exists(name) {
        return Err(TapError::Taken(name.into()));
    }
    let iface = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap);
    let raw = iface.map_err(|e| setiff_error(name, e))?.into_raw_fd();
    // SAFETY: into_raw_fd gives up the only owner of an open descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let set = rustix::fs::fcntl_setfl(&fd, OFlags::RDWR | OFlags::NONBLOCK);
    set.map_err(|e| call_error(name, "fcntl", e.into()))?;
    Ok((fd, TapCaps::default()))
}

fn exists(name: &str) -> bool {
    let family = rustix::net::AddressFamily::INET;
    rustix::net::socket(family, rustix::net::SocketType::DGRAM, None)
        .and_then(|s| rustix::net::netdevice::name_to_index(&s, name))
        .is_ok()
}

fn setiff_error(name: &str, e: io::Error) -> TapError {
    match e.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => TapError::Taken(name.into()),
        Some(libc::EPERM) => TapError::NotPermitted(name.into()),
        _ => call_error(name, "TUNSETIFF", e),
    }
}

fn call_error(name: &str, call: &'static str, source: io::Error) -> TapError {
    TapError::Call {
        name: name.into(),
        call,
        source,
    }
}

fn checked(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface() {
        for good in ["eth0", "a", "net-1_x.2", "exactly15bytes_"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "lo",
            "all",
            ".",
            "..",
            "a/b",
            "eth%d",
            "eth 0",
            "a:1",
            "sixteen_bytes_xx",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn probing_keeps_what_an_old_kernel_takes() {
        let full = probe(|_| true);
        assert!(full.vnet_hdr && full.csum && full.tso4 && full.tso6 && full.uso);
        let mut last = 0;
        let no_uso = probe(|mask| {
            let ok = mask & (libc::TUN_F_USO4 | libc::TUN_F_USO6) == 0;
            last = if ok { mask } else { last };
            ok
        });
        assert!(no_uso.csum && no_uso.tso4 && no_uso.tso6 && !no_uso.uso);
        assert_eq!(last, 0x0f, "the mask in force is the one reported");
        assert!(!probe(|_| false).csum);
    }

    #[test]
    fn errors_name_the_remedy() {
        let gone = device_error(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(gone.to_string().contains("modprobe tun"));
        let closed = device_error(io::Error::from_raw_os_error(libc::EACCES));
        assert!(closed.to_string().contains("chmod 666 /dev/net/tun"));
        let taken = setiff_error("eth0", io::Error::from_raw_os_error(libc::EBUSY));
        assert!(taken.to_string().contains("named eth0"));
    }
}
