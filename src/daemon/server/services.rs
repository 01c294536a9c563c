//! Services: manifests and pods go into the catalogue, and what follows goes to the worker and to DNS; what people say of
//! pods that Services must know (labels, states); and what they ask of Services.

use super::untold::Untold;
use super::{FOLDERS, Server, Source as Peers, watch_fd};
use crate::api::{AppliedObject, ErrorKind, PodInfo, Reply};
use crate::control::etcd::{Shared, SharedNews};
use crate::control::services::folder::Files;
use crate::control::services::folder::{Folder, Stated};
use crate::control::services::manifest::Source;
use crate::control::services::shared::{SharedKey, SharedPod};
use crate::control::services::{Catalogue, PodFacts, PodId};
use crate::daemon::admin::Refusal;
use crate::daemon::command::Command;
use crate::daemon::config::Config;
use crate::daemon::keeper::Record;
use crate::daemon::records::boottime_us;
use crate::dns::zone::PodAddresses;
use crate::model::{
    ConnectionFilter, Instant, LabelChange, MAX_LABELS, NodeName, PodName, ServiceInfo, ServiceName,
};
use mio::Token;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// When what the worker did not take is offered again.
const AGAIN: Duration = Duration::from_secs(1);
/// Most problems of Services that `podwire status` shows; `podwire service ls` shows all.
const FEW: usize = 5;
/// Most connections of one answer.
const MAX_LISTED: usize = 100_000;
/// Longest time a pod may drain.
const MAX_GRACE_MS: u64 = 24 * 3600 * 1000;

/// What the control thread knows of Services.
pub(super) struct Services {
    pub(super) catalogue: Catalogue,
    node: NodeName,
    /// The folder that was given, and the node's own.
    pub(super) folders: [Option<Folder>; 2],
    /// Where the node's own is, or will be.
    pub(super) own: PathBuf,
    /// What the worker had no room for, and when it was last asked.
    untold: (Untold, Instant),
    /// Ranges that are not used.
    problems: Vec<String>,
    /// Manifests of the store.
    pub(super) stored: Files,
    /// What is not well with the store.
    store_problems: Vec<String>,
    /// Keys of pods in the store that say nothing.
    odd_pods: BTreeSet<String>,
    /// Pods of other nodes, by name.
    others: HashMap<PodName, BTreeMap<NodeName, PodAddresses>>,
    /// Pods whose ports go after a while.
    draining: HashSet<PodName>,
    /// Who waits for the store, by the number of the order, with the answer.
    pub(super) waiting: HashMap<u64, (Token, Vec<AppliedObject>, Vec<String>)>,
    pub(super) last_order: u64,
}

impl Services {
    pub(super) fn new(config: &Config) -> Services {
        Services {
            catalogue: Catalogue::new(config.service_rules()),
            node: config.node.clone(),
            folders: [None, None],
            own: PathBuf::new(),
            untold: (Untold::default(), Instant::ZERO),
            problems: config.service_range_problems(),
            stored: Files::default(),
            store_problems: Vec::new(),
            odd_pods: BTreeSet::new(),
            others: HashMap::new(),
            draining: HashSet::new(),
            waiting: HashMap::new(),
            last_order: 0,
        }
    }

    /// How many problems there are, but for those of node ports.
    pub(super) fn count_problems(&self) -> usize {
        self.of_manifests().count() + self.catalogue.problems().count()
    }

    /// Everything that is wrong with manifests, and ranges.
    fn of_manifests(&self) -> impl Iterator<Item = String> {
        let folders = self.folders.iter().flatten().flat_map(Folder::problems);
        let stored = self
            .stored
            .problems()
            .map(|p| format!("{p}; what was stated there before stays"));
        let own = self.problems.iter().chain(&self.store_problems).cloned();
        let odd_pods = self.odd_pods.iter().map(|path| odd_pod(path));
        own.chain(folders).chain(stored).chain(odd_pods)
    }
}

