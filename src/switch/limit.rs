//! A token bucket in integers.

use crate::model::Instant;

/// Tokens are counted in millionths, so that a microsecond at one token per second is not lost.
const SCALE: u64 = 1_000_000;

/// Lets `burst` events pass at once and `rate_per_s` per second after that.
///
/// A clock that stands still or steps back only means that nothing is refilled: a limit never opens by itself,
/// and never stays shut for as long as a clock stepped back.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: u64,
    full: u64,
    level: u64,
    last: Instant,
}

impl TokenBucket {
    /// A full bucket. With a rate of zero it is never refilled, with a burst of zero it lets nothing pass.
    pub fn new(rate_per_s: u32, burst: u32) -> TokenBucket {
        let full = u64::from(burst) * SCALE;
        TokenBucket {
            rate: u64::from(rate_per_s),
            full,
            level: full,
            last: Instant::ZERO,
        }
    }

    /// Take `n` tokens; `false`, and none taken, when they are not all there.
    #[inline]
    pub fn take(&mut self, now: Instant, n: u32) -> bool {
        let elapsed = now.total_micros().saturating_sub(self.last.total_micros());
        self.last = now;
        // One microsecond at one token per second is one millionth of a token: the scales cancel out.
        let refill = u64::try_from(elapsed).unwrap_or(0).saturating_mul(self.rate);
        self.level = self.level.saturating_add(refill).min(self.full);
        match self.level.checked_sub(u64::from(n) * SCALE) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `tries` single tokens are given at `now`.
    fn passed(b: &mut TokenBucket, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| b.take(now, 1)).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut b = TokenBucket::new(100, 10);
        let at = Instant::from_millis;
        assert_eq!(passed(&mut b, at(1000), 50), 10);
        assert_eq!(passed(&mut b, at(1009), 50), 0);
        assert_eq!(passed(&mut b, at(1010), 50), 1);
        assert_eq!(passed(&mut b, at(1060), 50), 5);
        assert_eq!(passed(&mut b, at(9000), 50), 10, "never more than the burst");
        // Polling often loses nothing to rounding.
        let given: usize = (0..1_000_000)
            .map(|us| passed(&mut b, Instant::from_micros(9_000_000 + us), 1))
            .sum();
        assert!((99..=100).contains(&given), "{given}");
    }

    #[test]
    fn many_at_once_are_all_or_nothing() {
        let mut b = TokenBucket::new(1, 10);
        assert!(!b.take(Instant::ZERO, 11));
        assert!(b.take(Instant::ZERO, 10));
        assert!(!b.take(Instant::ZERO, 1));
        assert!(b.take(Instant::ZERO, 0));
    }

    #[test]
    fn odd_clocks_and_odd_limits() {
        let at = Instant::from_secs;
        let mut b = TokenBucket::new(1, 1);
        assert!(b.take(at(100), 1));
        assert!(!b.take(at(50), 1), "going back refills nothing");
        assert!(b.take(at(51), 1), "and does not shut the limit for 50 s");
        assert!(b.take(Instant::from_micros(i64::MAX), 1));
        assert!(!b.take(Instant::from_micros(i64::MIN), 1));
        assert!(b.take(Instant::from_micros(i64::MAX), 1));

        let mut max = TokenBucket::new(u32::MAX, u32::MAX);
        assert!(max.take(Instant::from_micros(i64::MAX), u32::MAX));
        assert!(!TokenBucket::new(100, 0).take(at(9), 1));
        let mut once = TokenBucket::new(0, 1);
        assert!(once.take(at(1), 1) && !once.take(at(1_000_000), 1));
    }
}
