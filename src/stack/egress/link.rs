//! The link smoltcp sees: one packet in, and packets out as frames for one pod.

use crate::wire::bytes::be16;
use crate::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use std::num::NonZeroUsize;

/// Longest IP packet.
const LONGEST: usize = 65_535;
/// Least TCP header.
const TCP_LEN: usize = 20;
/// Longest headers of a packet smoltcp makes: IPv6, and TCP with all options.
const HEADERS: usize = 40 + 60;

/// Memory for one frame, reused.
pub(super) struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Scratch {
        // IPv6 does not count its header.
        Scratch(vec![0; ETH_LEN + IPV6_LEN + LONGEST].into())
    }
}

impl Scratch {
    /// Room for a frame with a packet of so many bytes; its headers are zeros.
    pub fn frame(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(LONGEST);
        // smoltcp does not write reserved fields.
        self.0[..ETH_LEN + len.min(HEADERS)].fill(0);
        &mut self.0[..ETH_LEN + len]
    }

    /// All of it, to be filled.
    pub fn all(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A link during one call of smoltcp.
///
/// smoltcp 0.14 makes super-frames of TCP over both families but sends those over IPv6 only if they fit the link's MTU,
/// and does not tell their segment size. So here the link's MTU is the longest packet there is, and the size of segments
/// is worked out from the packet: what the pod's side said it takes (MSS), and what its MTU has room for.
pub(super) struct Link<'a> {
    input: Option<&'a [u8]>,
    scratch: &'a mut Scratch,
    emit: &'a mut dyn FnMut(&mut [u8]),
    /// Packets sent.
    pub sent: usize,
}

impl<'a> Link<'a> {
    pub fn new(
        input: Option<&'a [u8]>,
        scratch: &'a mut Scratch,
        emit: &'a mut dyn FnMut(&mut [u8]),
    ) -> Link<'a> {
        Link {
            input,
            scratch,
            emit,
            sent: 0,
        }
    }
}

/// Payload of each segment of a packet that has more than one may hold.
pub(super) fn segment_size(packet: &[u8], mss: u16, mtu: u16) -> Option<u16> {
    let ip = match packet.first()? >> 4 {
        4 => IPV4_LEN,
        _ => IPV6_LEN,
    };
    let tcp = usize::from(packet.get(ip + 12)? >> 4) * 4;
    let payload = packet.len().saturating_sub(ip + tcp);
    // The MSS counts no options (RFC 6691).
    let told = usize::from(mss).saturating_sub(tcp.saturating_sub(TCP_LEN));
    let fits = usize::from(mtu).saturating_sub(ip + tcp);
    let size = told.min(fits).max(1);
    (payload > size).then_some(size as u16)
}

/// The MSS that a SYN's options tell; what RFC 9293 section 3.7.1 says of one that tells none.
pub(super) fn mss_of(segment: &[u8], six: bool) -> u16 {
    let end = usize::from(segment.get(12).map_or(0, |b| b >> 4)) * 4;
    let mut options = segment.get(TCP_LEN..end).unwrap_or_default();
    while let Some(kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(len)) => usize::from(*len).max(2),
            (_, None) => break,
        };
        if *kind == 2 && len == 4 && options.len() >= 4 {
            return be16(options, 2).max(48);
        }
        options = options.get(len..).unwrap_or_default();
    }
    if six { 1220 } else { 536 }
}

impl Device for Link<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sender<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let packet = self.input.take()?;
        let sender = Sender {
            scratch: self.scratch,
            emit: self.emit,
            sent: &mut self.sent,
        };
        Some((Received(packet), sender))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_>> {
        Some(Sender {
            scratch: self.scratch,
            emit: self.emit,
            sent: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // What a pod sends has crossed no wire, and its checksum is often unfinished; what goes to it is finished behind
        // this link, or by its kernel.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::None;
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = LONGEST;
        caps.checksum = checksum;
        caps.segmentation.tcpv4 = NonZeroUsize::new(LONGEST);
        caps.segmentation.tcpv6 = NonZeroUsize::new(LONGEST);
        caps
    }
}

pub(super) struct Received<'t>(&'t [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Sender<'t> {
    scratch: &'t mut Scratch,
    emit: &'t mut dyn FnMut(&mut [u8]),
    sent: &'t mut usize,
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let frame = self.scratch.frame(len);
        let result = f(&mut frame[ETH_LEN..]);
        (self.emit)(frame);
        *self.sent += 1;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mss_is_read_from_any_options() {
        let syn = |options: &[u8]| {
            let mut s = vec![0; TCP_LEN];
            s[12] = ((TCP_LEN + options.len()) / 4) as u8 * 16;
            s.extend(options);
            s
        };
        for (options, mss) in [
            (&[2, 4, 5, 180][..], 1460),
            (&[1, 1, 4, 2, 2, 4, 5, 130], 1410),
            (&[0, 2, 4, 5, 180, 0, 0, 0], 536),
            (&[3, 0, 3, 0, 2, 4, 0, 1], 48),
            (&[2, 4], 536),
            (&[], 536),
        ] {
            assert_eq!(mss_of(&syn(options), false), mss, "{options:?}");
        }
        assert_eq!(mss_of(&[], true), 1220);
    }

    #[test]
    fn segments_fit_the_pod() {
        let packet = |ip: u8, len: usize, tcp: u8| {
            let mut p = vec![0; len];
            p[0] = ip << 4;
            p[if ip == 4 { 32 } else { 52 }] = tcp / 4 * 16;
            p
        };
        assert_eq!(segment_size(&packet(4, 1500, 32), 1460, 1500), None);
        assert_eq!(segment_size(&packet(4, 1501, 32), 1460, 1500), Some(1448));
        assert_eq!(segment_size(&packet(6, 60_000, 32), 1440, 1500), Some(1428));
        assert_eq!(segment_size(&packet(4, 60_000, 20), 536, 1500), Some(536));
        assert_eq!(segment_size(&packet(4, 60_000, 20), 9000, 1500), Some(1460));
        assert_eq!(segment_size(&[], 1, 1), None);
    }
}
