//! The Sensor Box as a sampler reads it: the values of the planned sensors, out of few READs.
//!
//! A box is taken apart once, to make a plan; from then on only the header and the planned records are fetched, those
//! that lie close together in one READ, all in one round trip. A record that no
//! longer holds what was planned (the agent made other sensors) asks for a new plan; a damaged one only goes without a
//! value.

use std::ops::Range;

use remote_memory::{Read, Region, RemoteAddr, RemoteRead};
use sensorbox::layout::{RECORD_BYTES, RECORD_WORDS, State, record, state_and_id};
use sensorbox::{Class as BoxClass, Damage, Description, FetchError, Header, Reading, SensorBox, fetch_sb, reader};

use super::Glance;
use crate::detect::{Class, DescribedSensor};

/// Bytes between two records that are fetched along rather than asked for in a READ of their own: a request and a
/// response header cost about as much.
const GAP_BYTES_MAX: usize = 256;

/// Reads one target's box over and over.
#[derive(Debug)]
pub struct BoxReader {
    region: Region,
    buffer: Vec<u8>,
    planned: Vec<Planned>,
    /// Stretches of the box that hold the header and what is planned, ascending and apart.
    stretches: Vec<Range<usize>>,
}

impl BoxReader {
    /// Reads the box in `region` and says what sensors live there.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn open(memory: &mut dyn RemoteRead, region: Region) -> Result<(Self, Opened), FetchError> {
        let mut buffer = Vec::new();
        let found = fetch_sb(memory, &region, &mut buffer)?;
        buffer.truncate(usize::try_from(found.header.len_bytes()).unwrap_or(buffer.len()));
        let described = found.readings.iter().map(|reading| described(&reading.description)).collect();
        let opened = Opened { identity: identity(&found.header), described, damaged: found.damage.len(), stale: None };
        let planned = records(&found);
        Ok((Self { region, buffer, planned, stretches: Vec::new() }, opened))
    }

    /// Keeps the sensors at `places` of [`Opened::described`]; values come in that order.
    pub fn keep(&mut self, places: &[usize]) {
        self.planned = places.iter().map(|place| self.planned[*place]).collect();
        self.stretches = stretches(self.planned.iter().map(|planned| planned.id), self.buffer.len());
    }

    /// Bytes of the box.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The READs of one sample: from where, `None` if that is no longer in the region, and where in the box. `whole` is
    /// everything, for [`BoxReader::differs_from`].
    pub(super) fn reads(&self, whole: bool) -> impl Iterator<Item = (Option<RemoteAddr>, Range<usize>)> {
        let stretches = chosen(&self.stretches, self.buffer.len(), whole);
        stretches.map(|stretch| (self.region.at(stretch.start as u64, stretch.len() as u64), stretch))
    }

    /// Adds the READs of one sample, which bring the bytes into this reader's buffer; false if they leave the region.
    pub(super) fn ask<'b>(&'b mut self, batch: &mut Vec<Read<'b>>, whole: bool) -> bool {
        let Self { region, buffer, stretches, .. } = self;
        let len = buffer.len();
        let (mut rest, mut passed) = (&mut buffer[..], 0);
        for stretch in chosen(stretches, len, whole) {
            let (_, from_here) = rest.split_at_mut(stretch.start - passed);
            let (into, behind) = from_here.split_at_mut(stretch.len());
            let Some(at) = region.at(stretch.start as u64, stretch.len() as u64) else { return false };
            batch.push(Read::new(at, into));
            (rest, passed) = (behind, stretch.end);
        }
        true
    }

    /// Takes in what has landed elsewhere.
    pub(super) fn land(&mut self, landing: &[u8], whole: bool) {
        let Self { buffer, stretches, .. } = self;
        for stretch in chosen(stretches, buffer.len(), whole) {
            buffer[stretch.clone()].copy_from_slice(&landing[stretch]);
        }
    }

    /// Adds the values of what was fetched to `values`, one for each sensor kept.
    pub(super) fn parse(&self, values: &mut Vec<Option<u64>>) -> Glance {
        let Ok(header) = Header::parse(&self.buffer) else { return Glance::Unreadable };
        let mut changed = header.len_bytes() != self.buffer.len() as u64;
        for planned in &self.planned {
            let record = words_of(&self.buffer, planned.id);
            values.push(match record.map(|words| planned.value(&words)) {
                Some(Ok(value)) => {
                    changed |= value.is_none();
                    value
                }
                Some(Err(_)) | None => None,
            });
        }
        Glance::Values { identity: identity(&header), changed }
    }

    /// Whether the bytes of the last whole look hold other sensors than those `opened`: new ones are found this way.
    pub(super) fn differs_from(&self, opened: &[DescribedSensor]) -> bool {
        let Ok(now) = SensorBox::parse(&self.buffer) else { return false };
        // Damage hides sensors for a moment; a plan is not thrown away for that.
        now.damage.is_empty()
            && !now.readings.iter().map(|reading| described(&reading.description)).eq(opened.iter().cloned())
    }
}

