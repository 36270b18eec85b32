//! A slice of the campaign: every fault with every kind of session, also over a cable that loses and shuffles
//! packets; stops inside a store into a box and inside handshakes. Slow (a minute), because everything in it is real.
//! The campaign itself: `make campaign`.
//!
//! The daemons must have been built (`make test` does).

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

/// Runs a campaign in a folder of its own; returns its lines.
fn campaign(name: &str, arguments: &[&str]) -> Vec<Value> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&out);
    let results = out.join("campaign.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        // A deadline that a guest on a machine busy with other tests does not miss while it lives.
        .args(["campaign", "--parallel", "1", "--deadline-ms", "600", "--results"])
        .arg(&results)
        .args(arguments)
        .output()
        .expect("testbed can be started");
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{table}", output.status);
    let text = fs::read_to_string(&results).expect("the campaign leaves its results");
    assert!(!out.join("campaign.guests").exists(), "saved guests were left behind");
    fs::remove_dir_all(&out).expect("the results are ours");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn words<'a>(lines: &'a [Value], key: &str) -> BTreeSet<&'a str> {
    lines.iter().filter_map(|line| line[key].as_str()).collect()
}

/// Each fault once, with all kinds of clients, over this cable: nothing may be lost.
fn every_fault(name: &str, wire: &str) -> Vec<Value> {
    let kinds = "paced,fast,upload,small,idle,stalled,half-closed,fresh,queued";
    let matrix = ["--kernels", "6.1", "--vcpus", "2", "--sessions", "18", "--no-aims", "--runs", "4", "--seed", "4"];
    let lines = campaign(name, &[&["--wires", wire, "--kinds", kinds], &matrix[..]].concat());
    assert_eq!(words(&lines, "fault"), ["hardlock", "panic", "softlock", "stop"].into());
    for line in &lines {
        assert_eq!(line["pass"], true, "{line}");
        for figure in ["lost", "wrong_bytes", "doubled_bytes", "false_takeovers"] {
            assert_eq!(line[figure], 0, "{figure}: {line}");
        }
        assert!(line["resumed"].as_u64() >= Some(14), "{line}");
        assert!(line["bytes_checked"].as_u64() > Some(1_000_000), "{line}");
    }
    lines
}

#[test]
fn every_fault_with_every_kind_of_session_loses_nothing_and_doubles_nothing() {
    every_fault("campaign-kinds", "good");
}

#[test]
fn every_fault_with_every_kind_of_session_over_a_bad_cable_loses_nothing_and_doubles_nothing() {
    for line in every_fault("campaign-cable", "rough") {
        assert!(line["packets_harmed"].as_u64() > Some(20), "the cable was not bad: {line}");
    }
}

#[test]
fn a_stop_inside_a_store_into_a_box_and_one_inside_a_send_lose_nothing() {
    let matrix = ["--kernels", "6.1", "--vcpus", "1", "--sessions", "6", "--wires", "good", "--aims", "export,send"];
    let kinds = ["--kinds", "paced,fast,upload,small", "--faults", "stop"];
    let lines = campaign("campaign-aimed", &[&["--runs", "3", "--seed", "5"], &matrix[..], &kinds].concat());
    let aimed: BTreeSet<_> = words(&lines, "aimed").iter().filter_map(|aimed| aimed.split('+').next()).collect();
    assert_eq!(aimed, ["export", "send"].into(), "the guest came by both places: {lines:?}");
    assert!(lines.iter().all(|line| line["pass"] == true), "{lines:?}");
}

/// Once one such run in six reset a client that had the answer to its SYN while its own answers were lost.
#[test]
fn stops_inside_handshakes_over_a_bad_cable_lose_no_client() {
    let matrix = ["--kernels", "6.1", "--vcpus", "1", "--sessions", "20", "--wires", "rough", "--aims", "handshake"];
    let kinds = ["--kinds", "fresh", "--faults", "stop"];
    let lines = campaign("campaign-handshakes", &[&["--runs", "6", "--seed", "6"], &matrix[..], &kinds].concat());
    let aimed: Vec<_> = lines.iter().filter(|line| !line["aimed"].is_null()).collect();
    assert!(aimed.len() >= 3, "the guest came by: {lines:?}");
    assert!(lines.iter().all(|line| line["pass"] == true), "{lines:?}");
}

/// The first of a campaign of repairs: whoever was there before is there after the cure.
#[test]
fn a_campaign_of_repairs_cures_and_harms_nobody_else() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("campaign-repairs");
    let _ = fs::remove_dir_all(&out);
    let results = out.join("repairs.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["repair-campaign", "--runs", "2", "--seed", "4", "--kernels", "6.1", "--procs", "60", "--results"])
        .arg(&results)
        .output()
        .expect("testbed can be started");
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{table}", output.status);
    assert!(table.contains("| all | 2 | 2 |"), "{table}");
    let text = fs::read_to_string(&results).expect("the campaign leaves its results");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    fs::remove_dir_all(&out).expect("the results are ours");
    for line in &lines {
        assert!(line["spared"]["watched"].as_u64() >= Some(15), "{line}");
        assert_eq!(line["spared"]["killed"].as_array().map(Vec::len), Some(0), "{line}");
    }
}
