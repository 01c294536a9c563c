//! The sockets of published ports, and why one could not be had.

use super::Wanted;
use super::owner::{Owner, owner};
use crate::api::ErrorKind;
use crate::daemon::admin::Refusal;
use crate::model::{HostPort, Protocol};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Connections that may wait for the node; the kernel takes what net.core.somaxconn allows of it.
const BACKLOG: i32 = 4096;
/// Where the kernel says which ports anybody may have.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Make all sockets, or none. One that is optional is left out where the host has no such address.
///
/// # Errors
/// Who has the first that could not be had, or what else is in the way.
pub fn bind_all(wanted: Vec<Wanted>) -> Result<Vec<(Wanted, OwnedFd)>, Refusal> {
    let mut sockets = Vec::with_capacity(wanted.len());
    for one in wanted {
        match bind(&one.port) {
            Ok(socket) => sockets.push((one, socket)),
            Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) if one.optional => {}
            Err(e) => return Err(refusal(&one.port, e)),
        }
    }
    Ok(sockets)
}

/// Whether somebody has a port still: to ask again and again costs no search for who that is.
pub fn is_held(port: &HostPort) -> bool {
    matches!(bind(port), Err(Errno::ADDRINUSE))
}

/// A socket of the host; one of TCP listens.
fn bind(port: &HostPort) -> Result<OwnedFd, Errno> {
    let family = match port.at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if port.at.is_ipv6() {
        // 0.0.0.0 is another port, and may be another pod's.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if port.protocol == Protocol::Tcp {
        // Connections of a node before this one may linger (TIME-WAIT).
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &port.at)?;
    if port.protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn refusal(port: &HostPort, e: Errno) -> Refusal {
    let (kind, what) = match e {
        Errno::ADDRINUSE => {
            let by = match owner(port) {
                Some(Owner::Node) => "by this node itself (for a flow of a pod, or its own business)".into(),
                Some(Owner::Process { pid, name }) => format!("by {name} (process {pid})"),
                Some(Owner::User(uid)) => format!("by a program of the user with id {uid}"),
                None => "by another program".into(),
            };
            let what = format!("{port} is held {by}: end that, or publish another port");
            (ErrorKind::Taken, what)
        }
        Errno::ACCESS | Errno::PERM => {
            let least = std::fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
            let least = least.trim().parse().unwrap_or(1024);
            let n = port.at.port();
            let what = match n < least {
                true => format!(
                    "{port} is a privileged port, which the node's user may not have: publish one from {least} on, \
                     or allow it once, as root: sysctl -w net.ipv4.ip_unprivileged_port_start={n}"
                ),
                false => format!("{port}: the kernel does not allow it ({e})"),
            };
            (ErrorKind::Permission, what)
        }
        Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
            let what = format!(
                "{} is no address of this host (`ip address` lists them; {} is all of them)",
                port.at.ip(),
                if port.at.is_ipv4() { "0.0.0.0" } else { "[::]" }
            );
            (ErrorKind::Usage, what)
        }
        Errno::MFILE | Errno::NFILE => {
            let what = format!("{port}: {e} (raise `ulimit -n` where the node is started)");
            (ErrorKind::Exhausted, what)
        }
        e => (ErrorKind::Internal, format!("{port} cannot be published: {e}")),
    };
    Refusal::new(kind, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortMapping;
    use std::net::{TcpListener, UdpSocket};

    fn wanted(at: SocketAddr, protocol: Protocol, optional: bool) -> Wanted {
        Wanted {
            port: HostPort { protocol, at },
            to: "10.244.1.2:80".parse().unwrap(),
            mapping: PortMapping {
                host: None,
                first: at.port(),
                pod: 80,
                count: 1,
                protocol,
            },
            optional,
        }
    }

    #[test]
    fn a_port_that_is_held_is_told_with_its_holder_and_none_is_kept() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        let both = vec![
            wanted(tcp, Protocol::Tcp, false),
            wanted(at, Protocol::Udp, false),
        ];
        let said = bind_all(both).unwrap_err();
        assert_eq!(said.kind, ErrorKind::Taken);
        // This very process plays the node.
        assert!(
            said.message.contains("held by this node itself"),
            "{}",
            said.message
        );
        // A process that another test starts has everything open until it is a program of its own.
        let free = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            bind_all(vec![wanted(tcp, Protocol::Tcp, false)]).is_ok()
        });
        assert!(free, "the first was not let go");
    }

    #[test]
    fn an_address_of_others_is_told_unless_nobody_named_it() {
        let far: SocketAddr = "192.0.2.77:8080".parse().unwrap();
        let said = bind_all(vec![wanted(far, Protocol::Tcp, false)]).unwrap_err();
        assert_eq!(said.kind, ErrorKind::Usage);
        assert!(
            said.message.contains("no address of this host"),
            "{}",
            said.message
        );
        let left = bind_all(vec![wanted(far, Protocol::Udp, true)]).unwrap();
        assert!(left.is_empty());
    }
}
