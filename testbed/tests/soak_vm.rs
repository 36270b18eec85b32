//! A slice of the soak with a real virtual machine: a guest whose processor is saturated is not taken for one that
//! hangs, and when it does hang it is. Slow (a minute), because everything in it is real.
//!
//! The daemons must have been built (`make test` does): the scenario runs them as processes of their own.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// Longer than the default: other programs may keep this machine busy, and a verdict would be false all the same.
const DEADLINE_MS: f64 = 500.0;

/// Recorded time.
const SECONDS: f64 = 20.0;

#[test]
fn a_saturated_guest_is_healthy_until_it_panics() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak-cpu");
    let _ = fs::remove_dir_all(&out);
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["run", "soak", "--load", "cpu", "--minutes", &(SECONDS / 60.0).to_string(), "--seed", "21"])
        // A sample each 5 ms is enough for this deadline, and what a debug build can do without being a load itself.
        .args(["--deadline-ms", &DEADLINE_MS.to_string(), "--period-ms", "5", "--out"])
        .arg(&out)
        .output()
        .expect("testbed can be started");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{said}", output.status);
    let result: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("the result is JSON");
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

    let figure = fs::read_to_string(out.join("false-verdicts.svg")).expect("a drawing was left");
    assert!(figure.contains("deadline of a CPU"), "{figure}");
    let table = fs::read_to_string(out.join("false-verdicts.csv")).expect("its numbers were left");
    assert!(table.lines().any(|line| line.starts_with("cpu,500,0,0,")), "{table}");
    fs::remove_dir_all(&out).expect("the results are ours");
}
