//! What a campaign came to: a table by fault and kernel, and the failures by name.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// Totals of some runs.
#[derive(Clone, Debug, Default)]
struct Row {
    runs: u64,
    passed: u64,
    sessions: u64,
    resumed: u64,
    lost: u64,
    bytes: u64,
    wrong: u64,
    doubled: u64,
    false_takeovers: u64,
    beyond_ms: Vec<f64>,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By dimension and value.
    rows: BTreeMap<(&'static str, String), Row>,
    failures: Vec<(String, String)>,
}

impl Row {
    fn add(&mut self, line: &Value) {
        let number = |key: &str| line[key].as_u64().unwrap_or(0);
        self.runs += 1;
        self.passed += u64::from(line["pass"] == true);
        self.sessions += number("sessions");
        self.resumed += number("resumed");
        self.lost += number("lost");
        self.bytes += number("bytes_checked");
        self.wrong += number("wrong_bytes");
        self.doubled += number("doubled_bytes");
        self.false_takeovers += number("false_takeovers");
        let beyond =
            line["gap_ms_p50"].as_f64().zip(line["deadline_ms"].as_f64()).map(|(gap, deadline)| gap - deadline);
        self.beyond_ms.extend(beyond);
    }

    fn median(&self) -> Option<f64> {
        let mut values = self.beyond_ms.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
}

impl Summary {
    /// Adds up result lines.
    pub fn of(lines: &[Value]) -> Self {
        let mut summary = Self::default();
        for line in lines {
            for place in places(line) {
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

/// The rows that a run counts in.
fn places(line: &Value) -> Vec<(&'static str, String)> {
    let words = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| line[key].as_u64().map_or("?".to_owned(), |number| number.to_string());
    let fault = if line["aimed"].is_string() { "stop, aimed".to_owned() } else { words("fault") };
    let aim = line["aimed"].as_str().map(|aimed| ("stopped in", aimed.split(['+', ' ']).next().unwrap_or("?").into()));
    let mut places = vec![
        ("fault", fault),
        ("kernel", words("kernel")),
        ("vCPUs", number("vcpus")),
        ("sessions", number("sessions")),
        ("cable", words("wire")),
        ("all", String::new()),
    ];
    places.extend(aim);
    places
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            "",
            "runs",
            "passed",
            "sessions",
            "carried on",
            "lost",
            "MB checked",
            "wrong bytes",
            "doubled bytes",
            "false take-overs",
            "gap beyond deadline, median",
        ];
        writeln!(f, "| {} |", columns.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(columns.len()))?;
        for ((dimension, value), row) in &self.rows {
            let Row { runs, passed, sessions, resumed, lost, bytes, wrong, doubled, false_takeovers, .. } = row;
            let megabytes = bytes / 1_000_000;
            let name = format!("{dimension} {value}");
            let gap = row.median().map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
            writeln!(
                f,
                "| {} | {runs} | {passed} | {sessions} | {resumed} | {lost} | {megabytes} | {wrong} | {doubled} | \
                 {false_takeovers} | {gap} |",
                name.trim()
            )?;
        }
        for (case, why) in &self.failures {
            writeln!(f, "failed: {case}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_are_named_and_totals_add_up() {
        let line = |pass: bool, lost: u64| {
            json!({ "case": "c", "pass": pass, "sessions": 20, "lost": lost,
                    "bytes_checked": 1_000_000, "wrong_bytes": 0, "gap_ms_p50": 210.0,
                    "deadline_ms": 200, "kernel": "6.1", "fault": "panic", "resumed": 19,
                    "false_takeovers": lost / 2, "why": ["because"] })
        };
        let summary = Summary::of(&[line(true, 0), line(false, 2)]);
        assert!(!summary.is_clean());
        let text = summary.to_string();
        assert!(text.contains("| kernel 6.1 | 2 | 1 | 40 | 38 | 2 | 2 | 0 | 0 | 1 | 10 ms |"), "{text}");
        assert!(text.contains("failed: c: [\"because\"]"), "{text}");
    }
}
