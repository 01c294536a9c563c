use super::*;
use crate::offload::segment::Segments;
use crate::offload::testing::{super_frame, vnet};
use crate::wire::bytes::put_be32;
use proptest::prelude::*;

/// The wire frames of a super-frame.
fn wire(frame: &[u8], v: &VnetHdr) -> Vec<Vec<u8>> {
    let h = Headers::parse(frame).unwrap();
    let s = Segments::checked(frame, &h, v).unwrap();
    (0..s.count())
        .map(|i| {
            let mut out = vec![0; s.header_len()];
            s.header(frame, i, &mut out);
            out.extend(&frame[s.payload(i)]);
            out
        })
        .collect()
}

/// What comes out: virtio-net header and bytes of each frame.
fn run(frames: &[(u32, Vec<u8>)]) -> Vec<(VnetHdr, Vec<u8>)> {
    let mut memory = Vec::new();
    let mut c = Coalescer::default();
    let mut out = Vec::new();
    let spans: Vec<_> = frames
        .iter()
        .map(|(from, f)| {
            memory.extend(f);
            (*from, Span::new(memory.len() - f.len(), memory.len()))
        })
        .collect();
    for (from, span) in spans {
        let h = Headers::parse(span.of(&memory)).unwrap();
        if c.is_full() {
            c.drain(&mut memory, |m, (), _, v, pieces| out.push((*v, join(m, pieces))));
        }
        if !c.merge(&memory, from, span, &h) {
            c.open(&memory, from, span, &h, false, ());
        }
    }
    c.drain(&mut memory, |m, (), _, v, pieces| out.push((*v, join(m, pieces))));
    assert!(c.is_empty());
    out
}

fn join(memory: &[u8], pieces: &[Span]) -> Vec<u8> {
    pieces.iter().flat_map(|p| p.of(memory).to_vec()).collect()
}

/// A TCP super-frame of four segments, cut.
fn four() -> Vec<Vec<u8>> {
    wire(
        &super_frame(false, true, 3, &[7; 4000], 0x18),
        &vnet(false, true, 1000),
    )
}

fn counts(frames: &[Vec<u8>]) -> Vec<usize> {
    let frames: Vec<_> = frames.iter().map(|f| (0, f.clone())).collect();
    let count = |(v, f): (VnetHdr, Vec<u8>)| match v.gso {
        Gso::None => 1,
        _ => (f.len() - usize::from(v.hdr_len)).div_ceil(usize::from(v.gso_size)),
    };
    run(&frames).into_iter().map(count).collect()
}

/// Make both checksums right again after a change.
fn repair(f: &mut [u8]) {
    let sum_at = 24;
    put_be16(f, sum_at, 0);
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(f, sum_at, sum);
    let h = Headers::parse(f).unwrap();
    let at = h.l4 + if h.proto == proto::TCP { 16 } else { 6 };
    put_be16(f, at, 0);
    let sum = pseudo(f, &h, h.end - h.l4).with(&f[h.l4..h.end]).finish();
    put_be16(f, at, sum);
}

fn changed(at: usize, change: impl Fn(&mut u8)) -> Vec<Vec<u8>> {
    let mut frames = four();
    change(&mut frames[2][at]);
    repair(&mut frames[2]);
    frames
}

