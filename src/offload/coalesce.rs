//! Wire frames back into super-frames: what a kernel's GRO does, for frames that come out of the tunnel.
//!
//! ```text
//! [eth ip tcp | payload 0] [eth ip tcp | payload 1] ... -> [eth ip tcp'] [payload 0] [payload 1] ...
//! ```
//!
//! Nothing is copied: a [`Train`] is the first frame, whose headers are changed in place at the end, and a list
//! of payload spans. Every frame goes through the list, mergeable or not, and leaves in the order of its
//! train's first frame, so that frames of one flow never overtake each other. The rules are those of Linux's
//! tcp_gro_receive, udp_gro_receive and inet_gro_receive.

use crate::buf::Span;
use crate::wire::bytes::{array, be16, be32, put_be16};
use crate::wire::checksum::{Sum, is_partial, pseudo, transport_is_right};
use crate::wire::{ETH_LEN, Gso, Headers, L3, UDP_LEN, VnetHdr, proto};

/// Trains that can be open at a time; a burst of more flows than that is delivered in parts.
pub const TRAINS: usize = 32;
/// Frames of one train at most: what UDP_SEGMENT sends, and what the kernel takes of a UDP super-frame.
const FRAMES: usize = 128;
/// Longest IP packet.
const LONGEST: usize = 65_535;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Frames that will leave as one. `T` is what the owner decided about the first of them.
#[derive(Debug)]
pub struct Train<T> {
    /// The owner's decision; it holds for every frame of the train.
    pub tag: T,
    /// Who sent it and how it was marked: frames are merged only when this is equal.
    from: u32,
    frame: Span,
    headers: Headers,
    header_len: usize,
    /// Payload bytes of each frame but the last.
    mss: usize,
    payload: usize,
    flags: u8,
    frames: usize,
    /// The IPv4 identification stands still; told by the second frame.
    fixed_id: bool,
    /// No frame may follow: the last was short, or carried a flag that ends a train.
    closed: bool,
    /// The first frame's checksum: not looked at yet, right, or wrong.
    checksum: Checksum,
    pieces: Vec<Span>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Checksum {
    Unknown,
    Right,
    /// The field holds the pseudo-header sum: the sending kernel left it to its device.
    Partial,
    Wrong,
}

/// What a frame must have so that others can be merged with it.
#[derive(Clone, Copy)]
struct Mergeable {
    header_len: usize,
    flags: u8,
}

/// The open trains of one batch of received datagrams.
#[derive(Debug)]
pub struct Coalescer<T> {
    trains: Vec<Train<T>>,
    open: usize,
    /// Those that are drained, while that goes on.
    done: usize,
}

impl<T: Copy> Default for Coalescer<T> {
    fn default() -> Coalescer<T> {
        Coalescer {
            // No memory before the first frame: the owner swaps an empty one in while it drains.
            trains: Vec::new(),
            open: 0,
            done: 0,
        }
    }
}

impl<T: Copy> Coalescer<T> {
    /// Append a frame to the train it continues, if there is one. `memory` is what spans point into, `from`
    /// stands for its sender and its marks. A frame that continues none must be [opened](Coalescer::open).
    pub fn merge(&mut self, memory: &[u8], from: u32, frame: Span, h: &Headers) -> bool {
        let bytes = frame.of(memory);
        let Some(m) = mergeable(bytes, h) else {
            return false;
        };
        // The newest train of the flow is the only one that may grow.
        let same = |t: &&mut Train<T>| t.from == from && t.is_of_flow(memory, bytes, h);
        let Some(train) = self.trains[self.done..self.open].iter_mut().rev().find(same) else {
            return false;
        };
        train.append(memory, frame, h, m)
    }

    /// Begin a train with a frame that continues none; with `alone` no other frame will be merged with it.
    /// `tag` is the decision for the whole train. The coalescer must not be [full](Coalescer::is_full).
    pub fn open(&mut self, memory: &[u8], from: u32, frame: Span, h: &Headers, alone: bool, tag: T) {
        let bytes = frame.of(memory);
        let m = mergeable(bytes, h);
        let header_len = m.map_or(h.end, |m| m.header_len);
        let payload = h.end - header_len;
        let ends = m.is_none_or(|m| m.flags & (FIN | PSH | URG | RST | SYN | CWR) != 0);
        if self.open == self.trains.len() {
            self.trains.push(Train {
                tag,
                from,
                frame,
                headers: *h,
                header_len,
                mss: payload,
                payload,
                flags: 0,
                frames: 1,
                fixed_id: false,
                closed: true,
                checksum: Checksum::Unknown,
                pieces: Vec::with_capacity(FRAMES),
            });
        }
        let train = &mut self.trains[self.open];
        self.open += 1;
        train.tag = tag;
        train.from = from;
        train.frame = frame;
        train.headers = *h;
        train.header_len = header_len;
        train.mss = payload;
        train.payload = payload;
        train.flags = m.map_or(0, |m| m.flags);
        train.frames = 1;
        train.closed = alone || ends || payload == 0;
        train.checksum = Checksum::Unknown;
        train.fixed_id = false;
        train.pieces.clear();
        train.pieces.push(frame.part(0, h.end));
    }

