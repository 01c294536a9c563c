//! Who has what there is one of: a virtual address, a node port.
//!
//! Everybody lists what he would take, in order (what was given by a person is a list of one; what is allocated follows
//! from the Service's name). Each thing goes to the best of those who want it: what was given comes before what is
//! allocated, then the Service's name decides. Since all things have that one order, there is exactly one outcome in
//! which nobody has a right to what another has, and it is found by asking in turn, whatever comes first: all nodes
//! agree, and one change moves only those it concerns.

use super::manifest::Family;
use super::rules::{Pool, Rules};
use crate::model::{ServiceName, Transport};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How many things somebody asks for before there is none for him.
const MAX_TRIES: u32 = 1024;

/// Something there is one of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Thing {
    /// A virtual address.
    Address(IpAddr),
    /// A port on every node.
    Port(u16, Transport),
    /// A port of an external address.
    Outside(SocketAddr, Transport),
}

/// What of a Service wants it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Slot {
    /// Its address of a family.
    Address(Family),
    /// The node port of its n-th port.
    Port(u16),
    /// Its n-th port at its m-th external address.
    Outside(u16, u16),
    /// Its health check.
    Health,
}

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// This.
    Given(Thing),
    /// Any address of the family.
    Address(Family),
    /// Any node port, for this port of the Service.
    Port(u16, Transport),
}

/// Who wants it; the lesser comes first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Claimant {
    allocated: bool,
    service: ServiceName,
    slot: Slot,
}

struct Claim {
    wish: Wish,
    /// Which of the list he has, or has asked for last.
    tries: u32,
    has: Option<Thing>,
}

/// Who has what.
pub(super) struct Claims {
    four: Option<Pool>,
    six: Option<Pool>,
    ports: Pool,
    claims: HashMap<Claimant, Claim>,
    holders: HashMap<Thing, Claimant>,
    /// Who asked for it and did not get it.
    passed: HashMap<Thing, BTreeSet<Claimant>>,
    /// By Service: what it wants.
    wishes: HashMap<ServiceName, Vec<(Slot, Wish)>>,
    /// Whose things have changed.
    moved: BTreeSet<ServiceName>,
}

impl Claims {
    pub fn new(rules: &Rules) -> Claims {
        Claims {
            four: rules.addresses(Family::V4),
            six: rules.addresses(Family::V6),
            ports: rules.ports(),
            claims: HashMap::new(),
            holders: HashMap::new(),
            passed: HashMap::new(),
            wishes: HashMap::new(),
            moved: BTreeSet::new(),
        }
    }

    /// A Service wants this now, and nothing else.
    pub fn want(&mut self, service: &ServiceName, wishes: Vec<(Slot, Wish)>) {
        let before = match wishes.is_empty() {
            true => self.wishes.remove(service),
            false => self.wishes.insert(service.clone(), wishes.clone()),
        };
        let before = before.unwrap_or_default();
        for (slot, wish) in &before {
            if !wishes.contains(&(*slot, *wish)) {
                self.withdraw(&claimant(service, *slot, *wish));
            }
        }
        for (slot, wish) in wishes {
            if !before.contains(&(slot, wish)) {
                self.claim(claimant(service, slot, wish), wish);
            }
        }
    }

    /// The external addresses of which a Service wants ports.
    pub fn external(&self, service: &ServiceName) -> BTreeSet<IpAddr> {
        let wishes = self.wishes.get(service).into_iter().flatten();
        let address = |(_, wish): &(Slot, Wish)| match wish {
            Wish::Given(Thing::Outside(at, _)) => Some(at.ip()),
            _ => None,
        };
        wishes.filter_map(address).collect()
    }

    /// What a Service has in a slot.
    pub fn has(&self, service: &ServiceName, slot: Slot) -> Option<Thing> {
        let wishes = self.wishes.get(service)?;
        let (_, wish) = wishes.iter().find(|(s, _)| *s == slot)?;
        self.claims.get(&claimant(service, slot, *wish))?.has
    }

    /// What a Service has in a slot, or what it could have there without anybody losing his; nothing of `taken`.
    pub fn could_have(
        &self,
        service: &ServiceName,
        slot: Slot,
        wish: Wish,
        taken: &HashSet<Thing>,
    ) -> Option<Thing> {
        self.has(service, slot).or_else(|| {
            let who = claimant(service, slot, wish);
            let all = (0..MAX_TRIES).map_while(|n| self.nth(&who, wish, n));
            let mut free = all.filter(|t| !self.holders.contains_key(t) && !taken.contains(t));
            free.next()
        })
    }

    /// Who has a thing.
    pub fn holder(&self, thing: Thing) -> Option<&ServiceName> {
        self.holders.get(&thing).map(|c| &c.service)
    }

