//! What a link does for a target without a hypervisor in place of asking a backdoor: by its lock word ([`crate::lock`])
//! and by what is known of its regions since it was healthy. So none of it needs the target's user space, which may be
//! frozen; the control connection is for while it is not.

use std::time::Instant;

use control::backdoor::{Afterwards, FenceState, FenceToken, LockHolder, LockToken, RegionEntry};
use locktable::taking::Goal;
use locktable::{Mode, Standing, Taking};

use crate::lock::{self, LockFailure, PATIENCE, Place, RealTime};
use crate::{Link, LinkFailure, locked};

/// A machine that nobody stands behind.
#[derive(Debug)]
pub(crate) struct Bare {
    /// Its lock word.
    pub(crate) place: Place,
    /// Its regions. They live as long as its agent, which makes others when it starts anew.
    pub(crate) regions: Vec<RegionEntry>,
}

impl Bare {
    /// What the regions show of a target: `None` if it has a hypervisor, or no lock word.
    pub(crate) fn of(regions: &[RegionEntry]) -> Option<Self> {
        let has_ram = regions.iter().any(|region| region.name == "ram");
        let place = Place::of(regions).ok().filter(|_| !has_ram)?;
        Some(Self { place, regions: regions.to_vec() })
    }
}

/// Lock words have numbers and no names.
fn name_of(number: u32) -> String {
    format!("lock {number:#x}")
}

impl Link {
    /// Whose lock word fences the target, if there is no backdoor to ask.
    pub(crate) fn place(&self) -> Option<Place> {
        self.bare.as_ref().map(|bare| bare.place)
    }

    pub(crate) fn fence_by_lock(&mut self, place: Place, claim: u64) -> Result<FenceToken, LinkFailure> {
        let (target, begin) = (self.welcome().target, Instant::now());
        let outcome = lock::fence(&mut self.memory, &place, (&target, claim), &mut RealTime::default());
        self.fence_took = Some(begin.elapsed());
        outcome.map_err(|failure| self.said(failure))
    }

    /// A look; the lease begins anew only with another number, so that asking again under one claim changes nothing.
    pub(crate) fn look_by_lock(&mut self, place: Place, claim: u64, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        let number = Taking::number_of(claim, 0);
        let taken = self.attain(place, number, Goal::Take(Mode::Look, lease_ms))?;
        let (target, epoch) = (self.welcome().target, number.into());
        Ok(LockToken::new(FenceToken { target, epoch, ram_key: 0, secret: taken }))
    }

    pub(crate) fn release_by_lock(&mut self, place: Place, token: &FenceToken) -> Result<(), LinkFailure> {
        let number = u32::try_from(token.epoch).map_err(|_| refused("that is no lock of this target"))?;
        self.attain(place, number, Goal::Release).map(drop)
    }

    /// The end of a fence; nobody resets such a machine or turns it off from outside.
    pub(crate) fn release_as(&mut self, place: Place, token: &FenceToken, then: Afterwards) -> Result<(), LinkFailure> {
        match then {
            Afterwards::Resume => self.release_by_lock(place, token),
            Afterwards::Reset | Afterwards::PowerOff => Err(refused("the target has no hypervisor that could do that")),
        }
    }

    pub(crate) fn state_by_lock(&mut self, place: Place, token: &FenceToken) -> Result<FenceState, LinkFailure> {
        let held = lock::is_held(&mut self.memory, &place, token).map_err(|failure| self.said(failure))?;
        Ok(if held { FenceState::Stands } else { FenceState::Ended })
    }

    pub(crate) fn holder_by_lock(&mut self, place: Place) -> Result<Option<LockHolder>, LinkFailure> {
        let (_, locked) = place.look(&mut self.memory).map_err(|failure| self.said(failure))?;
        let Standing::Stands { number, until_ms, .. } = locked.standing else { return Ok(None) };
        let left_ms = until_ms.saturating_sub(locked.beat_ns / 1_000_000);
        Ok(Some(LockHolder { peer: name_of(number), reason: "its lock word does not say".to_owned(), left_ms }))
    }

    /// The regions as they were when the target was healthy, for who holds its fence.
    pub(crate) fn regions_by_lock(&mut self, token: &FenceToken) -> Result<Vec<RegionEntry>, LinkFailure> {
        let Some(bare) = &self.bare else { return Err(refused("the target has no lock word")) };
        let (place, regions) = (bare.place, bare.regions.clone());
        match self.state_by_lock(place, token)? {
            FenceState::Stands => Ok(regions),
            FenceState::Reset | FenceState::Ended => Err(refused("the target's fence is not held")),
        }
    }

    fn attain(&mut self, place: Place, number: u32, goal: Goal) -> Result<u64, LinkFailure> {
        let taken = lock::attain(&mut self.memory, &place, (number, goal), PATIENCE, &mut RealTime::default());
        taken.map(|taken| taken.word).map_err(|failure| self.said(failure))
    }

    fn said(&self, failure: LockFailure) -> LinkFailure {
        match failure {
            LockFailure::Link(error) => LinkFailure::of_memory(locked(&self.conversation).backdoor(), error),
            failure => refused(&failure.to_string()),
        }
    }
}

fn refused(why: &str) -> LinkFailure {
    LinkFailure::Refused { why: why.to_owned() }
}
