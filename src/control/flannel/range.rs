//! Where a network's subnets are cut from.

use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// IPv4 subnets of one length, from `min` to `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range4 {
    /// The whole network.
    pub net: Ipv4Net,
    /// The first subnet.
    pub min: Ipv4Net,
    /// The last subnet.
    pub max: Ipv4Net,
}

/// IPv6 subnets of one length, from `min` to `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range6 {
    /// The whole network.
    pub net: Ipv6Net,
    /// The first subnet.
    pub min: Ipv6Net,
    /// The last subnet.
    pub max: Ipv6Net,
}

impl Range4 {
    /// Length of the subnets' prefixes.
    pub fn prefix_len(&self) -> u8 {
        self.min.prefix_len()
    }

    /// How many subnets there are; never zero.
    pub fn count(&self) -> u32 {
        ((self.max.addr().to_bits() - self.min.addr().to_bits()) >> (32 - self.prefix_len())) + 1
    }

    /// Whether `net` is one of the subnets.
    pub fn fits(&self, net: Ipv4Net) -> bool {
        let within = (self.min.addr()..=self.max.addr()).contains(&net.addr());
        net == net.trunc() && net.prefix_len() == self.prefix_len() && within
    }

    /// The first subnets, in order, that overlap none of those taken; at most `most`. flannel takes one of the
    /// first hundred at random.
    pub fn free(&self, taken: impl IntoIterator<Item = Ipv4Net>, most: usize) -> Vec<Ipv4Net> {
        let wide = |ip: Ipv4Addr| u128::from(ip.to_bits());
        let taken = taken
            .into_iter()
            .map(|n| (wide(n.network()), wide(n.broadcast())));
        let ends = (wide(self.min.addr()), wide(self.max.addr()));
        free(ends, 1 << (32 - self.prefix_len()), taken.collect(), most)
            .into_iter()
            .filter_map(|ip| Ipv4Net::new(Ipv4Addr::from_bits(ip as u32), self.prefix_len()).ok())
            .collect()
    }
}

impl Range6 {
    /// Length of the subnets' prefixes.
    pub fn prefix_len(&self) -> u8 {
        self.min.prefix_len()
    }

    /// How many subnets there are; never zero.
    pub fn count(&self) -> u128 {
        ((self.max.addr().to_bits() - self.min.addr().to_bits()) >> (128 - self.prefix_len())) + 1
    }

    /// Whether `net` is one of the subnets.
    pub fn fits(&self, net: Ipv6Net) -> bool {
        let within = (self.min.addr()..=self.max.addr()).contains(&net.addr());
        net == net.trunc() && net.prefix_len() == self.prefix_len() && within
    }

    /// As [`Range4::free`]; flannel chooses both independently of each other.
    pub fn free(&self, taken: impl IntoIterator<Item = Ipv6Net>, most: usize) -> Vec<Ipv6Net> {
        let taken = taken
            .into_iter()
            .map(|n| (n.network().to_bits(), n.broadcast().to_bits()));
        let ends = (self.min.addr().to_bits(), self.max.addr().to_bits());
        free(ends, 1 << (128 - self.prefix_len()), taken.collect(), most)
            .into_iter()
            .filter_map(|ip| Ipv6Net::new(Ipv6Addr::from_bits(ip), self.prefix_len()).ok())
            .collect()
    }
}

/// The first blocks of `size` addresses (a power of two) from `first` to `last` that touch none of `taken` (first
/// and last address each). The work grows with `taken` and `most`, not with the range: one lease may cover more
/// blocks than can be walked over.
fn free((first, last): (u128, u128), size: u128, mut taken: Vec<(u128, u128)>, most: usize) -> Vec<u128> {
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut free = Vec::new();
    let mut at = first;
    while at <= last && free.len() < most {
        let next = match taken.next_if(|(from, _)| *from <= at + (size - 1)) {
            Some((_, to)) if to < at => Some(at),
            Some((_, to)) => (to & !(size - 1)).checked_add(size),
            None => {
                free.push(at);
                at.checked_add(size)
            }
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(net: &str, min: &str, max: &str) -> Range4 {
        let of = |text: &str| text.parse().unwrap();
        Range4 {
            net: of(net),
            min: of(min),
            max: of(max),
        }
    }

    #[test]
    fn free_subnets_are_found_whatever_is_taken() {
        let range = range("10.61.0.0/16", "10.61.1.0/24", "10.61.255.0/24");
        let nets = |texts: &[&str]| -> Vec<Ipv4Net> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        assert_eq!(range.free([], 2), nets(&["10.61.1.0/24", "10.61.2.0/24"]));
        assert_eq!(range.free([], 1000).len(), 255);
        // In any order, twice, outside, smaller, larger, and at the very end.
        let taken = nets(&[
            "10.61.4.128/25",
            "10.61.1.0/24",
            "10.61.1.0/24",
            "10.61.0.0/24",
            "10.61.8.0/21",
            "10.61.255.0/24",
            "192.0.2.0/24",
        ]);
        let free = range.free(taken.clone(), 1000);
        assert_eq!(free[..3], nets(&["10.61.2.0/24", "10.61.3.0/24", "10.61.5.0/24"]));
        assert_eq!(free.len(), 255 - 1 - 1 - 8 - 1);
        assert!(free.iter().all(|n| range.fits(*n)));
        assert!(range.free(nets(&["10.0.0.0/8"]), 1000).is_empty());
        assert!(range.free(nets(&["0.0.0.0/0"]), 1000).is_empty());
        // The end of the address space, and a range that nobody could walk over.
        let of = |text: &str| -> Ipv6Net { text.parse().unwrap() };
        let last = "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126";
        let six = Range6 {
            net: of("fd00::/8"),
            min: of("fd00::4/126"),
            max: of(last),
        };
        assert_eq!(six.count(), (1 << 118) - 1);
        assert!(six.free([of("fd00::/8")], 100).is_empty());
        assert!(six.free([of("::/0")], 100).is_empty());
        let free = six.free([of("fd00::/9"), of("fd80::4/126")], 100);
        assert_eq!(free[..2], [of("fd80::/126"), of("fd80::8/126")]);
        assert_eq!(free.len(), 100);
    }

    proptest! {
        /// The plain way: look at each subnet and each lease.
        #[test]
        fn free_agrees_with_a_walk(taken in proptest::collection::vec((0u32..1 << 16, 18u8..31), 0..40), most in 0usize..300) {
            let range = range("10.61.0.0/16", "10.61.3.0/24", "10.61.200.0/24");
            let taken: Vec<Ipv4Net> =
                taken.iter().map(|(ip, len)| Ipv4Net::new((0x0a3d_0000 | ip).into(), *len).unwrap().trunc()).collect();
            let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
            let all: Vec<Ipv4Net> = range.net.subnets(24).unwrap().filter(|n| range.fits(*n)).collect();
            prop_assert_eq!(all.len(), range.count() as usize);
            let walk: Vec<Ipv4Net> =
                all.into_iter().filter(|n| !taken.iter().any(|t| overlap(t, n))).take(most).collect();
            let free = range.free(taken, most);
            prop_assert_eq!(free, walk);
        }
    }
}
