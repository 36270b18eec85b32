//! Which slot is whose: bookkeeping without sockets and clocks.
//!
//! The slots' state words outlive the service (the pool of a target is a pinned kernel map), so a restarted
//! service finds slots in use. It keeps them out of circulation until their application announces them, or until
//! [`RECLAIM_AFTER`] shows that the application is gone.

use super::message::Held;
use crate::layout::SlotState;
use crate::shared::{Pool, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a restarted service waits for applications to announce their slots. They try every second.
pub const RECLAIM_AFTER: Duration = Duration::from_secs(30);

/// The leases of one pool.
#[derive(Debug)]
pub struct Leases {
    pool: Arc<Pool>,
    free: BTreeSet<u32>,
    /// In use when we started, owner not heard of yet.
    orphans: BTreeSet<u32>,
    leased: BTreeMap<u32, u32>,
    last_owner: u32,
}

impl Leases {
    /// Takes stock of a pool.
    pub fn of(pool: Arc<Pool>) -> Self {
        let (mut free, mut orphans, mut last_owner) = (BTreeSet::new(), BTreeSet::new(), 0);
        for slot in pool.slots() {
            last_owner = last_owner.max(slot.owner());
            let fate = if slot.state() == Some(SlotState::Free) { &mut free } else { &mut orphans };
            fate.insert(slot.index());
        }
        Self { pool, free, orphans, leased: BTreeMap::new(), last_owner }
    }

    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// A number for an application; those of earlier conversations are not used again soon.
    pub fn enrol(&mut self) -> u32 {
        self.last_owner = self.last_owner.wrapping_add(1).max(1);
        self.last_owner
    }

    /// Confirms slots that an application says it uses; returns those that are its own now. A slot that is free or
    /// another's stays what it is.
    pub fn adopt(&mut self, owner: u32, held: &[Held]) -> Vec<u32> {
        let ours = held.iter().filter(|held| held.pool == self.pool.name()).map(|held| held.slot);
        let adopted: Vec<u32> = ours.filter(|slot| self.orphans.remove(slot)).collect();
        self.leased.extend(adopted.iter().map(|slot| (*slot, owner)));
        adopted
    }

    /// Grants up to `wanted` free slots.
    pub fn grant(&mut self, owner: u32, wanted: u32) -> Vec<u32> {
        let granted: Vec<u32> = self.free.iter().take(wanted as usize).copied().collect();
        for index in &granted {
            self.free.remove(index);
            self.leased.insert(*index, owner);
            self.slot(*index).set_state(SlotState::Leased, owner);
        }
        granted
    }

    /// Takes slots back that `owner` gives up; others' are left alone.
    pub fn release(&mut self, owner: u32, slots: &[u32]) {
        for index in slots {
            if self.leased.get(index) == Some(&owner) {
                self.free_slot(*index);
            }
        }
    }

    /// Takes all slots of an application back that has gone, its sockets with it.
    pub fn forget(&mut self, owner: u32) {
        let slots: Vec<u32> = self.leased.iter().filter(|(_, of)| **of == owner).map(|(slot, _)| *slot).collect();
        self.release(owner, &slots);
    }

    /// Frees slots whose application did not come back within [`RECLAIM_AFTER`] of our start.
    pub fn reclaim(&mut self) -> usize {
        let orphans = std::mem::take(&mut self.orphans);
        orphans.iter().for_each(|slot| self.free_slot(*slot));
        orphans.len()
    }

    /// Free, leased and orphaned slots, in this order.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.free.len(), self.leased.len(), self.orphans.len())
    }

    /// Leased slots, each with its owner.
    pub fn leased(&self) -> impl Iterator<Item = (Slot, u32)> {
        self.leased.iter().map(|(index, owner)| (self.slot(*index), *owner))
    }

    fn free_slot(&mut self, index: u32) {
        self.slot(index).set_state(SlotState::Free, 0);
        self.leased.remove(&index);
        self.free.insert(index);
    }

    fn slot(&self, index: u32) -> Slot {
        self.pool.slot(index).expect("only slots of this pool are kept")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Geometry;

    #[test]
    fn a_restarted_service_grants_no_slot_that_is_in_use() {
        let (_fd, pool) = Pool::memfd(Geometry::standard(4), 7).unwrap();
        let mut first = Leases::of(Arc::clone(&pool));
        let owner = first.enrol();
        assert_eq!(first.grant(owner, 3), [0, 1, 2]);

        let mut second = Leases::of(Arc::clone(&pool));
        let stranger = second.enrol();
        assert_ne!(stranger, owner);
        assert_eq!(second.grant(stranger, 9), [3]);
        let held = |pool, slot| Held { pool, slot };
        assert_eq!(second.adopt(owner, &[held(7, 0), held(8, 1), held(7, 3), held(7, 99)]), [0]);
        assert_eq!(second.reclaim(), 2);
        assert_eq!(second.grant(stranger, 9), [1, 2]);
        second.forget(owner);
        assert_eq!(second.counts(), (1, 3, 0));
    }

    #[test]
    fn nobody_releases_slots_of_others() {
        let (_fd, pool) = Pool::memfd(Geometry::standard(2), 7).unwrap();
        let mut leases = Leases::of(Arc::clone(&pool));
        let (one, other) = (leases.enrol(), leases.enrol());
        assert_eq!(leases.grant(one, 1), [0]);
        leases.release(other, &[0, 1, 77]);
        assert_eq!(pool.slot(0).unwrap().state(), Some(SlotState::Leased));
        assert_eq!(leases.counts(), (1, 1, 0));
    }
}
