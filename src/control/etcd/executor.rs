//! Takes requests and has each done: one at a time of each kind, so that a slow store is not asked ever more.

use super::ask::{self, Expect, Keys};
use super::session::Sessions;
use super::settings::Access;
use super::watch;
use crate::control::cluster::{Ask, Event, LeaseId, Request};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;

/// Most questions for what is left of leases at once.
const LOOKS: usize = 16;

/// Performs requests on the runtime it is called on.
pub struct Executor {
    shared: Arc<Shared>,
    watch: Option<AbortHandle>,
}

struct Shared {
    sessions: Sessions,
    keys: Keys,
    events: Sender<Event>,
    /// One list at a time.
    lists: Semaphore,
    /// One write at a time, in the order asked.
    writes: Semaphore,
    looks: Mutex<Looks>,
}

/// Questions for what is left of leases.
#[derive(Default)]
struct Looks {
    waiting: VecDeque<(u64, LeaseId)>,
    /// Tasks at work on them.
    at_work: usize,
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
                looks: Mutex::default(),
            }),
            watch: None,
        }
    }

    /// Begin a request; each is answered by one [`Event::Done`]. A watch that replaces one says no more of the old.
    /// A watch that could not begin has no [`Event::WatchEnded`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn perform(&mut self, request: Request) {
        let shared = self.shared.clone();
        let id = request.id;
        match request.what {
            Ask::TimeToLive { lease } => {
                let mut looks = shared.looks();
                looks.waiting.push_back((id, lease));
                if looks.at_work < LOOKS {
                    looks.at_work += 1;
                    drop(looks);
                    tokio::spawn(async move { shared.look().await });
                }
            }
            Ask::Watch { from } => {
                if let Some(old) = self.watch.take() {
                    old.abort();
                }
                let task = tokio::spawn(async move {
                    watch::run(&shared.sessions, &shared.keys, id, from, shared.events.clone()).await;
                });
                self.watch = Some(task.abort_handle());
            }
            what => {
                tokio::spawn(async move { shared.done(id, what).await });
            }
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

impl Shared {
    /// Do it when it is its turn, and tell.
    async fn done(&self, id: u64, what: Ask) {
        let turns = if what == Ask::List {
            &self.lists
        } else {
            &self.writes
        };
        // Never closed.
        let _turn = turns.acquire().await;
        let (sessions, keys) = (&self.sessions, &self.keys);
        let answer = match what {
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
            Ask::Watch { .. } | Ask::TimeToLive { .. } => return,
        };
        let _ = self.events.send(Event::Done { id, answer }).await;
    }

    /// Answer waiting questions until there are none.
    async fn look(&self) {
        loop {
            let next = {
                let mut looks = self.looks();
                let next = looks.waiting.pop_front();
                looks.at_work -= usize::from(next.is_none());
                next
            };
            let Some((id, lease)) = next else {
                return;
            };
            let answer = ask::time_to_live(&self.sessions, lease).await;
            let _ = self.events.send(Event::Done { id, answer }).await;
        }
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
