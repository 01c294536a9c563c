//! ADD: an interface, its addresses and all that a runtime wants with it, or nothing at all.

use super::call::Call;
use super::capabilities::Wishes;
use super::conf::Conf;
use super::error::{CniError, Code};
use super::names::{Names, of_interface};
use super::node::{self, PATIENT, Trouble, Way};
use super::plugin::{attachment, misfit, namespace_error, release};
use super::result::{CniResult, Dns, Interface, Ip, Route};
use crate::api::{AttachPlan, AttachRequest, Client, ErrorKind, PodInfo, Reply, Request};
use crate::model::{Attachment, AttachmentFilter, PodName, PortMapping};
use crate::pod::attach::{AttachError, Blame, Routes, attach_on};
use crate::sys::ns::{NetNs, Target};
use crate::sys::tap::TapError;
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How often a name is given up for another, or for one whose pod is gone.
const ATTEMPTS: usize = 4;

/// A container that is attached.
pub struct Added {
    /// What the runtime is told.
    pub result: CniResult,
    /// The node.
    pub client: Client,
    /// What it calls the interface.
    pub attachment: Attachment,
}

/// Attach a container.
///
/// # Errors
/// Whatever keeps it from being attached; nothing is left then.
pub fn add(call: &Call, conf: &Conf, way: &Way) -> Result<Added, CniError> {
    let path = call.netns.as_deref().unwrap_or(Path::new(""));
    let names = Names::of(&call.args, &call.container, &conf.namespace)?;
    let wishes = conf.wishes.clone().with(&call.args.ips, call.args.mac)?;
    let netns = NetNs::open(&Target::Path(path.into())).map_err(|e| namespace_error(&e))?;
    let attachment = Attachment {
        namespace: netns.id(),
        mounts: mounts(),
        ..attachment(call, conf)
    };
    let wanted = Wanted {
        call,
        conf,
        wishes: &wishes,
        attachment: &attachment,
        names: &names,
    };
    let (client, (pod, plan, dns)) = node::with_kept(way, PATIENT, |client| {
        let (pod, plan) = wanted.attach(client, &netns)?;
        let told = conf.dns.is_empty() && wishes.dns.is_empty();
        let dns = if told {
            resolv_conf(client, &pod.pod)
        } else {
            Dns::default()
        };
        Ok((pod, plan, dns))
    })?;
    let dns = [wishes.dns.clone(), conf.dns.clone(), dns]
        .into_iter()
        .find(|d| !d.is_empty());
    let result = result(
        conf.before.clone().unwrap_or_default(),
        path,
        &pod,
        &plan,
        dns.unwrap_or_default(),
    );
    Ok(Added {
        result,
        client,
        attachment,
    })
}

struct Wanted<'a> {
    call: &'a Call,
    conf: &'a Conf,
    wishes: &'a Wishes,
    attachment: &'a Attachment,
    names: &'a Names,
}

