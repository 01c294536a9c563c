//! The listening socket and the exchanges with its clients, within the control thread's poll.

use super::http::{self, Request, Status};
use crate::model::{Duration, Instant};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

/// Most clients at once; the oldest makes room for one more.
pub const MAX_CONNECTIONS: usize = 16;
/// How long a client may take for the whole exchange.
pub const TIME_LIMIT: Duration = Duration::from_secs(5);
/// How long a page is handed out before a new one is made.
const PAGE_AGE: Duration = Duration::from_millis(100);
/// Content type of what people read.
const TEXT: &str = "text/plain; charset=utf-8";
/// Content type of what balancers read.
const JSON: &str = "application/json";
/// What a client may still send after it was answered: without taking it, the kernel would reset the
/// connection and the client might lose the answer.
const LATE_BYTES: usize = 65_536;

/// What an endpoint tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serves {
    /// Metrics, and health.
    Metrics,
    /// Health only: whoever asks for it need not see who talks to whom.
    Health,
    /// Whether a Service has backends on this node, wherever one looks.
    Backends,
}

/// An endpoint.
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    serves: Serves,
    exchanges: HashMap<Token, Exchange>,
    /// The last client could not be accepted, and a warning said so.
    short: bool,
    /// The newest page, while it is new.
    page: Option<(Rc<String>, Instant)>,
}

/// One client.
struct Exchange {
    stream: TcpStream,
    since: Instant,
    stage: Stage,
}

enum Stage {
    /// The client sends its request.
    Asking(Vec<u8>),
    /// Head and body are sent, so many bytes of both already.
    Answering(Vec<u8>, Rc<String>, usize),
    /// All is sent; the client may send so many bytes more until it closes.
    Closing(usize),
}

/// Whether an exchange goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Wait,
    End,
}

impl Endpoint {
    /// Listen at `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// A sentence with the remedy, of the kernel's kind.
    pub fn bind(address: SocketAddr, serves: Serves) -> io::Result<Endpoint> {
        let key = match serves {
            Serves::Metrics => "metrics.listen",
            Serves::Health => "health.healthz_ip and health.healthz_port",
            Serves::Backends => "healthCheckNodePort of the Service",
        };
        let failed = |e: io::Error| {
            let (ip, port) = (address.ip(), address.port());
            let what = match e.kind() {
                io::ErrorKind::AddrInUse => format!("port {port} of {ip} is in use (set {key})"),
                io::ErrorKind::PermissionDenied => {
                    format!("port {port} of {ip} cannot be had: {e} (set {key} to a port above 1023)")
                }
                _ => {
                    format!("{address} cannot be bound: {e} (set {key} to an address of this host)")
                }
            };
            io::Error::new(e.kind(), what)
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        Ok(Endpoint {
            address: listener.local_addr().map_err(failed)?,
            listener,
            serves,
            exchanges: HashMap::new(),
            short: false,
            page: None,
        })
    }

    /// Whether the kernel had nothing left to serve a client with: those who wait must be looked for again.
    pub fn is_short(&self) -> bool {
        self.short
    }

    fn name(&self) -> String {
        match self.serves {
            Serves::Metrics | Serves::Health => format!("the metrics endpoint {}", self.address),
            Serves::Backends => format!("the health check port {}", self.address.port()),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Watch for clients.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.listener, token, Interest::READABLE)
    }

    /// Take in the clients that wait, each under a token of its own.
    pub fn accept(&mut self, registry: &Registry, now: Instant, mut token: impl FnMut() -> Token) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The client went away again.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(e) => {
                    if !std::mem::replace(&mut self.short, true) {
                        log::warn!("{} accepts nobody for now: {e}", self.name());
                    }
                    return;
                }
            };
            self.short = false;
            if self.exchanges.len() >= MAX_CONNECTIONS
                && let Some(oldest) = self
                    .exchanges
                    .iter()
                    .min_by_key(|(t, x)| (x.since, **t))
                    .map(|(t, _)| *t)
            {
                log::debug!("more than {MAX_CONNECTIONS} scrapers at once: the oldest is let go");
                self.exchanges.remove(&oldest);
            }
            let token = token();
            if let Err(e) = registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE) {
                log::warn!("a scraper could not be served: {e}");
                continue;
            }
            let stage = Stage::Asking(Vec::new());
            self.exchanges.insert(
                token,
                Exchange {
                    stream,
                    since: now,
                    stage,
                },
            );
        }
    }

    /// Whether a token is one of its clients'.
    pub fn has(&self, token: Token) -> bool {
        self.exchanges.contains_key(&token)
    }

    /// Go on with a client. `make` makes a page, or tells by `None` that the data path does not answer; `ready` is
    /// whether the node is.
    pub fn serve(&mut self, token: Token, now: Instant, ready: bool, make: impl FnOnce() -> Option<String>) {
        let Some(exchange) = self.exchanges.get_mut(&token) else {
            return;
        };
        // Whether there are backends is told with the status, as both are now.
        let (page, keeps) = (&mut self.page, self.serves != Serves::Backends);
        let next = exchange.go_on(self.serves, ready, || {
            let is_new = |(_, since): &(Rc<String>, Instant)| keeps && now < *since + PAGE_AGE;
            if !page.as_ref().is_some_and(is_new) {
                *page = make().map(|text| (Rc::new(text), now));
            }
            page.as_ref().map(|(page, _)| page.clone())
        });
        if next == Next::End {
            // Closing a socket takes it out of the poll.
            self.exchanges.remove(&token);
        }
    }

    /// How long the poll may sleep; `None` for as long as it likes.
    pub fn patience(&self, now: Instant) -> Option<std::time::Duration> {
        let ends = self.exchanges.values().map(|x| x.since + TIME_LIMIT);
        let page = self.page.as_ref().map(|(_, since)| *since + PAGE_AGE);
        ends.chain(page).min().map(|end| match end > now {
            // A millisecond more, since the poll counts in whole ones.
            true => (end - now + Duration::from_millis(1)).into(),
            false => std::time::Duration::ZERO,
        })
    }

    /// Let go of clients that take too long, and of a page that is old.
    pub fn expire(&mut self, now: Instant) {
        self.exchanges.retain(|_, x| now < x.since + TIME_LIMIT);
        self.page.take_if(|(_, since)| now >= *since + PAGE_AGE);
    }
}

