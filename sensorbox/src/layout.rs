//! The bytes of a Sensor Box. Little-endian, no padding, naturally aligned; uses `core` only.
//!
//! `include/sensorbox.h` says the same in C; `tests/c_header.rs` holds the two together.

use core::fmt;

/// Bytes of the header and of each record: a cache line, so that processors do not fight over one.
pub const RECORD_BYTES: usize = 64;

/// 8-byte words of a record.
pub const RECORD_WORDS: usize = RECORD_BYTES / 8;

/// First word of a box: "SnsBox" and two bytes that are no text.
pub const MAGIC: u64 = 0x8f78_6f42_736e_53d1;

/// Version of this layout. Raised whenever an old reader would misread a new box.
pub const VERSION: u32 = 1;

/// Most sensors a box may have: what a reader is ready to take in.
pub const CAPACITY_MAX: u32 = 16 * 1024;

/// Words of the header.
pub mod header {
    /// [`super::MAGIC`]: guards against reading the wrong memory.
    pub const MAGIC: usize = 0;
    /// Low half [`super::VERSION`]; high half [`super::RECORD_BYTES`], guards against another layout.
    pub const VERSION_AND_RECORD: usize = 1;
    /// Length of header and records in bytes: guards against a region cut short.
    pub const LEN_BYTES: usize = 2;
    /// Low half: number of records. High half: zero.
    pub const CAPACITY: usize = 3;
    /// Two words of the kernel's boot id: guards against taking a rebooted machine for the one that was watched.
    pub const BOOT_ID: core::ops::Range<usize> = 4..6;
    /// Zero.
    pub const RESERVED: usize = 6;
    /// [`super::checksum`] of the words before: guards against a box that was never finished.
    pub const CHECKSUM: usize = 7;
}

/// Words of a record.
pub mod record {
    /// Low half: state, see [`super::State`]. High half: id, which is the record's index and guards against
    /// reading at a wrong offset.
    pub const STATE_AND_ID: usize = 0;
    /// Bits 0..8 class, 8..16 flags, 32..64 processor or [`super::NO_CPU`].
    pub const KIND: usize = 1;
    /// The value. The only word that changes while a sensor lives.
    pub const VALUE: usize = 2;
    /// The limit, in the value's unit.
    pub const LIMIT: usize = 3;
    /// The period in nanoseconds.
    pub const PERIOD_NS: usize = 4;
    /// Two words of name: ASCII, filled up with zeroes.
    pub const NAME: core::ops::Range<usize> = 5..7;
    /// [`super::checksum`] of id, kind, limit, period and name: guards against a half-made or overwritten sensor.
    pub const CHECKSUM: usize = 7;
}

const _: () = assert!(header::CHECKSUM + 1 == RECORD_WORDS);
const _: () = assert!(record::CHECKSUM + 1 == RECORD_WORDS);

/// States of a record. Odd, so that zeroed memory has none of them, and far apart.
#[allow(non_snake_case)]
pub mod State {
    /// The sensor lives.
    pub const LIVE: u32 = 0x5b1d_e0c7;
    /// The sensor was given up; the record may be used again.
    pub const RETIRED: u32 = 0x2a96_13ed;
    /// The sensor is being made.
    pub const CLAIMED: u32 = 0x71c4_58b9;
}

/// The processor of a sensor that belongs to none.
pub const NO_CPU: u32 = u32::MAX;

/// Flag of a level sensor: the limit is a floor and not a ceiling.
pub const FLAG_FLOOR: u8 = 1;

/// What a sensor's value promises, after the paper's three classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A counter that a healthy machine advances by `limit` or more in every period (the deadline).
    Progress,
    /// An amount that stays at or below `limit`, or with [`Description::floor`] at or above it. A healthy machine
    /// may be beyond the limit for up to one period.
    Level,
    /// A counter of events of which a healthy machine has at most `limit` in any period.
    Pressure,
}

impl Class {
    /// The byte in a record; odd numbers' neighbours are no class.
    pub const fn code(self) -> u8 {
        match self {
            Self::Progress => 1,
            Self::Level => 2,
            Self::Pressure => 3,
        }
    }

    /// The class with this byte.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Progress),
            2 => Some(Self::Level),
            3 => Some(Self::Pressure),
            _ => None,
        }
    }
}

/// Which processor a sensor belongs to.
pub type Cpu = Option<u32>;

/// A sensor's name: at most 16 bytes of lower-case ASCII letters, digits, `-` and `_`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; 16]);

impl Name {
    /// The name `text`, or `None` if it is empty, too long or has other characters.
    pub const fn new(text: &str) -> Option<Self> {
        let (text, mut bytes) = (text.as_bytes(), [0; 16]);
        if text.is_empty() || text.len() > bytes.len() {
            return None;
        }
        let mut at = 0;
        while at < text.len() {
            if !is_name_byte(text[at]) {
                return None;
            }
            bytes[at] = text[at];
            at += 1;
        }
        Some(Self(bytes))
    }

    /// The name in two words of a record.
    pub fn from_words(words: [u64; 2]) -> Option<Self> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&words[0].to_le_bytes());
        bytes[8..].copy_from_slice(&words[1].to_le_bytes());
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let whole = len > 0 && bytes[..len].iter().all(|byte| is_name_byte(*byte));
        (whole && bytes[len..].iter().all(|byte| *byte == 0)).then_some(Self(bytes))
    }

    /// The two words of a record.
    pub fn words(&self) -> [u64; 2] {
        let (low, high) = (self.0.first_chunk::<8>(), self.0.last_chunk::<8>());
        [low, high].map(|half| half.map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        core::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')
}

/// Everything about a sensor but its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// What it shows; unique together with `cpu`.
    pub name: Name,
    /// What the value promises.
    pub class: Class,
    /// The processor it belongs to, if any.
    pub cpu: Cpu,
    /// In the value's unit; see [`Class`].
    pub limit: u64,
    /// Nanoseconds; see [`Class`].
    pub period_ns: u64,
    /// For a level: the limit is a floor.
    pub floor: bool,
}