impl Server<'_> {
    /// Pods will be taken over from the keeper: what stands behind Services is known before they can ask for it.
    pub(super) fn await_pods<'r>(&mut self, records: impl Iterator<Item = &'r Record>) {
        for record in records {
            let id = PodId {
                name: record.pod.clone(),
                node: self.services.node.clone(),
            };
            let facts = facts(record, &self.services.node);
            self.services.catalogue.set_pod(&id, Some(facts));
        }
    }

    /// Take what manifests state in the `given` folder, if there is one, and what was applied earlier and is kept in `own`.
    pub(super) fn open_services(&mut self, given: Option<Folder>, own: &Path) {
        for problem in &self.services.problems {
            log::warn!("{problem}");
        }
        self.services.own = own.into();
        self.take_folder(0, given);
        let kept = own.is_dir().then(|| Folder::open(own).ok()).flatten();
        self.take_folder(1, kept);
        self.reload_services();
        self.hear_shared();
    }

    pub(super) fn take_folder(&mut self, n: usize, folder: Option<Folder>) {
        if let Some(fd) = folder.as_ref().and_then(Folder::watch_fd)
            && let Err(e) = watch_fd(&self.poll, fd, FOLDERS[n])
        {
            log::warn!("a folder of manifests cannot be watched: {e} (send SIGHUP after a change)");
        }
        self.services.folders[n] = folder;
    }

    /// Take the news of the folders.
    pub(super) fn read_services(&mut self) {
        self.take_stated(Folder::changes);
    }

    /// Look at the folders again, whatever their watches tell.
    pub(super) fn reload_services(&mut self) {
        self.take_stated(Folder::reload);
    }

    fn take_stated(&mut self, news: impl Fn(&mut Folder) -> Vec<Stated>) {
        for folder in self.services.folders.iter_mut().flatten() {
            for (source, objects) in news(folder) {
                self.services.catalogue.set_source(&source, objects);
            }
        }
        self.update_services();
    }

    /// Tell the catalogue of a pod that came, is another, or went.
    pub(super) fn tell_services(&mut self, pod: &PodName) {
        let facts = self.admin.record(pod).map(|r| facts(r, &self.services.node));
        let id = PodId {
            name: pod.clone(),
            node: self.services.node.clone(),
        };
        if let Some(shared) = self.shared() {
            let value = facts.as_ref().map(|f| SharedPod::of(f).write());
            shared.set_pod(SharedKey::Pod(id.clone()).path(), value);
        }
        match self.admin.record(pod).is_some_and(|r| r.drain_until_us.is_some()) {
            true => drop(self.services.draining.insert(pod.clone())),
            false => drop(self.services.draining.remove(pod)),
        }
        self.services.catalogue.set_pod(&id, facts);
        self.update_services();
    }

    pub(super) fn shared(&self) -> Option<&Shared> {
        match &self.source {
            Peers::Store(store, _) => store.shared(),
            _ => None,
        }
    }

    /// Have the other nodes know that this node's pods are gone.
    pub(super) fn unshare_pods(&self) {
        if let Some(shared) = self.shared() {
            shared.clear_pods();
        }
    }

    /// Take the news of what nodes share.
    pub(super) fn hear_shared(&mut self) {
        let Some(SharedNews {
            changes,
            done,
            problems,
            ..
        }) = self.shared().map(Shared::news)
        else {
            return;
        };
        self.services.store_problems = problems;
        for (path, value) in changes {
            match SharedKey::parse(&path) {
                Some(SharedKey::Object(key)) => {
                    let text = value.as_ref().map(|v| {
                        std::str::from_utf8(v).map_err(|_| "is no text (apply it again)".to_string())
                    });
                    let stated = self.services.stored.set_object(&Source::Store(path), &key, text);
                    if let Some((source, objects)) = stated {
                        self.services.catalogue.set_source(&source, objects);
                    }
                }
                // Of its own pods a node knows better.
                Some(SharedKey::Pod(id)) if id.node == self.services.node => {}
                Some(SharedKey::Pod(id)) => {
                    let facts = value.as_ref().map(|v| SharedPod::read(v, &id.node));
                    self.services.odd_pods.remove(&path);
                    match facts {
                        // Nothing is removed without proof.
                        Some(None) => {
                            log::warn!("{}", odd_pod(&path));
                            self.services.odd_pods.insert(path);
                        }
                        Some(Some(facts)) => self.set_other(&id, Some(facts)),
                        None => self.set_other(&id, None),
                    }
                }
                // The mirror names those.
                None => {}
            }
        }
        self.update_services();
        for (id, outcome) in done {
            let Some((token, objects, problems)) = self.services.waiting.remove(&id) else {
                continue;
            };
            let reply = match outcome {
                Ok(()) => Reply::Applied { problems, objects },
                Err(why) => Refusal::new(ErrorKind::Waiting, format!("etcd: {why}")).into(),
            };
            // One that went away meanwhile does not hear it.
            if let Some(conversation) = self.conversations.get_mut(&token) {
                let _ = conversation.wire.reply(&reply);
            }
        }
    }

    /// A pod of another node came, is another, or went.
    fn set_other(&mut self, id: &PodId, facts: Option<PodFacts>) {
        let nodes = self.services.others.entry(id.name.clone()).or_default();
        match &facts {
            Some(facts) => {
                let addresses = PodAddresses {
                    ip4: facts.ip4,
                    ip6: facts.ip6,
                };
                nodes.insert(id.node.clone(), addresses);
            }
            None => drop(nodes.remove(&id.node)),
        }
        if nodes.is_empty() {
            self.services.others.remove(&id.name);
        }
        self.services.catalogue.set_pod(id, facts);
        self.name_pod(&id.name);
    }

    /// The addresses of a name: of this node's pod, or of that of the first other node that has one of that name.
    pub(super) fn addresses_of_name(&self, pod: &PodName) -> Option<PodAddresses> {
        if let Some(record) = self.admin.record(pod) {
            return Some(super::names::addresses(record));
        }
        let nodes = self.services.others.get(pod)?;
        nodes.values().next().copied()
    }

    /// Pass on what follows from changes.
    fn update_services(&mut self) {
        let update = self.services.catalogue.update();
        if let Some(dns) = &self.dns {
            for (service, records) in update.names {
                dns.set_service(&service, records);
            }
        }
        if !update.services.is_empty() {
            log::debug!("{} virtual servers are new or changed", update.services.len());
            self.services.untold.0.add(update.services);
            self.offer_services();
        }
        if update.outside {
            self.bind_node_ports();
        }
    }

    /// Offer the worker what it was not told yet. What it has no room for is offered again.
    fn offer_services(&mut self) {
        let (now, worker) = (self.now(), self.worker);
        let (untold, since) = &mut self.services.untold;
        if let Err(e) = untold.offer(|changes| worker.send(Command::Services(changes))) {
            log::error!("{} changes of Services wait: {e}", untold.len());
        }
        *since = now;
    }

    /// How long until something about Services or pods that drain is due.
    pub(super) fn services_patience(&self) -> Option<Duration> {
        let again = (!self.services.untold.0.is_empty()).then_some(AGAIN);
        let now = boottime_us();
        let ends = self.drains().map(|(_, until)| until);
        let left = ends.map(|until| Duration::from_micros(u64::try_from(until - now).unwrap_or(0)));
        again.into_iter().chain(left).min()
    }

    /// Do what is due.
    pub(super) fn services_on_time(&mut self) {
        if !self.services.untold.0.is_empty() && self.now() - self.services.untold.1 >= AGAIN.into() {
            self.offer_services();
        }
        let now = boottime_us();
        let over = self.drains().filter(|(_, until)| *until <= now);
        let over: Vec<PodName> = over.map(|(pod, _)| pod.clone()).collect();
        for pod in over {
            self.lose(&pod, "it was drained");
        }
    }

    /// The pods whose ports go, and when.
    fn drains(&self) -> impl Iterator<Item = (&PodName, i64)> {
        let until = |pod: &PodName| self.admin.record(pod)?.drain_until_us;
        self.services
            .draining
            .iter()
            .filter_map(move |pod| Some((pod, until(pod)?)))
    }

    /// What a person should look at, in short.
    pub(super) fn service_problems(&self) -> impl Iterator<Item = String> {
        let all: Vec<String> = self
            .services
            .of_manifests()
            .chain(self.services.catalogue.problems())
            .chain(self.node_ports.problems())
            .collect();
        let more = all.len().saturating_sub(FEW);
        let more =
            (more > 0).then(|| format!("there are {more} problems of Services more (`podwire service ls`)"));
        all.into_iter().take(FEW).chain(more)
    }

    fn known(&self, pod: &PodName) -> Result<&Record, Refusal> {
        self.admin.record(pod).ok_or_else(|| {
            let what = format!("there is no pod {pod} on this node (`podwire pods` lists those there are)");
            Refusal::new(ErrorKind::NotFound, what)
        })
    }

    /// Change labels of a pod.
    pub(super) fn label(
        &mut self,
        pod: &PodName,
        changes: &[LabelChange],
        now: Instant,
    ) -> Result<Reply, Refusal> {
        let mut labels = self.known(pod)?.labels.clone();
        for change in changes {
            if let Err(e) = change.to_string().parse::<LabelChange>() {
                return Err(Refusal::new(ErrorKind::Usage, e.to_string()));
            }
            match &change.value {
                Some(value) => drop(labels.insert(change.key.clone(), value.clone())),
                None => drop(labels.remove(&change.key)),
            }
        }
        if labels.len() > MAX_LABELS {
            let what = format!(
                "pod {pod} would have {} labels, {MAX_LABELS} are the most (take some away)",
                labels.len()
            );
            return Err(Refusal::new(ErrorKind::Usage, what));
        }
        self.change_pod(pod, now, |r| r.labels = labels)
    }

    /// Say whether a pod is ready.
    pub(super) fn set_ready(&mut self, pod: &PodName, ready: bool, now: Instant) -> Result<Reply, Refusal> {
        self.known(pod)?;
        self.change_pod(pod, now, |r| {
            r.state.ready = ready;
            if ready {
                (r.state.draining, r.drain_until_us) = (false, None);
            }
        })
    }

    /// Have a pod get no new flows, and its port go after a while.
    pub(super) fn drain_pod(
        &mut self,
        pod: &PodName,
        grace_ms: Option<u64>,
        now: Instant,
    ) -> Result<Reply, Refusal> {
        self.known(pod)?;
        let until = |ms: u64| boottime_us() + i64::try_from(ms.min(MAX_GRACE_MS)).unwrap_or(0) * 1000;
        log::info!("pod {pod} drains");
        self.change_pod(pod, now, |r| {
            r.state.draining = true;
            r.drain_until_us = grace_ms.map(until);
        })
    }

    fn change_pod(
        &mut self,
        pod: &PodName,
        now: Instant,
        change: impl FnOnce(&mut Record),
    ) -> Result<Reply, Refusal> {
        let before = self.admin.record(pod).cloned();
        self.admin.change(pod, change);
        if self.admin.record(pod) != before.as_ref() {
            self.remember_pod(pod);
            self.tell_services(pod);
        }
        let info: Option<PodInfo> = self.admin.pod(pod, now);
        let info = info.ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("pod {pod} is gone")))?;
        Ok(Reply::Pod(Box::new(info)))
    }

    /// All Services, without what stands behind each.
    pub(super) fn list_services(&self) -> Reply {
        let bare = |info: ServiceInfo| ServiceInfo {
            endpoints: Vec::new(),
            ..info
        };
        Reply::Services {
            services: self.services.catalogue.list().into_iter().map(bare).collect(),
            problems: self
                .services
                .of_manifests()
                .chain(self.node_ports.problems())
                .collect(),
        }
    }

    /// One Service.
    pub(super) fn describe_service(&self, name: &ServiceName) -> Result<Reply, Refusal> {
        let found = self.services.catalogue.describe(name);
        let mut info = found.ok_or_else(|| no_service(name))?;
        let frontends = self.services.catalogue.frontends(name).collect();
        for view in self.admin.served(frontends).unwrap_or_default() {
            info.open += view.open;
            info.opened += view.opened;
            info.failed += view.failed;
            for backend in view.backends {
                let ip = backend.backend.at.ip();
                if let Some(endpoint) = info.endpoints.iter_mut().find(|e| e.at == ip) {
                    endpoint.open += u64::from(backend.open);
                }
            }
        }
        Ok(Reply::Service(Box::new(info)))
    }

    /// Connections through Services, or their end.
    pub(super) fn connections(
        &self,
        filter: &ConnectionFilter,
        pod: Option<&PodName>,
        limit: usize,
        kill: bool,
    ) -> Result<Reply, Refusal> {
        let limit = limit.min(MAX_LISTED);
        let clients = match pod {
            None => vec![filter.client],
            Some(pod) => {
                let record = self.known(pod)?;
                let four = record.ip4.map(|n| IpAddr::from(n.addr()));
                let six = record.ip6.map(|n| IpAddr::from(n.addr()));
                four.into_iter().chain(six).map(Some).collect()
            }
        };
        let (mut connections, mut count) = (Vec::new(), 0);
        for client in clients {
            let filter = ConnectionFilter {
                client,
                ..filter.clone()
            };
            let room = limit.saturating_sub(connections.len());
            let silent = || {
                Refusal::new(
                    ErrorKind::Internal,
                    "the data path did not answer within 1 s (see the node's log)",
                )
            };
            let (some, n) = self.admin.connections(filter, room, kill).ok_or_else(silent)?;
            connections.extend(some);
            count += n;
        }
        Ok(Reply::Connections { connections, count })
    }
}

/// What Services must know of a pod of this node.
fn facts(record: &Record, node: &NodeName) -> PodFacts {
    PodFacts {
        node: node.clone(),
        labels: record.labels.clone(),
        ip4: record.ip4.map(|n| n.addr()),
        ip6: record.ip6.map(|n| n.addr()),
        state: record.state,
        ports: record.ports.clone(),
    }
}

fn odd_pod(path: &str) -> String {
    format!(
        "etcd:{path} is no pod that this podwire understands: what was known of it stays (restart its node, or delete it)"
    )
}

pub(super) fn no_service(name: &ServiceName) -> Refusal {
    let what = format!("there is no Service {name} (`podwire service ls` lists those there are)");
    Refusal::new(ErrorKind::NotFound, what)
}