    /// Whose things have changed since the last time.
    pub fn take_moved(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.moved)
    }

    fn claim(&mut self, who: Claimant, wish: Wish) {
        self.moved.insert(who.service.clone());
        let claim = Claim {
            wish,
            tries: 0,
            has: None,
        };
        self.claims.insert(who.clone(), claim);
        self.ask(who);
    }

    /// Somebody without a thing asks on, and whoever loses his to him asks on himself.
    fn ask(&mut self, mut who: Claimant) {
        loop {
            let Some(claim) = self.claims.get(&who) else {
                return;
            };
            let Some(thing) = self.nth(&who, claim.wish, claim.tries) else {
                return;
            };
            match self.holders.get(&thing) {
                Some(holder) if *holder <= who => {
                    self.pass(thing, who.clone());
                }
                Some(_) => {
                    let Some(loser) = self.holders.insert(thing, who.clone()) else {
                        return;
                    };
                    self.tell(thing);
                    self.give(&who, Some(thing));
                    self.give(&loser, None);
                    self.pass(thing, loser.clone());
                    who = loser;
                }
                None => {
                    self.holders.insert(thing, who.clone());
                    self.give(&who, Some(thing));
                    return;
                }
            }
        }
    }

    fn give(&mut self, who: &Claimant, thing: Option<Thing>) {
        self.moved.insert(who.service.clone());
        if let Some(claim) = self.claims.get_mut(who) {
            claim.has = thing;
        }
    }

    /// A thing has another holder: those who did not get it are told who has it.
    fn tell(&mut self, thing: Thing) {
        let others = self.passed.get(&thing).into_iter().flatten();
        self.moved.extend(others.map(|c| c.service.clone()));
    }

    fn pass(&mut self, thing: Thing, who: Claimant) {
        if let Some(claim) = self.claims.get_mut(&who) {
            claim.tries += 1;
        }
        // Whoever is told why must be told anew.
        self.moved.insert(who.service.clone());
        self.passed.entry(thing).or_default().insert(who);
    }

    fn unpass(&mut self, thing: Thing, who: &Claimant) {
        if let Some(all) = self.passed.get_mut(&thing) {
            all.remove(who);
            if all.is_empty() {
                self.passed.remove(&thing);
            }
        }
    }

    fn withdraw(&mut self, who: &Claimant) {
        self.moved.insert(who.service.clone());
        let Some(claim) = self.claims.remove(who) else {
            return;
        };
        for n in 0..claim.tries {
            if let Some(thing) = self.nth(who, claim.wish, n) {
                self.unpass(thing, who);
            }
        }
        if let Some(thing) = claim.has {
            self.free(thing);
        }
    }

    /// A thing is nobody's: the first of those who did not get it does, and what he had is free in turn.
    fn free(&mut self, mut thing: Thing) {
        loop {
            self.holders.remove(&thing);
            let Some(next) = self.passed.get(&thing).and_then(BTreeSet::first).cloned() else {
                return;
            };
            self.tell(thing);
            let Some(claim) = self.claims.get(&next) else {
                self.unpass(thing, &next);
                continue;
            };
            let (wish, tries, had) = (claim.wish, claim.tries, claim.has);
            let at = (0..tries)
                .find(|n| self.nth(&next, wish, *n) == Some(thing))
                .unwrap_or(0);
            for n in at..tries {
                if let Some(passed) = self.nth(&next, wish, n) {
                    self.unpass(passed, &next);
                }
            }
            self.holders.insert(thing, next.clone());
            self.give(&next, Some(thing));
            if let Some(claim) = self.claims.get_mut(&next) {
                claim.tries = at;
            }
            match had {
                Some(had) => thing = had,
                None => return,
            }
        }
    }

    /// The n-th thing on somebody's list; no thing stands there twice.
    fn nth(&self, who: &Claimant, wish: Wish, n: u32) -> Option<Thing> {
        let (pool, salt) = match wish {
            Wish::Given(thing) => return (n == 0).then_some(thing),
            Wish::Address(Family::V4) => (self.four?, 0),
            Wish::Address(Family::V6) => (self.six?, 0),
            // One number for TCP and UDP, where both are free.
            Wish::Port(port, _) => (self.ports, port),
        };
        if n >= pool.count.min(MAX_TRIES) {
            return None;
        }
        let hash = hash(&who.service, salt);
        let (start, mut step) = (hash as u32 % pool.count, (hash >> 32) as u32 % pool.count);
        while gcd(step, pool.count) != 1 {
            step = step.wrapping_add(1) % pool.count.max(2);
        }
        let at = (u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(pool.count);
        let value = pool.first + u128::from(at);
        Some(match wish {
            Wish::Address(Family::V4) => Thing::Address(Ipv4Addr::from(value as u32).into()),
            Wish::Address(Family::V6) => Thing::Address(Ipv6Addr::from(value).into()),
            Wish::Port(_, transport) => Thing::Port(value as u16, transport),
            Wish::Given(thing) => thing,
        })
    }
}

