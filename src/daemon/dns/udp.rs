//! Clients over UDP: many questions with one call, and their answers with another.

use crate::buf::Span;
use crate::sys::net::{BATCH, Outgoing, RecvBatch, SendBatch};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Longest question that is taken whole: names have 255 bytes, and some clients pad.
const SLOT: usize = 4096;

/// Room for a batch, shared by all sockets.
pub struct Batch {
    receive: RecvBatch,
    send: SendBatch,
    memory: Vec<u8>,
    slots: Vec<Span>,
    answers: Vec<u8>,
    pieces: Vec<(SocketAddr, Span)>,
}

impl Batch {
    /// Empty.
    pub fn new() -> Batch {
        Batch {
            receive: RecvBatch::default(),
            send: SendBatch::default(),
            memory: vec![0; BATCH * SLOT],
            slots: (0..BATCH).map(|i| Span::new(i * SLOT, (i + 1) * SLOT)).collect(),
            answers: Vec::with_capacity(64 << 10),
            pieces: Vec::with_capacity(BATCH),
        }
    }

    /// Take what is there, at most a batch, and answer it: `answer` appends to its last argument, and says whether it
    /// did. Whether there may be more, and how many answers were lost.
    pub fn serve(
        &mut self,
        socket: &UdpSocket,
        mut answer: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>) -> bool,
    ) -> (bool, u64) {
        let got = match self.receive.receive(socket, &mut self.memory, &self.slots) {
            Ok(n) => n,
            // An error that a client left behind (port unreachable) is told once.
            Err(e) => return (e.kind() == io::ErrorKind::ConnectionRefused, 0),
        };
        self.answers.clear();
        self.pieces.clear();
        for i in 0..got {
            let incoming = self.receive.incoming(i);
            let Some(from) = incoming.from else {
                continue;
            };
            let start = self.slots[i].start();
            let question = &self.memory[start..start + incoming.len.min(SLOT)];
            let before = self.answers.len();
            match answer(question, from, &mut self.answers) {
                true => self.pieces.push((from, Span::new(before, self.answers.len()))),
                false => self.answers.truncate(before),
            }
        }
        (got == BATCH, self.flush(socket))
    }

    /// Send what is gathered; how many could not be.
    fn flush(&mut self, socket: &UdpSocket) -> u64 {
        let spans: Vec<[Span; 1]> = self.pieces.iter().map(|(_, span)| [*span]).collect();
        let messages = self.pieces.iter().zip(&spans);
        let messages: Vec<Outgoing<'_>> = messages
            .map(|((to, _), pieces)| Outgoing {
                from: None,
                to: *to,
                class: 0,
                segment: None,
                pieces,
            })
            .collect();
        let (mut rest, mut lost) = (&messages[..], 0);
        while !rest.is_empty() {
            // A client that cannot be reached is no reason to leave out the next.
            let sent = self.send.send(socket, &self.answers, rest).unwrap_or_else(|_| {
                lost += 1;
                1
            });
            rest = &rest[sent.min(rest.len())..];
        }
        lost
    }
}
