//! The rules by which a channel is put together again, case by case; and that no bytes make them panic.

#![allow(clippy::single_range_in_vec_init, reason = "lists of one stretch are meant")]

use contbox::Geometry;
use contbox::channel::frame::encode;
use contbox::channel::{EndImage, Identity, Loss, Plan, read_end};
use contbox::shared::Pool;
use proptest::prelude::*;

const NAME: u64 = 77;
const GEOMETRY: Geometry = Geometry::with(2, 256, 8192);

fn byte(at: u64) -> u8 {
    (at * 7) as u8
}

fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

fn end(side: u32) -> EndImage {
    EndImage { identity: Identity { name: NAME, side, ..Identity::default() }, ..EndImage::default() }
}

/// A writer that had produced `w`, a reader that had digested `r` and read up to `logged`, frames in the kernel.
fn plan(w: u64, r: u64, logged: u64, frames: &[std::ops::Range<u64>]) -> Result<Plan, Loss> {
    let (reader, writer) = (end(1), end(0));
    let chunks: Vec<_> =
        frames.iter().map(|range| encode(writer.identity.output(), range.start, &bytes(range.clone()))).collect();
    let reader = EndImage { digested: r, logged: bytes(r..logged), ..reader };
    Plan::of(&reader, &EndImage { released: w, ..writer }, &chunks)
}

fn gives(range: std::ops::Range<u64>) -> Plan {
    Plan { from: range.start, give_reader: bytes(range), discard_from_writer: 0 }
}

#[test]
fn a_reader_behind_gets_what_log_and_kernel_have_up_to_the_writers_snapshot() {
    assert_eq!(plan(100, 40, 100, &[]), Ok(gives(40..100)), "all in the log");
    assert_eq!(plan(100, 40, 60, &[60..80, 80..130]), Ok(gives(40..100)), "what lies beyond is written again");
    assert_eq!(plan(100, 40, 60, &[40..60, 60..80, 80..100]), Ok(gives(40..100)), "copied and not yet consumed");
    assert_eq!(plan(100, 40, 40, &[20..70, 70..100]), Ok(gives(40..100)), "digested in part");
    assert_eq!(plan(40, 40, 90, &[90..95]), Ok(gives(40..40)), "both stand at one place");
}

#[test]
fn a_reader_ahead_gets_nothing_and_its_writer_speaks_to_nobody_until_there() {
    for frames in [&[][..], &[100..130]] {
        let expected = Plan { from: 100, give_reader: Vec::new(), discard_from_writer: 60 };
        assert_eq!(plan(40, 100, 100, frames), Ok(expected));
    }
}

#[test]
fn what_is_nowhere_is_a_loss_with_its_place() {
    assert_eq!(plan(100, 40, 60, &[]), Err(Loss::Missing { from: 60, to: 100 }));
    assert_eq!(plan(100, 40, 60, &[60..80, 81..100]), Err(Loss::Missing { from: 80, to: 100 }));
    // Beyond what the writer leaves behind nothing is needed.
    assert_eq!(plan(80, 40, 60, &[60..80, 81..100]), Ok(gives(40..80)));
}

#[test]
fn chunks_that_are_no_frames_or_of_another_channel_are_passed_over() {
    let (reader, writer) = (EndImage { digested: 0, ..end(1) }, EndImage { released: 10, ..end(0) });
    let frame = encode(writer.identity.output(), 0, &bytes(0..10));
    let other = encode(reader.identity.output(), 0, &[9; 10]);
    let all = |chunks: &[Vec<u8>]| Plan::of(&reader, &writer, chunks);
    assert_eq!(all(&[vec![0x5a; 100], other, frame.clone()]), Ok(gives(0..10)));
    assert_eq!(all(&[[frame.clone(), encode(writer.identity.output(), 10, &[1])].concat()]), Ok(gives(0..10)));
    assert_eq!(all(&[frame[..frame.len() - 1].to_vec()]), Err(Loss::Missing { from: 0, to: 10 }));
    assert!(matches!(Plan::of(&writer, &writer, &[]), Err(Loss::OtherChannel { .. })));
}

#[test]
fn log_and_kernel_must_agree() {
    let (reader, writer) = (end(1), EndImage { released: 20, ..end(0) });
    let reader = EndImage { logged: bytes(0..15), ..reader };
    let mut wrong = bytes(10..20);
    wrong[3] ^= 1;
    let chunk = encode(writer.identity.output(), 10, &wrong);
    assert_eq!(Plan::of(&reader, &writer, &[chunk]), Err(Loss::Contradiction { at: 13 }));
}

#[test]
fn a_writer_in_an_interval_of_chance_was_seen_no_further_than_its_snapshot_holds() {
    let writer = EndImage { released: 20, pending: bytes(20..30), is_nondeterministic: true, ..end(0) };
    let reader = |digested| EndImage { digested, ..end(1) };
    assert_eq!(Plan::of(&reader(30), &writer, &[]).unwrap().discard_from_writer, 10);
    assert_eq!(Plan::of(&reader(31), &writer, &[]), Err(Loss::SeenTooEarly { read: 31, visible: 30 }));
    let writer = EndImage { is_nondeterministic: false, ..writer };
    assert_eq!(Plan::of(&reader(31), &writer, &[]).unwrap().discard_from_writer, 11);
}

#[test]
fn what_does_not_fit_into_the_new_log_waits_in_the_new_kernel_buffer() {
    let plan = gives(100..9000);
    let (logged, frames) = plan.split(4096, 5);
    assert_eq!((logged, frames.len()), (&plan.give_reader[..4096], 2));
    assert_eq!(frames[0], encode(5, 4196, &bytes(4196..4196 + 4064)));
    assert_eq!(frames[1], encode(5, 8260, &bytes(8260..9000)));
    assert_eq!(plan.split(1 << 20, 5), (&plan.give_reader[..], Vec::new()));
}

#[test]
fn a_record_that_another_one_is_ahead_of_is_brought_there() {
    let behind = EndImage { digested: 10, released: 50, logged: bytes(10..40), ..end(0) };
    let brought = behind.clone().at(25, 60).unwrap();
    assert_eq!((brought.digested, brought.released, brought.logged), (25, 60, bytes(25..40)));
    assert_eq!(behind.clone().at(9, 60), None);
    assert_eq!(behind.clone().at(41, 60), None, "digested what was never read");
    assert_eq!(EndImage { is_nondeterministic: true, ..behind }.at(25, 60), None);
}

proptest! {
    #[test]
    fn no_bytes_of_a_slot_or_a_kernel_buffer_make_a_panic(
        patches in proptest::collection::vec((0usize..512, any::<u8>()), 0..40),
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4),
        numbers in any::<[u64; 4]>(),
    ) {
        let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
        let mut image = pool.image();
        for (at, value) in patches {
            image[GEOMETRY.front(0).start as usize + at] = value;
        }
        // Whatever else is there, let it be taken for one end.
        image[GEOMETRY.front(0).start as usize..][..4].copy_from_slice(&0xc4a2_0b0bu32.to_le_bytes());
        if let Ok(end) = read_end(&image, &GEOMETRY, 0) {
            prop_assert!(end.logged.len() <= GEOMETRY.log_bytes as usize);
            let _ = Plan::of(&end, &end, &chunks);
        }
        let [digested, released, more, fewer] = numbers;
        let reader = EndImage { digested, logged: vec![0; (more % 100) as usize], ..end(1) };
        let writer = EndImage { released, pending: vec![0; (fewer % 9) as usize], ..end(0) };
        let _ = Plan::of(&reader, &writer, &chunks);
    }
}
