//! Which requests were answered, and how: a request that comes again gets the bytes that it got before.
//!
//! One entry per request id. Whoever comes with the id of a request in progress waits for its answer. Of each front
//! end's life the newest [`REMEMBERED`] requests are kept; an older id that is not known is refused, because nobody can
//! say any more whether it was carried out. That bounds the memory, and never the promise.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::{request_id::RequestId, snapshot::Note};

/// Requests kept of each front end's life: many times what it can have in flight.
pub const REMEMBERED: usize = 4096;
/// Lives of front ends between two starts of a mid tier.
pub const LIVES_MAX: usize = 1024;

/// What was said to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its page, as JSON.
    pub body: Bytes,
    /// Of a trade that was carried out.
    pub note: Option<Note>,
}

/// A request's entry: empty, then perhaps a note, then the answer, for good.
#[derive(Debug, Default)]
pub struct Entry {
    /// Filled once. Its lock is what makes a second one with the same id wait.
    pub answer: tokio::sync::OnceCell<Answer>,
    note: Mutex<Option<Noted>>,
}

/// A note and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The note.
    pub note: Note,
    /// It is of a mid tier that is fenced: its transaction need not be waited for.
    pub inherited: bool,
}

impl Entry {
    /// What is noted of a transaction that may have committed.
    pub fn note(&self) -> Option<Noted> {
        *self.lock()
    }

    /// Notes a transaction before its commit, or forgets one that was aborted.
    pub fn set_note(&self, note: Option<Noted>) {
        *self.lock() = note;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Noted>> {
        self.note.lock().expect("no thread panics with a note half-written")
    }
}

/// Why a request has no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEntry {
    /// It is older than what is remembered.
    #[error("the request is too old: nobody can say whether it was carried out")]
    Forgotten,
    /// More front ends started than a mid tier remembers.
    #[error("more than {LIVES_MAX} front ends have started since this mid tier did: start it again")]
    TooManyLives,
}

/// All entries.
#[derive(Debug, Default)]
pub struct Ledger {
    lives: Mutex<HashMap<u64, Life>>,
}

#[derive(Debug, Default)]
struct Life {
    entries: BTreeMap<u64, Arc<Entry>>,
    /// Whoever is below and has no entry is too old.
    forgotten_below: u64,
}

impl Ledger {
    /// The entry of a request: its old one, or a new one.
    ///
    /// # Errors
    /// See [`NoEntry`].
    pub fn entry(&self, id: RequestId) -> Result<Arc<Entry>, NoEntry> {
        let mut lives = self.lives.lock().expect("no thread panics with the ledger half-changed");
        if lives.len() >= LIVES_MAX && !lives.contains_key(&id.incarnation) {
            return Err(NoEntry::TooManyLives);
        }
        let life = lives.entry(id.incarnation).or_default();
        if let Some(entry) = life.entries.get(&id.counter) {
            return Ok(Arc::clone(entry));
        }
        if id.counter < life.forgotten_below {
            return Err(NoEntry::Forgotten);
        }
        let entry = Arc::new(Entry::default());
        life.entries.insert(id.counter, Arc::clone(&entry));
        life.forget_the_oldest();
        Ok(entry)
    }
}

impl Life {
    /// One that is in progress is kept, however old.
    fn forget_the_oldest(&mut self) {
        if self.entries.len() <= REMEMBERED {
            return;
        }
        let oldest = self.entries.iter().find(|(_, entry)| entry.answer.initialized()).map(|(counter, _)| *counter);
        if let Some(counter) = oldest {
            self.entries.remove(&counter);
            self.forgotten_below = self.forgotten_below.max(counter + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(counter: u64) -> RequestId {
        RequestId { incarnation: 1, counter }
    }

    fn answered(ledger: &Ledger, counter: u64) -> Arc<Entry> {
        let entry = ledger.entry(id(counter)).unwrap();
        let _ = entry.answer.set(Answer { status: 200, body: Bytes::new(), note: None });
        entry
    }

    #[test]
    fn the_same_id_has_the_same_entry_and_another_life_another_one() {
        let ledger = Ledger::default();
        let first = ledger.entry(id(1)).unwrap();
        assert!(Arc::ptr_eq(&first, &ledger.entry(id(1)).unwrap()));
        let other = ledger.entry(RequestId { incarnation: 2, counter: 1 }).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
    }

    #[test]
    fn what_is_forgotten_is_refused_and_what_is_in_progress_is_kept() {
        let ledger = Ledger::default();
        let in_progress = ledger.entry(id(1)).unwrap();
        (2..=REMEMBERED as u64 + 2).for_each(|counter| drop(answered(&ledger, counter)));
        assert!(Arc::ptr_eq(&in_progress, &ledger.entry(id(1)).unwrap()), "it is not answered yet");
        assert_eq!(ledger.entry(id(2)).unwrap_err(), NoEntry::Forgotten);
        assert!(ledger.entry(id(4)).unwrap().answer.initialized());
    }

    #[test]
    fn lives_are_bounded() {
        let ledger = Ledger::default();
        let lives = (0..LIVES_MAX as u64).map(|incarnation| RequestId { incarnation, counter: 1 });
        lives.for_each(|id| drop(ledger.entry(id).unwrap()));
        let one_more = RequestId { incarnation: u64::MAX, counter: 1 };
        assert_eq!(ledger.entry(one_more).unwrap_err(), NoEntry::TooManyLives);
        assert!(ledger.entry(id(2)).is_ok(), "those that are known go on");
    }
}
