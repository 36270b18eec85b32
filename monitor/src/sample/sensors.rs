//! Where a target's sensors come from: its agent's box, the surveyor of its kernel, or both.
//!
//! A machine that is reset leaves its memory as it was until its next kernel has written over it: the old one looks as
//! if it stood still. A box is forgotten by the backdoor then; where there is none, the backdoor is asked how often it
//! has seen the machine reset, when sensors are opened and before a hang is acted on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use link::LinkFailure;

use super::{Door, Life, OpenError, Opened, Reader};
use crate::config::Target;
use crate::kernel::{Answer, Survey, Surveyor};

/// How often it is looked whether a survey has come.
const NOTICE: Duration = Duration::from_millis(20);

/// Why sensors cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// Whether it is the path, so that nothing is learnt of the target.
    pub is_path: bool,
    /// In a sentence.
    pub why: String,
}

impl From<LinkFailure> for Unreached {
    fn from(failure: LinkFailure) -> Self {
        // A link that says so is lost; so is one that this machine cannot open. Anything else came over a working path.
        let is_path = failure.is_path() || matches!(failure, LinkFailure::Local(_));
        Self { is_path, why: failure.to_string() }
    }
}

/// What there is to be read of one target.
#[derive(Clone, Debug)]
pub struct Sensors {
    has_box: bool,
    surveyor: Surveyor,
    /// The newest answer of the surveyor that was heard.
    heard: u64,
    /// Without a box: the life of the machine and of its kernel in which sensors were opened last.
    opened_in: Option<(Life, u64)>,
    /// A kernel that has ended with a reset, whatever its memory looks like.
    dead: Option<u64>,
}

impl Sensors {
    /// Those of `target`.
    pub fn new(target: &Target, surveyor: Surveyor) -> Self {
        Self { has_box: target.agent, surveyor, heard: 0, opened_in: None, dead: None }
    }

    /// Whether what is read is of the life that the machine has now.
    ///
    /// # Errors
    /// [`LinkFailure`], if nobody could say.
    pub fn are_of_this_life(&self, door: &mut impl Door) -> Result<bool, LinkFailure> {
        match self.opened_in {
            Some((earlier, _)) if !self.has_box => Ok(!door.life()?.is_after(earlier)),
            _ => Ok(true),
        }
    }

    /// Waits until the surveyor has come to an end.
    ///
    /// # Errors
    /// In a sentence: what it says, or that it takes too long.
    pub fn wait(&self, patience: Duration) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            match self.surveyor.answer() {
                Some(Answer::Failed(why)) => return Err(why),
                Some(Answer::Found(_)) | None => return Ok(()),
                Some(Answer::Pending) if begin.elapsed() >= patience => {
                    return Err(format!("its kernel was not read within {patience:?}"));
                }
                Some(Answer::Pending) => std::thread::sleep(NOTICE),
            }
        }
    }

    /// Takes in a newer survey of the kernel: new places of users alone change nothing else, anything more wants the
    /// sensors opened again.
    pub fn heed(&mut self, reader: &mut Option<(Reader, Opened)>) {
        let newest = self.surveyor.number();
        if newest == self.heard {
            return;
        }
        self.heard = newest;
        let (Some((open, _)), Some(Answer::Found(survey))) = (reader.as_mut(), self.surveyor.answer()) else { return };
        if !open.take_users(&survey) {
            *reader = None;
        }
    }

    /// Opens them; `None` as long as those of the kernel are being looked for and there are no others.
    ///
    /// # Errors
    /// [`Unreached`].
    pub fn open(&mut self, door: &mut impl Door) -> Result<Option<(Reader, Opened)>, Unreached> {
        let sb = if self.has_box { Some(door.region()?) } else { None };
        let survey: Option<Arc<Survey>> = match self.surveyor.answer() {
            Some(Answer::Found(survey)) => Some(survey),
            Some(Answer::Failed(why)) if sb.is_none() => return Err(Unreached { is_path: false, why }),
            _ => None,
        };
        // Also without a survey, if nothing else tells whether the path works.
        let ram = if sb.is_none() || survey.is_some() { Some(door.ram()?.key) } else { None };
        if sb.is_none() && survey.is_none() {
            return Ok(None);
        }
        let life = if sb.is_none() { Some(door.life()?) } else { None };
        if let (Some(now), Some((earlier, kernel))) = (life, self.opened_in)
            && now.is_after(earlier)
        {
            self.dead = Some(kernel);
        }
        if let Some(survey) = survey.as_ref().filter(|survey| Some(survey.identity) == self.dead) {
            self.surveyor.refuse(survey.number);
            let why = "the machine was reset, and its next kernel has not come yet".to_owned();
            return Err(Unreached { is_path: false, why });
        }
        let Some(memory) = door.memory() else {
            return Err(Unreached { is_path: true, why: "no connection".to_owned() });
        };
        let opened = Reader::open(memory, sb, survey.zip(ram));
        if let Ok((_, Opened { stale: Some(number), .. })) | Err(OpenError::Stale(number)) = &opened {
            self.surveyor.refuse(*number);
        }
        if let (Some(life), Ok((_, opened))) = (life, &opened) {
            self.opened_in = Some((life, opened.identity));
        }
        opened.map(Some).map_err(|error| Unreached { is_path: error.is_path(), why: error.to_string() })
    }
}

#[cfg(test)]
#[path = "sensors_tests.rs"]
mod tests;
