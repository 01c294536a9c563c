//! Which subnet a node takes: what is its own already, what it had, or any that is free.

use super::known::{Known, Lease};
use super::spans::{Spans, overlaps, span4, span6};
use super::{Identity, Options, SubnetKey};
use crate::control::cluster::backoff::Rng;
use crate::control::flannel::{Network, Range4, Range6};
use ipnet::{Ipv4Net, Ipv6Net};
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
        let lost: BTreeSet<_> = self.lost.iter().map(|k| k.net4).collect();
        let four = free4(&self.network.range4, taken, |net| lost.contains(net));
        let net4 = *four.get(rng.below(four.len() as u64) as usize)?;
        let Some(range6) = &self.network.range6 else {
            return Some(SubnetKey { net4, net6: None });
        };
        let (min, _) = span4(&key4(self.network.range4.min));
        let (at, last) = span4(&key4(net4));
        let number = (at - min) / (last - at + 1);
        let paired = nth6(range6, number).filter(|net| is_free6(*net, taken));
        let net6 = paired.or_else(|| {
            let six = free6(range6, taken);
            six.get(rng.below(six.len() as u64) as usize).copied()
        });
        Some(SubnetKey {
            net4,
            net6: Some(net6?),
        })
    }
}

/// The first free IPv4 subnets. What is taken is jumped over, so that this takes as many steps as there are leases.
fn free4(range: &Range4, taken: &Spans, lost: impl Fn(&Ipv4Net) -> bool) -> Vec<Ipv4Net> {
    let len = range.min.prefix_len();
    let step = 1u128 << (32 - u32::from(len).min(32));
    let (first, _) = span4(&key4(range.min));
    let (end, _) = span4(&key4(range.max));
    let net = |at: u128| Ipv4Net::new((at as u32).into(), len).ok();
    walk(
        first,
        end,
        step,
        |span| taken.overlap4(span),
        |at| net(at).filter(|n| !lost(n)),
    )
}

/// The first free IPv6 subnets.
fn free6(range: &Range6, taken: &Spans) -> Vec<Ipv6Net> {
    let len = range.min.prefix_len();
    let step = 1u128.checked_shl(128 - u32::from(len)).unwrap_or(u128::MAX);
    let net = |at: u128| Ipv6Net::new(at.into(), len).ok();
    let (first, end) = (range.min.network().into(), range.max.network().into());
    walk(first, end, step, |span| taken.overlap6(span), net)
}

fn walk<N>(
    mut at: u128,
    end: u128,
    step: u128,
    taken: impl Fn((u128, u128)) -> Option<(u128, SubnetKey)>,
    free: impl Fn(u128) -> Option<N>,
) -> Vec<N> {
    let mut found = Vec::new();
    while at <= end && found.len() < CANDIDATES {
        let next = match taken((at, at.saturating_add(step - 1))) {
            Some((last, _)) => (last / step).saturating_add(1).saturating_mul(step),
            None => {
                found.extend(free(at));
                at.saturating_add(step)
            }
        };
        if next <= at {
            break; // The last address there is.
        }
        at = next;
    }
    found
}

/// The IPv6 subnet with this number, if there is one.
fn nth6(range: &Range6, number: u128) -> Option<Ipv6Net> {
    let len = range.min.prefix_len();
    let step = 1u128.checked_shl(128 - u32::from(len))?;
    let at = u128::from(range.min.network()).checked_add(number.checked_mul(step)?)?;
    (at <= range.max.network().into()).then(|| Ipv6Net::new(at.into(), len).ok())?
}

fn is_free6(net: Ipv6Net, taken: &Spans) -> bool {
    let key = SubnetKey {
        net4: Ipv4Net::default(),
        net6: Some(net),
    };
    span6(&key).is_some_and(|span| taken.overlap6(span).is_none())
}

fn key4(net4: Ipv4Net) -> SubnetKey {
    SubnetKey { net4, net6: None }
}
