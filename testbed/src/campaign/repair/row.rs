//! What a campaign of repairs came to, by illness, hook, kernel and processors.

use serde_json::Value;

use super::super::summary;

/// Totals of some runs.
#[derive(Clone, Debug, Default)]
pub struct Row {
    runs: u64,
    passed: u64,
    culprits: u64,
    watched: u64,
    killed: u64,
    judged: u64,
    by_oom_killer: u64,
    cured_ms: Vec<f64>,
    usable_ms: Vec<f64>,
    locked_ms: Vec<f64>,
    after_by_alone: Vec<f64>,
}

/// The middle, the ninth tenth and the worst of some values.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    match (at(0.5), at(0.9), sorted.last()) {
        (Some(middle), Some(high), Some(worst)) => format!("{middle:.digits$} / {high:.digits$} / {worst:.digits$}"),
        _ => "-".to_owned(),
    }
}

impl summary::Row for Row {
    const COLUMNS: &'static [&'static str] = &[
        "",
        "runs",
        "passed",
        "culprits ended",
        "bystanders watched",
        "killed",
        "judged",
        "taken by the guest's OOM killer",
        "detection to cure, ms (median / 90 % / worst)",
        "detection to an answer on the console, ms",
        "stood still in all, ms",
        "useful work after / alone",
    ];

    fn add(&mut self, line: &Value) {
        let many = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
        let spared = &line["spared"];
        self.runs += 1;
        self.passed += u64::from(line["pass"] == true);
        self.culprits += line["culprits"].as_array().into_iter().flatten().filter_map(Value::as_u64).sum::<u64>();
        self.watched += spared["watched"].as_u64().unwrap_or(0);
        self.killed += many(&spared["killed"]);
        self.judged += many(&spared["judged"]);
        self.by_oom_killer += many(&spared["by_oom_killer"]);
        self.cured_ms.extend(line["cured_ms"].as_f64());
        self.usable_ms.extend(line["usable_ms"].as_f64());
        self.after_by_alone.extend(line["after_by_alone"].as_f64());
        let locked = line["locked_ms"].as_array().into_iter().flatten().filter_map(Value::as_f64).sum::<f64>();
        self.locked_ms.extend((locked > 0.0).then_some(locked));
    }

    fn cells(&self) -> Vec<String> {
        let Self { runs, passed, culprits, watched, killed, judged, by_oom_killer, .. } = self;
        let counts = [*runs, *passed, *culprits, *watched, *killed, *judged, *by_oom_killer];
        let spreads = [
            spread(&self.cured_ms, 0),
            spread(&self.usable_ms, 0),
            spread(&self.locked_ms, 1),
            spread(&self.after_by_alone, 2),
        ];
        counts.iter().map(u64::to_string).chain(spreads).collect()
    }

    fn places(line: &Value) -> Vec<(&'static str, String)> {
        let words = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
        let agent = if line["by"] == "no agent" { "no agent" } else { "agent" };
        vec![
            ("", format!("{}, {agent}", words("row"))),
            ("by", words("by")),
            ("kernel", words("line")),
            ("vCPUs", line["vcpus"].to_string()),
            ("~", "all".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::super::Summary, *};

    #[test]
    fn bystanders_and_failures_are_counted() {
        let line = |pass: bool, cured: f64, killed: &[&str]| {
            json!({ "case": "c", "pass": pass, "why": ["because"], "row": "cpu", "by": "agent, raw", "line": "6.1",
                    "vcpus": 2, "culprits": [40, 2], "cured_ms": cured, "usable_ms": cured + 50.0,
                    "locked_ms": [3.0, 1.5], "after_by_alone": 1.01,
                    "spared": { "watched": 20, "killed": killed, "judged": [], "by_oom_killer": ["x (3)"] } })
        };
        let summary = Summary::<Row>::of(&[line(true, 100.0, &[]), line(false, 300.0, &["sh (1)"])]);
        assert!(!summary.is_clean());
        let text = summary.to_string();
        let figures = "| 2 | 1 | 84 | 40 | 1 | 0 | 2 | 300 / 300 / 300 | 350 / 350 / 350 | 4.5 / 4.5 / 4.5 | 1.01";
        assert!(text.contains(&format!("| cpu, agent {figures}")), "{text}");
        assert!(text.contains(&format!("| all {figures}")), "{text}");
        assert!(text.contains("failed: c: [\"because\"]"), "{text}");
    }
}
