//! A slice of the soak with a real virtual machine: a guest whose processor is saturated is not taken for one that
//! hangs, and when it does hang it is. Slow (a minute), because everything in it is real.
//!
//! The daemons must have been built (`make test` does): the scenario runs them as processes of their own.

mod scenario;

use scenario::Out;
use serde_json::Value;

/// Longer than the default: other programs may keep this machine busy, and a verdict would be false all the same.
const DEADLINE_MS: f64 = 500.0;

/// Recorded time.
const SECONDS: f64 = 20.0;

#[test]
fn a_saturated_guest_is_healthy_until_it_panics() {
    let out = Out::named("soak-cpu");
    let (minutes, deadline_ms) = ((SECONDS / 60.0).to_string(), DEADLINE_MS.to_string());
    let load = ["soak", "--load", "cpu", "--minutes", &minutes, "--seed", "21"];
    // A sample each 5 ms is enough for this deadline, and what a debug build can do without being a load itself.
    let result = out.run(&[&load, &["--deadline-ms", &deadline_ms, "--period-ms", "5"][..]].concat());
    let part = &result["loads"][0];
    assert_eq!((&result["pass"], &part["load"]), (&Value::Bool(true), &Value::from("cpu")), "{result}");

    // Watched all the time, and really loaded: or nothing was shown.
    assert_eq!(part["monitor"]["verdicts"], 0, "{result}");
    assert!(part["monitor"]["samples"].as_f64() > Some(SECONDS * 1e3 / DEADLINE_MS), "{result}");
    assert!(part["recorded_samples"].as_u64() > Some(1000), "{result}");
    assert!(part["guest"]["busy_share"].as_f64() > Some(0.9), "{result}");
    assert!(part["silence_ms"]["tick.cpu0"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 2.0 * DEADLINE_MS), "{result}");

    // The fault at the end: not before the deadline, and soon after it; the service goes on.
    assert!(part["detect_ms"].as_f64() >= Some(DEADLINE_MS), "{result}");
    assert!(part["answers_after"].as_u64() >= Some(3), "{result}");

    let figure = out.text("false-verdicts.svg");
    assert!(figure.contains("deadline of a CPU"), "{figure}");
    let table = out.text("false-verdicts.csv");
    assert!(table.lines().any(|line| line.starts_with("cpu,500,0,0,")), "{table}");
}
