//! Pods by the names that container runtimes have for them, and what a runtime asks of a node (`crate::cni`).

use super::{Conversation, Pending, Server};
use crate::api::{ErrorKind, Reply, gone};
use crate::daemon::admin::Refusal;
use crate::daemon::command::{Command, Pinged};
use crate::model::{Attachment, AttachmentFilter, Instant, PodName};
use crate::switch::PortConflict;
use crossbeam_channel::bounded;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How often a node looks for word of attachments that ended while it did not answer.
const EVERY: Duration = Duration::from_secs(3);

/// Word that is left for this node.
pub(super) struct Word {
    /// The admin socket, beside which it is.
    pub socket: PathBuf,
    /// When it was looked for last.
    pub heeded: Instant,
    /// It could not be read, and a warning said so.
    pub refused: bool,
}

impl Word {
    /// How long it need not be looked for.
    pub fn patience(&self, now: Instant) -> Duration {
        let passed = (now - self.heeded).total_micros();
        EVERY.saturating_sub(Duration::from_micros(passed))
    }
}

/// What who asked is told of a ping.
pub(super) fn pinged(pod: &PodName, pinged: Pinged) -> Reply {
    let rtt_us = match pinged {
        Pinged::Answered(us) => Some(us),
        Pinged::Silent => None,
        Pinged::Unsent => {
            let what = format!("pod {pod} was not pinged: the node has too many pings to send (try again)");
            return Refusal::new(ErrorKind::Waiting, what).into();
        }
    };
    Reply::Pinged { rtt_us }
}

impl Server<'_> {
    /// The pods that runtimes attached, as far as `filter` takes them.
    pub(super) fn attachments(&self, filter: &AttachmentFilter, now: Instant) -> Reply {
        let records = self.admin.records();
        let taken = records.filter(|r| filter.takes(&r.pod, r.attachment.as_ref()));
        let pods = taken.filter_map(|r| self.admin.pod(&r.pod, now)).collect();
        Reply::Pods { pods }
    }

    /// The pod whose attachment `is` so.
    fn attached(&self, is: impl Fn(&Attachment) -> bool) -> Option<PodName> {
        let mut records = self.admin.records();
        let found = records.find(|r| r.attachment.as_ref().is_some_and(&is));
        found.map(|r| r.pod.clone())
    }

    /// Refuse what would attach one interface twice.
    pub(super) fn check_attachment(&self, attachment: &Attachment) -> Result<(), Refusal> {
        if !attachment.is_valid() {
            let what =
                "the names of network, container and interface must be such as a container runtime gives";
            return Err(Refusal::new(ErrorKind::Usage, what));
        }
        match self.attached(|a| a.is(attachment)) {
            Some(pod) => Err(Refusal::new(
                ErrorKind::Taken,
                format!(
                    "container {} has {} on network {} already, as pod {pod} (DEL it first)",
                    attachment.container, attachment.ifname, attachment.network
                ),
            )),
            None => Ok(()),
        }
    }

    /// Remove the pod of an attachment, unless it is in another namespace than is meant; told once its interface is gone.
    pub(super) fn release(&mut self, from: &mut Conversation, attachment: &Attachment) -> Option<Reply> {
        let Some(pod) = self.attached(|a| attachment.means(a)) else {
            return Some(Reply::Detached { existed: false });
        };
        let theirs = self.admin.record(&pod).and_then(|r| r.attachment.clone());
        self.remove(&pod);
        gone::forget(&self.word.socket, theirs.as_ref().unwrap_or(attachment));
        log::info!(
            "pod {pod} is detached: {} of container {} is gone",
            attachment.ifname,
            attachment.container
        );
        from.pending = Some((pod, Pending::Answer(Reply::Detached { existed: true })));
        None
    }

    /// Have the data path ping a pod; the answer comes later.
    pub(super) fn ping(
        &mut self,
        from: &mut Conversation,
        address: IpAddr,
    ) -> Result<Option<Reply>, Refusal> {
        let has = |n: Option<IpAddr>| n == Some(address);
        let mut records = self.admin.records();
        let found =
            records.find(|r| has(r.ip4.map(|n| n.addr().into())) || has(r.ip6.map(|n| n.addr().into())));
        let Some(pod) = found.map(|r| r.pod.clone()) else {
            let what = format!("no pod of this node has {address} (`podwire pods` lists those there are)");
            return Err(Refusal::new(ErrorKind::NotFound, what));
        };
        let (tell, answer) = bounded(1);
        let waker = self.waker.clone();
        let order = Command::Ping {
            to: address,
            tell: Box::new(move |pinged| {
                // Both fail only when nobody waits any more.
                let _ = tell.send(pinged);
                let _ = waker.wake();
            }),
        };
        let sent = self.worker.send(order);
        sent.map_err(|what| Refusal::new(ErrorKind::Internal, what))?;
        from.pending = Some((pod, Pending::Pong(answer)));
        Ok(None)
    }

    /// Whether a pod could be attached.
    pub(super) fn vacancy(&mut self) -> Result<Reply, Refusal> {
        self.check_allocation()?;
        if self.admin.report().is_none() {
            let what = "the data path did not answer within 1 s (see the node's log)";
            return Err(Refusal::new(ErrorKind::Waiting, what));
        }
        let subnets = [
            self.config.subnet4.map(IpNet::from),
            self.config.subnet6.map(IpNet::from),
        ];
        let subnets: Vec<IpNet> = subnets.into_iter().flatten().collect();
        let held = self.admin.records().count() as u64;
        let left = self.admin.ports_left();
        if left == 0 {
            return Err(Refusal::new(ErrorKind::Exhausted, PortConflict::Full.to_string()));
        }
        let free = self.admin.ipam().room().saturating_sub(held).min(left as u64);
        if free == 0 {
            let net = subnets.first().copied().unwrap_or_default();
            let what = format!(
                "all {held} addresses of {net} are held (detach a pod, or give the node a larger subnet)"
            );
            return Err(Refusal::new(ErrorKind::Exhausted, what));
        }
        Ok(Reply::Vacancy { free, subnets })
    }

    /// Refuse when this node's subnet is another's now.
    pub(super) fn check_allocation(&self) -> Result<(), Refusal> {
        if self.allocate {
            return Ok(());
        }
        let what = "another node has this node's subnet now, so that no address is given away twice (`podwire leases` \
                    names it; pods that are attached go on)";
        Err(Refusal::new(ErrorKind::Taken, what))
    }

    /// Heed word when it is time.
    pub(super) fn heed_on_time(&mut self) {
        if self.word.patience(self.now()).is_zero() {
            self.heed_gone();
        }
    }

    /// Remove the pods that ended while this node did not answer.
    pub(super) fn heed_gone(&mut self) {
        self.word.heeded = self.now();
        let left = match gone::all(&self.word.socket) {
            Ok(left) => {
                self.word.refused = false;
                left
            }
            Err(e) => {
                if !std::mem::replace(&mut self.word.refused, true) {
                    let dir = gone::directory(&self.word.socket);
                    log::warn!("{} is not heeded: {e}", dir.display());
                }
                Vec::new()
            }
        };
        for (path, attachment) in left {
            if attachment.is_none() && !path.is_dir() {
                log::warn!(
                    "{} names no attachment that ended, and is removed",
                    path.display()
                );
            }
            if let Some(pod) = attachment.and_then(|word| self.attached(|a| word.means(a))) {
                self.lose(&pod, "its container was removed while the node did not answer");
            }
            gone::take_back(&path);
        }
    }
}
