//! The surveyor of one target: a thread that finds its kernel sensors beside the watch, which never waits for it.
//!
//! It surveys when the target is first reached, and again when the watch says that what was found is of an earlier life
//! of the kernel, or the backdoor that the machine was reset: what a machine that slept has left may say for ever that
//! it sleeps. In between it only walks the users, once a second, if a sensor needs that; the watch gets the new places
//! with the same survey.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use introspect::Kernel;
use introspect::linux::ucounts::{self, CountPlace};
use link::Link;
use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};

use super::survey::{Survey, WatchedUser, survey_the_living};
use crate::config::{Config, Target};
use crate::inspect;
use crate::metrics::TargetMetrics;
use crate::sample::Life;

/// How often a waiting surveyor looks whether there is something to do.
const NOTICE: Duration = Duration::from_millis(50);

/// How often users are walked, and a survey that failed is tried again.
const EVERY: Duration = Duration::from_secs(1);

/// Users whose counts are read in each sample: those with most processes.
const USERS_MAX: usize = 16;

/// What a surveyor has found.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// It has not come to an end yet.
    #[default]
    Pending,
    /// Where everything is.
    Found(Arc<Survey>),
    /// Why nothing can be found.
    Failed(String),
}

#[derive(Debug, Default)]
struct Shared {
    answer: Mutex<Answer>,
    /// How many answers there were.
    number: AtomicU64,
    /// The survey that was refused last.
    refused: AtomicU64,
}

/// The watch's end. One without a thread never has anything to say.
#[derive(Clone, Debug, Default)]
pub struct Surveyor(Option<Arc<Shared>>);

impl Surveyor {
    /// Changes with each answer.
    pub fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.number.load(Ordering::Acquire))
    }

    /// The newest answer; `None` if nobody surveys.
    pub fn answer(&self) -> Option<Answer> {
        self.0.as_ref().map(|shared| shared.locked().clone())
    }

    /// The survey of that number is not of the kernel that lives now.
    pub fn refuse(&self, number: u64) {
        if let Some(shared) = &self.0 {
            shared.refused.fetch_max(number, Ordering::Release);
        }
    }

    /// One that has made `survey` and makes no other.
    pub fn with(survey: Survey) -> Self {
        let shared = Arc::new(Shared::default());
        shared.publish(survey);
        Self(Some(shared))
    }

    /// One that has not come to an end yet.
    #[cfg(test)]
    pub(crate) fn pending() -> Self {
        Self(Some(Arc::default()))
    }

    /// Gives an answer in the place of its thread.
    #[cfg(test)]
    pub(crate) fn say(&self, answer: Result<Survey, &str>) {
        let shared = self.0.as_ref().unwrap();
        match answer {
            Ok(survey) => shared.publish(survey),
            Err(why) => drop(shared.fail(why)),
        }
    }

    /// Whether its thread would survey now.
    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.as_ref().unwrap().is_wanted()
    }

    /// Opens the surveyor of `target`; one without kernel sensors has none.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn open(
        config: &Config,
        target: &Target,
        metrics: &TargetMetrics,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<(Self, Option<JoinHandle<()>>)> {
        if target.kernel_sensors.is_empty() {
            return Ok((Self::default(), None));
        }
        let shared = Arc::new(Shared::default());
        let duty = Duty {
            config: config.clone(),
            target: target.clone(),
            metrics: metrics.clone(),
            shared: Arc::clone(&shared),
            patient: None,
        };
        let stop = Arc::clone(stop);
        let thread = thread::Builder::new().name(format!("survey {}", target.name));
        Ok((Self(Some(shared)), Some(thread.spawn(move || duty.run(&stop))?)))
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, survey: Survey) {
        let mut answer = self.locked();
        let number = self.number.load(Ordering::Relaxed) + 1;
        *answer = Answer::Found(Arc::new(Survey { number, ..survey }));
        self.number.store(number, Ordering::Release);
    }

    /// False if that was the answer before.
    fn fail(&self, why: &str) -> bool {
        let mut answer = self.locked();
        if matches!(&*answer, Answer::Failed(before) if before == why) {
            return false;
        }
        *answer = Answer::Failed(why.to_owned());
        self.number.fetch_add(1, Ordering::Release);
        true
    }

    fn newest(&self) -> Option<Arc<Survey>> {
        match &*self.locked() {
            Answer::Found(survey) => Some(Arc::clone(survey)),
            Answer::Pending | Answer::Failed(_) => None,
        }
    }

    /// Whether a survey is to be made.
    fn is_wanted(&self) -> bool {
        self.newest().is_none_or(|survey| survey.number <= self.refused.load(Ordering::Acquire))
    }
}

/// The thread's end.
struct Duty {
    config: Config,
    target: Target,
    metrics: TargetMetrics,
    shared: Arc<Shared>,
    patient: Option<Patient>,
}

struct Patient {
    link: Link,
    kernel: Kernel,
    counts: Counts,
    /// Asked for before its kernel was looked for.
    life: Life,
}

/// How many processes each user had at the last walk.
type Counts = HashMap<KernelVirt, u64>;

