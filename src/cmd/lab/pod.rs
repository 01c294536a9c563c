//! A pod of a lab: a sandbox, hung on a node or left to be connected by other means.

use super::load::Load;
use super::watch::Job;
use crate::api::AttachRequest;
use crate::cmd::{Exit, Failure};
use crate::model::{PodName, PortMapping};
use crate::pod::hidden;
use crate::pod::sandbox::{self, Sandbox, Spec};
use crate::sys::ns::NetNs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

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
    /// Make a pod and hang it on the node whose admin socket is `socket`; `publish` are ports of that node's host.
    ///
    /// # Errors
    /// When the sandbox or its interface cannot be made, or a port is held.
    pub fn attach(name: PodName, socket: &Path, publish: Vec<PortMapping>) -> Result<Pod, Failure> {
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
            labels: Default::default(),
            ports: Vec::new(),
            bandwidth: None,
            publish,
            attachment: None,
            aliases: Vec::new(),
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
        start(self.sandbox.command("/proc/self/exe", load.command()))
    }

    /// The same of a server that is one of several: of those that nobody asks nobody hears complaints.
    ///
    /// # Errors
    /// When this process cannot start another.
    pub fn start_one_of_several(&self, load: &Load) -> Result<Job, Failure> {
        let mut command = self.sandbox.command("/proc/self/exe", load.command());
        command.stderr(Stdio::null());
        start(command)
    }
}

/// Begin `load` in the namespaces of the process `pid`.
///
/// # Errors
/// When this process cannot start another.
pub fn start_beside(pid: u32, load: &Load) -> Result<Job, Failure> {
    let failed = |e| Failure::new(Exit::Failed, format!("podwire does not find itself: {e}"));
    // In a /proc of another PID namespace there is no /proc/self.
    let program = std::env::current_exe().map_err(failed)?;
    start(sandbox::enter(&Spec::new(""), pid, program, load.command()))
}

/// Begin `load` in the network namespace `netns`.
///
/// # Errors
/// When this process cannot start another.
pub fn start_in(netns: &NetNs, load: &Load) -> Result<Job, Failure> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("podwire")
        .args([hidden::TIED, &std::process::id().to_string()])
        .args(load.command());
    netns.within(|| start(command))?
}

fn start(mut command: Command) -> Result<Job, Failure> {
    let failed = |e| Failure::new(Exit::Failed, format!("podwire could not run itself: {e}"));
    Job::spawn(&mut command).map_err(failed)
}
