//! From places to values: what a sample fetches of the kernel's memory, and what it says.
//!
//! ```text
//!   places        w w    w                 w w w                    user            each a few bytes, anywhere
//!   stretches    [=========]              [=====]                  [====]           one READ each, all in one batch
//! ```
//! Values are taken only if the words that tell one life of a kernel from the next are as the survey has seen them.

use std::ops::Range;
use std::sync::Arc;

use remote_memory::{GuestPhys, LinkError, Read, RemoteAddr, RemoteKey, RemoteRead};

use super::survey::{Sleep, Source, Survey, Word, identity};
use super::users::Users;
use crate::detect::DescribedSensor;

/// Bytes between two places that are fetched along rather than asked for in a READ of their own.
const GAP_BYTES_MAX: u64 = 256;

/// READs of one sample; places beyond have no value.
pub(crate) const STRETCHES_MAX: usize = 192;

/// Bytes of one sample, at most: a stretch has two pages, on average far less.
pub(crate) const BYTES_MAX: usize = 128 * 1024;

/// `SYSTEM_RUNNING` of include/linux/kernel.h. Before it a kernel boots, behind it it halts, restarts or sleeps.
const SYSTEM_RUNNING: i128 = 3;

/// `TS_FLAG_INIDLE` and `TS_FLAG_STOPPED` of kernel/time/tick-sched.h, since 6.9.
const FLAG_IN_IDLE: i128 = 1;
const FLAG_STOPPED: i128 = 2;

/// What every progress sensor shows after a panic. It never moves again.
const PANICKED: u64 = u64::MAX;

/// Flags in the lowest bits of a lock's owner.
const OWNER_FLAGS: i128 = 7;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    at: u64,
    /// Where in the buffer.
    range: Range<usize>,
}

/// What the machine as a whole is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Runs,
    Panicked,
    /// It boots, or goes down in order: nothing is promised.
    Between,
}

/// Reads one target's kernel sensors over and over.
#[derive(Debug)]
pub struct KernelReader {
    survey: Arc<Survey>,
    ram: RemoteKey,
    /// Sensors that are read, by their place in the survey.
    kept: Vec<usize>,
    stretches: Vec<Stretch>,
    buffer: Vec<u8>,
    users: Users,
}

impl KernelReader {
    /// A reader of all sensors of `survey`, in the memory behind `ram`.
    pub fn new(survey: Arc<Survey>, ram: RemoteKey) -> Self {
        let kept = (0..survey.sensors.len()).collect();
        let users = Users::default();
        let mut reader = Self { survey, ram, kept, stretches: Vec::new(), buffer: Vec::new(), users };
        reader.lay_out();
        reader
    }

    /// What it reads by.
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Its sensors.
    pub fn described(&self) -> impl Iterator<Item = &DescribedSensor> {
        self.survey.described()
    }

    /// Keeps the sensors at `places` of [`KernelReader::described`]; values come in that order.
    pub fn keep(&mut self, places: impl Iterator<Item = usize>) {
        self.kept = places.collect();
        self.lay_out();
    }

    /// Goes on with a survey that differs in its users only; false if it is another one.
    pub fn take_users(&mut self, newer: &Arc<Survey>) -> bool {
        let is_same = self.survey.identity == newer.identity && self.survey.sensors == newer.sensors;
        if is_same {
            self.survey = Arc::clone(newer);
            let addresses: Vec<_> = newer.users.iter().map(|user| user.place.user.address).collect();
            self.users.keep(&addresses);
            self.lay_out();
        }
        is_same
    }

    /// Whether the kernel of the survey is the one that lives, and everything can be read.
    ///
    /// # Errors
    /// [`LinkError`] if the path failed.
    pub fn is_current(&mut self, memory: &mut dyn RemoteRead) -> Result<bool, LinkError> {
        let mut batch = Vec::new();
        self.ask(&mut batch);
        memory.read(&mut batch)?;
        let is_granted = batch.iter().all(|read| read.outcome.is_ok());
        Ok(is_granted && self.is_same_life())
    }

