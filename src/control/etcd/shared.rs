//! What podwire's nodes share beside their leases: every key below `<prefix>/podwire/`, followed; this node's pods, kept
//! there by a lease; and what people apply, written.
//!
//! ```text
//!  control thread          | thread "store"
//!   Shared --wants-------> | writer: a lease, and the pods on it
//!          --orders------> |         manifests, one transaction each
//!          <--[ Mailbox ]- | reader: list, then watch, and again; Mirror says what is proven
//!                          | keeper: what Mirror knows, on disk, for a start without the store
//! ```
//!
//! The mailbox has the last word of each key, so that it is bounded by what there is, and nobody waits.

use super::ask::{self, Keys};
use super::session::Sessions;
use super::settings::Access;
use super::watch;
use crate::control::cluster::backoff::{Backoff, Rng};
use crate::control::cluster::{Answer, Event, LeaseId, StoreError};
use crate::control::flannel::shared_key;
use crate::control::memory::{Memory, Recalled};
use crate::control::services::shared::{Mirror, RememberedKeys, SharedChange, TTL_S};
use crate::model::Instant;
use etcd_client::{Compare, CompareOp, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch as latest};
use tokio::task::AbortHandle;

/// How often the lease of this node's pods is renewed.
const RENEW: Duration = Duration::from_secs(TTL_S.unsigned_abs() / 4);
/// A full list at least this often: it heals what a watch lost.
const COMPARE: Duration = Duration::from_secs(5 * 60);
/// How often it is looked whether pods that were carried on are to go.
const LOOK: Duration = Duration::from_secs(5);
/// How long the node's end waits for the store to know of it.
const LAST_WORD: Duration = Duration::from_millis(200);
/// How long after it was kept on disk what is known may be another without being kept; or so many times as long as that
/// took.
const KEEP: Duration = Duration::from_secs(1);
const KEEP_SHARE: u32 = 20;
/// When the disk failed, try again after so long.
const DISK_RETRY: Duration = Duration::from_secs(30);
/// Orders that wait.
const ORDERS: usize = 16;
/// Most keys of one transaction: etcd's own limit is 128 operations.
pub const MAX_KEYS: usize = 100;

/// What stands at a key for the moment before it is deleted. Nobody can use it, so that it removes nothing should it stay.
const TOMBSTONE: &str = r#"{"deleted":true}"#;

/// Keys below the prefix, with their values.
type Pods = BTreeMap<String, Vec<u8>>;

/// What is to be written for a person, all or none.
#[derive(Clone, Debug)]
pub struct Order {
    /// By this number it is answered.
    pub id: u64,
    /// Keys below the prefix; without a value they are deleted.
    pub keys: Vec<SharedChange>,
}

/// What a problem is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Subject {
    Broken,
    Reading,
    Writing,
    Keys,
    Disk,
}

/// What the control thread is told.
#[derive(Debug, Default)]
pub struct SharedNews {
    /// The last word of each key that changed.
    pub changes: BTreeMap<String, Option<Vec<u8>>>,
    /// Orders that are done, or why not.
    pub done: Vec<(u64, Result<(), String>)>,
    /// What a person should look at.
    pub problems: Vec<String>,
    /// The same, by what it is about.
    by_subject: BTreeMap<Subject, Vec<String>>,
    /// All there is was told once.
    pub based: bool,
}

/// The control thread's end.
#[derive(Clone)]
pub struct Shared {
    mailbox: Arc<Mutex<SharedNews>>,
    wants: Arc<latest::Sender<Pods>>,
    orders: mpsc::Sender<Order>,
}

impl Shared {
    /// What came since the last time; problems are those there are now.
    pub fn news(&self) -> SharedNews {
        let mut news = lock(&self.mailbox);
        SharedNews {
            problems: news.by_subject.values().flatten().cloned().collect(),
            by_subject: BTreeMap::new(),
            based: news.based,
            changes: std::mem::take(&mut news.changes),
            done: std::mem::take(&mut news.done),
        }
    }

    /// This node has no pods any more.
    pub fn clear_pods(&self) {
        self.wants
            .send_if_modified(|pods| !std::mem::take(pods).is_empty());
    }

    /// One of this node's pods came, is another, or went.
    pub fn set_pod(&self, key: String, value: Option<Vec<u8>>) {
        self.wants.send_if_modified(|pods| match value {
            Some(value) => pods.insert(key, value.clone()).as_ref() != Some(&value),
            None => pods.remove(&key).is_some(),
        });
    }

