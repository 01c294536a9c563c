//! Super-frames into wire frames and back: segmentation makes what the kernel would, coalescing then gives the
//! super-frame back, and whatever train comes in, split again the output is the input.

use super::craft;
use super::input::Input;
use super::rules;
use podwire::buf::Span;
use podwire::model::TapCaps;
use podwire::offload::coalesce::{self, Coalescer};
use podwire::offload::{Segments, complete};
use podwire::wire::bytes::{be16, be32, put_be16};
use podwire::wire::{Gso, Headers, L3, VnetHdr, proto};
use std::collections::BTreeMap;

const ALL: TapCaps = TapCaps {
    vnet_hdr: true,
    csum: true,
    tso4: true,
    tso6: true,
    uso: true,
};
/// Frames of one super-frame that a coalescer puts together.
const MOST: usize = 128;
/// Frames of one train of an input.
const MOST_PICKS: usize = 64;

/// `[super-frame] [segment size] [picked frames]*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (frame, vnet) = super_frame(&mut input);
    let wire = split(&frame, &vnet);
    there_and_back(&frame, &vnet, &wire);
    other_flows(&mut input, &frame, &vnet, wire);
}

/// `[kind, u8] [options, u8] [TCP flags] [tos] [ttl] [id] [sequence number] [payload] [segment size]`
fn super_frame(input: &mut Input) -> (Vec<u8>, VnetHdr) {
    let kind = input.u8();
    let (six, tcp, df) = (kind & 1 != 0, kind & 2 == 0, kind & 4 != 0);
    let words = usize::from(input.u8() % 11);
    let (flags, tos, ttl) = (input.u8(), input.u8(), input.u8());
    let (id, seq) = (input.u16(), u32::from(input.u16()) << 16 | 0xff00);
    let payload = 1 + usize::from(input.u16());
    let mss = input.u16().max(if kind & 8 != 0 { 1 } else { 200 });
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    let protocol = if tcp { proto::TCP } else { proto::UDP };
    if six {
        f.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0, 0, 0, protocol, ttl]);
        f.extend([0xfd; 16]);
        f.extend([0xfc; 16]);
    } else {
        f.extend([8, 0, 0x45, tos, 0, 0]);
        f.extend(id.to_be_bytes());
        f.extend([
            if df { 0x40 } else { 0 },
            0,
            ttl,
            protocol,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ]);
    }
    f.extend([0x30, 0x39, 0, 80]);
    if tcp {
        f.extend(seq.to_be_bytes());
        f.extend([0, 0, 0, 1, (5 + words as u8) << 4, flags, 1, 0, 0, 0, 0, 0]);
        f.extend(std::iter::repeat_n(1, words * 4));
    } else {
        f.extend([0; 4]);
    }
    let headers = f.len();
    // All lengths must fit their 16-bit fields.
    let payload = payload.min(65_535 + 14 - headers);
    f.extend((0..payload).map(|i| (i * 7) as u8 ^ (i >> 8) as u8));
    let any = craft::Ends {
        src_mac: Default::default(),
        dst_mac: Default::default(),
        src4: [0; 4].into(),
        src6: [0; 16].into(),
        dst4: [0; 4].into(),
        dst6: [0; 16].into(),
    };
    craft::mend(&mut f, craft::LENGTHS, &any);
    let h = Headers::parse(&f).expect("a frame made by hand");
    craft::unfinish(&mut f, &h);
    let vnet = VnetHdr {
        partial: Some((h.l4 as u16, h.checksum_at().expect("TCP or UDP"))),
        gso: Gso::of(&h),
        ecn: false,
        hdr_len: headers as u16,
        gso_size: mss,
    };
    (f, vnet)
}

/// The wire frames of a super-frame, as podwire makes them; none when it refuses the super-frame.
fn split(frame: &[u8], vnet: &VnetHdr) -> Vec<Vec<u8>> {
    let h = Headers::parse(frame).expect("well-formed");
    let Ok(segments) = Segments::checked(frame, &h, vnet) else {
        let payload = h.end - h.l4 - h.l4_len(frame);
        let too_many = payload.div_ceil(usize::from(vnet.gso_size)) > MOST;
        assert!(
            too_many || vnet.gso_size == 0xffff,
            "a good super-frame is refused: {vnet:?}"
        );
        return Vec::new();
    };
    // The last few of very many are as good as all.
    let wire = |i| {
        let mut out = vec![0; segments.header_len()];
        assert_eq!(segments.header(frame, i, &mut out), out.len());
        out.extend(&frame[segments.payload(i)]);
        out
    };
    (0..segments.count()).map(wire).collect()
}

