//! What all boxes of a dead machine said, also those whose sessions cannot go on.
//!
//! A session can be lost (its socket was torn, its client is gone) and what its box says can matter still: that a
//! request may have been carried out, say. So whoever takes a service over can be told the words of all boxes at the
//! service's address, and whether these are all there were: only then "nothing was said of it" is an answer.
//!
//! Only words that lie in the front of a box are told ([`crate::layout::SHORT_LWS_BYTES`]): a spare reads these of
//! every slot anyway, so a testament costs no further read. A box whose words are longer makes it incomplete, like a
//! damaged one; nothing read here is trusted.

use crate::layout::{Geometry, SlotState, canonical};
use crate::reader::{BadBox, BoxHead};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The words of all boxes at one address of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Testament {
    /// The address.
    pub local: SocketAddr,
    /// The newest snapshot of each box.
    pub words: Vec<Vec<u8>>,
    /// Whether no box was damaged, unreadable, or said more than fits: then these are all.
    pub complete: bool,
}

/// The testaments of a pool, from the fronts of all its slots.
pub fn read<B: AsRef<[u8]>>(geometry: &Geometry, fronts: &[B]) -> Vec<Testament> {
    let (mut found, mut complete) = (BTreeMap::<SocketAddr, Testament>::new(), fronts.len() == geometry.slots as usize);
    for (slot, bytes) in fronts.iter().enumerate() {
        let head = match BoxHead::parse_words(slot as u32, bytes.as_ref()) {
            Ok(head) => head,
            Err(BadBox::NoSession { state }) if SlotState::from_word(state).is_some() => continue,
            Err(_) => {
                complete = false;
                continue;
            }
        };
        let local = canonical(head.local);
        let empty = || Testament { local, words: Vec::new(), complete: true };
        let testament = found.entry(local).or_insert_with(empty);
        match head.words(geometry) {
            Some(words) => testament.words.push(words),
            None => testament.complete = false,
        }
    }
    // Whose box a damaged slot was cannot be known.
    found.into_values().map(|testament| Testament { complete: testament.complete && complete, ..testament }).collect()
}

/// The same from the bytes of a whole pool, as a test or a saved image has them.
pub fn of_image(geometry: &Geometry, pool: &[u8]) -> Vec<Testament> {
    let fronts = (0..geometry.slots).map(|slot| geometry.front(slot));
    let cut = fronts.map(|front| pool.get(front.start as usize..front.end as usize).unwrap_or_default());
    read(geometry, &cut.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContinuationBox, Opening, Pool, Snapshot};

    fn opening(port: u16, lws: &[u8]) -> Opening {
        let (local, peer) = ("10.0.0.1:80".parse().unwrap(), ([10, 0, 0, 2], port).into());
        let snapshot = Snapshot { lws: lws.to_vec(), ..Snapshot::default() };
        Opening { snapshot, ..Opening::fresh(1, local, peer) }
    }

    /// A pool of four slots with an open box, one that is kept, and one that was ended; the bytes of all.
    fn pool(long: usize) -> (Geometry, Vec<u8>) {
        let (_fd, pool) = Pool::memfd(Geometry::with(4, 256, 64), 7).unwrap();
        let open = |slot, lws: &[u8]| {
            ContinuationBox::create(pool.slot(slot).unwrap(), &opening(slot as u16 + 1, lws)).unwrap()
        };
        let mut kept = open(0, b"kept");
        kept.export_state(b"kept again", 0, 0).unwrap();
        kept.keep();
        assert!(!kept.is_protected(), "nobody can resume it");
        std::mem::forget(open(1, &vec![b'o'; long]));
        drop(open(2, b"ended").close());
        (pool.geometry(), pool.image())
    }

    #[test]
    fn what_open_and_kept_boxes_say_is_told_and_what_was_ended_is_not() {
        let (geometry, image) = pool(3);
        let words = vec![b"kept again".to_vec(), b"ooo".to_vec()];
        let local = "10.0.0.1:80".parse().unwrap();
        assert_eq!(of_image(&geometry, &image), [Testament { local, words, complete: true }]);
        for slot in [0, 1] {
            let session = BoxHead::parse(slot, &image[geometry.front(slot).start as usize..]);
            assert_eq!(session.is_ok(), slot == 1, "only one of them is a session");
        }
    }

    #[test]
    fn a_box_that_says_too_much_or_is_damaged_makes_it_incomplete() {
        let (geometry, image) = pool(200);
        assert_eq!((of_image(&geometry, &image)[0].words.len(), of_image(&geometry, &image)[0].complete), (1, false));
        // Every byte of every front: what is told is what was said, or it says that something is missing.
        let (geometry, image) = pool(3);
        let whole = of_image(&geometry, &image);
        for at in geometry.front(0).start..geometry.front(3).end {
            let mut damaged = image.clone();
            damaged[at as usize] ^= 0x55;
            for testament in of_image(&geometry, &damaged).iter().filter(|testament| testament.complete) {
                assert_eq!(testament, &whole[0], "byte {at}");
            }
        }
        assert!(!of_image(&geometry, &image[..image.len() / 8]).iter().any(|testament| testament.complete));
    }

    #[test]
    fn a_closed_kept_box_is_a_free_slot_again() {
        let (_fd, pool) = Pool::memfd(Geometry::with(1, 64, 64), 7).unwrap();
        let mut kept = ContinuationBox::create(pool.slot(0).unwrap(), &opening(1, b"x")).unwrap();
        kept.keep();
        let slot = kept.close();
        assert_eq!(slot.state(), Some(SlotState::Leased));
        assert!(of_image(&pool.geometry(), &pool.image()).is_empty());
    }
}
