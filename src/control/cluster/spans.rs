//! Subnets, found by overlap in logarithmic time.

use super::SubnetKey;
use std::collections::BTreeMap;

/// Subnets of which no two overlap, each with the key it belongs to.
#[derive(Debug, Default)]
pub(super) struct Spans {
    v4: Family,
    v6: Family,
}

/// First address to last address and owner.
type Family = BTreeMap<u128, (u128, SubnetKey)>;

impl Spans {
    /// The owner of a subnet that overlaps one of `key`.
    pub(super) fn overlap(&self, key: &SubnetKey) -> Option<SubnetKey> {
        let six = || overlap(&self.v6, span6(key)?);
        overlap(&self.v4, span4(key)).or_else(six)
    }

    /// Add the subnets of `key`. Those that lie within them are swallowed; when they lie within one that is there,
    /// nothing changes: prefixes are nested or apart.
    pub(super) fn cover(&mut self, key: &SubnetKey) {
        cover(&mut self.v4, span4(key), key);
        if let Some(span) = span6(key) {
            cover(&mut self.v6, span, key);
        }
    }
}

/// First and last IPv4 address of a key.
fn span4(key: &SubnetKey) -> (u128, u128) {
    let first = u32::from(key.net4.network());
    (first.into(), u32::from(key.net4.broadcast()).into())
}

/// First and last IPv6 address of a key.
fn span6(key: &SubnetKey) -> Option<(u128, u128)> {
    key.net6.map(|n| (n.network().into(), n.broadcast().into()))
}

/// Whether two keys have an address in common.
pub(super) fn overlaps(a: &SubnetKey, b: &SubnetKey) -> bool {
    let meet = |(a, z): (u128, u128), (b, y): (u128, u128)| a <= y && b <= z;
    let six = || Some(meet(span6(a)?, span6(b)?));
    meet(span4(a), span4(b)) || six().unwrap_or(false)
}

fn overlap(family: &Family, (first, last): (u128, u128)) -> Option<SubnetKey> {
    let (_, (end, owner)) = family.range(..=last).next_back()?;
    (*end >= first).then_some(*owner)
}

fn cover(family: &mut Family, (first, last): (u128, u128), key: &SubnetKey) {
    let around = family.range(..=first).next_back();
    if around.is_some_and(|(_, (end, _))| *end >= last) {
        return;
    }
    while let Some((start, _)) = family.range(first..=last).next() {
        let start = *start;
        family.remove(&start);
    }
    family.insert(first, (last, *key));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(four: &str, six: Option<&str>) -> SubnetKey {
        SubnetKey {
            net4: four.parse().unwrap(),
            net6: six.map(|n| n.parse().unwrap()),
        }
    }

    #[test]
    fn either_family_makes_an_overlap() {
        let mut spans = Spans::default();
        let one = key("10.0.1.0/24", Some("fd00:1::/64"));
        spans.cover(&one);
        assert_eq!(spans.overlap(&key("10.0.1.128/25", None)), Some(one));
        assert_eq!(spans.overlap(&key("10.0.2.0/24", Some("fd00:1::/48"))), Some(one));
        assert_eq!(spans.overlap(&key("10.0.2.0/24", Some("fd00:2::/64"))), None);
        assert!(overlaps(&one, &key("10.0.0.0/16", None)));
        assert!(!overlaps(&one, &key("10.1.0.0/16", Some("fd00:2::/64"))));
    }

    proptest! {
        #[test]
        fn spans_agree_with_looking_at_each(nets in proptest::collection::vec((any::<u8>(), 24u8..32), 0..20), ask in (any::<u8>(), 24u8..32)) {
            let of = |(last, len): (u8, u8)| SubnetKey {
                net4: ipnet::Ipv4Net::new([10, 0, 0, last].into(), len).unwrap().trunc(),
                net6: None,
            };
            let mut spans = Spans::default();
            nets.iter().for_each(|n| spans.cover(&of(*n)));
            let each = nets.iter().any(|n| overlaps(&of(*n), &of(ask)));
            prop_assert_eq!(spans.overlap(&of(ask)).is_some(), each);
        }
    }
}
