//! Our RoCEv2 and Linux' rxe work on each other's memory: a part of the matrix of `testbed run interop`, another one
//! with each seed, on one kernel. `BACKDOORS_INTEROP_SEED` repeats a part that failed.

use std::{path::Path, process::Command};

use serde_json::Value;

/// Which part it is, unless the variable says another.
const SEED: u64 = 11;
const SEED_VARIABLE: &str = "BACKDOORS_INTEROP_SEED";

/// Three directions, four kinds of path, five kinds of operations.
const CELLS: u64 = 60;

#[test]
fn two_implementations_of_rocev2_work_on_each_others_memory_over_good_paths_and_bad_ones() {
    let seed = std::env::var(SEED_VARIABLE).map_or(SEED, |text| text.parse().expect("a seed is a number"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
    // The sandbox goes with this thread, which waits for it.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_testbed")])
        .args(["run", "interop", "--slice", "--seed", &seed.to_string(), "--out"])
        .arg(&out)
        .output()
        .expect("setpriv (of util-linux) can be started");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("lines of JSON")).collect();
    let failed: Vec<&Value> = lines.iter().filter(|line| line["pass"] != true).collect();
    assert!(failed.is_empty() && output.status.success(), "seed {seed}: {failed:#?}\n{log}");
    let verdict = lines.last().expect("a verdict");
    assert_eq!(verdict["cells"], CELLS, "{verdict}");
    assert!(verdict["harmed_packets"].as_u64() > Some(0), "the bad paths were good: {verdict}");
}
