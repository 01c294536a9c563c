//! Where a node's peers come from.

use super::config::{Config, Password};
use super::links::Host;
use crate::control::cluster::{Identity, Options};
use crate::control::durable;
use crate::control::etcd::{self, Settings};
use crate::control::file::PeersFile;
use crate::control::flannel::{Abilities, SubnetEnv, SubnetKey};
use crate::control::memory::{self, Memory, Recalled};
use crate::control::store::Store;
use crate::model::StoreStatus;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest `subnet.env` that is read, in bytes: flannel's has some 120.
const MAX_SUBNET_ENV: u64 = 1 << 16;

/// The source of truth about the peers.
pub enum Source {
    /// There are none.
    None,
    /// A file, watched.
    File(PeersFile),
    /// A store of leases, kept by a thread of its own, which makes the stream readable when it has news.
    Store(Box<dyn Store>, UnixStream),
}

impl Source {
    /// The source that `config` names, with its first state: a file is read, a store's thread started, which keeps in
    /// `state` what a later start must know, and asks for the subnet of an earlier life: that of its pods in the first
    /// place, if there are any.
    ///
    /// # Errors
    /// A sentence for whoever starts the node.
    pub fn open(
        config: &Config,
        host: &Host,
        socket: &Path,
        state: &Path,
        pods: Option<SubnetKey>,
    ) -> Result<Source, String> {
        if let Some(path) = &config.peers {
            return PeersFile::open(path, &config.local_node(), config.peer_port()).map(Source::File);
        }
        let Some(store) = &config.store else {
            return Ok(Source::None);
        };
        let Some((public_ip, public_ip6)) = config.published(host) else {
            return Err(
                "this host has no IPv4 address that peers could send to (name one with --public-ip)".into(),
            );
        };
        let settings = Settings {
            endpoints: store.endpoints.clone(),
            prefix: store.prefix.clone(),
            ca: store.ca_file.clone(),
            cert: store.identity.as_ref().map(|(cert, _)| cert.clone()),
            key: store.identity.as_ref().map(|(_, key)| key.clone()),
            user: store.user.clone(),
            password: store.password.as_ref().map(Password::read).transpose()?,
        };
        let access = settings.check().map_err(|e| e.to_string())?;
        let memory = Memory::new(state);
        let identity = Identity {
            abilities: Abilities {
                name: config.node.to_string(),
                id: identity(&memory)?,
                version: env!("CARGO_PKG_VERSION").into(),
                wire: Vec::new(),
            },
            public_ip,
            public_ip6,
            vtep_mac: config.fixed_vtep_mac(),
        };
        let options = Options {
            renew_margin: store.renew_margin.into(),
            previous: pods.or_else(|| previous(&store.subnet_file(socket))),
            fixed: config.subnet4.map(|net4| SubnetKey {
                net4,
                net6: config.subnet6,
            }),
            ..Options::default()
        };
        let (near, far) = UnixStream::pair().map_err(|e| e.to_string())?;
        let nonblocking = near
            .set_nonblocking(true)
            .and_then(|()| far.set_nonblocking(true));
        nonblocking.map_err(|e| e.to_string())?;
        let wake = Box::new(move || {
            // A stream that is full has not been read yet.
            let _ = (&far).write(&[0]);
        });
        let handle = etcd::spawn(access, identity, options, Some(memory), wake)
            .map_err(|e| format!("the store's thread cannot be started: {e}"))?;
        Ok(Source::Store(Box::new(handle), near))
    }

    /// End: a store's thread keeps on disk what it knows, for which it is waited this long at most.
    pub fn end(self, patience: Duration) {
        let Source::Store(store, mut wake) = self else {
            return;
        };
        let end = Instant::now() + patience;
        store.stop();
        let blocks = wake.set_nonblocking(false);
        while blocks.is_ok() && !store.ended() {
            while store.told().is_some() {}
            let left = end.saturating_duration_since(Instant::now());
            // No time left is no time-out to the kernel.
            if left.is_zero() || wake.set_read_timeout(Some(left)).is_err() {
                break;
            }
            // Woken, or out of time: either is seen above.
            let _ = wake.read(&mut [0; 64]);
        }
        if !store.ended() {
            log::warn!(
                "what is known of the cluster was not kept within {} ms",
                patience.as_millis()
            );
        }
    }

    /// Whether there is a store, and its thread has ended.
    pub fn is_broken(&self) -> bool {
        matches!(self, Source::Store(store, _) if store.ended())
    }

    /// How the store stands, if there is one.
    pub fn store_status(&self) -> Option<StoreStatus> {
        match self {
            Source::Store(store, _) => Some(store.report().unwrap_or_else(|| StoreStatus {
                doing: "its thread does not answer".into(),
                alarms: vec![
                    "the thread that keeps the lease did not answer within 1 s (see the log)".into(),
                ],
                ..StoreStatus::default()
            })),
            _ => None,
        }
    }

    /// Why the peers file is not in force, for people.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Source::File(file) => {
                let complaint = file.complaint();
                complaint
                    .map(|c| format!("{c}; the peers known before stay in force"))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Who this node is, for ever: kept on its disk. Without a disk it is somebody new at each start.
fn identity(memory: &Memory) -> Result<String, String> {
    let fresh = || memory::fresh_id().map_err(|e| format!("no random numbers are to be had: {e}"));
    match memory.id() {
        Ok(Recalled::Known(id)) => return Ok(id),
        Ok(Recalled::Nothing) => {}
        Ok(Recalled::SetAside(why)) => log::warn!("{why}"),
        Err(e) => log::warn!("{e}"),
    }
    let id = fresh()?;
    if let Err(e) = memory.keep_id(&id) {
        log::warn!("{e}; without it the subnet may change with a restart");
    }
    Ok(id)
}

/// The subnet of an earlier life, as `subnet.env` tells it.
fn previous(path: &Path) -> Option<SubnetKey> {
    let bytes = durable::read(path, MAX_SUBNET_ENV).ok().flatten()?;
    match SubnetEnv::parse(&String::from_utf8_lossy(&bytes)) {
        Ok(env) => env.key(),
        Err(e) => {
            log::warn!("{}: {e}; it is written anew", path.display());
            None
        }
    }
}
