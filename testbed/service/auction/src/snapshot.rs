//! What the tiers' Continuation Boxes say: light-weight snapshots, as bytes.
//!
//! ```text
//!   front end, about the request in hand     name 16 | flags 1 | mid tier 18 | its life 8 | said 8 | note 16
//!                                                              `-- if sent --------------´ `- if -´ `- if -´
//!   mid tier, beside each request            life 8 | name 16 | note 16      (the last trade of the connection)
//!                                                     `-- if there was one
//! ```
//!
//! Little-endian. The front end's goes with its request and is forgotten with it; a mid tier's stays until the front
//! end has sent its next request on that connection, which it does only when its own box holds the note. Both fit
//! into the front of a box, so that a spare reads them without a further question.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use contbox::http::SNAPSHOT_FRAME_BYTES;
use serde::{Deserialize, Serialize};

use crate::{operation::Receipt, request_id::RequestId};

/// What is noted of a trade before it commits: enough to learn its fate, and to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// PostgreSQL's 64-bit transaction id, which is never used again.
    pub transaction: i64,
    /// What the answer needs.
    pub receipt: Receipt,
}

impl Note {
    /// As the tiers write it in a header.
    pub fn to_text(self) -> String {
        format!("{}-{}", self.transaction, self.receipt.row)
    }

    /// As [`Note::to_text`] wrote it.
    pub fn from_text(text: &str) -> Option<Self> {
        let (transaction, row) = text.split_once('-')?;
        Some(Self { transaction: transaction.parse().ok()?, receipt: Receipt { row: row.parse().ok()? } })
    }
}

/// Where a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The mid tier's address, which moves with whoever takes it over.
    pub to: SocketAddr,
    /// The life of it that was meant.
    pub life: u64,
}

/// What a client was promised: enough to recognize the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Bytes of the page.
    pub length: u32,
    /// CRC-32 of status and page. Guards against another page of the same length, not against an enemy: both are ours.
    pub check: u32,
}

impl Said {
    /// Of an answer.
    pub fn of(status: u16, page: Option<&[u8]>) -> Self {
        let page = page.unwrap_or_default();
        let mut check = crc32fast::Hasher::new();
        check.update(&status.to_le_bytes());
        check.update(page);
        Self { length: page.len() as u32, check: check.finalize() }
    }
}

/// What a front end's box says of the request in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InHand {
    /// Its name.
    pub id: RequestId,
    /// Where it may have been sent.
    pub sent: Option<Sent>,
    /// What the client has been promised, perhaps in part.
    pub said: Option<Said>,
    /// What the mid tier noted of it.
    pub note: Option<Note>,
}

const SENT: u8 = 1;
const SAID: u8 = 2;
const NOTED: u8 = 4;

impl InHand {
    /// Nothing but a name.
    pub fn new(id: RequestId) -> Self {
        Self { id, sent: None, said: None, note: None }
    }

    /// For the box.
    pub fn to_bytes(self) -> Vec<u8> {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let flags =
            flag(self.sent.is_some(), SENT) | flag(self.said.is_some(), SAID) | flag(self.note.is_some(), NOTED);
        let mut bytes = Vec::with_capacity(LONGEST - SNAPSHOT_FRAME_BYTES);
        put_id(&mut bytes, self.id);
        bytes.push(flags);
        if let Some(Sent { to, life }) = self.sent {
            let address = match to.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            bytes.extend_from_slice(&address.octets());
            bytes.extend_from_slice(&to.port().to_le_bytes());
            bytes.extend_from_slice(&life.to_le_bytes());
        }
        if let Some(Said { length, check }) = self.said {
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&check.to_le_bytes());
        }
        if let Some(note) = self.note {
            put_note(&mut bytes, note);
        }
        bytes
    }

    /// Out of a box; nothing if these are no such words.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let id = rest.id()?;
        let [flags] = rest.take()?;
        let mut in_hand = Self::new(id);
        if flags & SENT != 0 {
            let ip = IpAddr::V6(Ipv6Addr::from(rest.take::<16>()?)).to_canonical();
            let port = u16::from_le_bytes(rest.take()?);
            in_hand.sent = Some(Sent { to: SocketAddr::new(ip, port), life: rest.number()? });
        }
        if flags & SAID != 0 {
            let (length, check) = (u32::from_le_bytes(rest.take()?), u32::from_le_bytes(rest.take()?));
            in_hand.said = Some(Said { length, check });
        }
        if flags & NOTED != 0 {
            in_hand.note = Some(rest.note()?);
        }
        (flags & !(SENT | SAID | NOTED) == 0 && rest.0.is_empty()).then_some(in_hand)
    }
}

/// Bytes of the longest snapshot there is, frame included.
const LONGEST: usize = SNAPSHOT_FRAME_BYTES + 67;

/// What snapshots came to, for figures: how many there were of each length. A longer one than any counts as the
/// longest.
#[derive(Debug)]
pub struct Written {
    by_length: [AtomicU64; LONGEST + 1],
}

impl Default for Written {
    fn default() -> Self {
        Self { by_length: [const { AtomicU64::new(0) }; LONGEST + 1] }
    }
}

/// What a tier tells of its snapshots when it ends, frames included. They are of sessions that it began and of those
/// that it took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many were written.
    pub snapshots: u64,
    /// The mean of their bytes.
    pub snapshot_bytes_mean: f64,
    /// The bytes of the largest.
    pub snapshot_bytes_max: u64,
}

