//! The lock of a target without a hypervisor, taken through its memory: compare-and-swap of the lock word that its
//! agent registered, and looks at what its kernel answers.
//!
//! What is done next is decided by [`locktable::Taking`]; here it is carried out. Nothing of this needs the target's
//! user space, nor the control connection: [`Place`] is known since the target was healthy.

use std::time::{Duration, Instant};

use control::backdoor::{FenceToken, RegionEntry};
use locktable::layout::{BYTES, LOCK, LOCKED};
use locktable::taking::Goal;
use locktable::{Locked, Mode, Next, NoAnswers, Taken, Taking, Unlocked};
use remote_memory::{
    AccessError, HookWord, LinkError, Read, RemoteAddr, RemoteKey, RemoteWrite, Rights, Warrant, WriteError,
};

/// Between two looks at the answers. The target's processors look 200 times a second each, and at every packet.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How long a fence stands if nobody holds it: the time between two answers, with some to spare.
pub const FENCE_LEASE_MS: u32 = 5_000;

/// How long a target may take to answer. A processor that is emulated on a busy machine may be held up for long.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Locks under one claim that have ended before another one is tried under it.
const ATTEMPTS: u64 = 8;

/// Why a lock was not taken, held or released.
#[derive(Debug, thiserror::Error)]
pub enum LockFailure {
    /// The target's agent has registered none that can be used.
    #[error("the target has no lock: {0}")]
    NoLock(String),
    /// The path to its memory failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Its memory refused a read.
    #[error("the answers cannot be read: {0}")]
    Unreadable(#[from] AccessError),
    /// What was read are no answers.
    #[error(transparent)]
    NoAnswers(#[from] NoAnswers),
    /// Its memory refused the swap.
    #[error("the lock word cannot be swapped: {0}")]
    Unwritable(#[from] WriteError),
    /// The target has not done what was asked for.
    #[error(transparent)]
    Unlocked(#[from] Unlocked),
}

/// Where a target has its lock word and its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    word: HookWord,
    answers: RemoteAddr,
}

impl Place {
    /// Out of the regions that an agent has registered.
    ///
    /// # Errors
    /// [`LockFailure::NoLock`].
    pub fn of(regions: &[RegionEntry]) -> Result<Self, LockFailure> {
        let found = |name: &str, rights: Rights| {
            let entry = regions.iter().find(|region| region.name == name && region.len >= BYTES as u64);
            let entry = entry.ok_or_else(|| LockFailure::NoLock(format!("its agent has registered no {name}")))?;
            match Rights::from_bits(entry.rights).covers(rights) {
                true => Ok(RemoteAddr::new(RemoteKey::new(entry.key), entry.base)),
                false => Err(LockFailure::NoLock(format!("{name} may not be used so"))),
            }
        };
        let word = found(LOCK, Rights::READ.and(Rights::ATOMIC))?;
        Ok(Self { word: HookWord::registered(word, 8), answers: found(LOCKED, Rights::READ)? })
    }

    /// What the target answers at this moment, and the lock word.
    ///
    /// # Errors
    /// See [`LockFailure`].
    pub fn look(&self, memory: &mut dyn RemoteWrite) -> Result<(u64, Locked), LockFailure> {
        let (mut word, mut answers) = ([0; 8], vec![0; BYTES]);
        let mut batch = [Read::new(self.word.at(), &mut word), Read::new(self.answers, &mut answers)];
        memory.read(&mut batch)?;
        batch.iter().try_for_each(|read| read.outcome)?;
        Ok((u64::from_le_bytes(word), Locked::parse(&answers)?))
    }
}

/// Time, as whoever waits has it.
pub trait Pace {
    /// Since some moment.
    fn now(&mut self) -> Duration;
    /// Does nothing for so long.
    fn rest(&mut self, time: Duration);
}

/// The system's.
#[derive(Clone, Copy, Debug)]
pub struct RealTime(Instant);

impl Default for RealTime {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Pace for RealTime {
    fn now(&mut self) -> Duration {
        self.0.elapsed()
    }

    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Takes, holds or releases lock `number`, within `patience`.
///
/// # Errors
/// See [`LockFailure`]. What was not answered in time has been taken back, but for a hold or a release.
pub fn attain(
    memory: &mut dyn RemoteWrite,
    place: &Place,
    (number, goal): (u32, Goal),
    patience: Duration,
    pace: &mut dyn Pace,
) -> Result<Taken, LockFailure> {
    let mut taking = Taking::begin(number, goal, pace.now(), patience)?;
    let mut next = Next::Look;
    loop {
        next = match next {
            Next::Look => {
                let (word, locked) = place.look(memory)?;
                let then = taking.looked(pace.now(), word, &locked);
                if then == Next::Look {
                    pace.rest(LOOK_EVERY);
                }
                then
            }
            Next::Swap { expect, swap } => {
                let was = memory.compare_swap(Warrant::Hook(&place.word), place.word.at(), expect, swap)?;
                taking.swapped(pace.now(), was)
            }
            Next::Reached(taken) => return Ok(taken),
            Next::Failed(why) => return Err(why.into()),
        };
    }
}

/// Fences the target under `claim` and holds the fence: from then on it does not end by itself, and its sessions may be
/// handed over. Asked again under the same claim, the fence that stands is the one that is answered.
///
/// # Errors
/// See [`LockFailure`]. After [`Unlocked::Unknown`] and a failed path the fence may stand, held or for its lease: to
/// ask again tells.
pub fn fence(
    memory: &mut dyn RemoteWrite,
    place: &Place,
    (target, claim): (&str, u64),
    pace: &mut dyn Pace,
) -> Result<FenceToken, LockFailure> {
    let mut ended = None;
    for number in (0..ATTEMPTS).map(|attempt| Taking::number_of(claim, attempt)) {
        let (_, locked) = place.look(memory)?;
        let taken = match locked.stands(number) {
            Some(Mode::Hold) => Ok(()),
            _ => attain(memory, place, (number, Goal::Take(Mode::Fence, FENCE_LEASE_MS)), PATIENCE, pace).map(drop),
        };
        match taken.and_then(|()| attain(memory, place, (number, Goal::Hold), PATIENCE, pace)) {
            Ok(held) => return Ok(token(target, &held)),
            // Under this number there was a fence before, which nobody held in time: another one, then.
            Err(LockFailure::Unlocked(why @ Unlocked::Ended { .. })) => ended = Some(why),
            Err(why) => return Err(why),
        }
    }
    Err(ended.unwrap_or(Unlocked::NotAnswered).into())
}

/// What is handed on of a held fence. It opens no memory: there is no key to all of it.
fn token(target: &str, held: &Taken) -> FenceToken {
    FenceToken { target: target.to_owned(), epoch: held.number.into(), ram_key: 0, secret: held.word }
}

/// Whether the fence of `token` is held at this moment: what a spare asks before it takes an address.
///
/// # Errors
/// See [`LockFailure`].
pub fn is_held(memory: &mut dyn RemoteWrite, place: &Place, token: &FenceToken) -> Result<bool, LockFailure> {
    let (_, locked) = place.look(memory)?;
    Ok(u32::try_from(token.epoch).is_ok_and(|number| locked.stands(number) == Some(Mode::Hold)))
}
