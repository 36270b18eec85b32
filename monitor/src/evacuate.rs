//! Spares: kept warm and prepared while the target is well, ordered to take over when it is fenced.
//!
//! An order is given to one spare at a time, in the configured order, those that are ready first. The next one is
//! asked only if a spare refused, could not be reached, or never got the whole order: it then did nothing. A spare that
//! got the order and fell silent may be answering for the address already, so only it is asked again, under the same
//! token: an order that was carried out gets the same report once more and is not carried out twice. If another spare
//! is ready, the silent one is asked to let go instead: its next life, or the same one once it listens again, says that
//! it has not done the work and never will, and then the other one has the order. Without that word nobody has it.
//!
//! Spares that share an evacuation get their parts at the same time; what is said above then holds for each part.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use control::reinstate::{Assignment, Evacuation, GiveBack, Reply, Report, Request, Share};
use control::{Channel, FrameError, Hello};

use crate::absent::Absent;
use crate::config::Spare;

/// How long connecting and greeting may take: a spare is on the same network.
const GREETING_PATIENCE: Duration = Duration::from_secs(1);

/// How long preparing may take: learning a kernel reads some MiB of memory.
const PREPARE_PATIENCE: Duration = Duration::from_secs(20);

/// How long an order waits for a spare that is busy preparing while another one is free.
const BUSY_PATIENCE: Duration = Duration::from_millis(20);

/// How often a spare that fell silent is asked to let go of an order: its next life may listen any moment.
const WITHDRAW_AGAIN: Duration = Duration::from_millis(20);

/// How far a spare has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can take over.
    Ready {
        /// The target's kernel release, as the spare read it.
        kernel: String,
    },
    /// It cannot, and why.
    NotReady {
        /// A sentence for people.
        why: String,
    },
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Ordered {
    /// A spare reported the end of the evacuation.
    Evacuated {
        /// Which.
        spare: String,
        /// What it said.
        report: Report,
    },
    /// A spare got the order and its answer never came.
    Unknown {
        /// Which.
        spare: String,
        /// What was seen.
        why: String,
    },
    /// Every spare passed; nothing was done.
    Nobody,
}

/// What happens while an order is given, for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The order is about to leave.
    Ordering {
        /// Which part of the work, from 0.
        part: u32,
        /// To whom.
        spare: &'a str,
    },
    /// The order has left.
    Ordered {
        /// To whom.
        spare: &'a str,
    },
    /// A spare that fell silent has said that it did nothing and will not.
    Withdrawn {
        /// Which part of the work it was asked to take.
        part: u32,
        /// Which.
        spare: &'a str,
        /// Why it was asked.
        why: String,
    },
    /// A spare did nothing.
    Passed {
        /// Which part of the work it was asked to take.
        part: u32,
        /// Which.
        spare: &'a str,
        /// Why.
        why: String,
    },
}

/// What is left of a service that spares took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Sessions that were carried over.
    pub recovered: u64,
    /// Connections of clients that came since.
    pub others: u64,
    /// Connections that were reset because the time was over.
    pub aborted: u64,
    /// Whether every spare has given its addresses back.
    pub is_given_back: bool,
}

/// How long a spare may take for a short answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a spare waits for a moment without connections before it says that there was none.
const QUIET_WAIT_MS: u64 = 300;

/// The spares of one target.
#[derive(Debug)]
pub struct Standby {
    name: String,
    assignment: Assignment,
    patience: Duration,
    is_shared: bool,
    slots: Vec<Slot>,
    /// Who else is fenced.
    absent: Arc<Absent>,
    /// Where the target speaks from.
    addresses: Vec<IpAddr>,
    /// Set while the target is fenced: there is nothing to prepare for then.
    resting: AtomicBool,
}

#[derive(Debug)]
struct Slot {
    spare: Spare,
    conversation: Mutex<Option<Channel<TcpStream>>>,
    readiness: Mutex<Readiness>,
}

/// Why a spare did nothing, or may have done something.
enum Failure {
    Passed(String),
    Unknown(String),
}

