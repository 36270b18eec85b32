//! Connections whose numbers are from an earlier moment than their boxes: when something last left ([`crate::tables`]).
//!
//! ```text
//!   received:  |---- copied (table) ----|--- since, not acknowledged ---| lsr (box)     its client sends it again
//!   sent:      |---- written (table) ---|--- since, in the send log ----| lsw (box)     nobody has heard of it
//! ```
//! The application has gone by both, and its snapshot says so: there the connection goes on.

use contbox::BoxImage;
use introspect::linux::tcp::{Segment, TcpSocket};

use crate::{session::Loss, snapshot::distance};

/// Brings a connection up to what the snapshot of its box has gone by. `kept_bytes` is how much of its output the box
/// keeps: what is older than that has been acknowledged, or it would not have been written over.
///
/// # Errors
/// [`Loss::Damaged`] if no stop explains the difference.
pub fn catch_up(socket: &mut TcpSocket, image: &BoxImage, kept_bytes: u32) -> Result<(), Loss> {
    let read = ahead(image.base_read, socket.read_offset(), image.snapshot.lsr)?;
    catch_up_with_input(socket, read)?;
    let written = ahead(image.base_written, socket.written_offset(), image.snapshot.lsw)?;
    catch_up_with_output(socket, written, kept_bytes)
}

/// How far a snapshot is ahead of a socket that stands at `at` of a stream which began for it at `base`.
fn ahead(base: u64, at: u64, snapshot: u64) -> Result<u32, Loss> {
    let ahead = base.checked_add(at).map(|at| snapshot.saturating_sub(at));
    ahead.and_then(|ahead| u32::try_from(ahead).ok()).ok_or(Loss::Damaged("stream offset"))
}

fn catch_up_with_input(socket: &mut TcpSocket, read: u32) -> Result<(), Loss> {
    let known = read.min(u32::try_from(socket.receive_queue.len()).unwrap_or(u32::MAX));
    let unknown = read - known;
    // No client sends more than it was promised, nor anything behind its end.
    if unknown > socket.rcv_wnd || unknown > 0 && socket.fin_received {
        return Err(Loss::Damaged("count of received bytes"));
    }
    socket.receive_queue.drain(..known as usize);
    socket.copied_seq = socket.copied_seq.wrapping_add(read);
    // `rcv_wup` stays: up to there its client may believe to be acknowledged, and from there its promise counts.
    socket.rcv_nxt = socket.rcv_nxt.wrapping_add(unknown);
    socket.bytes_received = socket.bytes_received.wrapping_add(unknown.into());
    Ok(())
}

fn catch_up_with_output(socket: &mut TcpSocket, written: u32, kept_bytes: u32) -> Result<(), Loss> {
    if written > 0 && (socket.fin_queued || written > kept_bytes) {
        return Err(Loss::Damaged("count of written bytes"));
    }
    let end = socket.write_seq.wrapping_add(written);
    let waiting = distance(socket.snd_una, end).saturating_sub(socket.fin_queued.into());
    // A pool without send logs keeps nothing, and forgets nothing.
    let forgotten = if kept_bytes == 0 { 0 } else { waiting.saturating_sub(kept_bytes) };
    if written == 0 && forgotten == 0 {
        return Ok(());
    }
    socket.write_seq = end;
    socket.snd_una = socket.snd_una.wrapping_add(forgotten);
    socket.bytes_acked = socket.bytes_acked.wrapping_add(forgotten.into());
    let (seq, fin) = (socket.snd_una, socket.fin_queued);
    socket.send_queue = vec![Segment { seq, end_seq: end, bytes: Vec::new(), sent: true, fin }];
    Ok(())
}

#[cfg(test)]
mod tests {
    use contbox::Snapshot;
    use proptest::prelude::*;

    use super::*;
    use crate::session::{rebuildable, tests::socket};

    const KEPT: u32 = 64;

