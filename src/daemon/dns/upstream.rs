//! Sockets to the host's resolvers: one for each attempt, so that its port is as random as its identifier.

use crate::dns::forward::Attempt;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// What came.
pub enum Event {
    /// A message is in the buffer.
    Message(Attempt, SocketAddr),
    /// It failed.
    Failed(Attempt),
}

enum Wire {
    Udp(UdpSocket),
    Tcp {
        stream: TcpStream,
        output: Vec<u8>,
        sent: usize,
        input: Vec<u8>,
    },
}

struct Socket {
    attempt: Attempt,
    to: SocketAddr,
    wire: Wire,
}

/// The sockets.
pub struct Upstream {
    sockets: HashMap<Token, Socket>,
    /// Those of a flight.
    flights: HashMap<(u32, u32), Vec<Token>>,
    next: usize,
    first: usize,
}

impl Upstream {
    /// None yet; tokens begin at `first`.
    pub fn new(first: usize) -> Upstream {
        Upstream {
            sockets: HashMap::new(),
            flights: HashMap::new(),
            next: first,
            first,
        }
    }

    /// Send a message from a new socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(
        &mut self,
        attempt: Attempt,
        to: SocketAddr,
        stream: bool,
        bytes: &[u8],
        registry: &Registry,
    ) -> io::Result<()> {
        let token = Token(self.next);
        let wire = match stream {
            false => {
                let any = match to {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let mut socket = UdpSocket::bind(any)?;
                // From now on the kernel drops what others send here.
                socket.connect(to)?;
                registry.register(&mut socket, token, Interest::READABLE)?;
                socket.send(bytes)?;
                Wire::Udp(socket)
            }
            true => {
                let mut stream = TcpStream::connect(to)?;
                registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                let len = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                let output = [&len.to_be_bytes()[..], bytes].concat();
                Wire::Tcp {
                    stream,
                    output,
                    sent: 0,
                    input: Vec::new(),
                }
            }
        };
        self.next = self.next.wrapping_add(1).max(self.first);
        self.sockets.insert(token, Socket { attempt, to, wire });
        let flight = (attempt.flight, attempt.generation);
        self.flights.entry(flight).or_default().push(token);
        Ok(())
    }

    /// Close the sockets of a flight.
    pub fn close(&mut self, flight: u32, generation: u32) {
        for token in self.flights.remove(&(flight, generation)).unwrap_or_default() {
            // Closing takes them out of the poll.
            self.sockets.remove(&token);
        }
    }

    /// Whether there is a socket of this token.
    pub fn has(&self, token: Token) -> bool {
        self.sockets.contains_key(&token)
    }

    /// The next thing that came to a socket, with its bytes in `space`; `None` when there is nothing more.
    pub fn next(&mut self, token: Token, space: &mut Vec<u8>) -> Option<Event> {
        let socket = self.sockets.get_mut(&token)?;
        let attempt = socket.attempt;
        let heard = match &mut socket.wire {
            Wire::Udp(udp) => {
                space.resize(65_535, 0);
                udp.recv(space).map(|n| space.truncate(n))
            }
            Wire::Tcp {
                stream,
                output,
                sent,
                input,
            } => converse(stream, output, sent, input, space),
        };
        match heard {
            Ok(()) => Some(Event::Message(attempt, socket.to)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => self.next(token, space),
            Err(e) => {
                log::debug!("resolver {}: {e}", socket.to);
                self.sockets.remove(&token);
                Some(Event::Failed(attempt))
            }
        }
    }
}

/// Go on with a connection until its message is whole.
fn converse(
    stream: &mut TcpStream,
    output: &[u8],
    sent: &mut usize,
    input: &mut Vec<u8>,
    message: &mut Vec<u8>,
) -> io::Result<()> {
    if let Some(e) = stream.take_error()? {
        return Err(e);
    }
    while *sent < output.len() {
        match stream.write(&output[*sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => *sent += n,
            // It does not stand yet.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => return Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => return Err(e),
        }
    }
    loop {
        let len = input
            .first_chunk()
            .map(|b| 2 + usize::from(u16::from_be_bytes(*b)));
        if let Some(whole) = len.and_then(|len| input.get(2..len)) {
            message.clear();
            message.extend(whole);
            input.clear();
            return Ok(());
        }
        let mut space = [0; 16_384];
        match stream.read(&mut space)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // At most what one message and one read have.
            n => input.extend(&space[..n]),
        }
    }
}
