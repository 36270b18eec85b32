//! The measurements run, briefly, and their result has every line with every column. No figure is judged here: a busy
//! machine would fail it. The daemons and `monitor`'s example must have been built (`make test` does).

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

fn brief(only: &str) -> (String, Value, String) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{only}"));
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["bench", "--brief", "--deadline-ms", "250", "--only", only, "--out"])
        .arg(&out)
        .output()
        .expect("testbed can be started");
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{table}", output.status);
    let text = |extension| fs::read_to_string(out.with_extension(extension)).expect("a result was left");
    let result = serde_json::from_str(&text("json")).expect("the result is JSON");
    (table.into_owned(), result, text("svg"))
}

fn check(only: &str, names: &[&str]) {
    let (table, result, drawing) = brief(only);
    for key in ["processor", "commit"] {
        assert!(result[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {result}");
    }
    let lines = result["lines"].as_array().expect("lines");
    let found: Vec<&str> = lines.iter().filter_map(|line| line["name"].as_str()).collect();
    assert_eq!(found, names);
    let columns = BTreeSet::from([
        "group", "name", "unit", "ours", "worst", "samples", "paper", "limit", "limit_is", "ratio", "goal", "met",
    ]);
    for line in lines {
        let object = line.as_object().expect("a line is an object");
        assert_eq!(object.keys().map(String::as_str).collect::<BTreeSet<_>>(), columns, "{line}");
        for figure in ["ours", "worst", "limit", "ratio", "samples"] {
            assert!(line[figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {line}");
        }
        assert_eq!(line["goal"].is_null(), line["met"].is_null(), "{line}");
        let name = line["name"].as_str().expect("a name");
        assert!(table.lines().any(|row| row.starts_with(name)), "no row for {name}:\n{table}");
        assert!(drawing.contains(name), "no bar for {name}");
    }
}

#[test]
fn reads_and_boxes_are_measured() {
    check("read", &["READ of 64 B", "READ of 4096 B"]);
    let calls = ["export", "import"].map(|call| ["1", "5", "10"].map(|size| format!("{call} of {size} KB")));
    let calls: Vec<&str> = calls.iter().flatten().map(String::as_str).collect();
    check("boxes", &calls);
}

#[test]
fn reads_of_adapters_are_measured_beside_perftest() {
    let of = |what: &str, len: u32| ["", ", as samples wait"].map(|how| format!("verbs {what} of {len} B{how}"));
    let lines = ["READ", "READs"].map(|what| [8, 64, 4096].map(|len| of(what, len)));
    let lines: Vec<&str> = lines.iter().flatten().flatten().map(String::as_str).collect();
    check("verbs", &lines);
}

#[test]
fn a_monitor_is_measured() {
    check("monitor", &["monitor, 100 sensors, 10 ms", "monitor, 100 sensors, 100 ms"]);
}

#[test]
fn the_file_server_is_measured_with_all_its_requests_exported() {
    let loads = [
        "1 KiB, 16 connections",
        "1 KiB, 128 connections",
        "1 KiB, a connection each",
        "1 MiB, 16 connections",
        "1 MiB, 128 connections",
        "no boxes: 1 KiB, 16 connections",
        "no boxes: 1 MiB, 16 connections",
    ];
    check("files", &loads);
}

#[test]
fn recoveries_are_measured() {
    let lines = [
        "verdict to last of 3 live",
        "order to live, one session",
        "order to live, each of 3",
        "gap past the deadline, 1",
        "gap past the deadline, 2",
    ];
    check("recovery", &lines);
}

#[test]
fn the_auction_is_measured_with_all_its_replies_exported() {
    let tiers = ["front end with boxes", "both tiers with boxes"].map(|tiers| format!("auction, 2 clients, {tiers}"));
    check("auction", &tiers.each_ref().map(String::as_str));
}
