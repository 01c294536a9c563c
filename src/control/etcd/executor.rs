//! Takes requests and has each done: one at a time of each kind, so that a slow store is not asked ever more.

use super::ask::{self, Expect, Keys};
use super::session::Sessions;
use super::settings::Access;
use super::watch;
use crate::control::cluster::{Answer, Ask, Event, Request, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;

/// Performs requests on the runtime it is called on.
pub struct Executor {
    shared: Arc<Shared>,
    watch: Option<AbortHandle>,
}

struct Shared {
    sessions: Sessions,
    keys: Keys,
    events: Sender<Event>,
    lists: Semaphore,
    /// In the order asked.
    writes: Semaphore,
    /// Questions for what is left of leases.
    looks: Semaphore,
}

impl Executor {
    /// Talk to the store at `access`, and tell `events` what comes of it.
    pub fn new(access: Access, events: Sender<Event>) -> Executor {
        let keys = Keys::new(access.prefix());
        Executor {
            shared: Arc::new(Shared {
                sessions: Sessions::new(access),
                keys,
                events,
                lists: Semaphore::new(1),
                writes: Semaphore::new(1),
                looks: Semaphore::new(1),
            }),
            watch: None,
        }
    }

    /// Make new connections for what is asked from now on.
    pub fn reconnect(&self) {
        self.shared.sessions.forget();
    }

    /// Begin a request; each is answered by one [`Event::Done`], whatever happens. A watch that replaces one says no
    /// more of the old. A watch that could not begin has no [`Event::WatchEnded`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn perform(&mut self, request: Request) {
        let shared = self.shared.clone();
        let Request { id, what } = request;
        let Ask::Watch { from } = what else {
            tokio::spawn(async move {
                let events = shared.events.clone();
                let done = tokio::spawn(async move { shared.done(what).await }).await;
                let answer = done.unwrap_or_else(|e| Err(broke(&e)));
                let _ = events.send(Event::Done { id, answer }).await;
            });
            return;
        };
        if let Some(old) = self.watch.take() {
            old.abort();
        }
        let events = self.shared.events.clone();
        let begun = Arc::new(AtomicBool::new(false));
        let has_begun = begun.clone();
        let task = tokio::spawn(async move {
            let begun = || has_begun.store(true, Ordering::Relaxed);
            watch::run(&shared.sessions, &shared.keys, (id, from), &shared.events, begun).await;
        });
        self.watch = Some(task.abort_handle());
        tokio::spawn(async move {
            let why = match task.await {
                Err(e) if e.is_panic() => broke(&e),
                _ => return,
            };
            let event = match begun.load(Ordering::Relaxed) {
                true => Event::WatchEnded { id, why },
                false => Event::Done { id, answer: Err(why) },
            };
            let _ = events.send(event).await;
        });
    }
}

/// A request that has no answer would be awaited for ever.
fn broke(error: &tokio::task::JoinError) -> StoreError {
    StoreError::Other(format!("a request to etcd broke off: {error}"))
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

impl Shared {
    /// Do it when it is its turn.
    async fn done(&self, what: Ask) -> Result<Answer, StoreError> {
        let turns = match what {
            Ask::List => &self.lists,
            Ask::TimeToLive { .. } => &self.looks,
            _ => &self.writes,
        };
        // Never closed.
        let _turn = turns.acquire().await;
        let (sessions, keys) = (&self.sessions, &self.keys);
        match what {
            Ask::List => ask::list(sessions, keys).await,
            Ask::Create { key, value, ttl_s } => {
                ask::write(sessions, keys.subnet(&key), value, Expect::Free, Some(ttl_s)).await
            }
            Ask::Renew {
                key,
                value,
                modified,
                ttl_s,
            } => {
                ask::write(
                    sessions,
                    keys.subnet(&key),
                    value,
                    Expect::Modified(modified),
                    ttl_s,
                )
                .await
            }
            Ask::Delete { key, modified } => ask::delete(sessions, keys.subnet(&key), modified).await,
            Ask::TimeToLive { lease } => ask::time_to_live(sessions, lease).await,
            Ask::Watch { .. } => Err(StoreError::Other("a watch is no single question".into())),
        }
    }
}