impl Wanted<'_> {
    /// Attach it under the first name that it can have.
    fn attach(&self, client: &mut Client, netns: &NetNs) -> Result<(PodInfo, AttachPlan), Trouble> {
        let mut request = self.request(client)?;
        let mut spare = self.names.second.clone();
        for _ in 0..ATTEMPTS {
            let refused = match attach_on(client, &request, netns, None, Routes::IfNone) {
                Ok((attached, plan)) => return Ok((attached.pod, plan)),
                Err(AttachError::Api(e)) => Trouble::from(e),
                Err(e) => return Err(told(&e).into()),
            };
            let Trouble::Refused(ErrorKind::Taken, message) = refused else {
                return Err(refused);
            };
            let Some(holder) = self.holder(client, &request.pod)? else {
                return Err(CniError::new(Code::Taken, message).into());
            };
            match &holder.attachment {
                Some(theirs)
                    if is_gone(theirs, holder.netns.as_deref(), self.attachment.mounts)
                        || (self.attachment.is_after(theirs) && is_heard()) =>
                {
                    release(client, theirs)?;
                }
                Some(theirs) if theirs.is(self.attachment) => {
                    return Err(CniError::new(Code::Taken, message).into());
                }
                Some(theirs) if theirs.container == self.attachment.container => {
                    request.pod = of_interface(&request.pod, &self.call.ifname);
                }
                theirs => match spare.take() {
                    Some(name) => request.pod = name,
                    None => return Err(still_there(&holder.pod, theirs.as_ref()).into()),
                },
            }
        }
        Err(still_there(&request.pod, None).into())
    }

    /// Who has this attachment, or this name.
    fn holder(&self, client: &mut Client, pod: &PodName) -> Result<Option<PodInfo>, Trouble> {
        let by_attachment = AttachmentFilter {
            network: Some(self.attachment.network.clone()),
            container: Some(self.attachment.container.clone()),
            ifname: Some(self.attachment.ifname.clone()),
            pod: None,
        };
        let by_name = AttachmentFilter {
            pod: Some(pod.clone()),
            ..AttachmentFilter::default()
        };
        for filter in [by_attachment, by_name] {
            let Reply::Pods { pods } = client.call(&Request::Attachments { filter })? else {
                return Err(misfit());
            };
            if let Some(pod) = pods.into_iter().next() {
                return Ok(Some(pod));
            }
        }
        Ok(None)
    }

    fn request(&self, client: &mut Client) -> Result<AttachRequest, Trouble> {
        let (conf, wishes) = (self.conf, self.wishes);
        let anywhere = wishes.ports.iter().any(|p| p.host.is_none());
        let subnets = if anywhere || !conf.ranges.is_empty() {
            subnets(client)?
        } else {
            Vec::new()
        };
        conf.check_subnets(&subnets)?;
        Ok(AttachRequest {
            pod: self.names.first.clone(),
            ip4: wishes.ips.iter().find_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            }),
            ip6: wishes.ips.iter().find_map(|ip| match ip {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            }),
            mac: wishes.mac,
            mtu: conf.mtu,
            ifname: self.call.ifname.clone(),
            netns: self.call.netns.clone(),
            holder: None,
            attachment: Some(self.attachment.clone()),
            aliases: wishes.aliases.clone(),
            bandwidth: wishes.bandwidth,
            publish: everywhere(&wishes.ports, &subnets),
            labels: wishes.labels.clone(),
            ports: Vec::new(),
        })
    }
}

/// The node's subnets, when a container could be attached.
fn subnets(client: &mut Client) -> Result<Vec<IpNet>, Trouble> {
    match client.call(&Request::Vacancy)? {
        Reply::Vacancy { subnets, .. } => Ok(subnets),
        _ => Err(misfit()),
    }
}

/// Ports without an address are at every address of the host, of the families that pods have.
fn everywhere(ports: &[PortMapping], subnets: &[IpNet]) -> Vec<PortMapping> {
    let four = subnets.iter().any(|n| n.network().is_ipv4());
    let six = subnets.iter().any(|n| n.network().is_ipv6());
    let any4 = four.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let any6 = six.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let mut all = Vec::new();
    for port in ports {
        match port.host {
            Some(_) => all.push(*port),
            None => all.extend([any4, any6].into_iter().flatten().map(|ip| PortMapping {
                host: Some(ip),
                ..*port
            })),
        }
    }
    all
}

/// The mount namespace of this process, in which paths are meant.
fn mounts() -> Option<u64> {
    std::fs::metadata("/proc/self/ns/mnt").ok().map(|m| m.ino())
}

/// Whether the namespace of an attachment is gone, as far as can be seen in the mount namespace `here`.
fn is_gone(attachment: &Attachment, netns: Option<&Path>, here: Option<u64>) -> bool {
    let (Some(path), Some(was)) = (netns, attachment.namespace) else {
        return false;
    };
    // A directory that is not there is another mount namespace's.
    let visible = path.parent().is_some_and(Path::is_dir);
    let is = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let would_be_seen = match attachment.mounts.zip(here) {
        Some((theirs, here)) => theirs == here,
        // Attached by a podwire that did not say: whatever file is there may be a placeholder, on which another mount namespace
        // has the one that was attached.
        None => is.is_none(),
    };
    visible && would_be_seen && is != Some(was)
}

/// Whether somebody still reads what this process says. The plugin of a runtime that was killed goes on, and must not take
/// the place of a sandbox that came after its own.
fn is_heard() -> bool {
    let out = std::io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut fds, Some(&at_once));
    polled.is_err() || !fds[0].revents().contains(PollFlags::ERR)
}

