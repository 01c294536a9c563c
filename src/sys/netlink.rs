//! Changes to the network configuration, sent as one batch and answered as one.

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;

/// Index of the loopback interface in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Why a batch failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No conversation with the kernel.
    #[error("rtnetlink does not work here: {0}")]
    Socket(#[from] io::Error),
    /// The kernel answered with something that is no acknowledgement.
    #[error("the kernel's answer cannot be read: {0}")]
    Garbled(String),
    /// The kernel refused one of the changes.
    #[error("{what}: {}", io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// The change.
        what: String,
        /// The kernel's error number.
        errno: i32,
    },
}

/// Changes in the order the kernel shall make them.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    changes: Vec<Pending>,
}

struct Pending {
    what: String,
    optional: bool,
    answer: Option<i32>,
}

impl Batch {
    /// Change something that exists.
    pub fn set(&mut self, what: &str, message: RouteNetlinkMessage) {
        self.push(what.into(), false, 0, message);
    }

    /// Change something the kernel may be too old for.
    pub fn try_set(&mut self, what: String, message: RouteNetlinkMessage) {
        self.push(what, true, 0, message);
    }

    /// Make something that must not exist.
    pub fn create(&mut self, what: &str, message: RouteNetlinkMessage) {
        self.push(what.into(), false, NLM_F_CREATE | NLM_F_EXCL, message);
    }

    /// Make something that may be there already.
    pub fn try_create(&mut self, what: String, message: RouteNetlinkMessage) {
        self.push(what, true, NLM_F_CREATE | NLM_F_EXCL, message);
    }

    /// Send everything and await each answer; gives the optional changes that were refused.
    ///
    /// # Errors
    /// The first refusal of a change that is not optional. The kernel has then tried the later ones too.
    pub fn send(mut self) -> Result<Vec<String>, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        let kernel = SocketAddr::new(0, 0);
        socket.send_to(&self.bytes, &kernel, 0)?;
        while self.changes.iter().any(|c| c.answer.is_none()) {
            let (datagram, from) = socket.recv_from_full()?;
            // Any process of the namespace may send to our port; only the kernel's word counts.
            if from.port_number() == 0 {
                self.take(&datagram)?;
            }
        }
        let mut optional = Vec::new();
        for change in self.changes {
            match (change.answer.unwrap_or_default(), change.optional) {
                (0, _) => {}
                (_, true) => optional.push(change.what),
                (errno, false) => {
                    let what = change.what;
                    return Err(NetlinkError::Refused { what, errno });
                }
            }
        }
        Ok(optional)
    }

    fn push(&mut self, what: String, optional: bool, flags: u16, message: RouteNetlinkMessage) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        // Sequence numbers start at one, so that a change's place follows from its answer's number.
        header.sequence_number = self.changes.len() as u32 + 1;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let at = self.bytes.len();
        self.bytes
            .resize(at + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.bytes[at..]);
        self.changes.push(Pending {
            what,
            optional,
            answer: None,
        });
    }

    /// Read the acknowledgements of one datagram.
    fn take(&mut self, datagram: &[u8]) -> Result<(), NetlinkError> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| NetlinkError::Garbled(e.to_string()))?;
            if let NetlinkPayload::Error(error) = &message.payload {
                let place = (message.header.sequence_number as usize).checked_sub(1);
                let change = place.and_then(|p| self.changes.get_mut(p));
                let change = change.ok_or_else(|| NetlinkError::Garbled("a stray acknowledgement".into()))?;
                change.answer = Some(error.raw_code().abs());
            }
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Ask for all there is of a kind, and give each to `each`.
///
/// # Errors
/// When the kernel does not answer, or refuses.
pub fn dump(request: RouteNetlinkMessage, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // So that of a million routes only those asked for are told (Linux 4.20); else they are told apart here.
    let _ = socket.set_netlink_get_strict_chk(true);
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    let mut ask = NetlinkMessage::new(header, NetlinkPayload::from(request));
    ask.finalize();
    let mut bytes = vec![0; ask.buffer_len()];
    ask.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            // Messages are padded to four bytes; a length of zero would not end.
            let step = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(step..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(inner) => each(inner),
                _ => {}
            }
        }
    }
}

/// Change an interface's attributes.
pub fn link(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// Delete an interface.
pub fn gone(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// Bring an interface up.
pub fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

/// Give an interface an address, usable at once: IPv6 without duplicate address detection.
pub fn address(index: u32, net: IpNet, scope: AddressScope) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.scope = scope;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// The address family of `ip`.
pub fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sequence: u32, errno: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36u32.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn answers_find_their_change() {
        let mut batch = Batch::default();
        let nothing = || RouteNetlinkMessage::SetLink(LinkMessage::default());
        batch.set("first", nothing());
        batch.try_set("second".into(), nothing());
        assert_eq!(batch.bytes.len() % 4, 0);
        let mut both = refusal(2, libc::EINVAL);
        both.extend(refusal(1, 0));
        batch.take(&both).unwrap();
        let answers: Vec<_> = batch.changes.iter().map(|c| c.answer).collect();
        assert_eq!(answers, [Some(0), Some(libc::EINVAL)]);
        assert!(batch.take(&refusal(9, 0)).is_err());
        assert!(batch.take(&[1, 2, 3]).is_err());
    }
}
