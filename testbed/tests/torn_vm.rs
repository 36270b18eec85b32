//! A real guest stopped at every instruction of the kernel's ways through a TCP socket, its memory read at each. Slow
//! (a minute or two). See docs/decisions/0006-what-a-stop-tears.md for what is torn where.
//!
//! The daemons must have been built (`make test` does).

use std::process::Command;

use serde_json::Value;

/// Where a session is lost, with a report, because one buffer is being made into two (`tso_fragment`).
const SPLITTING: [&str; 6] =
    ["skb_split", "tcp_fragment_tstamp", "tcp_write_xmit", "tso_fragment", "tcp_fragment", "tcp_set_skb_tso_segs"];

fn torn(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed")).arg("torn").args(arguments).output();
    let output = output.expect("testbed can be started");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}\n{log}"))
}

#[test]
fn wherever_the_processor_stops_what_is_found_is_right_or_reported() {
    let report = torn(&["--paths", "tcp_v4_rcv,tcp_write_xmit", "--visits", "4"]);
    let mut behind = 0;
    for (path, seen) in report["paths"].as_object().expect("paths") {
        assert!(seen["instructions"].as_u64() > Some(1_000), "{path}: {seen}");
        assert!(seen["looks"].as_u64() > Some(50) && seen["locked"].as_u64() > Some(10), "{path}: {seen}");
        behind += seen["snd_nxt_behind_client"].as_object().map_or(0, serde_json::Map::len);
        for (place, wrong) in seen["wrong"].as_object().expect("a map") {
            let (function, kind) = place.split_once(": ").expect("function and kind");
            let split = kind == "queues not whole" && SPLITTING.contains(&function);
            // The offset cannot be settled once something was retransmitted, which stopping a guest brings about.
            let unsettled = kind == "queues not whole" && function == "tcp_ack";
            assert!(split || unsettled, "{path} in {place}: {wrong}");
        }
    }
    // The place where the prototype's one mute connection must have been: it exists, and was passed unharmed.
    assert!(behind > 0, "the client was never ahead of snd_nxt: {report}");
}
