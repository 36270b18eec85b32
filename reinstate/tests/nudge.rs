//! A client that was sending when its server died waits for its own timer, unless it is woken.

mod wire;

use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use reinstate::{nudge::Nudger, tcp_repair};
use wire::pair::{NEVER, Pair, hear, say};

/// Timeouts before the take-over: the next one is then 4 times the shortest timer away. Not more: over IPv6 a third one
/// did not always come, for a reason that is not known.
const TIMEOUTS: u8 = 2;
const UPLOAD: usize = 20_000;

/// How long the rest of an upload takes to arrive once its session is live, with so many nudges.
fn rest_of_upload(v6: bool, nudges: u32) -> Duration {
    let mut pair = Pair::new(v6);
    pair.silence();
    say(&pair.client, UPLOAD);
    let begin = Instant::now();
    while tcp_repair::unacknowledged(pair.client.as_fd()).unwrap().1 < TIMEOUTS {
        assert!(
            begin.elapsed() < NEVER,
            "the client's timer never ran out: {:?}",
            tcp_repair::unacknowledged(pair.client.as_fd())
        );
        thread::sleep(Duration::from_millis(1));
    }
    let snapshot = pair.carry(1);
    let live = Instant::now();
    pair.wire.spare.run(|| {
        let nudger = Nudger::open().unwrap();
        nudger.nudge(&snapshot, nudges).unwrap();
    });
    hear(&pair.server, UPLOAD);
    let took = live.elapsed();
    assert!(pair.client.take_error().unwrap().is_none(), "no error reaches the client's application");
    // A client with nothing unacknowledged does not mind.
    pair.wire.spare.run(|| {
        Nudger::open().unwrap().nudge(&snapshot, 8).unwrap();
    });
    say(&pair.server, UPLOAD);
    hear(&pair.client, UPLOAD);
    say(&pair.client, UPLOAD);
    hear(&pair.server, UPLOAD);
    took
}

#[test]
fn a_client_whose_timer_has_backed_off_is_woken() {
    for v6 in [false, true] {
        let (left_alone, woken) = (rest_of_upload(v6, 0), rest_of_upload(v6, TIMEOUTS.into()));
        println!("IPv6 {v6}: {left_alone:?} left alone, {woken:?} woken");
        assert!(woken < left_alone / 2, "IPv6 {v6}: {woken:?} against {left_alone:?}");
    }
}
