//! The thread "store": a loop that feeds what happens, and time, to [`Cluster`], and does what it wants done.

use super::executor::Executor;
use super::outbox::{Outbox, Told};
use super::settings::Access;
use super::shared::{self, Shared};
use crate::control::cluster::{Cluster, Event, Identity, Options, Output, Remembered, StoreStatus};
use crate::control::memory::{self, Memory, MemoryError, Recalled};
use crate::model::Instant;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// News the control thread may leave lying about.
const NEWS: usize = 64;
/// What happened and was not looked at yet.
const EVENTS: usize = 256;
/// How long the control thread waits for a report.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the end waits for the control thread, and for the disk.
const END: Duration = Duration::from_secs(2);
/// When the disk failed, try again after so long.
const DISK_RETRY: Duration = Duration::from_secs(30);
/// A disk that takes so long is said to be slow.
const DISK_SLOW: Duration = Duration::from_secs(10);
/// A deadline no later than this is awaited; the core wakes up more often.
const LONG: Duration = Duration::from_secs(3600);

/// Wakes the control thread.
pub type Wake = Box<dyn Fn() + Send>;

/// The control thread's end of a store. Dropping it ends the store's thread, and keeps the subnet.
pub struct Handle {
    news: Receiver<Told>,
    /// The control thread took something: there is room.
    room: Arc<Notify>,
    wishes: watch::Sender<Wishes>,
    reports: mpsc::Sender<Sender<StoreStatus>>,
    shared: Shared,
}

/// What the control thread wants; the last word counts.
#[derive(Clone, Default)]
struct Wishes {
    address: Option<(Ipv4Addr, Option<Ipv6Addr>)>,
    /// To end, and whether to give the subnet back.
    stop: Option<bool>,
}