impl Written {
    /// Counts a snapshot of so many bytes of the application's.
    pub fn count(&self, bytes: usize) {
        self.by_length[(SNAPSHOT_FRAME_BYTES + bytes).min(LONGEST)].fetch_add(1, Ordering::Relaxed);
    }

    /// What they came to so far.
    pub fn figures(&self) -> Figures {
        let (mut snapshots, mut bytes, mut snapshot_bytes_max) = (0, 0, 0);
        for (length, count) in (0..).zip(&self.by_length) {
            let count = count.load(Ordering::Relaxed);
            (snapshots, bytes) = (snapshots + count, bytes + count * length);
            snapshot_bytes_max = if count > 0 { length } else { snapshot_bytes_max };
        }
        let snapshot_bytes_mean = bytes as f64 / snapshots.max(1) as f64;
        Figures { snapshots, snapshot_bytes_mean, snapshot_bytes_max }
    }
}

/// What a mid tier's box says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The life of the mid tier that has the box.
    pub life: u64,
    /// The last trade of the connection that may have been committed.
    pub noted: Option<(RequestId, Note)>,
}

impl Kept {
    /// For the box.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&self.life.to_le_bytes());
        if let Some((id, note)) = self.noted {
            put_id(&mut bytes, id);
            put_note(&mut bytes, note);
        }
        bytes
    }

    /// Out of a box; nothing if these are no such words.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let life = rest.number()?;
        let noted = if rest.0.is_empty() { None } else { Some((rest.id()?, rest.note()?)) };
        rest.0.is_empty().then_some(Self { life, noted })
    }
}

fn put_id(bytes: &mut Vec<u8>, id: RequestId) {
    bytes.extend_from_slice(&id.incarnation.to_le_bytes());
    bytes.extend_from_slice(&id.counter.to_le_bytes());
}

fn put_note(bytes: &mut Vec<u8>, note: Note) {
    bytes.extend_from_slice(&note.transaction.to_le_bytes());
    bytes.extend_from_slice(&note.receipt.row.to_le_bytes());
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn id(&mut self) -> Option<RequestId> {
        Some(RequestId { incarnation: self.number()?, counter: self.number()? })
    }

    fn note(&mut self) -> Option<Note> {
        let (transaction, row) = (i64::from_le_bytes(self.take()?), i64::from_le_bytes(self.take()?));
        Some(Note { transaction, receipt: Receipt { row } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId { incarnation: 0x1122, counter: 7 };
    const NOTE: Note = Note { transaction: 1 << 40, receipt: Receipt { row: 12 } };

    #[test]
    fn the_largest_snapshot_and_the_mean_of_all_are_told_with_their_frames() {
        let written = Written::default();
        assert_eq!(written.figures(), Figures::default());
        [10, 40, 10].into_iter().for_each(|bytes| written.count(bytes));
        let frame = SNAPSHOT_FRAME_BYTES as u64;
        let expected =
            Figures { snapshots: 3, snapshot_bytes_mean: (frame + 20) as f64, snapshot_bytes_max: frame + 40 };
        assert_eq!(written.figures(), expected);
    }

    #[test]
    fn words_are_read_as_they_are_written_and_nothing_shorter_or_longer_is_any() {
        let sent = ["10.0.0.1:8100", "[fd00::1]:8100"].map(|to| Sent { to: to.parse().unwrap(), life: 9 });
        let said = Said::of(200, Some(b"page"));
        let all = [
            InHand::new(ID),
            InHand { sent: Some(sent[0]), ..InHand::new(ID) },
            InHand { said: Some(said), ..InHand::new(ID) },
            InHand { id: ID, sent: Some(sent[1]), said: Some(said), note: Some(NOTE) },
        ];
        for words in all {
            let bytes = words.to_bytes();
            assert_eq!(InHand::from_bytes(&bytes), Some(words));
            (0..bytes.len()).for_each(|short| assert_eq!(InHand::from_bytes(&bytes[..short]), None));
            assert_eq!(InHand::from_bytes(&[&bytes[..], &[0]].concat()), None);
        }
        for words in [Kept { life: 3, noted: None }, Kept { life: 3, noted: Some((ID, NOTE)) }] {
            let bytes = words.to_bytes();
            assert_eq!(Kept::from_bytes(&bytes), Some(words));
            (0..bytes.len()).filter(|short| *short != 8).for_each(|short| {
                assert_eq!(Kept::from_bytes(&bytes[..short]), None);
            });
        }
    }

    #[test]
    fn the_longest_words_fit_into_the_front_of_a_box() {
        let sent = Some(Sent { to: "[fd00::1]:8100".parse().unwrap(), life: 9 });
        let longest = InHand { id: ID, sent, said: Some(Said::of(200, None)), note: Some(NOTE) }.to_bytes().len();
        let framed = SNAPSHOT_FRAME_BYTES + longest;
        assert_eq!(framed, LONGEST);
        assert!(framed <= contbox::layout::SHORT_LWS_BYTES as usize, "{framed}");
    }

    #[test]
    fn a_note_is_read_as_it_is_written_and_another_answer_is_another() {
        assert_eq!(Note::from_text(&NOTE.to_text()), Some(NOTE));
        for wrong in ["", "-", "1", "1-", "-1", "x-1"] {
            assert_eq!(Note::from_text(wrong), None, "{wrong:?}");
        }
        let said = Said::of(200, Some(b"page"));
        assert_ne!(said, Said::of(200, Some(b"qage")));
        assert_ne!(said, Said::of(404, Some(b"page")));
        assert_ne!(said, Said::of(200, None));
    }
}
