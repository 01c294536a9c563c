//! Big-endian reads and writes at a checked offset. An offset beyond the slice reads as zero and writes
//! nothing: callers prove lengths first, and a mistake must not become a panic on the data path.

/// The `N` bytes at `at`, or zeros when they are not all there.
#[inline]
pub fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    match b.get(at..).and_then(|s| s.first_chunk::<N>()) {
        Some(a) => *a,
        None => [0; N],
    }
}

/// Big-endian 16-bit read.
#[inline]
pub fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(b, at))
}

/// Big-endian 32-bit read.
#[inline]
pub fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(b, at))
}

/// Write `bytes` at `at`, or nothing when they do not fit.
#[inline]
pub fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(s) = b.get_mut(at..).and_then(|s| s.get_mut(..bytes.len())) {
        s.copy_from_slice(bytes);
    }
}

/// Big-endian 16-bit write.
#[inline]
pub fn put_be16(b: &mut [u8], at: usize, v: u16) {
    put(b, at, &v.to_be_bytes());
}

/// Big-endian 32-bit write.
#[inline]
pub fn put_be32(b: &mut [u8], at: usize, v: u32) {
    put(b, at, &v.to_be_bytes());
}
