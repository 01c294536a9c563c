//! TCP acknowledgements that wait to be sent together: the newest says what those before it said.
//!
//! A pod that receives bulk data acknowledges each super-frame, and each acknowledgement costs both nodes and
//! the sender as much as a super-frame does. Acknowledgements are cumulative (RFC 9293 section 3.4), so when
//! several of one connection wait in one batch, the newest may stand for them (RFC 3449 section 5.2.1, ACK
//! filtering). Nothing waits for this: what is alone in its batch leaves alone.
//!
//! Only what carries nothing else is merged: no payload, no flag but ACK, no option but the timestamp. Repeated
//! acknowledgements, which tell of a loss, and those with SACK blocks are always kept.

use crate::wire::bytes::{array, be16, be32};
use crate::wire::{ETH_LEN, Headers, L3, proto};

/// So many acknowledgements the newest stands for at most: a sender shall not see its window move by bursts
/// without bound (RFC 3449 section 5.2.1).
pub const MOST: u8 = 8;

const ACK: u8 = 0x10;
/// Options of a segment with a timestamp as everybody writes it (RFC 7323 appendix A): two fillers, kind,
/// length.
const TIMESTAMP: [u8; 4] = [1, 1, 8, 10];

/// Whether the frame is an acknowledgement and nothing else.
#[inline]
pub fn is_pure(frame: &[u8], h: &Headers) -> bool {
    if h.proto != proto::TCP || !h.plain || h.fragment || h.end - h.l4 > 32 {
        return false;
    }
    let [offset, flags] = array(frame, h.l4 + 12);
    match (h.end - h.l4, offset, flags) {
        (20, 0x50, ACK) => true,
        (32, 0x80, ACK) => array(frame, h.l4 + 20) == TIMESTAMP,
        _ => false,
    }
}

