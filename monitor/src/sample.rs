//! Sampling: one batch of READs of a target's Sensor Box, and the values of the planned sensors out of it.
//!
//! A box is taken apart once, to make a plan; from then on only the header and the planned records are fetched, those
//! that lie close together in one READ, all in one round trip. A record that no
//! longer holds what was planned (the agent made other sensors) asks for a new plan; a damaged one only goes without a
//! value.

use std::ops::Range;
use std::time::Duration;

use control::backdoor::{FenceState, FenceToken, LockHolder};
use link::LinkFailure;
use remote_memory::{AccessError, Completion, LinkError, Queue, Read, Region, RemoteRead, Request, Work};
use sensorbox::layout::{RECORD_BYTES, RECORD_WORDS, State, record, state_and_id};
use sensorbox::{Class as BoxClass, Damage, Description, FetchError, Header, Reading, SensorBox, fetch_sb, reader};

use crate::detect::{Class, DescribedSensor};

/// Name of the region that holds the Sensor Box.
pub const REGION: &str = "sb";

/// Bytes between two records that are fetched along rather than asked for in a READ of their own: a request and a
/// response header cost about as much.
const GAP_BYTES_MAX: usize = 256;

/// Reads of one sample that may be on their way at the same time: a plan of more scattered records is read by waiting.
const FLIGHT_READS_MAX: usize = 32;

/// The way to one target: its memory, and the fence.
pub trait Door {
    /// The region of its Sensor Box, as registered now.
    ///
    /// # Errors
    /// [`LinkFailure`]; one that [`LinkFailure::is_path`] says nothing about the target.
    fn region(&mut self) -> Result<Region, LinkFailure>;

    /// Its memory; `None` while there is no connection.
    fn memory(&mut self) -> Option<&mut dyn RemoteRead>;

    /// Its memory as a queue, to read many targets at once without waiting; `None` where that is not offered.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        None
    }

    /// How often something had to be sent again on its way so far: what a path that loses packets shows.
    fn repetitions(&self) -> u64 {
        0
    }

    /// Makes the connection anew after a read was given up: its late answers must not be taken for later ones'.
    fn renew(&mut self) {}

    /// Who holds it locked, if anybody does; `None` where there are no locks.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn lock_holder(&mut self) -> Result<Option<LockHolder>, LinkFailure> {
        Ok(None)
    }

    /// Stops it. A fence that stands under the same `claim` is answered again.
    ///
    /// # Errors
    /// [`LinkFailure`]; after a lost answer it may be asked again.
    fn fence(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure>;

    /// Whether the fence of `token` stands.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn stands(&mut self, token: &FenceToken) -> Result<bool, LinkFailure> {
        Ok(self.fence_state(token)? != FenceState::Ended)
    }

    /// How the fence of `token` stands.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    fn fence_state(&mut self, token: &FenceToken) -> Result<FenceState, LinkFailure>;

    /// Resets it behind its fence; one that was reset under this fence is left alone.
    ///
    /// # Errors
    /// [`LinkFailure`]; may be repeated.
    fn reset(&mut self, token: &FenceToken) -> Result<(), LinkFailure>;

    /// Ends the fence of a target that was reset: its links come up.
    ///
    /// # Errors
    /// [`LinkFailure`]; may be repeated.
    fn plug(&mut self, token: &FenceToken) -> Result<(), LinkFailure>;
}

