//! What a campaign came to: a table by fault and kernel, and the failures by name.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// Totals of some runs.
#[derive(Clone, Debug, Default)]
struct Row {
    runs: u64,
    passed: u64,
    sessions: u64,
    lost: u64,
    bytes: u64,
    wrong: u64,
    beyond_ms: Vec<f64>,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rows: BTreeMap<(String, String), Row>,
    failures: Vec<(String, String)>,
}

impl Row {
    fn add(&mut self, line: &Value) {
        let number = |key: &str| line[key].as_u64().unwrap_or(0);
        self.runs += 1;
        self.passed += u64::from(line["pass"] == true);
        self.sessions += number("sessions");
        self.lost += number("lost");
        self.bytes += number("bytes_checked");
        self.wrong += number("wrong_bytes");
        let beyond =
            line["gap_ms_p50"].as_f64().zip(line["deadline_ms"].as_f64()).map(|(gap, deadline)| gap - deadline);
        self.beyond_ms.extend(beyond);
    }

    fn median(&self) -> f64 {
        let mut values = self.beyond_ms.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Summary {
    /// Adds up result lines.
    pub fn of(lines: &[Value]) -> Self {
        let mut summary = Self::default();
        for line in lines {
            let words = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
            summary.rows.entry((words("kernel"), words("fault"))).or_default().add(line);
            summary.rows.entry(("all".into(), "all".into())).or_default().add(line);
            if line["pass"] != true {
                summary.failures.push((words("case"), line["why"].to_string()));
            }
        }
        summary
    }

    /// Whether every run passed.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| kernel | fault | runs | passed | sessions | lost | MB checked | wrong bytes | gap beyond deadline |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for ((kernel, fault), row) in &self.rows {
            let Row { runs, passed, sessions, lost, bytes, wrong, .. } = row;
            let megabytes = bytes / 1_000_000;
            let gap = row.median();
            writeln!(
                f,
                "| {kernel} | {fault} | {runs} | {passed} | {sessions} | {lost} | {megabytes} | {wrong} | {gap:.0} ms |"
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
                    "deadline_ms": 200, "kernel": "6.1", "fault": "panic", "why": ["because"] })
        };
        let summary = Summary::of(&[line(true, 0), line(false, 2)]);
        assert!(!summary.is_clean());
        let text = summary.to_string();
        assert!(text.contains("| 6.1 | panic | 2 | 1 | 40 | 2 | 2 | 0 | 10 ms |"), "{text}");
        assert!(text.contains("failed: c: [\"because\"]"), "{text}");
    }
}
