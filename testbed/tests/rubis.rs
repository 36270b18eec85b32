//! The auction in three tiers as real processes, with clients and the check: briefly. The binaries must have been built
//! (`make test` does), and `scripts/setup` have fetched PostgreSQL.

mod scenario;

use std::process::Command;

use scenario::Out;
use serde_json::Value;

fn check(name: &str, mix: &str, tiers: &str) -> Value {
    // Users who think a hundredth of their time: some seconds are enough.
    let load = ["rubis", "--native", "--fault", "none", "--clients", "20", "--seconds", "4", "--slow-down", "0.01"];
    let more = ["--items", "400", "--mix", mix, "--front-ends", tiers, "--mid-tiers", tiers];
    let out = Out::named(name);
    let result = out.run(&[&load, &more[..]].concat());
    let drawing = out.text("timeline.svg");
    assert!(drawing.contains("replies per second"), "{drawing}");
    assert_eq!((&result["pass"], &result["why"]), (&Value::Bool(true), &Value::Null), "{result}");
    let clients = &result["clients"];
    assert!(clients["replies"].as_u64() > Some(50), "{result}");
    let bins = clients["bins"].as_array().expect("bins");
    let sum: u64 = bins.iter().filter_map(|bin| bin["replies"].as_u64()).sum();
    assert_eq!(Some(sum), clients["replies"].as_u64(), "{result}");
    result
}

#[test]
fn every_reply_is_its_request_s_own_and_the_database_is_what_clients_were_told() {
    let result = check("rubis-bid", "bid", "2");
    assert!(result["database"]["acknowledged"].as_u64() >= Some(5), "hardly anybody traded: {result}");
}

#[test]
fn many_who_register_are_there_once_and_may_trade() {
    let result = check("rubis-register", "register", "2");
    assert_eq!(result["mix"], "register");
    assert!(result["database"]["acknowledged"].as_u64() >= Some(10), "hardly anybody registered: {result}");
    assert_eq!(result["database"]["locked_out"], serde_json::json!([]), "{result}");
}

#[test]
fn who_browses_leaves_nothing() {
    let result = check("rubis-browse", "browse", "1");
    assert_eq!(result["database"]["acknowledged"], 0, "{result}");
}

#[test]
fn a_fault_without_machines_to_break_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let output = command.args(["run", "rubis", "--native", "--fault", "fe", "--clients", "1"]).output();
    let output = output.expect("testbed can be started");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("--native"), "{log}");
}