#[test]
fn rules_of_the_kernel() {
    assert_eq!(counts(&four()), [4]);
    // [eth 14 | ip 20 | tcp 20 + 12]: what differs in the third of four frames breaks the train there.
    for (what, at) in [
        ("type of service", 15),
        ("ttl", 22),
        ("acknowledgement", 42),
        ("window", 49),
        // The kernel overlooks this one, which means nothing without URG; what came in goes out all the same.
        ("urgent pointer", 53),
        ("an option", 60),
        ("destination port", 37),
    ] {
        let got = counts(&changed(at, |b| *b ^= 1));
        assert_eq!(got.iter().sum::<usize>(), 4, "{what}");
        assert_eq!(got[0], 2, "{what}");
    }
    for (what, flag) in [
        ("ece", ECE),
        ("cwr", CWR),
        ("urg", URG),
        ("syn", SYN),
        ("rst", RST),
    ] {
        assert_eq!(counts(&changed(47, |b| *b |= flag)), [2, 1, 1], "{what}");
    }
    for (what, flag) in [("psh", PSH), ("fin", FIN)] {
        assert_eq!(counts(&changed(47, |b| *b |= flag)), [3, 1], "{what}");
    }
    // A gap in the identification without DF; with DF a constant one is as good as a counting one.
    let mut frames = four();
    for f in &mut frames {
        f[20] = 0;
        put_be16(f, 18, 77);
        repair(f);
    }
    assert_eq!(counts(&frames), [1, 1, 1, 1]);
    for f in &mut frames {
        f[20] = 0x40;
        repair(f);
    }
    assert_eq!(counts(&frames), [4]);
    // But it may not do now this, now that: split again, the frames would not be the same.
    put_be16(&mut frames[3], 18, 80);
    repair(&mut frames[3]);
    assert_eq!(counts(&frames), [3, 1]);
    let back = changed(19, |b| *b = four()[0][19]);
    assert_eq!(counts(&back)[0], 2);
    // A lost, a repeated and a late segment.
    let f = four();
    assert_eq!(counts(&[f[0].clone(), f[2].clone(), f[3].clone()]), [1, 2]);
    assert_eq!(counts(&[f[0].clone(), f[0].clone(), f[1].clone()]), [1, 2]);
    assert_eq!(
        counts(&[f[0].clone(), f[2].clone(), f[1].clone(), f[3].clone()]),
        [1, 1, 1, 1]
    );
}

#[test]
fn what_is_never_merged() {
    // Pure acknowledgements.
    let ack = super_frame(false, true, 0, &[], 0x10);
    let mut ack: Vec<u8> = ack;
    repair(&mut ack);
    assert_eq!(counts(&[ack.clone(), ack]), [1, 1]);
    // Fragments, IPv4 options, and UDP without a checksum.
    let udp = |change: fn(&mut Vec<u8>)| {
        let mut f = super_frame(false, false, 0, &[9; 100], 0);
        repair(&mut f);
        change(&mut f);
        [f.clone(), f]
    };
    assert_eq!(counts(&udp(|_| {})), [2]);
    let none: fn(&mut Vec<u8>) = |f| put_be16(f, 40, 0);
    let fragment: fn(&mut Vec<u8>) = |f| {
        f[20] = 0x20;
        repair(f);
    };
    for change in [none, fragment] {
        assert_eq!(counts(&udp(change)), [1, 1]);
    }
    // A wrong checksum is handed on as it is, and nothing is merged with it.
    let mut frames = four();
    frames[1][100] ^= 1;
    let got = run(&frames.iter().map(|f| (0, f.clone())).collect::<Vec<_>>());
    assert_eq!(got.len(), 3);
    assert_eq!(got[1], (VnetHdr::default(), frames[1].clone()));
    // Nor do frames of different senders meet.
    let f = four();
    assert_eq!(run(&[(1, f[0].clone()), (2, f[1].clone())]).len(), 2);
}

#[test]
fn an_unfinished_checksum_stays_partial() {
    let frames: Vec<_> = four()
        .into_iter()
        .map(|mut f| {
            let h = Headers::parse(&f).unwrap();
            let sum = pseudo(&f, &h, h.end - h.l4).fold();
            put_be16(&mut f, h.l4 + 16, sum);
            (0, f)
        })
        .collect();
    let all = run(&frames);
    assert_eq!((all.len(), all[0].0.partial), (1, Some((34, 16))));
    let one = run(&frames[..1]);
    assert_eq!((one[0].0.partial, one[0].0.gso), (Some((34, 16)), Gso::None));
}

