//! Connections to the store: one member at a time, another one when it fails.
//!
//! etcd-client can spread requests over all members by itself, but then a member that hangs takes its share of them
//! down, and no error says which one it was. Here a [`Session`] is with one member. A request that fails there for
//! reasons of the way or of the member is asked of the next, when it may be repeated, within the same deadline.

use super::settings::{Access, Endpoint};
use super::trouble::{Trouble, chain};
use crate::control::cluster::StoreError;
use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, KvClient, LeaseClient, TlsOptions, WatchClient,
};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a request may take, fail-over included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a TCP or TLS handshake may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection on which nothing came for so long is asked for a sign of life. etcd hangs up on clients that ask
/// more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How long that sign may take; a store that is slow only is not to be cut off.
const ALIVE: Duration = Duration::from_secs(6);
/// Largest message taken from the store.
const MAX_MESSAGE: usize = 16 << 20;

/// A connection to one member. Cheap to clone.
#[derive(Clone)]
pub(super) struct Session {
    /// Keys and values.
    pub kv: KvClient,
    /// Leases.
    pub lease: LeaseClient,
    /// Watches.
    pub watch: WatchClient,
    client: Client,
    /// Grows when the token is replaced.
    tokens: Arc<AtomicU64>,
}

/// The sessions, one after the other.
pub(super) struct Sessions {
    access: Access,
    state: Mutex<State>,
    /// Held while a session is made or its token replaced, so that it is done once for all who wait.
    making: tokio::sync::Mutex<()>,
    /// Whether a member gets only its share of the deadline. Not after all of them were silent: they may be slow.
    hasty: AtomicBool,
    /// Whether the session was of use yet.
    served: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The member in use.
    at: usize,
    session: Option<Session>,
    /// Grows with each change of the member.
    generation: u64,
}

impl Sessions {
    pub fn new(access: Access) -> Sessions {
        Sessions {
            access,
            state: Mutex::default(),
            making: tokio::sync::Mutex::new(()),
            hasty: AtomicBool::new(true),
            served: AtomicBool::new(false),
        }
    }

    /// How the store is reached.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Ask the store. `repeatable` requests are asked of further members when one fails; others only as long as
    /// they have not left.
    ///
    /// # Errors
    /// What the last member that was asked did or said.
    pub async fn call<T, F, W>(&self, repeatable: bool, work: W) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Trouble>>,
        W: Fn(Session) -> F,
    {
        self.call_at(repeatable, work).await.map(|(done, _)| done)
    }

    /// As [`Sessions::call`], and say which member did it.
    pub async fn call_at<T, F, W>(&self, repeatable: bool, work: W) -> Result<(T, Endpoint), Failed>
    where
        F: Future<Output = Result<T, Trouble>>,
        W: Fn(Session) -> F,
    {
        let end = Instant::now() + DEADLINE;
        let members = self.access.endpoints.len();
        let mut silent = 0;
        let mut round = 0;
        // A connection may be found broken only now, which says little of the member: that one has another try.
        let mut rounds = members;
        loop {
            let (at, generation) = {
                let state = self.state();
                (state.at, state.generation)
            };
            let left = end.saturating_duration_since(Instant::now());
            let share = match self.hasty.load(Ordering::Relaxed) && repeatable {
                true => left / u32::try_from(rounds - round).unwrap_or(1).max(1),
                false => left,
            };
            let answer = timeout(share, self.attempt(&work)).await;
            let trouble = match answer {
                Ok(Ok(done)) => {
                    self.served.store(true, Ordering::Relaxed);
                    self.hasty.store(true, Ordering::Relaxed);
                    return Ok((done, self.access.endpoints[at].clone()));
                }
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Silent,
            };
            let served = self.served.load(Ordering::Relaxed);
            let trouble = match trouble {
                // What a member means that hangs up at once is guesswork: with TLS 1.3 its word is lost with the
                // connection.
                Trouble::Broken(why) if !served => Trouble::Broken(match self.access.endpoints[at].tls {
                    true => format!("{why} (does it want a certificate of ours? see --etcd-certfile)"),
                    false => format!("{why} (is it https:// only, or no etcd?)"),
                }),
                other => other,
            };
            if served && rounds == members && matches!(trouble, Trouble::Broken(_)) {
                rounds += 1;
            }
            round += 1;
            silent += usize::from(trouble == Trouble::Silent);
            if trouble.ends_session() {
                self.leave(generation);
            }
            if round >= rounds || !trouble.elsewhere(repeatable) || Instant::now() >= end {
                if silent == round {
                    self.hasty.store(false, Ordering::Relaxed);
                }
                let at = self.access.endpoints[at].clone();
                return Err(Failed { trouble, at });
            }
            log::debug!(
                "etcd at {}: {trouble:?}; asking the next",
                self.access.endpoints[at]
            );
        }
    }