    /// Whether no further train can be opened before the next [`drain`](Coalescer::drain).
    pub fn is_full(&self) -> bool {
        self.open == TRAINS
    }

    /// Whether there is nothing to drain.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Finish all trains in their order: headers in `memory` are made right, and `emit` gets each train's
    /// tag, headers, virtio-net header and pieces. The first piece begins with the first frame's headers. When a panic
    /// ended that, another call goes on with the next train.
    pub fn drain(
        &mut self,
        memory: &mut [u8],
        mut emit: impl FnMut(&mut [u8], T, &Headers, &VnetHdr, &[Span]),
    ) {
        while let Some(train) = self.trains[..self.open].get_mut(self.done) {
            // Before, so that one at which a panic comes is not tried again.
            self.done += 1;
            let vnet = train.finish(memory);
            emit(memory, train.tag, &train.headers, &vnet, &train.pieces);
        }
        (self.open, self.done) = (0, 0);
    }
}

impl<T> Train<T> {
    /// Same Ethernet header, addresses, protocol and ports.
    fn is_of_flow(&self, memory: &[u8], bytes: &[u8], h: &Headers) -> bool {
        let first = self.frame.of(memory);
        let own = &self.headers;
        let addresses = match h.l3 {
            L3::Ipv4 => ETH_LEN + 12..ETH_LEN + 20,
            _ => ETH_LEN + 8..ETH_LEN + 40,
        };
        own.l3 == h.l3
            && own.proto == h.proto
            && own.l4 == h.l4
            && own.l4 < own.end
            && array::<4>(first, own.l4) == array::<4>(bytes, h.l4)
            && first.get(addresses.clone()) == bytes.get(addresses)
            && array::<14>(first, 0) == array::<14>(bytes, 0)
    }

    /// Add a frame of the same flow, or close the train.
    fn append(&mut self, memory: &[u8], frame: Span, h: &Headers, m: Mergeable) -> bool {
        let bytes = frame.of(memory);
        let payload = h.end - m.header_len;
        let total = self.header_len - ETH_LEN + self.payload + payload;
        let fits = !self.closed
            && payload > 0
            && payload <= self.mss
            && total <= LONGEST
            && self.frames < FRAMES
            && m.header_len == self.header_len
            && self.continues(memory, bytes, h, m);
        if !fits {
            self.closed = true;
            return false;
        }
        if self.checksum == Checksum::Unknown {
            self.checksum = checksum(self.frame.of(memory), &self.headers);
        }
        // A wrong checksum is the pod's to reject: both frames go as they are.
        if self.checksum == Checksum::Wrong || checksum(bytes, h) == Checksum::Wrong {
            self.closed = true;
            return false;
        }
        self.fixed_id = self.stands_still(memory, bytes, h);
        self.pieces.push(frame.part(m.header_len, h.end));
        self.payload += payload;
        self.frames += 1;
        self.flags |= m.flags & (FIN | PSH);
        self.closed = payload < self.mss || m.flags & (FIN | PSH) != 0;
        true
    }

    /// Whether the headers differ only where consecutive segments of one super-frame do.
    fn continues(&self, memory: &[u8], bytes: &[u8], h: &Headers, m: Mergeable) -> bool {
        let first = self.frame.of(memory);
        let ip = match h.l3 {
            L3::Ipv4 => {
                let (a, b) = (array::<10>(first, ETH_LEN), array::<10>(bytes, ETH_LEN));
                // Type of service; flags and fragment offset; TTL.
                let same = a[1] == b[1] && a[6..9] == b[6..9];
                let step = if self.stands_still(memory, bytes, h) {
                    0
                } else {
                    self.frames as u16
                };
                same && be16(&b, 4) == be16(&a, 4).wrapping_add(step)
            }
            // Version, traffic class and flow label; hop limit.
            _ => be32(first, ETH_LEN) == be32(bytes, ETH_LEN) && first[ETH_LEN + 7] == bytes[ETH_LEN + 7],
        };
        if !ip || h.proto != proto::TCP {
            return ip;
        }
        let l4 = h.l4;
        be32(bytes, l4 + 4) == be32(first, l4 + 4).wrapping_add(self.payload as u32)
            && array::<4>(bytes, l4 + 8) == array::<4>(first, l4 + 8)
            && (m.flags ^ self.flags) & !(FIN | PSH) == 0
            && m.flags & CWR == 0
            && be16(bytes, l4 + 14) == be16(first, l4 + 14)
            // Urgent pointer and options.
            && bytes.get(l4 + 18..m.header_len) == first.get(l4 + 18..m.header_len)
    }

