//! How much a pod may receive and send: a rate and a burst for each direction.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bounds of a rate, in bits per second: those Kubernetes has for its annotations.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Largest burst, in bits: 4 GiB less a byte, as the CNI bandwidth plugin has it.
const MAX_BURST: u64 = u32::MAX as u64 * 8;
/// What a burst is where none is said: what the rate gives in this time, at least a super-frame.
const DEFAULT_BURST_MS: u64 = 10;
const SUPER_FRAME_BITS: u64 = 65_536 * 8;
/// A burst has at least what the rate gives in this time: whoever wakes to let the next frame pass comes late by as much.
const LEAST_BURST_MS: u64 = 2;

/// The limits of a pod; a direction without one is not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Towards the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// From the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// These limits; `None` when there is neither.
    pub fn of(ingress: Option<Rate>, egress: Option<Rate>) -> Option<Bandwidth> {
        (ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress })
    }
}

/// So many bits each second, and so many at once. What is counted is what goes over a wire: Ethernet frames without
/// their checksum, of a super-frame each segment with headers of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Stated")]
pub struct Rate {
    /// Bits per second.
    pub bits_per_second: u64,
    /// Bits that may pass at once after a time of silence.
    pub burst_bits: u64,
}

/// The same, as it comes from outside.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    bits_per_second: u64,
    #[serde(default)]
    burst_bits: u64,
}

impl TryFrom<Stated> for Rate {
    type Error = RateError;

    fn try_from(s: Stated) -> Result<Rate, RateError> {
        Rate::new(s.bits_per_second, s.burst_bits)
    }
}

/// The numbers, or the text, are no rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RateError {
    /// It is not written as one.
    #[error(
        "{0:?} is no rate (write bits per second, as 100M or 1.5G, and a burst in bits behind it, as 100M:2M)"
    )]
    Text(String),
    /// It is out of bounds.
    #[error("a rate of {0} bit/s is out of range (use 1k to 1000T; leave it out for no limit)")]
    Rate(u64),
    /// Its burst is.
    #[error("a burst of {0} bits is out of range (use 34359738360 bits, which are 4 GiB, at most)")]
    Burst(u64),
}

impl Rate {
    /// A rate and a burst. A burst of zero stands for a usual one: what the rate gives in 10 ms, at least 64 KiB.
    ///
    /// # Errors
    /// What is out of bounds; a rate of zero is.
    pub fn new(bits_per_second: u64, burst_bits: u64) -> Result<Rate, RateError> {
        if !RATES.contains(&bits_per_second) {
            return Err(RateError::Rate(bits_per_second));
        }
        if burst_bits > MAX_BURST {
            return Err(RateError::Burst(burst_bits));
        }
        let usual = (bits_per_second / 1000 * DEFAULT_BURST_MS).clamp(SUPER_FRAME_BITS, MAX_BURST);
        Ok(Rate {
            bits_per_second,
            burst_bits: if burst_bits == 0 { usual } else { burst_bits },
        })
    }

    /// Bits that really pass at once: a burst that is smaller than what the rate gives in 2 ms counts as that, since
    /// the rate could not be kept with it.
    pub fn effective_burst(&self) -> u64 {
        self.burst_bits.max(self.bits_in_ms(LEAST_BURST_MS))
    }

    /// What the rate gives in so many milliseconds.
    pub fn bits_in_ms(&self, ms: u64) -> u64 {
        let bits = u128::from(self.bits_per_second) * u128::from(ms) / 1000;
        u64::try_from(bits).unwrap_or(u64::MAX)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(s: &str) -> Result<Rate, RateError> {
        let wrong = || RateError::Text(s.into());
        let (rate, burst) = match s.split_once(':') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (s, None),
        };
        let rate = bits(rate.trim_end_matches("/s")).ok_or_else(wrong)?;
        match burst.map(|b| bits(b).ok_or_else(wrong)).transpose()? {
            Some(0) => Err(RateError::Burst(0)),
            burst => Rate::new(rate, burst.unwrap_or(0)),
        }
    }
}

