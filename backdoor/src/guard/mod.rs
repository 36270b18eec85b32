//! Which access is let through: regions by key, rights by epoch.
//!
//! ```text
//!             live                      fenced (epoch n)                  released
//!   ram       key A  r--                key A  r--                        key C  r--    (A and B are dead)
//!             -                         key B  rwa, to token holders      -
//!   sb, cb    key D  r--                key D  r--                        key E  r--
//!   hooks     key F  rwa                key F  r--                        key G  rwa
//! ```
//!
//! A lock is a fence that ends by itself: while it stands only its key writes, and when it ends no other key does, as
//! the machine behind them is the same.
//!
//! Pure: no memory, no socket, no clock; randomness is passed in. It answers with pieces of the file that holds the
//! machine's memory, and [`crate::memory`] touches them while it holds the guard, so that no access outlives its key.
//!
//! Invariants: a key permits nothing outside its region and nothing beyond its rights; while a fence stands only its
//! key writes; keys are random and none survives the end of its epoch; what the agent registers is checked against
//! the memory that exists and replaces only regions of the agent.

#[cfg(test)]
mod properties;
mod regions;

use control::agent::Registration;
use control::backdoor::{FenceToken, LockToken, RegionEntry};
use rand::Rng;
use remote_memory::{Epoch, RemoteKey, Rights};

use crate::scatter::{Reach, Scatter};
use regions::Boxes;
pub use regions::RegisterError;

/// Name of the region that is the whole guest-physical memory.
pub const RAM: &str = "ram";

/// Key, bounds or rights do not permit the access; which of them is not the asker's business.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("key, bounds or rights do not permit it")]
pub struct Refused;

/// A fence that has not been released, or a lock.
#[derive(Debug)]
struct Standing {
    token: FenceToken,
    claim: Option<u64>,
    /// Whether the token's key still opens the memory: not once a release has begun.
    open: bool,
    /// Whether it is a lock, which ends by itself.
    leased: bool,
}

impl Standing {
    /// Whether the caller that names `claim` made it; nobody does by naming none.
    fn was_made_under(&self, claim: Option<u64>) -> bool {
        claim.is_some() && self.claim == claim
    }
}

/// The rules for one target.
#[derive(Debug)]
pub struct Guard {
    target: String,
    ram: Scatter,
    ram_key: RemoteKey,
    boxes: Boxes,
    epoch: Epoch,
    standing: Option<Standing>,
}

