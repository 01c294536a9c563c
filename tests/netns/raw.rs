//! Sockets that std and rustix have no safe call for: raw Ethernet, and UDP_SEGMENT.
#![allow(unsafe_code)] // libc::bind with a sockaddr_ll, libc::setsockopt with SOL_UDP.

use super::netns::Netns;
use super::pod::Pod;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

/// A raw Ethernet socket on an interface.
pub struct Raw(OwnedFd);

impl Raw {
    /// One that only sends.
    pub fn sender(pod: &Pod) -> Raw {
        Raw::open(&pod.netns, "eth0", 0)
    }

    /// One that also hears all that the interface receives and sends.
    pub fn listener(pod: &Pod) -> Raw {
        Raw::on(&pod.netns, "eth0")
    }

    /// One that only sends, each frame behind a virtio-net header of ours, which the pod's kernel obeys as far
    /// as it makes sense to it (PACKET_VNET_HDR).
    pub fn sender_with_vnet_hdr(pod: &Pod) -> Raw {
        let raw = Raw::sender(pod);
        let on: libc::c_int = 1;
        // SAFETY: PACKET_VNET_HDR reads an int of the stated length, which `on` is.
        let rc = unsafe {
            libc::setsockopt(
                raw.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        assert_eq!(rc, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
        raw
    }

    /// One that hears all that an interface receives and sends.
    pub fn on(netns: &Netns, interface: &str) -> Raw {
        Raw::open(netns, interface, libc::ETH_P_ALL as u16)
    }

    fn open(netns: &Netns, interface: &str, protocol: u16) -> Raw {
        netns.within(|| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
                .expect("a packet socket");
            let index = rustix::net::netdevice::name_to_index(&socket, interface).expect("an interface");
            // SAFETY: an all-zero sockaddr_ll is valid: it holds integers only.
            let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            name.sll_family = libc::AF_PACKET as u16;
            name.sll_protocol = protocol.to_be();
            name.sll_ifindex = index as i32;
            // SAFETY: bind reads a sockaddr_ll of the stated length, which `name` is.
            let rc = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const name).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                )
            };
            assert_eq!(rc, 0, "binding to {interface}: {}", io::Error::last_os_error());
            Raw(socket)
        })
    }

    /// Send a frame.
    ///
    /// # Errors
    /// When the pod's kernel refuses it.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, frame, SendFlags::empty())?;
        Ok(())
    }

    /// Send a frame that the pod's kernel takes.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        if let Err(e) = self.try_send(frame) {
            panic!("a frame of {} bytes: {e}", frame.len());
        }
    }

    /// Whether a frame that holds `mark` somewhere was heard since the last call.
    pub fn heard(&self, mark: &[u8]) -> bool {
        let mut heard = false;
        self.frames(|frame| heard |= frame.windows(mark.len()).any(|part| part == mark));
        heard
    }

    /// Look at each frame heard since the last call.
    pub fn frames(&self, mut look: impl FnMut(&[u8])) {
        let mut buffer = vec![0; 65_600];
        while let Ok(n) = rustix::io::read(&self.0, &mut buffer[..]) {
            look(&buffer[..n]);
        }
    }
}

/// Let a socket cut what it sends into datagrams of `size` bytes.
pub fn segment(socket: &UdpSocket, size: u16) {
    let size = libc::c_int::from(size);
    // SAFETY: UDP_SEGMENT reads an int of the stated length, which `size` is.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(rc, 0, "UDP_SEGMENT: {}", io::Error::last_os_error());
}

/// A TCP connection to `at` whose every packet carries IP options: IPv4 no-operations, IPv6 destination options.
pub fn connect_with_options(at: SocketAddr) -> io::Result<TcpStream> {
    let (domain, level, name): (_, _, libc::c_int) = match at {
        SocketAddr::V4(_) => (AddressFamily::INET, libc::IPPROTO_IP, libc::IP_OPTIONS),
        SocketAddr::V6(_) => (AddressFamily::INET6, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS),
    };
    let options: &[u8] = match at {
        SocketAddr::V4(_) => &[1; 8],
        SocketAddr::V6(_) => &[0, 0, 1, 4, 0, 0, 0, 0],
    };
    let socket = rustix::net::socket_with(domain, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the option is read from `options`, whose length is told.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            options.as_ptr().cast(),
            options.len() as u32,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::connect(&socket, &at)?;
    Ok(socket.into())
}