/// What one look at a box brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glance {
    /// Values have been filled in.
    Values {
        /// Identity of the box.
        identity: u64,
        /// Whether a planned record holds something else now: a new plan is due.
        changed: bool,
    },
    /// The server refused: the region was registered anew or its epoch has passed.
    Refused,
    /// No Sensor Box in the bytes.
    Unreadable,
    /// No answer.
    Lost,
}

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
        let opened = Opened { identity: identity(&found.header), described, damaged: found.damage.len() };
        let planned = records(&found);
        Ok((Self { region, buffer, planned, stretches: Vec::new() }, opened))
    }

    /// Keeps the sensors at `places` of [`Opened::described`]; values come in that order.
    pub fn keep(&mut self, places: &[usize]) {
        self.planned = places.iter().map(|place| self.planned[*place]).collect();
        self.stretches = stretches(self.planned.iter().map(|planned| planned.id), self.buffer.len());
    }

    /// Takes one sample in one round trip; fills `values`, one for each sensor kept. `whole` fetches the records in
    /// between too, for [`BoxReader::differs_from`].
    pub fn look(&mut self, memory: &mut dyn RemoteRead, values: &mut Vec<Option<u64>>, whole: bool) -> Glance {
        values.clear();
        match self.fetch(memory, whole) {
            Err(_) => Glance::Lost,
            Ok(false) => Glance::Refused,
            Ok(true) => self.parse(values),
        }
    }

    /// Posts the reads of one sample and does not wait; [`BoxReader::collect`] has the rest. `None` if the queue does
    /// not take all of them.
    pub fn post(&self, queue: &mut dyn Queue, whole: bool) -> Option<Flight> {
        let all = 0..self.buffer.len();
        let stretches = if whole { std::slice::from_ref(&all) } else { &self.stretches };
        let mut requests =
            [Request { id: 0, work: Work::FetchAdd { at: self.region.at(0, 8)?, add: 0 } }; FLIGHT_READS_MAX];
        let requests = requests.get_mut(..stretches.len())?;
        for ((index, stretch), request) in stretches.iter().enumerate().zip(requests.iter_mut()) {
            let at = self.region.at(stretch.start as u64, stretch.len() as u64)?;
            let (len, landing) = (u32::try_from(stretch.len()).ok()?, u32::try_from(stretch.start).ok()?);
            *request = Request { id: index as u64, work: Work::Read { at, len, landing } };
        }
        match queue.post(requests) {
            Ok(posted) if posted == requests.len() => {
                Some(Flight { outstanding: posted, is_refused: false, is_whole: whole })
            }
            _ => None,
        }
    }

    /// Takes what has come back of `flight`; the sample once all has. `None` while something is missing.
    pub fn collect(
        &mut self,
        queue: &mut dyn Queue,
        flight: &mut Flight,
        values: &mut Vec<Option<u64>>,
    ) -> Option<Glance> {
        let mut completions = [Completion { id: 0, outcome: Err(AccessError::Flushed) }; FLIGHT_READS_MAX];
        match queue.poll(&mut completions, Duration::ZERO) {
            Err(_) => return Some(Glance::Lost),
            Ok(taken) => {
                flight.outstanding = flight.outstanding.saturating_sub(taken);
                flight.is_refused |= completions[..taken].iter().any(|completion| completion.outcome.is_err());
            }
        }
        if flight.outstanding > 0 {
            return None;
        }
        if flight.is_refused {
            return Some(Glance::Refused);
        }
        let all = 0..self.buffer.len();
        let stretches = if flight.is_whole { std::slice::from_ref(&all) } else { &self.stretches };
        for stretch in stretches {
            self.buffer[stretch.clone()].copy_from_slice(&queue.landing()[stretch.clone()]);
        }
        Some(self.parse(values))
    }

    fn parse(&self, values: &mut Vec<Option<u64>>) -> Glance {
        values.clear();
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

    /// Whether every stretch was granted.
    fn fetch(&mut self, memory: &mut dyn RemoteRead, whole: bool) -> Result<bool, LinkError> {
        let all = 0..self.buffer.len();
        let stretches = if whole { std::slice::from_ref(&all) } else { &self.stretches };
        let mut batch = Vec::with_capacity(stretches.len());
        let (mut rest, mut passed) = (&mut self.buffer[..], 0);
        for stretch in stretches {
            let (_, from_here) = rest.split_at_mut(stretch.start - passed);
            let (into, behind) = from_here.split_at_mut(stretch.len());
            let Some(at) = self.region.at(stretch.start as u64, stretch.len() as u64) else { return Ok(false) };
            batch.push(Read::new(at, into));
            (rest, passed) = (behind, stretch.end);
        }
        memory.read(&mut batch)?;
        Ok(batch.iter().all(|read| read.outcome.is_ok()))
    }

    /// Whether the bytes of the last whole look hold other sensors than those of `opened`: new ones are found this way.
    pub fn differs_from(&self, opened: &Opened) -> bool {
        let Ok(now) = SensorBox::parse(&self.buffer) else { return false };
        // Damage hides sensors for a moment; a plan is not thrown away for that.
        now.damage.is_empty()
            && !now.readings.iter().map(|reading| described(&reading.description)).eq(opened.described.iter().cloned())
    }
}

/// Reads of one sample that are on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    outstanding: usize,
    is_refused: bool,
    is_whole: bool,
}

impl Flight {
    /// Whether the whole box is read, and not the planned records only.
    pub fn is_whole(&self) -> bool {
        self.is_whole
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
    DescribedSensor { name, class, limit, period_ns, floor }
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

    fn opened(bytes: &[u8], len: u64) -> (Image, Result<(BoxReader, Opened), FetchError>) {
        let mut image = Image::new();
        image.write_at(0, bytes);
        let region = Region { name: REGION.into(), key: RemoteKey::new(1), base: 0, len, rights: Rights::READ };
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
            let glance = reader.look(&mut image, &mut values, whole);
            assert_eq!(glance, Glance::Values { identity: opened.identity, changed: false });
            assert_eq!(values, [Some(15), Some(10)]);
        }
        assert!(!reader.differs_from(&opened));
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
                if let Glance::Values { .. } = reader.look(&mut image, &mut values, false) {
                    prop_assert_eq!(values.len(), places.len());
                }
                reader.look(&mut image, &mut values, true);
                reader.differs_from(&opened);
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
