//! The port table: which pod owns which MAC and which addresses.
//!
//! Only registered keys are in it, put there when a pod is attached and taken out when it is detached.
//! Traffic never adds an entry. So there is no forwarding database to age, nothing a pod can fill with
//! invented addresses, and the maps are as large as the number of pods.

use crate::model::{Mac, PodName, PortId, PortSpec};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// The ports of a node, found by MAC, by address and by pod name.
#[derive(Debug, Default)]
pub struct Ports {
    slots: Vec<Option<PortSpec>>,
    /// Freed slots, longest-free first: a late frame or counter of a detached pod has the best chance to meet
    /// an empty slot and not a new pod.
    free: VecDeque<PortId>,
    macs: HashMap<Mac, PortId>,
    ips: HashMap<IpAddr, PortId>,
    names: HashMap<PodName, PortId>,
}

/// A port could not be added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortConflict {
    /// The pod has a port already.
    #[error("pod {0} is already attached (detach it first)")]
    Name(PodName),
    /// Another pod has this MAC.
    #[error("MAC {mac} belongs to pod {owner}")]
    Mac {
        /// The MAC asked for.
        mac: Mac,
        /// Who has it.
        owner: PodName,
    },
    /// Another pod has this address.
    #[error("address {ip} belongs to pod {owner}")]
    Ip {
        /// The address asked for, or the link-local that follows from the MAC.
        ip: IpAddr,
        /// Who has it.
        owner: PodName,
    },
    /// A group MAC cannot be anyone's own.
    #[error("MAC {0} is a multicast address (a pod needs a unicast one)")]
    GroupMac(Mac),
    /// The table is full.
    #[error("all {max} ports of this node are in use (detach a pod first)", max = Ports::MAX)]
    Full,
}

impl Ports {
    /// A node has at most this many ports.
    pub const MAX: usize = 1024;

    /// Add a port. Its pod name, MAC, addresses and link-local must all be free.
    ///
    /// # Errors
    /// The first conflict found; the table is unchanged then.
    pub fn insert(&mut self, spec: PortSpec) -> Result<PortId, PortConflict> {
        if spec.mac.is_multicast() {
            return Err(PortConflict::GroupMac(spec.mac));
        }
        if self.names.contains_key(&spec.pod) {
            return Err(PortConflict::Name(spec.pod));
        }
        if let Some(owner) = self.macs.get(&spec.mac).and_then(|id| self.spec(*id)) {
            let (mac, owner) = (spec.mac, owner.pod.clone());
            return Err(PortConflict::Mac { mac, owner });
        }
        for ip in addresses(&spec) {
            if let Some(owner) = self.ips.get(&ip).and_then(|id| self.spec(*id)) {
                let owner = owner.pod.clone();
                return Err(PortConflict::Ip { ip, owner });
            }
        }

        let id = self.take_slot().ok_or(PortConflict::Full)?;
        self.names.insert(spec.pod.clone(), id);
        self.macs.insert(spec.mac, id);
        self.ips.extend(addresses(&spec).map(|ip| (ip, id)));
        self.slots[usize::from(id.0)] = Some(spec);
        Ok(id)
    }

    /// Remove a pod's port. Its slot may be given to another pod later.
    pub fn remove(&mut self, pod: &PodName) -> Option<(PortId, PortSpec)> {
        let id = self.names.remove(pod)?;
        let spec = self.slots.get_mut(usize::from(id.0))?.take()?;
        self.macs.remove(&spec.mac);
        for ip in addresses(&spec) {
            self.ips.remove(&ip);
        }
        self.free.push_back(id);
        Some((id, spec))
    }

    /// What is known of a port; `None` for a slot nobody uses.
    #[inline]
    pub fn spec(&self, id: PortId) -> Option<&PortSpec> {
        self.slots.get(usize::from(id.0))?.as_ref()
    }

    /// The port whose pod has this MAC.
    #[inline]
    pub fn by_mac(&self, mac: Mac) -> Option<PortId> {
        self.macs.get(&mac).copied()
    }

    /// The port whose pod has this address. Pods with an IPv6 address are found by their link-local too.
    #[inline]
    pub fn by_ip(&self, ip: IpAddr) -> Option<PortId> {
        self.ips.get(&ip).copied()
    }

    /// The port of a pod.
    pub fn by_name(&self, pod: &PodName) -> Option<PortId> {
        self.names.get(pod).copied()
    }

    /// All ports in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &PortSpec)> + '_ {
        let numbered = self.slots.iter().zip(0u16..);
        numbered.filter_map(|(slot, n)| Some((PortId(n), slot.as_ref()?)))
    }

    /// How many ports there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn take_slot(&mut self) -> Option<PortId> {
        if self.slots.len() == Ports::MAX {
            return self.free.pop_front();
        }
        // New numbers before used ones, for the same reason as `free` is a queue.
        let id = PortId(u16::try_from(self.slots.len()).ok()?);
        self.slots.push(None);
        Some(id)
    }
}

