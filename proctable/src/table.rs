//! Takes a table apart, as one read brought it. All of it is a claim: records may be of different moments.

use crate::layout::{
    CAPACITY_MAX, EXITING, FREE, HEAD_RECORDS, KERNEL, LIVE, MAGIC, NO_DEPTH, RECORD_BYTES, VERSION, VERSION_WORD,
    checksum, head, record, table_bytes,
};

const RECORD_WORDS: usize = RECORD_BYTES / 8;

/// Bits of a life that the check is over: process id and sequence.
const NAME: u64 = 0x00ff_ffff_ffff_ffff;

const PAGES_BITS: u32 = 28;

/// Why memory holds no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTable {
    /// Too few bytes.
    #[error("{have} bytes are no process table: {need} are needed")]
    Short {
        /// How many there are.
        have: usize,
        /// How many there should be.
        need: usize,
    },
    /// Something else lies there.
    #[error("no process table lies there (found {found:#x}): the agent has not made one")]
    Magic {
        /// What was found.
        found: u64,
    },
    /// Another release's.
    #[error("the process table is of another version than {VERSION}")]
    Version,
    /// The head was damaged.
    #[error("the head of the process table is damaged")]
    Damaged,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub pid: u32,
    /// Its parent's id; 0 if it has none.
    pub parent: u32,
    /// Its real user.
    pub uid: u32,
    /// Generations below the first process, at its birth or when the agent last came by; `None` if nobody counted.
    pub depth: Option<u32>,
    /// When it started, in nanoseconds of the target's monotonic clock.
    pub start_ns: u64,
    /// Its cgroup (version 2).
    pub cgroup: u64,
    /// Its name, cut by the kernel to 15 bytes.
    pub comm: String,
    /// Resident pages of 4 KiB, when it last ran or the agent last came by.
    pub rss_pages: u64,
    /// Pages that were swapped out, of the same moment.
    pub swap_pages: u64,
    /// What it did then, as a letter of `ps`; a space if nobody has seen it yet.
    pub does: char,
    /// Whether it is a thread of the kernel.
    pub is_kernel: bool,
    /// Whether all its threads have ended.
    pub is_exiting: bool,
}

/// A table, as one read brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The target's identity: another one with every boot.
    pub target: u64,
    /// Pages of 4 KiB that the kernel manages.
    pub pages_total: u64,
    /// Free ones.
    pub pages_free: u64,
    /// When a processor was at the table last, in nanoseconds of the target's monotonic clock.
    pub beat_ns: u64,
    /// How often a process found no room, ever.
    pub left_out: u64,
    /// How often the agent has been through all processes.
    pub rounds: u64,
    /// Processes by their ids, each once.
    pub processes: Vec<Record>,
    /// Indices of records that were being written, or are damaged: to be read again, see [`Table::mend`].
    pub torn: Vec<usize>,
}

/// How many records the table has whose head `bytes` begin with: what a reader must know before it reads all of them.
///
/// # Errors
/// See [`NoTable`].
pub fn capacity(bytes: &[u8]) -> Result<usize, NoTable> {
    let need = HEAD_RECORDS * RECORD_BYTES;
    if bytes.len() < need {
        return Err(NoTable::Short { have: bytes.len(), need });
    }
    let word = |index| word(bytes, index);
    if word(head::MAGIC) != MAGIC {
        return Err(NoTable::Magic { found: word(head::MAGIC) });
    }
    if word(head::VERSION) != VERSION_WORD {
        return Err(NoTable::Version);
    }
    let words: [u64; head::CHECK] = std::array::from_fn(word);
    let (capacity, records) = (word(head::CAPACITY) as u32 as usize, (word(head::CAPACITY) >> 32) as usize);
    let fits = capacity.is_power_of_two() && capacity <= CAPACITY_MAX && records == HEAD_RECORDS;
    if !fits || checksum(&words) != word(head::CHECK) {
        return Err(NoTable::Damaged);
    }
    Ok(capacity)
}

