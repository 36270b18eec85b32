//! A client that was sending when its server died waits for its own timer, unless it is woken.

mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use reinstate::{
    address::Interface,
    netlink::Netlink,
    nudge::{Nudger, doublings},
    probe::Prober,
    tcp_repair,
};
use wire::pair::{NEVER, Pair, hear, say};

/// Timeouts before the take-over: the next one is then 4 times the shortest timer away. Not more: over IPv6 a third one
/// did not always come, for a reason that is not known.
const TIMEOUTS: u8 = 2;
const UPLOAD: usize = 20_000;

/// How long the rest of an upload takes to arrive once its session is live.
fn rest_of_upload(v6: bool, is_woken: bool) -> Duration {
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
    let nudge =
        || pair.wire.spare.run(|| Nudger::open().unwrap().nudge(&snapshot, doublings(begin.elapsed())).unwrap());
    if is_woken {
        nudge();
    }
    hear(&pair.server, UPLOAD);
    let took = live.elapsed();
    assert!(pair.client.take_error().unwrap().is_none(), "no error reaches the client's application");
    // A client with nothing unacknowledged does not mind.
    nudge();
    say(&pair.server, UPLOAD);
    hear(&pair.client, UPLOAD);
    say(&pair.client, UPLOAD);
    hear(&pair.server, UPLOAD);
    took
}

#[test]
fn a_client_whose_timer_has_backed_off_is_woken() {
    for v6 in [false, true] {
        // A busy machine may lose a client its way to the address for seconds: one of three tries has to wake it.
        let is_woken = (0..3).any(|_| {
            let (left_alone, woken) = (rest_of_upload(v6, false), rest_of_upload(v6, true));
            println!("IPv6 {v6}: {left_alone:?} left alone, {woken:?} woken");
            woken < left_alone / 2
        });
        assert!(is_woken, "IPv6 {v6}");
    }
}

/// Moves bytes until that would block for a while; returns how many.
fn until_blocked(mut step: impl FnMut() -> std::io::Result<usize>) -> usize {
    let mut moved = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(100) {
        match step() {
            Ok(bytes) => {
                moved += bytes;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    moved
}

/// Whether who is told goes on in half the time of who is left alone. On a busy machine a word may come after the timer
/// that it is to come before: of some tries one must do.
fn is_sooner(takes: impl Fn(bool) -> Duration) -> bool {
    (0..5).any(|_| {
        let (left_alone, told) = (takes(false), takes(true));
        println!("{left_alone:?} left alone, {told:?} told");
        told < left_alone / 2
    })
}

/// How long the rest of an upload takes whose client waits for its window to open. The application had made room, and
/// its kernel died with the word of it.
fn rest_behind_a_window(is_told: bool) -> Duration {
    let mut pair = Pair::new(false);
    let piece = vec![7; 64 << 10];
    pair.client.set_nonblocking(true).unwrap();
    pair.server.set_nonblocking(true).unwrap();
    let sent = until_blocked(|| (&pair.client).write(&piece));
    pair.silence();
    let mut into = vec![0; 64 << 10];
    let read = until_blocked(|| (&pair.server).read(&mut into));
    assert!(0 < read && read < sent, "{read} of {sent}");
    // Its probes of the window leave after 0.2, 0.6, 1.4 and 3 seconds.
    thread::sleep(Duration::from_millis(1_500));
    let snapshot = pair.carry(1);
    let live = Instant::now();
    let (start, order) = pair.went_on.unwrap();
    if is_told {
        let tell = |prober: &Prober| prober.open_window(&snapshot, start, &[], order.elapsed()).unwrap();
        pair.wire.spare.run(|| tell(&Prober::open(&[]).unwrap()));
    }
    pair.server.read_exact(&mut vec![0; sent - read]).unwrap();
    live.elapsed()
}

#[test]
fn a_client_that_missed_the_opening_of_its_window_is_told() {
    assert!(is_sooner(rest_behind_a_window));
}

/// How long a flight takes to arrive that was lost when its session went live.
fn lost_flight(v6: bool, is_told: bool) -> Duration {
    const FLIGHT: usize = 1000;
    let mut pair = Pair::new(v6);
    pair.silence();
    say(&pair.server, FLIGHT);
    let snapshot = pair.carry_with(1, |wire| wire.unplug("client"));
    pair.wire.plug("client");
    let live = Instant::now();
    let (start, order) = pair.went_on.unwrap();
    if is_told {
        pair.wire.spare.run(|| {
            let service = snapshot.local.ip();
            let interface = Interface::towards(&mut Netlink::open().unwrap(), service).unwrap();
            let prober = Prober::open(&[(service, &interface)]).unwrap();
            prober.poke_beside(&snapshot, order.elapsed()).unwrap();
            prober.open_window(&snapshot, start, &snapshot.sending, order.elapsed()).unwrap();
        });
    }
    hear(&pair.client, FLIGHT);
    let took = live.elapsed();
    say(&pair.server, 3000);
    hear(&pair.client, 3000);
    say(&pair.client, 3000);
    hear(&pair.server, 3000);
    took
}

#[test]
fn a_lost_first_flight_is_made_good_before_a_timer_does() {
    for v6 in [false, true] {
        assert!(is_sooner(|is_told| lost_flight(v6, is_told)), "IPv6 {v6}");
    }
}