fn there_and_back(frame: &[u8], vnet: &VnetHdr, wire: &[Vec<u8>]) {
    let Some(last) = wire.len().checked_sub(1) else {
        return;
    };
    let h = Headers::parse(frame).expect("well-formed");
    let (headers, mss) = (usize::from(vnet.hdr_len), usize::from(vnet.gso_size));
    let mut joined: Vec<u8> = Vec::new();
    for (i, w) in wire.iter().enumerate() {
        let wh = Headers::parse(w).expect("a wire frame is well-formed");
        assert_eq!(wh.end, w.len());
        assert_eq!(rules::checksum_is_right(w, &wh), Some(true));
        assert!(w.len() == headers + mss || i == last && w.len() < headers + mss);
        if wh.proto == proto::TCP {
            let seq = be32(frame, h.l4 + 4).wrapping_add(joined.len() as u32);
            assert_eq!(be32(w, h.l4 + 4), seq);
            // FIN and PSH belong to the last, CWR to the first (tcp_gso_segment).
            let keep = !(if i == last { 0 } else { 9 } | if i == 0 { 0 } else { 0x80 });
            assert_eq!(w[h.l4 + 13], frame[h.l4 + 13] & keep);
        } else {
            assert_eq!(usize::from(be16(w, h.l4 + 4)), w.len() - h.l4);
        }
        if wh.l3 == L3::Ipv4 {
            assert_eq!(be16(w, 18), be16(frame, 18).wrapping_add(i as u16));
        }
        joined.extend(&w[headers..]);
    }
    assert_eq!(joined, frame[headers..]);

    let numbered: Vec<_> = wire.iter().map(|w| (0, w.clone())).collect();
    let merged = merge(&numbered);
    // ACK, and none of SYN, RST, URG and CWR; a train closes at 128 frames.
    let bulk = h.proto == proto::UDP || frame[h.l4 + 13] & 0xb6 == 0x10;
    if bulk && (2..=MOST).contains(&wire.len()) {
        assert_eq!(merged, [(*vnet, frame.to_vec())]);
    }
    same_again(&numbered, &merged);
}

/// Frames of this flow and of others, in any order, damaged and repaired: `[which, u8] [sender, u8] [at] [xor]`
fn other_flows(input: &mut Input, frame: &[u8], vnet: &VnetHdr, wire: Vec<Vec<u8>>) {
    let mut other = frame.to_vec();
    if let Ok(h) = Headers::parse(&other) {
        other[h.l4 + 3] = 81;
        craft::unfinish(&mut other, &h);
    }
    let other = split(&other, vnet);
    let mut picked: Vec<(u32, Vec<u8>)> = Vec::new();
    while !input.is_empty() && picked.len() < MOST_PICKS && !wire.is_empty() {
        let (which, sender) = (input.u8(), input.u8());
        let flow = if which & 1 == 0 { &wire } else { &other };
        let mut f = flow[usize::from(which >> 1) % flow.len()].clone();
        if sender & 2 != 0 {
            let at = usize::from(input.u16()) % f.len();
            f[at] ^= input.u8();
        }
        if sender & 4 != 0 {
            let n = f.len().saturating_sub(usize::from(input.u8()));
            f.truncate(n);
        }
        mend_some(&mut f, sender);
        if sender & 64 != 0 {
            f.extend([0; 6]);
        }
        if Headers::parse(&f).is_ok() {
            picked.push((u32::from(sender & 1), f));
        }
    }
    let merged = merge(&picked);
    same_again(&picked, &merged);
    for (_, f) in &picked {
        already(f, vnet.gso_size);
    }
}

/// Lengths, checksum, or an unfinished checksum.
fn mend_some(f: &mut [u8], how: u8) {
    if how & 8 != 0 && f.len() >= 34 {
        let len = (f.len() - 14) as u16;
        match f[12] {
            8 => put_be16(f, 16, len),
            _ => put_be16(f, 18, len.saturating_sub(40)),
        }
        if f[12] == 8 {
            let end = (14 + usize::from(f[14] & 15) * 4).clamp(34, f.len().min(74));
            put_be16(f, 24, 0);
            let header = !rules::sum(&[&f[14..end]]);
            put_be16(f, 24, header);
        }
    }
    if let Ok(h) = Headers::parse(f) {
        if how & 16 != 0 {
            craft::finish(f, &h);
        }
        if how & 32 != 0 {
            craft::unfinish(f, &h);
        }
    }
}

