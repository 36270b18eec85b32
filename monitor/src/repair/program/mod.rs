//! A healing module that is a program of its own: started ahead, asked over pipes, ended with the monitor.
//!
//! ```text
//!   tend() ─► [Absent] ──due──► [Greeted] ──its hello──► [Ready] ◄──answers in time── consult()
//!                ▲                  │ silent, ended         │ late, ended, garbage
//!                └──── reaped ── [Dying] ◄──────────────────┘        the pause doubles until an answer is good
//! ```
//! Nothing waits for a program but a question, and that no longer than its bound: [`Program::tend`] takes what has come
//! and goes. Whatever fails, the program is ended and started anew, so that question and answer never lose step.
//!
//! Invariants: no program is started or reaped while a target stands still; what one says is held to
//! [`healing_modules::outside`], and its plan to the bounds of every plan; at the monitor's end, also a violent one, it
//! ends too (its standard input closes, and the kernel kills it: `setpriv --pdeathsig`, by which it ends with the
//! thread that tended it).

mod child;
mod murmur;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use healing_modules::outside::{self, Unanswered};
use healing_modules::{Evidence, Healer, Moment, Plan, Safety};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use child::Child;

/// How long an answer may take while the target runs.
const RUNNING_BOUND: Duration = Duration::from_secs(2);

/// How long while it stands still: a tenth of the lease. Clients wait for it.
const STANDSTILL_BOUND: Duration = Duration::from_millis(200);

/// How long a program may take to say hello: interpreters on a busy machine.
const HELLO_BOUND: Duration = Duration::from_secs(10);

/// The first pause before a program that failed is started again, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A module as it is configured, and as a journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Its name in journals, logs and metrics.
    pub name: String,
    /// The program, by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// The user and group that it runs as; the monitor's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// What is passed on to it.
    #[serde(default)]
    pub settings: Map<String, Value>,
}

/// Such a module, and its program's life. Clones share the program; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Program {
    outside: Outside,
    target: String,
    safety: Safety,
    life: Arc<Mutex<Life>>,
}

#[derive(Debug)]
struct Life {
    state: State,
    /// Questions so far.
    asked: u64,
    pause: Duration,
    /// How often it has failed.
    failures: u64,
    /// What became of the last one.
    why: String,
}

#[derive(Debug)]
enum State {
    /// To be started then.
    Absent { due: Instant },
    /// Started, and told what it has to know.
    Greeted { child: Child, since: Instant },
    /// It may be asked.
    Ready { child: Child, earlier: Option<Duration> },
    /// Told to end.
    Dying { child: Child, due: Instant },
}

impl Program {
    /// The module of `outside` for `target`; nothing is started before [`Program::tend`].
    pub fn new(outside: &Outside, target: &str, safety: &Safety) -> Self {
        let state = State::Absent { due: Instant::now() };
        let life = Life { state, asked: 0, pause: PAUSE, failures: 0, why: "it has not been started yet".to_owned() };
        Self {
            outside: outside.clone(),
            target: target.to_owned(),
            safety: safety.clone(),
            life: Arc::new(Mutex::new(life)),
        }
    }

    /// Starts the program if that is due, takes its hello if that has come, buries it if it has ended. Never waits.
    pub fn tend(&self) {
        let mut life = self.life();
        let now = Instant::now();
        let state = std::mem::replace(&mut life.state, State::Absent { due: now });
        life.state = match state {
            State::Absent { due } if now < due => State::Absent { due },
            State::Absent { .. } => match self.start() {
                Ok(child) => State::Greeted { child, since: now },
                Err(why) => self.failed(&mut life, None, why),
            },
            State::Greeted { mut child, since } => match child.said(now) {
                Err(Unanswered::Late(_)) if since.elapsed() < HELLO_BOUND => State::Greeted { child, since },
                said => match said.and_then(|line| outside::introduction(&line)) {
                    Ok(introduction) => {
                        tracing::info!(target_name = %self.target, module = %self.outside.name, "ready to be asked");
                        State::Ready { child, earlier: introduction.earlier }
                    }
                    Err(Unanswered::Late(_)) => {
                        self.failed(&mut life, Some(child), Unanswered::Late(HELLO_BOUND).to_string())
                    }
                    Err(error) => self.failed(&mut life, Some(child), error.to_string()),
                },
            },
            State::Ready { mut child, earlier } => match child.has_ended() {
                Some(why) => self.failed(&mut life, Some(child), why),
                None => State::Ready { child, earlier },
            },
            State::Dying { mut child, due } => match child.has_ended() {
                Some(_) => State::Absent { due },
                None => State::Dying { child, due },
            },
        };
    }

