//! What the host's own sockets say: the words between the data path, which asks, and the shell, which has the sockets.

use std::net::{IpAddr, SocketAddr};

/// Why the host could not do what was asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostError {
    /// Nothing listens there (ECONNREFUSED).
    Refused,
    /// The other end reset the connection.
    Reset,
    /// Some router, or the host itself, knows no way to that network.
    NetUnreachable,
    /// The last router does not find that host.
    HostUnreachable,
    /// A filter on the way, or the host's own, says no (EACCES, EPERM).
    Prohibited,
    /// Nobody answered.
    TimedOut,
    /// TTL or hop limit ran out on the way.
    TtlExceeded,
    /// Larger than the path allows: the largest IP packet that fits.
    TooBig(u16),
    /// The host has no room for another socket (EMFILE, ENFILE, ENOBUFS, ENOMEM, no free port).
    NoSockets,
    /// Anything else.
    Other,
}

/// How far reading from a stream, or writing to it, went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now; it is told when there is more.
    Blocked,
    /// The other end will send no more.
    End,
    /// It is broken.
    Failed(HostError),
}

/// What kind of socket a pod's datagrams leave by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MouthKind {
    /// UDP.
    Udp,
    /// ICMP echo (ping sockets, icmp(7)).
    Echo,
}

/// Where on the host a datagram came to, or leaves from: of use for a socket that is bound to every address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalEnd {
    /// The address.
    pub ip: IpAddr,
    /// The interface's number.
    pub interface: u32,
}

/// What came out of a datagram socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A datagram, or several of equal length.
    Datagram {
        /// Who sent it.
        from: SocketAddr,
        /// Bytes in all.
        len: usize,
        /// Length of each but the last, when there are several.
        segment: Option<u16>,
        /// Traffic class.
        class: u8,
        /// Which of the host's addresses it was sent to, where that is not the socket's own.
        at: Option<LocalEnd>,
    },
    /// The network says of a datagram that was sent that it did not arrive.
    Error {
        /// Where it was to go.
        to: SocketAddr,
        /// Who says so; none when the host itself does.
        by: Option<IpAddr>,
        /// What.
        what: HostError,
        /// How many bytes of the datagram are given back, as its beginning.
        len: usize,
    },
}

/// A datagram to send, or several in one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outward<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// From which of the host's addresses; the kernel's choice when none.
    pub from: Option<LocalEnd>,
    /// Hops it may go; none for as many as the host's own.
    pub hops: Option<u8>,
    /// Traffic class.
    pub class: u8,
    /// Length of each datagram but the last, when it is several.
    pub segment: Option<u16>,
    /// The network, or the host, may cut it into fragments.
    pub may_fragment: bool,
    /// Their bytes, one after the other.
    pub payload: &'a [u8],
}