    /// Have something written; its outcome comes with the news.
    ///
    /// # Errors
    /// The sentence why that cannot be asked for now.
    pub fn order(&self, order: Order) -> Result<(), String> {
        let full = |_| "the store is asked for too much already (try again)".to_string();
        self.orders.try_send(order).map_err(full)
    }
}

fn lock(mailbox: &Mutex<SharedNews>) -> MutexGuard<'_, SharedNews> {
    // What is in there is whole after each change.
    mailbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The other end, for the thread "store".
pub(super) struct Sharing {
    shared: Shared,
    wanted: latest::Receiver<Pods>,
    orders: mpsc::Receiver<Order>,
}

/// Both ends.
pub(super) fn pair() -> (Shared, Sharing) {
    let (wants, wanted) = latest::channel(Pods::new());
    let (to, orders) = mpsc::channel(ORDERS);
    let shared = Shared {
        mailbox: Arc::default(),
        wants: Arc::new(wants),
        orders: to,
    };
    let ours = Sharing {
        shared: shared.clone(),
        wanted,
        orders,
    };
    (shared, ours)
}

struct Common {
    sessions: Sessions,
    keys: Keys,
    prefix: String,
    mirror: Mutex<Mirror>,
    mailbox: Arc<Mutex<SharedNews>>,
    woken: Arc<Notify>,
    /// The store has lost something, this node's pods perhaps.
    set_back: Notify,
    /// What is known is not on disk.
    unkept: Notify,
    /// Whether it is; none where nothing is kept.
    on_disk: Option<latest::Sender<bool>>,
    /// The node ends: the keeper waits no longer.
    hurry: Arc<Notify>,
    start: tokio::time::Instant,
}

impl Sharing {
    /// Share on this runtime until [ended](Sharer::end); `woken` is notified of news. `memory` is where what is known is
    /// kept, if anywhere, and `kept` what it had: that is news at once.
    pub fn spawn(
        self,
        access: Access,
        woken: Arc<Notify>,
        seed: u64,
        memory: Option<Memory>,
        kept: Option<RememberedKeys>,
    ) -> Sharer {
        let mailbox = self.shared.mailbox.clone();
        let wanted = self.wanted.clone();
        let (written, there) = latest::channel(Pods::new());
        let (on_disk, is_kept) = latest::channel(true);
        let hurry = Arc::new(Notify::new());
        let prefix = shared_key(access.prefix());
        let mut mirror = Mirror::new(&prefix);
        if let Some(kept) = kept {
            let known = mirror.recall(kept, Instant::ZERO);
            log::info!("{} keys of Services and pods are known from before", known.len());
            lock(&mailbox).changes.extend(known);
        }
        let common = Common {
            sessions: Sessions::new(access),
            keys: Keys::shared(&prefix),
            mirror: Mutex::new(mirror),
            prefix,
            mailbox: self.shared.mailbox.clone(),
            woken,
            set_back: Notify::new(),
            unkept: Notify::new(),
            on_disk: memory.is_some().then_some(on_disk),
            hurry: hurry.clone(),
            start: tokio::time::Instant::now(),
        };
        let task = tokio::spawn(self.run(common, seed, written, memory));
        let sharer = Sharer {
            task: task.abort_handle(),
            wanted,
            there,
            hurry,
            is_kept,
        };
        tokio::spawn(async move {
            if task.await.is_err_and(|e| e.is_panic()) {
                let what = "Services in etcd are not followed any more, as what does it broke (report it, and restart the node)";
                log::error!("{what}");
                lock(&mailbox).by_subject = [(Subject::Broken, vec![what.into()])].into();
            }
        });
        sharer
    }

    async fn run(self, common: Common, seed: u64, written: latest::Sender<Pods>, memory: Option<Memory>) {
        let mut writer = Writer {
            common: &common,
            wanted: self.wanted,
            orders: self.orders,
            lease: None,
            there: Pods::new(),
            written,
            wait: Backoff::default(),
            rng: Rng::new(seed ^ 1),
        };
        let keeper = async {
            if let Some(memory) = memory {
                keep(&common, Arc::new(memory)).await;
            }
        };
        tokio::join!(read(&common, Rng::new(seed)), writer.run(), keeper);
    }
}

