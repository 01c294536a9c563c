//! Where a node's peers come from.

use super::config::Config;
use super::links::Host;
use crate::control::file::PeersFile;
use crate::control::store::Store;
use crate::model::StoreStatus;
use std::os::unix::net::UnixStream;
use std::path::Path;

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
    /// The source that `config` names, with its first state: a file is read, a store's thread started.
    ///
    /// # Errors
    /// A sentence for whoever starts the node.
    pub fn open(config: &Config, host: &Host, socket: &Path) -> Result<Source, String> {
        if let Some(path) = &config.peers {
            return PeersFile::open(path, &config.local_node(), config.peer_port()).map(Source::File);
        }
        let Some(store) = &config.store else {
            return Ok(Source::None);
        };
        let _ = (store, host, socket);
        todo!()
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
