//! Datagrams on their way to peers, gathered so that one system call carries as many as it can.
//!
//! A message is what one `sendmsg` with UDP_SEGMENT takes: datagrams of equal length (the last may be
//! shorter) to one address through one socket. A super-frame is a message by itself; small datagrams join the
//! last message of the same peer, socket and class, so that order within a flow is kept.

use crate::buf::{Message, Span};
use crate::model::PeerId;
use crate::offload::ack;
use crate::offload::segment::MAX_HEADER;
use crate::wire::Headers;
use crate::wire::vxlan::VXLAN_LEN;
use std::net::SocketAddr;

/// Messages that may wait.
const MESSAGES: usize = 64;
/// Datagrams of one message (UDP_MAX_SEGMENTS of kernels before 6.9).
const DATAGRAMS: usize = 64;
/// Header blocks of one message: VXLAN and all headers of a segment for each datagram.
pub const HEADERS_ROOM: usize = DATAGRAMS * (VXLAN_LEN + MAX_HEADER);

/// Most bytes of one message: the kernel takes 65,535 with the outer headers, and silently sends datagrams
/// one by one when those and Ethernet's 14 exceed 65,535.
pub fn most_bytes(to: SocketAddr) -> usize {
    if to.is_ipv4() { 65_493 } else { 65_473 }
}

/// Where a datagram goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Destination {
    pub peer: PeerId,
    pub to: SocketAddr,
    pub socket: u8,
    pub class: u8,
    pub gso: bool,
}

/// The messages that wait. Their buffers are kept for reuse.
#[derive(Debug, Default)]
pub struct Outbox {
    slots: Vec<Message>,
    /// For each slot how many acknowledgements its last datagram stands for; zero when it is none.
    acks: Vec<u8>,
    first: usize,
    len: usize,
}

impl Outbox {
    /// The messages, oldest first.
    pub fn messages(&self) -> &[Message] {
        &self.slots[self.first..self.len]
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.first == self.len
    }

    /// Whether a further datagram may find no place.
    pub fn is_full(&self) -> bool {
        self.len == MESSAGES
    }

    /// Forget the oldest `n`.
    pub(super) fn shift(&mut self, n: usize) {
        self.first = self.first.saturating_add(n).min(self.len);
        if self.first == self.len {
            self.first = 0;
            self.len = 0;
        }
    }

    /// Forget the last messages if the frame they stand for was not put in to its end.
    pub(super) fn forget_unfinished(&mut self) {
        while self.messages().last().is_some_and(|m| m.frames == 0) {
            self.len -= 1;
        }
        self.shift(0);
    }

    /// Put an acknowledgement in the place of the one that waits last for the same destination, if it says all
    /// that one says and more. `memory` is what spans point into; `h` are the headers of the frame in `datagram`.
    pub(super) fn merge_ack(&mut self, to: &Destination, memory: &[u8], datagram: Span, h: &Headers) -> bool {
        let waits = self.first..self.len;
        let same = |i: &usize| self.slots[*i].is_for(to);
        let Some(i) = waits
            .rev()
            .find(same)
            .filter(|i| (1..ack::MOST).contains(&self.acks[*i]))
        else {
            return false;
        };
        let Some(last) = self.slots[i].pieces.last_mut() else {
            return false;
        };
        let frame = |span: Span| span.part(VXLAN_LEN, span.len()).of(memory);
        if last.len() != datagram.len() || !ack::supersedes(frame(datagram), h, frame(*last)) {
            return false;
        }
        *last = datagram;
        self.acks[i] += 1;
        true
    }

    /// Put a small frame's datagram in; the outbox must not be full. `is_ack` tells that it is an
    /// acknowledgement and nothing else, which a later one may supersede.
    pub(super) fn push(&mut self, to: Destination, datagram: Span, is_ack: bool) {
        let fits = |m: &Message| {
            !m.closed
                && m.pieces_each == 1
                && m.gso
                && datagram.len() <= usize::from(m.segment)
                && usize::from(m.datagrams) < DATAGRAMS
                && m.bytes as usize + datagram.len() <= most_bytes(to.to)
        };
        // Only the newest message of the same destination, or the flow would be reordered.
        let open = (self.first..self.len).rev().find(|i| self.slots[*i].is_for(&to));
        if let Some(i) = open.filter(|i| self.slots[*i].class == to.class && fits(&self.slots[*i])) {
            self.acks[i] = u8::from(is_ack);
            let message = &mut self.slots[i];
            message.closed = datagram.len() < usize::from(message.segment);
            message.datagrams += 1;
            message.frames += 1;
            message.bytes += datagram.len;
            message.pieces.push(datagram);
            return;
        }
        let message = self.begin(to, datagram.len(), 1);
        message.frames = 1;
        add(message, datagram.len(), &[datagram]);
        self.acks[self.len - 1] = u8::from(is_ack);
    }

