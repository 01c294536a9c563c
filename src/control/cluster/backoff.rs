//! Waiting longer after each failure, and by chance, so that a cluster does not come back to its store all at once.
//! This is the one place for it.

use crate::model::Duration;

/// The first wait, in milliseconds, and the longest: flannel's.
const FIRST_MS: u64 = 100;
const LONGEST_MS: u64 = 5_000;

/// Failures in a row.
#[derive(Debug, Default)]
pub(in crate::control) struct Backoff(u32);

impl Backoff {
    /// How long to wait after one more failure: 100 ms doubling to 5 s, of which one half is chance.
    pub(in crate::control) fn wait(&mut self, rng: &mut Rng) -> Duration {
        let whole = (FIRST_MS << self.0.min(6)).min(LONGEST_MS);
        self.0 = self.0.saturating_add(1);
        Duration::from_millis(whole / 2 + rng.below(whole / 2 + 1))
    }

    /// It went well.
    pub(in crate::control) fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Chance from a seed (splitmix64); no secrets depend on it.
#[derive(Debug)]
pub(in crate::control) struct Rng(u64);

impl Rng {
    pub(in crate::control) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub(in crate::control) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(n).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_differ_by_chance() {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(1);
        let mut waits = Vec::new();
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
            let ms = backoff.wait(&mut rng).total_millis();
            assert!((whole / 2..=whole).contains(&ms), "{ms} of {whole}");
            waits.push(ms);
        }
        assert!(waits[6] != waits[7] || waits[7] != waits[8]);
        backoff.reset();
        assert!(backoff.wait(&mut rng).total_millis() <= 100);
    }

    #[test]
    fn chance_reaches_all_and_nothing_else() {
        let mut rng = Rng::new(7);
        let mut seen = [0; 10];
        (0..1000).for_each(|_| seen[rng.below(10) as usize] += 1);
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
        assert_eq!(rng.below(0), 0);
    }
}
