//! Sessions of two processes with a real virtual machine: front end and workers of a guest have bytes between them when
//! it stops, `reinstate` goes on with both on the spare, and no client loses an answer or gets another one. Slow (a
//! minute and more), because everything in it is real.
//!
//! The daemons must have been built (`make test` does): the scenario runs them as processes of their own.

mod scenario;

use std::sync::{Mutex, PoisonError};

use scenario::Out;
use serde_json::Value;
use testbed::guest::Kernel;

/// Clients, each with a worker process.
const SESSIONS: u64 = 5;

/// Stops of each kind of session, unless the variable says another number.
const STOPS: u64 = 2;
const STOPS_VARIABLE: &str = "BACKDOORS_RELAY_TAKEOVERS";

/// One virtual machine at a time: two would wait for each other's processors, and waiting looks like hanging.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs the scenario and checks its line of JSON; a run that fails shows what it said.
fn relay(kernel: &str, fault: &str, kind: &[&str], seed: u64) {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = Out::named(&format!("relay-takeover-{kernel}-{fault}-{seed}"));
    let (sessions, seed) = (SESSIONS.to_string(), seed.to_string());
    let order = ["relay", "--fault", fault, "--kernel", kernel, "--sessions", &sessions, "--seed", &seed];
    // Longer than the default: other tests may keep this machine busy.
    let deadline = ["--deadline-ms", "500", "--vcpus", "2"];
    let result = out.run(&[&order, &deadline[..], kind].concat());
    assert_eq!((&result["pass"], &result["lost"]), (&Value::Bool(true), &Value::from(0)), "{result}");
    assert_eq!((&result["resumed"], &result["wrong_bytes"]), (&Value::from(SESSIONS), &Value::from(0)), "{result}");
    assert!(result["bytes_carried"].as_u64() > Some(0), "nothing was between the processes: {result}");
    println!("Linux {kernel}, {fault}, {kind:?}, seed {seed}: {} bytes carried over", result["bytes_carried"]);
}

#[test]
fn processors_that_stop_between_two_instructions_cost_sessions_of_two_processes_no_byte() {
    let stops = std::env::var(STOPS_VARIABLE).map_or(STOPS, |text| text.parse().expect("a number of stops"));
    for seed in 0..stops {
        for (number, kind) in [&["--stamps"][..], &["--socket"]].into_iter().enumerate() {
            relay("6.1", "stop", kind, 2 * seed + number as u64);
        }
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn a_panic_costs_sessions_of_two_processes_no_byte() {
    for line in Kernel::lines().expect("kernels were fetched") {
        relay(&line, "panic", &["--stamps", "--socket"], 31);
    }
}
