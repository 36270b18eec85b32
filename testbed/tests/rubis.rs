//! The auction in three tiers as real processes, with clients and the check: briefly. The binaries must have been built
//! (`make test` does), and `scripts/setup` have fetched PostgreSQL.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn run(name: &str, arguments: &[&str]) -> (Output, std::path::PathBuf) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(["run", "rubis"]).args(arguments).arg("--out").arg(&out);
    (command.output().expect("testbed can be started"), out)
}

fn check(name: &str, mix: &str, tiers: &str) -> Value {
    // Users who think a hundredth of their time: some seconds are enough.
    let load = ["--native", "--fault", "none", "--clients", "20", "--seconds", "4", "--slow-down", "0.01"];
    let more = ["--items", "400", "--mix", mix, "--front-ends", tiers, "--mid-tiers", tiers];
    let (output, out) = run(name, &[load.as_slice(), &more].concat());
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{said}", output.status);
    let drawing = fs::read_to_string(out.join("timeline.svg")).expect("a drawing was left");
    assert!(drawing.contains("replies per second"), "{drawing}");
    fs::remove_dir_all(&out).expect("the results can be removed");
    let line = said.lines().last().unwrap_or_default();
    let result: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
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
    let (output, _) = run("rubis-native-fault", &["--native", "--fault", "fe", "--clients", "1"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("--native"), "{log}");
}
