//! What a campaign of crashes came to, by fault, kernel, processors, sessions, cable and where a stop fell.

use serde_json::Value;

use super::summary;
use crate::scenario::drown::median;

/// Totals of some runs.
#[derive(Clone, Debug, Default)]
pub struct Row {
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

impl summary::Row for Row {
    const COLUMNS: &'static [&'static str] = &[
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

    fn cells(&self) -> Vec<String> {
        let Self { runs, passed, sessions, resumed, lost, bytes, wrong, doubled, false_takeovers, beyond_ms } = self;
        let megabytes = bytes / 1_000_000;
        let counts = [runs, passed, sessions, resumed, lost, &megabytes, wrong, doubled, false_takeovers];
        let gap = median(beyond_ms).map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        counts.into_iter().map(u64::to_string).chain([gap]).collect()
    }

    fn places(line: &Value) -> Vec<(&'static str, String)> {
        let words = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
        let number = |key: &str| line[key].as_u64().map_or("?".to_owned(), |number| number.to_string());
        let fault = if line["aimed"].is_string() { "stop, aimed".to_owned() } else { words("fault") };
        let aim =
            line["aimed"].as_str().map(|aimed| ("stopped in", aimed.split(['+', ' ']).next().unwrap_or("?").into()));
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
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Summary, *};

    #[test]
    fn failures_are_named_and_totals_add_up() {
        let line = |pass: bool, lost: u64| {
            json!({ "case": "c", "pass": pass, "sessions": 20, "lost": lost,
                    "bytes_checked": 1_000_000, "wrong_bytes": 0, "gap_ms_p50": 210.0,
                    "deadline_ms": 200, "kernel": "6.1", "fault": "panic", "resumed": 19,
                    "false_takeovers": lost / 2, "why": ["because"] })
        };
        let summary = Summary::<Row>::of(&[line(true, 0), line(false, 2)]);
        assert!(!summary.is_clean());
        let text = summary.to_string();
        assert!(text.contains("| kernel 6.1 | 2 | 1 | 40 | 38 | 2 | 2 | 0 | 0 | 1 | 10 ms |"), "{text}");
        assert!(text.contains("failed: c: [\"because\"]"), "{text}");
    }
}
