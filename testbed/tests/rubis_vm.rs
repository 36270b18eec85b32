//! The auction with a front end and a mid tier in virtual machines: nothing breaks, and both break, with peers on this
//! machine and in guests; and two peers share one. Slow (two or three minutes), because everything in it is real;
//! `testbed rubis-campaign` does it again and again.
//!
//! The binaries must have been built (`make test` does), and `scripts/setup` have fetched PostgreSQL.

mod scenario;

use std::sync::{Mutex, PoisonError};

use scenario::Out;
use serde_json::Value;

/// One run at a time: two would wait for each other's processors, and waiting looks like hanging.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs with twenty users who think a tenth of their time, and returns the result; what was left is gone afterwards.
fn rubis(name: &str, arguments: &[&str], drawings: &[&str]) -> Value {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = Out::named(name);
    let load = ["rubis", "--clients", "20", "--items", "400", "--slow-down", "0.1", "--seconds", "6"];
    // A deadline for machines that other tests may keep busy: nothing here depends on it.
    let result = out.run(&[&load[..], &["--deadline-ms", "2000"], arguments].concat());
    for drawing in drawings {
        let text = out.text(drawing);
        assert!(text.ends_with("</svg>\n"), "{drawing}: {text}");
    }
    assert_eq!((&result["pass"], &result["why"]), (&Value::Bool(true), &Value::Null), "{result}");
    assert_eq!(result["clients"]["mismatched"], 0, "{result}");
    assert_eq!(result["clients"]["requests"], result["clients"]["replies"], "{result}");
    assert!(result["database"]["acknowledged"].as_u64() > Some(0), "nobody traded: {result}");
    let tiers = ["fe", "mt"].map(|tier| &result["snapshots"][tier]);
    assert!(tiers.iter().all(|sizes| sizes["count"].as_u64() > Some(0)), "{result}");
    assert!(tiers.iter().all(|sizes| sizes["bytes_mean"].as_f64() <= sizes["bytes_max"].as_f64()), "{result}");
    result
}

/// Both tiers were taken over, with all their sessions, and every time is told.
fn assert_both_recovered(result: &Value) {
    let recoveries = result["recoveries"].as_array().expect("recoveries");
    assert_eq!(recoveries.len(), 2, "{result}");
    for recovery in recoveries {
        assert!(recovery["recovered"].as_u64() > Some(0), "{result}");
        assert_eq!(recovery["lost"], 0, "{result}");
        for figure in ["detect_ms", "fence_ms", "extract_ms", "verdict_to_live_ms", "session_ms_max"] {
            assert!(recovery[figure].as_f64() > Some(0.0), "{figure} was not measured: {result}");
        }
    }
}

#[test]
fn tiers_in_virtual_machines_serve_and_are_not_taken_for_dead() {
    let result = rubis("rubis-vm-none", &["--fault", "none"], &["timeline.svg"]);
    assert_eq!(result["recoveries"], Value::Null, "{result}");
}

#[test]
fn peers_that_are_guests_themselves_take_both_tiers_over_while_users_register() {
    let order = ["--peers", "vm", "--mix", "register", "--fault", "fe+mt", "--crash", "softlock", "--seed", "6"];
    let result = rubis("rubis-vm-peers", &order, &["recovery-fe1.svg", "recovery-mt1.svg"]);
    assert_eq!((&result["peers"], &result["mix"]), (&Value::from("vm"), &Value::from("register")), "{result}");
    assert_both_recovered(&result);
}

#[test]
fn two_peers_share_a_front_end_s_recovery_by_its_addresses() {
    let result = rubis("rubis-vm-share", &["--share", "--fault", "fe", "--crash", "stop", "--seed", "7"], &[]);
    let recovery = &result["recoveries"][0];
    assert_eq!(recovery["spare"], "fe2+fe3", "{result}");
    // A quarter of the users goes to each of four addresses.
    assert!(recovery["recovered"].as_u64() >= Some(6) && recovery["lost"] == 0, "{result}");
}

#[test]
fn both_tiers_break_and_every_request_gets_its_own_reply_and_every_trade_is_there_once() {
    let drawings = ["timeline.svg", "crash.svg", "recovery-fe1.svg", "recovery-mt1.svg"];
    let result = rubis("rubis-vm-both", &["--fault", "fe+mt", "--crash", "panic", "--seed", "5"], &drawings);
    assert_eq!(result["peers"], "host", "{result}");
    assert_both_recovered(&result);
}
