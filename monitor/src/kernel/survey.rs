//! A survey: where in the target's memory each kernel sensor is, for one life of its kernel.
//!
//! Made beside the watch, since it reads some megabytes. What a kernel lacks is told sensor by sensor, and the others
//! are read all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use introspect::linux::ucounts::{self, CountPlace};
use introspect::linux::variable::{self, Variable, VariableError};
use introspect::{DiscoverError, Extent, Kernel};
use remote_memory::{GuestPhys, LinkError, Read, RemoteAddr, RemoteKey, RemoteRead};

use super::recipe::{Formula, KernelSensor, Term};
use crate::detect::{Class, DescribedSensor};

/// Processors that have progress sensors of their own; those above are not watched, as the agent does not.
const CPUS_MAX: u32 = 64;

/// What differs in each life of a kernel: where KASLR has put memory, and the random word against broken stacks.
const GUARDS: [&str; 4] = [
    "(unsigned long)page_offset_base",
    "(unsigned long)vmalloc_base",
    "(unsigned long)vmemmap_base",
    "init_task.stack_canary",
];

const ONLINE: &str = "(struct cpumask)__cpu_online_mask.bits[0]";
const PANIC: &str = "(atomic_t)panic_cpu";
const STATE: &str = "(unsigned int)system_state";

/// Whether the tick is stopped and whether the processor idles. Newer kernels have both in one word of flags.
const SLEEP_BITS: [&str; 2] = ["tick_cpu_sched.tick_stopped", "tick_cpu_sched.inidle"];
const SLEEP_FLAGS: &str = "tick_cpu_sched.flags";

/// When the processor went to idle, and when its tick comes again, in nanoseconds of the kernel's clock.
const SLEEP_TIMES: [&str; 2] = ["tick_cpu_sched.idle_entrytime", "tick_cpu_sched.idle_expires"];

/// When its next timer of high resolution is due, which may be sooner, and whether it has such.
const TIMERS: [&str; 2] = ["hrtimer_bases.hres_active", "hrtimer_bases.expires_next"];

/// What moves in a kernel that lives: its clock of ticks, at each tick, and at each interrupt of a processor that had
/// stopped them. It lies in the kernel's image, as no counter of a processor does: those of the next kernel lie exactly
/// where those of the one before were, so that a dead one seemed to count.
const SIGN: &str = "jiffies";

/// A sign of life is waited for so long. An idle machine wakes every 4 s for its own watchdog.
const ALIVE_WITHIN: Duration = Duration::from_secs(12);

/// Ticks until a sign of life is seen, which is soon; more than any kernel has in [`ALIVE_WITHIN`].
const TICKS_MAX: u64 = 1_000_000;

/// Between two looks for one.
const SIGN_EVERY: Duration = Duration::from_millis(20);

/// Kernels of earlier lives that are passed over.
const LIVES_MAX: usize = 8;

/// One number in the target's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub at: GuestPhys,
    /// Without places: only how the bytes are read.
    shape: Variable,
}

impl Word {
    #[cfg(test)]
    pub fn made(at: GuestPhys, shape: Variable) -> Self {
        Self { at, shape }
    }

    /// The number in `bytes`, which were read at its place.
    pub fn value(&self, bytes: &[u8]) -> i128 {
        self.shape.value(bytes)
    }

    pub fn len(&self) -> usize {
        self.shape.bytes.into()
    }
}

/// For how long a processor may be silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sleep {
    pub cpu: u32,
    /// `tick_stopped` and `inidle`, or the flags that hold both.
    pub state: Vec<Word>,
    pub entered: Word,
    pub tick: Word,
    /// `hres_active` and `expires_next`.
    pub timer: Option<[Word; 2]>,
}

/// What a value is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The sum of words; `true` ones are taken off.
    Sum(Vec<(Word, bool)>),
    /// 1 while a pointer is not null.
    IsHeld(Word),
    /// Counts that move while the processor, or any of them, makes progress.
    Progress {
        cpu: Option<u32>,
        words: Vec<Word>,
    },
    /// How long a processor may be silent; of several, until the first of them is due.
    Sleep(Vec<Sleep>),
    MostOfOneUser,
    GrowthOfOneUser,
}

/// One sensor and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Surveyed {
    pub described: DescribedSensor,
    pub source: Source,
}

/// Where everything is, in one life of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Differs for each survey of a surveyor.
    pub number: u64,
    /// Differs in each life of the kernel.
    pub identity: u64,
    /// Release of the kernel.
    pub release: String,
    /// Sensors that this kernel does not have: each with what lacks.
    pub missing: Vec<(String, String)>,
    pub(super) guards: Vec<Word>,
    pub(super) online: Word,
    /// What moves while it lives.
    pub(super) sign: Word,
    /// -1 while all is well.
    pub(super) panic: Option<Word>,
    pub(super) state: Option<Word>,
    pub(super) sensors: Vec<Surveyed>,
    pub(super) users: Vec<WatchedUser>,
}

