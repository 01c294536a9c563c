//! A node that waits for its subnet: it says so to whoever asks, and carries nothing yet.

use super::admin::Refusal;
use super::listener::Listener;
use super::metrics::Endpoints;
use super::panics::caught;
use super::server::{drain, take_token, watch_fd};
use super::source::Source;
use crate::api::{Broken, Connection, ErrorKind, PROTOCOL, Reply, Request};
use crate::control::cluster::Membership;
use crate::control::etcd::Told;
use crate::model::{Instant, NodeName, StoreStatus};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
const STORE: Token = Token(2);
const ENDPOINTS: Token = Token(3);
const ENDPOINTS_TOO: Token = Token(4);
/// The first token of clients.
const FIRST: usize = 16;
/// Most clients of the admin socket at once.
const MAX_CLIENTS: usize = 64;
/// Most requests of one client, whose connection ends then: there is little to ask of a node that waits.
const MAX_REQUESTS: u32 = 1024;
/// How often people are told what is awaited, when it changed.
const TICK: Duration = Duration::from_secs(1);

/// What a node brings into the lobby, and takes along.
pub struct Lobby<'a> {
    /// The node's name.
    pub node: &'a NodeName,
    /// Its admin socket.
    pub listener: &'a Listener,
    /// Where its health is told.
    pub endpoints: &'a mut Endpoints,
    /// Its store.
    pub source: &'a mut Source,
    /// Becomes readable when the node shall end.
    pub stop: &'a UnixStream,
}

/// Somebody who asks at the admin socket.
struct Client {
    wire: Connection,
    greeted: bool,
    asked: u32,
}

/// How the wait ended.
pub enum Wait {
    /// There was nothing to wait for.
    Nothing,
    /// The node has its place.
    Over(Box<Membership>),
    /// The node shall end.
    Asked,
}

