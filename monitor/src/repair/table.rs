//! Repair by orders: who is to be ended is written into the kill table of the target's agent, and the target's own
//! kernel ends them, each in its own context, while everything else of it runs on.
//!
//! ```text
//!   look ──► decide ──► bounds ──► slots, read back, number ──► acknowledged? ──► gone? ──► withdrawn
//!     of a target that runs     └──┐   the only writes,               └── no: withdrawn, raw if auto
//!                     path lost: dialled anew, at once,
//!                          and the same order again
//! ```
//! A target that drowns in processes may keep its own adapter waiting, if that is a program, until a queue pair gives
//! up. Nothing else than the order ends that, so it is written until it stands there. It stays the same order: what a
//! connection that was given up still carries writes the same bytes.
//!
//! Nothing stands still, so the look and the order are of different moments. Between them a culprit may end, and
//! another process may have its id: the order names each by id *and* start. And a bomb may have made children: those of
//! culprits that are born after the order is in force are ended with them; where *all* of a user's processes are
//! culprits the order names the user, and nobody slips through.
//!
//! Invariants: a plan that leaves its bounds is not ordered, not even in part; the order itself is bounded by the same
//! number; it is withdrawn when the repair is over, and ends with its lease should this monitor die.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use control::backdoor::RegionEntry;
use healing_modules::{Evidence, Plan, Safety};
use killtable::layout::{ANSWERS, ANSWERS_BYTES, ORDERS, ORDERS_BYTES};
use killtable::reference::Orders;
use killtable::{Answers, Mark, Order, Reaction};
use link::LinkFailure;
use remote_memory::{HookWord, RemoteAddr, RemoteKey, Rights, Warrant, WriteError};
use serde::{Deserialize, Serialize};

use super::{Findings, Occasion, Operation, PATIENCE, RepairError, Sight, Table, Ways, look_at, operate_and_contain};
use crate::config::Hook;

/// How long a target may take to take an order up. Each processor looks 200 times a second, from an interrupt.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How often an order is written, or its answers are read, while the path is lost: each try lasts until an adapter
/// gives up, and a new connection is dialled for the next.
const TRIES: usize = 6;

/// Before a new connection is dialled: none of the tries shall be over before the target could do anything.
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How long an order stands if nobody withdraws it: as long as the culprits have to die, and a moment.
const LEASE_MS: u32 = PATIENCE.as_millis() as u32 + 2_000;

/// An order, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// Its number.
    pub number: u64,
    /// Whom it named, each with the slot it was written to.
    pub marks: Vec<(Mark, usize)>,
    /// How many it might end in all.
    pub most: u32,
    /// How long it might stand, in milliseconds.
    pub lease_ms: u32,
    /// From its commitment to the look that found it in force, in nanoseconds.
    pub acknowledged_ns: u64,
    /// How many processes the target says it ended: culprits and their later children.
    pub ended: u64,
    /// Those of them that were asleep, and ended by the agent.
    pub ended_asleep: u64,
    /// How often the target met one that was named and did not end it. Until the order is concluded: the target's count
    /// of before.
    pub declined: u64,
}

/// Repairs by the hook that is configured. An order contains nobody: whom it names is ended wherever it is met.
///
/// # Errors
/// See [`RepairError`].
pub fn operate_by<'a>(
    ways: impl Into<Ways>,
    table: &mut dyn Table,
    sight: impl Into<Sight<'a>>,
    occasion: impl Into<Occasion<'a>>,
    safety: &Safety,
    decide: &mut dyn FnMut(&Evidence) -> Option<Plan>,
) -> Result<Operation, RepairError> {
    let Ways { hook, contain } = ways.into();
    let (sight, occasion) = (sight.into(), occasion.into());
    let by_table = match hook {
        Hook::Raw => return operate_and_contain(table, sight.kernel()?, occasion, safety, &contain, decide),
        Hook::Table | Hook::Auto => by_order(table, sight, safety, decide),
    };
    match by_table {
        Err(why) if hook == Hook::Auto && sight.kernel().is_ok() && is_table_s_fault(&why) => {
            tracing::warn!(%why, "the kill table is of no use; by raw writes then");
            let operation = operate_and_contain(table, sight.kernel()?, occasion, safety, &contain, decide)?;
            Ok(Operation { not_by_table: Some(why.to_string()), ..operation })
        }
        outcome => outcome,
    }
}