    /// Ask the member in use, with one new login when the token is too old.
    async fn attempt<T, F, W>(&self, work: &W) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Trouble>>,
        W: Fn(Session) -> F,
    {
        let session = self.session().await?;
        let token = session.tokens.load(Ordering::Relaxed);
        match work(session.clone()).await {
            Err(Trouble::Stale(why)) if self.access.login.is_some() => {
                log::debug!("logging in to etcd again: {why}");
                self.login(&session, token).await?;
                work(session).await
            }
            other => other,
        }
    }

    /// Log in again, unless that was done since `token` was looked at.
    async fn login(&self, session: &Session, token: u64) -> Result<(), Trouble> {
        let _one = self.making.lock().await;
        if session.tokens.load(Ordering::Relaxed) != token {
            return Ok(());
        }
        self.log_in(session).await
    }

    async fn log_in(&self, session: &Session) -> Result<(), Trouble> {
        if self.access.login.is_some() {
            let asked = session
                .client
                .clone()
                .update_user(self.access.login.clone())
                .await;
            match asked.map_err(Trouble::from) {
                // As flannel's client: a login that is not needed is not missed.
                Err(Trouble::NoUsers) | Ok(()) => {}
                Err(Trouble::Stale(why)) => return Err(Trouble::Refused(why)),
                Err(other) => return Err(other),
            }
            session.tokens.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The session with the member in use.
    async fn session(&self) -> Result<Session, Trouble> {
        let _one = self.making.lock().await;
        let (at, generation) = {
            let state = self.state();
            if let Some(session) = &state.session {
                return Ok(session.clone());
            }
            (state.at, state.generation)
        };
        let client = client(&self.access, &self.access.endpoints[at])
            .await
            .map_err(Trouble::Untrusted)?;
        let session = Session {
            kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE),
            client,
            tokens: Arc::default(),
        };
        self.log_in(&session).await?;
        let mut state = self.state();
        if state.generation == generation {
            state.session = Some(session.clone());
        }
        Ok(session)
    }

    /// Go to the next member, unless that was done since `generation` was looked at.
    fn leave(&self, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            state.session = None;
            self.served.store(false, Ordering::Relaxed);
            state.generation += 1;
            state.at = (state.at + 1) % self.access.endpoints.len();
        }
    }

    /// Have no more to do with the connection in use; the member is the same.
    pub fn forget(&self) {
        let mut state = self.state();
        state.session = None;
        state.generation += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was not done.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// Why.
    pub trouble: Trouble,
    /// The member that was asked last.
    pub at: Endpoint,
}

impl Failed {
    /// The sentence for people.
    pub fn tell(self, access: &Access) -> StoreError {
        self.trouble.tell(&self.at, access)
    }
}

/// A client for one member. Nothing is sent yet.
///
/// # Errors
/// The sentence for certificates or a key that cannot be used.
pub(super) async fn client(access: &Access, endpoint: &Endpoint) -> Result<Client, String> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(KEEP_ALIVE, ALIVE)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    if endpoint.tls {
        let mut tls = TlsOptions::new().domain_name(&endpoint.host).timeout(CONNECT);
        tls = match &access.tls.ca {
            Some((_, pem)) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_native_roots(),
        };
        if let Some((cert, key)) = &access.tls.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        options = options.with_tls(tls);
    }
    Client::connect([&endpoint.url], Some(options)).await.map_err(|e| {
        let why = match &e {
            etcd_client::Error::TransportError(e) => chain(e),
            other => other.to_string(),
        };
        let roots = match (&access.tls.ca, endpoint.tls) {
            (None, true) => " (without --etcd-cafile the system's certificates are used: is ca-certificates installed?)",
            _ => "",
        };
        format!("certificates or key for {endpoint} cannot be used: {why}{roots}")
    })
}