    /// Takes one sample by itself; a value for each sensor kept.
    ///
    /// # Errors
    /// In a sentence.
    pub fn look(&mut self, memory: &mut dyn RemoteRead, now_ns: u64) -> Result<Vec<Option<u64>>, String> {
        let mut values = Vec::with_capacity(self.kept.len());
        match self.is_current(memory) {
            Ok(true) if self.values(now_ns, &mut values) => Ok(values),
            Ok(_) => Err("another kernel lives there than the one whose sensors were found".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Adds the READs of one sample, which bring the bytes into this reader's buffer.
    pub fn ask<'b>(&'b mut self, batch: &mut Vec<Read<'b>>) {
        let (mut rest, mut passed) = (&mut self.buffer[..], 0);
        for Stretch { at, range } in &self.stretches {
            let (into, behind) = rest.split_at_mut(range.end - passed);
            batch.push(Read::new(RemoteAddr::new(self.ram, *at), into));
            (rest, passed) = (behind, range.end);
        }
    }

    /// The READs of one sample: from where, and where in the buffer they go.
    pub fn reads(&self) -> impl ExactSizeIterator<Item = (RemoteAddr, Range<usize>)> {
        self.stretches.iter().map(|stretch| (RemoteAddr::new(self.ram, stretch.at), stretch.range.clone()))
    }

    /// Where their bytes go.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Adds the values of what was fetched at `now_ns` to `values`, one for each sensor kept; none of them has one if
    /// the bytes are those of another life of the machine, and false is returned.
    pub fn values(&mut self, now_ns: u64, values: &mut Vec<Option<u64>>) -> bool {
        if !self.is_same_life() {
            values.extend(self.kept.iter().map(|_| None));
            return false;
        }
        let survey = Arc::clone(&self.survey);
        for user in &survey.users {
            let place = &user.place;
            let count = self.bytes(place.at, place.len).and_then(|bytes| place.count(bytes));
            // Memory that is somebody else's by now: the user has no processes left.
            self.users.observe(now_ns, place.user.address, user.earlier, count.unwrap_or(0));
        }
        let life = self.life();
        values.extend(self.kept.iter().map(|sensor| self.value(&survey.sensors[*sensor].source, life)));
        true
    }

    fn is_same_life(&self) -> bool {
        let words: Option<Vec<i128>> = self.survey.guards.iter().map(|word| self.number(word)).collect();
        words.is_some_and(|words| identity(words.into_iter().map(|word| word as u64)) == self.survey.identity)
    }

    fn life(&self) -> Life {
        let number = |word: &Option<Word>| word.as_ref().and_then(|word| self.number(word));
        match (number(&self.survey.panic), number(&self.survey.state)) {
            (Some(cpu), _) if cpu != -1 => Life::Panicked,
            (_, Some(state)) if state != SYSTEM_RUNNING => Life::Between,
            _ => Life::Runs,
        }
    }

    fn value(&self, source: &Source, life: Life) -> Option<u64> {
        match source {
            Source::Sum(words) => {
                let mut sum = 0;
                for (word, is_negative) in words {
                    let number = self.number(word)?;
                    sum += if *is_negative { -number } else { number };
                }
                // Sums lag behind differences that processors keep, and can be seen below zero.
                Some(u64::try_from(sum.max(0)).unwrap_or(u64::MAX))
            }
            Source::IsHeld(word) => Some(u64::from(self.number(word)? & !OWNER_FLAGS != 0)),
            Source::Progress { cpu, words } => match life {
                Life::Panicked => Some(PANICKED),
                Life::Between => None,
                Life::Runs if !cpu.is_none_or(|cpu| self.is_online(cpu)) => None,
                Life::Runs => {
                    words.iter().try_fold(0, |sum: u64, word| Some(sum.wrapping_add(self.number(word)? as u64)))
                }
            },
            Source::Sleep(_) if life == Life::Panicked => Some(0),
            Source::Sleep(sleeps) => {
                let of_online = sleeps.iter().filter(|sleep| self.is_online(sleep.cpu));
                let sleeps: Option<Vec<u64>> = of_online.map(|sleep| self.sleep_ns(sleep)).collect();
                sleeps?.into_iter().min()
            }
            Source::MostOfOneUser => self.users.most(),
            Source::GrowthOfOneUser => self.users.growth(),
        }
    }

    fn is_online(&self, cpu: u32) -> bool {
        self.number(&self.survey.online).is_some_and(|mask| mask >> cpu & 1 == 1)
    }

    /// From when the processor went to idle until it is due: 0 while it ticks.
    fn sleep_ns(&self, sleep: &Sleep) -> Option<u64> {
        let (is_stopped, is_idle) = match sleep.state.as_slice() {
            [flags] => {
                let flags = self.number(flags)?;
                (flags & FLAG_STOPPED != 0, flags & FLAG_IN_IDLE != 0)
            }
            [stopped, idle] => (self.number(stopped)? != 0, self.number(idle)? != 0),
            _ => return None,
        };
        match (is_stopped, is_idle) {
            (false, _) => Some(0),
            // A processor that runs without ticks on purpose (`nohz_full`): its silence says nothing.
            (true, false) => Some(u64::MAX),
            (true, true) => {
                let mut due = self.number(&sleep.tick)?;
                if let Some([is_active, timer]) = &sleep.timer
                    && self.number(is_active)? != 0
                {
                    due = due.min(self.number(timer)?);
                }
                // What has no timer sleeps until somebody wakes it.
                let is_endless = due >= i64::MAX.into();
                let slept = due.saturating_sub(self.number(&sleep.entered)?).max(0);
                Some(if is_endless { u64::MAX } else { u64::try_from(slept).unwrap_or(u64::MAX) })
            }
        }
    }

    fn number(&self, word: &Word) -> Option<i128> {
        self.bytes(word.at, word.len()).map(|bytes| word.value(bytes))
    }

    /// What was fetched from `at`.
    fn bytes(&self, at: GuestPhys, len: usize) -> Option<&[u8]> {
        let behind = self.stretches.partition_point(|stretch| stretch.at <= at.raw());
        let stretch = self.stretches.get(behind.checked_sub(1)?)?;
        let start = stretch.range.start.checked_add(usize::try_from(at.raw() - stretch.at).ok()?)?;
        let end = start.checked_add(len)?;
        (end <= stretch.range.end).then(|| &self.buffer[start..end])
    }

    /// Says which stretches hold all that is wanted, ascending and apart.
    fn lay_out(&mut self) {
        let mut places: Vec<(u64, usize)> = Vec::new();
        let survey = &self.survey;
        let machine = survey.guards.iter().chain([&survey.online]).chain(&survey.panic).chain(&survey.state);
        places.extend(machine.map(|word| (word.at.raw(), word.len())));
        places.extend(survey.users.iter().map(|user| (user.place.at.raw(), user.place.len)));
        let first = places.len();
        for sensor in &self.kept {
            each_word(&survey.sensors[*sensor].source, &mut |word| places.push((word.at.raw(), word.len())));
        }
        // What tells lives apart comes before everything else, should it be too much.
        places[first..].sort_unstable();
        let mut stretches = stretches(places.clone());
        let all = places.len();
        while stretches.len() > STRETCHES_MAX || total(&stretches) > BYTES_MAX {
            places.truncate(places.len() * 3 / 4);
            stretches = self::stretches(places.clone());
        }
        if places.len() < all {
            let read = places.len();
            tracing::error!(all, read, "the kernel sensors have more places than one sample reads; some have no value");
        }
        self.buffer = vec![0; total(&stretches)];
        self.stretches = stretches;
    }
}

fn total(stretches: &[Stretch]) -> usize {
    stretches.last().map_or(0, |stretch| stretch.range.end)
}

fn stretches(mut places: Vec<(u64, usize)>) -> Vec<Stretch> {
    places.sort_unstable();
    let mut stretches: Vec<Stretch> = Vec::new();
    for (at, len) in places {
        let end = at.saturating_add(len as u64);
        if let Some(last) = stretches.last_mut() {
            let reached = last.at + last.range.len() as u64;
            if at <= reached.saturating_add(GAP_BYTES_MAX) {
                last.range.end += end.saturating_sub(reached) as usize;
                continue;
            }
        }
        let start = total(&stretches);
        stretches.push(Stretch { at, range: start..start + (end - at) as usize });
    }
    stretches
}

fn each_word<'s>(source: &'s Source, visit: &mut dyn FnMut(&'s Word)) {
    match source {
        Source::Sum(words) => words.iter().for_each(|(word, _)| visit(word)),
        Source::IsHeld(word) => visit(word),
        Source::Progress { words, .. } => words.iter().for_each(visit),
        Source::Sleep(sleeps) => {
            for Sleep { state, entered, tick, timer, .. } in sleeps {
                let words = state.iter().chain([entered, tick]).chain(timer.iter().flatten());
                words.for_each(&mut *visit);
            }
        }
        Source::MostOfOneUser | Source::GrowthOfOneUser => {}
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
pub(crate) mod tests;
