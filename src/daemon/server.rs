//! The control thread: one loop over the admin socket and its conversations, the metrics endpoint and its
//! scrapers, the peers file, the pods' namespaces and holders, TAPs that are being closed, the keeper, signals, and
//! the worker's end. It sleeps until one of them has something to say. What has to do with the keeper and the records
//! on disk is in [`kept`], with peers and store in [`news`], with container runtimes in [`attachments`], with pods that
//! come and go in [`pods`], with their ports on the host in [`published`]; Services, and what they must know of pods, in
//! [`services`], what people apply of them in [`applied`], and what the worker is still to be told in [`untold`].

mod applied;
mod attachments;
pub mod kept;
pub mod names;
mod news;
mod node_ports;
mod pods;
mod published;
mod services;
mod untold;

use super::addresses::AddressWatch;
use super::admin::{Admin, Refusal, Reservation, Worker};
use super::closer::Closer;
use super::command::Pinged;
use super::config::Config;
use super::dns::Dns;
use super::host_port::HostLink;
use super::keeper::keeping::Keeping;
use super::listener::Listener;
use super::metrics::{self, Endpoints, Page};
use super::panics::caught;
use super::published::Published;
use super::records::Recorder;
use super::source::Source;
use super::status::status;
use super::watch::NetnsWatch;
use crate::api::{Broken, Connection, ErrorKind, PROTOCOL, Reply, Request, Status};
use crate::control::file::PeersFile;
use crate::dns::entry::Entry;
use crate::model::{Change, Instant, PodName, PortMapping};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use kept::Kept;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use prometheus_client::metrics::histogram::Histogram;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::SystemTime;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
const RELOAD: Token = Token(2);
const PEERS: Token = Token(3);
const NETNS: Token = Token(4);
const WORKER: Token = Token(5);
const CLOSED: Token = Token(6);
const STORE: Token = Token(7);
const ADDRESSES: Token = Token(8);
/// Of the endpoints: this one and the next.
const ENDPOINTS: Token = Token(9);
const ENDPOINTS_TOO: Token = Token(10);
/// The keeper, its end, and the end of the one before it.
const KEEPER: [Token; 3] = [Token(11), Token(12), Token(13)];
/// Of the folders of manifests: the one that was given, and the node's own.
const FOLDERS: [Token; 2] = [Token(14), Token(15)];
/// The first token of conversations, scrapers and holders.
const FIRST: usize = 16;
/// Most conversations at once.
const MAX_CONNECTIONS: usize = 256;

/// How long the store's thread may take to keep what it knows when the node ends.
pub const KEEP: std::time::Duration = std::time::Duration::from_millis(300);
/// When what the worker did not take is offered again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Most requests of one conversation before others have their turn.
const MAX_REQUESTS: usize = 64;
/// What a conversation waits for.
const CONVERSATION: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Pipes that become readable on events from outside.
pub struct Wakers {
    /// SIGTERM or SIGINT came.
    pub stop: UnixStream,
    /// SIGHUP came.
    pub reload: UnixStream,
    /// The worker has something to tell, or ended: its other end is closed.
    pub worker: UnixStream,
}

/// Why the control thread ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Asked,
    /// The worker is gone.
    WorkerGone,
}

struct Conversation {
    wire: Connection,
    greeted: bool,
    reserved: Option<Reservation>,
    /// What goes on once the TAP of this pod is closed.
    pending: Option<(PodName, Pending)>,
    /// By this number ports are published for as long as it lasts.
    tied: Option<u64>,
    /// A request is being served that changes something.
    changing: bool,
}

/// A step of a conversation that waits.
enum Pending {
    /// This is the answer.
    Answer(Reply),
    /// This is the answer once the keeper has been told of the pod.
    Kept(Reply),
    /// This is to be answered.
    Question(Box<Request>),
    /// The data path tells how long a ping took.
    Pong(Receiver<Pinged>),
}

