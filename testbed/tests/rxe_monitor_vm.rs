//! Two machines with RDMA adapters and no hypervisor: one is sampled, locked, rid of a fork bomb and of a memory hog by
//! the other, and evacuated when its user space stands still. Slow (two guests boot).
//!
//! The daemons must have been built (`make test` does): the scenario takes them into the guests.

mod scenario;

use scenario::Out;

/// How long the agent may be silent: other tests may keep this machine busy.
const DEADLINE_MS: &str = "6000";

#[test]
fn a_machine_without_a_hypervisor_is_watched_repaired_and_evacuated_over_its_adapter() {
    let out = Out::named("rxe-monitor-frozen");
    let arguments = ["rxe-monitor", "--stop", "frozen", "--deadline-ms", DEADLINE_MS, "--seed", "3"];
    let verdict = out.run(&arguments);
    assert_eq!(verdict["pass"], true, "{verdict}");
    assert!(verdict["samples"].as_u64() > Some(10), "{verdict}");
    assert!(verdict["sessions"].as_u64() > Some(0), "{verdict}");
    assert_eq!(verdict["resumed"], verdict["sessions"], "{verdict}");
    assert_eq!((verdict["lost"].as_u64(), verdict["wrong_bytes"].as_u64()), (Some(0), Some(0)), "{verdict}");
    assert!(verdict["bytes_checked"].as_u64() > Some(1_000_000), "{verdict}");
    for figure in ["sample_us", "cured_ms", "hog_cured_ms", "detect_ms", "fence_ms", "verdict_to_live_ms"] {
        assert!(verdict[figure].as_f64() > Some(0.0), "{figure}: {verdict}");
    }
}