/// A number with a decimal part and a unit: k, M, G, T of a thousand, Ki, Mi, Gi, Ti of 1024, "bit" behind it or not.
fn bits(s: &str) -> Option<u64> {
    let end = s
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(s.len());
    let (number, unit) = s.split_at(end);
    let (unit, named) = match unit.strip_suffix("bit") {
        Some(unit) => (unit, true),
        None => (unit, false),
    };
    let scale: u128 = match unit {
        "" => 1,
        "k" | "K" => 1000,
        // Kubernetes has "m" for a thousandth: only what says that it is bits may mean a million by it, as tc's mbit.
        "m" if named => 1_000_000,
        "g" if named => 1_000_000_000,
        "t" if named => 1_000_000_000_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 18 || part.len() > 12 || (number.contains('.') && part.is_empty()) {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let part: u128 = format!("{part:0<12}").parse().ok()?;
    u64::try_from(whole * scale + part * scale / 1_000_000_000_000).ok()
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", short(self.bits_per_second), short(self.burst_bits))
    }
}

/// A number of bits with the largest unit that leaves none out.
fn short(bits: u64) -> String {
    let units = [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1000, "k"),
    ];
    let fits = units
        .iter()
        .find(|(scale, _)| bits >= *scale && bits.is_multiple_of(*scale));
    fits.map_or_else(
        || bits.to_string(),
        |(scale, unit)| format!("{}{unit}", bits / scale),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_as_people_write_them() {
        let rate = |s: &str| s.parse::<Rate>().map(|r| (r.bits_per_second, r.burst_bits));
        for (text, want) in [
            ("100M", (100_000_000, 1_000_000)),
            ("100M:2M", (100_000_000, 2_000_000)),
            ("1.5G:64Ki", (1_500_000_000, 65_536)),
            ("10mbit/s:1mbit", (10_000_000, 1_000_000)),
            ("64kbit", (64_000, 524_288)),
            ("1000", (1000, 524_288)),
            ("0.5M:1", (500_000, 1)),
            ("1000T:34359738360", (1_000_000_000_000_000, 34_359_738_360)),
        ] {
            assert_eq!(rate(text), Ok(want), "{text}");
        }
        for bad in [
            "",
            ":",
            "100M:",
            ":1M",
            "-1",
            "1e9",
            "100m",
            "100 M",
            "100MB",
            "100Mbps",
            "1.M",
            ".5M",
            "1.2.3M",
            "M",
            "x",
            "100M:1M:1M",
            "99999999999999999999",
            "100Mbitbit",
        ] {
            let said = rate(bad).unwrap_err();
            assert!(matches!(said, RateError::Text(_)), "{bad}: {said:?}");
            assert!(said.to_string().contains("as 100M"), "{said}");
        }
    }

    #[test]
    fn bounds_are_told_with_the_remedy() {
        for (text, want) in [
            (
                "0",
                "a rate of 0 bit/s is out of range (use 1k to 1000T; leave it out for no limit)",
            ),
            (
                "999",
                "a rate of 999 bit/s is out of range (use 1k to 1000T; leave it out for no limit)",
            ),
            (
                "1001T",
                "a rate of 1001000000000000 bit/s is out of range (use 1k to 1000T; leave it out for no limit)",
            ),
            (
                "1M:33Gi",
                "a burst of 35433480192 bits is out of range (use 34359738360 bits, which are 4 GiB, at most)",
            ),
            (
                "1M:0",
                "a burst of 0 bits is out of range (use 34359738360 bits, which are 4 GiB, at most)",
            ),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap_err().to_string(), want);
        }
        let json = |s: &str| serde_json::from_str::<Rate>(s).map_err(|e| e.to_string());
        assert_eq!(
            json(r#"{"bits_per_second":1000000}"#),
            Rate::new(1_000_000, 0).map_err(|e| e.to_string())
        );
        assert!(
            json(r#"{"bits_per_second":0}"#)
                .unwrap_err()
                .contains("out of range")
        );
        assert!(json(r#"{"bits_per_second":1000,"burst":1}"#).is_err());
    }

    #[test]
    fn a_burst_is_never_less_than_two_milliseconds() {
        let rate = Rate::new(1_000_000_000, 8).unwrap();
        assert_eq!(rate.effective_burst(), 2_000_000);
        assert_eq!(Rate::new(1_000_000, 80_000).unwrap().effective_burst(), 80_000);
        assert_eq!(Rate::new(10_000_000_000, 0).unwrap().burst_bits, 100_000_000);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(bits in 1000u64..1_000_000_000_000_000, burst in 1u64..MAX_BURST) {
            let rate = Rate::new(bits, burst).unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            let json = serde_json::to_string(&rate).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rate>(&json).unwrap(), rate);
        }

        #[test]
        fn no_text_is_a_panic(s in ".{0,40}") {
            let _ = s.parse::<Rate>();
        }
    }
}
