//! The guard and the bytes it guards, behind one lock: what the RDMA responder asks.
//!
//! An access holds the lock from the guard's word until its last byte, and whoever ends keys takes the lock for
//! writing. So when a release returns, no write under the old key is still under way. The lock is otherwise
//! uncontended: one thread serves, the control plane changes something a few times a day.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rand::Rng;
use rdma::responder::{Memory, Refusal};
use remote_memory::{RemoteKey, Rights, Window};

use crate::guard::{Guard, Refused};
use crate::guest_ram::{Mapping, Outside};
use crate::scatter::{Piece, Reach};
use crate::windows::Windows;

/// Bytes of the words that atomics work on.
const WORD_BYTES: u64 = 8;

/// A guard with the memory it speaks of.
#[derive(Debug)]
pub struct Guarded {
    /// The rules.
    pub guard: Guard,
    /// The bytes; none while no machine is there.
    pub mapping: Option<Mapping>,
    /// The peers' windows; asked only for keys that the guard does not know.
    windows: Windows,
}

impl Guarded {
    fn reach(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(&Mapping, Reach<'_>), Refusal> {
        let reach = self.guard.reach(key, addr, len, rights).map_err(|Refused| Refusal::Access)?;
        Ok((self.mapping.as_ref().ok_or(Refusal::Unreachable)?, reach))
    }

    /// The place of the one word at `addr`, for an atomic.
    fn word(&self, key: RemoteKey, addr: u64) -> Result<(&Mapping, u64), Refusal> {
        if !addr.is_multiple_of(WORD_BYTES) {
            return Err(Refusal::Malformed);
        }
        let (mapping, mut reach) = self.reach(key, addr, WORD_BYTES, Rights::ATOMIC)?;
        let piece = reach.next().filter(|piece| piece.len == WORD_BYTES).ok_or(Refusal::Unreachable)?;
        Ok((mapping, piece.offset))
    }
}

/// The memory of one target, as peers may use it.
#[derive(Debug)]
pub struct GuardedMemory {
    state: RwLock<Guarded>,
}

impl GuardedMemory {
    /// Nothing yet: everything is refused.
    pub fn new(guard: Guard) -> Self {
        Self { state: RwLock::new(Guarded { guard, mapping: None, windows: Windows::default() }) }
    }

    /// Looks. A panic elsewhere left the guard whole: it has no steps in between that permit more.
    pub fn look(&self) -> RwLockReadGuard<'_, Guarded> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes; waits until no access is under way.
    pub fn change(&self) -> RwLockWriteGuard<'_, Guarded> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a window for a peer; it gives no right.
    pub fn open_window(&self, rng: &mut impl Rng) -> Window {
        self.change().windows.open(rng)
    }

    /// Closes it.
    pub fn close_window(&self, window: &Window) {
        self.change().windows.close(window.list);
    }
}

fn unreachable(Outside: Outside) -> Refusal {
    Refusal::Unreachable
}

/// Scattered places are fetched beside each other.
fn expect(mapping: &Mapping, pieces: &[Piece]) {
    pieces.iter().for_each(|piece| mapping.expect(piece.offset, piece.len));
}

/// Fills the beginning of `rest`, which moves on.
fn copy_out(mapping: &Mapping, pieces: impl Iterator<Item = Piece>, rest: &mut &mut [u8]) -> Result<(), Refusal> {
    for piece in pieces {
        let (now, later) = std::mem::take(rest).split_at_mut(piece.len as usize);
        mapping.read(piece.offset, now).map_err(unreachable)?;
        *rest = later;
    }
    Ok(())
}

/// Writes the beginning of `rest`, which moves on.
fn copy_in(mapping: &Mapping, pieces: impl Iterator<Item = Piece>, rest: &mut &[u8]) -> Result<(), Refusal> {
    for piece in pieces {
        let (now, later) = rest.split_at(piece.len as usize);
        mapping.write(piece.offset, now).map_err(unreachable)?;
        *rest = later;
    }
    Ok(())
}

impl Memory for GuardedMemory {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let state = self.look();
        match state.reach(key, addr, len, rights) {
            Err(Refusal::Access) => state.windows.check(&state.guard, key, addr, len, rights),
            outcome => outcome.map(drop),
        }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let state = self.look();
        let len = into.len() as u64;
        let mut rest = into;
        match state.reach(key, addr, len, Rights::READ) {
            Ok((mapping, reach)) => copy_out(mapping, reach, &mut rest),
            Err(Refusal::Access) => {
                let mapping = state.mapping.as_ref().ok_or(Refusal::Unreachable)?;
                let copy = |pieces: &[Piece]| {
                    expect(mapping, pieces);
                    copy_out(mapping, pieces.iter().copied(), &mut rest)
                };
                state.windows.each(&state.guard, (key, addr, len), Rights::READ, copy)
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn write(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let state = self.look();
        let len = bytes.len() as u64;
        let mut rest = bytes;
        match state.reach(key, addr, len, Rights::WRITE) {
            Ok((mapping, reach)) => copy_in(mapping, reach, &mut rest),
            Err(Refusal::Access) if state.windows.note(key, addr, bytes)? => Ok(()),
            Err(Refusal::Access) => {
                let mapping = state.mapping.as_ref().ok_or(Refusal::Unreachable)?;
                let copy = |pieces: &[Piece]| {
                    expect(mapping, pieces);
                    copy_in(mapping, pieces.iter().copied(), &mut rest)
                };
                state.windows.each(&state.guard, (key, addr, len), Rights::WRITE, copy)
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
        let state = self.look();
        let (mapping, offset) = state.word(key, addr)?;
        mapping.compare_swap(offset, expect, swap).map_err(unreachable)
    }

    fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
        let state = self.look();
        let (mapping, offset) = state.word(key, addr)?;
        mapping.fetch_add(offset, add).map_err(unreachable)
    }
}
