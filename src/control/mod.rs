//! Sources of truth: who the peers are, and every change of it, as [`crate::model::Change`]s.
//!
//! One is a static file of peers: [`peers`] gives it meaning, [`file`] watches it. The other is a cluster whose nodes
//! lease their subnets in etcd, as flannel's do: [`flannel`] has the formats, [`cluster`] decides, [`etcd`] talks to the
//! store, [`memory`] keeps the last state on disk. All sources fail static: what is unreadable, invalid or gone leaves
//! the last state in force and warns once. [`strict`] reads podwire's TOML files, and says where in them a mistake is.
//! [`durable`] replaces files as a whole.

pub mod cluster;
pub mod durable;
pub mod etcd;
pub mod file;
pub mod flannel;
pub mod memory;
pub mod peers;
pub mod services;
pub mod store;
pub mod strict;
mod trail;

use crate::model::Mac;
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::Ipv4Addr;

/// The VTEP MAC of a node that names none, so that nodes with nothing but a static file agree on it: from the
/// IPv4 subnet, or from the last 32 bits of the IPv6 prefix, which is where subnets of one cluster differ.
pub fn default_vtep_mac(subnet4: Option<Ipv4Net>, subnet6: Option<Ipv6Net>) -> Mac {
    let base = match (subnet4, subnet6) {
        (Some(net), _) => net.network(),
        (None, Some(net)) => {
            let prefix = u128::from(net.network()) >> (128 - u32::from(net.prefix_len())).min(127);
            Ipv4Addr::from((prefix & u128::from(u32::MAX)) as u32)
        }
        (None, None) => Ipv4Addr::UNSPECIFIED,
    };
    Mac::of_vtep(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vtep_macs_differ_where_subnets_differ() {
        let four = default_vtep_mac(Some("10.244.1.0/24".parse().unwrap()), None);
        assert_eq!(four, "0e:57:0a:f4:01:00".parse().unwrap());
        let six = |n: &str| default_vtep_mac(None, Some(n.parse().unwrap()));
        assert_eq!(six("fd00:10:244:1::/64"), "0e:57:02:44:00:01".parse().unwrap());
        assert_ne!(six("fd00:10:244:1::/64"), six("fd00:10:244:2::/64"));
        assert_ne!(six("fd00::4/126"), six("fd00::8/126"));
    }
}
