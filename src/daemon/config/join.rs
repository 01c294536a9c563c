//! The configuration of a node that has joined a cluster: what the store says takes its place.

use super::{Config, MIN_MTU4, MIN_MTU6};
use crate::control::cluster::Membership;
use crate::control::default_vtep_mac;
use crate::control::flannel::SubnetEnv;
use crate::model::{Mac, Vni};
use ipnet::{Ipv4Net, Ipv6Net};

impl Config {
    /// The same with subnet, VNI and port as the cluster has them, and the MTU of pods unless a person set it.
    ///
    /// # Errors
    /// A sentence: the network's configuration does not fit this host.
    pub fn join(&self, member: &Membership) -> Result<Config, String> {
        let (network, subnet) = (&member.network, &member.subnet);
        let mut joined = self.clone();
        joined.subnet4 = Some(subnet.net4);
        joined.subnet6 = subnet.net6;
        joined.vni = Vni::try_from(network.vni)?;
        joined.port = Some(network.port);
        let least = if subnet.net6.is_some() { MIN_MTU6 } else { MIN_MTU4 };
        // What the network's configuration says is of the packets outside, as flannel takes it; more than this
        // host's underlay carries would be lost.
        let underlay = network
            .mtu
            .map_or(self.underlay_mtu, |mtu| mtu.min(self.underlay_mtu));
        let most = underlay.pod_mtu(self.over_ipv6());
        if most.0 < least {
            return Err(format!(
                "an underlay of {} leaves pods {} bytes, they need {least} (raise overlay.underlay_mtu, or MTU in \
                 the network's configuration)",
                underlay.0, most.0
            ));
        }
        if self.store.as_ref().is_some_and(|s| s.follow_mtu) {
            joined.pod_mtu = most;
        }
        let ranges = [
            Some(network.range4.net.into()),
            network.range6.map(|r| r.net.into()),
        ];
        joined.egress.cluster = ranges.into_iter().flatten().collect();
        if self.fixed_vtep_mac().is_none() {
            joined.vtep_mac = default_vtep_mac(joined.subnet4, joined.subnet6);
            joined.vtep_mac6 = if self.vtep_mac6 == self.vtep_mac {
                joined.vtep_mac
            } else {
                self.vtep_mac6
            };
        }
        Ok(joined)
    }

    /// The MAC in the tunnel that was given; none when it follows from the subnet.
    pub fn fixed_vtep_mac(&self) -> Option<Mac> {
        (self.vtep_mac != default_vtep_mac(self.subnet4, self.subnet6)).then_some(self.vtep_mac)
    }

    /// What `subnet.env` says of a node that has joined.
    pub fn subnet_env(&self, member: &Membership) -> SubnetEnv {
        let local = self.local_node();
        let gateway4 = local.gateway4().zip(self.subnet4);
        let gateway6 = local.gateway6().zip(self.subnet6);
        SubnetEnv {
            network4: Some(member.network.range4.net),
            subnet4: gateway4.and_then(|(ip, net)| Ipv4Net::new(ip, net.prefix_len()).ok()),
            network6: member.network.range6.map(|r| r.net),
            subnet6: gateway6.and_then(|(ip, net)| Ipv6Net::new(ip, net.prefix_len()).ok()),
            mtu: self.pod_mtu.0,
            ipmasq: false,
        }
    }
}