/// A user whose count is read in each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedUser {
    /// Where it is.
    pub place: CountPlace,
    /// How many processes the user had at the walk before the one that found this.
    pub earlier: Option<u64>,
}

impl Survey {
    /// What its sensors are.
    pub fn described(&self) -> impl Iterator<Item = &DescribedSensor> {
        self.sensors.iter().map(|sensor| &sensor.described)
    }

    /// Whether its kernel does anything within [`ALIVE_WITHIN`], or until `is_over` says that nobody wants to know.
    ///
    /// # Errors
    /// [`LinkError`] if the path failed.
    fn is_alive(
        &self,
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        is_over: &dyn Fn() -> bool,
    ) -> Result<bool, LinkError> {
        let sign = std::slice::from_ref(&self.sign);
        let (begin, first) = (Instant::now(), read(mem, ram, sign)?);
        while begin.elapsed() < ALIVE_WITHIN && !is_over() {
            let now = read(mem, ram, sign)?;
            if now != first {
                return Ok(has_ticked(first[0], now[0]));
            }
            thread::sleep(SIGN_EVERY);
        }
        Ok(false)
    }

    /// The same with other users.
    #[must_use]
    pub fn with_users(self, users: Vec<WatchedUser>) -> Self {
        Self { users, ..self }
    }

    /// Whether a walk of users is needed now and then.
    pub fn counts_users(&self) -> bool {
        self.sensors.iter().any(|one| matches!(one.source, Source::MostOfOneUser | Source::GrowthOfOneUser))
    }
}

/// Whether a clock has gone on. Memory of an earlier life that is used anew holds anything.
fn has_ticked(first: u64, now: u64) -> bool {
    now.checked_sub(first).is_some_and(|ticks| (1..=TICKS_MAX).contains(&ticks))
}

/// What the words of `guards` say together.
pub(super) fn identity(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, |identity: u64, word| identity.rotate_left(17) ^ word)
}