/// What a coalescer makes of a train.
fn merge(frames: &[(u32, Vec<u8>)]) -> Vec<(VnetHdr, Vec<u8>)> {
    let mut memory: Vec<u8> = Vec::new();
    let mut spans = Vec::new();
    for (from, f) in frames {
        memory.extend(f);
        spans.push((*from, Span::new(memory.len() - f.len(), memory.len())));
    }
    let mut out = Vec::new();
    let mut take = |memory: &mut [u8], (): (), _: &Headers, vnet: &VnetHdr, pieces: &[Span]| {
        assert!(pieces.len() <= MOST);
        let whole: Vec<u8> = pieces.iter().flat_map(|p| p.of(memory).to_vec()).collect();
        rules::tap_takes(vnet, &whole, &ALL);
        out.push((*vnet, whole));
    };
    let mut coalescer = Coalescer::default();
    for (from, span) in spans {
        let h = Headers::parse(span.of(&memory)).expect("only such are offered");
        if coalescer.is_full() {
            coalescer.drain(&mut memory, &mut take);
        }
        if !coalescer.merge(&memory, from, span, &h) {
            coalescer.open(&memory, from, span, &h, false, ());
        }
    }
    coalescer.drain(&mut memory, &mut take);
    out
}

/// Split again, the output is the input, each flow in its order.
fn same_again(input: &[(u32, Vec<u8>)], output: &[(VnetHdr, Vec<u8>)]) {
    let mut wanted: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut found = wanted.clone();
    for (_, f) in input {
        wanted.entry(flow(f)).or_default().push(normal(f));
    }
    for (vnet, f) in output {
        let frames = match vnet.gso {
            Gso::None => vec![f.clone()],
            _ => split(f, vnet),
        };
        for f in frames {
            found.entry(flow(&f)).or_default().push(normal(&f));
        }
    }
    // Senders of one flow are told apart by the coalescer; only their own order is kept.
    let senders: std::collections::BTreeSet<u32> = input.iter().map(|(from, _)| *from).collect();
    if senders.len() > 1 {
        wanted
            .values_mut()
            .chain(found.values_mut())
            .for_each(|frames| frames.sort());
    }
    assert!(
        wanted == found,
        "the output is not the input:\n{wanted:02x?}\n{found:02x?}"
    );
}

/// What names a flow: all but IP's and the transport's changing fields.
fn flow(f: &[u8]) -> Vec<u8> {
    let h = Headers::parse(f).expect("well-formed");
    let addresses = if h.l3 == L3::Ipv6 { 22..54 } else { 26..34 };
    let ports = f.get(h.l4..h.l4 + 4).filter(|_| !h.fragment && h.l4 + 4 <= h.end);
    let kind = [h.proto, u8::from(h.fragment), h.l4 as u8];
    [
        &f[..14],
        &kind,
        f.get(addresses).unwrap_or_default(),
        ports.unwrap_or_default(),
    ]
    .concat()
}

/// A frame without what may differ: padding, the identification where DF makes it meaningless (RFC 6864), and
/// the two forms of a checksum that is right.
fn normal(f: &[u8]) -> Vec<u8> {
    let h = Headers::parse(f).expect("well-formed");
    let mut f = f[..h.end].to_vec();
    if h.l3 == L3::Ipv4 {
        if f[20] & 0x40 != 0 {
            put_be16(&mut f, 18, 0);
        }
        let end = 14 + usize::from(f[14] & 15) * 4;
        put_be16(&mut f, 24, 0);
        let header = !rules::sum(&[&f[14..end]]);
        put_be16(&mut f, 24, header);
    }
    if rules::checksum_is_partial(&f, &h) || rules::checksum_is_right(&f, &h) == Some(true) {
        craft::finish(&mut f, &h);
    }
    f
}

/// A frame that may be a super-frame already, and one whose checksum a device should finish.
fn already(frame: &[u8], segment: u16) {
    let h = Headers::parse(frame).expect("only such are offered");
    let mut f = frame.to_vec();
    if let Some(vnet) = coalesce::already(&mut f, &h, usize::from(segment)) {
        rules::tap_takes(&vnet, &f, &ALL);
        assert!(rules::checksum_is_partial(&f, &h));
    }
    let mut f = frame.to_vec();
    let at = h.checksum_at().unwrap_or(6);
    if complete(&mut f, &h, (h.l4 as u16, at)).is_ok() && rules::checksum_is_partial(frame, &h) {
        assert_ne!(rules::checksum_is_right(&f, &h), Some(false));
    }
}
