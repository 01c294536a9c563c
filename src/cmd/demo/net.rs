//! The network under test: nodes and the pods that hang on them, made in order and taken down in reverse.

use super::load::{self, Load};
use super::nodes::Nodes;
use super::plan::Plan;
use super::watch::{Job, Watch};
use crate::api::AttachRequest;
use crate::cmd::{Exit, Failure};
use crate::pod::sandbox::Sandbox;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the interface in each pod.
const IFNAME: &str = "eth0";

/// A running demo. Dropping it leaves nothing.
pub struct Net {
    // In this order: pods go before the nodes they hang on.
    /// The pods, in the order of the plan.
    pub pods: Vec<Pod>,
    /// The nodes.
    pub nodes: Nodes,
    /// What was planned.
    pub plan: Plan,
}

/// A pod on its node.
pub struct Pod {
    sandbox: Sandbox,
    /// Its IPv4 address.
    pub four: Ipv4Addr,
    /// Its IPv6 address.
    pub six: Ipv6Addr,
}

impl Net {
    /// Bring up what `plan` says.
    ///
    /// # Errors
    /// When a part does not come up; nothing is left then.
    pub fn up(plan: Plan, watch: &mut Watch) -> Result<Net, Failure> {
        watch.stage(format!("starting {} nodes", plan.nodes.len()));
        let nodes = Nodes::start(&plan, watch)?;
        let mut net = Net {
            pods: Vec::new(),
            nodes,
            plan,
        };
        watch.stage(format!("making {} pods", net.plan.pods.len()));
        for i in 0..net.plan.pods.len() {
            watch.check()?;
            let pod = net.pod(i)?;
            net.pods.push(pod);
        }
        Ok(net)
    }

    /// Begin `load` in the pod of that index.
    ///
    /// # Errors
    /// When this process cannot start another.
    pub fn start(&self, pod: usize, load: &Load) -> Result<Job, Failure> {
        let words = [load::VERB.into()].into_iter().chain(load.words());
        let mut command = self.pods[pod].sandbox.command("/proc/self/exe", words);
        Job::spawn(&mut command).map_err(|e: io::Error| {
            let name = &self.plan.pods[pod].name;
            Failure::new(
                Exit::Failed,
                format!("podwire could not run itself in pod {name}: {e}"),
            )
        })
    }

    fn pod(&self, i: usize) -> Result<Pod, Failure> {
        let plan = &self.plan.pods[i];
        let socket = self.nodes.socket(&self.plan.nodes[plan.node].name);
        let sandbox = Sandbox::spawn(&plan.name.name)?;
        let request = AttachRequest {
            pod: plan.name.clone(),
            ip4: None,
            ip6: None,
            mac: None,
            mtu: None,
            ifname: IFNAME.into(),
            netns: None,
            holder: None,
        };
        let pod = sandbox.attach(&socket, request)?.pod;
        let four = pod.addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let six = pod.addresses.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        match (four, six) {
            (Some(four), Some(six)) => Ok(Pod { sandbox, four, six }),
            _ => Err(Failure::new(
                Exit::Failed,
                format!("pod {} did not get an address of each family", plan.name),
            )),
        }
    }
}