impl Standby {
    /// Spares for `assignment`; `name` is who speaks, `patience` what an evacuation may take.
    pub fn new(name: &str, assignment: Assignment, spares: &[Spare], patience: Duration) -> Self {
        Self::sharing(name, assignment, spares, patience, false)
    }

    /// The same; `is_shared` says whether the spares share one evacuation.
    pub fn sharing(name: &str, assignment: Assignment, spares: &[Spare], patience: Duration, is_shared: bool) -> Self {
        let slot = |spare: &Spare| Slot {
            spare: spare.clone(),
            conversation: Mutex::new(None),
            readiness: Mutex::new(Readiness::NotReady { why: "not asked yet".to_owned() }),
        };
        Self {
            name: name.to_owned(),
            assignment,
            patience,
            is_shared,
            slots: spares.iter().map(slot).collect(),
            absent: Arc::default(),
            addresses: Vec::new(),
            resting: AtomicBool::new(false),
        }
    }

    /// The same, of a target that speaks from `addresses`, among others that share `absent`: spares are told which
    /// clients were fenced, too, and need not be waited for.
    #[must_use]
    pub fn among(self, absent: Arc<Absent>, addresses: Vec<IpAddr>) -> Self {
        Self { absent, addresses, ..self }
    }

    /// What moves, and from where.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Says whether spares are to be left alone because the target is fenced.
    pub fn rest(&self, resting: bool) {
        self.resting.store(resting, Ordering::Relaxed);
        if resting {
            self.absent.fenced(&self.assignment.target, self.addresses.clone(), Instant::now());
        } else {
            self.absent.back(&self.assignment.target);
        }
    }

    /// Asks every spare to get ready, unless they rest; returns what each of them said.
    pub fn prepare(&self) -> Vec<(&str, Readiness)> {
        if self.resting.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.slots.iter().map(|slot| (slot.spare.name.as_str(), slot.prepare(&self.name, &self.assignment))).collect()
    }