/// The control thread's state.
pub struct Server<'w> {
    config: Config,
    worker: &'w dyn Worker,
    admin: Admin<'w>,
    poll: Poll,
    listener: Listener,
    wakers: Wakers,
    source: Source,
    /// The store's thread is gone.
    orphaned: bool,
    /// New pods may get addresses.
    allocate: bool,
    /// Tells when peers must be told another address of this node.
    addresses: Option<AddressWatch>,
    /// The node has its subnet, and knew all its peers once.
    ready: bool,
    /// Changes that the worker had no room for, and when it was last asked.
    untold: (Vec<Change>, Instant),
    netns: NetnsWatch,
    published: Published,
    /// What was published when the node was started, and could not be again: why.
    unpublished: Vec<(PodName, PortMapping, String)>,
    conversations: HashMap<Token, Conversation>,
    /// Process descriptors of the holders of pods' namespaces.
    holders: HashMap<Token, (PodName, OwnedFd)>,
    /// What keeps the pause processes of pods that podwire made; closed with their ports.
    lifelines: HashMap<PodName, OwnedFd>,
    endpoints: Endpoints,
    /// How long attaches took, in seconds.
    attaches: Histogram,
    keeping: Keeping,
    recorder: Recorder,
    services: services::Services,
    node_ports: node_ports::NodePorts,
    /// None when it is off.
    dns: Option<Dns>,
    /// The host's own port, or why there is none; none when it is off.
    host_port: Option<Result<HostLink, String>>,
    /// Names that people added while the node ran.
    added: Vec<Entry>,
    closer: Closer,
    /// Pods that are gone, and whose interface is there until the TAP is closed.
    closing: HashSet<PodName>,
    /// Tells of TAPs that are closed now: one for each pod in `closing` at most.
    closed: (Sender<PodName>, Receiver<PodName>),
    waker: Arc<Waker>,
    /// Makes room for turning a client away.
    spare: Option<OwnedFd>,
    /// Clients may wait at the door.
    retry: bool,
    /// The last client could not be served, and a warning said so.
    short: bool,
    /// Word of attachments that ended while nobody answered.
    word: attachments::Word,
    next: usize,
    start: std::time::Instant,
    born: SystemTime,
}

