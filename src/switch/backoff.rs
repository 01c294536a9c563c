//! How long something that failed is left alone: longer each time, until it has behaved for a while.

use crate::model::{Duration, Instant};

/// The first rest.
const FIRST: Duration = Duration::from_secs(1);
/// The longest rest; and who worked for so long after one begins anew.
const MOST: Duration = Duration::from_secs(60);

/// When it may be tried again.
#[derive(Debug, Default)]
pub struct BackOff {
    /// The last rest, and its end.
    last: Option<(Duration, Instant)>,
}

impl BackOff {
    /// It failed: until when it rests now. One second at first, each time twice as long, a minute at most; as before when it
    /// rests already.
    pub fn failed(&mut self, now: Instant) -> Instant {
        let rest = match self.last {
            // What comes while it rests is of the same failure, as far as anybody knows.
            Some((_, until)) if now < until => return until,
            Some((rest, until)) if now < until + MOST => (rest * 2).min(MOST),
            _ => FIRST,
        };
        let until = now + rest;
        self.last = Some((rest, until));
        until
    }

    /// The end of its last rest, which may be over.
    pub fn until(&self) -> Option<Instant> {
        self.last.map(|(_, until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_until_it_has_behaved() {
        let mut b = BackOff::default();
        let mut now = Instant::from_secs(100);
        assert_eq!(b.until(), None);
        for secs in [1, 2, 4, 8, 16, 32, 60, 60] {
            let until = b.failed(now);
            assert_eq!(until, now + Duration::from_secs(secs));
            assert_eq!(b.until(), Some(until));
            now = until + Duration::from_secs(3);
        }
        now += Duration::from_secs(57);
        assert_eq!(b.failed(now), now + FIRST, "a minute without a failure");
        for _ in 0..7 {
            assert_eq!(b.failed(now), now + FIRST, "and failures while it rests");
        }
        now += FIRST;
        assert_eq!(b.failed(now), now + FIRST * 2);
    }
}