/// What an earlier life of this node kept of what nodes share; what cannot be used is named.
pub(super) async fn recall(memory: Option<Memory>) -> Option<RememberedKeys> {
    let memory = memory?;
    let read = tokio::task::spawn_blocking(move || memory.recall_shared()).await;
    let what = match read {
        Ok(Ok(Recalled::Known(keys))) => return Some(keys),
        Ok(Ok(Recalled::Nothing)) => return None,
        Ok(Ok(Recalled::SetAside(what))) => what,
        Ok(Err(e)) => e.to_string(),
        Err(e) => format!("what nodes share cannot be read from the disk: {e}"),
    };
    log::warn!("{what}; Services are known again from etcd only");
    None
}

/// Keep on disk what is known, not too often.
async fn keep(common: &Common, memory: Arc<Memory>) {
    loop {
        let keys = {
            let mut mirror = common.mirror.lock().unwrap_or_else(PoisonError::into_inner);
            mirror.is_unkept().then(|| mirror.remember())
        };
        let Some(keys) = keys else {
            common.unkept.notified().await;
            continue;
        };
        let (begun, to) = (tokio::time::Instant::now(), memory.clone());
        let done = tokio::task::spawn_blocking(move || to.keep_shared(&keys)).await;
        let failed = match done {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(format!("what nodes share cannot be kept: {e}")),
        };
        let pause = match &failed {
            None => KEEP.max(begun.elapsed() * KEEP_SHARE),
            Some(_) => DISK_RETRY,
        };
        let what =
            failed.map(|e| format!("{e}; a start without etcd knows Services as they were kept before"));
        common.warn(Subject::Disk, what.clone());
        {
            let mut mirror = common.mirror.lock().unwrap_or_else(PoisonError::into_inner);
            if what.is_some() {
                mirror.forget_kept();
            }
            common.kept(!mirror.is_unkept());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = common.hurry.notified() => {}
        }
    }
}

/// What shares, and how far it is.
pub struct Sharer {
    task: AbortHandle,
    wanted: latest::Receiver<Pods>,
    there: latest::Receiver<Pods>,
    hurry: Arc<Notify>,
    is_kept: latest::Receiver<bool>,
}

impl Sharer {
    /// End it, once the store has what this node wants it to have, as that its pods are gone, and the disk what the store
    /// has; or after a moment.
    pub async fn end(mut self) {
        self.hurry.notify_one();
        let settled = async {
            while *self.there.borrow_and_update() != *self.wanted.borrow() {
                if self.there.changed().await.is_err() {
                    return;
                }
            }
            let _ = self.is_kept.wait_for(|kept| *kept).await;
        };
        // Who does not hear it has the lease's end to go by.
        let _ = tokio::time::timeout(LAST_WORD, settled).await;
        self.task.abort();
    }
}

impl Common {
    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Let the mirror take something, and tell what follows.
    fn with(&self, step: impl FnOnce(&mut Mirror) -> Vec<SharedChange>) {
        let (changes, problems, unkept) = {
            let mut mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner);
            (step(&mut mirror), mirror.problems(), mirror.is_unkept())
        };
        self.warn(Subject::Keys, problems);
        if unkept {
            self.kept(false);
            self.unkept.notify_one();
        }
        if !changes.is_empty() {
            lock(&self.mailbox).changes.extend(changes);
            self.woken.notify_one();
        }
    }

    /// Whether what is known is on disk.
    fn kept(&self, is: bool) {
        if let Some(on_disk) = &self.on_disk {
            on_disk.send_if_modified(|was| std::mem::replace(was, is) != is);
        }
    }

    /// These are the problems of a subject now, or none.
    fn problem(&self, about: Subject, what: impl IntoIterator<Item = String>) -> Vec<String> {
        let what: Vec<String> = what.into_iter().collect();
        let mut news = lock(&self.mailbox);
        let before = match what.is_empty() {
            true => news.by_subject.remove(&about),
            false => news.by_subject.insert(about, what.clone()),
        };
        let before = before.unwrap_or_default();
        if before != what {
            self.woken.notify_one();
        }
        what.into_iter().filter(|w| !before.contains(w)).collect()
    }

    /// The same, and those that are new are logged.
    fn warn(&self, about: Subject, what: impl IntoIterator<Item = String>) {
        for new in self.problem(about, what) {
            log::warn!("{new}");
        }
    }

    fn trouble(&self, why: Option<&StoreError>) {
        let what = why.map(|why| {
            format!("Services in etcd are not followed just now: {why}; what is known of them stays")
        });
        self.warn(Subject::Reading, what);
    }
}

