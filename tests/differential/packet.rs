//! Frames, and podwire's own splitting and merging of them.

use podwire::buf::Span;
use podwire::offload::Coalescer;
use podwire::offload::segment::{MAX_HEADER, Segments};
use podwire::wire::checksum::{Sum, pseudo};
use podwire::wire::{ETH_LEN, Gso, Headers, VnetHdr};

/// What a TCP or UDP packet is made of.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Over IPv6.
    pub v6: bool,
    /// TCP, or UDP.
    pub tcp: bool,
    /// Source port: the flow.
    pub port: u16,
    /// IPv4 options, or IPv6 destination options; a multiple of 4 or 8 bytes.
    pub ip_options: Vec<u8>,
    /// TCP options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement.
    pub ack: u32,
    /// TCP window.
    pub window: u16,
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 don't fragment.
    pub df: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// The payload.
    pub payload: Vec<u8>,
    /// Wrong by this much.
    pub damage: u16,
}

impl Default for Packet {
    fn default() -> Packet {
        Packet {
            v6: false,
            tcp: true,
            port: 12_345,
            ip_options: vec![],
            // No-operations and a timestamp.
            options: vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4],
            flags: 0x10,
            seq: 0xffff_f000,
            ack: 77,
            window: 500,
            id: 0xfff0,
            df: true,
            ttl: 64,
            tos: 0,
            payload: vec![],
            damage: 0,
        }
    }
}

impl Packet {
    /// The frame, complete.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.unfinished();
        let h = Headers::parse(&frame).expect("a packet");
        let at = h.l4 + if self.tcp { 16 } else { 6 };
        frame[at..at + 2].fill(0);
        let sum = pseudo(&frame, &h, h.end - h.l4)
            .with(&frame[h.l4..h.end])
            .finish();
        let sum = if sum == 0 && !self.tcp { 0xffff } else { sum };
        frame[at..at + 2].copy_from_slice(&sum.wrapping_add(self.damage).to_be_bytes());
        frame
    }

    /// The frame as a TAP gives it: the checksum holds the pseudo header's only.
    pub fn unfinished(&self) -> Vec<u8> {
        let mut l4 = [self.port.to_be_bytes(), 80u16.to_be_bytes()].concat();
        if self.tcp {
            l4.extend(self.seq.to_be_bytes());
            l4.extend(self.ack.to_be_bytes());
            l4.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0; 4]);
            l4.extend(&self.options);
        } else {
            l4.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&self.payload);
        let protocol = if self.tcp { 6 } else { 17 };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let len = (self.ip_options.len() + l4.len()) as u16;
        if self.v6 {
            let class = u32::from(self.tos) << 20;
            frame.extend([0x86, 0xdd]);
            frame.extend((0x6000_0000 | class).to_be_bytes());
            frame.extend(len.to_be_bytes());
            frame.extend([if self.ip_options.is_empty() { protocol } else { 60 }, self.ttl]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            let options = frame.len();
            frame.extend(&self.ip_options);
            if !self.ip_options.is_empty() {
                frame[options] = protocol;
            }
        } else {
            frame.extend([8, 0, 0x45 + self.ip_options.len() as u8 / 4, self.tos]);
            frame.extend((20 + len).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend(&self.ip_options);
            let sum = Sum::default().with(&frame[ETH_LEN..]).finish();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend(l4);
        let h = Headers::parse(&frame).expect("a packet");
        let sum = pseudo(&frame, &h, h.end - h.l4).fold();
        let at = h.l4 + if self.tcp { 16 } else { 6 };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The virtio-net header that makes it a super-frame of segments of `size`.
    pub fn vnet(&self, size: u16) -> VnetHdr {
        let frame = self.unfinished();
        let h = Headers::parse(&frame).expect("a packet");
        VnetHdr {
            partial: Some((h.l4 as u16, if self.tcp { 16 } else { 6 })),
            gso: Gso::of(&h),
            ecn: false,
            hdr_len: (h.l4 + h.l4_len(&frame)) as u16,
            gso_size: size,
        }
    }
}

/// podwire's wire frames of a super-frame.
pub fn split(frame: &[u8], vnet: &VnetHdr) -> Vec<Vec<u8>> {
    let h = Headers::parse(frame).expect("a packet");
    let segments = Segments::checked(frame, &h, vnet).expect("a super-frame");
    let wire = |i| {
        let mut header = [0; MAX_HEADER];
        let n = segments.header(frame, i, &mut header);
        [&header[..n], &frame[segments.payload(i)]].concat()
    };
    (0..segments.count()).map(wire).collect()
}

/// podwire's super-frames of a batch of wire frames.
pub fn merge(frames: &[Vec<u8>]) -> Vec<(VnetHdr, Vec<u8>)> {
    let mut memory = frames.concat();
    let mut coalescer = Coalescer::default();
    let mut merged = Vec::new();
    let mut at = 0;
    for frame in frames {
        let span = Span::new(at, at + frame.len());
        at += frame.len();
        let h = Headers::parse(frame).expect("a packet");
        if !coalescer.merge(&memory, 0, span, &h) {
            assert!(!coalescer.is_full(), "few flows at a time");
            coalescer.open(&memory, 0, span, &h, false, ());
        }
    }
    coalescer.drain(&mut memory, |memory, (), _, vnet, pieces| {
        let bytes = pieces.iter().flat_map(|p| p.of(memory).to_vec()).collect();
        merged.push((*vnet, bytes));
    });
    merged
}
