//! The DNS server of a node: a thread that owns sockets and clock, around `dns::resolver`.
//!
//! ```text
//!  control thread --[ Mailbox, Waker ]--> thread --+-- udp       clients, in batches
//!                 <--[ Report ]----------          +-- tcp       clients, each with deadlines
//!                                                  +-- upstream  a socket for each attempt
//!                                                  +-- follow    the host's resolv.conf
//! ```
//!
//! The mailbox is looked into before the sockets, at each turn: once a pod is said to be attached, its name is known.
//! No lock is taken while there is no news.

mod follow;
mod tcp;
mod thread;
mod udp;
mod upstream;

use crate::dns::cache::Limits;
use crate::dns::counters::DnsCounters;
use crate::dns::entry::Entry;
use crate::dns::forward::Counts;
use crate::dns::name::Fqdn;
use crate::dns::resolv::ResolvConf;
use crate::dns::zone::PodAddresses;
use crate::model::{PodName, ServiceName, ServiceRecords};
use crossbeam_channel::{Sender, bounded};
use ipnet::IpNet;
use mio::Waker;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the control thread waits for a report.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a port that is free for UDP and not for TCP is left for another.
const PORTS: usize = 32;
/// Connections that may wait for the thread; the kernel takes what net.core.somaxconn allows of it.
const BACKLOG: i32 = 4096;
/// Bytes of questions that may wait, and of answers: thousands.
const BUFFER: usize = 4 << 20;
/// Most pods, and Services, whose changes wait in the mailbox: more than a node can have.
const MAX_NEWS: usize = 1 << 17;

/// What a node's DNS is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Below which pods' names are.
    pub domain: Fqdn,
    /// The pods' subnets.
    pub subnets: Vec<IpNet>,
    /// Below which Services' names are, and the ranges of their addresses.
    pub services: (Fqdn, Vec<IpNet>),
    /// Where pods reach the host.
    pub gateways: PodAddresses,
    /// Resolvers to ask instead of the host's.
    pub upstream: Option<Vec<SocketAddr>>,
    /// The file that names the host's.
    pub resolv_conf: PathBuf,
    /// Clients that are told only the node's own names.
    pub isolated: Option<IpNet>,
    /// Static entries.
    pub entries: Vec<Entry>,
    /// How much is cached.
    pub cache: Limits,
}

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("DNS cannot listen at {at}: {source}{}", remedy(*.at, .source))]
pub struct BindError {
    /// Where.
    pub at: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

fn remedy(at: SocketAddr, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied => format!(
            " (ports below 1024 need a right: take another, as {}; or give it as root, by \
             `setcap cap_net_bind_service=+ep PODWIRE` or `sysctl -w net.ipv4.ip_unprivileged_port_start={}`)",
            SocketAddr::new(at.ip(), 5353),
            at.port()
        ),
        io::ErrorKind::AddrInUse => {
            " (something else answers there: take another port with --dns-listen)".into()
        }
        io::ErrorKind::AddrNotAvailable => " (that is no address of this host; see --dns-listen)".into(),
        _ => String::new(),
    }
}

/// A place where clients ask, over UDP and TCP.
#[derive(Debug)]
struct Place {
    at: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Place {
    /// Bind it. With an interface only what comes in by that one is heard.
    fn bind(at: SocketAddr, interface: Option<&str>) -> Result<Place, BindError> {
        let failed = |source| BindError { at, source };
        let socket = |at: SocketAddr, kind| {
            let socket = Socket::new(Domain::for_address(at), kind, None)?;
            socket.bind_device(interface.map(str::as_bytes))?;
            // Connections of a node that ended a moment ago are no hindrance.
            socket.set_reuse_address(kind == Type::STREAM)?;
            socket.set_nonblocking(true)?;
            socket.bind(&at.into())?;
            Ok(socket)
        };
        let mut last = None;
        for _ in 0..if at.port() == 0 { PORTS } else { 1 } {
            let udp = UdpSocket::from(socket(at, Type::DGRAM).map_err(failed)?);
            let found = udp.local_addr().map_err(failed)?;
            match socket(found, Type::STREAM) {
                Ok(tcp) => {
                    // What the kernel grants has to do.
                    crate::sys::net::buffers(&udp, BUFFER, BUFFER);
                    // More than the usual 128, which a pod's flood fills before the thread is woken.
                    tcp.listen(BACKLOG).map_err(failed)?;
                    let tcp = TcpListener::from(tcp);
                    return Ok(Place { at: found, udp, tcp });
                }
                Err(e) => last = Some(e),
            }
        }
        Err(failed(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())))
    }
}

/// The bound sockets of a DNS that does not run yet.
#[derive(Debug)]
pub struct Sockets {
    /// None where there is no loopback.
    internal: Option<Place>,
    others: Vec<Place>,
}

impl Sockets {
    /// Bind one for the pods on loopback, where their questions are sent on to, and those of `listen`. A network
    /// namespace whose loopback is down has none for pods, which is a problem and no error.
    ///
    /// # Errors
    /// Which cannot be, and what helps.
    pub fn bind(listen: &[SocketAddr]) -> Result<Sockets, BindError> {
        let internal = match Place::bind((Ipv4Addr::LOCALHOST, 0).into(), None) {
            Err(e) if e.source.kind() == io::ErrorKind::AddrNotAvailable => None,
            bound => Some(bound?),
        };
        let others = listen.iter().map(|at| Place::bind(*at, None));
        Ok(Sockets {
            internal,
            others: others.collect::<Result<_, _>>()?,
        })
    }

