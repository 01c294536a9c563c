//! What the demo found: for machines as JSON, for people as tables.

use crate::cmd::table::table;
use crate::model::PodName;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// Rows of pairs that people still read; beyond, the pairs of a path share one.
const READABLE: usize = 60;

/// All of it, in the form of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every pair and every throughput run worked.
    pub ok: bool,
    /// How long it took, from the first node to the last byte.
    pub seconds: f64,
    /// Each ordered pair of pods, once for each family.
    pub pairs: Vec<Pair>,
    /// TCP streams.
    pub throughput: Vec<Throughput>,
}

/// What pings from one pod to another told.
#[derive(Debug, Serialize)]
pub struct Pair {
    /// Who asked.
    pub from: PodName,
    /// Who was to answer.
    pub to: PodName,
    /// Over which protocol.
    pub family: Family,
    /// Whether the answers came.
    pub ok: bool,
    /// Median round-trip time in microseconds; none when the pair failed.
    pub rtt_us: Option<f64>,
    /// The way the packets took.
    #[serde(skip)]
    pub path: Path,
}

/// What one TCP stream reached.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// Who sent.
    pub from: PodName,
    /// Who received.
    pub to: PodName,
    /// The way the packets took.
    pub path: Path,
    /// Bytes of the stream that arrived, in 10^9 bits a second; 0 when the stream failed.
    pub gbit_s: f64,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The way between two pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// TAP to TAP.
    SameNode,
    /// Through the tunnel.
    CrossNode,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::SameNode => "same-node",
            Path::CrossNode => "cross-node",
        })
    }
}

impl Report {
    /// The verdict over what was measured.
    pub fn new(pairs: Vec<Pair>, throughput: Vec<Throughput>, took: Duration) -> Report {
        let streams = throughput.iter().all(|t| t.gbit_s > 0.0);
        Report {
            ok: streams && pairs.iter().all(|p| p.ok),
            seconds: rounded(took.as_secs_f64(), 3),
            pairs,
            throughput,
        }
    }

    /// The page for people.
    pub fn page(&self) -> String {
        let mut parts = Vec::new();
        let both = both_families(&self.pairs);
        if both.len() > READABLE {
            parts.push(summary(&both));
            parts.push(pairs(both.iter().filter(|p| !p.ok()).take(READABLE)));
        } else {
            parts.push(pairs(both.iter()));
        }
        parts.push(streams(&self.throughput));
        parts.push(self.verdict());
        parts.retain(|p| !p.is_empty());
        parts.join("\n")
    }

    fn verdict(&self) -> String {
        let lost = self.pairs.iter().filter(|p| !p.ok).count();
        let broken = self.throughput.iter().filter(|t| t.gbit_s == 0.0).count();
        let what = match (self.pairs.len(), lost, broken) {
            (0, ..) => "One pod by itself came up; with two there are pairs to measure.".into(),
            (_, 0, 0) => "Every pod reaches every pod, over IPv4 and IPv6.".into(),
            (all, 0, n) => format!(
                "All {all} pairs answer, but {n} of {} TCP streams failed.",
                self.throughput.len()
            ),
            (all, n, _) => format!("{n} of {all} pairs failed."),
        };
        format!("{what} {:.1} s in all.\n", self.seconds)
    }
}

/// `value` with so many decimals: more would be noise.
pub fn rounded(value: f64, decimals: i32) -> f64 {
    let unit = 10f64.powi(decimals);
    (value * unit).round() / unit
}

/// A pair with both its families, as one row shows it.
struct Both<'a> {
    four: &'a Pair,
    six: Option<&'a Pair>,
}

impl Both<'_> {
    fn ok(&self) -> bool {
        self.four.ok && self.six.is_none_or(|p| p.ok)
    }
}

fn both_families(pairs: &[Pair]) -> Vec<Both<'_>> {
    let of = |family| pairs.iter().filter(move |p| p.family == family);
    let same = |a: &Pair, b: &Pair| (&a.from, &a.to) == (&b.from, &b.to);
    // Both lists are in the same order.
    let mut sixes = of(Family::Ipv6).peekable();
    of(Family::Ipv4)
        .map(|four| Both {
            four,
            six: sixes.next_if(|six| same(four, six)),
        })
        .collect()
}

fn pairs<'a>(both: impl Iterator<Item = &'a Both<'a>>) -> String {
    let rtt = |pair: Option<&Pair>| match pair.map(|p| p.rtt_us) {
        Some(Some(us)) => format!("{us:.1}"),
        Some(None) => "failed".into(),
        None => "-".into(),
    };
    let rows: Vec<_> = both
        .map(|b| {
            let p = b.four;
            vec![
                p.from.to_string(),
                p.to.to_string(),
                p.path.to_string(),
                rtt(Some(p)),
                rtt(b.six),
            ]
        })
        .collect();
    titled(&["FROM", "TO", "PATH", "IPV4 RTT us", "IPV6 RTT us"], &rows)
}

