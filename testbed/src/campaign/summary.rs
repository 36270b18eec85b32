//! What a campaign came to: a table of totals by dimension, and the failures by name.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// Totals of some runs.
pub trait Row: Default {
    /// What the cells say, the name of the row first.
    const COLUMNS: &'static [&'static str];

    /// Adds the line of a run.
    fn add(&mut self, line: &Value);

    /// The cells behind the name of the row.
    fn cells(&self) -> Vec<String>;

    /// The rows that a run counts in: dimension and value. A dimension that begins with `~` comes last, without it.
    fn places(line: &Value) -> Vec<(&'static str, String)>;
}

/// The table.
#[derive(Clone, Debug)]
pub struct Summary<R> {
    /// By dimension and value.
    rows: BTreeMap<(&'static str, String), R>,
    failures: Vec<(String, String)>,
}

impl<R: Row> Summary<R> {
    /// Adds up result lines.
    pub fn of(lines: &[Value]) -> Self {
        let mut summary = Self { rows: BTreeMap::new(), failures: Vec::new() };
        for line in lines {
            for place in R::places(line) {
                summary.rows.entry(place).or_default().add(line);
            }
            if line["pass"] != true {
                let case = line["case"].as_str().unwrap_or("?").to_owned();
                summary.failures.push((case, line["why"].to_string()));
            }
        }
        summary
    }

    /// Whether every run passed.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }
}

impl<R: Row> fmt::Display for Summary<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", R::COLUMNS.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(R::COLUMNS.len()))?;
        for ((dimension, value), row) in &self.rows {
            let name = format!("{} {value}", dimension.trim_start_matches('~'));
            writeln!(f, "| {} | {} |", name.trim(), row.cells().join(" | "))?;
        }
        for (case, why) in &self.failures {
            writeln!(f, "failed: {case}: {why}")?;
        }
        Ok(())
    }
}
