//! What the stacks ask of the host, and of the pods' ports. The data path and its worker fulfil it; tests play it.

use crate::model::{DropReason, Heard, HostError, Instant, MouthKind, Moved, Outward, PodMtu, PortId};
use crate::stack::Trouble;
use std::net::{IpAddr, SocketAddr};

/// Why a stream could not be connected, and the router that said so.
pub type Failure = (HostError, Option<IpAddr>);
/// Number of a TCP flow, reused after its end.
pub type FlowId = u32;
/// Number of a datagram socket, reused after its end.
pub type MouthId = u32;

/// The host's sockets. Each flow has one stream there, each mouth one datagram socket. Nothing here waits. By default
/// there are none.
pub trait Host {
    /// Begin to connect the stream of a flow; [`Host::outcome`] tells how it went once something happens there.
    ///
    /// # Errors
    /// It is known at once that it cannot be.
    fn connect(
        &mut self,
        _flow: FlowId,
        _to: SocketAddr,
        _from: Option<IpAddr>,
        _hops: Option<u8>,
    ) -> Result<(), HostError> {
        Err(HostError::NoSockets)
    }

    /// Whether a stream is connected; `None` when that is not decided.
    fn outcome(&mut self, _flow: FlowId) -> Option<Result<(), Failure>> {
        None
    }

    /// Read from a stream. After less than asked for, more is told of by an event.
    fn read(&mut self, _flow: FlowId, _into: &mut [u8]) -> Moved {
        Moved::End
    }

    /// Write to a stream. After less than asked for, room is told of by an event.
    fn write(&mut self, _flow: FlowId, _from: &[u8]) -> Moved {
        Moved::Failed(HostError::Other)
    }

    /// Nothing more will be written to a stream (shutdown(2)).
    fn shut(&mut self, _flow: FlowId) {}

    /// Close a stream; with `reset` the other end sees that it was broken off.
    fn close(&mut self, _flow: FlowId, _reset: bool) {}

    /// Open a datagram socket for packets of one family.
    ///
    /// # Errors
    /// Why it cannot be.
    fn open(&mut self, _mouth: MouthId, _kind: MouthKind, _six: bool) -> Result<(), HostError> {
        Err(HostError::NoSockets)
    }

    /// Send by a datagram socket.
    ///
    /// # Errors
    /// Why the host did not take it.
    fn send(&mut self, _mouth: MouthId, _what: &Outward<'_>) -> Result<(), HostError> {
        Err(HostError::Other)
    }

    /// Take what a datagram socket has heard; `None` when there is no more.
    fn hear(&mut self, _mouth: MouthId, _into: &mut [u8]) -> Option<Heard> {
        None
    }

    /// Close a datagram socket.
    fn close_mouth(&mut self, _mouth: MouthId) {}
}

/// The host, and the pods' ports.
pub trait Outside: Host {
    /// Write an IP packet to a pod. `frame` has room for an Ethernet header before it, and the packet's checksum is left
    /// to the receiver if it is TCP or UDP. With `segment` it stands for several packets of so much payload.
    fn emit(&mut self, port: PortId, frame: &mut [u8], segment: Option<u16>);

    /// Tell a pod, within its limit, why its packet did not arrive: `by` the router that said so, or else by the gateway.
    fn complain(&mut self, port: PortId, trouble: Trouble, packet: &[u8], by: Option<IpAddr>);

    /// Count what was taken from a pod, and lost after all.
    fn lost(&mut self, port: PortId, reason: DropReason);

    /// MTU of a pod's interface.
    fn mtu(&self, port: PortId) -> PodMtu;

    /// When a pod's bandwidth limit has room for a super-frame again; none when it has. TCP waits instead of losing it,
    /// as smoltcp is slow to make good for losses.
    fn room_at(&self, _port: PortId) -> Option<Instant> {
        None
    }
}