/// What a box was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Changes when the target restarted.
    pub identity: u64,
    /// Its sensors.
    pub described: Vec<DescribedSensor>,
    /// Records that did not hold.
    pub damaged: usize,
    /// A survey of that number is of an earlier life of the kernel; its sensors are not among those described.
    pub stale: Option<u64>,
}

/// The stretches of a sample.
fn chosen(stretches: &[Range<usize>], len: usize, whole: bool) -> impl Iterator<Item = Range<usize>> {
    let some: &[Range<usize>] = if whole { &[] } else { stretches };
    some.iter().cloned().chain(whole.then_some(0..len))
}

/// The stretches that hold the header and the records `ids`, joined where the gap costs less than another READ.
fn stretches(ids: impl Iterator<Item = u32>, len: usize) -> Vec<Range<usize>> {
    let mut records: Vec<usize> = ids.filter_map(|id| usize::try_from(id).ok()).collect();
    records.push(0);
    records.sort_unstable();
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for record in records {
        let (start, end) = (record * RECORD_BYTES, ((record + 1) * RECORD_BYTES).min(len));
        match stretches.last_mut() {
            Some(last) if start <= last.end + GAP_BYTES_MAX => last.end = last.end.max(end),
            _ => stretches.push(start..end),
        }
    }
    stretches
}

/// A sensor that is kept.
#[derive(Clone, Copy, Debug)]
struct Planned {
    id: u32,
    description: Description,
    /// Its record while it lives, with a value of zero: nearly every look finds just these words again.
    words: [u64; RECORD_WORDS],
}

impl Planned {
    /// The value in `words`, or `None` if they hold another sensor or none.
    ///
    /// # Errors
    /// [`Damage`].
    fn value(&self, words: &[u64; RECORD_WORDS]) -> Result<Option<u64>, Damage> {
        let is_as_planned = words.iter().zip(&self.words).enumerate().all(|(at, (found, planned))| match at {
            record::VALUE => true,
            _ => found == planned,
        });
        if is_as_planned {
            return Ok(Some(words[record::VALUE]));
        }
        let reading = reader::parse_record(self.id, words)?;
        Ok(reading.filter(|reading| reading.description == self.description).map(|reading| reading.value))
    }
}

fn records(found: &SensorBox) -> Vec<Planned> {
    let planned = |reading: &Reading| {
        let Reading { id, description, .. } = *reading;
        let mut words = description.words(id);
        words[record::STATE_AND_ID] = state_and_id(State::LIVE, id);
        Planned { id, description, words }
    };
    found.readings.iter().map(planned).collect()
}

/// `tick` of processor 1 is `tick.cpu1` in rules, journals and metrics.
fn described(description: &Description) -> DescribedSensor {
    let name = match description.cpu {
        Some(cpu) => format!("{}.cpu{cpu}", description.name),
        None => description.name.to_string(),
    };
    let class = match description.class {
        BoxClass::Progress => Class::Progress,
        BoxClass::Level => Class::Level,
        BoxClass::Pressure => Class::Pressure,
    };
    let Description { limit, period_ns, floor, .. } = *description;
    DescribedSensor { name, class, limit, period_ns, floor, sleep: None }
}

/// Folds the boot id into one word for journals and comparisons.
fn identity(header: &Header) -> u64 {
    let id = u128::from_le_bytes(header.boot_id);
    (id as u64) ^ ((id >> 64) as u64).rotate_left(1)
}

