//! Makes sensors in a box and moves their values.
//!
//! One process makes sensors; values may be moved by anybody who can reach the word, an eBPF program included. A
//! record is made in this order: claimed state; everything else; live state with release ordering. A reader that
//! comes between sees no sensor. Because remote reads promise no order inside one read, the record's checksum and
//! not the order is what the reader relies on.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{
    CAPACITY_MAX, Description, RECORD_WORDS, State, box_bytes, header_words, high, low, record, state_and_id,
};
use crate::reader::{Header, Malformed};

/// Why a sensor or a box could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// Every record is in use.
    #[error("the sensor box is full: {capacity} sensors")]
    Full {
        /// Records of the box.
        capacity: u32,
    },
    /// No record has this id; ids are `1..=capacity`.
    #[error("no record {id} in a sensor box for {capacity} sensors")]
    NoRecord {
        /// What was asked for.
        id: u32,
        /// Records of the box.
        capacity: u32,
    },
    /// The memory is no whole box.
    #[error("{words} words hold no sensor box of one to {CAPACITY_MAX} sensors")]
    Memory {
        /// Its length.
        words: usize,
    },
    /// The memory holds no box, or a damaged one.
    #[error("the memory holds no sensor box: {0}")]
    Malformed(#[from] Malformed),
}

/// A box that this process makes sensors in.
#[derive(Clone, Copy, Debug)]
pub struct Producer<'a> {
    records: &'a [AtomicU64],
    capacity: u32,
}

impl<'a> Producer<'a> {
    /// Makes an empty box of all of `words`. Sensors that were there are gone.
    ///
    /// # Errors
    /// [`ProducerError::Memory`].
    pub fn create(words: &'a [AtomicU64], boot_id: [u8; 16]) -> Result<Self, ProducerError> {
        let producer = Self::over(words)?;
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        for (word, value) in words.iter().zip(header_words(producer.capacity, boot_id)) {
            word.store(value, Ordering::Release);
        }
        Ok(producer)
    }

    /// Opens the box that is in `words`, as an earlier process of the same machine left it.
    ///
    /// # Errors
    /// [`ProducerError::Malformed`] if there is none, [`ProducerError::Memory`] if it has another length.
    pub fn open(words: &'a [AtomicU64]) -> Result<Self, ProducerError> {
        let producer = Self::over(words)?;
        let mut bytes = [0; RECORD_WORDS * 8];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let header = Header::parse(&bytes)?;
        if header.capacity != producer.capacity {
            return Err(ProducerError::Memory { words: words.len() });
        }
        Ok(producer)
    }

    fn over(words: &'a [AtomicU64]) -> Result<Self, ProducerError> {
        let wrong = ProducerError::Memory { words: words.len() };
        let capacity = u32::try_from((words.len() / RECORD_WORDS).checked_sub(1).ok_or(wrong)?).map_err(|_| wrong)?;
        let whole = words.len().is_multiple_of(RECORD_WORDS) && (1..=CAPACITY_MAX).contains(&capacity);
        whole.then_some(Self { records: words, capacity }).ok_or(wrong)
    }

    /// Bytes of the box.
    pub fn len_bytes(&self) -> u64 {
        box_bytes(self.capacity)
    }

    /// Makes a sensor in the first free record. If the box holds a sensor of that name and processor already, an
    /// earlier process left it: it gets the new description and keeps its value.
    ///
    /// # Errors
    /// [`ProducerError::Full`].
    pub fn new_sensor(&self, description: &Description) -> Result<Sensor<'a>, ProducerError> {
        let same = |id: &u32| {
            self.description(*id).is_some_and(|old| (old.name, old.cpu) == (description.name, description.cpu))
        };
        let id = (1..=self.capacity)
            .find(same)
            .or_else(|| (1..=self.capacity).find(|id| !self.is_live(*id)))
            .ok_or(ProducerError::Full { capacity: self.capacity })?;
        self.new_sensor_at(id, description)
    }

    /// Makes a sensor in the record that eBPF programs know by number. A living sensor there keeps its value.
    ///
    /// # Errors
    /// [`ProducerError::NoRecord`].
    pub fn new_sensor_at(&self, id: u32, description: &Description) -> Result<Sensor<'a>, ProducerError> {
        let record = self.record(id).ok_or(ProducerError::NoRecord { id, capacity: self.capacity })?;
        let sensor = Sensor { record, id };
        if self.description(id) == Some(*description) {
            return Ok(sensor);
        }
        let was_live = self.is_live(id);
        for (index, value) in description.words(id).into_iter().enumerate() {
            // The value of a living sensor is its producer's, who may be moving it right now.
            if index != record::VALUE || !was_live {
                record[index].store(value, Ordering::Release);
            }
        }
        record[record::STATE_AND_ID].store(state_and_id(State::LIVE, id), Ordering::Release);
        Ok(sensor)
    }

    fn record(&self, id: u32) -> Option<&'a [AtomicU64; RECORD_WORDS]> {
        (1..=self.capacity).contains(&id).then_some(())?;
        self.records.get(id as usize * RECORD_WORDS..)?.first_chunk()
    }

    fn is_live(&self, id: u32) -> bool {
        let state = self.record(id).map(|record| record[record::STATE_AND_ID].load(Ordering::Acquire));
        state.is_some_and(|state| low(state) == State::LIVE && high(state) == id)
    }

    fn description(&self, id: u32) -> Option<Description> {
        self.is_live(id).then_some(())?;
        let record = self.record(id)?;
        Description::from_words(&core::array::from_fn(|index| record[index].load(Ordering::Relaxed)))
    }
}