    /// Have one at another place too, for who comes in by one of `interfaces`, unless one of `listen` has it already.
    ///
    /// # Errors
    /// Why it cannot be, and what helps.
    pub fn also(&mut self, at: SocketAddr, interfaces: &[&str]) -> Result<(), BindError> {
        let same = |ip: IpAddr| ip == at.ip() || ip.is_unspecified() && ip.is_ipv4() == at.is_ipv4();
        let has = |p: &Place| p.at.port() == at.port() && same(p.at.ip());
        if !self.others.iter().any(has) {
            let places = interfaces.iter().map(|name| Place::bind(at, Some(name)));
            self.others.extend(places.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(())
    }

    /// Where pods' questions belong; see [`Dns::internal`].
    pub fn internal(&self) -> Option<SocketAddr> {
        self.internal.as_ref().map(|p| p.at)
    }

    /// Start the thread.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn serve(self, settings: Settings) -> io::Result<Dns> {
        let internal = self.internal();
        let mut listen: Vec<SocketAddr> = self.others.iter().map(|p| p.at).collect();
        listen.dedup();
        let mailbox = Arc::new(Mailbox::default());
        let (thread, waker) = thread::spawn(self, settings, mailbox.clone())?;
        Ok(Dns {
            internal,
            listen,
            mailbox,
            waker,
            thread: Some(thread),
        })
    }
}

/// A DNS that runs; it ends when this is dropped.
#[derive(Debug)]
pub struct Dns {
    internal: Option<SocketAddr>,
    listen: Vec<SocketAddr>,
    mailbox: Arc<Mailbox>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Where it answers on loopback, over UDP and TCP alike: what pods ask at the gateway's port 53 belongs here. None
    /// where loopback is down.
    ///
    /// Clients are told apart by their address. Whoever passes on what pods ask does well to send from an address of
    /// 127.0.0.0/8 for each pod, so that one of them cannot use up all questions under way.
    pub fn internal(&self) -> Option<SocketAddr> {
        self.internal
    }

    /// Where else it answers.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// A pod came, changed its addresses or its other names, or went.
    pub fn set_pod(&self, pod: &PodName, addresses: Option<PodAddresses>, aliases: Vec<String>) {
        self.tell(|news| {
            if news.pods.len() < MAX_NEWS {
                news.pods.insert(pod.clone(), (addresses, aliases));
            }
        });
    }

    /// A Service's names are these now, or none.
    pub fn set_service(&self, service: &ServiceName, records: Option<ServiceRecords>) {
        self.tell(|news| {
            if news.services.len() < MAX_NEWS {
                news.services.insert(service.clone(), records);
            }
        });
    }

    /// The static entries are these now.
    pub fn set_entries(&self, entries: Vec<Entry>) {
        self.tell(|news| news.entries = Some(entries));
    }

    /// What it tells of itself, with all names if `list` says so; `None` when it does not answer within a second.
    pub fn report(&self, list: bool) -> Option<DnsReport> {
        let (reply, report) = bounded(1);
        self.tell(|news| news.report = Some((reply, list)));
        report.recv_timeout(PATIENCE).ok()
    }

    fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.mailbox.news());
        self.mailbox.full.store(true, Ordering::Release);
        // It fails only when the thread is gone, which `report` shows.
        let _ = self.waker.wake();
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.tell(|news| news.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the control thread has to say.
#[derive(Debug, Default)]
struct Mailbox {
    full: AtomicBool,
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    pods: BTreeMap<PodName, (Option<PodAddresses>, Vec<String>)>,
    services: BTreeMap<ServiceName, Option<ServiceRecords>>,
    entries: Option<Vec<Entry>>,
    /// Who asked last waits for it.
    report: Option<(Sender<DnsReport>, bool)>,
    end: bool,
}

impl Mailbox {
    fn news(&self) -> std::sync::MutexGuard<'_, News> {
        // What is in there is whole after each change.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came since the last time.
    fn take(&self) -> Option<News> {
        let full = self.full.swap(false, Ordering::Acquire);
        full.then(|| std::mem::take(&mut *self.news()))
    }
}

/// What a DNS tells of itself.
#[derive(Clone, Debug, Default)]
pub struct DnsReport {
    /// Questions, answers and what went nowhere.
    pub counters: DnsCounters,
    /// What was asked of the resolvers.
    pub upstream: Counts,
    /// Questions under way.
    pub in_flight: usize,
    /// Answers in the cache.
    pub cached: usize,
    /// Their bytes, roughly.
    pub cached_bytes: usize,
    /// Answers that left the cache before their time.
    pub evicted: u64,
    /// The resolvers, and whether each was silent a moment ago.
    pub servers: Vec<(SocketAddr, bool)>,
    /// Names of the node.
    pub names: usize,
    /// TCP clients.
    pub clients: usize,
    /// What a person should look at.
    pub problems: Vec<String>,
    /// All names, as `dns ls` shows them: name, type, record, and whose it is. Empty unless it was asked for.
    pub list: Vec<(String, String, String, &'static str)>,
}

/// The host's resolv.conf as it is now; empty when it cannot be read.
pub fn resolv_conf(path: &Path) -> ResolvConf {
    follow::read(path)
}

#[cfg(test)]
mod tests;