impl Duty {
    fn run(mut self, stop: &AtomicBool) {
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() < next {
                thread::sleep(NOTICE);
                continue;
            }
            self.look_for_reset();
            if self.shared.is_wanted() {
                self.survey(stop);
            } else if self.shared.newest().is_some_and(|survey| survey.counts_users()) {
                self.count_users();
            }
            next = Instant::now() + EVERY;
        }
    }

    /// What was found in an earlier life of the machine is not wanted any more, whether or not the watch misses
    /// anything; nor is what may be of an earlier one, because the backdoor is another.
    fn look_for_reset(&mut self) {
        let Some(patient) = &mut self.patient else { return };
        let life = match Life::of(&mut patient.link) {
            Ok(life) => life,
            // The watch sees a lost path by itself.
            Err(_) => match connected(&self.config, &self.target) {
                Ok((link, life)) => {
                    patient.link = link;
                    life
                }
                Err(_) => return,
            },
        };
        if life == patient.life {
            return;
        }
        tracing::warn!(target_name = %self.target.name, "reset: its next kernel is looked for");
        self.patient = None;
        if let Some(survey) = self.shared.newest() {
            self.shared.refused.fetch_max(survey.number, Ordering::Release);
        }
    }

    fn survey(&mut self, stop: &AtomicBool) {
        let name = &self.target.name;
        match self.surveyed(stop) {
            Ok((survey, patient)) => {
                let (found, missing) = (survey.described().count(), survey.missing.len());
                tracing::info!(target_name = %name, kernel = %survey.release, found, missing, "kernel sensors found");
                for (sensor, why) in &survey.missing {
                    tracing::error!(target_name = %name, %sensor, %why, "this kernel does not have the sensor");
                }
                self.metrics.kernel_sensors.set(found as i64);
                self.metrics.kernel_sensors_missing.set(missing as i64);
                self.patient = Some(patient);
                self.shared.publish(survey);
            }
            Err(why) => {
                self.metrics.kernel_sensors.set(0);
                if self.shared.fail(&why) {
                    tracing::warn!(target_name = %name, %why, "the kernel's sensors cannot be found yet");
                }
            }
        }
    }

    fn surveyed(&self, stop: &AtomicBool) -> Result<(Survey, Patient), String> {
        let (mut link, life) = connected(&self.config, &self.target)?;
        let region = link.region("ram").map_err(|failure| failure.to_string())?;
        let (ram, extents) = (RemoteKey::new(region.key), inspect::extents(&region));
        let (sensors, is_over) = (&self.target.kernel_sensors, || stop.load(Ordering::Relaxed));
        let (kernel, mut survey) = survey_the_living(link.memory(), ram, &extents, sensors, &is_over)?;
        let mut counts = Counts::new();
        if survey.counts_users() {
            let walked = watched_users(&kernel, link.memory(), ram, None).map_err(|error| error.to_string())?;
            (survey.users, counts) = walked;
        }
        Ok((survey, Patient { link, kernel, counts, life }))
    }

    fn count_users(&mut self) {
        let (Some(Patient { link, kernel, counts, .. }), Some(survey)) = (&mut self.patient, self.shared.newest())
        else {
            return;
        };
        let Ok(ram) = link.region("ram") else { return }; // the watch sees a lost path by itself
        let Ok((users, now)) = watched_users(kernel, link.memory(), RemoteKey::new(ram.key), Some(counts)) else {
            return;
        };
        *counts = now;
        let places = |users: &[WatchedUser]| users.iter().map(|user| user.place.at).collect::<Vec<_>>();
        let (mut before, mut after) = (places(&survey.users), places(&users));
        before.sort_unstable();
        after.sort_unstable();
        if before != after {
            self.shared.publish(Survey { users, ..Survey::clone(&survey) });
        }
    }
}

/// A connection of the surveyor's own, and which life of the machine was found behind it.
fn connected(config: &Config, target: &Target) -> Result<(Link, Life), String> {
    let mut link = inspect::connect(config, target).map_err(|error| format!("{error:#}"))?;
    let life = Life::of(&mut link).map_err(|failure| failure.to_string())?;
    Ok((link, life))
}

/// Finds the users with most processes, given what each had at an earlier walk; and what each has now. Users of the
/// initial namespace only: those of others are counted in it too.
///
/// # Errors
/// [`LinkError`] if the path failed.
pub fn watched_users(
    kernel: &Kernel,
    memory: &mut dyn RemoteRead,
    ram: RemoteKey,
    earlier: Option<&HashMap<KernelVirt, u64>>,
) -> Result<(Vec<WatchedUser>, HashMap<KernelVirt, u64>), LinkError> {
    let (users, _) = ucounts::walk(kernel, memory, ram)?;
    let users: Vec<_> = users.into_iter().filter(|user| user.is_initial).collect();
    let counts = users.iter().map(|user| (user.address, user.processes)).collect();
    let earlier_of = |at: &KernelVirt| earlier.map(|counts| counts.get(at).copied().unwrap_or(0));
    let watched = |user| {
        let place = CountPlace::of(kernel, user)?;
        Some(WatchedUser { place, earlier: earlier_of(&place.user.address) })
    };
    Ok((users.iter().filter_map(watched).take(USERS_MAX).collect(), counts))
}
