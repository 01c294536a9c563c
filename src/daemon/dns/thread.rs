//! The thread: one loop over clients, resolvers, the host's resolv.conf and the mailbox.

use super::follow::Follow;
use super::tcp::{Clients, End};
use super::udp::Batch;
use super::upstream::{Event, Upstream};
use super::{DnsReport, Mailbox, Settings, Sockets};
use crate::dns::counters::DnsDrop;
use crate::dns::forward::{Client, Order};
use crate::dns::resolver::{Outcome, Resolver};
use crate::dns::zone::Zone;
use crate::model::Instant;
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const WAKE: Token = Token(0);
const RESOLV_CONF: Token = Token(1);
/// Of the places: UDP and TCP of each.
const PLACES: usize = 16;
/// Most places.
const MAX_PLACES: usize = 128;
const CLIENTS: usize = PLACES + 2 * MAX_PLACES;
/// After the places of clients.
const UPSTREAM: usize = CLIENTS + super::tcp::MAX_CLIENTS;
/// Most batches of one socket before others have their turn.
const TURNS: usize = 4;
/// How long after the last change of resolv.conf it is read: whoever writes it may write more.
const SETTLE: Duration = Duration::from_millis(50);

/// Clients taken in at one listener before others have their turn.
const NEWCOMERS: usize = 64;
/// How long to wait for a descriptor to be given back.
const PAUSE: Duration = Duration::from_millis(100);

/// Start it.
pub(super) fn spawn(
    sockets: Sockets,
    settings: Settings,
    mailbox: Arc<Mailbox>,
) -> io::Result<(JoinHandle<()>, Arc<Waker>)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let mut udp = Vec::new();
    let mut tcp = Vec::new();
    let pods = sockets.internal.is_some();
    let all = sockets
        .internal
        .into_iter()
        .chain(sockets.others)
        .take(MAX_PLACES);
    for (i, place) in all.enumerate() {
        let fd = place.udp.as_raw_fd();
        let registry = poll.registry();
        registry.register(&mut SourceFd(&fd), Token(PLACES + 2 * i), Interest::READABLE)?;
        let mut listener = TcpListener::from_std(place.tcp);
        registry.register(&mut listener, Token(PLACES + 2 * i + 1), Interest::READABLE)?;
        udp.push(place.udp);
        tcp.push(listener);
    }
    let (services, ranges) = &settings.services;
    let mut zone = Zone::new(settings.domain.clone(), &settings.subnets, settings.gateways)
        .with_services(services.clone(), ranges);
    zone.set_entries(settings.entries.clone());
    let mut server = Server {
        resolver: Resolver::new(zone, settings.cache),
        poll,
        udp,
        ready: VecDeque::new(),
        tcp,
        waiting: Vec::new(),
        resume: None,
        warned: false,
        clients: Clients::default(),
        eager: VecDeque::new(),
        upstream: Upstream::new(UPSTREAM),
        follow: None,
        unfollowed: None,
        pods,
        reread: None,
        mailbox,
        dice: Dice::default(),
        batch: Batch::new(),
        space: Vec::new(),
        start: std::time::Instant::now(),
    };
    if let Some(clients) = settings.isolated {
        server.resolver.isolate(clients);
    }
    match settings.upstream {
        Some(servers) => server.resolver.set_servers(&servers),
        None => server.follow(settings.resolv_conf)?,
    }
    let run = move || {
        if let Err(e) = server.run() {
            log::error!("DNS ended: {e}");
        }
    };
    let thread = std::thread::Builder::new().name("dns".into()).spawn(run)?;
    Ok((thread, waker))
}

struct Server {
    resolver: Resolver,
    poll: Poll,
    udp: Vec<UdpSocket>,
    /// Sockets that have more than was taken.
    ready: VecDeque<usize>,
    tcp: Vec<TcpListener>,
    /// Places where a client may wait of whom no event tells: there was no descriptor for him.
    waiting: Vec<usize>,
    /// When they are asked again.
    resume: Option<std::time::Instant>,
    /// A warning said so.
    warned: bool,
    clients: Clients,
    /// Places of those that may have asked more than was taken.
    eager: VecDeque<usize>,
    upstream: Upstream,
    /// None when the resolvers are given.
    follow: Option<Follow>,
    /// Why the file is read once only.
    unfollowed: Option<String>,
    /// Pods can be answered.
    pods: bool,
    /// When the host's resolv.conf is to be read.
    reread: Option<std::time::Instant>,
    mailbox: Arc<Mailbox>,
    dice: Dice,
    batch: Batch,
    space: Vec<u8>,
    start: std::time::Instant,
}

