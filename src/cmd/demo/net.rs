//! The network under test: nodes and the pods that hang on them, made in order and taken down in reverse.

use super::plan::Plan;
use crate::cmd::Failure;
use crate::cmd::lab::nodes::Nodes;
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::Watch;

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

impl Net {
    /// Bring up what `plan` says.
    ///
    /// # Errors
    /// When a part does not come up; nothing is left then.
    pub fn up(plan: Plan, watch: &mut Watch) -> Result<Net, Failure> {
        watch.stage(format!("starting {} nodes", plan.nodes.len()));
        let specs: Vec<_> = plan.nodes.iter().map(|n| n.spec()).collect();
        let nodes = Nodes::start(&specs, &plan.peers(), watch)?;
        let mut net = Net {
            pods: Vec::new(),
            nodes,
            plan,
        };
        watch.stage(format!("making {} pods", net.plan.pods.len()));
        for plan in &net.plan.pods {
            watch.check()?;
            let socket = net.nodes.socket(&net.plan.nodes[plan.node].name);
            net.pods
                .push(Pod::attach(plan.name.clone(), &socket, Vec::new())?);
        }
        Ok(net)
    }
}
