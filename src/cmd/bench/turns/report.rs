//! What the rounds gave, for any number of contenders: for machines as JSON, for people as a table.

use super::super::report::{shown, spread};
use crate::cmd::table::table;
use crate::cmd::{Exit, Failure, say};
use serde::Serialize;

/// The unit of what had no answer.
pub const LOST: &str = "lost";

/// One figure.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// What it is of.
    pub what: String,
    /// In what it is counted.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// The rounds as they come.
pub struct Report {
    contenders: Vec<&'static str>,
    /// By round: contender and figure.
    rounds: Vec<Vec<(&'static str, Figure)>>,
    failures: Vec<String>,
    /// How it was measured, in sentences.
    pub remarks: Vec<String>,
}

/// All of it, in the form of `--json`.
#[derive(Debug, Serialize)]
pub struct Finished {
    /// A row for each figure of each contender.
    pub rows: Vec<Row>,
    /// The first contender's figure over each other's, taken round by round.
    pub ratios: Vec<Ratio>,
    /// Measurements that gave nothing, in sentences.
    pub failures: Vec<String>,
    /// How it was measured, in sentences.
    pub remarks: Vec<String>,
    #[serde(skip)]
    contenders: Vec<&'static str>,
}

/// A contender's figure over the rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub work: String,
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

/// The first contender's figure over another's.
#[derive(Debug, Serialize)]
pub struct Ratio {
    /// What was measured.
    pub work: String,
    /// Whose figure it is divided by.
    pub over: &'static str,
    /// The middle of the rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Report {
    /// Nothing yet; the first contender is the one that is compared with the others.
    pub fn new(contenders: Vec<&'static str>) -> Report {
        Report {
            contenders,
            rounds: vec![Vec::new()],
            failures: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Take a contender's figures of this round.
    pub fn add(&mut self, contender: &'static str, figures: Vec<Figure>) {
        if let Some(round) = self.rounds.last_mut() {
            round.extend(figures.into_iter().map(|figure| (contender, figure)));
        }
    }

    /// A measurement gave nothing.
    pub fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    /// What follows is of another round.
    pub fn next_round(&mut self) {
        self.rounds.push(Vec::new());
    }

    /// All of it.
    pub fn finish(&self) -> Finished {
        let mut works: Vec<(String, &'static str)> = Vec::new();
        for (_, figure) in self.rounds.iter().flatten() {
            if !works.iter().any(|(what, _)| *what == figure.what) {
                works.push((figure.what.clone(), figure.unit));
            }
        }
        let (mut rows, mut ratios) = (Vec::new(), Vec::new());
        for (work, unit) in &works {
            let of = |round: &[(&str, Figure)], who: &str| {
                let mut found = round.iter().filter(|(c, f)| *c == who && f.what == *work);
                found.next().map(|(_, f)| f.value)
            };
            for contender in &self.contenders {
                let values = self
                    .rounds
                    .iter()
                    .filter_map(|round| of(round, contender))
                    .collect();
                if let Some((median, min, max)) = spread(values) {
                    rows.push(Row {
                        work: work.clone(),
                        contender,
                        unit,
                        median,
                        min,
                        max,
                    });
                }
            }
            for over in self.contenders.iter().skip(1) {
                // Each round by itself: what slows the machine for a while slows all.
                let ratio = |round: &Vec<(&'static str, Figure)>| {
                    let theirs = of(round, over).filter(|v| *v > 0.0)?;
                    Some(of(round, self.contenders.first()?)? / theirs)
                };
                if let Some((median, min, max)) = spread(self.rounds.iter().filter_map(ratio).collect()) {
                    ratios.push(Ratio {
                        work: work.clone(),
                        over,
                        median,
                        min,
                        max,
                    });
                }
            }
        }
        Finished {
            rows,
            ratios,
            failures: self.failures.clone(),
            remarks: self.remarks.clone(),
            contenders: self.contenders.clone(),
        }
    }
}

impl Finished {
    /// Tell it, for machines or for people; the exit code is that of a failure when a measurement gave nothing.
    ///
    /// # Errors
    /// When nobody can be told.
    pub fn print(&self, json: bool) -> Result<Exit, Failure> {
        let text = match json {
            true => serde_json::to_string(self).map_err(|e| Failure::new(Exit::Failed, e))? + "\n",
            false => self.page(),
        };
        say(&text)?;
        Ok(match self.failures.is_empty() {
            true => Exit::Ok,
            false => Exit::Failed,
        })
    }

    /// The page for people.
    pub fn page(&self) -> String {
        let mut header: Vec<String> = ["WORK", "UNIT"].map(String::from).to_vec();
        header.extend(self.contenders.iter().map(|c| c.to_uppercase()));
        let others: Vec<&str> = self.contenders.iter().skip(1).copied().collect();
        header.extend(others.iter().map(|c| format!("/{}", c.to_uppercase())));
        let mut works: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            if !works.contains(&(&row.work, row.unit)) {
                works.push((&row.work, row.unit));
            }
        }
        let lines: Vec<Vec<String>> = works
            .iter()
            .map(|(work, unit)| {
                let mut line = vec![work.to_string(), unit.to_string()];
                line.extend(self.contenders.iter().map(|c| {
                    let row = self.rows.iter().find(|r| r.work == *work && r.contender == *c);
                    row.map_or("-".into(), |r| shown(r.median, r.min, r.max))
                }));
                line.extend(others.iter().map(|c| {
                    let ratio = self.ratios.iter().find(|r| r.work == *work && r.over == *c);
                    ratio.map_or("-".into(), |r| format!("{:.2}", r.median))
                }));
                line
            })
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut page = table(&header, &lines);
        for failure in &self.failures {
            page += &format!("failed: {failure}\n");
        }
        page += "\n";
        for remark in &self.remarks {
            page += &format!("{remark}\n");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_other_has_its_own_ratio() {
        let mut report = Report::new(vec!["podwire", "kernel", "pasta"]);
        for (ours, kernel, pasta) in [(20.0, 40.0, 10.0), (10.0, 20.0, 4.0), (30.0, 60.0, 15.0)] {
            for (who, value) in [("podwire", ours), ("kernel", kernel), ("pasta", pasta)] {
                let figure = Figure {
                    what: "up1".into(),
                    unit: "Gbit/s",
                    value,
                };
                report.add(who, vec![figure]);
            }
            report.next_round();
        }
        let done = report.finish();
        assert_eq!((done.rows.len(), done.rows[0].median), (3, 20.0));
        let ratios: Vec<(&str, f64)> = done.ratios.iter().map(|r| (r.over, r.median)).collect();
        assert_eq!(ratios, [("kernel", 0.5), ("pasta", 2.0)]);
        let page = done.page();
        assert!(page.contains("WORK  UNIT    PODWIRE"), "{page}");
        assert!(page.contains("up1   Gbit/s  20.0 (10.0-30.0)"), "{page}");
    }
}