fn summary(both: &[Both<'_>]) -> String {
    let mut rows = Vec::new();
    for path in [Path::SameNode, Path::CrossNode] {
        let of_path: Vec<_> = both.iter().filter(|b| b.four.path == path).collect();
        if of_path.is_empty() {
            continue;
        }
        let ok = of_path.iter().filter(|b| b.ok()).count();
        rows.push(vec![
            path.to_string(),
            of_path.len().to_string(),
            ok.to_string(),
            median(of_path.iter().filter_map(|b| b.four.rtt_us)),
            median(of_path.iter().filter_map(|b| b.six?.rtt_us)),
        ]);
    }
    titled(&["PATH", "PAIRS", "OK", "IPV4 RTT us", "IPV6 RTT us"], &rows)
}

fn median(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2);
    middle.map_or("-".into(), |us| format!("{us:.1}"))
}

fn streams(throughput: &[Throughput]) -> String {
    let rows: Vec<_> = throughput
        .iter()
        .map(|t| {
            let reached = match t.gbit_s {
                0.0 => "failed".into(),
                n => format!("{n:.2}"),
            };
            vec![t.from.to_string(), t.to.to_string(), t.path.to_string(), reached]
        })
        .collect();
    titled(&["FROM", "TO", "PATH", "TCP Gbit/s"], &rows)
}

fn titled(header: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        String::new()
    } else {
        table(header, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(from: &str, to: &str, family: Family, rtt_us: Option<f64>) -> Pair {
        Pair {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            family,
            ok: rtt_us.is_some(),
            rtt_us,
            path: Path::CrossNode,
        }
    }

    fn stream(gbit_s: f64) -> Throughput {
        Throughput {
            from: "demo/a1".parse().unwrap(),
            to: "demo/b1".parse().unwrap(),
            path: Path::CrossNode,
            gbit_s,
        }
    }

    #[test]
    fn json_has_the_agreed_form() {
        let pairs = vec![
            pair("demo/a1", "demo/b1", Family::Ipv4, Some(41.5)),
            pair("demo/a1", "demo/b1", Family::Ipv6, None),
        ];
        let report = Report::new(pairs, vec![stream(6.25)], Duration::from_millis(3200));
        let expected = concat!(
            r#"{"ok":false,"seconds":3.2,"pairs":["#,
            r#"{"from":"demo/a1","to":"demo/b1","family":"ipv4","ok":true,"rtt_us":41.5},"#,
            r#"{"from":"demo/a1","to":"demo/b1","family":"ipv6","ok":false,"rtt_us":null}],"#,
            r#""throughput":[{"from":"demo/a1","to":"demo/b1","path":"cross-node","gbit_s":6.25}]}"#
        );
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
    }

    #[test]
    fn the_page_reads_well() {
        let pairs = vec![
            pair("demo/a1", "demo/b1", Family::Ipv4, Some(41.5)),
            pair("demo/a1", "demo/b1", Family::Ipv6, Some(108.0)),
        ];
        let mut report = Report::new(pairs, vec![stream(6.25)], Duration::from_millis(3210));
        assert!(report.ok);
        let page = "FROM     TO       PATH        IPV4 RTT us  IPV6 RTT us\n\
                    demo/a1  demo/b1  cross-node         41.5        108.0\n\
                    \n\
                    FROM     TO       PATH        TCP Gbit/s\n\
                    demo/a1  demo/b1  cross-node        6.25\n\
                    \n\
                    Every pod reaches every pod, over IPv4 and IPv6. 3.2 s in all.\n";
        assert_eq!(report.page(), page);
        report.throughput[0].gbit_s = 0.0;
        assert!(report.page().contains("demo/b1  cross-node  failed"));
        assert!(
            report
                .page()
                .contains("All 2 pairs answer, but 1 of 1 TCP streams failed.")
        );
    }

    #[test]
    fn many_pairs_are_summed_up_and_failures_named() {
        let mut all: Vec<_> = (0..80)
            .map(|i| pair("demo/a1", &format!("demo/b{i}"), Family::Ipv4, Some(f64::from(i))))
            .collect();
        all.push(pair("demo/a1", "demo/c1", Family::Ipv4, None));
        let report = Report::new(all, vec![], Duration::from_secs(4));
        let page = report.page();
        assert!(page.starts_with("PATH        PAIRS  OK  IPV4 RTT us"), "{page}");
        assert!(page.contains("cross-node     81  80         40.0"), "{page}");
        assert!(page.contains("demo/a1  demo/c1  cross-node  failed"), "{page}");
        assert!(page.ends_with("1 of 81 pairs failed. 4.0 s in all.\n"), "{page}");
    }

    #[test]
    fn nothing_to_measure_is_no_failure() {
        let report = Report::new(vec![], vec![], Duration::from_millis(100));
        assert!(report.ok);
        assert!(report.page().starts_with("One pod by itself"));
    }
}