/// Finds the kernel that lives in the RAM behind `ram`, and `sensors` in it. What is left of kernels before a reset
/// looks as whole as the one that lives, and does nothing. `is_over` is asked now and then whether to give up.
///
/// # Errors
/// In a sentence: see [`survey`]; also if no kernel shows a sign of life, as that of a machine that hangs already.
pub fn survey_the_living(
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    extents: &[Extent],
    sensors: &[KernelSensor],
    is_over: &dyn Fn() -> bool,
) -> Result<(Kernel, Survey), String> {
    let (mut dead, mut wrong) = (Vec::new(), None);
    while dead.len() < LIVES_MAX && !is_over() {
        let kernel = match Kernel::discover_other_than(mem, ram, extents, &dead) {
            Err(DiscoverError::NoKernel { .. }) if !dead.is_empty() => break,
            found => found.map_err(|error| error.to_string())?,
        };
        match survey(&kernel, mem, ram, sensors) {
            Ok(survey) => {
                if survey.is_alive(mem, ram, is_over).map_err(|error| error.to_string())? {
                    return Ok((kernel, survey));
                }
            }
            // What is left of a kernel may be damaged by the next one.
            Err(why) => wrong = Some(why),
        }
        dead.push(kernel);
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let why = "is what a reset has left, and the next one has not come yet, or the machine hangs";
    Err(format!("no kernel in its memory has moved for {ALIVE_WITHIN:?}: what is there {why}"))
}

/// Finds `sensors` in a target that is healthy.
///
/// # Errors
/// In a sentence, if the path failed or the kernel cannot be told from its next life. What is wrong with one sensor is
/// in [`Survey::missing`].
pub fn survey(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    sensors: &[KernelSensor],
) -> Result<Survey, String> {
    let texts: Vec<&str> = texts(sensors).into_iter().collect();
    let found = variable::resolve(kernel, mem, ram, &texts).map_err(|error| error.to_string())?;
    let found = Found(texts.into_iter().zip(found).collect());
    let guards: Vec<Word> = GUARDS.iter().filter_map(|text| found.one(text).ok()).collect();
    if guards.is_empty() {
        return Err(format!("one life of its kernel cannot be told from the next: {}", found.why(GUARDS[0])));
    }
    let online = found.one(ONLINE)?;
    let sign = found.one(SIGN)?;
    let mut wanted = guards.clone();
    wanted.push(online.clone());
    let words = read(mem, ram, &wanted).map_err(|error| error.to_string())?;
    let Some((mask, guarded)) = words.split_last() else { return Err("nothing was read".to_owned()) };
    let cpus: BTreeSet<u32> = (0..CPUS_MAX).filter(|cpu| mask >> cpu & 1 == 1).collect();
    let mut survey = Survey {
        number: 0,
        identity: identity(guarded.iter().copied()),
        release: kernel.release.clone(),
        missing: Vec::new(),
        guards,
        online,
        sign,
        panic: found.one(PANIC).ok(),
        state: found.one(STATE).ok(),
        sensors: Vec::new(),
        users: Vec::new(),
    };
    for (text, word) in [(PANIC, &survey.panic), (STATE, &survey.state)] {
        if word.is_none() {
            survey.missing.push((text.to_owned(), found.why(text)));
        }
    }
    for sensor in sensors {
        match found.sources(sensor, &cpus) {
            Ok(_) if sensor.formula.is_of_users() && !ucounts::is_known(kernel) => {
                let why = "how this kernel counts the processes of users is not known: no ucounts".to_owned();
                survey.missing.push((sensor.name.clone(), why));
            }
            Ok(surveyed) => survey.sensors.extend(surveyed),
            Err(why) => survey.missing.push((sensor.name.clone(), why)),
        }
    }
    survey.add_sleep(&found, &cpus);
    Ok(survey)
}

impl Survey {
    /// Adds the sensors that others refer to as their sleep. Without them those could not be judged, and go.
    fn add_sleep(&mut self, found: &Found<'_>, cpus: &BTreeSet<u32>) {
        let named: BTreeSet<String> = self.described().filter_map(|sensor| sensor.sleep.clone()).collect();
        let all: Result<Vec<Sleep>, String> = cpus.iter().map(|cpu| found.sleep(*cpu)).collect();
        let all = match all {
            Ok(all) => all,
            Err(why) => {
                let (kept, gone): (Vec<_>, _) =
                    std::mem::take(&mut self.sensors).into_iter().partition(|one| one.described.sleep.is_none());
                self.sensors = kept;
                let why = format!("whether its processors sleep without ticks cannot be read: {why}");
                self.missing.extend(gone.into_iter().map(|one| (one.described.name, why.clone())));
                return;
            }
        };
        for name in named {
            let of = |sleep: &&Sleep| name == SLEEP || name == of_cpu(SLEEP, sleep.cpu);
            let sleeps = all.iter().filter(of).cloned().collect();
            self.sensors.push(Surveyed {
                described: described(&name, Class::Level, false, None),
                source: Source::Sleep(sleeps),
            });
        }
    }
}

/// Name of the sensor that says how long a processor, or the machine, may be silent.
pub(crate) const SLEEP: &str = "SLEEP";

fn of_cpu(name: &str, cpu: u32) -> String {
    format!("{name}.cpu{cpu}")
}

/// Nothing is beyond the bounds of a sensor that no rule names.
fn described(name: &str, class: Class, floor: bool, sleep: Option<String>) -> DescribedSensor {
    let limit = if floor { 0 } else { u64::MAX };
    DescribedSensor { name: name.to_owned(), class, limit, period_ns: 0, floor, sleep }
}

/// All variables that may be needed.
fn texts(sensors: &[KernelSensor]) -> BTreeSet<&str> {
    let mut texts: BTreeSet<&str> = BTreeSet::new();
    for sensor in sensors {
        let terms: &[Term] = match &sensor.formula {
            Formula::Sum(terms) => terms,
            Formula::IsHeld(term) => std::slice::from_ref(term),
            Formula::MostOfOneUser | Formula::GrowthOfOneUser => &[],
        };
        texts.extend(terms.iter().flat_map(|term| term.variables.iter().map(String::as_str)));
    }
    let own = GUARDS.iter().chain(&SLEEP_BITS).chain(&SLEEP_TIMES).chain(&TIMERS);
    texts.extend(own.copied().chain([SIGN, ONLINE, PANIC, STATE, SLEEP_FLAGS]));
    texts
}

/// What has been resolved.
struct Found<'t>(BTreeMap<&'t str, Result<Variable, VariableError>>);

