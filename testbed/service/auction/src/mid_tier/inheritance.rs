//! What a mid tier has taken over from others that are dead and fenced.
//!
//! A front end that asks again says which life it means. Whoever has taken that life over answers for it, and only once
//! it knows all that life had noted: from then on "nothing is known of the request" means that it was not carried out.
//! It knows that when it was told the testament of the dead machine, the words of all boxes at the service's address,
//! and that was complete. What came in part is used (a note is a note), but makes nobody an heir.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use contbox::{Testament, http::session_words};
use tokio::{sync::Notify, time::timeout};

use crate::{
    request_id::RequestId,
    snapshot::{Kept, Note},
};

/// How long a request waits that is meant for a life whose testament may be on its way: a front end's successor can be
/// faster than a mid tier's.
const TAKE_OVER_BOUND: Duration = Duration::from_secs(10);

/// The lives that were taken over.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    lives: Mutex<HashSet<u64>>,
    changed: Notify,
}

/// What a testament says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Each life that is named: it is dead.
    pub dead: Vec<u64>,
    /// All notes.
    pub notes: Vec<(RequestId, Note)>,
    /// The life of which these are all notes.
    pub whole: Option<u64>,
}

/// Reads a testament.
pub fn read(testament: &Testament) -> Read {
    let mut read = Read::default();
    let mut complete = testament.complete;
    for lws in &testament.words {
        match session_words(lws).map(|words| (words.is_empty(), Kept::from_bytes(&words))) {
            // Its connection has not asked for anything yet.
            Some((true, _)) => {}
            Some((_, Some(Kept { life, noted }))) => {
                if !read.dead.contains(&life) {
                    read.dead.push(life);
                }
                read.notes.extend(noted);
            }
            Some((_, None)) | None => complete = false,
        }
    }
    // Boxes that an earlier process left on that machine may be gone in part.
    read.whole = match read.dead[..] {
        [life] if complete => Some(life),
        _ => None,
    };
    read
}

impl Inheritance {
    pub(super) fn add(&self, life: u64) {
        self.lives().insert(life);
        self.changed.notify_waiters();
    }

    /// Whether a life was taken over, or is within the time that a take-over may last.
    pub(super) async fn has(&self, life: u64) -> bool {
        self.has_within(life, TAKE_OVER_BOUND).await
    }

    async fn has_within(&self, life: u64, bound: Duration) -> bool {
        let told = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.lives().contains(&life) {
                    return;
                }
                changed.await;
            }
        };
        timeout(bound, told).await.is_ok()
    }

    fn lives(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.lives.lock().expect("no thread panics with the set half-changed")
    }
}

#[cfg(test)]
mod tests {
    use contbox::{ContinuationBox, Geometry, Opening, Pool, Snapshot, testament};

    use super::*;
    use crate::operation::Receipt;

    const NOTE: Note = Note { transaction: 5, receipt: Receipt { row: 6 } };
    const ID: RequestId = RequestId { incarnation: 1, counter: 2 };

    /// As a spare reads it out of the boxes of a dead machine: a boundary's frame, then the words.
    fn told(words: &[&[u8]]) -> Testament {
        let (_fd, pool) = Pool::memfd(Geometry::standard(8), 7).unwrap();
        for (slot, words) in words.iter().enumerate() {
            let mut lws = vec![0xb1, 0, 0, 0, 0, 0, 0, 0, 0];
            lws.extend_from_slice(&(words.len() as u32).to_le_bytes());
            lws.extend_from_slice(words);
            let ends = ("10.0.0.1:8100".parse().unwrap(), ([10, 0, 0, 2], slot as u16 + 1).into());
            let snapshot = Snapshot { lws, ..Snapshot::default() };
            let opening = Opening { snapshot, ..Opening::fresh(1, ends.0, ends.1) };
            std::mem::forget(ContinuationBox::create(pool.slot(slot as u32).unwrap(), &opening).unwrap());
        }
        testament::of_image(&pool.geometry(), &pool.image()).remove(0)
    }

    #[test]
    fn a_life_is_taken_over_if_all_its_boxes_are_known_and_name_no_other() {
        let (bare, noted) = (Kept { life: 3, noted: None }, Kept { life: 3, noted: Some((ID, NOTE)) });
        let (bare, noted) = (bare.to_bytes(), noted.to_bytes());
        let whole = read(&told(&[&bare, &noted, &[]]));
        assert_eq!(whole, Read { dead: vec![3], notes: vec![(ID, NOTE)], whole: Some(3) });

        let in_part = read(&Testament { complete: false, ..told(&[&bare, &noted]) });
        assert_eq!(in_part, Read { whole: None, ..whole.clone() }, "what is noted counts all the same");
        let other = Kept { life: 4, noted: None }.to_bytes();
        assert_eq!(read(&told(&[&noted, &other])).whole, None);
        assert_eq!(read(&told(&[&noted, b"garbage"])), Read { whole: None, ..whole });
        assert_eq!(read(&told(&[&[]])).whole, None, "nobody is named");
    }

    #[tokio::test]
    async fn whoever_is_meant_for_a_life_waits_for_its_take_over_and_not_for_ever() {
        let inheritance = std::sync::Arc::new(Inheritance::default());
        assert!(!inheritance.has_within(1, Duration::from_millis(1)).await);
        let waiting = tokio::spawn({
            let inheritance = std::sync::Arc::clone(&inheritance);
            async move { inheritance.has_within(1, Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        inheritance.add(2);
        inheritance.add(1);
        assert!(waiting.await.unwrap() && inheritance.has(2).await);
    }
}