impl Server {
    fn follow(&mut self, path: std::path::PathBuf) -> io::Result<()> {
        match Follow::new(path.clone()) {
            Ok(follow) => {
                let fd = follow.as_fd().as_raw_fd();
                let registry = self.poll.registry();
                registry.register(&mut SourceFd(&fd), RESOLV_CONF, Interest::READABLE)?;
                self.follow = Some(follow);
                self.read_resolvers();
            }
            Err(e) => {
                self.unfollowed = Some(format!(
                    "changes of {} are not noticed: {e} (restart the node after one, or raise \
                     fs.inotify.max_user_instances)",
                    path.display()
                ));
                self.resolver.set_servers(&super::follow::read(&path).servers);
            }
        }
        Ok(())
    }

    fn read_resolvers(&mut self) {
        let Some(follow) = &self.follow else {
            return;
        };
        let own: Vec<SocketAddr> = self.udp.iter().filter_map(|s| s.local_addr().ok()).collect();
        let mut servers = follow.read().servers;
        // To ask oneself leads nowhere.
        servers.retain(|s| !own.contains(s));
        let known = self.resolver.servers().iter().map(|s| s.at);
        if !known.eq(servers.iter().copied()) {
            let told: Vec<String> = servers.iter().map(ToString::to_string).collect();
            match told.is_empty() {
                true => log::warn!("the host names no resolver: only names of this node are answered"),
                false => log::info!("DNS asks {}", told.join(" and ")),
            }
            self.resolver.set_servers(&servers);
        }
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, self.patience()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            // Before questions are: what the control thread has said holds from now on.
            if let Some(end) = self.hear()
                && end
            {
                return Ok(());
            }
            for event in &events {
                match event.token() {
                    WAKE => {}
                    RESOLV_CONF => {
                        if self.follow.as_mut().is_some_and(Follow::changed) {
                            self.reread = Some(std::time::Instant::now() + SETTLE);
                        }
                    }
                    Token(n) if n < CLIENTS => {
                        let place = (n - PLACES) / 2;
                        match (n - PLACES) % 2 {
                            0 if !self.ready.contains(&place) => self.ready.push_back(place),
                            0 => {}
                            _ => self.accept(place),
                        }
                    }
                    Token(n) if n < UPSTREAM => self.converse(n - CLIENTS),
                    token => self.listen(token),
                }
            }
            for _ in 0..self.ready.len() {
                if let Some(place) = self.ready.pop_front() {
                    self.serve(place);
                }
            }
            for _ in 0..self.eager.len() {
                if let Some(place) = self.eager.pop_front() {
                    self.converse(place);
                }
            }
            if self.resume.is_some_and(|at| at <= std::time::Instant::now()) {
                self.resume = None;
                for place in std::mem::take(&mut self.waiting) {
                    self.accept(place);
                }
            }
            let now = self.now();
            if self.resolver.deadline().is_some_and(|at| at <= now) {
                let dice = &mut self.dice;
                self.resolver.on_time(now, &mut || dice.roll());
            }
            if self.reread.is_some_and(|at| at <= std::time::Instant::now()) {
                self.reread = None;
                self.read_resolvers();
            }
            self.obey();
            let slow = self.clients.expire(now);
            self.count(DnsDrop::Slow, slow);
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn patience(&self) -> Option<Duration> {
        if !self.ready.is_empty() || !self.eager.is_empty() {
            return Some(Duration::ZERO);
        }
        let at = [self.resolver.deadline(), self.clients.deadline()]
            .into_iter()
            .flatten()
            .min();
        let now = self.now();
        let wait = at.map(|at| match at > now {
            // A little late rather than a little early, and asked again.
            true => Duration::from(at - now) + Duration::from_micros(500),
            false => Duration::ZERO,
        });
        let until = |at: std::time::Instant| at.saturating_duration_since(std::time::Instant::now());
        let others = [self.reread, self.resume].into_iter().flatten().map(until);
        wait.into_iter().chain(others).min()
    }

    fn count(&mut self, why: DnsDrop, n: u64) {
        for _ in 0..n {
            self.resolver.counters_mut().dropped(why);
        }
    }

    /// Take the control thread's news; whether this is the end. `None` when there are none.
    fn hear(&mut self) -> Option<bool> {
        let news = self.mailbox.take()?;
        if !news.pods.is_empty() {
            self.resolver.change_zone(false, |zone| {
                for (pod, (addresses, aliases)) in &news.pods {
                    zone.set_pod(pod, *addresses);
                    zone.set_aliases(pod, aliases);
                }
            });
        }
        if !news.services.is_empty() {
            self.resolver.change_zone(false, |zone| {
                for (service, records) in &news.services {
                    zone.set_service(service, records.as_ref());
                }
            });
        }
        if let Some(entries) = news.entries {
            self.resolver.change_zone(true, |zone| zone.set_entries(entries));
        }
        if let Some((reply, list)) = news.report {
            // Who asked may have gone.
            let _ = reply.try_send(self.report(list));
        }
        Some(news.end)
    }

    fn report(&self, list: bool) -> DnsReport {
        let (now, forward, cache) = (self.now(), self.resolver.forward(), self.resolver.cache());
        let servers: Vec<_> = forward
            .servers()
            .iter()
            .map(|s| (s.at, s.is_silent(now)))
            .collect();
        let mut problems: Vec<String> = self.unfollowed.clone().into_iter().collect();
        if !self.pods {
            let what =
                "pods are not answered names: 127.0.0.1 is no address here (ip link set lo up, and restart)";
            problems.push(what.into());
        }
        if servers.is_empty() {
            problems.push(
                "the host names no resolver, so that only names of this node are answered (see /etc/resolv.conf, or \
                 set dns.upstream)"
                    .into(),
            );
        } else if servers.iter().all(|(_, silent)| *silent) {
            let told: Vec<String> = servers.iter().map(|(at, _)| at.to_string()).collect();
            problems.push(format!(
                "no resolver of the host answers ({}): names outside of this node fail",
                told.join(", ")
            ));
        }
        let mut names: Vec<_> = Vec::new();
        if list {
            let all = self.resolver.zone().list().into_iter();
            names.extend(all.map(|(name, kind, record, rank)| {
                (name.to_string(), kind.to_string(), record, rank.label())
            }));
            names.sort();
        }
        DnsReport {
            counters: self.resolver.counters().clone(),
            upstream: forward.counts(),
            in_flight: forward.len(),
            cached: cache.len(),
            cached_bytes: cache.bytes(),
            evicted: cache.evicted(),
            servers,
            names: self.resolver.zone().len(),
            clients: self.clients.len(),
            problems,
            list: names,
        }
    }

    /// Answer UDP clients at a place.
    fn serve(&mut self, place: usize) {
        let now = self.now();
        let Some(socket) = self.udp.get(place) else {
            return;
        };
        let (resolver, dice, batch) = (&mut self.resolver, &mut self.dice, &mut self.batch);
        let mut lost = 0;
        let mut more = false;
        for _ in 0..TURNS {
            let (again, not_sent) = batch.serve(socket, |bytes, from, out| {
                let client = Client {
                    from,
                    socket: (place as u32, 0),
                    stream: false,
                };
                let outcome = resolver.ask(bytes, client, now, &mut || dice.roll(), out);
                outcome == Outcome::Answered
            });
            lost += not_sent;
            more = again;
            if !more {
                break;
            }
        }
        if more {
            self.ready.push_back(place);
        }
        self.count(DnsDrop::Send, lost);
    }

    fn accept(&mut self, place: usize) {
        for _ in 0..NEWCOMERS {
            let Some(listener) = self.tcp.get(place) else {
                return;
            };
            let (stream, from) = match listener.accept() {
                Ok(taken) => taken,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if is_of_client(&e) => continue,
                // Out of descriptors, or of memory. Nothing tells again of who waits in the kernel's queue.
                Err(e) => {
                    if !self.waiting.contains(&place) {
                        self.waiting.push(place);
                    }
                    self.resume = Some(std::time::Instant::now() + PAUSE);
                    if !std::mem::replace(&mut self.warned, true) {
                        log::warn!(
                            "DNS clients over TCP wait: {e} (raise `ulimit -n` where the node is started)"
                        );
                    }
                    return;
                }
            };
            let (now, registry) = (self.now(), self.poll.registry());
            let added = self
                .clients
                .add(stream, from, now, registry, |place| Token(CLIENTS + place));
            self.count(DnsDrop::Clients, added.unwrap_or(1));
        }
        // Those who are there already have their turn before more of a flood.
        if !self.waiting.contains(&place) {
            self.waiting.push(place);
        }
        self.resume.get_or_insert_with(std::time::Instant::now);
    }

    /// Go on with a TCP client.
    fn converse(&mut self, place: usize) {
        let now = self.now();
        let (resolver, dice) = (&mut self.resolver, &mut self.dice);
        let Some(client) = self.clients.at(place) else {
            return;
        };
        let (from, socket) = (client.from, (place as u32, client.generation));
        let who = Client {
            from,
            socket,
            stream: true,
        };
        let end = client.serve(now, |bytes, out| {
            resolver.ask(bytes, who, now, &mut || dice.roll(), out) == Outcome::Waits
        });
        if end == Ok(true) && !self.eager.contains(&place) {
            self.eager.push_back(place);
        }
        self.part(place, end.map(|_| ()));
    }

    fn part(&mut self, place: usize, end: Result<(), End>) {
        if let Err(end) = end {
            self.count(DnsDrop::Slow, u64::from(end == End::Slow));
            self.clients.close(place);
        }
    }

    /// Hear a resolver.
    fn listen(&mut self, token: Token) {
        while self.upstream.has(token) {
            let now = self.now();
            let dice = &mut self.dice;
            match self.upstream.next(token, &mut self.space) {
                Some(Event::Message(attempt, from)) => {
                    self.resolver
                        .heard(attempt, from, &self.space, now, &mut || dice.roll());
                }
                Some(Event::Failed(attempt)) => self.resolver.failed(attempt, now, &mut || dice.roll()),
                None => break,
            }
            self.obey();
        }
    }

    /// Do what the resolver wants done.
    fn obey(&mut self) {
        loop {
            let orders: Vec<Order> = self.resolver.orders().collect();
            for order in orders {
                match order {
                    Order::Send {
                        attempt,
                        to,
                        stream,
                        bytes,
                    } => {
                        let registry = self.poll.registry();
                        if let Err(e) = self.upstream.send(attempt, to, stream, &bytes, registry) {
                            log::debug!("resolver {to}: {e}");
                            let (now, dice) = (self.now(), &mut self.dice);
                            self.resolver.failed(attempt, now, &mut || dice.roll());
                        }
                    }
                    Order::Close { flight, generation } => self.upstream.close(flight, generation),
                }
            }
            let replies: Vec<_> = self.resolver.replies().collect();
            if replies.is_empty() {
                // Failures above may have left further orders.
                if !self.resolver.has_orders() {
                    return;
                }
                continue;
            }
            for reply in replies {
                let (place, now) = (reply.client.socket.0 as usize, self.now());
                match reply.client.stream {
                    false => {
                        let sent = self
                            .udp
                            .get(place)
                            .map(|s| s.send_to(&reply.bytes, reply.client.from));
                        self.count(DnsDrop::Send, u64::from(!matches!(sent, Some(Ok(_)))));
                    }
                    true => match self.clients.of(reply.client.socket) {
                        Some(client) => match client.reply(&reply.bytes, now) {
                            // He may have asked more than was taken.
                            Ok(()) => self.converse(place),
                            end => self.part(place, end),
                        },
                        None => self.count(DnsDrop::Gone, 1),
                    },
                }
            }
        }
    }
}

/// Whether an accept failed for a client that went away again, or whose way here broke: the next one may wait already
/// (accept(2)).
fn is_of_client(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ETIMEDOUT
        )
    )
}

/// Random bits, from the kernel, many at a time.
struct Dice {
    pool: [u8; 1024],
    at: usize,
}

impl Default for Dice {
    fn default() -> Dice {
        Dice {
            pool: [0; 1024],
            at: 1024,
        }
    }
}

impl Dice {
    fn roll(&mut self) -> u64 {
        if self.at + 8 > self.pool.len() {
            let mut filled = 0;
            while filled < self.pool.len() {
                match rustix::rand::getrandom(&mut self.pool[filled..], rustix::rand::GetRandomFlags::empty())
                {
                    Ok(n) if n > 0 => filled += n,
                    Err(rustix::io::Errno::INTR) => {}
                    // A kernel without it (before 3.17) runs no podwire; the standard library's is keyed as well.
                    _ => {
                        use std::hash::{BuildHasher, RandomState};
                        return RandomState::new().hash_one(self.start_over());
                    }
                }
            }
            self.at = 0;
        }
        let bits = self.pool[self.at..self.at + 8]
            .try_into()
            .map_or(0, u64::from_ne_bytes);
        self.at += 8;
        bits
    }

    fn start_over(&mut self) -> usize {
        self.at = self.pool.len();
        self.at
    }
}