fn still_there(pod: &PodName, theirs: Option<&Attachment>) -> CniError {
    let whose = match theirs {
        Some(a) => format!(
            "container {} has that name on this node, and is there still",
            a.container
        ),
        None => "a pod of that name is on this node that no runtime attached".into(),
    };
    let what = format!("pod {pod} cannot be attached: {whose} (remove it, or try again once it is gone)");
    CniError::new(Code::TryAgain, what)
}

/// What the node wants a pod to resolve names with; nothing when it answers none.
fn resolv_conf(client: &mut Client, pod: &PodName) -> Dns {
    let pod = pod.clone();
    match client.call(&Request::ResolvConf { pod }) {
        Ok(Reply::ResolvConf { text: Some(text) }) => Dns::of_resolv_conf(&text),
        _ => Dns::default(),
    }
}

fn told(e: &AttachError) -> CniError {
    let code = match e.blame() {
        Blame::Usage => Code::Config,
        Blame::Permission => Code::Permission,
        Blame::NoNode | Blame::Exhausted => Code::TryAgain,
        Blame::Taken => Code::Taken,
        Blame::NotFound => Code::UnknownContainer,
        Blame::Failed => Code::Failed,
    };
    match e {
        // What that says of options is for people.
        AttachError::Tap(TapError::Taken(name)) => {
            let what = format!(
                "the container has an interface named {name} already (DEL the network that made it, or have the runtime give \
                 this one another CNI_IFNAME)"
            );
            CniError::new(code, what)
        }
        other => CniError::new(code, other),
    }
}

/// What there is now, after what there was before.
fn result(mut all: CniResult, netns: &Path, pod: &PodInfo, plan: &AttachPlan, dns: Dns) -> CniResult {
    let number = all.interfaces.len();
    all.interfaces.push(Interface {
        name: pod.ifname.clone(),
        mac: Some(plan.mac.to_string()),
        mtu: Some(plan.mtu.0.into()),
        sandbox: Some(netns.to_string_lossy().into_owned()),
        ..Interface::default()
    });
    let four = plan.ip4.map(|n| (IpNet::V4(n), plan.gateway4.map(IpAddr::V4)));
    let six = plan.ip6.map(|n| (IpNet::V6(n), plan.gateway6.map(IpAddr::V6)));
    for (address, gateway) in [four, six].into_iter().flatten() {
        let interface = Some(number);
        all.ips.push(Ip {
            address,
            gateway,
            interface,
        });
        let everywhere = IpNet::new(
            if address.addr().is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            },
            0,
        );
        all.routes
            .extend(everywhere.ok().filter(|_| gateway.is_some()).map(|dst| Route {
                dst,
                gw: gateway,
                more: Vec::new(),
            }));
    }
    if !dns.is_empty() {
        all.dns = dns;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_only_where_it_would_be_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (there, gone) = (dir.path().join("there"), dir.path().join("gone"));
        std::fs::write(&there, "").unwrap();
        let meta = std::fs::metadata(&there).unwrap();
        let of = |namespace, mounts| Attachment {
            network: "pods".into(),
            container: "abc".into(),
            ifname: "eth0".into(),
            namespace,
            mounts,
            uid: None,
        };
        let own = Some((meta.dev(), meta.ino()));
        let other = Some((meta.dev(), meta.ino() + 1));
        let elsewhere = dir.path().join("none/gone");
        // Namespace and mounts when it was attached, its path, mounts now, and whether it is gone.
        for (namespace, then, path, here, expected) in [
            (own, Some(1), &there, Some(1), false),
            (other, Some(1), &there, Some(1), true),
            (own, Some(1), &gone, Some(1), true),
            (own, Some(1), &elsewhere, Some(1), false),
            (other, Some(1), &there, Some(2), false),
            (own, Some(1), &gone, Some(2), false),
            (other, None, &there, Some(1), false),
            (own, None, &gone, Some(1), true),
            (None, Some(1), &gone, Some(1), false),
        ] {
            let is = is_gone(&of(namespace, then), Some(path), here);
            assert_eq!(is, expected, "{namespace:?} {then:?} {} {here:?}", path.display());
        }
        assert!(!is_gone(&of(own, Some(1)), None, Some(1)));
    }
}
