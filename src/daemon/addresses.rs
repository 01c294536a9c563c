//! Follows the host's own addresses, those that only a `local` route makes its own among them: peers must know where a node is reached when its address changes, and to its own
//! pods they are closed.

use super::config::Config;
use super::links::Host;
use crate::stack::egress::Own;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

// Groups of rtnetlink(7): addresses, and the routes they are chosen by.
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// An IPv4 address that peers are told, and an IPv6 one.
pub type Published = (Ipv4Addr, Option<Ipv6Addr>);

/// The host's addresses, and those of them that are published by a node that did not fix them.
pub struct AddressWatch {
    socket: Socket,
    known: Option<Published>,
    own: Own,
}

/// What [`AddressWatch::changed`] found.
#[derive(Default)]
pub struct Moved {
    /// The addresses to publish, when they are other ones now.
    pub published: Option<Published>,
    /// The host, when any of its addresses is another one now.
    pub host: Option<Host>,
}

impl AddressWatch {
    /// Watch for changes of the addresses of `host`, and of those that were published unless they are fixed.
    ///
    /// # Errors
    /// When the kernel does not tell of them.
    pub fn new(host: &Host, known: Option<Published>) -> io::Result<AddressWatch> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(AddressWatch {
            socket,
            known,
            own: host.own().collect(),
        })
    }

    /// Take what the kernel tells; what is another now. A host that has none for the moment
    /// keeps what it had: peers have nothing better.
    pub fn changed(&mut self, config: &Config) -> Moved {
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // More than the kernel could keep: what it is now is asked below.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => break,
            }
        }
        let host = Host::ask();
        let mut moved = Moved::default();
        if let (Some(known), Some(now)) = (&mut self.known, config.published(&host)) {
            moved.published = (now != *known).then_some(now);
            *known = now;
        }
        let own = host.own().collect();
        if own != self.own {
            self.own = own;
            moved.host = Some(host);
        }
        moved
    }
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
