//! One line of the table: a figure of ours beside the paper's and beside the limit, what the same path costs without
//! anything of ours in it.

use std::fmt::{self, Display};

use clap::ValueEnum;
use serde::Serialize;

/// What is measured together, and what `--only` names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// One READ over the network of a real topology.
    Read,
    /// READs of adapters from one guest in another, beside perftest.
    Verbs,
    /// An application's export into its Continuation Box, and the import after a recovery.
    Boxes,
    /// Reinstatement of sessions, without a virtual machine.
    Sessions,
    /// The processor time of a monitor.
    Monitor,
    /// The file server under wrk, with boxes and without.
    Files,
    /// Real virtual machines that panic.
    Recovery,
    /// Fork bombs of a real virtual machine, cured in place.
    Repair,
    /// The auction with boxes and without, by the number of clients.
    Auction,
}

impl Group {
    /// In the order in which they are measured.
    pub const ALL: [Self; 9] = [
        Self::Read,
        Self::Verbs,
        Self::Boxes,
        Self::Sessions,
        Self::Monitor,
        Self::Files,
        Self::Recovery,
        Self::Repair,
        Self::Auction,
    ];
}

/// The unit of a line's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Unit {
    /// Microseconds.
    #[serde(rename = "us")]
    Micros,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millis,
    /// Percent of one processor.
    #[serde(rename = "% CPU")]
    Processor,
    /// Requests in a second.
    #[serde(rename = "requests/s")]
    Rate,
    /// READs in a second.
    #[serde(rename = "READs/s")]
    Reads,
    /// Round trips to the target's memory.
    #[serde(rename = "round trips")]
    Rounds,
}

impl Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Processor => "% CPU",
            Self::Rate => "req/s",
            Self::Reads => "READ/s",
            Self::Rounds => "trips",
        })
    }
}

/// What a line is to reach.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Goal {
    /// Our figure, in the line's unit.
    AtMost(f64),
    /// Our figure over the limit.
    RatioAtMost(f64),
    /// Our figure over the limit, where more is better.
    RatioAtLeast(f64),
}

impl Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::RatioAtMost(most) => format!("ratio <= {most}"),
            Self::RatioAtLeast(least) => format!("ratio >= {least}"),
        };
        f.pad(&words)
    }
}

/// One line of the table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Line {
    /// What it was measured with.
    pub group: Group,
    /// What is measured.
    pub name: String,
    /// Unit of the next three.
    pub unit: Unit,
    /// Ours: a median.
    pub ours: f64,
    /// The paper's, where it has one.
    pub paper: Option<f64>,
    /// What the same path costs without us.
    pub limit: f64,
    /// What that path is.
    pub limit_is: &'static str,
    /// Ours over the limit.
    pub ratio: f64,
    /// What is to be reached.
    pub goal: Option<Goal>,
    /// Whether it was.
    pub met: Option<bool>,
    /// The bad end of ours: the 99th percentile, or the worst where there are few.
    pub worst: f64,
    /// How many times ours was measured.
    pub samples: usize,
}

impl Line {
    /// A line without a goal.
    pub fn new(group: Group, name: String, unit: Unit, ours: &Sample, limit: f64, limit_is: &'static str) -> Self {
        let Sample { median, worst, samples } = *ours;
        let ratio = median / limit;
        Self {
            group,
            name,
            unit,
            ours: median,
            paper: None,
            limit,
            limit_is,
            ratio,
            goal: None,
            met: None,
            worst,
            samples,
        }
    }

    /// With what the paper says.
    #[must_use]
    pub fn paper(self, paper: f64) -> Self {
        Self { paper: Some(paper), ..self }
    }

    /// With a ratio that is not simply the quotient of two medians: the median of the quotients of pairs.
    #[must_use]
    pub fn ratio(self, ratio: f64) -> Self {
        Self { ratio, ..self }
    }

    /// With a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        let met = match goal {
            Goal::AtMost(most) => self.ours <= most,
            Goal::RatioAtMost(most) => self.ratio <= most,
            Goal::RatioAtLeast(least) => self.ratio >= least,
        };
        Self { goal: Some(goal), met: Some(met), ..self }
    }
}

/// Repetitions of one measurement, condensed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The middle one.
    pub median: f64,
    /// The 99th percentile of many, the largest of few.
    pub worst: f64,
    /// How many.
    pub samples: usize,
}

impl Sample {
    /// Condenses `values`; all zero without any.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let samples = values.len();
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self { median: at(samples / 2), worst: at((samples * 99).div_ceil(100).saturating_sub(1)), samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ours: f64, limit: f64) -> Line {
        let ours = Sample { median: ours, worst: ours, samples: 1 };
        Line::new(Group::Read, "x".into(), Unit::Micros, &ours, limit, "nothing")
    }

    #[test]
    fn goals_bound_what_they_say() {
        assert_eq!(line(9.0, 6.0).goal(Goal::RatioAtMost(1.5)).met, Some(true));
        assert_eq!(line(9.1, 6.0).goal(Goal::RatioAtMost(1.5)).met, Some(false));
        assert_eq!(line(97.0, 100.0).goal(Goal::RatioAtLeast(0.98)).met, Some(false));
        assert_eq!(line(97.0, 100.0).ratio(0.99).goal(Goal::RatioAtLeast(0.98)).met, Some(true));
        assert_eq!(line(2.0, 1.0).goal(Goal::AtMost(2.0)).met, Some(true));
        assert_eq!(line(2.0, 1.0).met, None);
    }

    #[test]
    fn a_sample_is_its_median_and_its_bad_end() {
        let many = Sample::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(many, Sample { median: 101.0, worst: 198.0, samples: 200 });
        let few = Sample::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(few, Sample { median: 2.0, worst: 3.0, samples: 3 });
        assert_eq!(Sample::of(Vec::new()).samples, 0);
    }
}
