//! The whole story with a real virtual machine: a guest's kernel panics, and no client loses a byte. Slow (a minute),
//! because everything in it is real.
//!
//! The daemons must have been built (`make test` does): the scenario runs them as processes of their own.

mod scenario;

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use scenario::Out;
use serde_json::Value;

/// One virtual machine at a time: two would wait for each other's processors, and waiting looks like hanging.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs `hang-download` and returns its line of JSON; a run that fails shows what it said.
fn hang_download(out: &Out, arguments: &[&str]) -> Value {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    // Longer than the default: other tests may keep this machine busy.
    out.run(&[&["hang-download", "--deadline-ms", "250"], arguments].concat())
}

fn check_result(result: &Value, sessions: u64) {
    assert_eq!(result["pass"], true, "{result}");
    assert_eq!(result["sessions"], sessions, "{result}");
    assert_eq!(result["lost"], 0, "{result}");
    assert_eq!(result["wrong_bytes"], 0, "{result}");
    assert!(result["bytes_checked"].as_u64() > Some(100_000), "{result}");
    for figure in ["detect_ms", "fence_ms", "extract_ms", "reinstate_ms", "gap_ms_p50", "gap_ms_p99", "gap_ms_max"] {
        assert!(result[figure].as_f64() > Some(0.0), "{figure} was not measured: {result}");
    }
}

#[test]
fn a_panic_loses_no_byte_and_the_recovery_travels_as_roce() {
    let out = Out::named("hang-download-panic");
    let capture = out.path("rdma.pcap");
    let capture = capture.to_str().expect("cargo's folder is text");
    let result = hang_download(&out, &["--fault", "panic", "--sessions", "4", "--seed", "11", "--capture", capture]);
    check_result(&result, 4);

    let timeline = out.json("timeline.json");
    let drawing = out.text("timeline.svg");
    assert!(drawing.contains("extract"), "{drawing}");

    // From the last sign of life to the first resumed bytes: everything that was read came as RoCEv2.
    let begin = timeline["zero_unix_ns"].as_f64().expect("a time") / 1e9;
    let lanes = timeline["lanes"].as_array().expect("lanes");
    let resumed_ms = lanes.iter().filter_map(|lane| lane["gap_ms"][1].as_f64()).fold(f64::INFINITY, f64::min);
    assert!(resumed_ms.is_finite(), "{timeline}");
    let judged = judge_capture(capture, begin, begin + resumed_ms / 1e3);
    assert_eq!(judged["wrong_icrc"], 0, "{judged}");
    assert!(judged["monitor"]["read_requests"].as_u64() > Some(2), "the monitor sampled a dead guest: {judged}");
    assert!(judged["spare"]["read_bytes"].as_u64() > Some(4096), "the spare read the dead memory: {judged}");
}

fn judge_capture(file: &str, begin: f64, end: f64) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("check/roce_capture.py");
    let output = Command::new("/usr/bin/python3")
        .arg(script)
        .args([file, &format!("{begin:.6}"), &format!("{end:.6}"), "10.78.0.1", "10.78.0.3", "10.78.0.2"])
        .output()
        .expect("python3 is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said:?}: {error}"))
}

#[test]
fn vcpus_stopped_between_two_instructions_lose_no_byte() {
    let out = Out::named("hang-download-stop");
    let result = hang_download(&out, &["--fault", "stop", "--sessions", "20", "--vcpus", "2", "--seed", "12"]);
    check_result(&result, 20);
}

#[test]
fn every_kind_of_session_in_both_families_survives_a_hard_lockup() {
    let out = Out::named("hang-download-hardlock");
    let kinds = "paced,fast,upload,small,idle,stalled,half-closed";
    let sessions = ["--sessions", "14", "--kinds", kinds, "--ipv6", "--vcpus", "2"];
    let result = hang_download(&out, &[&["--fault", "hardlock", "--seed", "13"], &sessions[..]].concat());
    check_result(&result, 14);
}

#[test]
fn a_spare_that_sees_nothing_but_tables_carries_every_kind_of_session_over() {
    let out = Out::named("hang-download-tables");
    let kinds = "paced,fast,upload,small,idle,stalled,half-closed";
    let sessions = ["--sessions", "14", "--kinds", kinds, "--ipv6", "--vcpus", "2", "--keep-logs"];
    let result = hang_download(&out, &[&["--fault", "stop", "--seed", "22", "--tables"], &sessions[..]].concat());
    check_result(&result, 14);
    let spare = out.text("reinstate.log");
    assert!(spare.contains("table of connections is read"), "{spare}");
}
