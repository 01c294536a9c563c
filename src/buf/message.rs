//! What data path and sockets hand to each other: messages of the underlay, in both directions.

use super::Span;
use crate::model::{PeerId, UnderlayMtu};
use std::net::{IpAddr, SocketAddr};

/// One or more datagrams to one address.
#[derive(Clone, Debug)]
pub struct Message {
    /// The peer it is for.
    pub peer: PeerId,
    /// Its address.
    pub to: SocketAddr,
    /// Which of the family's sending sockets; chosen by the flow.
    pub socket: u8,
    /// Traffic class of the outer packets.
    pub class: u8,
    /// Whether all datagrams may go in one UDP_SEGMENT call.
    pub gso: bool,
    /// Length of every datagram but the last.
    pub segment: u16,
    /// How many datagrams.
    pub datagrams: u16,
    /// How many frames of pods they stand for.
    pub frames: u16,
    /// UDP payload bytes in all.
    pub bytes: u32,
    /// Pieces each datagram consists of.
    pub pieces_each: u8,
    /// The bytes.
    pub pieces: Vec<Span>,
    /// A shorter datagram was put in: none may follow.
    pub closed: bool,
}

impl Message {
    /// The Ethernet frame in the first datagram, as far as it lies in its first piece.
    pub fn first_frame<'m>(&self, memory: &'m [u8]) -> &'m [u8] {
        let first = self.pieces.first().map_or(&[][..], |p| p.of(memory));
        first.get(8..).unwrap_or_default()
    }
}

/// How far the sending of messages came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All are sent.
    All,
    /// So many are sent; the socket takes no more now.
    Blocked {
        /// How many.
        sent: usize,
    },
    /// So many are sent; the next one was refused.
    Refused {
        /// How many.
        sent: usize,
        /// Why the next was not.
        why: Refusal,
    },
}

/// Why the kernel refuses a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A datagram does not fit the path.
    TooBig {
        /// The path's MTU, where the kernel tells.
        mtu: Option<UnderlayMtu>,
    },
    /// UDP_SEGMENT does not work along this path (EIO, EINVAL).
    NoOffload,
    /// Anything else: no route, a firewall, no memory.
    Other,
}

/// One message of the underlay socket: a datagram, or a train of them merged by the kernel (UDP_GRO).
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The UDP payload.
    pub span: Span,
    /// Length of each datagram but the last, when there may be several.
    pub segment: Option<u16>,
    /// Outer source address.
    pub from: IpAddr,
    /// Outer traffic class.
    pub class: u8,
}
