//! The network below: hosts with an `eth0` each, joined by the relay.
//!
//! ```text
//!   host 0 (n1)        host 1 (n2)        last host (a stranger: no node, known to nobody)
//!   192.0.2.1          192.0.2.2          192.0.2.N
//!   2001:db8::1        2001:db8::2        2001:db8::N
//!      eth0               eth0               eth0            TAPs, MTU 1500
//!  =====|==================|==================|======= relay
//! ```

use super::netns::Netns;
use super::relay::{self, Relay};
use podwire::model::OffloadMode;
use podwire::sys::tap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A machine of the underlay.
pub struct Host {
    /// Where it is.
    pub netns: Netns,
    /// Its IPv4 address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address.
    pub ip6: Ipv6Addr,
}

/// Hosts and the relay between them; link N of the relay is that of host N.
pub struct Underlay {
    /// The machines.
    pub hosts: Vec<Host>,
    /// What joins them.
    pub relay: Relay,
}

impl Underlay {
    /// So many hosts that reach each other, on links with or without offloads (see [`Relay`]).
    pub fn new(hosts: usize, seed: u64, links: OffloadMode) -> Underlay {
        let mut taps = Vec::new();
        let hosts = (0..hosts)
            .map(|link| {
                let netns = Netns::new();
                let made = netns.within(|| tap::create("eth0", links));
                let (tap, _) = made.expect("a TAP for the relay");
                taps.push(tap);
                let n = link as u8 + 1;
                let mac = relay::mac(link).map(|b| format!("{b:02x}")).join(":");
                netns.ip(&format!(
                    "link set eth0 address {mac} txqueuelen 10000 up\n\
                     addr add 192.0.2.{n}/24 dev eth0\n\
                     addr add 2001:db8::{n}/64 dev eth0 nodad\n"
                ));
                Host {
                    netns,
                    ip4: Ipv4Addr::new(192, 0, 2, n),
                    ip6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()),
                }
            })
            .collect();
        Underlay {
            hosts,
            relay: Relay::start(taps, seed, links),
        }
    }
}
