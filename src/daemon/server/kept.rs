//! Pods that outlive a process of the node: taken over at its start, given to its keeper, left there at its end; and
//! what is recorded of them on disk.

use super::{End, KEEPER, Server, watch_fd};
use crate::api::{AddressInfo, AddressState, IpamInfo};
use crate::control::flannel::SubnetKey;
use crate::control::services::folder::Folder;
use crate::daemon::admin::{self, Admin, PortError};
use crate::daemon::closer::Closer;
use crate::daemon::host_port::HostLink;
use crate::daemon::ipam::{REST, Resting};
use crate::daemon::keeper::keeping::{Keeping, Todo};
use crate::daemon::keeper::link::{TakeError, take};
use crate::daemon::keeper::{Held, Record, beside};
use crate::daemon::records::{Clock, Recorder, Records, boottime_us};
use crate::daemon::watch::Id;
use crate::model::{Instant, LocalNode, PodName};
use crate::sys::ns;
use crate::sys::tap;
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a node finds of an earlier process, and how it will outlive itself.
pub struct Kept {
    pub(super) pods: Vec<Held>,
    pub(super) keeping: Keeping,
    pub(super) recorder: Recorder,
    /// The admin socket.
    pub(super) socket: PathBuf,
    /// The keeper is of another version.
    pub(super) replace: bool,
    /// The folder of manifests that was given, if one was, and where the node's own is or will be.
    pub manifests: (Option<Folder>, PathBuf),
    /// The host's own port, or why there is none; none when it is off.
    pub host_port: Option<Result<HostLink, String>>,
}

impl Kept {
    /// Take over what the keeper of the node at `socket` has. To be called once the admin socket is bound: until then
    /// another node may be the one that runs.
    ///
    /// `program` is podwire's binary, for a new keeper; `records` is the file on disk.
    ///
    /// # Errors
    /// There is a keeper, and this node cannot have its pods.
    pub fn find(program: PathBuf, socket: &Path, node: &str, records: PathBuf) -> Result<Kept, TakeError> {
        let path = beside(socket);
        let found = take(&path, node)?;
        let replace = found
            .as_ref()
            .is_some_and(|t| t.version != env!("CARGO_PKG_VERSION"));
        let (link, pods) = found.map(|t| (t.link, t.pods)).unzip();
        Ok(Kept {
            pods: pods.unwrap_or_default(),
            keeping: Keeping::new(Some(program), path, node, KEEPER, link),
            recorder: Recorder::new(records),
            socket: socket.into(),
            replace,
            manifests: Default::default(),
            host_port: None,
        })
    }

    /// Nothing found, and nothing kept.
    #[cfg(test)]
    pub fn nothing(records: PathBuf) -> Kept {
        Kept {
            pods: Vec::new(),
            keeping: Keeping::new(None, PathBuf::new(), "", KEEPER, None),
            recorder: Recorder::new(records),
            socket: PathBuf::new(),
            replace: false,
            manifests: Default::default(),
            host_port: None,
        }
    }

    /// Whether the pods can go on as they are: their routes lead to the gateways of these subnets.
    ///
    /// # Errors
    /// The sentence that names those that cannot.
    pub fn check(&self, local: &LocalNode) -> Result<(), String> {
        let fits = |r: &Record| {
            r.ip4
                .is_none_or(|ip| Some(ip.trunc()) == local.subnet4.map(|n| n.trunc()))
                && r.ip6
                    .is_none_or(|ip| Some(ip.trunc()) == local.subnet6.map(|n| n.trunc()))
        };
        let misfits: Vec<&Record> = self.pods.iter().map(|p| &p.record).filter(|r| !fits(r)).collect();
        let Some(first) = misfits.first() else {
            return Ok(());
        };
        let named: Vec<String> = misfits.iter().take(5).map(|r| r.pod.to_string()).collect();
        let more = match misfits.len().saturating_sub(5) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let nets: Vec<String> = [
            first.ip4.map(|n| IpNet::from(n.trunc())),
            first.ip6.map(|n| n.trunc().into()),
        ]
        .into_iter()
        .flatten()
        .map(|n| n.to_string())
        .collect();
        Err(format!(
            "{}{more} run with addresses of {}, which is not this node's subnet (start it with that subnet once, and \
             end it with SIGTERM: its pods are detached then)",
            named.join(", "),
            nets.join(" and ")
        ))
    }
}

