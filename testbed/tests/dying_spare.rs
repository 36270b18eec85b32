//! A real evacuation in which the spare is killed, and a second one has to finish: every byte once, or reported lost.
//! Slow (a guest boots each time). All stages: `testbed run hang-download --spare-dies STAGE --seed N`.
//!
//! The daemons must have been built (`make test` does): the scenario runs them as processes of their own.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// How often a spare may be faster than the one who kills it.
const TRIES: u64 = 3;

fn killed_at(stage: &str, seed: u64) -> Value {
    let tries = (seed..seed + TRIES).map(|seed| once(stage, &seed.to_string()));
    let mut in_time =
        tries.filter(|(verdict, _)| !verdict["why"].to_string().contains("reported before it was killed"));
    let (verdict, logs) = in_time.next().expect("a spare that is killed before it has reported");
    assert_eq!(verdict["pass"], true, "{stage}: {verdict}\n{logs}");
    verdict
}

fn once(stage: &str, seed: &str) -> (Value, String) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("spare-dies-{stage}"));
    let _ = fs::remove_dir_all(&out);
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["run", "hang-download", "--sessions", "8", "--kinds", "paced,fast,upload,idle", "--ipv6"])
        // Longer than the default: other tests may keep this machine busy.
        .args(["--deadline-ms", "250", "--spare-dies", stage, "--seed", seed, "--out"])
        .arg(&out)
        .output()
        .expect("the testbed runs");
    let (said, logs) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let verdict: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("{stage}: {said}\n{logs}"));
    fs::remove_dir_all(&out).expect("cargo's folder for tests can be written");
    (verdict, logs.into_owned())
}

#[test]
fn a_second_spare_finishes_what_a_killed_one_began() {
    // Extraction takes milliseconds and nothing is said to clients: nobody notices more than a longer pause.
    let verdict = killed_at("ordered", 3);
    assert_eq!((verdict["lost"].as_u64(), verdict["wrong_bytes"].as_u64()), (Some(0), Some(0)), "{verdict}");
    assert!(verdict["bytes_checked"].as_u64() > Some(1_000_000), "{verdict}");
    // Sessions may have been live: those are reset and reported, and no client has another byte than its own.
    let verdict = killed_at("rebuilt", 4);
    assert_eq!(verdict["wrong_bytes"].as_u64(), Some(0), "{verdict}");
}