impl Guard {
    /// A guard of `target` without memory: it refuses everything until [`Guard::attach`].
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            ram: Scatter::default(),
            ram_key: RemoteKey::default(),
            boxes: Boxes::default(),
            epoch: Epoch::default(),
            standing: None,
        }
    }

    /// Takes over the memory of a machine that was just found. Every key of before is dead; a standing fence stands
    /// on, without a key.
    pub fn attach(&mut self, ram: Scatter, rng: &mut impl Rng) {
        self.boxes = Boxes::default();
        self.ram = ram;
        self.end_keys(rng);
    }

    /// Forgets the memory: the machine is gone.
    pub fn detach(&mut self, rng: &mut impl Rng) {
        self.attach(Scatter::default(), rng);
    }

    /// The file's pieces behind `len` bytes from `addr`, if `key` permits `rights` there.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn reach(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<Reach<'_>, Refused> {
        let (scatter, granted) = self.find(key).ok_or(Refused)?;
        granted.covers(rights).then_some(()).ok_or(Refused)?;
        scatter.reach(addr, len).ok_or(Refused)
    }

    fn find(&self, key: RemoteKey) -> Option<(&Scatter, Rights)> {
        if self.ram.runs().is_empty() {
            return None;
        }
        match &self.standing {
            Some(fence) if fence.open && fence.token.ram_key == key.raw() => return Some((&self.ram, Rights::ALL)),
            _ if key == self.ram_key => return Some((&self.ram, Rights::READ)),
            _ => {}
        }
        let found = self.boxes.by_key(key)?;
        Some((&found.scatter, found.rights_when(self.standing.is_some())))
    }

    /// Registers a region of the agent, or registers it anew; an unchanged one keeps its key. True if it is new or has
    /// changed.
    ///
    /// # Errors
    /// See [`RegisterError`]; the regions are then as before.
    pub fn register(&mut self, wanted: &Registration, rng: &mut impl Rng) -> Result<bool, RegisterError> {
        let key = self.fresh_key(rng);
        self.boxes.register(wanted, &self.ram, key)
    }

    /// The agent says hello: it may have started anew. What it stands by, it registers next.
    pub fn agent_greets(&mut self) {
        self.boxes.mark_stale();
    }

    /// The agent has had its say. What it left readable stays readable (boxes outlive their agent); what was writable
    /// and was not registered again is not, because the pages may be somebody else's by now.
    pub fn agent_settles(&mut self) {
        self.boxes.put_stale_to_sleep();
    }

    /// The machine has been reset: the pages of every box hold something else.
    pub fn machine_reset(&mut self) {
        self.boxes = Boxes::default();
    }

    /// The regions a caller may reach; the holder of the standing fence's token gets its key for [`RAM`].
    ///
    /// # Errors
    /// [`Refused`] for a token that is not the standing fence's.
    pub fn regions(&self, token: Option<&FenceToken>) -> Result<Vec<RegionEntry>, Refused> {
        let (key, rights) = match token {
            None => (self.ram_key, Rights::READ),
            Some(token) => match &self.standing {
                Some(fence) if fence.open && !fence.leased && fence.token == *token => {
                    (RemoteKey::new(token.ram_key), Rights::ALL)
                }
                _ => return Err(Refused),
            },
        };
        let mut entries = Vec::new();
        if !self.ram.runs().is_empty() {
            entries.push(entry(RAM, key, &self.ram, self.ram.end(), rights));
            let fenced = self.standing.is_some();
            entries.extend(
                self.boxes.iter().map(|it| entry(&it.name, it.key, &it.scatter, it.len, it.rights_when(fenced))),
            );
        }
        Ok(entries)
    }

    /// The epoch that runs.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether a fence stands, also one whose release has begun.
    pub fn is_fenced(&self) -> bool {
        self.standing.as_ref().is_some_and(|fence| !fence.leased)
    }

    /// Whether a lock stands.
    pub fn is_locked(&self) -> bool {
        self.standing.as_ref().is_some_and(|lock| lock.leased)
    }

    /// Whether `token` is that of the standing fence, whatever its key opens now.
    pub fn is_standing(&self, token: &FenceToken) -> bool {
        self.standing.as_ref().is_some_and(|fence| !fence.leased && fence.token == *token)
    }

    /// The standing fence's token, for the caller that made it under `claim`.
    pub fn claimed(&self, claim: Option<u64>) -> Option<FenceToken> {
        let fence = self.standing.as_ref().filter(|it| it.was_made_under(claim) && !it.leased)?;
        Some(fence.token.clone())
    }

    /// The standing lock's token, for the caller that made it under `claim`.
    pub fn locked_by(&self, claim: Option<u64>) -> Option<LockToken> {
        let lock = self.standing.as_ref().filter(|it| it.was_made_under(claim) && it.leased)?;
        Some(LockToken::new(lock.token.clone()))
    }

    /// Begins an epoch in which the token's key opens the whole memory. Call it when the machine stands still.
    ///
    /// # Panics
    /// If a fence stands: the caller has asked [`Guard::is_fenced`] under the same lock.
    pub fn fence(&mut self, claim: Option<u64>, rng: &mut impl Rng) -> FenceToken {
        self.hold(claim, false, rng)
    }

    /// The same for a lock.
    ///
    /// # Panics
    /// If a fence or a lock stands.
    pub fn lock(&mut self, claim: u64, rng: &mut impl Rng) -> LockToken {
        LockToken::new(self.hold(Some(claim), true, rng))
    }

    fn hold(&mut self, claim: Option<u64>, leased: bool, rng: &mut impl Rng) -> FenceToken {
        assert!(self.standing.is_none(), "one fence at a time");
        self.epoch = self.epoch.next();
        let ram_key = self.fresh_key(rng).raw();
        let token = FenceToken { target: self.target.clone(), epoch: self.epoch.raw(), ram_key, secret: rng.random() };
        self.standing = Some(Standing { token: token.clone(), claim, open: true, leased });
        token
    }

    /// Makes a fence of the lock that stands under `claim`; its key is the fence's. Call it when the links are down.
    pub fn harden(&mut self, claim: Option<u64>) -> Option<FenceToken> {
        let lock = self.standing.as_mut().filter(|it| it.was_made_under(claim) && it.leased)?;
        lock.leased = false;
        Some(lock.token.clone())
    }

    /// Ends a lock and its key, before the machine may run; keys that were good beside it stay so, as the machine is
    /// the same. Without a token whatever lock stands.
    ///
    /// # Errors
    /// [`Refused`] if it is not that of a standing lock.
    pub fn unlock(&mut self, token: Option<&LockToken>) -> Result<(), Refused> {
        let stands = |it: &Standing| it.leased && token.is_none_or(|token| it.token == *token.inner());
        self.standing.take_if(|it| stands(it)).map(drop).ok_or(Refused)
    }

    /// Ends every key of the epoch: the first half of a release, before the machine may run. The token stays good
    /// for finishing the release, and for nothing else. May be repeated.
    ///
    /// # Errors
    /// [`Refused`] if `token` is not the standing fence's.
    pub fn begin_release(&mut self, token: &FenceToken, rng: &mut impl Rng) -> Result<(), Refused> {
        match &self.standing {
            Some(fence) if !fence.leased && fence.token == *token => self.end_keys(rng),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// The second half of a release: the fence stands no more.
    pub fn finish_release(&mut self) {
        self.standing = None;
    }

    /// Puts up again the fence of `token`, made before the daemon was started anew. Its key opens nothing until
    /// [`Guard::reopen`].
    ///
    /// # Panics
    /// If a fence stands.
    pub fn restore(&mut self, token: FenceToken, claim: Option<u64>, leased: bool) {
        assert!(self.standing.is_none(), "one fence at a time");
        self.epoch = Epoch::new(token.epoch);
        self.standing = Some(Standing { token, claim, open: false, leased });
    }

    /// The memory is that of the machine that the standing fence was made for: its token's key opens it again. The same
    /// key, because it is the same fence in the same hands; a new one would void the holder's warrant.
    pub fn reopen(&mut self) {
        if let Some(fence) = &mut self.standing {
            fence.open = true;
        }
    }

    fn end_keys(&mut self, rng: &mut impl Rng) {
        if let Some(fence) = &mut self.standing {
            fence.open = false;
        }
        self.epoch = self.epoch.next();
        self.ram_key = self.fresh_key(rng);
        for index in 0..self.boxes.iter().len() {
            let key = self.fresh_key(rng);
            self.boxes.rekey(index, key);
        }
    }

    /// A key that is not in use and never 0: nobody finds one by leaving a field empty.
    fn fresh_key(&self, rng: &mut impl Rng) -> RemoteKey {
        loop {
            let key = RemoteKey::new(rng.random());
            let fenced = self.standing.as_ref().is_some_and(|fence| fence.token.ram_key == key.raw());
            if key.raw() != 0 && key != self.ram_key && !fenced && self.boxes.by_key(key).is_none() {
                return key;
            }
        }
    }
}

fn entry(name: &str, key: RemoteKey, scatter: &Scatter, len: u64, rights: Rights) -> RegionEntry {
    let extents = if name == RAM { scatter.extents() } else { Vec::new() };
    RegionEntry { name: name.to_owned(), key: key.raw(), base: 0, len, rights: rights.bits(), extents }
}
