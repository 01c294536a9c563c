//! What this kernel and this user can do, asked by doing it. For `podwire doctor`.

#![allow(unsafe_code)]

use rustix::thread::UnshareFlags;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Whether the kernel takes UDP_SEGMENT on a socket.
pub fn udp_gso() -> io::Result<()> {
    set_udp(libc::UDP_SEGMENT, 1400)
}

/// Whether the kernel takes UDP_GRO on a socket.
pub fn udp_gro() -> io::Result<()> {
    set_udp(libc::UDP_GRO, 1)
}

fn set_udp(option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    // SAFETY: the option's value is a c_int, which `value` is for the length of the call; the descriptor is
    // open, as `socket` owns it.
    let r = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if r == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How far making a pod's namespaces and TAP came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sandbox {
    /// All of it works.
    Works = 0,
    /// No user namespace.
    NoUserNamespace = 10,
    /// A user namespace, but no network namespace in it (AppArmor does this).
    NoNetworkNamespace = 11,
    /// `/dev/net/tun` cannot be opened.
    NoTun = 12,
    /// A TAP cannot be made.
    NoTap = 13,
    /// A TAP can be made, but not with virtio-net headers.
    NoVnetHdr = 14,
}

impl Sandbox {
    /// The result a process that called [`sandbox`] told with its exit code.
    pub fn from_code(code: i32) -> Option<Sandbox> {
        use Sandbox::*;
        [
            Works,
            NoUserNamespace,
            NoNetworkNamespace,
            NoTun,
            NoTap,
            NoVnetHdr,
        ]
        .into_iter()
        .find(|s| *s as i32 == code)
    }
}

/// Make what a pod needs, in this process, which must have one thread and is changed for good.
pub fn sandbox() -> Sandbox {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    // SAFETY: descriptors are not unshared, which is what the call's contract is about.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }.is_err() {
        return Sandbox::NoUserNamespace;
    }
    // Without a mapping the namespace's capabilities still count; a failure shows below.
    let _ = fs::write("/proc/self/setgroups", "deny");
    let _ = fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()));
    let _ = fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()));
    // SAFETY: as above.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.is_err() {
        return Sandbox::NoNetworkNamespace;
    }
    let plain = libc::IFF_TAP | libc::IFF_NO_PI;
    match (tap(plain | libc::IFF_VNET_HDR), tap(plain)) {
        (Ok(()), _) => Sandbox::Works,
        (_, Ok(())) => Sandbox::NoVnetHdr,
        (_, Err(true)) => Sandbox::NoTun,
        (_, Err(false)) => Sandbox::NoTap,
    }
}

/// Make a TAP and drop it; whether opening the device failed already.
fn tap(flags: libc::c_int) -> Result<(), bool> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|_| true)?;
    // SAFETY: ifreq is plain old data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is; the descriptor is open.
    let r = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if r == 0 { Ok(()) } else { Err(false) }
}