/// List, watch, and begin again, for ever.
async fn read(common: &Common, mut rng: Rng) {
    let mut wait = Backoff::default();
    let mut id = 0;
    loop {
        match ask::list(&common.sessions, &common.keys).await {
            Ok(Answer::Listed {
                cluster,
                revision,
                entries,
                ..
            }) => {
                let now = common.now();
                common.with(|mirror| {
                    if mirror.is_set_back(cluster, revision) {
                        common.set_back.notify_one();
                    }
                    mirror.listed(cluster, revision, &entries, now)
                });
                common.trouble(None);
                if !std::mem::replace(&mut lock(&common.mailbox).based, true) {
                    common.woken.notify_one();
                }
                id += 1;
                if follow(common, id).await {
                    wait.reset();
                }
            }
            Ok(_) => {}
            Err(why) => common.trouble(Some(&why)),
        }
        tokio::time::sleep(wait.wait(&mut rng).into()).await;
    }
}

/// Watch until that ends, or for as long as a list may be old; whether it was of use.
async fn follow(common: &Common, id: u64) -> bool {
    let from = {
        let mirror = common.mirror.lock().unwrap_or_else(PoisonError::into_inner);
        mirror.revision() + 1
    };
    let (to, mut events) = mpsc::channel(64);
    let watching = watch::run(&common.sessions, &common.keys, (id, from), &to, || {});
    tokio::pin!(watching);
    let end = tokio::time::Instant::now() + COMPARE;
    let (mut of_use, mut over) = (false, false);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            Some(event) = events.recv() => match event {
                Event::Watched { revision, changes, .. } => {
                    of_use = true;
                    common.with(|mirror| {
                        let told = changes.iter().filter_map(|c| mirror.watched(c)).collect();
                        mirror.told(revision);
                        told
                    });
                }
                Event::Done { answer: Err(why), .. } | Event::WatchEnded { why, .. } => {
                    if why != StoreError::Compacted {
                        common.trouble(Some(&why));
                    }
                    return of_use;
                }
                _ => {}
            },
            // What it told last is still to be heard.
            () = &mut watching, if !over => over = true,
            _ = look.tick() => {
                let now = common.now();
                common.with(|mirror| mirror.expire(now));
            }
            () = tokio::time::sleep_until(end) => return true,
        }
    }
}

struct Writer<'c> {
    common: &'c Common,
    wanted: latest::Receiver<Pods>,
    orders: mpsc::Receiver<Order>,
    lease: Option<LeaseId>,
    /// What was written with the lease.
    there: Pods,
    /// Tells of it.
    written: latest::Sender<Pods>,
    wait: Backoff,
    rng: Rng,
}

