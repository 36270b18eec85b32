//! Whatever lies in dead memory, the reader answers with a session or a reason, and reads inside the pool.

use contbox::layout::{self, Geometry};
use contbox::reader::{BadBox, BadPool, BoxHead, Snapshot, parse_pool, read_box};
use contbox::shared::Pool;
use contbox::{ContinuationBox, Opening};
use proptest::prelude::*;

const GEOMETRY: Geometry = Geometry::with(2, 256, 256);

/// A pool with one good session in slot 1: its image, and what it should read as at `copied` = 40.
fn good_pool() -> (Vec<u8>, Snapshot, Vec<u8>) {
    let (_fd, pool) = Pool::memfd(GEOMETRY, 9).unwrap();
    let snapshot = Snapshot { lsr: 10, lsw: 20, lws: b"state".to_vec() };
    let logged: Vec<u8> = (10..40).collect();
    let mut opening = Opening::fresh(3, "10.77.0.100:8080".parse().unwrap(), "10.77.0.4:4711".parse().unwrap());
    (opening.snapshot, opening.logged) = (snapshot.clone(), logged.clone());
    ContinuationBox::create(pool.slot(1).unwrap(), &opening).unwrap();
    (pool.image(), snapshot, logged)
}

#[test]
fn a_good_pool_reads_back() {
    let (image, snapshot, logged) = good_pool();
    let info = parse_pool(&image, image.len() as u64).unwrap();
    assert_eq!((info.pool, info.geometry), (9, GEOMETRY));
    let read = read_box(&image, &GEOMETRY, 1, 40).unwrap();
    assert_eq!((read.snapshot, read.logged), (snapshot, logged));
    assert_eq!(read_box(&image, &GEOMETRY, 0, 40).unwrap_err(), BadBox::NoSession { state: 0xf4ee_0b01 });
    assert!(matches!(read_box(&image, &GEOMETRY, 1, 9), Err(BadBox::LogGap { .. })));
    assert!(matches!(read_box(&image, &GEOMETRY, 1, 10 + 257), Err(BadBox::LogGap { .. })));
}

#[test]
fn a_pool_longer_than_its_region_is_refused() {
    let (image, ..) = good_pool();
    assert!(matches!(parse_pool(&image, image.len() as u64 - 1), Err(BadPool::Geometry(_))));
    assert!(matches!(parse_pool(&image[..10], 1 << 20), Err(BadPool::Truncated { .. })));
}

proptest! {
    #[test]
    fn one_damaged_byte_never_changes_a_session(at in 0usize..1 << 14, flip in 1u8..) {
        let (mut image, snapshot, logged) = good_pool();
        let at = at % image.len();
        image[at] ^= flip;
        if parse_pool(&image, image.len() as u64).is_err() {
            return Ok(());
        }
        let log_start = GEOMETRY.place(1, GEOMETRY.log_offset());
        let in_log = (log_start..GEOMETRY.body(1).end).contains(&(at as u64));
        if let Ok(read) = read_box(&image, &GEOMETRY, 1, 40) {
            prop_assert_eq!(read.peer, "10.77.0.4:4711".parse().unwrap());
            prop_assert_eq!(read.snapshot, snapshot);
            prop_assert!(in_log || read.logged == logged);
        }
    }

    #[test]
    fn garbage_slots_are_an_error_and_never_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 512..=512),
        copied in any::<u64>(),
        state in prop_oneof![Just(layout::SlotState::Open as u32), any::<u32>()],
        newest in any::<u64>(),
        forge_identity in any::<bool>(),
    ) {
        bytes[..4].copy_from_slice(&state.to_le_bytes());
        bytes[72..80].copy_from_slice(&newest.to_le_bytes());
        for (place, sequence) in [(128, newest & !1), (192, newest | 1)] {
            bytes[place..place + 8].copy_from_slice(&sequence.to_le_bytes());
            bytes[place + 26..place + 28].fill(0);
        }
        if forge_identity {
            let check = crc32fast::hash(&bytes[8..64]);
            bytes[64..68].copy_from_slice(&check.to_le_bytes());
        }
        if let Ok(head) = BoxHead::parse(1, &bytes)
            && let Ok(plan) = head.plan(&GEOMETRY, copied)
        {
            let body = GEOMETRY.body(1);
            let parts: Vec<Vec<u8>> = plan.ranges().map(|range| {
                assert!(body.start <= range.start && range.start <= range.end && range.end <= body.end);
                vec![0; (range.end - range.start) as usize]
            }).collect();
            let _ = plan.finish(&head, &parts);
            let _ = plan.finish(&head, &parts[..parts.len() - 1]);
        }
    }

    #[test]
    fn garbage_headers_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), region in any::<u64>()) {
        prop_assert!(parse_pool(&bytes, region).is_err());
    }
}
