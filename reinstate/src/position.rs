//! Where a connection goes on: the decision between what the dead kernel believed and what the client says.
//!
//! A client's acknowledgement number is the truth about what it has: it can be ahead of the dead kernel's `snd_una`
//! (its acknowledgement was lost or never processed) and even ahead of `snd_nxt` (the processor was stopped between
//! handing a segment to the device and counting it). Everything from there on is sent again as new data, so no
//! acknowledgement can ever lie beyond what the rebuilt socket has sent: the deadlock of a too small `snd_nxt` cannot
//! happen. Without an answer the dead kernel's `snd_una` is the start; the raised initial window of
//! [`crate::routes`] then lets all of the flight leave at once, so that the client's jump ahead is covered too.
//!
//! What a client says is a claim. Numbers outside of what the target wrote are refused.

use crate::{
    packet::Heard,
    snapshot::{Snapshot, WINDOW_SCALE_MAX, distance},
};

/// Slack below `rcv_wup` within which a client's own sequence number is plausible: it may resend what was received
/// when our last acknowledgement was lost. One unscaled window.
const RESEND_SLACK: u32 = 1 << 16;

/// Who vouches for a [`Start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The client answered.
    Client,
    /// Nobody: the dead kernel's number, which the client may be ahead of.
    Kernel,
}

/// Where the rebuilt socket begins to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its first sequence number.
    pub seq: u32,
    /// The client's window from there, in bytes.
    pub window: u32,
    /// Why we believe it.
    pub proof: Proof,
    /// The client may have sent what the dead kernel never took: it has to say that again.
    pub unheard: bool,
}

/// Why an answer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An old packet, or no packet of this connection.
    #[error("the answer acknowledges {behind} bytes less than the target knew")]
    Behind {
        /// How much less.
        behind: u32,
    },
    /// The client claims bytes we do not have: garbage, or our copy of the send queue is short.
    #[error("the client acknowledges {beyond} bytes beyond what was found in the send queue")]
    Beyond {
        /// How far.
        beyond: u32,
    },
    /// Its own sequence number is outside of the window it was promised.
    #[error("the answer's sequence number {seq} is outside of the window")]
    OutOfWindow {
        /// The number.
        seq: u32,
    },
    /// The client reset the connection.
    #[error("the client has reset the connection")]
    Reset,
    /// The client's machine is fenced as the target is: nobody was asked.
    #[error("its client's machine is fenced, too")]
    Absent,
}

/// The start without an answer.
pub fn assumed(snapshot: &Snapshot) -> Start {
    Start { seq: snapshot.snd_una, window: snapshot.snd_wnd, proof: Proof::Kernel, unheard: true }
}

/// How far beyond `rcv_wup` the client may have sent. A kernel that runs out of memory takes its promise back, which a
/// client learns later than what it sends: then the most that can ever have been promised.
fn promised(snapshot: &Snapshot) -> u32 {
    let taken_back = snapshot.rcv_wnd == 0;
    let most = u32::from(u16::MAX) << snapshot.scales.map_or(0, |(_, ours)| ours.min(WINDOW_SCALE_MAX));
    if taken_back { most } else { snapshot.rcv_wnd }
}

/// How much the client has promised to take from `seq` on, by what the dead kernel knew.
///
/// The end of a window never moves back (RFC 9293, 3.8.6), but a cable that doubles and shuffles packets can bring an
/// older acknowledgement, with a shorter window, as the answer. Taken at its word it would be the end: a client that
/// holds bytes beyond a gap acknowledges, once the gap is filled, more than the rebuilt socket may have sent by then,
/// which is refused together with the window that comes with it, again and again.
fn promised_to_us(snapshot: &Snapshot, seq: u32) -> u32 {
    let end = snapshot.snd_una.wrapping_add(snapshot.snd_wnd);
    u32::try_from(distance(seq, end) as i32).unwrap_or(0)
}

/// The start an answer implies.
///
/// # Errors
/// [`Refused`] if the answer cannot be this client's honest position.
pub fn answered(snapshot: &Snapshot, heard: &Heard) -> Result<Start, Refused> {
    let earliest = snapshot.rcv_wup.wrapping_sub(RESEND_SLACK);
    let room = RESEND_SLACK.saturating_add(promised(snapshot)).saturating_add(1);
    if distance(earliest, heard.seq) > room {
        return Err(Refused::OutOfWindow { seq: heard.seq });
    }
    if heard.is_reset() {
        return Err(Refused::Reset);
    }
    let ahead = distance(snapshot.snd_una, heard.ack);
    let written = snapshot.queued() as u32;
    match ahead {
        _ if ahead > i32::MAX as u32 => Err(Refused::Behind { behind: ahead.wrapping_neg() }),
        _ if ahead > written + u32::from(snapshot.closed) => Err(Refused::Beyond { beyond: ahead - written }),
        _ => {
            let shift = snapshot.scales.map_or(0, |(theirs, _)| theirs);
            // A client that has our FIN gets it again, at its place: the rebuilt socket has to have sent it.
            let seq = snapshot.snd_una.wrapping_add(ahead.min(written));
            let unheard = heard.carries_data || heard.seq != snapshot.acknowledgement();
            let said = u32::from(heard.window) << shift;
            Ok(Start { seq, window: said.max(promised_to_us(snapshot, seq)), proof: Proof::Client, unheard })
        }
    }
}