#[test]
fn a_super_frame_off_the_wire_is_taken_whole() {
    let mut f = super_frame(true, true, 3, &[5; 4000], 0x18);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, h.l4 + 16, sum);
    let v = already(&mut f, &h, 1000).unwrap();
    assert_eq!((v.gso, v.gso_size, v.partial), (Gso::Tcp6, 1000, Some((54, 16))));
    assert_eq!(already(&mut f, &h, 4000), None, "an ordinary frame");
    put_be32(&mut f, h.l4 + 16, 0xdead_0000);
    assert_eq!(already(&mut f, &h, 1000), None, "a wrong checksum");
}

proptest! {
    #[test]
    fn segment_then_coalesce_gives_the_frame_back(
        v6: bool, tcp: bool, options in 0usize..=10,
        payload in proptest::collection::vec(any::<u8>(), 2..20_000), mss in 200u16..2000,
    ) {
        let mut f = super_frame(v6, tcp, options, &payload, 0x18);
        let v = vnet(v6, tcp, mss);
        let frames: Vec<_> = wire(&f, &v).into_iter().map(|f| (0, f)).collect();
        let out = run(&frames);
        prop_assert_eq!(out.len(), 1);
        let h = Headers::parse(&f).unwrap();
        if frames.len() > 1 {
            let at = h.l4 + if tcp { 16 } else { 6 };
            let sum = pseudo(&f, &h, h.end - h.l4).fold();
            put_be16(&mut f, at, sum);
            let hdr_len = (h.end - payload.len()) as u16;
            prop_assert_eq!(out[0].0, VnetHdr { hdr_len, ..v });
            prop_assert_eq!(&out[0].1, &f);
        } else {
            prop_assert_eq!(&out[0].1, &frames[0].1);
        }
    }

    /// Whatever the order, loss and repetition: split again, the output is the input, flow by flow in order.
    #[test]
    fn split_again_it_is_the_input(
        picks in proptest::collection::vec((0usize..3, 0usize..12, 0u8..20), 0..60), seed: u8,
    ) {
        let flows: Vec<Vec<Vec<u8>>> = [(false, true, 0x18), (true, true, 0x10), (false, false, 0)]
            .iter()
            .map(|(v6, tcp, flags)| {
                let payload: Vec<u8> = (0..6000u32).map(|i| (i as u8).wrapping_mul(seed)).collect();
                wire(&super_frame(*v6, *tcp, 3, &payload, *flags), &vnet(*v6, *tcp, 500))
            })
            .collect();
        let input: Vec<(u32, Vec<u8>)> = picks
            .iter()
            .map(|(flow, i, damage)| {
                let mut f = flows[*flow][*i].clone();
                if *damage == 0 { let last = f.len() - 1; f[last] ^= 1; }
                (*flow as u32, f)
            })
            .collect();
        let mut split: Vec<Vec<u8>> = Vec::new();
        for (v, f) in run(&input) {
            if v.gso == Gso::None { split.push(f) } else { split.extend(wire(&f, &v)) }
        }
        for flow in 0..3u32 {
            let of = |f: &Vec<u8>| (f[12] == 0x86, f[23] == 17 && f[12] == 8) == (flow == 1, flow == 2);
            let got: Vec<_> = split.iter().filter(|f| of(f)).map(|f| normal(f)).collect();
            let want: Vec<_> = input.iter().filter(|(from, _)| *from == flow).map(|(_, f)| normal(f)).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn no_bytes_break_it(mut f in proptest::collection::vec(any::<u8>(), 14..200), at in 14usize..60, byte: u8, segment in 0usize..3000) {
        let good = &four()[0];
        for bytes in [&mut f, &mut { let mut g = good.clone(); g[at] = byte; g }] {
            if let Ok(h) = Headers::parse(bytes) {
                run(&[(0, bytes.clone()), (0, good.clone()), (0, bytes.clone())]);
                let _ = already(bytes, &h, segment);
            }
        }
    }
}

/// Without the identification: a train whose identification stood still comes back counting.
fn normal(f: &[u8]) -> Vec<u8> {
    let mut f = f.to_vec();
    if f[12] == 8 {
        put_be32(&mut f, 18, 0);
        put_be16(&mut f, 24, 0);
    }
    f
}