impl Kept {
    /// The subnet of the pods, when they agree on one.
    pub fn subnet(&self) -> Option<SubnetKey> {
        let key = |r: &Record| {
            Some(SubnetKey {
                net4: r.ip4?.trunc(),
                net6: r.ip6.map(|n| n.trunc()),
            })
        };
        let mut keys = self.pods.iter().map(|p| key(&p.record));
        let first = keys.next()??;
        keys.all(|k| k == Some(first)).then_some(first)
    }

    /// The end of a node that has put none of them to work: they are detached, or left to the keeper.
    pub fn part(mut self, node: &str, leave: bool) {
        if leave {
            self.keeping.leave();
            return;
        }
        self.keeping.end();
        let closer = Closer::default();
        for held in self.pods {
            closer.close(held.tap, || {});
        }
        closer.finish();
        if let Some(mut records) = self.recorder.load(node) {
            records.detach_all(&Clock::now());
            self.recorder.touch();
            self.recorder.end(|| records);
            self.recorder.settle();
        }
    }
}

impl Server<'_> {
    /// Put to work what an earlier process of this node had, then see to a keeper and to the records.
    ///
    /// # Errors
    /// The data path does not answer. The keeper has everything still, for the node's next start.
    pub(super) fn adopt(&mut self, pods: Vec<Held>, replace: bool) -> io::Result<()> {
        let names: BTreeSet<PodName> = pods.iter().map(|h| h.record.pod.clone()).collect();
        let mut unfit = Vec::new();
        for held in pods {
            let record = held.record.clone();
            // For the closer: the last to close a TAP waits for the kernel.
            let tap = held.tap.try_clone();
            match self.adopt_pod(held) {
                Ok(()) => {}
                Err(PortError::Silent(why)) => {
                    return Err(io::Error::other(format!(
                        "pod {} cannot be taken over: {why}; the pods stay with their keeper",
                        record.pod
                    )));
                }
                Err(PortError::Refused(why)) => {
                    log::warn!("pod {} is not taken over: {why}", record.pod);
                    unfit.push((record, tap.ok()));
                }
            }
        }
        if !names.is_empty() {
            let adopted = names.len() - unfit.len();
            log::info!(
                "{adopted} of {} pods of the last process are taken over",
                names.len()
            );
            self.recorder.touch();
        }
        let todo = self.keeping.begin(self.poll.registry(), replace);
        self.obey(todo);
        let (now, clock) = (self.now(), Clock::now());
        if let Some(records) = self.recorder.load(self.config.node.as_str()) {
            self.remember_names(records.names());
            let lost = records.restore(self.admin.ipam(), &names, now, &clock);
            if !lost.is_empty() {
                let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
                log::warn!(
                    "pods that this node had are gone, as nobody kept their interfaces: {}; their addresses are free \
                     again after 60 s",
                    lost.join(", ")
                );
            }
            self.recorder.touch();
        }
        for (record, tap) in unfit {
            self.tell_services(&record.pod);
            let (pod, lease, until) = (record.pod.clone(), admin::lease(&record), now + REST);
            self.closing.insert(pod.clone());
            let tap = self.keeping.forget(&pod, tap);
            match tap {
                Some(tap) => self.close(pod.clone(), tap),
                None if !self.keeping.parts(&pod) => drop(self.closing.remove(&pod)),
                None => {}
            }
            self.admin.ipam().rest(Resting { pod, lease, until });
        }
        Ok(())
    }

    /// Put one pod to work again.
    fn adopt_pod(&mut self, held: Held) -> Result<(), PortError> {
        let Held {
            record,
            tap,
            process,
            lifeline,
        } = held;
        let refused = PortError::Refused;
        let there = tap::inspect(&tap).map_err(|e| match e.raw_os_error() {
            Some(libc::EBADFD) => refused(format!("its interface {} was deleted", record.ifname)),
            _ => refused(format!("what was kept is no TAP: {e}")),
        })?;
        if there.vnet_hdr != record.caps.vnet_hdr {
            return Err(refused(format!(
                "its TAP {} has {} virtio-net header, other than recorded",
                there.name,
                if there.vnet_hdr { "a" } else { "no" }
            )));
        }
        if there.vnet_hdr {
            tap::renew_offloads(&tap, record.caps)
                .map_err(|e| refused(format!("its TAP {} takes no offloads any more: {e}", there.name)))?;
        }
        if there.name != record.ifname {
            log::info!(
                "the interface {} of pod {} is called {} now",
                record.ifname,
                record.pod,
                there.name
            );
        }
        if process.as_ref().is_some_and(|p| ns::ended(p.as_fd())) {
            return Err(refused("the process that held its namespace ended".into()));
        }
        let pod = record.pod.clone();
        let path = record.netns.clone();
        let path = path.as_deref().zip(record.netns_id);
        let age = Duration::from_micros(u64::try_from(boottime_us() - record.since_us).unwrap_or(0));
        let now = self.now();
        self.watch_pod(&pod, process, path)
            .map_err(refused)
            .and_then(|()| self.admin.adopt(record, tap, age, now))
            .inspect_err(|_| self.forget(&pod))?;
        if let Some(lifeline) = lifeline {
            self.lifelines.insert(pod.clone(), lifeline);
        }
        self.publish_again(&pod);
        self.tell_services(&pod);
        Ok(())
    }

    /// Watch what holds a pod's namespace.
    ///
    /// # Errors
    /// That it is gone.
    pub(super) fn watch_pod(
        &mut self,
        pod: &PodName,
        process: Option<OwnedFd>,
        path: Option<(&Path, Id)>,
    ) -> Result<(), String> {
        let mut watched = false;
        if let Some(process) = process {
            let token = self.token();
            match watch_fd(&self.poll, process.as_fd(), token) {
                Ok(()) => {
                    self.holders.insert(token, (pod.clone(), process));
                    watched = true;
                }
                Err(e) => log::warn!("the holder of pod {pod} cannot be watched: {e}"),
            }
        }
        if let Some((path, id)) = path {
            match self.netns.add(pod, path, id) {
                Ok(()) => watched = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("its namespace vanished".into()),
                Err(e) => log::debug!("{} cannot be watched: {e}", path.display()),
            }
        }
        if !watched {
            log::warn!(
                "the namespace of pod {pod} is out of sight: only `podwire detach {pod}` will free it"
            );
        }
        Ok(())
    }

    /// Do what an event of the keeper asks for.
    pub(super) fn obey(&mut self, todo: Todo) {
        if todo.hand_over {
            self.hand_over();
        }
        for (pod, tap) in todo.close {
            self.close(pod, tap);
        }
        self.go_on();
    }

    /// Give the keeper the pods that it lacks.
    fn hand_over(&mut self) {
        let holders: HashMap<&PodName, &OwnedFd> = self.holders.values().map(|(pod, fd)| (pod, fd)).collect();
        let mut taps: HashMap<PodName, io::Result<OwnedFd>> = self.admin.taps(None).into_iter().collect();
        let lacking = self.admin.records().filter(|r| self.keeping.lacks(&r.pod));
        let lacking: Vec<Record> = lacking.cloned().collect();
        for record in &lacking {
            let pod = &record.pod;
            let process = holders.get(pod).map(|fd| fd.as_fd());
            let lifeline = self.lifelines.get(pod).map(AsFd::as_fd);
            match taps.remove(pod) {
                Some(Ok(tap)) => self.keeping.give(record, tap.as_fd(), process, lifeline),
                Some(Err(e)) => self.keeping.cannot_keep(pod, e),
                None => self
                    .keeping
                    .cannot_keep(pod, "the data path did not give its TAP within 1 s"),
            }
        }
        self.keeping.all_given();
    }

    /// Leave the pods to the keeper, or end it, so that their TAPs can be closed for the last time.
    pub(super) fn part(&mut self, end: &io::Result<End>) {
        let leave = self.config.keep_pods || !matches!(end, Ok(End::Asked));
        if leave {
            self.keeping.leave();
        } else {
            self.unshare_pods();
            self.keeping.end();
            for (pod, tap) in self.keeping.parting() {
                self.close(pod, tap);
            }
            let now = self.now();
            let pods: Vec<PodName> = self.admin.records().map(|r| r.pod.clone()).collect();
            for pod in pods {
                self.admin.ipam().release(&pod, now);
                self.recorder.touch();
            }
        }
        let (now, node) = (self.now(), self.config.node.to_string());
        let (admin, names) = (&mut self.admin, Self::added_names(&self.added));
        self.recorder
            .end(|| records(&node, admin, now, leave).with_names(names));
    }

    /// Write down what has changed.
    pub(super) fn record(&mut self) {
        let (now, node) = (self.now(), self.config.node.to_string());
        let (admin, added) = (&mut self.admin, &self.added);
        self.recorder
            .go_on(|| records(&node, admin, now, true).with_names(Self::added_names(added)));
    }

    /// What a person should look at.
    pub(super) fn complaints(&self) -> impl Iterator<Item = String> {
        let kept = self.keeping.problems().into_iter().chain(self.recorder.problem());
        kept.chain(self.unpublished()).chain(self.service_problems())
    }

    /// The addresses, for `podwire ipam`.
    pub(super) fn ipam(&mut self, now: Instant) -> IpamInfo {
        let subnets = [
            self.config.subnet4.map(IpNet::from),
            self.config.subnet6.map(IpNet::from),
        ];
        let clock = boottime_us();
        let held: Vec<AddressInfo> = self.admin.records().map(|r| held(r, clock)).collect();
        let ipam = self.admin.ipam();
        let resting: Vec<AddressInfo> = ipam
            .resting(now)
            .map(|r| AddressInfo {
                pod: r.pod.clone(),
                ip4: r.lease.ip4,
                ip6: r.lease.ip6,
                mac: r.lease.mac,
                state: AddressState::Resting {
                    left_s: (r.until - now).total_micros().div_ceil(1_000_000),
                },
            })
            .collect();
        let (room, used, rest) = (ipam.room(), held.len() as u64, resting.len() as u64);
        IpamInfo {
            subnets: subnets.into_iter().flatten().collect(),
            held: used,
            resting: rest,
            free: room.saturating_sub(used + rest),
            addresses: held.into_iter().chain(resting).collect(),
        }
    }
}

/// What is to be written down; without the pods when they are gone.
fn records(node: &str, admin: &mut Admin<'_>, now: Instant, pods: bool) -> Records {
    let clock = Clock::now();
    let held: Vec<Record> = admin.records().filter(|_| pods).cloned().collect();
    Records::of(node, held.iter(), admin.ipam(), now, &clock)
}

fn held(record: &Record, clock_us: i64) -> AddressInfo {
    AddressInfo {
        pod: record.pod.clone(),
        ip4: record.ip4.map(|n| n.addr()),
        ip6: record.ip6.map(|n| n.addr()),
        mac: record.mac,
        state: AddressState::Held {
            age_s: u64::try_from((clock_us - record.since_us) / 1_000_000).unwrap_or(0),
            netns: record.netns.clone(),
            holder: record.holder,
        },
    }
}