/// Whether the acknowledgement `new` says all that `old` said, and more. Both are [pure](is_pure); `h` are the
/// headers of `new`. Ethernet headers are not compared.
pub fn supersedes(new: &[u8], h: &Headers, old: &[u8]) -> bool {
    let l4 = h.l4;
    let network = match h.l3 {
        // Version and service; length; flags, TTL and protocol; addresses. Not identification and checksum.
        L3::Ipv4 => {
            let ip = ETH_LEN;
            array::<4>(new, ip) == array::<4>(old, ip)
                && array::<4>(new, ip + 6) == array::<4>(old, ip + 6)
                && array::<8>(new, ip + 12) == array::<8>(old, ip + 12)
        }
        _ => array::<40>(new, ETH_LEN) == array::<40>(old, ETH_LEN),
    };
    // Ports and sequence number; data offset and flags.
    let connection = array::<8>(new, l4) == array::<8>(old, l4) && be16(new, l4 + 12) == be16(old, l4 + 12);
    let later = |at: usize| be32(new, at).wrapping_sub(be32(old, at)).cast_signed();
    let in_time = h.end - l4 == 20 || later(l4 + 24) >= 0 && later(l4 + 28) >= 0;
    network && connection && later(l4 + 8) > 0 && in_time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::testing::super_frame;
    use crate::wire::bytes::{put, put_be16, put_be32};
    use proptest::prelude::*;

    /// An acknowledgement of `number` with a timestamp.
    fn ack(v6: bool, number: u32, stamp: u32) -> Vec<u8> {
        let mut f = super_frame(v6, true, 3, &[], ACK);
        let h = Headers::parse(&f).unwrap();
        put_be32(&mut f, h.l4 + 8, number);
        put(&mut f, h.l4 + 20, &TIMESTAMP);
        put_be32(&mut f, h.l4 + 24, stamp);
        put_be32(&mut f, h.l4 + 28, stamp.wrapping_sub(100));
        f
    }

    fn takes(new: &[u8], old: &[u8]) -> bool {
        let (n, o) = (Headers::parse(new).unwrap(), Headers::parse(old).unwrap());
        is_pure(new, &n) && is_pure(old, &o) && supersedes(new, &n, old)
    }

    #[test]
    fn the_newest_stands_for_those_before() {
        for v6 in [false, true] {
            let old = ack(v6, 1000, 7);
            assert!(takes(&ack(v6, 1001, 7), &old));
            assert!(takes(&ack(v6, 2000, 9), &old));
            assert!(!takes(&ack(v6, 1000, 9), &old), "a repeated one tells of a loss");
            assert!(!takes(&ack(v6, 999, 9), &old), "an older one that was overtaken");
            assert!(!takes(&ack(v6, 2000, 6), &old), "time does not go back");
            // Numbers go round.
            assert!(takes(
                &ack(v6, 5, u32::MAX.wrapping_add(3)),
                &ack(v6, u32::MAX - 5, u32::MAX)
            ));
            // Another window is news too, and the newest is right.
            let mut wider = ack(v6, 2000, 9);
            let l4 = if v6 { 54 } else { 34 };
            put_be16(&mut wider, l4 + 14, 4711);
            assert!(takes(&wider, &old));
        }
        let plain = |number| {
            let mut f = super_frame(false, true, 0, &[], ACK);
            put_be32(&mut f, 42, number);
            f
        };
        assert!(takes(&plain(2), &plain(1)) && !takes(&plain(1), &plain(1)));
        assert!(
            !takes(&plain(2), &ack(false, 1, 1)),
            "the one with a timestamp is kept"
        );
    }

    #[test]
    fn whatever_says_more_is_kept() {
        let old = ack(false, 1000, 7);
        let changed = |at: usize, value: u8| {
            let mut f = ack(false, 2000, 9);
            f[at] = value;
            // The IP header's own checksum, which parsing verifies.
            put_be16(&mut f, 24, 0);
            let sum = crate::wire::checksum::Sum::default().with(&f[14..34]).finish();
            put_be16(&mut f, 24, sum);
            f
        };
        assert!(takes(&changed(0, 9), &old), "Ethernet is not looked at");
        for (at, value, what) in [
            (15, 2, "an ECN mark"),
            (22, 63, "another TTL"),
            (29, 9, "another host"),
            (34, 9, "another port"),
            (41, 9, "another sequence number"),
            (46, 0x81, "a reserved bit"),
            (47, ACK | 1, "FIN"),
            (47, ACK | 0x40, "ECE"),
            (56, 5, "SACK in place of the timestamp"),
        ] {
            assert!(!takes(&changed(at, value), &old), "{what}");
        }
        let payload = super_frame(false, true, 3, b"x", ACK);
        let sack = super_frame(false, true, 6, &[], ACK);
        for other in [payload, sack, super_frame(false, false, 0, &[], 0)] {
            let h = Headers::parse(&other).unwrap();
            assert!(!is_pure(&other, &h));
        }
    }

    proptest! {
        /// What is merged differs in nothing but numbers that only grow, the window and what follows from them.
        #[test]
        fn nothing_is_lost(v6: bool, at in 14usize..100, byte: u8, number: u32, stamp in 0u32..1 << 30) {
            let old = ack(v6, 1000, 1 << 20);
            let mut new = ack(v6, number, stamp);
            let n = new.len();
            new[at % n] = byte;
            let Ok(h) = Headers::parse(&new) else { return Ok(()) };
            if is_pure(&new, &h) && supersedes(&new, &h, &old) {
                prop_assert_eq!(new.len(), old.len());
                let l4 = h.l4;
                let may_differ = |i: usize| i < 14
                    || !v6 && (18..20).contains(&i) || !v6 && (24..26).contains(&i)
                    || (l4 + 8..l4 + 12).contains(&i) || (l4 + 14..l4 + 20).contains(&i) || i >= l4 + 24;
                for i in 0..n {
                    prop_assert!(new[i] == old[i] || may_differ(i), "byte {}", i);
                }
            }
        }
    }
}