    fn image(lsr: u64, lsw: u64) -> BoxImage {
        let one = socket(0, 0, 0, 0, 0);
        let snapshot = Snapshot { lsr, lsw, lws: Vec::new() };
        BoxImage { local: one.local, peer: one.peer, base_read: 0, base_written: 0, snapshot, logged: Vec::new() }
    }

    fn caught_up(mut one: TcpSocket, lsr: u64, lsw: u64) -> Result<TcpSocket, Loss> {
        catch_up(&mut one, &image(lsr, lsw), KEPT).map(|()| one)
    }

    #[test]
    fn a_snapshot_that_is_behind_changes_nothing() {
        let one = socket(9, 10, 20, 5, 8);
        assert_eq!(caught_up(one.clone(), 5, 20), Ok(one.clone()));
        assert_eq!(caught_up(one.clone(), 1, 2), Ok(one));
    }

    #[test]
    fn input_that_a_snapshot_has_digested_is_not_taken_again() {
        let now = caught_up(socket(9, 10, 20, 5, 8), 7, 20).unwrap();
        assert_eq!((now.read_offset(), now.receive_queue), (7, vec![7]));
        // Four bytes more than had been acknowledged: the client sends them again, and they are known.
        let now = caught_up(socket(9, 10, 20, 5, 8), 12, 20).unwrap();
        assert_eq!((now.read_offset(), now.rcv_nxt, now.rcv_wup), (12, 9 + 12, 9 + 8));
        assert!(now.receive_queue.is_empty() && rebuildable(&now).is_ok());
    }

    #[test]
    fn output_that_a_snapshot_has_gone_by_waits_to_be_sent() {
        let now = caught_up(socket(9, 10, 20, 5, 8), 5, 50).unwrap();
        assert_eq!((now.written_offset(), now.snd_una, now.send_queue[0].len()), (50, 19, 40));
        // More than is kept: what is older was acknowledged.
        let now = caught_up(socket(9, 10, 20, 5, 8), 5, 80).unwrap();
        assert_eq!((now.written_offset(), now.send_queue[0].len()), (80, KEPT as usize));
    }

    #[test]
    fn what_no_stop_explains_is_lost() {
        let ended = |fin_received, fin_queued| TcpSocket { fin_received, fin_queued, ..socket(9, 20, 20, 8, 8) };
        for (one, lsr, lsw) in [
            (socket(9, 10, 20, 5, 8), 8 + 1001, 20),
            (socket(9, 10, 20, 5, 8), u64::MAX, 20),
            (socket(9, 10, 20, 5, 8), 5, 20 + u64::from(KEPT) + 1),
            (ended(true, false), 30, 20),
            (ended(false, true), 8, 40),
        ] {
            assert!(matches!(caught_up(one, lsr, lsw), Err(Loss::Damaged(_))), "{lsr} {lsw}");
        }
    }

    proptest! {
        /// However far behind the numbers are: both streams go on where the snapshot or the socket stands, whichever
        /// is further, and what is said of the queues fits the numbers.
        #[test]
        fn both_streams_go_on_where_the_further_one_stands(
            isn: u32, acked in 0..40u32, sent in 0..20u32, copied in 0..40u32, unread in 0..20u32,
            lsr in 0..100u64, lsw in 0..=u64::from(KEPT),
        ) {
            let one = socket(isn, acked, acked + sent, copied, copied + unread);
            let (read, written) = (one.read_offset(), one.written_offset());
            let now = caught_up(one, lsr, lsw).unwrap();
            prop_assert_eq!(now.read_offset(), read.max(lsr));
            prop_assert_eq!(now.written_offset(), written.max(lsw));
            let waiting: usize = now.send_queue.iter().map(Segment::len).sum();
            prop_assert_eq!(distance(now.snd_una, now.write_seq) as usize, waiting);
            prop_assert!(rebuildable(&now).is_ok());
        }
    }
}
