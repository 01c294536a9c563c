//! Who has a port of the host, as far as /proc tells: for the message when a port is in use.

use crate::model::{HostPort, Protocol};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// How long processes are searched; who is not found by then is not named.
const PATIENCE: Duration = Duration::from_millis(200);
/// State of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Who has a port.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// This very process.
    Node,
    /// Another one, whose descriptors may be looked at.
    Process {
        /// Its id.
        pid: u32,
        /// What it is called.
        name: String,
    },
    /// Some process of this user.
    User(u32),
}

/// Who has the socket that is in a port's way.
pub fn owner(port: &HostPort) -> Option<Owner> {
    // A socket at every address of IPv6 may have IPv4's too.
    let names: &[&str] = match (port.protocol, port.at) {
        (Protocol::Tcp, SocketAddr::V4(_)) => &["tcp", "tcp6"],
        (Protocol::Tcp, SocketAddr::V6(_)) => &["tcp6"],
        (Protocol::Udp, SocketAddr::V4(_)) => &["udp", "udp6"],
        (Protocol::Udp, SocketAddr::V6(_)) => &["udp6"],
    };
    let tables = names
        .iter()
        .filter_map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok());
    let (inode, uid) = tables.into_iter().find_map(|table| in_the_way(&table, port))?;
    Some(process(inode).unwrap_or(Owner::User(uid)))
}

/// Inode and user of a socket that has the port, in a table of /proc/net.
fn in_the_way(table: &str, port: &HostPort) -> Option<(u64, u32)> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, uid, inode) = (fields.get(1)?, fields.get(3)?, fields.get(7)?, fields.get(9)?);
        let (ip, number) = local.split_once(':')?;
        if u16::from_str_radix(number, 16).ok()? != port.at.port()
            || port.protocol == Protocol::Tcp && *state != LISTEN
        {
            return None;
        }
        let (there, wanted) = (address(ip)?, port.at.ip());
        let meets = there.is_unspecified() || wanted.is_unspecified() || there == wanted;
        meets.then_some((inode.parse().ok()?, uid.parse().ok()?))
    })
}

/// An address as /proc/net has it: words of the machine's order, in hexadecimal.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok();
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into()),
        32 => {
            let mut octets = [0; 16];
            for n in 0..4 {
                octets[4 * n..4 * n + 4].copy_from_slice(&word(8 * n)?.to_ne_bytes());
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// The process that has a socket open.
fn process(inode: u64) -> Option<Owner> {
    let begun = Instant::now();
    let wanted = format!("socket:[{inode}]");
    // Most likely first.
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    for pid in std::iter::once(own).chain(pids) {
        if begun.elapsed() > PATIENCE {
            return None;
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        for fd in fds {
            if fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                if pid == own {
                    return Some(Owner::Node);
                }
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = name.trim().chars().filter(|c| !c.is_control()).collect();
                return Some(Owner::Process { pid, name });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        // Of a little-endian machine; the words are the machine's.
        if cfg!(target_endian = "big") {
            return;
        }
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F91 0100007F:8000 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 100 0 0 10 0
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
broken line
   3: XYZ:1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714";
        let port = |at: &str| HostPort {
            protocol: Protocol::Tcp,
            at: at.parse().unwrap(),
        };
        assert_eq!(in_the_way(tcp, &port("127.0.0.1:8080")), Some((4711, 1000)));
        assert_eq!(in_the_way(tcp, &port("0.0.0.0:8080")), Some((4711, 1000)));
        assert_eq!(in_the_way(tcp, &port("127.0.0.2:8080")), None);
        assert_eq!(
            in_the_way(tcp, &port("127.0.0.1:8081")),
            None,
            "it does not listen"
        );
        assert_eq!(in_the_way(tcp, &port("192.0.2.1:80")), Some((4713, 0)));
        assert_eq!(
            address("00000000000000000000000001000000"),
            Some("::1".parse().unwrap())
        );
        assert_eq!(
            address("0000000000000000FFFF00000100007F"),
            Some("127.0.0.1".parse().unwrap())
        );
        assert_eq!(address(""), None);
    }

    #[test]
    fn this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let port = HostPort {
            protocol: Protocol::Tcp,
            at,
        };
        assert_eq!(owner(&port), Some(Owner::Node));
        drop(socket);
        assert_eq!(owner(&port), None);
    }
}
