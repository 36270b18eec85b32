//! What a campaign against the auction came to, by what was broken, how, what users did, and the guests'
//! kernel.

use serde_json::Value;

use super::super::summary;

/// Totals of some runs.
#[derive(Clone, Debug, Default)]
pub struct Row {
    runs: u64,
    passed: u64,
    recovered: u64,
    lost: u64,
    requests: u64,
    mismatched: u64,
    failures: u64,
    trades: u64,
    missing: u64,
    doubled: u64,
    session_ms: Vec<f64>,
    session_ms_max: Vec<f64>,
    waited: u64,
    first_byte_ms: Vec<f64>,
    first_byte_ms_max: Vec<f64>,
    /// The front ends', then the mid tiers'.
    snapshots: [Snapshots; 2],
}

/// What snapshots of one tier came to.
#[derive(Clone, Copy, Debug, Default)]
struct Snapshots {
    count: u64,
    bytes: f64,
    bytes_max: u64,
}

impl Snapshots {
    fn add(&mut self, sizes: &Value) {
        let count = sizes["count"].as_u64().unwrap_or(0);
        self.count += count;
        self.bytes += count as f64 * sizes["bytes_mean"].as_f64().unwrap_or(0.0);
        self.bytes_max = self.bytes_max.max(sizes["bytes_max"].as_u64().unwrap_or(0));
    }

    /// The mean of all, and the largest.
    fn cell(&self) -> String {
        let Self { count, bytes, bytes_max } = *self;
        if count == 0 { "-".to_owned() } else { format!("{:.1} / {bytes_max}", bytes / count as f64) }
    }
}

/// The mean of runs' means, and the worst of all.
fn mean_and_worst(means: &[f64], worst: &[f64]) -> String {
    let mean = means.iter().sum::<f64>() / means.len() as f64;
    match worst.iter().copied().reduce(f64::max) {
        Some(worst) if !means.is_empty() => format!("{mean:.1} / {worst:.1}"),
        _ => "-".to_owned(),
    }
}

impl summary::Row for Row {
    const COLUMNS: &'static [&'static str] = &[
        "",
        "runs",
        "passed",
        "sessions carried on",
        "lost",
        "requests",
        "mismatched",
        "failed",
        "trades acknowledged",
        "missing",
        "doubled",
        "verdict to a session that lives, ms (mean / worst)",
        "clients that waited",
        "verdict to their reply's first byte, ms (mean / worst)",
        "snapshot of a front end, bytes (mean / largest)",
        "of a mid tier",
    ];

    fn add(&mut self, line: &Value) {
        let many = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        self.runs += 1;
        self.passed += u64::from(line["pass"] == true);
        for recovery in line["recoveries"].as_array().into_iter().flatten() {
            self.recovered += number(&recovery["recovered"]);
            self.lost += number(&recovery["lost"]);
            self.session_ms.extend(recovery["session_ms_mean"].as_f64());
            self.session_ms_max.extend(recovery["session_ms_max"].as_f64());
        }
        self.requests += number(&line["clients"]["requests"]);
        self.mismatched += number(&line["clients"]["mismatched"]);
        self.failures += number(&line["clients"]["failures"]);
        self.trades += number(&line["database"]["acknowledged"]);
        self.missing += many(&line["database"]["missing"]);
        self.doubled += many(&line["database"]["doubled"]);
        self.waited += number(&line["waiting"]["clients"]);
        self.first_byte_ms.extend(line["waiting"]["first_byte_ms_mean"].as_f64());
        self.first_byte_ms_max.extend(line["waiting"]["first_byte_ms_max"].as_f64());
        for (tier, sizes) in self.snapshots.iter_mut().zip(["fe", "mt"]) {
            tier.add(&line["snapshots"][sizes]);
        }
    }

    fn cells(&self) -> Vec<String> {
        let Self { runs, passed, recovered, lost, requests, mismatched, failures, trades, missing, doubled, .. } = self;
        let counts = [runs, passed, recovered, lost, requests, mismatched, failures, trades, missing, doubled];
        let mut cells: Vec<String> = counts.into_iter().map(u64::to_string).collect();
        cells.push(mean_and_worst(&self.session_ms, &self.session_ms_max));
        cells.push(self.waited.to_string());
        cells.push(mean_and_worst(&self.first_byte_ms, &self.first_byte_ms_max));
        cells.extend(self.snapshots.iter().map(Snapshots::cell));
        cells
    }

    fn places(line: &Value) -> Vec<(&'static str, String)> {
        let words = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
        vec![
            ("", words("broken")),
            ("by", words("crash")),
            ("kernel", words("line")),
            ("mix", words("mix")),
            ("~", "all".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::super::Summary, *};

    #[test]
    fn tiers_of_a_run_add_up_and_the_worst_is_the_worst_of_all() {
        let recovery = |mean: f64, worst: f64| {
            let (recovered, lost) = (50, 1);
            json!({ "recovered": recovered, "lost": lost, "session_ms_mean": mean, "session_ms_max": worst })
        };
        let line = |pass: bool, count: u64, bytes_max: u64| {
            json!({ "case": "c", "pass": pass, "why": ["because"], "broken": "fe+mt", "crash": "stop", "line": "6.1",
                    "mix": "register",
                    "recoveries": [recovery(10.0, 20.0), recovery(20.0, 25.0)],
                    "waiting": { "clients": 7, "first_byte_ms_mean": 30.0,
                                 "first_byte_ms_max": 60.0 },
                    "snapshots": { "fe": { "count": count, "bytes_mean": bytes_max as f64 - 10.0,
                                           "bytes_max": bytes_max } },
                    "clients": { "requests": 1000, "mismatched": 0, "failures": 2 },
                    "database": { "acknowledged": 90, "missing": [], "doubled": ["x"] } })
        };
        let text = Summary::<Row>::of(&[line(true, 300, 70), line(false, 100, 90)]).to_string();
        let figures =
            "| 2 | 1 | 200 | 4 | 2000 | 0 | 4 | 180 | 0 | 2 | 15.0 / 25.0 | 14 | 30.0 / 60.0 | 65.0 / 90 | - |";
        for row in ["fe+mt", "by stop", "kernel 6.1", "mix register", "all"] {
            assert!(text.contains(&format!("| {row} {figures}")), "{text}");
        }
        assert!(text.contains("failed: c: [\"because\"]"), "{text}");
    }
}
