//! A pod of a lab: a sandbox, hung on a node or left to be connected by other means.

use super::load::{self, Load};
use super::watch::Job;
use crate::api::AttachRequest;
use crate::cmd::{Exit, Failure};
use crate::model::PodName;
use crate::pod::sandbox::Sandbox;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Name of the interface in each pod.
pub const IFNAME: &str = "eth0";

/// A pod. Dropping it ends its sandbox.
pub struct Pod {
    /// Its name.
    pub name: PodName,
    sandbox: Sandbox,
    /// Its IPv4 address.
    pub four: Ipv4Addr,
    /// Its IPv6 address.
    pub six: Ipv6Addr,
}

impl Pod {
    /// Make a pod and hang it on the node whose admin socket is `socket`.
    ///
    /// # Errors
    /// When the sandbox or its interface cannot be made.
    pub fn attach(name: PodName, socket: &Path) -> Result<Pod, Failure> {
        let sandbox = Sandbox::spawn(&name.name)?;
        let request = AttachRequest {
            pod: name.clone(),
            ip4: None,
            ip6: None,
            mac: None,
            mtu: None,
            ifname: IFNAME.into(),
            netns: None,
            holder: None,
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
        };
        let addresses = sandbox.attach(socket, request)?.pod.addresses;
        let four = addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let six = addresses.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        match (four, six) {
            (Some(four), Some(six)) => Ok(Pod {
                name,
                sandbox,
                four,
                six,
            }),
            _ => Err(Failure::new(
                Exit::Failed,
                format!("pod {name} did not get an address of each family"),
            )),
        }
    }

    /// Make a pod whose interface somebody else makes, with these addresses.
    ///
    /// # Errors
    /// When the sandbox cannot be made.
    pub fn bare(name: PodName, four: Ipv4Addr, six: Ipv6Addr) -> Result<Pod, Failure> {
        let sandbox = Sandbox::spawn(&name.name)?;
        Ok(Pod {
            name,
            sandbox,
            four,
            six,
        })
    }

    /// Process id of its pause, which names its namespaces.
    pub fn pid(&self) -> u32 {
        self.sandbox.pid()
    }

    /// Begin `load` in it.
    ///
    /// # Errors
    /// When this process cannot start another.
    pub fn start(&self, load: &Load) -> Result<Job, Failure> {
        let words = [load::VERB.into()].into_iter().chain(load.words());
        let mut command = self.sandbox.command("/proc/self/exe", words);
        Job::spawn(&mut command).map_err(|e| {
            Failure::new(
                Exit::Failed,
                format!("podwire could not run itself in pod {}: {e}", self.name),
            )
        })
    }
}
