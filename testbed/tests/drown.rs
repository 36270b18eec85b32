//! A real guest is drowned by its own processes, and saved from outside. Slow (a minute).
//!
//! The daemons must have been built (`make test` does).

mod scenario;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use scenario::Out;
use serde_json::Value;

/// One virtual machine at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs a scenario and returns its line of JSON; a run that fails shows what it said.
fn run(name: &str, arguments: &[&str]) -> Value {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    // Short pieces of work; and a deadline that a guest keeps on a machine that is busy with other tests.
    let more = ["--vcpus", "2", "--piece-ms", "300", "--deadline-ms", "2000"];
    Out::named(name).run(&[arguments, &more].concat())
}

fn check(result: &Value) {
    assert_eq!((&result["pass"], &result["why"]), (&Value::Bool(true), &Value::Null), "{result}");
    let culprits: u64 = result["culprits"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert!(culprits > 0, "nobody was ended: {result}");
    let spared = &result["spared"];
    assert!(spared["watched"].as_u64() >= Some(15), "{result}");
    for harm in ["killed", "judged"] {
        assert_eq!(spared[harm].as_array().map(Vec::len), Some(0), "{result}");
    }
    assert!(result["after_ms"].as_array().unwrap().len() >= 5, "no useful work after the cure: {result}");
}

#[test]
fn a_fork_bomb_of_sleepers_is_ended_from_outside_and_useful_work_goes_on() {
    let result = run("bomb", &["forkbomb", "--variant", "sleepers", "--procs", "120"]);
    check(&result);
    assert_eq!(result["left"], 0, "{result}");
}

/// The example of docs/guide/own-modules.md, which the monitor starts and asks.
#[test]
fn a_fork_bomb_is_ended_by_a_module_that_is_a_program_of_one_s_own() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../healing-modules/examples/crowd.py");
    let example = example.to_str().unwrap();
    let result = run("own", &["forkbomb", "--variant", "cpu", "--procs", "60", "--own-module", example]);
    check(&result);
    assert_eq!(result["left"], 0, "{result}");
}

/// Together the hogs want more than the guest has, and are swapped out before anybody looks.
#[test]
fn memory_hogs_that_were_swapped_out_are_ended_with_the_controller_that_starts_them_anew() {
    let result = run("hog", &["memhog", "--procs", "12", "--mib", "32", "--respawn", "--hold-ms", "6000"]);
    check(&result);
    assert_eq!((&result["left"], &result["memory"]["oom_kills"]), (&Value::from(0), &Value::from(0)), "{result}");
    let swapped: u64 = result["swapped_mib"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert!(swapped > 0, "nothing of the culprits was swapped out: {result}");
}

/// The guest does not stand still for it, and no memory of its kernel is written to.
#[test]
fn the_same_is_ended_by_orders_in_the_kill_table() {
    for (name, what) in [
        ("ordered-bomb", &["forkbomb", "--variant", "cpu", "--procs", "60"][..]),
        ("ordered-shell", &["forkbomb", "--variant", "shell"]),
        ("ordered-hog", &["memhog", "--procs", "3", "--mib", "48", "--swap-mib", "0", "--respawn"]),
    ] {
        let result = run(name, &[what, &["--hook", "table"]].concat());
        check(&result);
        let ordered = result["ordered"].as_array().unwrap();
        assert_eq!((ordered.is_empty(), &result["left"]), (false, &Value::from(0)), "{result}");
        assert!(result["locked_ms"].as_array().unwrap().iter().all(|locked| *locked == 0.0), "{result}");
    }
}

/// Nothing of the guest is read but what its agent has registered: sensors, processes, answers.
#[test]
fn the_same_is_ended_without_a_look_at_its_memory() {
    for (name, what) in [
        ("table-bomb", &["forkbomb", "--variant", "sleepers", "--procs", "120"][..]),
        ("table-hog", &["memhog", "--procs", "3", "--mib", "48", "--swap-mib", "0", "--respawn"]),
    ] {
        let result = run(name, &[what, &["--hook", "table-alone"]].concat());
        check(&result);
        let ordered = result["ordered"].as_array().unwrap();
        assert_eq!((ordered.is_empty(), &result["left"]), (false, &Value::from(0)), "{result}");
        assert!(result["locked_ms"].as_array().unwrap().iter().all(|locked| *locked == 0.0), "{result}");
    }
}

#[test]
fn with_nothing_of_ours_in_the_guest_a_fork_bomb_is_seen_in_its_kernel_and_ended() {
    let result = run("bomb-no-agent", &["forkbomb", "--variant", "cpu", "--procs", "80", "--no-agent"]);
    check(&result);
    assert_eq!(result["left"], 0, "{result}");
}

#[test]
fn with_nothing_of_ours_in_the_guest_memory_hogs_are_seen_in_its_kernel_and_ended() {
    let result = run("hog-no-agent", &["memhog", "--procs", "8", "--mib", "32", "--no-agent"]);
    check(&result);
    assert_eq!(result["left"], 1, "their controller has done no harm: {result}");
}

#[test]
fn without_leave_to_act_nothing_is_written() {
    let result = run("withheld", &["forkbomb", "--variant", "cpu", "--procs", "60", "--unrepaired-s", "6"]);
    assert_eq!((&result["pass"], result["culprits"].as_array().unwrap().len()), (&Value::Bool(true), 0), "{result}");
}