    /// Orders the first spare that can to take over. `note` hears of each step when it happens.
    fn order(&self, part: u32, evacuation: &Evacuation, note: &impl Fn(Progress<'_>)) -> Ordered {
        let mut busy = Vec::new();
        for slot in self.in_order(part) {
            let Some(conversation) = slot.free_within(BUSY_PATIENCE) else {
                busy.push(slot);
                continue;
            };
            if let Some(ordered) = self.order_one(part, slot, conversation, evacuation, note) {
                return ordered;
            }
        }
        for slot in busy {
            if let Some(ordered) = self.order_one(part, slot, locked(&slot.conversation), evacuation, note) {
                return ordered;
            }
        }
        Ordered::Nobody
    }

    /// How many parts the work is divided into: by service address, one for each spare, if they share it.
    pub fn parts(&self) -> u32 {
        let addresses: HashSet<_> = self.assignment.services.iter().map(|service| service.address).collect();
        let parts = if self.is_shared { self.slots.len().min(addresses.len()) } else { 1 };
        u32::try_from(parts.max(1)).unwrap_or(1)
    }

    /// Orders every part at the same time, and returns how each ended. A part goes to its holder and nobody else if it
    /// has one: the spare that may have begun it. Else it goes to the spares in order, another one first for each part.
    pub fn order_parts(
        &self,
        evacuation: &Evacuation,
        holders: &BTreeMap<u32, String>,
        note: impl Fn(Progress<'_>) + Sync,
    ) -> Vec<Ordered> {
        let of = self.parts();
        let absent = self.absent.beside(&self.assignment.target, Instant::now());
        let one = |part: u32| {
            let share = (of > 1).then_some(Share { index: part, of });
            let order = Evacuation { share, absent: absent.clone(), ..evacuation.clone() };
            match holders.get(&part) {
                Some(spare) => self.order_again(part, spare, &order, &note),
                None => self.order(part, &order, &note),
            }
        };
        let (one, rest) = (&one, 1..of);
        std::thread::scope(|scope| {
            let others: Vec<_> = rest.map(|part| scope.spawn(move || one(part))).collect();
            let mut all = vec![one(0)];
            let lost = |part: usize| Ordered::Unknown { spare: format!("of part {part}"), why: "a defect here".into() };
            let joined = others.into_iter().enumerate();
            all.extend(joined.map(|(index, other)| other.join().unwrap_or_else(|_| lost(index + 1))));
            all
        })
    }

    /// Repeats an order whose answer was lost, to the spare that got it and to no other. Whatever it says but a report
    /// leaves the outcome unknown: a refusal now does not say that nothing happened then.
    fn order_again(&self, part: u32, spare: &str, evacuation: &Evacuation, note: &impl Fn(Progress<'_>)) -> Ordered {
        let slot = self.slots.iter().find(|slot| slot.spare.name == spare);
        let ordered = slot.and_then(|slot| self.order_one(part, slot, locked(&slot.conversation), evacuation, note));
        let why = "it did not take the order again".to_owned();
        match (ordered, slot) {
            (Some(ordered), _) => ordered,
            (None, Some(slot)) if self.is_another_ready(slot) => {
                let withdrawn = self.withdraw(part, slot, evacuation, &why, Instant::now(), note);
                withdrawn.unwrap_or_else(|| self.order(part, evacuation, note))
            }
            (None, _) => Ordered::Unknown { spare: spare.to_owned(), why },
        }
    }

    /// Asks a spare that fell silent to let go of the order, until `deadline`. `None`: it has, and another may have it.
    fn withdraw(
        &self,
        part: u32,
        slot: &Slot,
        evacuation: &Evacuation,
        why: &str,
        deadline: Instant,
        note: &impl Fn(Progress<'_>),
    ) -> Option<Ordered> {
        let spare = slot.spare.name.as_str();
        // What was ready is no more, whoever answers now.
        *locked(&slot.readiness) = Readiness::NotReady { why: why.to_owned() };
        let mut conversation = locked(&slot.conversation);
        loop {
            let answer = slot.ask_to_withdraw(&self.name, &mut conversation, evacuation, self.patience);
            let why = match answer {
                Ok(Reply::Withdrawn) => {
                    note(Progress::Withdrawn { part, spare, why: why.to_owned() });
                    return None;
                }
                Ok(Reply::Evacuated(report)) => {
                    return Some(Ordered::Evacuated { spare: spare.to_owned(), report });
                }
                Ok(Reply::Refused { why } | Reply::NotReady { why }) => why,
                Ok(other) => format!("it answered with {}", kind(&other)),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(WITHDRAW_AGAIN);
                    continue;
                }
                Err(error) => format!("{why}; it does not let go of the order: {error}"),
            };
            return Some(Ordered::Unknown { spare: spare.to_owned(), why });
        }
    }

    fn is_another_ready(&self, than: &Slot) -> bool {
        let mut others = self.slots.iter().filter(|slot| slot.spare.name != than.spare.name);
        others.any(|slot| matches!(*locked(&slot.readiness), Readiness::Ready { .. }))
    }

    /// Asks the spares called `holders`, all of them if there are none, what is left of the service. With `drain`, they
    /// are to give it back: without loss before that time is over, whatever is left when it is.
    ///
    /// # Errors
    /// A sentence for people; a spare that does not answer may have the addresses still.
    pub fn wind_up(&self, holders: &[String], drain: Option<Duration>) -> Result<Left, String> {
        let target = self.assignment.target.clone();
        let request = match drain {
            Some(time) => {
                let drain_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                Request::GiveBack(GiveBack { target, drain_ms, wait_ms: Some(QUIET_WAIT_MS) })
            }
            None => Request::Sessions { target },
        };
        let mut left = Left { is_given_back: drain.is_some(), ..Left::default() };
        let is_asked = |slot: &&Slot| holders.is_empty() || holders.contains(&slot.spare.name);
        for slot in self.slots.iter().filter(is_asked) {
            match slot.ask(&self.name, &request).map_err(|why| format!("{}: {why}", slot.spare.name))? {
                Reply::GivenBack { aborted } => left.aborted += aborted,
                Reply::Draining { recovered, others } => {
                    left.recovered += recovered;
                    left.others += others;
                    left.is_given_back = false;
                }
                Reply::Refused { why } => return Err(format!("{}: {why}", slot.spare.name)),
                other => return Err(format!("{} answered with {}", slot.spare.name, kind(&other))),
            }
        }
        Ok(left)
    }

    /// Ready ones first, each group as configured, beginning with another one for each part.
    fn in_order(&self, part: u32) -> Vec<&Slot> {
        let mut slots: Vec<_> = self.slots.iter().collect();
        slots.rotate_left(part as usize % self.slots.len().max(1));
        let (ready, others): (Vec<_>, Vec<_>) =
            slots.into_iter().partition(|slot| matches!(*locked(&slot.readiness), Readiness::Ready { .. }));
        ready.into_iter().chain(others).collect()
    }

    fn order_one(
        &self,
        part: u32,
        slot: &Slot,
        mut conversation: MutexGuard<'_, Option<Channel<TcpStream>>>,
        evacuation: &Evacuation,
        note: &impl Fn(Progress<'_>),
    ) -> Option<Ordered> {
        let spare = slot.spare.name.as_str();
        let deadline = Instant::now() + self.patience;
        note(Progress::Ordering { part, spare });
        let outcome = slot.order(&self.name, &mut conversation, evacuation, self.patience, || {
            note(Progress::Ordered { spare });
        });
        match outcome {
            Ok(report) => Some(Ordered::Evacuated { spare: spare.to_owned(), report }),
            Err(Failure::Unknown(why)) if self.is_another_ready(slot) => {
                drop(conversation);
                self.withdraw(part, slot, evacuation, &why, deadline, note)
            }
            Err(Failure::Unknown(why)) => Some(Ordered::Unknown { spare: spare.to_owned(), why }),
            Err(Failure::Passed(why)) => {
                note(Progress::Passed { part, spare, why });
                None
            }
        }
    }
}

impl Slot {
    fn ask(&self, name: &str, request: &Request) -> Result<Reply, String> {
        let mut conversation = locked(&self.conversation);
        let channel = warm(&mut conversation, &self.spare, name)?;
        let set = channel.stream().set_read_timeout(Some(ANSWER_PATIENCE)).map_err(FrameError::from);
        let answer = set.and_then(|()| channel.ask(request));
        answer.map_err(|error| {
            // A late answer would be taken for the next one's.
            *conversation = None;
            error.to_string()
        })
    }

    fn prepare(&self, name: &str, assignment: &Assignment) -> Readiness {
        let mut conversation = locked(&self.conversation);
        let readiness = match ask_to_prepare(&mut conversation, &self.spare, name, assignment) {
            Ok(readiness) => readiness,
            Err(why) => {
                *conversation = None;
                Readiness::NotReady { why }
            }
        };
        drop(conversation);
        locked(&self.readiness).clone_from(&readiness);
        readiness
    }

    /// The conversation, if nobody keeps it busy for longer than `patience`.
    fn free_within(&self, patience: Duration) -> Option<MutexGuard<'_, Option<Channel<TcpStream>>>> {
        let begin = Instant::now();
        loop {
            match self.conversation.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begin.elapsed() >= patience => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    fn order(
        &self,
        name: &str,
        conversation: &mut Option<Channel<TcpStream>>,
        evacuation: &Evacuation,
        patience: Duration,
        has_left: impl FnOnce(),
    ) -> Result<Report, Failure> {
        let channel = warm(conversation, &self.spare, name).map_err(Failure::Passed)?;
        let set = channel.stream().set_read_timeout(Some(patience));
        let sent = set.map_err(FrameError::from).and_then(|()| channel.send(&Request::Evacuate(evacuation.clone())));
        if let Err(error) = sent {
            // Framing makes half an order no order.
            *conversation = None;
            return Err(Failure::Passed(format!("the order could not be sent: {error}")));
        }
        has_left();
        match channel.receive::<Reply>() {
            Ok(Reply::Evacuated(report)) => Ok(report),
            Ok(Reply::Refused { why } | Reply::NotReady { why }) => Err(Failure::Passed(why)),
            Ok(other) => {
                *conversation = None;
                Err(Failure::Unknown(format!("it answered an order with {}", kind(&other))))
            }
            Err(error) => {
                *conversation = None;
                Err(Failure::Unknown(error.to_string()))
            }
        }
    }

    fn ask_to_withdraw(
        &self,
        name: &str,
        conversation: &mut Option<Channel<TcpStream>>,
        evacuation: &Evacuation,
        patience: Duration,
    ) -> Result<Reply, String> {
        let channel = warm(conversation, &self.spare, name)?;
        let set = channel.stream().set_read_timeout(Some(patience)).map_err(FrameError::from);
        let answer = set.and_then(|()| channel.ask(&Request::Withdraw(evacuation.clone())));
        answer.map_err(|error| {
            *conversation = None;
            error.to_string()
        })
    }
}

fn ask_to_prepare(
    conversation: &mut Option<Channel<TcpStream>>,
    spare: &Spare,
    name: &str,
    assignment: &Assignment,
) -> Result<Readiness, String> {
    let channel = warm(conversation, spare, name)?;
    channel.stream().set_read_timeout(Some(PREPARE_PATIENCE)).map_err(|error| error.to_string())?;
    match channel.ask(&Request::Prepare(assignment.clone())) {
        Ok(Reply::Ready { kernel }) => Ok(Readiness::Ready { kernel }),
        Ok(Reply::NotReady { why } | Reply::Refused { why }) => Ok(Readiness::NotReady { why }),
        Ok(other) => Err(format!("it answered a request to prepare with {}", kind(&other))),
        Err(error) => Err(error.to_string()),
    }
}

/// The open conversation, or a new one: a spare that restarted has closed the old one, which a peek shows.
fn warm<'a>(
    conversation: &'a mut Option<Channel<TcpStream>>,
    spare: &Spare,
    name: &str,
) -> Result<&'a mut Channel<TcpStream>, String> {
    if conversation.as_ref().is_some_and(|channel| !is_open(channel.stream())) {
        *conversation = None;
    }
    match conversation {
        Some(channel) => Ok(channel),
        empty => Ok(empty.insert(greet(spare, name)?)),
    }
}

fn greet(spare: &Spare, name: &str) -> Result<Channel<TcpStream>, String> {
    let stream = TcpStream::connect_timeout(&spare.control, GREETING_PATIENCE)
        .and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(GREETING_PATIENCE))?;
            stream.set_write_timeout(Some(GREETING_PATIENCE))?;
            Ok(stream)
        })
        .map_err(|error| format!("no spare answers at {}: {error}", spare.control))?;
    let mut channel = Channel::new(stream);
    match channel.ask(&Request::Hello(Hello::new(name))) {
        Ok(Reply::Welcome { version }) if version == control::VERSION => Ok(channel),
        Ok(Reply::Welcome { version }) => {
            Err(format!("it speaks version {version} of the messages, this side speaks {}", control::VERSION))
        }
        Ok(Reply::Refused { why } | Reply::NotReady { why }) => Err(why),
        Ok(other) => Err(format!("it answered a greeting with {}", kind(&other))),
        Err(error) => Err(error.to_string()),
    }
}

fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Welcome { .. } => "a welcome",
        Reply::Ready { .. } => "readiness",
        Reply::NotReady { .. } => "what stands in the way",
        Reply::Evacuated(_) => "a report",
        Reply::Withdrawn => "an order taken back",
        Reply::GivenBack { .. } => "the end of a service",
        Reply::Draining { .. } => "what is left of a service",
        Reply::Refused { .. } => "a refusal",
    }
}

/// Whether the peer has neither closed the stream nor said something unasked.
fn is_open(stream: &TcpStream) -> bool {
    let quiet = stream.set_nonblocking(true).is_ok()
        && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && quiet
}

/// Nothing behind these locks is left half-done by a panic that the next use would not notice.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
