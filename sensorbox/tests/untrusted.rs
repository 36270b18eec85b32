//! Whatever a target puts into its Sensor Box, the reader returns; nothing it did not hold becomes a reading.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use remote_memory::image::Image;
use remote_memory::{Region, RemoteKey, Rights};
use sensorbox::layout::{RECORD_BYTES, RECORD_WORDS, record};
use sensorbox::{Class, Damage, Description, FetchError, Malformed, Name, Producer, SensorBox, fetch_sb};

const CAPACITY: usize = 15;

fn description(name: &str, class: Class, cpu: Option<u32>) -> Description {
    Description { name: Name::new(name).unwrap(), class, cpu, limit: 10, period_ns: 5_000_000, floor: false }
}

fn sample() -> Vec<u8> {
    let words: Vec<AtomicU64> = (0..(CAPACITY + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
    let producer = Producer::create(&words, *b"0123456789abcdef").unwrap();
    for cpu in 0..2 {
        let tick = producer.new_sensor(&description("tick", Class::Progress, Some(cpu))).unwrap();
        tick.advance(100 + u64::from(cpu));
    }
    producer.new_sensor(&description("processes", Class::Level, None)).unwrap().set_sensor_value(72);
    producer.new_sensor(&description("gone", Class::Pressure, None)).unwrap().retire();
    words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
}

fn word_of(record_index: usize, word: usize) -> usize {
    record_index * RECORD_BYTES + word * 8
}

#[test]
fn living_sensors_are_read_with_their_values_and_retired_ones_are_not() {
    let parsed = SensorBox::parse(&sample()).unwrap();
    let seen: Vec<_> = parsed.readings.iter().map(|reading| (reading.id, reading.value)).collect();
    assert_eq!(seen, [(1, 100), (2, 101), (3, 72)]);
    assert_eq!(parsed.readings[1].description, description("tick", Class::Progress, Some(1)));
    assert_eq!(parsed.named("tick").count(), 2);
    assert_eq!(parsed.header.boot_id, *b"0123456789abcdef");
    assert_eq!(parsed.damage, []);
}

#[test]
fn a_damaged_record_does_not_hide_the_others() {
    let mut bytes = sample();
    bytes[word_of(1, record::LIMIT)] ^= 1;
    bytes[word_of(3, record::STATE_AND_ID)] ^= 1;
    bytes.copy_within(word_of(2, 0)..word_of(3, 0), word_of(9, 0));
    let parsed = SensorBox::parse(&bytes).unwrap();
    assert_eq!(parsed.readings.len(), 1);
    assert!(matches!(parsed.damage[0], Damage::Description { id: 1 }));
    assert!(matches!(parsed.damage[1], Damage::State { id: 3, .. }));
    assert_eq!(parsed.damage[2], Damage::Misplaced { id: 9, claimed: 2 });
}

#[test]
fn every_header_byte_is_guarded() {
    for at in 0..RECORD_BYTES {
        let mut bytes = sample();
        bytes[at] ^= 0x10;
        assert!(SensorBox::parse(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn zeroed_memory_and_a_box_cut_short_are_no_box() {
    assert_eq!(SensorBox::parse(&[0; 4096]), Err(Malformed::Magic { found: 0 }));
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(matches!(SensorBox::parse(&bytes[..len]), Err(Malformed::Truncated { .. })), "{len} bytes");
    }
}

#[test]
fn a_box_is_fetched_in_one_remote_read() {
    let mut image = Image::new();
    image.write_at(0x3000, &[0; 4096]);
    image.write_at(0x3000, &sample());
    let key = RemoteKey::new(0);
    let region = Region { name: "sb".into(), key, base: 0x3000, len: sample().len() as u64, rights: Rights::READ };
    let fetched = fetch_sb(&mut image, &region, &mut vec![]).unwrap();
    assert_eq!(fetched.readings.len(), 3);
    let elsewhere = Region { base: 0x9000_0000, ..region };
    assert!(matches!(fetch_sb(&mut image, &elsewhere, &mut vec![]), Err(FetchError::Access(_))));
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_box_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(SensorBox::parse(&bytes).is_err());
    }

    #[test]
    fn random_records_behind_a_good_header_hold_no_sensor(
        noise in proptest::collection::vec(any::<u8>(), CAPACITY * RECORD_BYTES),
    ) {
        let mut bytes = sample();
        bytes[RECORD_BYTES..].copy_from_slice(&noise);
        let parsed = SensorBox::parse(&bytes).unwrap();
        prop_assert!(parsed.readings.is_empty());
    }

    #[test]
    fn one_flipped_bit_changes_no_description(at in RECORD_BYTES..RECORD_BYTES * 4, bit in 0..8) {
        let mut bytes = sample();
        bytes[at] ^= 1u8 << bit;
        let (before, after) = (SensorBox::parse(&sample()).unwrap(), SensorBox::parse(&bytes).unwrap());
        for reading in after.readings {
            prop_assert!(before.readings.iter().any(|known| known.description == reading.description));
        }
    }
}
