//! CHECK: whether interface, node and network still are what ADD said.

use super::call::Call;
use super::conf::Conf;
use super::error::{CniError, Code};
use super::node::{self, PATIENT, Way};
use super::plugin::{attachment, misfit, namespace_error};
use super::result::{CniResult, Interface};
use crate::api::{PodInfo, Reply, Request};
use crate::model::AttachmentFilter;
use crate::pod::look::{self, Seen};
use crate::sys::ns::{NetNs, Target};
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::Path;

/// Check a container.
///
/// # Errors
/// Code 102 with the first thing that is not as it was; code 3 when the node knows no such container; code 11 when it is not
/// reached.
pub fn check(call: &Call, conf: &Conf, way: &Way) -> Result<(), CniError> {
    let Some(before) = &conf.before else {
        let what = "CHECK needs what ADD gave (the runtime passes it on)";
        return Err(CniError::config("prevResult", what));
    };
    let path = call.netns.as_deref().unwrap_or(Path::new(""));
    let netns = NetNs::open(&Target::Path(path.into())).map_err(|e| namespace_error(&e))?;
    let given = Given::of(before, call, path)?;
    let key = attachment(call, conf);
    let filter = AttachmentFilter {
        network: Some(key.network),
        container: Some(key.container),
        ifname: Some(key.ifname),
        pod: None,
    };
    let pod = node::with(way, PATIENT, |client| {
        let filter = filter.clone();
        match client.call(&Request::Attachments { filter })? {
            Reply::Pods { pods } => Ok(pods.into_iter().next()),
            _ => Err(misfit()),
        }
    })?;
    let Some(pod) = pod else {
        let what = format!(
            "the node has no {} of container {} on network {} (attach it anew)",
            call.ifname, call.container, conf.network
        );
        return Err(CniError::new(Code::UnknownContainer, what));
    };
    given.check_node(&pod)?;
    netns.enter().map_err(|e| namespace_error(&e))?;
    let seen = look::interface(&call.ifname);
    let seen =
        seen.map_err(|e| CniError::new(Code::Failed, format!("the interface cannot be looked at: {e}")))?;
    let Some(seen) = seen else {
        return Err(differs(format!("the container has no interface {}", call.ifname)));
    };
    given.check_kernel(&seen, pod.mtu.0)?;
    given.check_routes(before)?;
    // A container may refuse to answer anybody.
    let mute = |six: bool| {
        let file = match six {
            true => "/proc/sys/net/ipv6/icmp/echo_ignore_all",
            false => "/proc/sys/net/ipv4/icmp_echo_ignore_all",
        };
        std::fs::read_to_string(file).is_ok_and(|v| v.trim() != "0")
    };
    for address in pod.addresses.iter().copied().filter(|a| !mute(a.is_ipv6())) {
        let pinged = node::with(way, PATIENT, |client| {
            match client.call(&Request::Ping { address })? {
                Reply::Pinged { rtt_us } => Ok(rtt_us),
                _ => Err(misfit()),
            }
        });
        if pinged?.is_none() {
            let what =
                format!("the container does not answer at {address} when the gateway pings it (within 1 s)");
            return Err(differs(what));
        }
    }
    Ok(())
}

fn differs(what: impl std::fmt::Display) -> CniError {
    CniError::new(Code::Differs, format!("{what} (attach it anew: DEL and ADD)"))
}

/// What ADD said of this interface.
struct Given<'a> {
    ifname: &'a str,
    interface: &'a Interface,
    addresses: Vec<IpNet>,
}

impl<'a> Given<'a> {
    fn of(before: &'a CniResult, call: &'a Call, netns: &Path) -> Result<Given<'a>, CniError> {
        let path = netns.to_string_lossy();
        let ours = |i: &Interface| i.name == call.ifname && i.sandbox.as_deref() == Some(&path);
        let Some(number) = before.interfaces.iter().position(ours) else {
            let what = format!("it has no interface {} in {path}", call.ifname);
            return Err(CniError::config("prevResult.interfaces", what));
        };
        let addresses = before.ips.iter().filter(|ip| ip.interface == Some(number));
        Ok(Given {
            ifname: &call.ifname,
            interface: &before.interfaces[number],
            addresses: addresses.map(|ip| ip.address).collect(),
        })
    }

    fn check_node(&self, pod: &PodInfo) -> Result<(), CniError> {
        for ip in self.addresses.iter().map(IpNet::addr) {
            if !pod.addresses.contains(&ip) {
                let has: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
                let what = format!(
                    "the node has {} for pod {}, and not {ip}",
                    has.join(" and "),
                    pod.pod
                );
                return Err(differs(what));
            }
        }
        match &self.interface.mac {
            Some(mac) if mac.parse().ok() != Some(pod.mac) => Err(differs(format!(
                "the node has the MAC {} for pod {}, and not {mac}",
                pod.mac, pod.pod
            ))),
            _ => Ok(()),
        }
    }

    fn check_kernel(&self, seen: &Seen, mtu: u16) -> Result<(), CniError> {
        let name = self.ifname;
        if !seen.up {
            return Err(differs(format!("the interface {name} is down")));
        }
        if let Some(mac) = self.interface.mac.as_ref().filter(|m| m.parse().ok() != seen.mac) {
            let is = seen.mac.map(|m| m.to_string()).unwrap_or_default();
            return Err(differs(format!(
                "the interface {name} has the MAC {is}, and not {mac}"
            )));
        }
        let mtu = self.interface.mtu.unwrap_or(mtu.into());
        if u64::from(seen.mtu) != mtu {
            return Err(differs(format!(
                "the interface {name} has the MTU {}, and not {mtu}",
                seen.mtu
            )));
        }
        match self.addresses.iter().find(|a| !seen.addresses.contains(a)) {
            Some(lost) => Err(differs(format!("the interface {name} has no address {lost}"))),
            None => Ok(()),
        }
    }

    /// The default routes that ADD made by this interface.
    fn check_routes(&self, before: &CniResult) -> Result<(), CniError> {
        let gateways = before
            .ips
            .iter()
            .filter(|ip| self.addresses.contains(&ip.address));
        let gateways: Vec<IpAddr> = gateways.filter_map(|ip| ip.gateway).collect();
        for gateway in gateways {
            let stated = before
                .routes
                .iter()
                .any(|r| r.dst.prefix_len() == 0 && r.gw == Some(gateway));
            let there = look::default_routes(gateway.is_ipv6());
            let ours =
                |(device, via): &(String, Option<IpAddr>)| device == self.ifname && *via == Some(gateway);
            if stated && !there.iter().any(ours) {
                let what = format!(
                    "the container has no default route by {gateway} on {}",
                    self.ifname
                );
                return Err(differs(what));
            }
        }
        Ok(())
    }
}