impl Found<'_> {
    fn variable(&self, text: &str) -> Result<&Variable, String> {
        match self.0.get(text) {
            Some(Ok(variable)) if !variable.places.is_empty() => Ok(variable),
            Some(Ok(_)) => Err(format!("{text}: no processor has it")),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(format!("{text} was not asked for")),
        }
    }

    fn why(&self, text: &str) -> String {
        self.variable(text).err().unwrap_or_default()
    }

    /// The words of a term: one, or one for each processor.
    fn words(&self, term: &Term) -> Result<Vec<(Option<u32>, Word)>, String> {
        let mut first = None;
        for text in &term.variables {
            match self.variable(text) {
                Ok(variable) => return Ok(words(variable)),
                Err(why) => drop(first.get_or_insert(why)),
            }
        }
        Err(first.unwrap_or_else(|| "nothing is named".to_owned()))
    }

    /// A variable that is not per-CPU.
    fn one(&self, text: &str) -> Result<Word, String> {
        words(self.variable(text)?).into_iter().next().map(|(_, word)| word).ok_or_else(|| format!("{text}: no place"))
    }

    fn of_cpu(&self, text: &str, cpu: u32) -> Result<Word, String> {
        let found = words(self.variable(text)?).into_iter().find(|(whose, _)| *whose == Some(cpu));
        found.map(|(_, word)| word).ok_or_else(|| format!("{text}: processor {cpu} has none"))
    }

    fn sources(&self, sensor: &KernelSensor, cpus: &BTreeSet<u32>) -> Result<Vec<Surveyed>, String> {
        let KernelSensor { name, class, floor, formula } = sensor;
        let source = match formula {
            Formula::Sum(terms) if *class == Class::Progress => return self.progress(name, terms, cpus),
            Formula::Sum(terms) => {
                let mut sum = Vec::new();
                for term in terms {
                    sum.extend(self.words(term)?.into_iter().map(|(_, word)| (word, term.is_negative)));
                }
                Source::Sum(sum)
            }
            Formula::IsHeld(term) => {
                let (_, word) = self.words(term)?.into_iter().next().ok_or("no place")?;
                Source::IsHeld(word)
            }
            Formula::MostOfOneUser => Source::MostOfOneUser,
            Formula::GrowthOfOneUser => Source::GrowthOfOneUser,
        };
        Ok(vec![Surveyed { described: described(name, *class, *floor, None), source }])
    }

    /// One sensor for each processor if any of the variables is per-CPU, one for the machine otherwise.
    fn progress(&self, name: &str, terms: &[Term], cpus: &BTreeSet<u32>) -> Result<Vec<Surveyed>, String> {
        let words: Vec<_> = terms.iter().map(|term| self.words(term)).collect::<Result<_, _>>()?;
        let words: Vec<(Option<u32>, Word)> = words.into_iter().flatten().collect();
        let surveyed = |name: String, sleep: String, cpu: Option<u32>| {
            let is_his = |whose: &Option<u32>| cpu.is_none() || whose.is_none() || *whose == cpu;
            let words = words.iter().filter(|(whose, _)| is_his(whose)).map(|(_, word)| word.clone()).collect();
            let described = described(&name, Class::Progress, false, Some(sleep));
            Surveyed { described, source: Source::Progress { cpu, words } }
        };
        Ok(match words.iter().any(|(cpu, _)| cpu.is_some()) {
            true => cpus.iter().map(|cpu| surveyed(of_cpu(name, *cpu), of_cpu(SLEEP, *cpu), Some(*cpu))).collect(),
            false => vec![surveyed(name.to_owned(), SLEEP.to_owned(), None)],
        })
    }

    fn sleep(&self, cpu: u32) -> Result<Sleep, String> {
        let state = match self.variable(SLEEP_FLAGS) {
            Ok(_) => vec![self.of_cpu(SLEEP_FLAGS, cpu)?],
            Err(_) => SLEEP_BITS.iter().map(|text| self.of_cpu(text, cpu)).collect::<Result<_, _>>()?,
        };
        let [entered, tick] = [self.of_cpu(SLEEP_TIMES[0], cpu)?, self.of_cpu(SLEEP_TIMES[1], cpu)?];
        let timer = self.of_cpu(TIMERS[0], cpu).ok().zip(self.of_cpu(TIMERS[1], cpu).ok());
        Ok(Sleep { cpu, state, entered, tick, timer: timer.map(|(active, due)| [active, due]) })
    }
}

fn words(variable: &Variable) -> Vec<(Option<u32>, Word)> {
    let shape = Variable { places: Vec::new(), ..variable.clone() };
    variable.places.iter().map(|place| (place.cpu, Word { at: place.at, shape: shape.clone() })).collect()
}

/// Reads words in one round; what was refused is 0.
fn read(mem: &mut dyn RemoteRead, ram: RemoteKey, words: &[Word]) -> Result<Vec<u64>, LinkError> {
    let mut bytes = vec![[0; 8]; words.len()];
    let mut batch: Vec<_> = words
        .iter()
        .zip(&mut bytes)
        .map(|(word, bytes)| Read::new(RemoteAddr::new(ram, word.at.raw()), &mut bytes[..word.len()]))
        .collect();
    mem.read(&mut batch)?;
    drop(batch);
    Ok(words.iter().zip(&bytes).map(|(word, bytes)| word.value(bytes) as u64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_on_is_a_sign_of_life_and_anything_else_in_its_place_is_not() {
        assert!(has_ticked(30, 31));
        assert!(!has_ticked(30, 30));
        assert!(!has_ticked(30, 0), "it never goes back");
        assert!(!has_ticked(30, 0x6b6b_6b6b_6b6b_6b6b), "nor so far");
    }
}