impl Lobby<'_> {
    /// Wait until the store has given the node a subnet.
    ///
    /// # Errors
    /// Only when waiting itself fails.
    pub fn wait(self) -> io::Result<Wait> {
        let Source::Store(_, wake) = &*self.source else {
            return Ok(Wait::Nothing);
        };
        let mut poll = Poll::new()?;
        let mut clients: HashMap<Token, Client> = HashMap::new();
        let start = std::time::Instant::now();
        let clock = || Instant::from_micros(i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX));
        self.stop.set_nonblocking(true)?;
        watch_fd(&poll, self.listener.socket.as_fd(), LISTENER)?;
        watch_fd(&poll, self.stop.as_fd(), STOP)?;
        watch_fd(&poll, wake.as_fd(), STORE)?;
        self.endpoints.register(poll.registry(), ENDPOINTS)?;
        let (mut next, mut told) = (FIRST, String::new());
        let mut events = Events::with_capacity(64);
        let outcome = loop {
            if self.source.is_broken() {
                return Err(io::Error::other(
                    "the thread that keeps the lease ended (the log tells why; report it)",
                ));
            }
            if let Some(over) = self.heard() {
                break over;
            }
            let patience = self.endpoints.patience(clock()).map_or(TICK, |p| p.min(TICK));
            match poll.poll(&mut events, Some(patience)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let mut asked = false;
            for event in &events {
                match event.token() {
                    STOP => asked = true,
                    STORE => {}
                    LISTENER => self.accept(&poll, &mut clients, &mut next),
                    ENDPOINTS | ENDPOINTS_TOO => {
                        self.endpoints
                            .accept(poll.registry(), clock(), || take_token(&mut next));
                    }
                    token if self.endpoints.has(token) => {
                        self.endpoints.serve(token, clock(), false, || None)
                    }
                    token => {
                        let done = clients
                            .get_mut(&token)
                            .map(|client| caught(|| self.answer(client)));
                        if let Some(Err(panic)) = &done {
                            // Nothing that clients can ask here changes anything.
                            panic.tell_of_request();
                        }
                        if let Some(Err(_) | Ok(Err(_))) = done {
                            // Closing it takes it out of the poll.
                            clients.remove(&token);
                        }
                    }
                }
            }
            if asked {
                break Wait::Asked;
            }
            self.endpoints.expire(clock());
            if start.elapsed() >= TICK
                && let Some(status) = self.source.store_status()
                && status.doing != told
            {
                log::info!("no subnet yet: this node {}", status.doing);
                for alarm in &status.alarms {
                    log::warn!("{alarm}");
                }
                told = status.doing;
            }
        };
        self.endpoints.deregister(poll.registry());
        Ok(outcome)
    }

    /// Membership, once the store has told it.
    fn heard(&self) -> Option<Wait> {
        let Source::Store(store, wake) = &*self.source else {
            return None;
        };
        let mut wake: &UnixStream = wake;
        drain(&mut wake);
        while let Some(news) = store.told() {
            if let Told::Acquired(membership) = news {
                return Some(Wait::Over(Box::new(membership)));
            }
        }
        None
    }

    fn accept(&self, poll: &Poll, clients: &mut HashMap<Token, Client>, next: &mut usize) {
        while let Ok((stream, _)) = self.listener.socket.accept() {
            if clients.len() >= MAX_CLIENTS {
                continue;
            }
            let token = take_token(next);
            let wire = Connection::new(stream).and_then(|wire| {
                let interest = Interest::READABLE.add(Interest::WRITABLE);
                poll.registry()
                    .register(&mut SourceFd(&wire.as_fd().as_raw_fd()), token, interest)?;
                Ok(wire)
            });
            match wire {
                Ok(wire) => {
                    let client = Client {
                        wire,
                        greeted: false,
                        asked: 0,
                    };
                    clients.insert(token, client);
                }
                Err(e) => log::warn!("a client could not be served: {e}"),
            }
        }
    }

    fn answer(&self, client: &mut Client) -> Result<(), Broken> {
        client.wire.flush()?;
        while let Some((request, _)) = client.wire.receive()? {
            client.asked += 1;
            if client.asked > MAX_REQUESTS {
                return Err(Broken::Eof);
            }
            let reply = match request {
                Ok(Request::Hello { protocol }) => {
                    client.greeted = protocol == PROTOCOL;
                    Reply::Hello {
                        protocol: PROTOCOL,
                        node: self.node.to_string(),
                        version: env!("CARGO_PKG_VERSION").into(),
                    }
                }
                Ok(Request::Store) if client.greeted => Reply::Store {
                    store: self.source.store_status().map(Box::new),
                },
                _ => self.refusal().into(),
            };
            client.wire.reply(&reply)?;
        }
        Ok(())
    }

    fn refusal(&self) -> Refusal {
        let StoreStatus { doing, .. } = self.source.store_status().unwrap_or_default();
        let what = format!(
            "node {} has no subnet yet: it {doing} (`podwire leases` tells more)",
            self.node
        );
        Refusal::new(ErrorKind::Waiting, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::place::Socket;
    use crate::api::{self, ApiError};
    use crate::control::flannel::{Network, Range4, SubnetKey};
    use crate::control::store::Store;
    use crossbeam_channel::{Receiver, unbounded};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    /// A store that says what a test puts in.
    struct Said(Receiver<Told>);

    impl Store for Said {
        fn told(&self) -> Option<Told> {
            self.0.try_recv().ok()
        }

        fn ended(&self) -> bool {
            false
        }

        fn report(&self) -> Option<StoreStatus> {
            Some(StoreStatus {
                doing: "waits for /x/config".into(),
                ..StoreStatus::default()
            })
        }

        fn address_changed(&self, _: Ipv4Addr, _: Option<Ipv6Addr>) {}

        fn stop(&self) {}
    }

    struct End<'a>(&'a UnixStream);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let _ = self.0.write_all(&[0]);
            }
        }
    }

    fn membership() -> Membership {
        let net = |s: &str| s.parse().unwrap();
        Membership {
            network: Network {
                range4: Range4 {
                    net: net("10.9.0.0/16"),
                    min: net("10.9.1.0/24"),
                    max: net("10.9.255.0/24"),
                },
                range6: None,
                vni: 1,
                port: 8472,
                mtu: None,
            },
            subnet: SubnetKey {
                net4: net("10.9.7.0/24"),
                net6: None,
            },
        }
    }

    /// A node in the lobby while `story` goes on, with what it may say to it; how the wait ended.
    fn waits(story: impl FnOnce(&Socket, std::net::SocketAddr, &dyn Fn(Told), &UnixStream)) -> Wait {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.sock");
        let listener = Listener::bind(&path, "n1").unwrap();
        let (say, said) = unbounded();
        let (bound, at) = unbounded();
        let (wake, woken) = UnixStream::pair().unwrap();
        woken.set_nonblocking(true).unwrap();
        let (ask, stop) = UnixStream::pair().unwrap();
        let node = "n1".parse().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut endpoints = Endpoints::bind(Some("127.0.0.1:0".parse().unwrap()), None).unwrap();
                bound.send(endpoints.metrics().unwrap()).unwrap();
                let mut source = Source::Store(Box::new(Said(said)), woken);
                let lobby = Lobby {
                    node: &node,
                    listener: &listener,
                    endpoints: &mut endpoints,
                    source: &mut source,
                    stop: &stop,
                };
                lobby.wait().unwrap()
            });
            let tell = |output| {
                say.send(output).unwrap();
                (&wake).write_all(&[0]).unwrap();
            };
            // A story that fails must not leave the node waiting.
            let _end = End(&ask);
            story(&Socket::from(path.as_path()), at.recv().unwrap(), &tell, &ask);
            waiting.join().unwrap()
        })
    }

    fn get(at: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    }

    #[test]
    fn a_node_that_waits_says_for_what_until_it_has_its_place() {
        let end = waits(|socket, at, tell, _| {
            let mut client = api::Client::connect(socket).unwrap();
            match client.call(&Request::Status) {
                Err(ApiError::Refused { kind, message }) => {
                    assert_eq!(kind, ErrorKind::Waiting);
                    assert!(
                        message.contains("has no subnet yet: it waits for /x/config"),
                        "{message}"
                    );
                }
                other => panic!("{other:?}"),
            }
            match client.call(&Request::Store) {
                Ok(Reply::Store { store: Some(status) }) => assert!(!status.connected),
                other => panic!("{other:?}"),
            }
            assert!(get(at, "/healthz").starts_with("HTTP/1.1 200"));
            assert!(get(at, "/readyz").starts_with("HTTP/1.1 503"));
            assert!(get(at, "/metrics").starts_with("HTTP/1.1 503"));
            tell(Told::Allocate(true));
            tell(Told::Acquired(membership()));
        });
        assert!(matches!(end, Wait::Over(m) if *m == membership()));
    }

    #[test]
    fn it_ends_when_it_is_asked_to() {
        let end = waits(|_, _, _, mut ask| ask.write_all(&[0]).unwrap());
        assert!(matches!(end, Wait::Asked));
    }
}