/// The keys of a port in the address map: its own addresses, and with IPv6 its link-local.
fn addresses(spec: &PortSpec) -> impl Iterator<Item = IpAddr> + use<> {
    let link_local: Option<Ipv6Addr> = spec.ip6.map(|_| spec.mac.link_local());
    let v6 = spec.ip6.into_iter().chain(link_local).map(IpAddr::V6);
    spec.ip4.map(IpAddr::V4).into_iter().chain(v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::testing::spec;

    #[test]
    fn a_port_is_found_by_all_its_keys_until_it_is_removed() {
        let mut ports = Ports::default();
        let (a, b) = (spec(2), spec(3));
        let ia = ports.insert(a.clone()).unwrap();
        let ib = ports.insert(b.clone()).unwrap();
        assert_ne!(ia, ib);
        for (id, s) in [(ia, &a), (ib, &b)] {
            assert_eq!(ports.spec(id), Some(s));
            assert_eq!(ports.by_mac(s.mac), Some(id));
            assert_eq!(ports.by_ip(s.ip4.unwrap().into()), Some(id));
            assert_eq!(ports.by_ip(s.ip6.unwrap().into()), Some(id));
            assert_eq!(ports.by_ip(s.mac.link_local().into()), Some(id));
            assert_eq!(ports.by_name(&s.pod), Some(id));
        }
        assert_eq!(ports.iter().map(|(id, _)| id).collect::<Vec<_>>(), [ia, ib]);

        assert_eq!(ports.remove(&a.pod), Some((ia, a.clone())));
        assert_eq!(ports.remove(&a.pod), None);
        assert_eq!(ports.spec(ia), None);
        assert_eq!(ports.by_mac(a.mac), None);
        assert_eq!(ports.by_ip(a.ip4.unwrap().into()), None);
        assert_eq!(ports.by_ip(a.mac.link_local().into()), None);
        assert_eq!((ports.len(), ports.is_empty()), (1, false));
        assert!(ports.insert(a).is_ok());
    }

    #[test]
    fn a_port_without_ipv6_has_no_link_local() {
        let mut ports = Ports::default();
        let s = PortSpec { ip6: None, ..spec(2) };
        ports.insert(s.clone()).unwrap();
        assert_eq!(ports.by_ip(s.mac.link_local().into()), None);
    }

    #[test]
    fn conflicts_name_the_owner_and_change_nothing() {
        let mut ports = Ports::default();
        let (owner, new) = (spec(2), spec(3));
        ports.insert(owner.clone()).unwrap();
        let same_name = PortSpec {
            pod: owner.pod.clone(),
            ..new.clone()
        };
        let same_mac = PortSpec {
            mac: owner.mac,
            ..new.clone()
        };
        let same_ip4 = PortSpec {
            ip4: owner.ip4,
            ..new.clone()
        };
        let same_ip6 = PortSpec {
            ip6: owner.ip6,
            ..new.clone()
        };
        let his_link_local = PortSpec {
            ip6: Some(owner.mac.link_local()),
            ..new.clone()
        };
        let group = PortSpec {
            mac: Mac::BROADCAST,
            ..new.clone()
        };
        for (bad, text) in [
            (same_name, "pod default/p2 is already attached (detach it first)"),
            (same_mac, "MAC 0a:58:0a:f4:01:02 belongs to pod default/p2"),
            (same_ip4, "address 10.244.1.2 belongs to pod default/p2"),
            (same_ip6, "address fd00:1::2 belongs to pod default/p2"),
            (
                his_link_local,
                "address fe80::858:aff:fef4:102 belongs to pod default/p2",
            ),
            (
                group,
                "MAC ff:ff:ff:ff:ff:ff is a multicast address (a pod needs a unicast one)",
            ),
        ] {
            assert_eq!(ports.insert(bad).unwrap_err().to_string(), text);
        }
        assert_eq!(ports.len(), 1);
        assert!(ports.insert(new).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_slots_come_back() {
        let mut ports = Ports::default();
        for n in 0..Ports::MAX as u16 {
            assert_eq!(ports.insert(spec(n)), Ok(PortId(n)));
        }
        assert_eq!(ports.insert(spec(5000)), Err(PortConflict::Full));
        ports.remove(&spec(7).pod).unwrap();
        ports.remove(&spec(3).pod).unwrap();
        assert_eq!(ports.insert(spec(5000)), Ok(PortId(7)));
        assert_eq!(ports.insert(spec(5001)), Ok(PortId(3)));
        assert_eq!(ports.insert(spec(5002)), Err(PortConflict::Full));
    }
}
