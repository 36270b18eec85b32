//! Takes a box apart whose bytes came from another machine. Everything in them is a claim.
//!
//! A record that does not hold is reported as [`Damage`] beside the readings that do: a torn or overwritten sensor
//! must not blind the monitor to the others. Being made, retired and never used are not damage.

use std::time::Duration;

use remote_memory::{AccessError, LinkError, Region, RemoteRead};

use crate::layout::{
    CAPACITY_MAX, Description, MAGIC, RECORD_BYTES, RECORD_WORDS, State, VERSION, box_bytes, checksum, header, high,
    low, record,
};

/// Why the bytes are no box. The target's fault, or the region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than the box needs.
    #[error("a sensor box needs {need} bytes, there are {have}")]
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The first word is not the magic: other memory, or an agent that has not started.
    #[error("no sensor box here: first word {found:#018x}")]
    Magic {
        /// What stands there.
        found: u64,
    },
    /// A layout this reader does not know.
    #[error(
        "sensor box of version {version} with records of {record_bytes} bytes; this reader knows version {VERSION}"
    )]
    Version {
        /// Version found.
        version: u32,
        /// Record length found.
        record_bytes: u32,
    },
    /// The header's fields contradict each other or its checksum.
    #[error("the header of the sensor box is damaged")]
    Header,
}

/// A box's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of records after the header.
    pub capacity: u32,
    /// The boot id of the kernel that the box lives in: another id is another life of the machine.
    pub boot_id: [u8; 16],
}

impl Header {
    /// Takes the header off the front of `bytes`.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let words =
            words_at(bytes, 0).ok_or(Malformed::Truncated { need: RECORD_BYTES as u64, have: bytes.len() as u64 })?;
        if words[header::MAGIC] != MAGIC {
            return Err(Malformed::Magic { found: words[header::MAGIC] });
        }
        let version_and_record = words[header::VERSION_AND_RECORD];
        let (version, record_bytes) = (low(version_and_record), high(version_and_record));
        if (version, record_bytes as usize) != (VERSION, RECORD_BYTES) {
            return Err(Malformed::Version { version, record_bytes });
        }
        let capacity = u32::try_from(words[header::CAPACITY]).map_err(|_| Malformed::Header)?;
        let whole = (1..=CAPACITY_MAX).contains(&capacity)
            && words[header::LEN_BYTES] == box_bytes(capacity)
            && words[header::CHECKSUM] == checksum(&words[..header::CHECKSUM]);
        let boot_id = u128::from(words[header::BOOT_ID.start]) | u128::from(words[header::BOOT_ID.start + 1]) << 64;
        whole.then_some(Self { capacity, boot_id: boot_id.to_le_bytes() }).ok_or(Malformed::Header)
    }

    /// Bytes of the whole box.
    pub fn len_bytes(&self) -> u64 {
        box_bytes(self.capacity)
    }
}

/// One sensor at the moment of the read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Number of its record.
    pub id: u32,
    /// What the sensor is.
    pub description: Description,
    /// What it showed.
    pub value: u64,
}

impl Reading {
    /// The sensor's period, see [`crate::Class`].
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.description.period_ns)
    }
}

/// A record that is neither free nor a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The state word is none that a producer writes.
    #[error("sensor record {id}: state {state:#010x}")]
    State {
        /// Index of the record.
        id: u32,
        /// What stands there.
        state: u32,
    },
    /// The record claims another index: read or written at a wrong offset.
    #[error("sensor record {id} claims to be {claimed}")]
    Misplaced {
        /// Index of the record.
        id: u32,
        /// What it claims.
        claimed: u32,
    },
    /// Torn while the sensor was made, or overwritten.
    #[error("sensor record {id}: its description does not hold")]
    Description {
        /// Index of the record.
        id: u32,
    },
}

/// What one read of a box found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorBox {
    /// The header.
    pub header: Header,
    /// Living sensors, by id.
    pub readings: Vec<Reading>,
    /// Records that do not hold.
    pub damage: Vec<Damage>,
}

impl SensorBox {
    /// Parses a whole box; bytes after its end are ignored.
    ///
    /// # Errors
    /// [`Malformed`] if there is no box. Damaged records are no error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes)?;
        let have = bytes.len() as u64;
        if have < header.len_bytes() {
            return Err(Malformed::Truncated { need: header.len_bytes(), have });
        }
        let mut parsed = Self { header, readings: vec![], damage: vec![] };
        for id in 1..=header.capacity {
            match words_at(bytes, id as usize).map(|words| parse_record(id, &words)) {
                Some(Ok(Some(reading))) => parsed.readings.push(reading),
                Some(Err(damage)) => parsed.damage.push(damage),
                Some(Ok(None)) | None => {}
            }
        }
        Ok(parsed)
    }

    /// The readings of every sensor of that name: one, or one for each processor.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Reading> + 'a {
        self.readings.iter().filter(move |reading| reading.description.name.as_str() == name)
    }
}

/// Parses record `id`; `None` if no sensor lives there.
///
/// # Errors
/// [`Damage`].
pub fn parse_record(id: u32, words: &[u64; RECORD_WORDS]) -> Result<Option<Reading>, Damage> {
    let state_and_id = words[record::STATE_AND_ID];
    match low(state_and_id) {
        State::LIVE => {}
        0 | State::RETIRED | State::CLAIMED => return Ok(None),
        state => return Err(Damage::State { id, state }),
    }
    if high(state_and_id) != id {
        return Err(Damage::Misplaced { id, claimed: high(state_and_id) });
    }
    let description = Description::from_words(words).ok_or(Damage::Description { id })?;
    Ok(Some(Reading { id, description, value: words[record::VALUE] }))
}

/// Why a box could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The path failed; says nothing about the target.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server refused the read.
    #[error("sensor box {0}")]
    Access(#[from] AccessError),
    /// What came back is no box.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads the whole of `region` (`sb`) in one remote operation and parses it. `buffer` is reused between calls.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch_sb(memory: &mut dyn RemoteRead, region: &Region, buffer: &mut Vec<u8>) -> Result<SensorBox, FetchError> {
    let len = region.len.min(box_bytes(CAPACITY_MAX));
    buffer.resize(len as usize, 0);
    let at = region.at(0, len).ok_or(Malformed::Truncated { need: len, have: region.len })?;
    memory.read_one(at, buffer)??;
    Ok(SensorBox::parse(buffer)?)
}

fn words_at(bytes: &[u8], index: usize) -> Option<[u64; RECORD_WORDS]> {
    let record: &[u8; RECORD_BYTES] = bytes.get(index * RECORD_BYTES..)?.first_chunk()?;
    let mut words = [0; RECORD_WORDS];
    for (word, bytes) in words.iter_mut().zip(record.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(words)
}