impl Writer<'_> {
    async fn run(&mut self) {
        let mut renew = tokio::time::Instant::now() + RENEW;
        let mut again: Option<tokio::time::Instant> = None;
        loop {
            let due = again.unwrap_or(renew).min(renew);
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    // The control thread is gone.
                    return;
                },
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.obey(order).await;
                        continue;
                    }
                    None => return,
                },
                () = self.common.set_back.notified() => {
                    self.lease = None;
                    self.there.clear();
                }
                () = tokio::time::sleep_until(due) => {}
            }
            if tokio::time::Instant::now() >= renew {
                self.renew().await;
                renew = tokio::time::Instant::now() + RENEW;
            }
            again = match self.reconcile().await {
                Ok(()) => {
                    self.written.send_replace(self.there.clone());
                    self.wait.reset();
                    self.common.problem(Subject::Writing, None);
                    None
                }
                Err(why) => {
                    let what = format!("this node's pods are not told to the others just now: {why}");
                    self.common.problem(Subject::Writing, Some(what));
                    Some(tokio::time::Instant::now() + self.wait.wait(&mut self.rng).into())
                }
            };
        }
    }

    /// Have the store's pods of this node be those there are.
    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let wanted = self.wanted.borrow_and_update().clone();
        if self.there == wanted {
            return Ok(());
        }
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                let lease = self.grant().await?;
                self.lease = Some(lease);
                lease
            }
        };
        let mut changes: Vec<SharedChange> = Vec::new();
        let new = wanted
            .iter()
            .filter(|(key, value)| self.there.get(*key) != Some(*value));
        changes.extend(new.map(|(key, value)| (key.clone(), Some(value.clone()))));
        let gone = self.there.keys().filter(|key| !wanted.contains_key(*key));
        changes.extend(gone.map(|key| (key.clone(), None)));
        for some in changes.chunks(MAX_KEYS) {
            if let Err(why) = self.write(some, lease).await {
                // It may be that the lease is what is wrong; what was written is not known.
                self.lease = None;
                self.there.clear();
                return Err(why);
            }
            for (key, value) in some {
                match value {
                    Some(value) => drop(self.there.insert(key.clone(), value.clone())),
                    None => drop(self.there.remove(key)),
                }
            }
        }
        Ok(())
    }

    async fn grant(&self) -> Result<LeaseId, StoreError> {
        let sessions = &self.common.sessions;
        // Done twice, it leaves a lease without keys, which expires.
        let granted = sessions.call(true, |mut session| async move {
            Ok(session.lease.grant(TTL_S, Some(LeaseGrantOptions::new())).await?)
        });
        Ok(granted
            .await
            .map_err(|failed| failed.tell(sessions.access()))?
            .id())
    }

    /// Renew the lease; one that ran out is replaced, and everything written again.
    async fn renew(&mut self) {
        let Some(lease) = self.lease else { return };
        let asked = self.common.sessions.call(true, |mut session| async move {
            let (mut keeper, mut answers) = session.lease.keep_alive(lease).await?;
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
        });
        if let Ok(ttl) = asked.await
            && ttl <= 0
        {
            log::warn!("the lease of this node's pods ran out: they are told to the others anew");
            self.lease = None;
            self.there.clear();
        }
    }

    async fn write(&self, keys: &[SharedChange], lease: LeaseId) -> Result<(), StoreError> {
        let sessions = &self.common.sessions;
        let asked = sessions.call(true, |mut session| {
            let ops: Vec<TxnOp> = keys
                .iter()
                .map(|(key, value)| {
                    let key = format!("{}{key}", self.common.prefix);
                    match value {
                        Some(value) => {
                            let options = PutOptions::new().with_lease(lease);
                            TxnOp::put(key, value.clone(), Some(options))
                        }
                        None => TxnOp::delete(key, None),
                    }
                })
                .collect();
            async move { Ok(session.kv.txn(Txn::new().and_then(ops)).await?) }
        });
        asked
            .await
            .map(drop)
            .map_err(|failed| failed.tell(sessions.access()))
    }

    /// Put something at keys that are to be deleted and that the store lacks: others may carry them on, and a store tells
    /// nobody that what it did not have is deleted.
    async fn mark(&self, keys: &[SharedChange]) -> Result<(), StoreError> {
        let sessions = &self.common.sessions;
        let gone = || keys.iter().filter(|(_, value)| value.is_none());
        if gone().next().is_none() {
            return Ok(());
        }
        let asked = sessions.call(true, |mut session| {
            let ops: Vec<TxnOp> = gone()
                .map(|(key, _)| {
                    let key = format!("{}{key}", self.common.prefix);
                    let lacks = Compare::version(key.clone(), CompareOp::Equal, 0);
                    TxnOp::txn(
                        Txn::new()
                            .when([lacks])
                            .and_then([TxnOp::put(key, TOMBSTONE, None)]),
                    )
                })
                .collect();
            async move { Ok(session.kv.txn(Txn::new().and_then(ops)).await?) }
        });
        asked
            .await
            .map(drop)
            .map_err(|failed| failed.tell(sessions.access()))
    }

    /// Write what a person asked for.
    async fn obey(&mut self, order: Order) {
        let outcome = match self.mark(&order.keys).await {
            Ok(()) => self.write(&order.keys, 0).await,
            Err(why) => Err(why),
        };
        if outcome.is_ok() {
            // What the store lacked already it does not tell of.
            self.common.with(|mirror| {
                let gone = order.keys.iter().filter(|(_, value)| value.is_none());
                gone.filter_map(|(key, _)| mirror.deleted(key)).collect()
            });
        }
        lock(&self.common.mailbox)
            .done
            .push((order.id, outcome.map_err(|e| e.to_string())));
        self.common.woken.notify_one();
    }
}