/// Whether another hook may do what this one did not. What the target's own configuration forbids, none may.
fn is_table_s_fault(why: &RepairError) -> bool {
    use RepairError::{NoOrder, NoTable, NotAcknowledged, NotOrdered, OrderRefused};
    matches!(why, NoTable { .. } | NoOrder(_) | NotOrdered { .. } | NotAcknowledged(_) | OrderRefused(_))
}

fn by_order(
    table: &mut dyn Table,
    sight: Sight<'_>,
    safety: &Safety,
    decide: &mut dyn FnMut(&Evidence) -> Option<Plan>,
) -> Result<Operation, RepairError> {
    let desk = Desk::of(table)?;
    let answers = desk.answers(table)?;
    let Findings { evidence, damage, .. } = look_at(table, sight)?;
    let Some(plan) = decide(&evidence) else {
        return Ok(Operation { evidence, damage, ..Operation::default() });
    };
    safety.check(&plan, &evidence)?;
    if let Some(spared) = plan.culprits.iter().find(|culprit| answers.spared_uids.contains(&culprit.uid)) {
        return Err(RepairError::SparedByTarget { uid: spared.uid });
    }
    let most = u32::try_from(safety.blast_cap).unwrap_or(u32::MAX);
    let marks = marks(&plan, &evidence);
    let bounded: Vec<_> = marks.iter().map(|mark| (*mark, most)).collect();
    let order = Order::new(rand::random(), answers.target, &bounded, most, LEASE_MS)?;
    persistently(|| desk.write(table, &order, &marks))?;
    let acknowledged = desk.acknowledged(table, order.number())?;
    tracing::debug!(number = order.number(), marks = marks.len(), ?acknowledged, "ordered");
    let order = OrderLine {
        number: order.number(),
        marks: marks.into_iter().zip(order.slots().iter().copied()).collect(),
        most,
        lease_ms: LEASE_MS,
        acknowledged_ns: acknowledged.as_nanos() as u64,
        ended: 0,
        ended_asleep: 0,
        declined: answers.declined,
    };
    Ok(Operation { evidence, plan: Some(plan), order: Some(order), damage, ..Operation::default() })
}

/// Withdraws an order and notes what the target says it did.
///
/// # Errors
/// See [`RepairError`]. An order that cannot be withdrawn ends with its lease.
pub fn conclude(table: &mut dyn Table, order: &mut OrderLine) -> Result<(), RepairError> {
    let desk = Desk::of(table)?;
    let answers = persistently(|| desk.answers(table))?;
    order.ended = answers.ended(order.number).into();
    order.ended_asleep = answers.ended_asleep(order.number).into();
    order.declined = answers.declined.saturating_sub(order.declined);
    persistently(|| desk.withdraw(table))
}

/// Does it until the path holds. The memory dials anew by itself, see [`remote_memory::Blocking`].
pub(super) fn persistently<T>(mut act: impl FnMut() -> Result<T, RepairError>) -> Result<T, RepairError> {
    for _ in 1..TRIES {
        match act() {
            Err(why) if why.is_path() => {
                tracing::info!(%why, "the path was lost; once more over a new connection");
                std::thread::sleep(BETWEEN_TRIES);
            }
            outcome => return outcome,
        }
    }
    act()
}

/// Whom an order names for a plan: a user all of whose processes are culprits by the user, all others one by one.
fn marks(plan: &Plan, evidence: &Evidence) -> Vec<Mark> {
    let mut culprits: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for culprit in &plan.culprits {
        culprits.entry(culprit.uid).or_default().insert(culprit.pid);
    }
    let is_whole = |uid: &u32, pids: &BTreeSet<u32>| {
        evidence.judged().filter(|process| process.uid == Some(*uid)).all(|process| pids.contains(&process.pid))
    };
    let whole: BTreeSet<u32> = culprits.iter().filter(|(uid, pids)| is_whole(uid, pids)).map(|(uid, _)| *uid).collect();
    let others = plan.culprits.iter().filter(|culprit| !whole.contains(&culprit.uid));
    let pids = others.map(|culprit| Mark::Pid { pid: culprit.pid, start_ns: culprit.start_ns });
    whole.iter().map(|uid| Mark::Uid { uid: *uid }).chain(pids).collect()
}

/// The two regions of a target's kill table.
struct Desk {
    orders: HookWord,
    answers: RemoteAddr,
}