fn words_of(bytes: &[u8], id: u32) -> Option<[u64; RECORD_WORDS]> {
    let start = usize::try_from(id).ok()?.checked_mul(RECORD_BYTES)?;
    let record = bytes.get(start..start.checked_add(RECORD_BYTES)?)?;
    let mut words = [0; RECORD_WORDS];
    for (word, bytes) in words.iter_mut().zip(record.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use remote_memory::image::Image;
    use remote_memory::{RemoteKey, Rights};
    use sensorbox::Producer;
    use std::sync::atomic::{AtomicU64, Ordering};

    const RECORDS: usize = 8;

    /// The bytes of a box with a sensor in every record.
    fn whole_box() -> Vec<u8> {
        let words: Vec<_> = (0..(RECORDS + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let producer = Producer::create(&words, [7; 16]).unwrap();
        for cpu in 0..RECORDS as u32 {
            let name = sensorbox::Name::new("tick").unwrap();
            let description =
                Description { name, class: BoxClass::Progress, cpu: Some(cpu), limit: 1, period_ns: 0, floor: false };
            producer.new_sensor(&description).unwrap().set_sensor_value(u64::from(cpu) + 10);
        }
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    fn look(reader: &mut BoxReader, memory: &mut Image, values: &mut Vec<Option<u64>>, whole: bool) -> Glance {
        values.clear();
        let mut batch = Vec::new();
        assert!(reader.ask(&mut batch, whole));
        memory.read(&mut batch).unwrap();
        drop(batch);
        reader.parse(values)
    }

    fn opened(bytes: &[u8], len: u64) -> (Image, Result<(BoxReader, Opened), FetchError>) {
        let mut image = Image::new();
        image.write_at(0, bytes);
        let region =
            Region { name: super::super::REGION.into(), key: RemoteKey::new(1), base: 0, len, rights: Rights::READ };
        let found = BoxReader::open(&mut image, region);
        (image, found)
    }

    #[test]
    fn values_come_in_the_order_of_the_sensors_kept() {
        let bytes = whole_box();
        let (mut image, found) = opened(&bytes, bytes.len() as u64);
        let (mut reader, opened) = found.unwrap();
        assert_eq!(opened.described[1].name, "tick.cpu1");
        reader.keep(&[5, 0]);
        let mut values = Vec::new();
        for whole in [false, true] {
            let glance = look(&mut reader, &mut image, &mut values, whole);
            assert_eq!(glance, Glance::Values { identity: opened.identity, changed: false });
            assert_eq!(values, [Some(15), Some(10)]);
        }
        assert!(!reader.differs_from(&opened.described));
    }

    proptest! {
        #[test]
        fn any_memory_is_looked_at_without_harm(
            noise in prop::collection::vec((0..(RECORDS + 1) * RECORD_BYTES, any::<u8>()), 0..64),
            later in prop::collection::vec((0..(RECORDS + 1) * RECORD_BYTES, any::<u8>()), 0..64),
            len in 0..4096u64,
        ) {
            let mut bytes = whole_box();
            noise.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            let (mut image, found) = opened(&bytes, len);
            if let Ok((mut reader, opened)) = found {
                let places: Vec<_> = (0..opened.described.len()).collect();
                reader.keep(&places);
                later.iter().for_each(|(at, byte)| image.write_at(*at as u64, &[*byte]));
                let mut values = Vec::new();
                if let Glance::Values { .. } = look(&mut reader, &mut image, &mut values, false) {
                    prop_assert_eq!(values.len(), places.len());
                }
                look(&mut reader, &mut image, &mut values, true);
                reader.differs_from(&opened.described);
            }
        }
    }

    #[test]
    fn records_that_lie_close_are_fetched_together_and_others_are_not() {
        let of = |ids: &[u32]| {
            let found = stretches(ids.iter().copied(), 256 * RECORD_BYTES);
            found.into_iter().map(|stretch| (stretch.start, stretch.end)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [(0, 64)]);
        assert_eq!(of(&[2, 1]), [(0, 192)]);
        assert_eq!(of(&[1, 65, 66, 193]), [(0, 128), (4160, 4288), (12352, 12416)]);
        assert_eq!(of(&[5]), [(0, 384)], "256 bytes of gap are fetched along");
        assert_eq!(of(&[6]), [(0, 64), (384, 448)]);
    }
}