    /// Begin a message of datagrams of `segment` bytes in `pieces_each` pieces; the outbox must not be full.
    pub(super) fn begin(&mut self, to: Destination, segment: usize, pieces_each: u8) -> &mut Message {
        if self.len == self.slots.len() {
            self.slots.push(Message {
                peer: to.peer,
                to: to.to,
                socket: 0,
                class: 0,
                gso: false,
                segment: 0,
                datagrams: 0,
                frames: 0,
                bytes: 0,
                pieces_each,
                pieces: Vec::with_capacity(2 * DATAGRAMS),
                closed: false,
            });
            self.acks.push(0);
        }
        self.acks[self.len] = 0;
        let message = &mut self.slots[self.len];
        self.len += 1;
        message.peer = to.peer;
        message.to = to.to;
        message.socket = to.socket;
        message.class = to.class;
        message.gso = to.gso;
        message.segment = segment as u16;
        message.datagrams = 0;
        message.frames = 0;
        message.bytes = 0;
        message.pieces_each = pieces_each;
        message.pieces.clear();
        message.closed = false;
        message
    }

    /// Send what waits for `to` datagram by datagram.
    pub(super) fn without_gso(&mut self, to: SocketAddr) {
        for message in &mut self.slots[self.first..self.len] {
            message.gso &= message.to != to;
        }
    }
}

impl Message {
    /// Whether it takes the same way: what joins the newest such message is in order.
    fn is_for(&self, to: &Destination) -> bool {
        self.peer == to.peer && self.socket == to.socket && self.to == to.to
    }
}

/// Add a datagram to a message that was begun. `false` when it does not fit; the first one always does, since
/// a datagram by itself may be as long as UDP has it.
pub(super) fn add(message: &mut Message, len: usize, pieces: &[Span]) -> bool {
    let full = usize::from(message.datagrams) == DATAGRAMS;
    let too_long = message.datagrams > 0 && message.bytes as usize + len > most_bytes(message.to);
    if full || too_long {
        return false;
    }
    message.datagrams += 1;
    message.bytes += len as u32;
    message.pieces.extend_from_slice(pieces);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(peer: u16, socket: u8) -> Destination {
        Destination {
            peer: PeerId(peer),
            to: SocketAddr::from(([192, 0, 2, peer as u8], 8472)),
            socket,
            class: 0,
            gso: true,
        }
    }

    fn lengths(o: &Outbox) -> Vec<(u16, u16, u32)> {
        let of = |m: &Message| (m.peer.0, m.datagrams, m.bytes);
        o.messages().iter().map(of).collect()
    }

    #[test]
    fn equal_datagrams_share_a_message_and_a_shorter_one_ends_it() {
        let mut o = Outbox::default();
        for len in [100, 100, 60, 100, 120] {
            o.push(to(1, 0), Span::new(0, len), false);
        }
        assert_eq!(lengths(&o), [(1, 3, 260), (1, 1, 100), (1, 1, 120)]);
        o.push(to(2, 0), Span::new(0, 120), false);
        o.push(to(1, 0), Span::new(0, 120), false);
        o.push(to(1, 1), Span::new(0, 120), false);
        o.push(Destination { class: 4, ..to(1, 0) }, Span::new(0, 120), false);
        o.push(to(1, 0), Span::new(0, 120), false);
        assert_eq!(
            lengths(&o)[2..],
            [(1, 2, 240), (2, 1, 120), (1, 1, 120), (1, 1, 120), (1, 1, 120)]
        );
        o.shift(2);
        assert_eq!(lengths(&o)[0], (1, 2, 240));
        o.shift(9);
        assert!(o.is_empty());
    }

    #[test]
    fn half_a_frame_is_forgotten() {
        let mut o = Outbox::default();
        o.push(to(1, 0), Span::new(0, 60), false);
        for _ in 0..2 {
            add(o.begin(to(1, 0), 1400, 1), 1400, &[Span::new(0, 1400)]);
        }
        o.forget_unfinished();
        assert_eq!(lengths(&o), [(1, 1, 60)]);
        o.begin(to(1, 0), 1400, 1);
        o.begin(to(1, 0), 1400, 1).frames = 1;
        o.forget_unfinished();
        assert_eq!(o.messages().len(), 3, "a whole one is sent");
        let mut o = Outbox::default();
        o.begin(to(1, 0), 1400, 1);
        o.forget_unfinished();
        assert!(o.is_empty());
    }

    #[test]
    fn a_message_is_bounded() {
        let mut o = Outbox::default();
        for _ in 0..100 {
            o.push(to(1, 0), Span::new(0, 60), false);
        }
        assert_eq!(lengths(&o), [(1, 64, 64 * 60), (1, 36, 36 * 60)]);
        let mut o = Outbox::default();
        for _ in 0..45 {
            o.push(to(1, 0), Span::new(0, 1472), false);
        }
        assert_eq!(lengths(&o), [(1, 44, 64_768), (1, 1, 1472)]);
        let mut o = Outbox::default();
        for _ in 0..2 {
            o.push(
                Destination {
                    gso: false,
                    ..to(1, 0)
                },
                Span::new(0, 60),
                false,
            );
        }
        assert_eq!(lengths(&o), [(1, 1, 60), (1, 1, 60)]);
    }
}