/// A living sensor, from its producer's side.
#[derive(Clone, Copy, Debug)]
pub struct Sensor<'a> {
    record: &'a [AtomicU64; RECORD_WORDS],
    id: u32,
}

impl Sensor<'_> {
    /// The record's number in its box.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Shows `value`.
    pub fn set_sensor_value(&self, value: u64) {
        self.record[record::VALUE].store(value, Ordering::Relaxed);
    }

    /// Advances a counter.
    pub fn advance(&self, by: u64) {
        self.record[record::VALUE].fetch_add(by, Ordering::Relaxed);
    }

    /// What it shows.
    pub fn value(&self) -> u64 {
        self.record[record::VALUE].load(Ordering::Relaxed)
    }

    /// Takes the sensor out of the box.
    pub fn retire(self) {
        self.record[record::STATE_AND_ID].store(state_and_id(State::RETIRED, self.id), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Class, Name};

    fn memory(records: usize) -> Vec<AtomicU64> {
        (0..(records + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn level(name: &str) -> Description {
        let name = Name::new(name).unwrap();
        Description { name, class: Class::Level, cpu: None, limit: 9, period_ns: 0, floor: false }
    }

    #[test]
    fn a_restarted_producer_finds_its_sensors_with_their_values() {
        let words = memory(4);
        Producer::create(&words, [1; 16]).unwrap().new_sensor(&level("processes")).unwrap().set_sensor_value(42);
        let again = Producer::open(&words).unwrap();
        again.new_sensor(&level("other")).unwrap();
        let changed = Description { limit: 10, ..level("processes") };
        let sensor = again.new_sensor(&changed).unwrap();
        assert_eq!((sensor.id(), sensor.value()), (1, 42));
        assert_eq!(again.description(1), Some(changed));
    }

    #[test]
    fn a_full_box_says_so_and_a_retired_record_is_used_again() {
        let words = memory(2);
        let producer = Producer::create(&words, [1; 16]).unwrap();
        let first = producer.new_sensor(&level("a")).unwrap();
        first.set_sensor_value(5);
        producer.new_sensor(&level("b")).unwrap();
        assert_eq!(producer.new_sensor(&level("c")).unwrap_err(), ProducerError::Full { capacity: 2 });
        first.retire();
        let third = producer.new_sensor(&level("c")).unwrap();
        assert_eq!((third.id(), third.value()), (1, 0));
    }

    #[test]
    fn record_zero_and_records_past_the_end_are_refused() {
        let words = memory(2);
        let producer = Producer::create(&words, [1; 16]).unwrap();
        for id in [0, 3, u32::MAX] {
            let refused = producer.new_sensor_at(id, &level("a")).unwrap_err();
            assert_eq!(refused, ProducerError::NoRecord { id, capacity: 2 });
        }
    }

    #[test]
    fn memory_without_a_box_is_not_opened() {
        assert!(matches!(Producer::open(&memory(2)), Err(ProducerError::Malformed(_))));
        let words = memory(3);
        Producer::create(&words, [1; 16]).unwrap();
        assert!(matches!(Producer::open(&words[..3 * RECORD_WORDS]), Err(ProducerError::Memory { .. })));
        assert!(matches!(Producer::open(&words[..5]), Err(ProducerError::Memory { .. })));
    }
}
