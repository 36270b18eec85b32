//! What the agent of the target registered: boxes and hooks, each a list of pages.
//!
//! Nothing of it is believed: names, counts and lengths have limits, and every page must lie in memory that exists.
//! A page may be registered twice; that is the target's own affair.

use control::agent::{REGION_PAGES_MAX, REGIONS_MAX, Registration};
use remote_memory::{PAGE_BYTES, RemoteKey, Rights};

use super::RAM;
use crate::scatter::{Run, Scatter};

/// Longest name of a region, in bytes: names stand in logs and tables.
const NAME_BYTES_MAX: usize = 32;

/// Why a registration was not accepted: the agent's fault, all of them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegisterError {
    /// A name is 1 to 32 of a-z, 0-9, `-` and `_`, and not `ram`.
    #[error("a region cannot have this name")]
    Name,
    /// More than [`REGIONS_MAX`] regions.
    #[error("more than {REGIONS_MAX} regions")]
    TooMany,
    /// No pages, or more than [`REGION_PAGES_MAX`].
    #[error("{0} pages: a region has 1 to {REGION_PAGES_MAX}")]
    Pages(usize),
    /// The length is not that of the pages: at most all of them, and into the last one.
    #[error("{len} bytes do not fit {pages} pages")]
    Length {
        /// What was claimed, in bytes.
        len: u64,
        /// How many pages came.
        pages: usize,
    },
    /// A page lies outside the machine's memory.
    #[error("page {0:#x} is not in the memory of this machine")]
    NoMemory(u64),
}

/// One registered region.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub name: String,
    pub key: RemoteKey,
    pub len: u64,
    pub scatter: Scatter,
    writable: bool,
    state: State,
}

/// Whether the agent that speaks now stands by a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It has registered it.
    Current,
    /// It has said hello since; it may be about to register it again.
    Stale,
    /// It did not register it again: an old box stays readable, an old hook is not written any more.
    Asleep,
}

impl Registered {
    /// What the key permits. While a fence stands, writing is its holder's, through the fence's key.
    pub fn rights_when(&self, fenced: bool) -> Rights {
        if self.writable && self.state != State::Asleep && !fenced { Rights::ALL } else { Rights::READ }
    }
}

/// The regions of one agent; names are unique.
#[derive(Debug, Default)]
pub(super) struct Boxes {
    regions: Vec<Registered>,
}

impl Boxes {
    pub fn iter(&self) -> std::slice::Iter<'_, Registered> {
        self.regions.iter()
    }

    pub fn by_key(&self, key: RemoteKey) -> Option<&Registered> {
        self.regions.iter().find(|region| region.key == key)
    }

    pub fn rekey(&mut self, index: usize, key: RemoteKey) {
        self.regions[index].key = key;
    }

    pub fn mark_stale(&mut self) {
        for region in self.regions.iter_mut().filter(|region| region.state == State::Current) {
            region.state = State::Stale;
        }
    }

    pub fn put_stale_to_sleep(&mut self) {
        for region in self.regions.iter_mut().filter(|region| region.state == State::Stale) {
            region.state = State::Asleep;
        }
    }

    /// True if the table has changed.
    pub fn register(&mut self, wanted: &Registration, ram: &Scatter, key: RemoteKey) -> Result<bool, RegisterError> {
        let scatter = check(wanted, ram)?;
        let Registration { name, len, writable, .. } = wanted;
        let fresh =
            Registered { name: name.clone(), key, len: *len, scatter, writable: *writable, state: State::Current };
        let is_full = self.regions.len() >= REGIONS_MAX;
        match self.regions.iter_mut().find(|region| region.name == *name) {
            Some(old) if old.len == *len && old.writable == *writable && old.scatter == fresh.scatter => {
                old.state = State::Current;
                return Ok(false);
            }
            Some(old) => *old = fresh,
            None if is_full => return Err(RegisterError::TooMany),
            None => self.regions.push(fresh),
        }
        Ok(true)
    }
}

/// Turns page numbers into runs of the memory's file.
fn check(wanted: &Registration, ram: &Scatter) -> Result<Scatter, RegisterError> {
    let pages = &wanted.pages;
    let proper = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    let name = wanted.name.as_bytes();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().copied().all(proper) || wanted.name == RAM {
        return Err(RegisterError::Name);
    }
    if pages.is_empty() || pages.len() > REGION_PAGES_MAX {
        return Err(RegisterError::Pages(pages.len()));
    }
    let room = pages.len() as u64 * PAGE_BYTES;
    if wanted.len > room || wanted.len <= room - PAGE_BYTES {
        return Err(RegisterError::Length { len: wanted.len, pages: pages.len() });
    }
    let mut runs = Vec::with_capacity(pages.len());
    for (index, &page) in pages.iter().enumerate() {
        let start = index as u64 * PAGE_BYTES;
        let addr = page.checked_mul(PAGE_BYTES).ok_or(RegisterError::NoMemory(page))?;
        let mut pieces = ram.reach(addr, PAGE_BYTES).ok_or(RegisterError::NoMemory(page))?;
        let piece = pieces.next().filter(|piece| piece.len == PAGE_BYTES).ok_or(RegisterError::NoMemory(page))?;
        runs.push(Run { start, offset: piece.offset, len: PAGE_BYTES.min(wanted.len - start) });
    }
    Ok(Scatter::new(runs).expect("runs of consecutive pages neither overlap nor wrap"))
}