impl Table {
    /// Takes a table apart.
    ///
    /// # Errors
    /// See [`NoTable`]. A record that is damaged is no error, see [`Table::torn`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoTable> {
        let capacity = capacity(bytes)?;
        let need = table_bytes(capacity);
        if bytes.len() < need {
            return Err(NoTable::Short { have: bytes.len(), need });
        }
        let word = |index| word(bytes, index);
        let mut table = Self {
            target: word(head::TARGET),
            pages_total: word(head::PAGES_TOTAL),
            pages_free: word(head::PAGES_FREE),
            beat_ns: word(head::BEAT_NS),
            left_out: word(head::LEFT_OUT),
            rounds: word(head::ROUNDS),
            processes: Vec::new(),
            torn: Vec::new(),
        };
        let records = &bytes[HEAD_RECORDS * RECORD_BYTES..need];
        for (index, bytes) in records.as_chunks::<RECORD_BYTES>().0.iter().enumerate() {
            match Record::parse(bytes) {
                Ok(Some(process)) => table.processes.push(process),
                Ok(None) => {}
                Err(Torn) => table.torn.push(index),
            }
        }
        table.sort();
        Ok(table)
    }

    /// Where record `index` lies in the region.
    pub const fn offset(index: usize) -> u64 {
        ((HEAD_RECORDS + index) * RECORD_BYTES) as u64
    }

    /// Takes torn records that were read again, in the order of [`Table::torn`]: those that are still torn stay there.
    pub fn mend(&mut self, again: &[[u8; RECORD_BYTES]]) {
        let torn = std::mem::take(&mut self.torn);
        for (index, bytes) in torn.into_iter().zip(again) {
            match Record::parse(bytes) {
                Ok(Some(process)) => self.processes.push(process),
                Ok(None) => {}
                Err(Torn) => self.torn.push(index),
            }
        }
        self.sort();
    }

    /// By their ids. Of several with the same id the youngest lives: the others had it before.
    fn sort(&mut self) {
        self.processes.sort_unstable_by_key(|process| (process.pid, std::cmp::Reverse(process.start_ns)));
        self.processes.dedup_by_key(|process| process.pid);
    }
}

/// A record that cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Torn;

impl Record {
    /// Takes a record apart; `None` if no process is there.
    fn parse(bytes: &[u8; RECORD_BYTES]) -> Result<Option<Self>, Torn> {
        let words: [u64; RECORD_WORDS] = std::array::from_fn(|index| word(bytes, index));
        let (life, about, memory) = (words[record::LIFE], words[record::ABOUT], words[record::MEMORY]);
        let state = (life >> 56) as u8;
        if state == FREE {
            return Ok(None);
        }
        let [family, start_ns, cgroup] = [record::FAMILY, record::START_NS, record::CGROUP].map(|index| words[index]);
        let comm = [words[record::COMM], words[record::COMM + 1]];
        let low = about & u64::from(u32::MAX);
        let sum = checksum(&[life & NAME, family, start_ns, cgroup, comm[0], comm[1], low]);
        if !matches!(state, LIVE | EXITING) || sum >> 32 != about >> 32 || life as u32 == 0 {
            return Err(Torn);
        }
        let pages = |shift: u32| memory >> shift & ((1 << PAGES_BITS) - 1);
        let depth = Some(about as u16).filter(|depth| *depth != NO_DEPTH);
        let letter = (memory >> 56) as u8;
        Ok(Some(Self {
            pid: life as u32,
            parent: family as u32,
            uid: (family >> 32) as u32,
            depth: depth.map(u32::from),
            start_ns,
            cgroup,
            comm: text(&comm),
            rss_pages: pages(0),
            swap_pages: pages(PAGES_BITS),
            does: if letter.is_ascii_alphabetic() { letter.into() } else { ' ' },
            is_kernel: (about >> 16) as u8 & KERNEL != 0,
            is_exiting: state == EXITING,
        }))
    }
}

fn text(words: &[u64; 2]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Zero beyond the end.
fn word(bytes: &[u8], index: usize) -> u64 {
    bytes.get(index * 8..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