impl Description {
    /// The words of a record with this id, its value zero and its state [`State::CLAIMED`].
    pub fn words(&self, id: u32) -> [u64; RECORD_WORDS] {
        let flags = if self.floor { FLAG_FLOOR } else { 0 };
        let cpu = self.cpu.unwrap_or(NO_CPU);
        let mut words = [0; RECORD_WORDS];
        words[record::STATE_AND_ID] = state_and_id(State::CLAIMED, id);
        words[record::KIND] = u64::from(self.class.code()) | u64::from(flags) << 8 | u64::from(cpu) << 32;
        words[record::LIMIT] = self.limit;
        words[record::PERIOD_NS] = self.period_ns;
        words[record::NAME].copy_from_slice(&self.name.words());
        words[record::CHECKSUM] = record_checksum(&words);
        words
    }

    /// The description in a record, or `None` if its checksum or a field does not hold.
    pub fn from_words(words: &[u64; RECORD_WORDS]) -> Option<Self> {
        if words[record::CHECKSUM] != record_checksum(words) {
            return None;
        }
        let kind = words[record::KIND];
        let (class, flags, spare) = (kind as u8, (kind >> 8) as u8, (kind >> 16) as u16);
        let cpu = high(kind);
        if flags & !FLAG_FLOOR != 0 || spare != 0 {
            return None;
        }
        Some(Self {
            name: Name::from_words([words[record::NAME.start], words[record::NAME.start + 1]])?,
            class: Class::from_code(class)?,
            cpu: (cpu != NO_CPU).then_some(cpu),
            limit: words[record::LIMIT],
            period_ns: words[record::PERIOD_NS],
            floor: flags & FLAG_FLOOR != 0,
        })
    }
}

/// The first word of a record.
pub const fn state_and_id(state: u32, id: u32) -> u64 {
    state as u64 | (id as u64) << 32
}

/// The low half of a word.
pub const fn low(word: u64) -> u32 {
    word as u32
}

/// The high half of a word.
pub const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The words of a box's header.
pub fn header_words(capacity: u32, boot_id: [u8; 16]) -> [u64; RECORD_WORDS] {
    let mut words = [0; RECORD_WORDS];
    words[header::MAGIC] = MAGIC;
    words[header::VERSION_AND_RECORD] = u64::from(VERSION) | (RECORD_BYTES as u64) << 32;
    words[header::LEN_BYTES] = box_bytes(capacity);
    words[header::CAPACITY] = u64::from(capacity);
    let boot_id = u128::from_le_bytes(boot_id);
    words[header::BOOT_ID].copy_from_slice(&[boot_id as u64, (boot_id >> 64) as u64]);
    words[header::CHECKSUM] = checksum(&words[..header::CHECKSUM]);
    words
}

/// Length of a box with this many records.
pub const fn box_bytes(capacity: u32) -> u64 {
    (capacity as u64 + 1) * RECORD_BYTES as u64
}

/// FNV-1a over words. Guards against accidents; nothing guards against a target that lies.
pub fn checksum(words: &[u64]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    words.iter().fold(OFFSET, |sum, word| (sum ^ word).wrapping_mul(PRIME))
}

fn record_checksum(words: &[u64; RECORD_WORDS]) -> u64 {
    checksum(&[
        u64::from(high(words[record::STATE_AND_ID])),
        words[record::KIND],
        words[record::LIMIT],
        words[record::PERIOD_NS],
        words[record::NAME.start],
        words[record::NAME.start + 1],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Description = Description {
        name: Name::new("tick").unwrap(),
        class: Class::Progress,
        cpu: Some(3),
        limit: 1,
        period_ns: 1_000_000,
        floor: false,
    };

    #[test]
    fn a_description_reads_back_from_its_words() {
        let level = Description { class: Class::Level, cpu: None, floor: true, ..TICK };
        for description in [TICK, level] {
            assert_eq!(Description::from_words(&description.words(7)), Some(description));
        }
    }

    #[test]
    fn every_word_but_state_and_value_is_guarded() {
        for word in [record::KIND, record::LIMIT, record::PERIOD_NS, record::NAME.start, record::CHECKSUM] {
            let mut words = TICK.words(7);
            words[word] ^= 1 << 40;
            assert_eq!(Description::from_words(&words), None, "word {word}");
        }
        let mut moved = TICK.words(7);
        moved[record::STATE_AND_ID] = state_and_id(State::LIVE, 8);
        assert_eq!(Description::from_words(&moved), None);
    }

    #[test]
    fn a_name_is_a_short_lower_case_word() {
        assert_eq!(Name::new("ctx-switches_0123").map(|name| name.as_str().len()), None);
        assert_eq!(Name::new("ctx-switches_012").unwrap().as_str(), "ctx-switches_012");
        for bad in ["", "Tick", "a b", "ü"] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
        assert_eq!(Name::from_words([u64::from(b'a') << 8, 0]), None, "a zero before the end");
    }

    #[test]
    fn a_record_has_these_bytes() {
        let bytes: Vec<u8> = TICK.words(2).iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes[..8], [0xb9, 0x58, 0xc4, 0x71, 2, 0, 0, 0], "state, id");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 3, 0, 0, 0], "class, flags, spare, processor");
        assert_eq!(bytes[40..56], *b"tick\0\0\0\0\0\0\0\0\0\0\0\0", "name");
    }
}
