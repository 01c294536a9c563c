//! What the rounds gave: for machines as JSON, for people as a table.

use super::measure::Figure;
use super::plan::Case;
use crate::cmd::table::table;
use serde::Serialize;

/// All of it, in the form of `--json`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// A row for each figure of each contender.
    pub rows: Vec<Row>,
    /// Podwire's figure over the kernel's, taken round by round.
    pub ratios: Vec<Ratio>,
    /// Measurements that gave nothing, in sentences.
    pub failures: Vec<String>,
    /// How it was measured, in sentences.
    pub remarks: Vec<String>,
}

/// A contender's figure over the rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured, and the path: `tcp1-cross`.
    pub work: String,
    /// What lay between the nodes: `wire`, `veth`, or `none` on one node.
    pub underlay: String,
    /// Who.
    pub contender: &'static str,
    /// In what it is counted.
    pub unit: &'static str,
    /// The middle of the rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// The ratio of the two contenders over the rounds.
#[derive(Debug, Serialize)]
pub struct Ratio {
    /// As in [`Row`].
    pub work: String,
    /// As in [`Row`].
    pub underlay: String,
    /// The middle of the rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// What one round of a case gave each contender.
pub type Round = [Vec<Figure>; 2];

impl Report {
    /// Take in the rounds of a case; figures of contenders stand in the order of `contenders`.
    pub fn add(&mut self, case: Case, contenders: [&'static str; 2], rounds: &[Round]) {
        let underlay = case.underlay.map_or("none".into(), |u| u.to_string());
        for (round, figures) in (1..).zip(rounds) {
            for (figures, name) in figures.iter().zip(contenders) {
                if figures.is_empty() {
                    self.failures
                        .push(format!("{case}: {name} gave nothing in round {round}"));
                }
            }
        }
        let Some(some) = rounds.iter().flatten().find(|figures| !figures.is_empty()) else {
            return;
        };
        for (i, Figure { what, unit, .. }) in some.iter().enumerate() {
            let work = format!("{what}-{}", case.path.name());
            let of = |figures: &Vec<Figure>| figures.get(i).map(|f| f.value);
            for (n, contender) in contenders.into_iter().enumerate() {
                let values = rounds.iter().filter_map(|round| of(&round[n])).collect();
                if let Some((median, min, max)) = spread(values) {
                    self.rows.push(Row {
                        work: work.clone(),
                        underlay: underlay.clone(),
                        contender,
                        unit,
                        median,
                        min,
                        max,
                    });
                }
            }
            // Each round by itself: what slows the machine for a while slows both.
            let ratio = |[ours, theirs]: &Round| Some(of(ours)? / of(theirs)?);
            if let Some((median, min, max)) = spread(rounds.iter().filter_map(ratio).collect()) {
                self.ratios.push(Ratio {
                    work,
                    underlay: underlay.clone(),
                    median,
                    min,
                    max,
                });
            }
        }
    }

    /// The page for people.
    pub fn page(&self) -> String {
        let rows: Vec<Vec<String>> = self.ratios.iter().map(|ratio| self.line(ratio)).collect();
        let mut page = String::new();
        if !rows.is_empty() {
            let header = ["UNDERLAY", "WORK", "UNIT", "PODWIRE", "KERNEL", "PODWIRE/KERNEL"];
            page += &table(&header, &rows);
        }
        for failure in &self.failures {
            page += &format!("failed: {failure}\n");
        }
        if !self.remarks.is_empty() {
            page += "\n";
        }
        for remark in &self.remarks {
            page += &format!("{remark}\n");
        }
        page
    }

    fn line(&self, ratio: &Ratio) -> Vec<String> {
        let of = |contender: &str| {
            let fits =
                |r: &&Row| r.work == ratio.work && r.underlay == ratio.underlay && r.contender == contender;
            self.rows.iter().find(fits)
        };
        let cell = |contender: &str| of(contender).map_or("-".into(), |r| shown(r.median, r.min, r.max));
        let unit = of("podwire").map_or("", |r| r.unit);
        vec![
            ratio.underlay.clone(),
            ratio.work.clone(),
            unit.into(),
            cell("podwire"),
            cell("kernel"),
            shown(ratio.median, ratio.min, ratio.max),
        ]
    }
}

/// A figure with its spread.
pub fn shown(median: f64, min: f64, max: f64) -> String {
    let number = |v: f64| match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    format!("{} ({}-{})", number(median), number(min), number(max))
}

/// Median, least and most; none of nothing.
pub fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let median = match values.len() % 2 {
        1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    };
    let rounded = |v: f64| (v * 1e4).round() / 1e4;
    Some((rounded(median), rounded(min), rounded(max)))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Path, Underlay, Work};
    use super::*;

    fn gbit(value: f64) -> Vec<Figure> {
        vec![Figure {
            what: "tcp1",
            unit: "Gbit/s",
            value,
        }]
    }

    #[test]
    fn rows_and_ratios_come_from_the_rounds() {
        let case = Case {
            work: Work::Tcp1,
            path: Path::Cross,
            underlay: Some(Underlay::Wire),
        };
        let mut report = Report::default();
        // The machine is slow in the second round: the ratio does not change.
        let rounds = [
            [gbit(4.5), gbit(5.0)],
            [gbit(0.9), gbit(1.0)],
            [gbit(5.0), gbit(5.0)],
            [gbit(9.0), Vec::new()],
        ];
        report.add(case, ["podwire", "kernel"], &rounds);
        let json = serde_json::to_string(&report.rows[0]).unwrap();
        let expected = concat!(
            r#"{"work":"tcp1-cross","underlay":"wire","contender":"podwire","unit":"Gbit/s","#,
            r#""median":4.75,"min":0.9,"max":9.0}"#
        );
        assert_eq!(json, expected);
        assert_eq!(report.rows[1].median, 5.0);
        let ratio = &report.ratios[0];
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.9, 0.9, 1.0));
        assert_eq!(
            report.failures,
            ["tcp1-cross over wire: kernel gave nothing in round 4"]
        );
        let page = report.page();
        assert!(
            page.contains(
                "wire      tcp1-cross  Gbit/s  4.75 (0.90-9.00)  5.00 (1.00-5.00)  0.90 (0.90-1.00)"
            ),
            "{page}"
        );
        assert!(page.contains("failed: tcp1-cross"), "{page}");
    }

    #[test]
    fn nothing_measured_is_no_row() {
        let case = Case {
            work: Work::Rr,
            path: Path::Same,
            underlay: None,
        };
        let mut report = Report::default();
        report.add(case, ["podwire", "kernel"], &[[Vec::new(), Vec::new()]]);
        assert!(report.rows.is_empty() && report.ratios.is_empty());
        assert_eq!(report.failures.len(), 2);
        assert!(report.page().starts_with("failed: "));
    }
}