/// Takes a further answer into account: the furthest honest one counts, since acknowledgements never go back.
pub fn further(snapshot: &Snapshot, best: Start, next: Start) -> Start {
    match best.proof {
        Proof::Client if distance(snapshot.snd_una, best.seq) > distance(snapshot.snd_una, next.seq) => best,
        // The same place, told twice: the longer window is the newer one.
        Proof::Client if best.seq == next.seq => Start { window: best.window.max(next.window), ..next },
        _ => next,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(snd_una: u32, written: usize) -> Snapshot {
        Snapshot {
            local: "10.0.0.1:80".parse().unwrap(),
            peer: "10.0.0.2:4000".parse().unwrap(),
            snd_una,
            snd_nxt: snd_una,
            sending: vec![7; written],
            unread: 0,
            rcv_nxt: 1000,
            receiving: vec![],
            rcv_wup: 1000,
            rcv_wnd: 5000,
            snd_wl1: 1000,
            snd_wnd: 9000,
            max_window: 9000,
            scales: Some((3, 7)),
            sack: true,
            timestamp: None,
            mss_clamp: 1460,
            closed: false,
            peer_closed: false,
        }
    }

    fn heard(seq: u32, ack: u32) -> Heard {
        let (source, destination) = ("10.0.0.2:4000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        Heard { source, destination, seq, ack, flags: crate::packet::ACK, window: 100, carries_data: false }
    }

    #[test]
    fn the_client_is_believed_inside_what_was_written() {
        let snapshot = snapshot(u32::MAX - 10, 100);
        for ahead in [0, 1, 11, 100] {
            let ack = snapshot.snd_una.wrapping_add(ahead);
            let start = answered(&snapshot, &heard(1000, ack)).unwrap();
            assert_eq!(start, Start { seq: ack, window: 9000 - ahead, proof: Proof::Client, unheard: false });
            assert_eq!(snapshot.sending_from(start.seq).unwrap().len(), 100 - ahead as usize);
        }
    }

    #[test]
    fn claims_outside_of_what_was_written_are_refused() {
        let snapshot = snapshot(500, 100);
        assert_eq!(answered(&snapshot, &heard(1000, 601)), Err(Refused::Beyond { beyond: 1 }));
        assert_eq!(answered(&snapshot, &heard(1000, 499)), Err(Refused::Behind { behind: 1 }));
        assert_eq!(answered(&snapshot, &heard(7000, 550)), Err(Refused::OutOfWindow { seq: 7000 }));
        let reset = Heard { flags: crate::packet::RST, ..heard(1000, 550) };
        assert_eq!(answered(&snapshot, &reset), Err(Refused::Reset));
    }

    #[test]
    fn a_client_that_has_filled_a_window_since_taken_back_is_believed() {
        let closed = Snapshot { rcv_wnd: 0, ..snapshot(500, 100) };
        assert_eq!(answered(&closed, &heard(1000 + 300_000, 550)).unwrap().seq, 550);
        let beyond = 1000 + (65_535 << 7) + 2;
        assert_eq!(answered(&closed, &heard(beyond, 550)), Err(Refused::OutOfWindow { seq: beyond }));
    }

    #[test]
    fn a_client_may_have_our_fin_if_there_is_one() {
        let closed = Snapshot { closed: true, ..snapshot(500, 100) };
        assert_eq!(answered(&closed, &heard(1000, 601)).unwrap().seq, 600);
        assert_eq!(answered(&closed, &heard(1000, 602)), Err(Refused::Beyond { beyond: 2 }));
    }

    #[test]
    fn a_client_tells_whether_it_has_said_more_than_was_heard() {
        let snapshot = snapshot(500, 100);
        let unheard = |snapshot: &Snapshot, heard| answered(snapshot, &heard).unwrap().unheard;
        assert!(!unheard(&snapshot, heard(1000, 550)));
        assert!(unheard(&snapshot, heard(1001, 550)));
        assert!(unheard(&snapshot, Heard { carries_data: true, ..heard(1000, 550) }), "said again meanwhile");
        let closed = Snapshot { peer_closed: true, ..snapshot };
        assert!(!unheard(&closed, heard(1001, 550)));
        assert!(unheard(&closed, heard(1000, 550)), "its FIN, which it believes unheard");
    }

    #[test]
    fn the_end_of_a_window_never_moves_back() {
        let snapshot = Snapshot { snd_wnd: 500, ..snapshot(1000, 400) };
        let window = |ack, window| answered(&snapshot, &Heard { window, ..heard(1000, ack) }).unwrap().window;
        assert_eq!(window(1000, 100), 800, "what it says now");
        assert_eq!(window(1000, 10), 500, "an older answer, with 80");
        assert_eq!(window(1300, 10), 200);
        assert_eq!(window(1300, 0), 200);
        let full = Snapshot { snd_wnd: 0, ..snapshot.clone() };
        assert_eq!(answered(&full, &Heard { window: 0, ..heard(1000, 1000) }).unwrap().window, 0, "closed is closed");
        let twice = |first, second| {
            let at = |window| answered(&full, &Heard { window, ..heard(1000, 1100) }).unwrap();
            further(&full, at(first), at(second)).window
        };
        assert_eq!((twice(100, 10), twice(10, 100)), (800, 800), "doubled and shuffled on the way");
    }

    #[test]
    fn the_furthest_answer_counts() {
        let snapshot = snapshot(500, 100);
        let at = |ack| answered(&snapshot, &heard(1000, ack)).unwrap();
        assert_eq!(further(&snapshot, assumed(&snapshot), at(500)), at(500));
        assert_eq!(further(&snapshot, at(590), at(510)), at(590));
        assert_eq!(further(&snapshot, at(510), at(590)), at(590));
    }

    proptest! {
        #[test]
        fn a_taken_answer_always_points_into_the_queue(una: u32, written in 0usize..5000, seq: u32, ack: u32) {
            let snapshot = snapshot(una, written);
            if let Ok(start) = answered(&snapshot, &heard(seq, ack)) {
                prop_assert!(snapshot.sending_from(start.seq).is_some());
            }
        }
    }
}