    /// Tends it until it can be asked.
    ///
    /// # Errors
    /// [`Unanswered::NotReady`], if its next start fails, or takes longer than `patience`.
    pub fn await_ready(&self, patience: Duration) -> Result<(), Unanswered> {
        let (begin, failures) = (Instant::now(), self.life().failures);
        loop {
            self.tend();
            let life = self.life();
            match life.state {
                State::Ready { .. } => return Ok(()),
                _ if begin.elapsed() >= patience || life.failures > failures => {
                    return Err(Unanswered::NotReady { why: life.why.clone() });
                }
                _ => drop(life),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process id of the program, while there is one.
    pub fn pid(&self) -> Option<u32> {
        match &self.life().state {
            State::Absent { .. } => None,
            State::Greeted { child, .. } | State::Ready { child, .. } | State::Dying { child, .. } => Some(child.pid()),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> Result<Child, String> {
        let mut child = Child::start(&self.outside, &self.target)?;
        let hello = outside::hello(&self.target, &self.outside.settings, &self.safety);
        // An empty pipe takes it at once, unless the settings are a book.
        child.tell(&hello, Instant::now()).map_err(|error| error.to_string())?;
        Ok(child)
    }

    /// Says what went wrong, and what comes after it.
    fn failed(&self, life: &mut Life, child: Option<Child>, why: String) -> State {
        let pause = life.pause;
        tracing::error!(target_name = %self.target, module = %self.outside.name, %why, again = ?pause, "module failed");
        life.why = why;
        life.pause = (pause * 2).min(PAUSE_MAX);
        life.failures += 1;
        let due = Instant::now() + pause;
        match child {
            Some(mut child) => {
                child.kill();
                State::Dying { child, due }
            }
            None => State::Absent { due },
        }
    }

    fn ask(
        &self,
        child: &mut Child,
        number: u64,
        moment: Moment,
        now: &Evidence,
        earlier: Option<&Evidence>,
    ) -> Result<Option<Plan>, Unanswered> {
        let bound = match moment {
            Moment::Running => RUNNING_BOUND,
            Moment::Standstill => STANDSTILL_BOUND,
        };
        let begin = Instant::now();
        let late = |error| match error {
            Unanswered::Late(_) => Unanswered::Late(bound),
            other => other,
        };
        let question = outside::question(number, moment == Moment::Standstill, bound, now, earlier);
        child.tell(&question, begin + bound).map_err(late)?;
        let told = begin.elapsed();
        let said = child.said(begin + bound).map_err(late)?;
        let (bytes, name) = (question.len(), self.outside.name.as_str());
        tracing::debug!(module = name, ?moment, bytes, ?told, took = ?begin.elapsed(), "asked and answered");
        outside::answer(&said, number, now)
    }
}

impl Healer for Program {
    fn name(&self) -> &str {
        &self.outside.name
    }

    fn needs_earlier_ns(&self) -> Option<u64> {
        match self.life().state {
            State::Ready { earlier, .. } => earlier.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            _ => None,
        }
    }

    /// No answer is no plan.
    fn diagnose(&self, evidence: &Evidence, earlier: Option<&Evidence>, safety: &Safety) -> Option<Plan> {
        self.consult(Moment::Running, evidence, earlier, safety).unwrap_or(None)
    }

    fn consult(
        &self,
        moment: Moment,
        evidence: &Evidence,
        earlier: Option<&Evidence>,
        _: &Safety,
    ) -> Result<Option<Plan>, Unanswered> {
        let mut life = self.life();
        let state = std::mem::replace(&mut life.state, State::Absent { due: Instant::now() });
        let State::Ready { mut child, earlier: apart } = state else {
            life.state = state;
            return Err(Unanswered::NotReady { why: life.why.clone() });
        };
        life.asked += 1;
        let outcome = self.ask(&mut child, life.asked, moment, evidence, earlier);
        life.state = match &outcome {
            Ok(_) => {
                life.pause = PAUSE;
                State::Ready { child, earlier: apart }
            }
            // Killed here, which takes no time, and buried by who has time.
            Err(error) => self.failed(&mut life, Some(child), error.to_string()),
        };
        outcome
    }
}