impl<'w> Server<'w> {
    /// Bring everything together and tell the worker of the peers.
    ///
    /// # Errors
    /// What the kernel refused, or why the worker takes no orders.
    pub fn new(
        config: Config,
        worker: &'w dyn Worker,
        listener: Listener,
        mut endpoints: Endpoints,
        source: Source,
        wakers: Wakers,
        kept: Kept,
    ) -> io::Result<Server<'w>> {
        let poll = Poll::new()?;
        let netns = NetnsWatch::new()?;
        let admin = Admin::new(&config, worker);
        let services = services::Services::new(&config);
        let waker = Arc::new(Waker::new(poll.registry(), CLOSED)?);
        wakers.stop.set_nonblocking(true)?;
        wakers.reload.set_nonblocking(true)?;
        wakers.worker.set_nonblocking(true)?;
        watch_fd(&poll, listener.socket.as_fd(), LISTENER)?;
        watch_fd(&poll, wakers.stop.as_fd(), STOP)?;
        watch_fd(&poll, wakers.reload.as_fd(), RELOAD)?;
        watch_fd(&poll, wakers.worker.as_fd(), WORKER)?;
        watch_fd(&poll, netns.as_fd(), NETNS)?;
        match &source {
            Source::None => {}
            Source::File(file) => {
                if let Some(fd) = file.watch_fd() {
                    watch_fd(&poll, fd, PEERS)?;
                }
            }
            Source::Store(_, wake) => watch_fd(&poll, wake.as_fd(), STORE)?,
        }
        endpoints.register(poll.registry(), ENDPOINTS)?;
        let mut recorder = kept.recorder;
        recorder.wakes(waker.clone());
        let mut server = Server {
            config,
            worker,
            admin,
            poll,
            listener,
            wakers,
            ready: !matches!(source, Source::Store(..)),
            addresses: None,
            allocate: true,
            orphaned: false,
            source,
            untold: (Vec::new(), Instant::ZERO),
            netns,
            published: Published::default(),
            unpublished: Vec::new(),
            conversations: HashMap::new(),
            holders: HashMap::new(),
            lifelines: HashMap::new(),
            endpoints,
            attaches: metrics::attach_histogram(),
            keeping: kept.keeping,
            recorder,
            services,
            node_ports: node_ports::NodePorts::default(),
            dns: None,
            host_port: kept.host_port,
            added: Vec::new(),
            closer: Closer::default(),
            closing: HashSet::new(),
            closed: unbounded(),
            waker,
            spare: spare(),
            retry: false,
            short: false,
            word: attachments::Word {
                socket: kept.socket,
                heeded: Instant::ZERO,
                refused: false,
            },
            next: FIRST,
            start: std::time::Instant::now(),
            born: SystemTime::now(),
        };
        if let Source::File(file) = &server.source {
            server.tell(file.state().peers.iter().cloned().map(Change::PeerSet).collect());
        }
        // What the store has told while the data path was not there.
        server.hear();
        server.await_pods(kept.pods.iter().map(|held| &held.record));
        let (folder, own) = kept.manifests;
        server.open_services(folder, &own);
        server.adopt(kept.pods, kept.replace)?;
        server.heed_gone();
        Ok(server)
    }

    /// Serve until a signal or the worker's end. The socket is gone when this returns, and so are the pods, as far as
    /// the control thread is concerned, unless they are left to the keeper: after a crash, or by `pods.keep`. The
    /// recorder may be writing still.
    ///
    /// # Errors
    /// Only when waiting itself fails.
    pub fn run(mut self) -> (io::Result<End>, Recorder) {
        let end = self.serve_all();
        self.part(&end);
        self.source.end(KEEP);
        (end, self.recorder)
    }

    fn serve_all(&mut self) -> io::Result<End> {
        let mut events = Events::with_capacity(256);
        loop {
            self.record();
            let now = self.now();
            let again = (!self.untold.0.is_empty()).then_some(AGAIN);
            let patience = self.endpoints.patience(now).into_iter().chain(again);
            let patience = patience.chain(self.keeping.patience());
            let patience = patience.chain([self.word.patience(now)]);
            let patience = patience.chain(self.services_patience());
            let patience = patience.chain(self.node_ports.patience(now));
            let patience = patience.chain(self.recorder.patience()).min();
            match self.poll.poll(&mut events, patience) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(End::Asked),
                    WORKER => {
                        if drain(&mut self.wakers.worker) {
                            return Ok(End::WorkerGone);
                        }
                        for (pod, ifname) in self.admin.lost() {
                            self.lose(&pod, &format!("its interface {ifname} was deleted"));
                        }
                    }
                    RELOAD => {
                        drain(&mut self.wakers.reload);
                        if matches!(self.source, Source::File(_)) {
                            log::info!("reading the peers again");
                        }
                        self.reload(PeersFile::reload);
                        self.reload_services();
                    }
                    PEERS => self.reload(PeersFile::changes),
                    token if FOLDERS.contains(&token) => self.read_services(),
                    STORE => self.hear(),
                    ADDRESSES => self.move_house(),
                    NETNS => {
                        for pod in self.netns.gone() {
                            self.lose(&pod, "its namespace vanished");
                        }
                    }
                    LISTENER => self.accept(),
                    ENDPOINTS | ENDPOINTS_TOO => self.accept_scrapers(),
                    token if self.endpoints.has(token) => self.scrape(token),
                    token if self.node_ports.has(token) => self.tell_health(token),
                    CLOSED => self.go_on(),
                    token if KEEPER.contains(&token) => {
                        let todo = self.keeping.on_event(token, self.poll.registry());
                        self.obey(todo);
                    }
                    token if self.holders.contains_key(&token) => {
                        let pod = self.holders.get(&token).map(|(pod, _)| pod.clone());
                        if let Some(pod) = pod {
                            self.lose(&pod, "the process that held its namespace ended");
                        }
                    }
                    token => self.converse(token),
                }
            }
            let now = self.now();
            if !self.untold.0.is_empty() && now - self.untold.1 >= AGAIN.into() {
                self.offer();
            }
            self.services_on_time();
            self.heed_on_time();
            self.node_ports_on_time();
            self.endpoints.expire(now);
            if self.keeping.patience().is_some_and(|p| p.is_zero()) {
                let todo = self.keeping.on_time(self.poll.registry());
                self.obey(todo);
            }
            // One of those may have given a descriptor back.
            if self.retry {
                self.accept();
            }
            if self.endpoints.is_short() {
                self.accept_scrapers();
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Take in all who wait. The listener tells of newcomers only, so that whoever is left waits for `retry`.
    fn accept(&mut self) {
        self.retry = false;
        loop {
            let stream = match self.listener.socket.accept() {
                Ok((stream, _)) => stream,
                // A client that went away again is no reason to look at the next one differently.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.raw_os_error() == Some(libc::EMFILE) => match self.turn_one_away(&e) {
                    Ok(()) => continue,
                    Err(now) if now.kind() == io::ErrorKind::WouldBlock => return,
                    Err(_) => {
                        self.warn_of(&e);
                        self.retry = true;
                        return;
                    }
                },
                Err(e) => {
                    self.warn_of(&e);
                    self.retry = true;
                    return;
                }
            };
            if self.conversations.len() >= MAX_CONNECTIONS {
                log::debug!("more than {MAX_CONNECTIONS} clients at once: one is turned away");
                let what = format!("{MAX_CONNECTIONS} clients are being served (try again)");
                turn_away(stream, Refusal::new(ErrorKind::Internal, what));
                continue;
            }
            let token = self.token();
            let wire = Connection::new(stream).and_then(|wire| {
                self.poll.registry().register(
                    &mut SourceFd(&wire.as_fd().as_raw_fd()),
                    token,
                    CONVERSATION,
                )?;
                Ok(wire)
            });
            match wire {
                Ok(wire) => {
                    let conversation = Conversation {
                        wire,
                        greeted: false,
                        reserved: None,
                        pending: None,
                        tied: None,
                        changing: false,
                    };
                    self.conversations.insert(token, conversation);
                    self.short = false;
                }
                Err(e) => log::warn!("a client could not be served: {e}"),
            }
        }
    }

    fn accept_scrapers(&mut self) {
        let now = self.now();
        let registry = self.poll.registry();
        self.endpoints
            .accept(registry, now, || take_token(&mut self.next));
    }

    /// Go on with a scraper, and make a page when it is time for one.
    fn scrape(&mut self, token: Token) {
        let now = self.now();
        let (config, born, attaches, admin) = (&self.config, self.born, &self.attaches, &self.admin);
        let membership = || match &self.source {
            Source::Store(store, _) => Some(store.report()),
            _ => None,
        };
        let dns = self.dns.as_ref();
        let (services, node_ports) = (&self.services, &self.node_ports);
        self.endpoints.serve(token, now, self.ready, || {
            let report = admin.report()?;
            let mut page = Page::new(config, born, attaches, report, membership());
            page.dns = dns.and_then(|dns| dns.report(false));
            page.service_problems = services.count_problems() + node_ports.problems().count();
            Some(page.text())
        });
    }

    /// Answer one client though there is no descriptor for it (`why`): the spare one makes room.
    fn turn_one_away(&mut self, why: &io::Error) -> io::Result<()> {
        self.spare = None;
        let outcome = self.listener.socket.accept().map(|(stream, _)| {
            self.warn_of(why);
            turn_away(stream, self.out_of_files());
        });
        self.spare = spare();
        outcome
    }

    /// Say once that clients are not served.
    fn warn_of(&mut self, why: &io::Error) {
        if !std::mem::replace(&mut self.short, true) {
            let remedy = match why.raw_os_error() {
                Some(libc::EMFILE) => " (raise `ulimit -n` where it is started)",
                _ => "",
            };
            log::warn!("the admin socket serves nobody more: {why}{remedy}");
        }
    }

    fn out_of_files(&self) -> Refusal {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let what = format!(
            "all {limit} files that node {} may open are open (raise `ulimit -n` where it is started)",
            self.config.node
        );
        Refusal::new(ErrorKind::Internal, what)
    }

    /// Go on with a conversation until it has nothing more to say.
    fn converse(&mut self, token: Token) {
        // It is taken out while it is served, so that the server may be asked meanwhile.
        let Some(mut conversation) = self.conversations.remove(&token) else {
            return;
        };
        let served = caught(|| self.serve(token, &mut conversation));
        let served = served.unwrap_or_else(|panic| {
            panic.tell_of_request();
            if conversation.changing {
                log::error!("the node ends, as what that request had half done would be there for ever");
                resume_unwind(panic.payload);
            }
            let what = "the node failed at this request, which is a bug in podwire (its log says where)";
            let refusal = Refusal::new(ErrorKind::Internal, what);
            let _ = conversation.wire.reply(&refusal.into());
            Err(Broken::Eof)
        });
        match served {
            Ok(()) => drop(self.conversations.insert(token, conversation)),
            Err(end) => {
                if !matches!(end, Broken::Eof) {
                    log::debug!("a client's connection ended: {end}");
                }
                if matches!(end, Broken::OutOfFiles) {
                    let _ = conversation.wire.reply(&self.out_of_files().into());
                }
                if let Some(reservation) = conversation.reserved.take() {
                    log::debug!("pod {} was not committed", reservation.request.pod);
                    self.cancel(reservation);
                }
                self.untie(conversation.tied);
                self.unwatch(conversation.wire.as_fd());
            }
        }
    }

    fn serve(&mut self, token: Token, conversation: &mut Conversation) -> Result<(), Broken> {
        conversation.wire.flush()?;
        for _ in 0..MAX_REQUESTS {
            let (request, fds) = match conversation.pending.take() {
                Some((pod, step)) if self.closing.contains(&pod) => {
                    conversation.pending = Some((pod, step));
                    return Ok(());
                }
                Some((pod, Pending::Kept(reply))) if self.keeping.is_full() => {
                    conversation.pending = Some((pod, Pending::Kept(reply)));
                    return Ok(());
                }
                Some((pod, Pending::Pong(answer))) => {
                    let pinged = match answer.try_recv() {
                        Ok(pinged) => pinged,
                        Err(TryRecvError::Empty) => {
                            conversation.pending = Some((pod, Pending::Pong(answer)));
                            return Ok(());
                        }
                        // The worker is gone.
                        Err(TryRecvError::Disconnected) => Pinged::Unsent,
                    };
                    conversation.wire.reply(&attachments::pinged(&pod, pinged))?;
                    continue;
                }
                Some((_, Pending::Answer(reply) | Pending::Kept(reply))) => {
                    conversation.wire.reply(&reply)?;
                    continue;
                }
                Some((_, Pending::Question(request))) => (Ok(*request), Vec::new()),
                None => match conversation.wire.receive()? {
                    Some(received) => received,
                    None => return Ok(()),
                },
            };
            let answer = match request {
                Ok(request) => {
                    conversation.changing = !request.only_asks();
                    let answer = self.answer(token, conversation, request, fds);
                    conversation.changing = false;
                    answer
                }
                Err(what) => Err(Refusal::new(ErrorKind::Usage, what)),
            };
            if let Some(reply) = answer.unwrap_or_else(|refusal| Some(refusal.into())) {
                conversation.wire.reply(&reply)?;
            }
        }
        // Others have their turn first; registering again makes the poll tell of what is left.
        let fd = conversation.wire.as_fd().as_raw_fd();
        let registry = self.poll.registry();
        registry
            .reregister(&mut SourceFd(&fd), token, CONVERSATION)
            .map_err(Broken::Io)
    }

    /// The answer to a request; none when the conversation waits with it.
    fn answer(
        &mut self,
        token: Token,
        from: &mut Conversation,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refusal> {
        let now = self.now();
        let reply = match request {
            Request::Hello { protocol } => {
                from.greeted = protocol == PROTOCOL;
                Reply::Hello {
                    protocol: PROTOCOL,
                    node: self.config.node.to_string(),
                    version: env!("CARGO_PKG_VERSION").into(),
                }
            }
            _ if !from.greeted => {
                return Err(Refusal::new(
                    ErrorKind::Usage,
                    format!(
                        "say hello with protocol {PROTOCOL} first (this node is {})",
                        self.config.node
                    ),
                ));
            }
            // The interface of the pod's former self may have the name that this one shall have.
            Request::Attach(wish) if self.closing.contains(&wish.pod) => {
                let pod = wish.pod.clone();
                from.pending = Some((pod, Pending::Question(Box::new(Request::Attach(wish)))));
                return Ok(None);
            }
            Request::Attach(request) => {
                self.check_allocation()?;
                request
                    .attachment
                    .iter()
                    .try_for_each(|a| self.check_attachment(a))?;
                if let Some(earlier) = from.reserved.take() {
                    self.cancel(earlier);
                }
                let reservation = self.reserve(*request, now)?;
                let plan = reservation.plan.clone();
                from.reserved = Some(reservation);
                Reply::Plan(plan)
            }
            Request::Commit { caps, lifeline } => {
                let Some(reservation) = from.reserved.take() else {
                    return Err(Refusal::new(
                        ErrorKind::Usage,
                        "there is nothing to commit (ask to attach first)",
                    ));
                };
                let pod = reservation.request.pod.clone();
                let reply = self.commit(reservation, caps, fds, lifeline)?;
                if self.keeping.is_full() {
                    from.pending = Some((pod, Pending::Kept(reply)));
                    return Ok(None);
                }
                reply
            }
            Request::Detach { pod } => {
                let existed = self.remove(&pod).is_some();
                if existed {
                    log::info!("pod {pod} is detached");
                }
                // Told once its interface is gone, so that one of that name can be made at once.
                from.pending = Some((pod, Pending::Answer(Reply::Detached { existed })));
                return Ok(None);
            }
            Request::Release { attachment } => return Ok(self.release(from, &attachment)),
            Request::Attachments { filter } => self.attachments(&filter, now),
            Request::Ping { address } => return self.ping(from, address),
            Request::Vacancy => self.vacancy()?,
            Request::Pods => {
                let report = self.admin.report();
                Reply::Pods {
                    pods: self.admin.pods(report.as_ref(), now),
                }
            }
            Request::Store => Reply::Store {
                store: self.source.store_status().map(Box::new),
            },
            Request::Status => {
                let (dns, troubles) = self.dns_status();
                let more = self.complaints().chain(troubles).collect();
                let host = self.host_port.as_ref();
                let status = status(
                    &self.config,
                    &self.admin,
                    self.worker,
                    &self.source,
                    host,
                    more,
                    now,
                );
                Reply::Status(Box::new(Status { dns, ..status }))
            }
            Request::Ipam => Reply::Ipam(self.ipam(now)),
            Request::Dns => self.dns_list()?,
            Request::DnsChange { record, there } => self.dns_change(&record, there)?,
            Request::ResolvConf { pod } => self.dns_conf(&pod),
            Request::Publish { pod, ports, tied } => {
                let tied = tied.then(|| self.tie(&mut from.tied));
                self.publish(&pod, &ports, tied, now)?
            }
            Request::Unpublish { pod, ports } => self.unpublish(&pod, &ports, now)?,
            Request::Published { pod } => self.published(pod.as_ref(), now)?,
            Request::Label { pod, changes } => self.label(&pod, &changes, now)?,
            Request::Ready { pod, ready } => self.set_ready(&pod, ready, now)?,
            Request::Drain { pod, grace_ms } => self.drain_pod(&pod, grace_ms, now)?,
            Request::Connections {
                filter,
                pod,
                limit,
                kill,
            } => self.connections(&filter, pod.as_ref(), limit, kill)?,
            Request::Services => self.list_services(),
            Request::Service { name } => self.describe_service(&name)?,
            Request::Apply { text } => return self.apply(token, &text),
            Request::DeleteService { name } => return self.delete_service(token, &name),
        };
        Ok(Some(reply))
    }

    /// Have the last descriptor of a TAP closed.
    fn close(&mut self, pod: PodName, tap: OwnedFd) {
        let (done, waker) = (self.closed.0.clone(), self.waker.clone());
        self.closer.close(tap, move || {
            // Both fail only when the server is gone.
            let _ = done.send(pod);
            let _ = waker.wake();
        });
    }

    /// Go on with the conversations that waited for TAPs that are closed now.
    fn go_on(&mut self) {
        for pod in self.closed.1.try_iter() {
            self.closing.remove(&pod);
        }
        let waiting = self.conversations.iter().filter(|(_, c)| c.pending.is_some());
        let waiting: Vec<Token> = waiting.map(|(token, _)| *token).collect();
        for token in waiting {
            self.converse(token);
        }
    }

    fn token(&mut self) -> Token {
        take_token(&mut self.next)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }
}

pub(super) fn take_token(next: &mut usize) -> Token {
    let token = Token(*next);
    *next = next.wrapping_add(1).max(FIRST);
    token
}

pub(super) fn watch_fd(poll: &Poll, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    poll.registry()
        .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
}

fn spare() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Answer a client that will not be served; nobody else waits for it.
fn turn_away(stream: UnixStream, why: Refusal) {
    let _ = Connection::new(stream).map(|mut wire| wire.reply(&why.into()));
}

/// Empty a pipe; whether its other end is closed.
pub(super) fn drain(pipe: &mut impl Read) -> bool {
    let mut space = [0; 64];
    loop {
        match pipe.read(&mut space) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests;
