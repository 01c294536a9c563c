//! Nodes as far as their membership goes: the store's thread for real, and in place of the control thread a test that
//! takes its news.

use super::shell::at;
use mio::{Events, Poll, Token, Waker};
use podwire::control::cluster::{Identity, Options, StoreStatus};
use podwire::control::etcd::{Handle, Settings, Told, spawn};
use podwire::control::flannel::{Abilities, SubnetKey};
use podwire::control::memory::Memory;
use podwire::model::{Change, NodeName, Peer};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// A node.
pub struct Member {
    pub handle: Handle,
    poll: Poll,
    /// Its subnet, once it has one.
    pub subnet: Option<SubnetKey>,
    pub ready: bool,
    pub stopped: bool,
    pub allocate: bool,
    pub peers: BTreeMap<NodeName, Peer>,
    /// How often a peer was taken away.
    pub gone: usize,
}

/// Node `n`, whose lease is flannel's unless told otherwise.
pub fn identity(n: u8) -> Identity {
    Identity {
        abilities: Abilities {
            name: format!("n{n}"),
            id: format!("{n:032x}"),
            version: "0".into(),
            wire: Vec::new(),
        },
        public_ip: Ipv4Addr::new(192, 0, 2, n),
        public_ip6: None,
        vtep_mac: None,
    }
}

impl Member {
    /// Node `n` at the store at `url`, with a memory in `dir`.
    pub fn join(url: &str, n: u8, dir: &Path) -> Member {
        Member::with(&at(&[url]), n, dir, Options::default())
    }

    pub fn with(settings: &Settings, n: u8, dir: &Path, options: Options) -> Member {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let waker = Box::new(move || waker.wake().unwrap());
        let access = settings.check().unwrap();
        let memory = Memory::new(&dir.join(format!("n{n}")));
        Member {
            handle: spawn(access, identity(n), options, Some(memory), waker).unwrap(),
            poll,
            subnet: None,
            ready: false,
            stopped: false,
            allocate: true,
            peers: BTreeMap::new(),
            gone: 0,
        }
    }

    /// Sleep until there is news, for so long, and take it.
    pub fn turn(&mut self, patience: Duration) {
        self.poll
            .poll(&mut Events::with_capacity(4), Some(patience))
            .unwrap();
        while let Some(told) = self.handle.told() {
            assert!(!self.stopped, "{told:?} after the end");
            match told {
                Told::Acquired(membership) => {
                    assert!(self.subnet.is_none(), "a second subnet");
                    self.subnet = Some(membership.subnet);
                }
                Told::Peers(changes) => changes.into_iter().for_each(|change| match change {
                    Change::PeerSet(peer) => drop(self.peers.insert(peer.name.clone(), peer)),
                    Change::PeerGone(name) => {
                        assert!(self.peers.remove(&name).is_some(), "{name} was no peer");
                        self.gone += 1;
                    }
                }),
                Told::Ready => self.ready = true,
                Told::Allocate(may) => self.allocate = may,
                Told::Stopped => self.stopped = true,
            }
        }
    }

    /// Take news until this holds; how long that took.
    pub fn until(&mut self, patience: Duration, holds: impl Fn(&Member) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let mut report = self.report();
                report.leases.truncate(3);
                report.skipped.truncate(3);
                let (subnet, ready, peers) = (self.subnet, self.ready, self.peers.len());
                panic!(
                    "it does not come about: subnet {subnet:?}, ready {ready}, {peers} peers, {report:#?}"
                );
            }
            self.turn(left.min(Duration::from_millis(100)));
        }
        begun.elapsed()
    }

    /// How it stands; its thread must answer.
    pub fn report(&self) -> StoreStatus {
        self.handle.report().expect("a report")
    }

    /// End, and await that.
    pub fn stop(mut self, release: bool) {
        self.handle.stop(release);
        self.until(Duration::from_secs(10), |m| m.stopped);
        let begun = Instant::now();
        while !self.handle.ended() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the thread stays");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.handle.report().is_none());
    }
}