impl Desk {
    fn of(table: &mut dyn Table) -> Result<Self, RepairError> {
        let orders = region(table, ORDERS, ORDERS_BYTES)?;
        if !Rights::from_bits(orders.rights).covers(Rights::READ.and(Rights::WRITE)) {
            let why = format!("{ORDERS} may not be written: a fence stands, or the agent does not stand by it");
            return Err(RepairError::NoTable { why });
        }
        let answers = region(table, ANSWERS, ANSWERS_BYTES)?;
        let at = |entry: &RegionEntry| RemoteAddr::new(RemoteKey::new(entry.key), entry.base);
        Ok(Self { orders: HookWord::registered(at(&orders), ORDERS_BYTES), answers: at(&answers) })
    }

    fn answers(&self, table: &mut dyn Table) -> Result<Answers, RepairError> {
        let mut bytes = vec![0; ANSWERS_BYTES];
        let no_table = |why: String| RepairError::NoTable { why };
        table.memory().read_one(self.answers, &mut bytes)?.map_err(|error| no_table(error.to_string()))?;
        Answers::parse(&bytes).map_err(|error| no_table(error.to_string()))
    }

    fn withdraw(&self, table: &mut dyn Table) -> Result<(), RepairError> {
        let (offset, zero) = Order::withdrawal();
        self.put(table, &[(offset, zero.to_vec())])
    }

    /// Writes the order, reads back that every mark stands there whole, and only then makes it one.
    fn write(&self, table: &mut dyn Table, order: &Order, marks: &[Mark]) -> Result<(), RepairError> {
        let (offset, zero) = Order::withdrawal();
        let mut writes = vec![(offset, zero.to_vec())];
        writes.extend(order.body());
        self.put(table, &writes)?;
        let mut bytes = vec![0; ORDERS_BYTES];
        let refused = |why: String| RepairError::NotOrdered { why };
        let written = &mut bytes[..order.len_bytes()];
        table.memory().read_one(self.orders.at(), written)?.map_err(|error| refused(error.to_string()))?;
        let held = Orders::over(&bytes).ok_or_else(|| refused("too few bytes came back".to_owned()))?;
        if let Some((mark, _)) =
            marks.iter().zip(order.slots()).find(|(mark, slot)| !held.names(order.number(), **slot, **mark))
        {
            return Err(refused(format!("{mark:?} does not stand where it was written; somebody else writes there")));
        }
        let (offset, number) = order.commit();
        self.put(table, &[(offset, number.to_vec())])
    }

    fn put(&self, table: &mut dyn Table, writes: &[(u64, Vec<u8>)]) -> Result<(), RepairError> {
        let start = self.orders.at();
        let place = |offset: u64| start.checked_add(offset).unwrap_or(start);
        let writes: Vec<_> = writes.iter().map(|(offset, bytes)| (place(*offset), bytes.as_slice())).collect();
        let outcome = table.memory().write_all(Warrant::Hook(&self.orders), &writes);
        outcome.map_err(|(_, error)| match error {
            WriteError::Link(error) => RepairError::Link(error),
            error => RepairError::NotOrdered { why: error.to_string() },
        })
    }

    fn reaction(&self, table: &mut dyn Table) -> Result<Reaction, RepairError> {
        let mut bytes = [0; Reaction::BYTES];
        let no_table = |why: String| RepairError::NoTable { why };
        let at = self.answers.checked_add(Reaction::AT as u64).unwrap_or(self.answers);
        table.memory().read_one(at, &mut bytes)?.map_err(|error| no_table(error.to_string()))?;
        Ok(Reaction::parse(&bytes))
    }

    /// Waits until the order is in force. One that is not, is withdrawn.
    fn acknowledged(&self, table: &mut dyn Table, number: u64) -> Result<Duration, RepairError> {
        let begin = Instant::now();
        let why = loop {
            let answers = persistently(|| self.reaction(table))?;
            if answers.armed == number {
                return Ok(begin.elapsed());
            }
            match answers.refused {
                Some((refused, why)) if refused == number => break RepairError::OrderRefused(why),
                _ if begin.elapsed() >= ACKNOWLEDGED_WITHIN => {
                    break RepairError::NotAcknowledged(ACKNOWLEDGED_WITHIN);
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        };
        persistently(|| self.withdraw(table))?;
        Err(why)
    }
}

/// The region `name`, if it is there and large enough.
pub(super) fn region(table: &mut dyn Table, name: &str, len: usize) -> Result<RegionEntry, RepairError> {
    let why = match table.region(name) {
        Ok(entry) if entry.len >= len as u64 => return Ok(entry),
        Ok(entry) => format!("{name} has {} bytes, {len} are needed", entry.len),
        Err(LinkFailure::NoRegion(_)) => format!("its agent has registered no {name}"),
        Err(failure) => return Err(RepairError::Region(failure)),
    };
    Err(RepairError::NoTable { why })
}