fn claimant(service: &ServiceName, slot: Slot, wish: Wish) -> Claimant {
    Claimant {
        allocated: !matches!(wish, Wish::Given(_)),
        service: service.clone(),
        slot,
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// FNV-1a with a finish that spreads it: the same in every version of podwire, as nodes must agree.
fn hash(service: &ServiceName, salt: u16) -> u64 {
    let bytes = service
        .namespace
        .bytes()
        .chain([b'/'])
        .chain(service.name.bytes());
    let bytes = bytes.chain([b':']).chain(salt.to_be_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::services::catalogue::tests::rules;
    use proptest::prelude::*;

    fn name(n: u8) -> ServiceName {
        format!("s{n}").parse().unwrap()
    }

    fn address(s: &str) -> Thing {
        Thing::Address(s.parse().unwrap())
    }

    const FOUR: Slot = Slot::Address(Family::V4);

    #[test]
    fn allocation_never_changes() {
        let mut claims = Claims::new(&rules());
        claims.want(
            &name(1),
            vec![
                (FOUR, Wish::Address(Family::V4)),
                (Slot::Port(0), Wish::Port(80, Transport::Tcp)),
            ],
        );
        // Nodes of other versions must agree: whoever changes this breaks clusters.
        assert_eq!(claims.has(&name(1), FOUR), Some(address("10.96.233.168")));
        assert_eq!(
            claims.has(&name(1), Slot::Port(0)),
            Some(Thing::Port(31_099, Transport::Tcp))
        );
    }

    #[test]
    fn the_first_name_wins_and_the_next_follows() {
        let mut claims = Claims::new(&rules());
        let given = |ip| vec![(FOUR, Wish::Given(address(ip)))];
        claims.want(&name(2), given("10.96.0.10"));
        claims.want(&name(3), given("10.96.0.10"));
        claims.want(&name(1), given("10.96.0.10"));
        let holder = |c: &Claims| c.holder(address("10.96.0.10")).cloned();
        assert_eq!(holder(&claims), Some(name(1)));
        claims.take_moved();
        claims.want(&name(1), Vec::new());
        assert_eq!(holder(&claims), Some(name(2)));
        assert_eq!(
            claims.take_moved().len(),
            3,
            "the third is told of another holder"
        );
        claims.want(&name(2), given("10.96.0.11"));
        assert_eq!(holder(&claims), Some(name(3)));
        // What is given comes before what was allocated.
        claims.want(&name(0), vec![(FOUR, Wish::Address(Family::V4))]);
        let Some(Thing::Address(ip)) = claims.has(&name(0), FOUR) else {
            panic!()
        };
        claims.want(&name(9), given(&ip.to_string()));
        assert_eq!(claims.holder(Thing::Address(ip)), Some(&name(9)));
        assert_ne!(claims.has(&name(0), FOUR), Some(Thing::Address(ip)));
        claims.want(&name(9), Vec::new());
        assert_eq!(claims.has(&name(0), FOUR), Some(Thing::Address(ip)));
        for n in 0..10 {
            claims.want(&name(n), Vec::new());
        }
        assert!(claims.claims.is_empty() && claims.holders.is_empty() && claims.passed.is_empty());
    }

    proptest! {
        /// Whatever came before, the outcome is that of asking in the order of names.
        #[test]
        fn order_does_not_matter(steps in proptest::collection::vec((0u8..24, 0u8..6), 0..120)) {
            let mut rules = rules();
            rules.ranges = vec!["10.96.0.0/28".parse().unwrap()];
            let mut claims = Claims::new(&rules);
            let mut wanted: HashMap<u8, Vec<(Slot, Wish)>> = HashMap::new();
            for (n, what) in steps {
                let wishes = match what {
                    0 => Vec::new(),
                    1 | 2 => vec![(FOUR, Wish::Given(address(&format!("10.96.0.{}", 8 + n % 4))))],
                    _ => vec![(FOUR, Wish::Address(Family::V4))],
                };
                claims.want(&name(n), wishes.clone());
                wanted.insert(n, wishes);
            }
            let mut fresh = Claims::new(&rules);
            for (n, wishes) in &wanted {
                fresh.want(&name(*n), wishes.clone());
            }
            let mut in_order: Vec<_> = wanted.iter().filter_map(|(n, w)| Some((name(*n), w.first()?.1))).collect();
            in_order.sort_by_key(|(n, w)| claimant(n, FOUR, *w));
            let mut taken = std::collections::HashSet::new();
            for (service, wish) in in_order {
                let who = claimant(&service, FOUR, wish);
                let gets = (0..64).filter_map(|n| fresh.nth(&who, wish, n)).find(|t| taken.insert(*t));
                prop_assert_eq!(claims.has(&service, FOUR), gets);
                prop_assert_eq!(fresh.has(&service, FOUR), gets);
            }
        }
    }
}