/// Join the cluster whose leases are in the store at `access`, on a thread of its own. `identity.abilities.id` is this
/// node's for ever; `memory` is where it remembers, if anywhere. `wake` is called when [`Handle::told`] has news, and
/// when the thread ends; it must not block.
///
/// # Errors
/// When there is no thread or no runtime to be had.
pub fn spawn(
    access: Access,
    identity: Identity,
    options: Options,
    memory: Option<Memory>,
    wake: Wake,
) -> io::Result<Handle> {
    let (to, news) = bounded(NEWS);
    let (wishes, wished) = watch::channel(Wishes::default());
    let (reports, asked) = mpsc::channel(4);
    let room = Arc::new(Notify::new());
    let seed = u64::from_le_bytes(*memory::random()?.first_chunk().unwrap_or(&[0; 8]));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_name("store-io")
        .build()?;
    let options = Options {
        prefix: access.prefix().into(),
        ..options
    };
    let has_room = room.clone();
    let (shared, sharing) = shared::pair();
    let life = move || {
        // Dropped last: whoever is woken finds the channels closed.
        let waker = Waking(wake);
        let (to_loop, events) = mpsc::channel(EVENTS);
        let disk = Disk::new(memory.clone());
        runtime.block_on(async {
            let (disk, remembered) = disk.recall().await;
            let kept = shared::recall(memory.clone()).await;
            let woken = Arc::new(Notify::new());
            let beside = sharing.spawn(access.clone(), woken.clone(), seed ^ 2, memory, kept);
            let store = Store {
                cluster: Cluster::new(identity, remembered, options, seed),
                executor: Executor::new(access, to_loop),
                disk,
                outbox: Outbox::default(),
                to,
                waker: &waker.0,
                start: tokio::time::Instant::now(),
                stopped: false,
            };
            store.run(events, wished, asked, &has_room, &woken).await;
            beside.end().await;
        });
        // What looks up names or hangs in the disk is not waited for.
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name("store".into()).spawn(life)?;
    Ok(Handle {
        news,
        room,
        wishes,
        reports,
        shared,
    })
}

/// Wakes when the thread ends, also by a panic.
struct Waking(Wake);

impl Drop for Waking {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Handle {
    /// The next news, if there is any.
    pub fn told(&self) -> Option<Told> {
        let told = self.news.try_recv().ok();
        if told.is_some() {
            self.room.notify_one();
        }
        told
    }

    /// Whether the thread has ended: after [`Told::Stopped`], or because it broke.
    pub fn ended(&self) -> bool {
        self.reports.is_closed()
    }

    /// What nodes share beside their leases.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// How the membership stands. None when the thread has ended or does not answer within a second.
    pub fn report(&self) -> Option<StoreStatus> {
        let (reply, status) = bounded(1);
        self.reports.try_send(reply).ok()?;
        status.recv_timeout(PATIENCE).ok()
    }

    /// The node's underlay address is another one now.
    pub fn address_changed(&self, public_ip: Ipv4Addr, public_ip6: Option<Ipv6Addr>) {
        self.wishes
            .send_modify(|w| w.address = Some((public_ip, public_ip6)));
    }

    /// End; [`Told::Stopped`] follows within some seconds. `release` gives the subnet back to the cluster; otherwise
    /// it is kept for the next start.
    pub fn stop(&self, release: bool) {
        self.wishes.send_modify(|w| w.stop = w.stop.or(Some(release)));
    }
}

struct Store<'w> {
    cluster: Cluster,
    executor: Executor,
    disk: Disk,
    outbox: Outbox,
    to: Sender<Told>,
    waker: &'w Wake,
    start: tokio::time::Instant,
    stopped: bool,
}

impl Store<'_> {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut wished: watch::Receiver<Wishes>,
        mut asked: mpsc::Receiver<Sender<StoreStatus>>,
        room: &Notify,
        woken: &Notify,
    ) {
        let mut held = true;
        let mut before = Wishes::default();
        self.with(Cluster::poll);
        while !self.stopped {
            let due = self.due();
            tokio::select! {
                wish = wished.changed(), if held => {
                    let mut now = wished.borrow_and_update().clone();
                    if wish.is_err() {
                        // The control thread is gone.
                        held = false;
                        now.stop = now.stop.or(Some(false));
                    }
                    self.wished(&before, &now);
                    before = now;
                }
                Some(event) = events.recv() => self.with(|c, now, out| c.on(event, now, out)),
                Some(reply) = asked.recv() => {
                    let _ = reply.try_send(self.status());
                }
                () = room.notified(), if !self.outbox.is_empty() => {}
                () = woken.notified() => (self.waker)(),
                () = self.disk.step() => {}
                () = tokio::time::sleep_until(due) => self.with(Cluster::poll),
            }
            self.disk.go_on(&self.cluster);
            if self.outbox.send(&self.to) {
                (self.waker)();
            }
        }
        let last = async {
            while !self.outbox.is_empty() {
                room.notified().await;
                if self.outbox.send(&self.to) {
                    (self.waker)();
                }
            }
            self.disk.finish(&self.cluster).await;
        };
        if tokio::time::timeout(END, last).await.is_err() {
            log::warn!("the store's thread ends before everything was told and kept");
        }
    }

    /// Let the core do something, and do what follows.
    fn with(&mut self, step: impl FnOnce(&mut Cluster, Instant, &mut Vec<Output>)) {
        let mut out = Vec::new();
        let now = self.now();
        step(&mut self.cluster, now, &mut out);
        for output in out {
            match output {
                Output::Ask(request) => self.executor.perform(request),
                Output::Acquired(membership) => self.outbox.push(Told::Acquired(membership)),
                Output::Peers(changes) => self.outbox.push(Told::Peers(changes)),
                Output::Ready => self.outbox.push(Told::Ready),
                Output::Allocate(may) => self.outbox.push(Told::Allocate(may)),
                Output::Remember => self.disk.want(),
                Output::Stopped => {
                    self.outbox.push(Told::Stopped);
                    self.stopped = true;
                }
            }
        }
    }

    fn wished(&mut self, before: &Wishes, now: &Wishes) {
        if let Some((public_ip, public_ip6)) = now.address.filter(|_| now.address != before.address) {
            // Connections from the old address are dead, and would be found so only in some seconds.
            self.executor.reconnect();
            let event = Event::Address {
                public_ip,
                public_ip6,
            };
            self.with(|c, now, out| c.on(event, now, out));
        }
        if let (Some(release), None) = (now.stop, before.stop) {
            self.with(|c, now, out| c.on(Event::Stop { release }, now, out));
        }
    }

    fn status(&self) -> StoreStatus {
        let mut status = self.cluster.status(self.now());
        status.alarms.extend(self.disk.alarm());
        status
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// When the core wants to be polled.
    fn due(&self) -> tokio::time::Instant {
        let after = |at: Instant| Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0));
        match self.cluster.deadline() {
            Some(at) => (self.start + after(at)).min(tokio::time::Instant::now() + LONG),
            None => tokio::time::Instant::now() + LONG,
        }
    }
}

