//! How large the rings of a TCP flow are.
//!
//! Pages of a ring that were never used are not there. So what counts is not how many flows there are but what they could
//! all fill at once: some 19 GiB.

/// Of a flow, each way, that begins beside fewer than [`FEW`].
const RING: usize = 1 << 20;
/// Of one that begins beside fewer than [`MANY`]: two chunks, so that both sides have something to do.
const MID_RING: usize = 512 << 10;
/// Of any other. From this size on memory is mapped by itself.
pub const MIN_RING: usize = 64 << 10;
const FEW: usize = 256;
const MANY: usize = 12_288;

/// Bytes of each ring of a flow that begins beside so many. A power of two: the window is told in such units.
pub fn ring(beside: usize) -> usize {
    match beside {
        0..FEW => RING,
        FEW..MANY => MID_RING,
        _ => MIN_RING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rings_together_are_bounded() {
        let flows = super::super::tcp::MAX_FLOWS;
        let all: usize = (0..flows).map(|n| 2 * ring(n)).sum();
        assert!(all < 20 << 30, "{all}");
        assert!((0..flows).all(|n| ring(n).is_power_of_two() && ring(n) >= MIN_RING));
        // Beside ten thousand idle flows one is hardly slower (docs/egress.md).
        assert_eq!(ring(10_000), MID_RING);
    }
}
