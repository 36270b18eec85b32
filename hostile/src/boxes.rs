//! Boxes out of the memory of a machine that is dead, mad or both.
//!
//! An input is a list of patches on good boxes, place (u16) and byte; or, if it begins with 0xff, a whole box.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use contbox::channel::{ChannelEnd, Descriptors, EndImage, Plan, joint, read_end};
use contbox::reader::{parse_pool, read_box};
use contbox::{ContinuationBox, Geometry, Opening, Pool};
use sensorbox::{Class, Description, Header, Name, Producer, SensorBox};

use crate::program::Program;

const RAW: u8 = 0xff;
const SLOTS: u32 = 3;
/// Of the channel whose end is in the last slot.
const NAME: u64 = 0x00c4_a11e;
/// Input that the kernel had handed to each application.
const COPIED: u64 = 40;

pub(crate) static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_fd, pool) = Pool::memfd(Geometry::with(SLOTS, 256, 128), 7).expect("a pool in memory");
    for (index, peer) in ["10.0.0.1:1000", "[fd77::4]:1001"].into_iter().enumerate() {
        let local = if index == 0 { "10.0.0.2:80" } else { "[fd77::2]:80" };
        let opening = Opening::fresh(1, local.parse().expect("an address"), peer.parse().expect("an address"));
        let slot = pool.slot(index as u32).expect("a slot");
        let mut boxed = ContinuationBox::create(slot.clone(), &opening).expect("a box");
        slot.log_fill(0, &[b'i'; COPIED as usize]);
        boxed.note_received(COPIED as usize);
        // One in the front of its slot, one in the body.
        boxed.export_state(&b"state".repeat(1 + 30 * index), 20, 100).expect("an export");
    }
    let [wire, _] = Descriptors::pipes().expect("two pipes");
    let mut end = EndImage { words: b"words".to_vec(), pending: b"held back".to_vec(), ..EndImage::default() };
    (end.identity.name, end.is_nondeterministic, end.released) = (NAME, true, 100);
    let input = Plan { give_reader: vec![b'c'; COPIED as usize], ..Plan::default() };
    let slot = pool.slot(2).expect("a slot");
    ChannelEnd::resume(slot, 1, wire, &end, &input, 0).expect("a box");
    pool.image()
});

/// `good` with the patches of `input`, or the box that it is.
fn patched(good: &[u8], input: &[u8]) -> Vec<u8> {
    if let Some(raw) = input.strip_prefix(&[RAW]) {
        return raw.to_vec();
    }
    let mut bytes = good.to_vec();
    let mut program = Program::new(input);
    while !program.is_over() {
        let (place, byte) = (program.short(), program.byte());
        let place = usize::from(place) % bytes.len();
        bytes[place] = byte;
    }
    bytes
}

/// A pool and its sessions: whatever the bytes, what is taken out lies within the pool's own limits.
pub(crate) fn contbox(input: &[u8]) -> bool {
    let bytes = patched(&POOL, input);
    let Ok(info) = parse_pool(&bytes, bytes.len() as u64) else { return false };
    let geometry = info.geometry;
    assert!(geometry.is_sound() && geometry.length_bytes() <= bytes.len() as u64);
    let mut sessions = 0;
    for slot in 0..geometry.slots.min(SLOTS) {
        for copied in [0, COPIED, 1 << 40, u64::MAX] {
            let Ok(image) = read_box(&bytes, &geometry, slot, copied) else { continue };
            assert!(image.snapshot.lws.len() <= geometry.lws_bytes as usize);
            assert!(image.logged.len() <= geometry.log_bytes as usize);
            assert_eq!(image.snapshot.lsr + image.logged.len() as u64, copied, "input is missing or doubled");
            let _ = image.discard(0);
            if let Ok((channels, words)) = joint::split(&image.snapshot.lws) {
                assert!(channels.len() <= joint::CHANNELS_MAX && words.len() <= image.snapshot.lws.len());
            }
            sessions += 1;
        }
        let Ok(end) = read_end(&bytes, &geometry, slot) else { continue };
        assert!(end.logged.len() <= geometry.log_bytes as usize);
        assert!(end.pending.len() + end.words.len() <= geometry.lws_bytes as usize);
        // Whoever is at the other end: what is given lies in log and kernel.
        let mut other = end.clone();
        other.identity.side ^= 1;
        if let Ok(plan) = Plan::of(&end, &other, &[input.to_vec()]) {
            assert!(plan.give_reader.len() <= end.logged.len() + input.len(), "bytes out of nowhere");
        }
        sessions += 1;
    }
    sessions > 0
}

static SENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words: Vec<AtomicU64> = (0..8 * 6).map(|_| AtomicU64::new(0)).collect();
    let producer = Producer::create(&words, [3; 16]).expect("a box for five sensors");
    for (name, class) in [("tick", Class::Progress), ("load", Class::Level)] {
        let name = Name::new(name).expect("a short name");
        let description = Description { name, class, cpu: Some(0), limit: 9, period_ns: 4_000_000, floor: false };
        producer.new_sensor(&description).expect("room for a sensor");
    }
    words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
});

/// A box of sensors: each record is a sensor, free or damaged, and none is two of these.
pub(crate) fn sensorbox(input: &[u8]) -> bool {
    let bytes = patched(&SENSORS, input);
    let header = Header::parse(&bytes);
    let Ok(found) = SensorBox::parse(&bytes) else { return false };
    let header = header.expect("a box has a header");
    assert!(header.len_bytes() <= bytes.len() as u64);
    assert!(found.readings.len() + found.damage.len() <= header.capacity as usize);
    assert!(found.readings.iter().all(|reading| (1..=header.capacity).contains(&reading.id)));
    !found.readings.is_empty()
}