/// The memory, written beside the loop: a disk that is slow must not delay a renewal.
struct Disk {
    memory: Option<Arc<Memory>>,
    /// The state changed since the last write began.
    wanted: bool,
    writing: Option<JoinHandle<Result<(), MemoryError>>>,
    /// When the last write began.
    since: tokio::time::Instant,
    /// Why the last write failed, or the state could not be used.
    trouble: Option<String>,
    retry_at: Option<tokio::time::Instant>,
}

impl Disk {
    fn new(memory: Option<Memory>) -> Disk {
        Disk {
            memory: memory.map(Arc::new),
            wanted: false,
            writing: None,
            since: tokio::time::Instant::now(),
            trouble: None,
            retry_at: None,
        }
    }

    /// What was kept, to start from.
    async fn recall(mut self) -> (Disk, Option<Remembered>) {
        let Some(memory) = self.memory.clone() else {
            return (self, None);
        };
        let read = tokio::task::spawn_blocking(move || memory.recall()).await;
        let what = match read {
            Ok(Ok(Recalled::Known(state))) => return (self, Some(state)),
            Ok(Ok(Recalled::Nothing)) => return (self, None),
            Ok(Ok(Recalled::SetAside(what))) => what,
            Ok(Err(e)) => e.to_string(),
            Err(e) => format!("the state on disk cannot be read: {e}"),
        };
        log::warn!("{what}; starting without a memory");
        self.trouble = Some(what);
        (self, None)
    }

    fn want(&mut self) {
        self.wanted = self.memory.is_some();
    }

    /// Begin a write when one is wanted and none is under way.
    fn go_on(&mut self, cluster: &Cluster) {
        let soon = self.retry_at.is_none_or(|at| at <= tokio::time::Instant::now());
        if let (Some(memory), true, true, None) = (&self.memory, self.wanted, soon, &self.writing) {
            let (memory, state) = (memory.clone(), cluster.remember());
            self.writing = Some(tokio::task::spawn_blocking(move || memory.keep(&state)));
            self.wanted = false;
            self.retry_at = None;
            self.since = tokio::time::Instant::now();
        }
    }

    /// Await the end of a write, or the time for another try.
    async fn step(&mut self) {
        match (&mut self.writing, self.retry_at) {
            (Some(writing), _) => {
                let done = writing.await;
                self.writing = None;
                self.wrote(done);
            }
            (None, Some(at)) if self.wanted => tokio::time::sleep_until(at).await,
            _ => std::future::pending().await,
        }
    }

    fn wrote(&mut self, done: Result<Result<(), MemoryError>, tokio::task::JoinError>) {
        let failed = match done {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(format!("the state cannot be kept: {e}")),
        };
        match (&failed, &self.trouble) {
            (Some(what), before) if before.as_ref() != Some(what) => {
                log::warn!("{what}; the state that was kept before stays");
            }
            (None, Some(_)) => log::info!("the state is kept on disk again"),
            _ => {}
        }
        if failed.is_some() {
            self.wanted = true;
            self.retry_at = Some(tokio::time::Instant::now() + DISK_RETRY);
        }
        self.trouble = failed;
    }

    /// Write what is still to be written.
    async fn finish(&mut self, cluster: &Cluster) {
        // Not for another try's sake.
        while self.writing.is_some() || (self.wanted && self.retry_at.is_none()) {
            self.go_on(cluster);
            self.step().await;
        }
    }

    fn alarm(&self) -> Option<String> {
        let slow = self.writing.is_some() && self.since.elapsed() >= DISK_SLOW;
        let slow = slow.then(|| {
            format!(
                "the disk takes {} s so far to keep the state (look at its health)",
                self.since.elapsed().as_secs()
            )
        });
        self.trouble.clone().or(slow)
    }
}