/// The endpoints of a node, none to two.
#[derive(Default)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// Listen wherever the node shall: for metrics, and for health alone.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind(metrics: Option<SocketAddr>, health: Option<SocketAddr>) -> io::Result<Endpoints> {
        let metrics = metrics.map(|at| (at, Serves::Metrics));
        let all = metrics.into_iter().chain(health.map(|at| (at, Serves::Health)));
        all.map(|(at, serves)| Endpoint::bind(at, serves))
            .collect::<io::Result<_>>()
            .map(Endpoints)
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Option<SocketAddr> {
        let metrics = self.0.iter().find(|e| e.serves == Serves::Metrics);
        metrics.map(Endpoint::address)
    }

    /// Watch for clients, under two tokens from `first` on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&mut self, registry: &Registry, first: Token) -> io::Result<()> {
        let mut tokens = first.0..;
        self.0.iter_mut().try_for_each(|endpoint| {
            let token = tokens.next().unwrap_or_default();
            endpoint.register(registry, Token(token))
        })
    }

    /// Watch for clients no longer, and let go of those there are.
    pub fn deregister(&mut self, registry: &Registry) {
        for endpoint in &mut self.0 {
            endpoint.exchanges.clear();
            // It was registered; if the kernel thinks otherwise, all the better.
            let _ = registry.deregister(&mut endpoint.listener);
        }
    }

    /// Take in the clients that wait, each under a token of its own.
    pub fn accept(&mut self, registry: &Registry, now: Instant, mut token: impl FnMut() -> Token) {
        for endpoint in &mut self.0 {
            endpoint.accept(registry, now, &mut token);
        }
    }

    /// Whether one of them must look for clients again: see [`Endpoint::is_short`].
    pub fn is_short(&self) -> bool {
        self.0.iter().any(Endpoint::is_short)
    }

    /// Whether a token is a client's.
    pub fn has(&self, token: Token) -> bool {
        self.0.iter().any(|e| e.has(token))
    }

    /// Go on with a client: see [`Endpoint::serve`].
    pub fn serve(&mut self, token: Token, now: Instant, ready: bool, make: impl FnOnce() -> Option<String>) {
        if let Some(endpoint) = self.0.iter_mut().find(|e| e.has(token)) {
            endpoint.serve(token, now, ready, make);
        }
    }

    /// How long the poll may sleep; `None` for as long as it likes.
    pub fn patience(&self, now: Instant) -> Option<std::time::Duration> {
        self.0.iter().filter_map(|e| e.patience(now)).min()
    }

    /// Let go of what is too old.
    pub fn expire(&mut self, now: Instant) {
        for endpoint in &mut self.0 {
            endpoint.expire(now);
        }
    }
}

