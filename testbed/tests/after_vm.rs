//! The whole way back with a real virtual machine: its kernel panics, its sessions are carried over; it is looked at,
//! reset behind its fence and given its address back, and nobody is refused or reset, neither the old clients nor new
//! ones.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

#[test]
fn a_rescued_machine_is_inspected_reset_and_gets_its_address_back_without_a_lost_client() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rescue-and-return");
    let _ = fs::remove_dir_all(&out);
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["run", "rescue-and-return", "--fault", "panic", "--sessions", "4", "--deadline-ms", "300", "--out"])
        .arg(&out)
        .output()
        .expect("testbed can be started");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{log}\n{said}", output.status);
    let line = said.lines().last().unwrap_or_default();
    let result: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    let count = |name: &str| result[name].as_u64();
    assert_eq!(result["pass"], true, "{result}");
    assert_eq!((count("recovered"), count("lost"), count("new_failed")), (Some(4), Some(0), Some(0)), "{result}");
    assert_eq!(count("wrong_bytes"), Some(0), "{result}");
    assert!(count("new_requests") > Some(50), "{result}");

    // What an operator saw: why it panicked, who had connections, and that nothing moved meanwhile.
    let inspection = fs::read_to_string(out.join("inspect.json")).expect("an inspection was left");
    let inspection: Value = serde_json::from_str(&inspection).expect("JSON");
    assert_eq!(inspection["fenced"], true);
    assert_eq!(inspection["damage"], Value::Array(vec![]), "{}", inspection["damage"]);
    let texts: Vec<_> =
        inspection["log"].as_array().expect("a log").iter().filter_map(|it| it["text"].as_str()).collect();
    assert!(texts.iter().any(|text| text.contains("sysrq triggered crash")), "{texts:?}");
    assert!(inspection["sockets"].as_array().is_some_and(|sockets| sockets.len() >= 4), "{inspection}");
    assert!(inspection["current"][0]["pid"].as_u64() > Some(0), "the shell that wrote `c`: {}", inspection["current"]);

    // Each step in its order, once.
    let timeline = fs::read_to_string(out.join("timeline.txt")).expect("a timeline was left");
    let steps = [
        "fenced, epoch",
        "evacuated to",
        "reset behind",
        "the target is back",
        "gave the addresses back",
        "fence ended",
    ];
    let places: Vec<_> = steps.iter().map(|step| timeline.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{timeline}");
    fs::remove_dir_all(&out).expect("the results are ours");
}
