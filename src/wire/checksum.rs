//! The Internet checksum (RFC 1071): whole, partial and incremental (RFC 1624).

use super::bytes::be16;
use super::{ETH_LEN, Headers, L3};

/// A running one's complement sum. Pieces are added in any order; each must begin at an even offset of the
/// message it belongs to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Add a piece; an odd last byte counts as followed by zero.
    ///
    /// Words are added in the machine's own byte order: the sum is byte-order independent (RFC 1071
    /// section 2). Two chains of 64-bit additions, each taking its carries along, keep both of a processor's
    /// ports for that busy; it is as fast as the kernel's csum_partial (`benches/README.md`).
    #[must_use]
    pub fn with(self, piece: &[u8]) -> Sum {
        let (mut a, mut b, mut carries) = (0u64, 0u64, 0u64);
        let (blocks, rest) = piece.as_chunks::<{ 2 * CHAIN }>();
        for block in blocks {
            let (first, second) = block.split_at(CHAIN);
            let (sum, carry) = chain(a, first);
            a = sum;
            carries += u64::from(carry);
            let (sum, carry) = chain(b, second);
            b = sum;
            carries += u64::from(carry);
        }
        let (words, rest) = rest.as_chunks::<8>();
        for word in words {
            let (sum, carry) = a.overflowing_add(u64::from_ne_bytes(*word));
            a = sum;
            carries += u64::from(carry);
        }
        let (fours, rest) = rest.as_chunks::<4>();
        let fours = fours.first().map_or(0, |w| u64::from(u32::from_ne_bytes(*w)));
        let (twos, rest) = rest.as_chunks::<2>();
        let twos = twos.first().map_or(0, |w| u64::from(u16::from_ne_bytes(*w)));
        let one = rest
            .first()
            .map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
        let short = fours + twos + one;
        // Each is of some 33 bits, so that any number of pieces may be added.
        Sum(self.0.wrapping_add(half(a) + half(b) + carries + short))
    }

    /// Add one 16-bit field.
    #[must_use]
    pub fn with16(self, v: u16) -> Sum {
        Sum(self
            .0
            .wrapping_add(u64::from(u16::from_ne_bytes(v.to_be_bytes()))))
    }

    /// The sum folded to 16 bits, not complemented: what a partial checksum field holds.
    pub fn fold(self) -> u16 {
        let mut s = self.0;
        while s > 0xffff {
            s = (s & 0xffff) + (s >> 16);
        }
        u16::from_be_bytes((s as u16).to_ne_bytes())
    }

    /// The checksum to store: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

/// Bytes of a chain of additions.
const CHAIN: usize = 64;

/// `sum` and all 64-bit words of `bytes`, and the last carry.
#[inline]
fn chain(sum: u64, bytes: &[u8]) -> (u64, bool) {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold((sum, false), |(sum, carry), word| {
        sum.carrying_add(u64::from_ne_bytes(*word), carry)
    })
}

/// Both halves of a word together: the same number in one's complement, in 33 bits.
#[inline]
fn half(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The sum over the pseudo header of a transport segment of `len` bytes (RFC 793 section 3.1, RFC 8200
/// section 8.1).
pub fn pseudo(frame: &[u8], h: &Headers, len: usize) -> Sum {
    let addresses = match h.l3 {
        L3::Ipv6 => frame.get(ETH_LEN + 8..ETH_LEN + 40),
        _ => frame.get(ETH_LEN + 12..ETH_LEN + 20),
    };
    // At most 65,535 bytes follow an IP header, so the upper half of the IPv6 length field is zero.
    Sum::default()
        .with(addresses.unwrap_or(&[]))
        .with16(u16::from(h.proto))
        .with16(len as u16)
}

/// Replace `old` by `new` in a message with checksum `sum` (RFC 1624 equation 3).
pub fn update(sum: u16, old: u16, new: u16) -> u16 {
    Sum::default().with16(!sum).with16(!old).with16(new).finish()
}

/// Whether the transport checksum of a complete, unfragmented segment is right.
pub fn transport_is_right(frame: &[u8], h: &Headers) -> bool {
    frame
        .get(h.l4..h.end)
        .is_some_and(|seg| pseudo(frame, h, seg.len()).with(seg).fold() == 0xffff)
}

/// Whether the field at `offset` of the transport header holds just the pseudo-header sum: a checksum that
/// a sending kernel left for its device to finish.
pub fn is_partial(frame: &[u8], h: &Headers, offset: usize) -> bool {
    h.end > h.l4 && be16(frame, h.l4 + offset) == pseudo(frame, h, h.end - h.l4).fold()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut s = 0u32;
        for w in bytes.chunks(2) {
            s += u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]));
            s = (s & 0xffff) + (s >> 16);
        }
        s as u16
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(
            Sum::default()
                .with(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7])
                .fold(),
            0xddf2
        );
    }

    #[test]
    fn no_carry_is_lost() {
        let mut ones = vec![0xff; 1024];
        for len in 0..ones.len() {
            assert_eq!(
                Sum::default().with(&ones[..len]).fold(),
                plain(&ones[..len]),
                "{len} bytes"
            );
        }
        ones.extend([0, 1, 0xff, 0xfe]);
        assert_eq!(
            Sum::default().with(&ones).with(&ones).fold(),
            plain(&[&ones[..], &ones].concat())
        );
    }

    proptest! {
        #[test]
        fn equals_the_definition_and_smoltcp(data in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0usize..1500) {
            let cut = (cut * 2).min(data.len() & !1);
            let whole = Sum::default().with(&data).fold();
            prop_assert_eq!(whole, plain(&data));
            prop_assert_eq!(whole, smoltcp::wire::checksum::data(&data));
            prop_assert_eq!(Sum::default().with(&data[cut..]).with(&data[..cut]).fold(), whole);
        }

        #[test]
        fn update_equals_a_fresh_sum(mut data in proptest::collection::vec(any::<u8>(), 20..21), new: u16) {
            let before = Sum::default().with(&data).finish();
            let old = be16(&data, 8);
            data[8..10].copy_from_slice(&new.to_be_bytes());
            let fresh = Sum::default().with(&data).finish();
            let updated = update(before, old, new);
            // 0 and 0xffff are the same number in one's complement.
            prop_assert!(updated == fresh || (updated ^ fresh) == 0xffff && (updated == 0 || fresh == 0));
        }
    }
}