impl Exchange {
    /// As far as the kernel's buffers allow.
    fn go_on(&mut self, serves: Serves, ready: bool, make: impl FnOnce() -> Option<Rc<String>>) -> Next {
        match self.ask(serves, ready, make).and_then(|()| self.answer()) {
            Ok(()) => Next::End,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Next::Wait,
            Err(_) => Next::End,
        }
    }

    /// Read the request, if it was not yet, and prepare the answer.
    fn ask(
        &mut self,
        serves: Serves,
        ready: bool,
        make: impl FnOnce() -> Option<Rc<String>>,
    ) -> io::Result<()> {
        let Stage::Asking(bytes) = &mut self.stage else {
            return Ok(());
        };
        let request = loop {
            if let Some(request) = http::understand(bytes) {
                break request;
            }
            let mut space = [0; 2048];
            let room = space.len().min(http::MAX_REQUEST - bytes.len());
            match self.stream.read(&mut space[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => bytes.extend_from_slice(&space[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        let (status, page, head_only) = match request {
            Request::Refused { status, head } if serves != Serves::Backends || status != Status::NotFound => {
                (status, None, head)
            }
            // Whatever the path.
            Request::Metrics { head }
            | Request::Alive { head }
            | Request::Ready { head }
            | Request::Refused { head, .. }
                if serves == Serves::Backends =>
            {
                let status = if ready { Status::Ok } else { Status::NotReady };
                (status, make(), head)
            }
            Request::Metrics { head } if serves == Serves::Health => (Status::NotFound, None, head),
            Request::Metrics { head } => match make() {
                Some(page) => (Status::Ok, Some(page), head),
                None => (Status::Unavailable, None, head),
            },
            Request::Alive { head } => (Status::Ok, None, head),
            Request::Ready { head } if ready => (Status::Ok, None, head),
            Request::Ready { head } => (Status::NotReady, None, head),
            Request::Refused { status, head } => (status, None, head),
        };
        let (content_type, body) = match (page, status) {
            (Some(page), _) if serves == Serves::Backends => (JSON, page),
            (Some(page), _) => (CONTENT_TYPE, page),
            (None, Status::Ok) => (TEXT, Rc::new("ok\n".into())),
            (None, status) => (TEXT, Rc::new(status.explain().into())),
        };
        let head = http::head(status, content_type, body.len());
        let body = if head_only { Rc::default() } else { body };
        self.stage = Stage::Answering(head, body, 0);
        Ok(())
    }

    /// Send the answer and await the client's end.
    fn answer(&mut self) -> io::Result<()> {
        if let Stage::Answering(head, body, sent) = &mut self.stage {
            while *sent < head.len() + body.len() {
                let rest = match head.get(*sent..).filter(|rest| !rest.is_empty()) {
                    Some(rest) => rest,
                    None => &body.as_bytes()[*sent - head.len()..],
                };
                match self.stream.write(rest) {
                    Ok(n) => *sent += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.stream.shutdown(Shutdown::Write)?;
            self.stage = Stage::Closing(LATE_BYTES);
        }
        let mut space = [0; 4096];
        while let Stage::Closing(room) = &mut self.stage {
            match self.stream.read(&mut space) {
                Ok(n) if n == 0 || n >= *room => break,
                Ok(n) => *room -= n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::net;

    /// An endpoint in a poll of its own, with a clock that stands still unless told otherwise.
    struct World {
        poll: Poll,
        endpoint: Endpoint,
        now: Instant,
        tokens: usize,
        made: usize,
    }

    impl World {
        fn new() -> World {
            World::that(Serves::Metrics)
        }

        fn that(serves: Serves) -> World {
            let poll = Poll::new().unwrap();
            let mut endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), serves).unwrap();
            endpoint.register(poll.registry(), Token(0)).unwrap();
            World {
                poll,
                endpoint,
                now: Instant::from_secs(1),
                tokens: 0,
                made: 0,
            }
        }

        /// A client that has asked.
        fn client(&self) -> net::TcpStream {
            self.asking("GET /metrics")
        }

        fn asking(&self, what: &str) -> net::TcpStream {
            let mut client = net::TcpStream::connect(self.endpoint.address()).unwrap();
            client
                .write_all(format!("{what} HTTP/1.0\r\n\r\n").as_bytes())
                .unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        /// Serve until `done`.
        fn until(&mut self, page: Option<&str>, mut done: impl FnMut(&Endpoint) -> bool) {
            let mut events = Events::with_capacity(16);
            let begun = std::time::Instant::now();
            while !done(&self.endpoint) {
                assert!(begun.elapsed().as_secs() < 10);
                let tick = std::time::Duration::from_millis(1);
                self.poll.poll(&mut events, Some(tick)).unwrap();
                for event in &events {
                    let (registry, tokens, made) = (self.poll.registry(), &mut self.tokens, &mut self.made);
                    match event.token() {
                        Token(0) => self.endpoint.accept(registry, self.now, || {
                            *tokens += 1;
                            Token(*tokens)
                        }),
                        token => self.endpoint.serve(token, self.now, false, || {
                            *made += 1;
                            page.map(Into::into)
                        }),
                    }
                }
            }
        }

        fn answer(&mut self, page: Option<&str>) -> String {
            self.answer_to("GET /metrics", page)
        }

        fn answer_to(&mut self, what: &str, page: Option<&str>) -> String {
            let mut client = self.asking(what);
            let mut all = Vec::new();
            self.until(page, |_| client.read_to_end(&mut all).is_ok());
            String::from_utf8(all).unwrap()
        }
    }

    #[test]
    fn pages_are_shared_while_they_are_new_and_a_silent_data_path_is_told() {
        let mut w = World::new();
        assert!(w.answer(None).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(w.answer(Some("one\n")).ends_with("\r\n\r\none\n"));
        assert!(w.answer(Some("two\n")).ends_with("\r\n\r\none\n"));
        w.now += PAGE_AGE;
        assert!(w.answer(Some("three\n")).ends_with("\r\n\r\nthree\n"));
        assert_eq!(w.made, 3);
        w.until(None, |e| e.exchanges.is_empty());
        assert!(
            w.endpoint.patience(w.now).is_some(),
            "the page is to be forgotten"
        );
        w.endpoint.expire(w.now + PAGE_AGE);
        assert_eq!(w.endpoint.patience(w.now), None);
    }

    #[test]
    fn head_gets_the_head_alone_everywhere() {
        for serves in [Serves::Metrics, Serves::Health, Serves::Backends] {
            let mut w = World::that(serves);
            for path in ["/", "/metrics", "/healthz", "/readyz", "/x?y"] {
                let whole = w.answer_to(&format!("GET {path}"), Some("page\n"));
                let head = w.answer_to(&format!("HEAD {path}"), Some("page\n"));
                let end = whole.find("\r\n\r\n").unwrap() + 4;
                assert!(whole.len() > end, "{serves:?} {path}: {whole}");
                assert_eq!(head, whole[..end], "{serves:?} {path}");
            }
        }
    }

    #[test]
    fn a_balancer_is_told_what_is_so_now() {
        let mut w = World::that(Serves::Backends);
        assert!(w.answer_to("GET /", Some("one\n")).ends_with("one\n"));
        assert!(w.answer_to("GET /", Some("two\n")).ends_with("two\n"));
    }

    #[test]
    fn a_slow_reader_gets_a_large_page_whole_unless_its_time_is_over() {
        let mut w = World::new();
        let page = "x".repeat(20 << 20);
        assert!(w.answer(Some(&page)).ends_with(&page));
        let late = w.client();
        w.until(Some(&page), |e| {
            e.exchanges
                .values()
                .any(|x| matches!(x.stage, Stage::Answering(..)))
        });
        assert!(w.endpoint.patience(w.now) <= Some((PAGE_AGE + Duration::from_millis(1)).into()));
        w.endpoint.expire(w.now + TIME_LIMIT);
        assert!(w.endpoint.exchanges.is_empty());
        drop(late);
    }
}
