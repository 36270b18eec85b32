//! Two real machines with RDMA adapters: whatever one can do for the other without a hypervisor. Slow.

mod scenario;

use scenario::Out;
use serde_json::Value;

/// A deadline that an emulated machine keeps while it lives, however busy the tests keep this one.
const DEADLINE_MS: &str = "6000";

#[test]
fn a_machine_without_a_hypervisor_is_watched_locked_repaired_and_frozen_without_a_lost_session() {
    let out = Out::named("rxe-monitor-frozen");
    let result = out.run(&["rxe-monitor", "--stop", "frozen", "--deadline-ms", DEADLINE_MS, "--seed", "3"]);
    assert_eq!((&result["pass"], &result["why"]), (&Value::Bool(true), &Value::Null), "{result}");
    assert!(result["samples"].as_u64() > Some(10), "{result}");
    assert_eq!((&result["resumed"], &result["lost"]), (&result["sessions"], &Value::from(0)), "{result}");
    assert_eq!(result["wrong_bytes"], 0, "{result}");
    assert!(result["bytes_checked"].as_u64() > Some(100_000), "{result}");
    for figure in ["sample_us", "cured_ms", "detect_ms", "fence_ms", "verdict_to_live_ms"] {
        assert!(result[figure].as_f64() > Some(0.0), "{figure} was not measured: {result}");
    }
}
