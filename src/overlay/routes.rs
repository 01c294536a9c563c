//! Longest-prefix match over the peers' subnets.

use crate::model::PeerId;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;

/// Prefixes that lead to peers. Subnets of a cluster share one length, so that a lookup is one hash lookup
/// whatever the number of peers; each further length in use costs one more.
#[derive(Debug, Default)]
pub struct Routes {
    /// Longest first; per length the networks of that length.
    v4: Vec<(u8, HashMap<u32, PeerId>)>,
    v6: Vec<(u8, HashMap<u128, PeerId>)>,
}

impl Routes {
    /// Let `net` lead to `peer`, whoever it led to before.
    pub fn insert(&mut self, net: IpNet, peer: PeerId) {
        match net {
            IpNet::V4(n) => put(&mut self.v4, n.prefix_len(), u32::from(n.network()), peer),
            IpNet::V6(n) => put(&mut self.v6, n.prefix_len(), u128::from(n.network()), peer),
        }
    }

    /// Remove `net`, if it leads to `peer`.
    pub fn remove(&mut self, net: IpNet, peer: PeerId) {
        match net {
            IpNet::V4(n) => take(&mut self.v4, n.prefix_len(), u32::from(n.network()), peer),
            IpNet::V6(n) => take(&mut self.v6, n.prefix_len(), u128::from(n.network()), peer),
        }
    }

    /// The peer with the longest prefix of `ip`.
    #[inline]
    pub fn lookup(&self, ip: IpAddr) -> Option<PeerId> {
        match ip {
            IpAddr::V4(a) => {
                let bits = u32::from(a);
                let mask = |len: u8| u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                self.v4
                    .iter()
                    .find_map(|(len, nets)| nets.get(&(bits & mask(*len))).copied())
            }
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                let mask = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                self.v6
                    .iter()
                    .find_map(|(len, nets)| nets.get(&(bits & mask(*len))).copied())
            }
        }
    }
}

fn put<N: Eq + std::hash::Hash>(table: &mut Vec<(u8, HashMap<N, PeerId>)>, len: u8, net: N, peer: PeerId) {
    let at = match table.binary_search_by(|(l, _)| len.cmp(l)) {
        Ok(at) => at,
        Err(at) => {
            table.insert(at, (len, HashMap::new()));
            at
        }
    };
    table[at].1.insert(net, peer);
}

fn take<N: Eq + std::hash::Hash>(table: &mut Vec<(u8, HashMap<N, PeerId>)>, len: u8, net: N, peer: PeerId) {
    if let Ok(at) = table.binary_search_by(|(l, _)| len.cmp(l)) {
        if table[at].1.get(&net) == Some(&peer) {
            table[at].1.remove(&net);
        }
        if table[at].1.is_empty() {
            table.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins_and_removal_is_exact() {
        let mut r = Routes::default();
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let at = |r: &Routes, s: &str| r.lookup(s.parse().unwrap()).map(|p| p.0);
        r.insert(net("10.244.0.0/16"), PeerId(1));
        r.insert(net("10.244.2.0/24"), PeerId(2));
        r.insert(net("0.0.0.0/0"), PeerId(9));
        r.insert(net("fd00:2::/64"), PeerId(2));
        assert_eq!(at(&r, "10.244.2.7"), Some(2));
        assert_eq!(at(&r, "10.244.3.7"), Some(1));
        assert_eq!(at(&r, "192.0.2.1"), Some(9));
        assert_eq!(at(&r, "fd00:2::7"), Some(2));
        assert_eq!(at(&r, "fd00:3::7"), None);
        r.remove(net("10.244.2.0/24"), PeerId(1));
        assert_eq!(at(&r, "10.244.2.7"), Some(2), "not that peer's");
        r.remove(net("10.244.2.0/24"), PeerId(2));
        assert_eq!(at(&r, "10.244.2.7"), Some(1));
    }

    /// What a lookup costs: as many hash lookups as there are lengths in use, ten peers or thousands.
    #[test]
    fn a_lookup_does_not_cost_more_with_more_peers() {
        let subnet = |n: u32| IpNet::from(ipnet::Ipv4Net::new((n << 8).into(), 24).unwrap());
        let mut r = Routes::default();
        for n in 0..5000 {
            r.insert(subnet(n), PeerId(n as u16));
            r.insert(format!("fd00:0:0:{n:x}::/64").parse().unwrap(), PeerId(n as u16));
        }
        assert_eq!((r.v4.len(), r.v6.len()), (1, 1));
        for n in 0..5000 {
            r.remove(subnet(n), PeerId(n as u16));
        }
        assert_eq!((r.v4.len(), r.v6.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn equals_a_scan(nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..30), ip: u32) {
            let mut r = Routes::default();
            let mut plain: Vec<(ipnet::Ipv4Net, PeerId)> = Vec::new();
            for (i, (bits, len)) in nets.iter().enumerate() {
                // Near `ip`, so that there is something to match.
                let n = ipnet::Ipv4Net::new((ip ^ (bits & 0xff)).into(), *len).unwrap().trunc();
                plain.retain(|(p, _)| *p != n);
                plain.push((n, PeerId(i as u16)));
                r.insert(n.into(), PeerId(i as u16));
            }
            let ip = std::net::Ipv4Addr::from(ip);
            let want = plain.iter().filter(|(n, _)| n.contains(&ip)).max_by_key(|(n, _)| n.prefix_len());
            prop_assert_eq!(r.lookup(ip.into()), want.map(|(_, p)| *p));
        }
    }
}
