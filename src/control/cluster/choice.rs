//! Which subnet a node takes: what is its own already, what it had, or any that is free.

use super::backoff::Rng;
use super::known::{Known, Lease};
use super::spans::{Spans, overlaps};
use super::{Identity, Options, SubnetKey};
use crate::control::flannel::{Network, Range6};
use ipnet::Ipv6Net;
use std::collections::BTreeSet;

/// One of so many free subnets is taken by chance, as flannel does it: nodes that start together seldom meet.
const CANDIDATES: usize = 100;

/// What to do for a subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// This lease is the node's own: write it again.
    Take(SubnetKey),
    /// This subnet is free: create it.
    Create(SubnetKey),
    /// This lease is the node's own and of no use: delete it.
    Delete(SubnetKey),
    /// There is nothing to take, and why.
    Nothing(String),
}

/// What a choice depends on.
pub(super) struct Chooser<'a> {
    pub(super) me: &'a Identity,
    pub(super) options: &'a Options,
    pub(super) network: &'a Network,
    pub(super) known: &'a Known,
    /// Races that were lost and creations nobody answered, since the last list.
    pub(super) lost: &'a BTreeSet<SubnetKey>,
    /// The creation that was not answered last: it may still happen, so it is tried first.
    pub(super) doubtful: Option<SubnetKey>,
}

impl Chooser<'_> {
    /// The best choice: the lease of this node's identity (also with another address), that of its address, the
    /// subnet it had, one of the first 100 free ones.
    pub(super) fn choose(&self, rng: &mut Rng) -> Choice {
        let leases = || self.known.leases.iter().filter(|(_, l)| l.gone.is_none());
        let mut own: Vec<_> = leases().filter(|(_, l)| self.is_own(l)).collect();
        let had = |key: &SubnetKey| self.options.previous == Some(*key);
        own.sort_by_key(|(key, l)| (l.id().is_none(), !had(key), l.age()));
        match (own.iter().find(|(key, l)| self.is_good(key, l)), own.first()) {
            (Some((key, _)), _) => return Choice::Take(**key),
            (None, Some((key, _))) => return Choice::Delete(**key),
            (None, None) => {}
        }
        let mut taken = Spans::default();
        self.known.leases.keys().for_each(|key| taken.cover(key));
        let free = |key: &SubnetKey| taken.overlap(key).is_none() && !self.lost.contains(key);
        if let Some(fixed) = self.options.fixed {
            return self.fixed(fixed, &taken);
        }
        let good = |key: &SubnetKey| self.network.fits(key) && free(key);
        if let Some(key) = [self.doubtful, self.options.previous]
            .into_iter()
            .flatten()
            .find(good)
        {
            return Choice::Create(key);
        }
        match self.any(&taken, rng) {
            Some(key) => Choice::Create(key),
            None => Choice::Nothing(format!(
                "all subnets from {} to {} are taken (let leases run out, or make the network larger)",
                self.network.range4.min, self.network.range4.max
            )),
        }
    }

    /// By identity, or, where none is said, by address.
    fn is_own(&self, lease: &Lease) -> bool {
        match lease.id() {
            Some(id) => id == self.me.abilities.id,
            None => lease
                .value
                .as_ref()
                .is_some_and(|v| v.public_ip == self.me.public_ip),
        }
    }

    /// Whether an own lease can be used: it fits, is the fixed one if there is one, and nobody has an older claim.
    fn is_good(&self, key: &SubnetKey, lease: &Lease) -> bool {
        let older = |(k, l): (&SubnetKey, &Lease)| k != key && l.age() < lease.age() && overlaps(k, key);
        self.network.fits(key)
            && self.options.fixed.is_none_or(|f| f == *key)
            && !self.known.leases.iter().any(older)
    }

    fn fixed(&self, fixed: SubnetKey, taken: &Spans) -> Choice {
        if !self.network.fits(&fixed) {
            return Choice::Nothing(format!(
                "the subnet {fixed} that is configured is none of the network {} (subnets of /{} from {} to {})",
                self.network.range4.net,
                self.network.range4.min.prefix_len(),
                self.network.range4.min,
                self.network.range4.max
            ));
        }
        match taken.overlap(&fixed) {
            Some(key) => {
                let lease = self.known.leases.get(&key);
                let who = lease.map(Lease::holder).unwrap_or_default();
                Choice::Nothing(format!(
                    "the subnet {fixed} that is configured is taken: {who} has {key}"
                ))
            }
            None => Choice::Create(fixed),
        }
    }

    /// One of the first free subnets. The IPv6 subnet of a dual-stack lease is the one with the same number, if it
    /// is free: nodes that want the same IPv4 subnet then meet at one key, where one of them loses.
    fn any(&self, taken: &Spans, rng: &mut Rng) -> Option<SubnetKey> {
        let keys = || self.known.leases.keys().chain(self.lost);
        let range4 = &self.network.range4;
        let net4 = pick(range4.free(keys().map(|k| k.net4), CANDIDATES), rng)?;
        let Some(range6) = &self.network.range6 else {
            return Some(SubnetKey { net4, net6: None });
        };
        let number = (net4.addr().to_bits() - range4.min.addr().to_bits()) >> (32 - range4.prefix_len());
        let paired = nth(range6, number.into()).filter(|net| {
            let key = SubnetKey {
                net4,
                net6: Some(*net),
            };
            taken.overlap(&key).is_none()
        });
        let any6 = || pick(range6.free(keys().filter_map(|k| k.net6), CANDIDATES), rng);
        let net6 = Some(paired.or_else(any6)?);
        Some(SubnetKey { net4, net6 })
    }
}

fn pick<N>(mut of: Vec<N>, rng: &mut Rng) -> Option<N> {
    let at = rng.below(of.len() as u64) as usize;
    (at < of.len()).then(|| of.swap_remove(at))
}

/// The IPv6 subnet with this number, if there is one.
fn nth(range: &Range6, number: u128) -> Option<Ipv6Net> {
    let size = 1u128.checked_shl(128 - u32::from(range.prefix_len()))?;
    let at = range
        .min
        .addr()
        .to_bits()
        .checked_add(number.checked_mul(size)?)?;
    Ipv6Net::new(at.into(), range.prefix_len())
        .ok()
        .filter(|net| range.fits(*net))
}
