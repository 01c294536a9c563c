//! A bandwidth limit: a token bucket that may go into debt.
//!
//! A frame passes while there is credit, and is charged in full, so that a super-frame of 64 KiB passes whole however
//! small the burst; what was too much is waited for. Over any time `t` no more passes than `rate * t + burst` and the
//! one frame that went into debt.

use crate::model::{Duration, Instant, Rate};

/// Credit is counted in millionths of a bit: what one bit per second gives in a microsecond.
const SCALE: i128 = 1_000_000;
/// Whoever waits for credit is woken for so much of it at once, as long as half of the burst allows: a wake-up for each
/// small frame would cost more than the frame.
const QUANTUM_US: i128 = 250;

/// The bucket. A clock that stands still or steps back gives nothing.
#[derive(Clone, Debug)]
pub struct RateBucket {
    rate: i128,
    full: i128,
    /// Negative when there is debt.
    level: i128,
    last: Instant,
}

impl RateBucket {
    /// A full bucket.
    pub fn new(rate: &Rate) -> RateBucket {
        let full = i128::from(rate.effective_burst()) * SCALE;
        RateBucket {
            rate: i128::from(rate.bits_per_second),
            full,
            level: full,
            last: Instant::ZERO,
        }
    }

    /// Whether a frame may pass now.
    #[inline]
    pub fn is_open(&mut self, now: Instant) -> bool {
        let elapsed = i128::from(now.total_micros()) - i128::from(self.last.total_micros());
        self.last = now;
        self.level = (self.level + elapsed.max(0) * self.rate).min(self.full);
        self.level > 0
    }

    /// A frame of so many bytes passed.
    #[inline]
    pub fn charge(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * 8 * SCALE;
    }

    /// How long the rate takes for so many bytes.
    pub fn takes(&self, bytes: u64) -> Duration {
        let us = i128::from(bytes) * 8 * SCALE / self.rate;
        Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
    }

    /// When it is worth to look again: there is credit then, and some more than for the next frame.
    pub fn opens_at(&self) -> Instant {
        let want = (self.rate * QUANTUM_US).min(self.full / 2).max(1);
        let missing = (want - self.level).max(0);
        let wait = (missing + self.rate - 1) / self.rate;
        let wait = i64::try_from(wait).unwrap_or(i64::MAX);
        Instant::from_micros(self.last.total_micros().saturating_add(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(us: i64) -> Instant {
        Instant::from_micros(us)
    }

    fn bucket(bits: u64, burst: u64) -> RateBucket {
        RateBucket::new(&Rate::new(bits, burst).unwrap())
    }

    #[test]
    fn a_burst_then_the_rate() {
        // 1000 bytes each millisecond, 4000 at once.
        let mut b = bucket(8_000_000, 32_000);
        let mut pass = |us, bytes| {
            let open = b.is_open(at(us));
            if open {
                b.charge(bytes);
            }
            (open, b.opens_at())
        };
        for _ in 0..4 {
            assert!(pass(1_000_000, 1000).0);
        }
        assert_eq!(
            pass(1_000_000, 1000),
            (false, at(1_000_250)),
            "a quantum of 250 us"
        );
        assert!(!pass(1_000_000, 1000).0);
        assert!(pass(1_000_001, 1000).0, "any credit will do");
        assert_eq!(pass(1_000_001, 1000), (false, at(1_001_250)));
        assert!(!pass(1_001_000, 1000).0);
        assert!(pass(1_001_001, 64_000).0, "whole, whatever it is");
        assert_eq!(pass(1_001_001, 1), (false, at(1_065_250)));
        assert!(!pass(500, 1).0, "a clock that steps back gives nothing");
        for _ in 0..4 {
            assert!(pass(900_000_000, 1000).0, "never more than the burst");
        }
        assert!(!pass(900_000_000, 1000).0);
    }

    #[test]
    fn odd_clocks_and_extremes() {
        let mut b = bucket(1_000_000_000_000_000, u32::MAX as u64 * 8);
        assert!(b.is_open(at(i64::MIN)));
        b.charge(u64::MAX);
        assert!(!b.is_open(at(i64::MIN)));
        assert!(b.is_open(at(i64::MAX)));
        let mut slow = bucket(1000, 1);
        assert!(slow.is_open(at(0)));
        slow.charge(65_549);
        let opens = slow.opens_at();
        assert!(opens > at(500_000_000) && opens < at(540_000_000), "{opens}");
        slow.charge(u64::MAX);
        let _ = slow.opens_at();
    }

    proptest! {
        /// Over no stretch of time does more pass than the rate gives, the burst, and the frame that went into debt; and
        /// whoever always has something to send, and comes when told, gets the rate.
        #[test]
        fn never_more_and_never_less(
            bits in 1_000_000u64..20_000_000_000,
            burst in 1u64..50_000_000,
            sizes in prop::collection::vec((60u64..65_000, 0i64..400), 200..400),
        ) {
            let rate = Rate::new(bits, burst).unwrap();
            let mut b = RateBucket::new(&rate);
            let mut now = 1_000_000;
            let mut passed: Vec<(i64, u64)> = Vec::new();
            for (bytes, late) in sizes {
                if !b.is_open(at(now)) {
                    // No later than what the burst makes good for.
                    now = b.opens_at().total_micros().max(now) + late;
                    prop_assert!(b.is_open(at(now)), "it is open when it says so");
                }
                b.charge(bytes);
                passed.push((now, bytes));
            }
            let longest = 65_000 * 8;
            let burst = rate.effective_burst();
            for (i, (from, _)) in passed.iter().enumerate().step_by(7) {
                let mut sum = 0;
                for (to, bytes) in &passed[i..] {
                    sum += bytes * 8;
                    let given = u128::from(bits) * (to - from) as u128 / 1_000_000;
                    prop_assert!(u128::from(sum) <= given + u128::from(burst + longest) + 1);
                }
            }
            // What is left in the bucket was not lost: all that time gave was passed, or is there still.
            let sum: u64 = passed.iter().map(|(_, bytes)| bytes * 8).sum();
            let given = u128::from(bits) * (now - 1_000_000) as u128 / 1_000_000;
            let slack = u128::from(burst) + u128::from(bits) * 800 / 1_000_000;
            prop_assert!(u128::from(sum) + slack >= given + u128::from(burst), "{} of {}", sum, given);
        }
    }
}
