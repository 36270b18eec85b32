//! What an extraction brought, held against the golden text of its machine and the lives of its applications.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use contbox::Snapshot as Export;
use reinstate::extract::Extracted;
use reinstate::session::{Loss, Session};
use reinstate::snapshot::Snapshot;

use crate::application::{State, Story, rule};
use crate::golden::{Ends, FNV_EMPTY, Golden, Place, fnv};
use crate::recorded::Machine;

fn ends(snapshot: &Snapshot) -> Ends {
    (snapshot.local, snapshot.peer)
}

/// Compares with the golden text: every connection is there once, in its place, with its numbers and every queued
/// byte.
pub fn judge(machine: &Machine, stories: &[Story], extracted: &Extracted) {
    assert!(extracted.damage.is_empty(), "{:?}", extracted.damage);
    let boxed: BTreeSet<_> = stories.iter().map(|story| story.ends).collect();
    let expected = |snapshot: &Snapshot| {
        let golden = machine.golden.get(&ends(snapshot)).unwrap_or_else(|| panic!("{snapshot:?} never was"));
        (golden, golden.place(boxed.contains(&ends(snapshot))))
    };
    let mut found = Vec::new();
    for session in &extracted.sessions {
        let (golden, place) = expected(&session.snapshot);
        match place {
            Place::FromBox => {}
            Place::Anew => judge_fresh(session, golden),
            _ => panic!("{} goes on, its place is {place:?}", session.snapshot.peer),
        }
        judge_numbers(&session.snapshot, golden);
        judge_sending(&session.snapshot, golden);
        judge_receiving(&session.snapshot, golden);
        found.push(ends(&session.snapshot));
    }
    for (_, ending) in &extracted.ending {
        let (golden, place) = expected(ending);
        assert_eq!(place, Place::ToItsEnd, "{}", ending.peer);
        judge_numbers(ending, golden);
        judge_sending(ending, golden);
        assert!(ending.receiving.is_empty(), "nobody reads from {}", ending.peer);
        found.push(ends(ending));
    }
    for lost in &extracted.lost {
        let (golden, place) = expected(&lost.snapshot);
        assert_eq!((place, &lost.why), (Place::NoBox, &Loss::NoBox), "{}", lost.snapshot.peer);
        judge_numbers(&lost.snapshot, golden);
        found.push(ends(&lost.snapshot));
    }
    found.sort_unstable();
    assert_eq!(found, machine.golden.keys().copied().collect::<Vec<_>>(), "each once");
}

fn earlier(base: u32, one: u32, other: u32) -> u32 {
    if one.wrapping_sub(base) < other.wrapping_sub(base) { one } else { other }
}

/// No number counts a FIN, and each FIN is told.
fn judge_numbers(snapshot: &Snapshot, golden: &Golden) {
    let peer: SocketAddr = snapshot.peer;
    let (una, end) = golden.unacknowledged();
    assert_eq!((snapshot.snd_una, snapshot.snd_nxt), (una, earlier(una, golden.snd_nxt, end)), "{peer}");
    assert_eq!((snapshot.closed, snapshot.peer_closed), (golden.fin_queued, golden.fin_received), "{peer}");
    let input_end = golden.input_end();
    let acknowledged = earlier(input_end.wrapping_sub(1 << 30), golden.rcv_wup, input_end);
    assert_eq!((snapshot.rcv_nxt, snapshot.rcv_wup), (input_end, acknowledged), "{peer}");
    let (promised, was_promised) =
        (snapshot.rcv_wup.wrapping_add(snapshot.rcv_wnd), golden.rcv_wup.wrapping_add(golden.rcv_wnd));
    assert_eq!(promised, was_promised, "the right edge of the window of {peer}");
}

fn judge_sending(snapshot: &Snapshot, golden: &Golden) {
    let mut rest = &snapshot.sending[..];
    for (len, sum) in &golden.sending {
        let (segment, after) = rest.split_at(*len);
        assert_eq!(fnv(FNV_EMPTY, segment), *sum, "send queue of {}", snapshot.peer);
        rest = after;
    }
    assert_eq!((rest.len(), snapshot.write_seq()), (0, golden.unacknowledged().1), "send queue of {}", snapshot.peer);
}

fn judge_receiving(snapshot: &Snapshot, golden: &Golden) {
    let receiving = (snapshot.receiving.len(), fnv(FNV_EMPTY, &snapshot.receiving));
    assert_eq!(receiving, golden.receiving, "receive queue of {}", snapshot.peer);
    // A FIN that the application has seen lies between what it has copied and what is expected next.
    if !snapshot.receiving.is_empty() || !golden.fin_received {
        assert_eq!(snapshot.copied_seq(), golden.copied_seq, "{}", snapshot.peer);
    }
}

/// What begins anew brings nothing but the input that waited for its application.
fn judge_fresh(session: &Session, golden: &Golden) {
    let peer = session.snapshot.peer;
    let Session { image, copied, written, discard, .. } = session;
    assert_eq!((*copied, *written, *discard), (0, 0, 0), "{peer}");
    assert_eq!((image.local, image.peer), ends(&session.snapshot));
    assert_eq!((image.base_read, image.base_written), (0, 0), "{peer}");
    assert_eq!(image.snapshot, Export { lsr: 0, lsw: 0, lws: Vec::new() }, "{peer}");
    assert!(image.logged.is_empty() && session.snapshot.sending.is_empty(), "{peer}");
    assert_eq!(session.snapshot.receiving.len() as u64, golden.received(), "{peer}");
}

/// Lets the application go on from what was extracted: the client gets the rest of its stream, every byte once, and
/// the application every byte of its input once.
pub fn judge_streams(session: &Session, story: &Story, golden: &Golden) {
    let Export { lws, lsw, .. } = &session.image.snapshot;
    let state = State::parse(lws).expect("a whole snapshot");
    let input = [&session.image.logged[..], &session.snapshot.receiving].concat();
    let (digest, output) = state.finish(&input);
    let all_input = [&story.input[..], &session.snapshot.receiving].concat();
    assert_eq!(digest, fnv(FNV_EMPTY, &all_input), "input of {}", session.snapshot.peer);
    assert_eq!(all_input.len() as u64, story.base_read + golden.received());
    assert_eq!(story.written, story.base_written + golden.written());
    assert!(!golden.fin_queued || story.total == story.written, "nothing is written after the end");

    let client_has = story.base_written + golden.acknowledged();
    let discard = session.discard as usize;
    let (swallowed, new) = output.split_at(discard);
    let rest = [&session.snapshot.sending[..], new].concat();
    let expected: Vec<u8> = (client_has..story.total).map(rule).collect();
    assert!(rest == expected, "the client {} gets another stream", session.snapshot.peer);
    assert!(swallowed.iter().copied().eq((*lsw..story.written).map(rule)), "other bytes are swallowed than were sent");
    assert_eq!((session.copied, session.written), (story.input.len() as u64, story.written));
}

/// The sessions that go on from their boxes, each with the number of its story.
pub fn from_boxes<'a>(
    stories: &'a [Story],
    extracted: &'a Extracted,
) -> impl Iterator<Item = (&'a Session, usize, &'a Story)> {
    extracted.sessions.iter().filter_map(|session| {
        let of = |(_, story): &(usize, &Story)| story.ends == ends(&session.snapshot);
        stories.iter().enumerate().find(of).map(|(index, story)| (session, index, story))
    })
}