    /// Whether the identification is to stay as it is in the first frame, which it may with DF, as it means nothing
    /// then (RFC 6864). The second frame decides for all, as in the kernel (inet_gro_flush).
    fn stands_still(&self, memory: &[u8], bytes: &[u8], h: &Headers) -> bool {
        if self.frames > 1 || h.l3 != L3::Ipv4 {
            return self.fixed_id;
        }
        let first = self.frame.of(memory);
        be16(first, ETH_LEN + 4) == be16(bytes, ETH_LEN + 4) && first[ETH_LEN + 6] & 0x40 != 0
    }

    /// Make the headers those of all frames together.
    fn finish(&mut self, memory: &mut [u8]) -> VnetHdr {
        let h = &self.headers;
        let frame = self.frame.of_mut(memory);
        let at = h.checksum_at().unwrap_or_default();
        let partial = Some((h.l4 as u16, at));
        if self.frames == 1 {
            // Looked at only where a kernel VTEP on this machine may have left it unfinished.
            let unfinished = self.checksum == Checksum::Partial
                || self.checksum == Checksum::Unknown
                    && h.checksum_at().is_some()
                    && !h.fragment
                    && h.l4 + usize::from(at) + 2 <= h.end
                    && is_partial(frame, h, usize::from(at));
            return VnetHdr {
                partial: partial.filter(|_| unfinished),
                ..VnetHdr::default()
            };
        }
        let end = self.header_len + self.payload;
        let l4_len = end - h.l4;
        if h.l3 == L3::Ipv4 {
            put_be16(frame, ETH_LEN + 2, (end - ETH_LEN) as u16);
            put_be16(frame, ETH_LEN + 10, 0);
            let sum = Sum::default().with(&frame[ETH_LEN..h.l4]).finish();
            put_be16(frame, ETH_LEN + 10, sum);
        } else {
            put_be16(frame, ETH_LEN + 4, l4_len as u16);
        }
        if h.proto == proto::TCP {
            frame[h.l4 + 13] |= self.flags & (FIN | PSH);
        } else {
            put_be16(frame, h.l4 + 4, l4_len as u16);
        }
        let sum = pseudo(frame, h, l4_len).fold();
        put_be16(frame, h.l4 + usize::from(at), sum);
        VnetHdr {
            partial,
            gso: Gso::of(h),
            ecn: false,
            hdr_len: self.header_len as u16,
            gso_size: self.mss as u16,
        }
    }
}

/// Where the payload begins and which TCP flags are set, if the frame is of a kind that can be merged.
fn mergeable(bytes: &[u8], h: &Headers) -> Option<Mergeable> {
    if !h.plain || h.fragment {
        return None;
    }
    match h.proto {
        proto::TCP if h.l4 + 20 <= h.end => {
            let b = array::<14>(bytes, h.l4);
            let header_len = h.l4 + usize::from(b[12] >> 4) * 4;
            let flags = b[13];
            let plain = flags & ACK != 0 && flags & (SYN | RST | URG) == 0;
            // The reserved bits next to the header length have no meaning we could keep.
            let known = b[12] & 15 == 0;
            (plain && known && header_len >= h.l4 + 20 && header_len <= h.end).then_some(Mergeable {
                header_len,
                flags: flags & (FIN | PSH | ACK | ECE | CWR),
            })
        }
        proto::UDP if h.l4 + UDP_LEN <= h.end => {
            let len = usize::from(be16(bytes, h.l4 + 4));
            // Without a checksum there is nothing that could be left partial (RFC 768).
            (len == h.end - h.l4 && be16(bytes, h.l4 + 6) != 0).then_some(Mergeable {
                header_len: h.l4 + UDP_LEN,
                flags: 0,
            })
        }
        _ => None,
    }
}

fn checksum(bytes: &[u8], h: &Headers) -> Checksum {
    let at = h.checksum_at().unwrap_or_default();
    if transport_is_right(bytes, h) {
        Checksum::Right
    } else if is_partial(bytes, h, usize::from(at)) {
        Checksum::Partial
    } else {
        Checksum::Wrong
    }
}

/// The virtio-net header of a frame that arrived as a super-frame already: a kernel VTEP on the same machine
/// hands its own on unsegmented. `segment` is the payload of one wire frame. The frame's checksum is made
/// partial. `None` when the frame is no valid super-frame; it is then the pod's to reject.
pub fn already(frame: &mut [u8], h: &Headers, segment: usize) -> Option<VnetHdr> {
    let m = mergeable(frame, h)?;
    let payload = h.end - m.header_len;
    let mss = u16::try_from(segment).ok().filter(|s| *s > 0)?;
    if payload <= segment || payload > segment * FRAMES || checksum(frame, h) == Checksum::Wrong {
        return None;
    }
    let at = h.checksum_at()?;
    let sum = pseudo(frame, h, h.end - h.l4).fold();
    put_be16(frame, h.l4 + usize::from(at), sum);
    Some(VnetHdr {
        partial: Some((h.l4 as u16, at)),
        gso: Gso::of(h),
        ecn: m.flags & CWR != 0,
        hdr_len: m.header_len as u16,
        gso_size: mss,
    })
}

#[cfg(test)]
mod tests;
