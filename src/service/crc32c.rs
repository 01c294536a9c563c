//! SCTP's CRC32c (RFC 9260 appendix A) after a change of ports. The checksum covers the whole packet; it is linear, so
//! that what the first four bytes add to it is found without reading the rest. A packet that was damaged stays so,
//! which a checksum made afresh would hide.

/// The Castagnoli polynomial, bits reversed.
const POLY: u32 = 0x82f6_3b78;

/// The checksum, as a number (it is stored low byte first), of a packet of `len` bytes whose first four were `old` and
/// are `new`, if `sum` was it before.
pub(super) fn update(sum: u32, old: [u8; 4], new: [u8; 4], len: usize) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // Four bytes into an empty register, then as many zeros as bytes follow.
    sum ^ multiply(difference, shift(len))
}

/// x^(8 * bytes) modulo the polynomial: what so many bytes that follow multiply a difference by.
fn shift(bytes: usize) -> u32 {
    // Reversed bits: the highest stands for x^0.
    let mut power = 1 << 31;
    let mut square = POWER_8;
    let mut left = bytes;
    while left > 0 {
        if left & 1 == 1 {
            power = multiply(power, square);
        }
        square = multiply(square, square);
        left >>= 1;
    }
    power
}

/// x^8: one byte.
const POWER_8: u32 = 1 << 23;

/// The product of two polynomials, modulo the CRC's.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for bit in (0..32).rev() {
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = b >> 1 ^ if b & 1 == 1 { POLY } else { 0 };
    }
    product
}

/// The checksum by its definition.
#[cfg(test)]
pub(super) fn whole(packet: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in packet.iter().enumerate() {
        // The field itself counts as zero.
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { POLY } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_definition_gives_the_known_value() {
        // RFC 3720 appendix B.4: 32 bytes of zeros; the field is zero as well.
        assert_eq!(whole(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_fresh_checksum(
            mut packet in proptest::collection::vec(any::<u8>(), 12..2000),
            new: [u8; 4],
        ) {
            let before = whole(&packet);
            let old = [packet[0], packet[1], packet[2], packet[3]];
            packet[..4].copy_from_slice(&new);
            prop_assert_eq!(update(before, old, new, packet.len()), whole(&packet));
        }
    }
}
