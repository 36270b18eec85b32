//! Two machines with RDMA adapters and no hypervisor to help: one is watched, locked, rid of a fork bomb and of a
//! memory hog, and evacuated by the other, while its own user space does not run. Slow (a minute each), because
//! everything in it is real.
//!
//! The daemons must have been built (`make test` does).

mod scenario;

use std::sync::{Mutex, PoisonError};

use scenario::Out;

/// One pair of machines at a time: two would wait for each other's processors.
static MACHINES: Mutex<()> = Mutex::new(());

fn clients_go_on_when_it_is(stop: &str) {
    let _alone = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    let out = Out::named(&format!("rxe-monitor-{stop}"));
    // A deadline that emulated processors, which share few real ones, do not miss while they live.
    let result = out.run(&["rxe-monitor", "--stop", stop, "--deadline-ms", "6000", "--seed", "3"]);
    assert_eq!(result["pass"], true, "{result}");
    assert!(result["samples"].as_u64() > Some(10), "{result}");
    assert_eq!((&result["lost"], &result["wrong_bytes"]), (&0.into(), &0.into()), "{result}");
    assert_eq!(result["resumed"], result["sessions"], "{result}");
    assert!(result["bytes_checked"].as_u64() > Some(100_000), "{result}");
    for figure in ["watched_again_ms", "cured_ms", "hog_cured_ms", "detect_ms", "fence_ms", "verdict_to_live_ms"] {
        assert!(result[figure].as_f64() > Some(0.0), "{figure} was not measured: {result}");
    }
}

#[test]
fn clients_of_a_machine_with_an_adapter_go_on_when_its_user_space_is_frozen() {
    clients_go_on_when_it_is("frozen");
}

#[test]
fn clients_of_a_machine_with_an_adapter_go_on_when_its_scheduler_is_starved() {
    clients_go_on_when_it_is("starved");
}
