//! Who may write: values that prove the right, so that the compiler asks for it.
//!
//! The server enforces the same from its side with keys that end with their epoch; a warrant is what keeps our own
//! code honest. Reading needs none.

use crate::{RemoteAddr, RemoteKey, operation::checked_end};

/// Counts the fences of one target since its backdoor started. Keys of an older epoch are dead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(u64);

impl Epoch {
    /// Wraps the number from a control message.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number for a control message.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Proof that a target is fenced: its processors are stopped and its link is down, and stay so in this epoch.
///
/// Made from the answer to a fence command and nothing else; not `Clone`, so that releasing the fence consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Fenced {
    epoch: Epoch,
    ram: RemoteKey,
}

impl Fenced {
    /// States that the fence of `epoch` stands and gave out `ram` as the writable key of the target's memory.
    /// Call it where a fence token has just been received or checked, nowhere else.
    pub const fn attested(epoch: Epoch, ram: RemoteKey) -> Self {
        Self { epoch, ram }
    }

    /// The epoch of the fence.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The key of the fenced memory; valid in this epoch only.
    pub const fn ram(&self) -> RemoteKey {
        self.ram
    }
}

/// A word of a live target that was registered to be written from outside: a lock word or a repair hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookWord {
    at: RemoteAddr,
    len: usize,
}

impl HookWord {
    /// States that the target registered `len` bytes at `at` as a hook.
    pub const fn registered(at: RemoteAddr, len: usize) -> Self {
        Self { at, len }
    }

    /// Where it is.
    pub const fn at(&self) -> RemoteAddr {
        self.at
    }
}

/// The authority under which a write is made.
#[derive(Clone, Copy, Debug)]
pub enum Warrant<'a> {
    /// The target is fenced: all of its memory may be written.
    Fenced(&'a Fenced),
    /// The target lives: this hook word may be written and nothing else.
    Hook(&'a HookWord),
}

impl Warrant<'_> {
    /// Whether writing `len` bytes at `at` is covered.
    pub fn covers(&self, at: RemoteAddr, len: usize) -> bool {
        match self {
            Self::Fenced(fenced) => at.key == fenced.ram && checked_end(at, len).is_some(),
            Self::Hook(hook) => match (checked_end(at, len), checked_end(hook.at, hook.len)) {
                (Some(end), Some(hook_end)) => at.key == hook.at.key && at.addr >= hook.at.addr && end <= hook_end,
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_covers_its_own_bytes_and_no_others() {
        let hook = HookWord::registered(RemoteAddr::new(RemoteKey::new(3), 64), 8);
        let covers = |key, addr, len| Warrant::Hook(&hook).covers(RemoteAddr::new(RemoteKey::new(key), addr), len);
        assert!(covers(3, 64, 8));
        assert!(!covers(3, 64, 9));
        assert!(!covers(3, 63, 8));
        assert!(!covers(4, 64, 8));
        assert!(!covers(3, u64::MAX, 8));
    }

    #[test]
    fn a_fence_covers_its_own_key_only() {
        let fenced = Fenced::attested(Epoch::new(1), RemoteKey::new(9));
        assert!(Warrant::Fenced(&fenced).covers(RemoteAddr::new(RemoteKey::new(9), 0), 4096));
        assert!(!Warrant::Fenced(&fenced).covers(RemoteAddr::new(RemoteKey::new(8), 0), 4096));
    }
}
