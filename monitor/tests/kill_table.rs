//! Repair by orders, of a recorded machine (Linux 6.1 with processes of several users) with a kill table beside it:
//! what is written, in which sequence, what is not, and when raw writes take its place. The table's target takes orders
//! up, or does not, as the test wants it.

mod machine;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use control::backdoor::{FenceToken, LockToken, RegionEntry};
use healing_modules::{Culprit, Evidence, Plan, Safety, Unsafe};
use killtable::layout::{ANSWERS, ANSWERS_BYTES, ORDERS, ORDERS_BYTES, Refusal, answer};
use killtable::reference::{Orders, Process};
use killtable::{Ledger, Mark};
use link::LinkFailure;
use machine::kernel;
use monitor::config::Hook;
use monitor::repair::{Operation, RepairError, Table, conclude, operate_by};
use remote_memory::image::Image;
use remote_memory::{LinkError, Read, RemoteAddr, RemoteKey, RemoteRead, RemoteWrite, Rights, Warrant, WriteError};

/// The user with a hog of ten megabytes.
const USER: u32 = 1002;

const TARGET: u64 = 0xfeed;
const RAM_KEY: u32 = 1;
const LOCK_KEY: u32 = 2;
const ORDERS_KEY: u32 = 3;
const ANSWERS_KEY: u32 = 4;
const ORDERS_BASE: u64 = 0x1000;

/// Where the slots begin.
const FIRST_SLOT: usize = 64;

/// What an adapter says that has given up.
const LOST: LinkError = LinkError::Lost { tries: 7 };

/// What the target does with orders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Obeys,
    /// Nobody looks at the table.
    IsSilent,
    /// It was started anew since its identity was read.
    Refuses,
    /// Somebody else writes orders at the same time.
    Quarrels,
    /// It has no agent.
    HasNoTable,
    /// The table may be read only: a fence stands, or the agent has gone.
    ReadOnly,
}

struct Patient {
    image: Image,
    target: Target,
    orders: Vec<u8>,
    answers: Vec<u8>,
    /// Each write into the orders: where, and how long.
    ordered: Vec<(u64, usize)>,
    raw_writes: usize,
    locks: usize,
    /// Operations in the kill table that are lost from the first on; `is_done` of each: whether only its answer was.
    lost: Vec<(usize, bool)>,
    operations: usize,
}

impl Patient {
    fn new(target: Target, spared: &[u32]) -> Self {
        let image = machine::image();
        let words = |len| (0..len / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let (orders, answers) = (words(ORDERS_BYTES), words(ANSWERS_BYTES));
        Ledger::open(&orders, &answers, TARGET, spared, 77).unwrap();
        let answers = answers.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect();
        let orders = vec![0; ORDERS_BYTES];
        Self {
            image,
            target,
            orders,
            answers,
            ordered: Vec::new(),
            raw_writes: 0,
            locks: 0,
            lost: Vec::new(),
            operations: 0,
        }
    }

    /// Counts an operation in the kill table: `None` if it is answered, else whether it is carried out all the same.
    fn lost(&mut self) -> Option<bool> {
        let number = self.operations;
        self.operations += 1;
        self.lost.iter().find(|(lost, _)| *lost == number).map(|(_, is_done)| *is_done)
    }

    fn answer(&mut self, index: usize, word: u64) {
        self.answers[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }

    /// What the kernel's programs do at their next tick.
    fn tick(&mut self) {
        let orders = Orders::over(&self.orders).unwrap();
        let (number, refusal) = (orders.number(), orders.refusal(orders.number(), TARGET));
        match self.target {
            Target::IsSilent => {}
            _ if number == 0 => self.answer(answer::ARMED, 0),
            Target::Refuses => {
                self.answer(answer::REFUSED, number);
                self.answer(answer::WHY, Refusal::OtherTarget.code());
            }
            _ => {
                assert_eq!(refusal, None, "what the monitor writes is an order");
                self.answer(answer::ARMED, number);
                let of_this = number << 32;
                self.answer(answer::ENDED, of_this | 3);
                self.answer(answer::ENDED_ASLEEP, of_this | 1);
            }
        }
    }
}

impl RemoteRead for Patient {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let (at, len) = (read.at.addr, read.into.len());
            let is_table = [ORDERS_KEY, ANSWERS_KEY].contains(&read.at.key.raw());
            if is_table && self.lost().is_some() {
                return Err(LOST);
            }
            match read.at.key.raw() {
                ORDERS_KEY => read.into.copy_from_slice(&self.orders[(at - ORDERS_BASE) as usize..][..len]),
                ANSWERS_KEY => read.into.copy_from_slice(&self.answers[at as usize..][..len]),
                _ => {
                    self.image.read(std::slice::from_mut(read))?;
                    continue;
                }
            }
            read.outcome = Ok(());
        }
        Ok(())
    }
}

impl RemoteWrite for Patient {
    fn write(&mut self, warrant: Warrant<'_>, at: RemoteAddr, bytes: &[u8]) -> Result<(), WriteError> {
        assert!(warrant.covers(at, bytes.len()));
        if at.key == RemoteKey::new(LOCK_KEY) {
            self.raw_writes += 1;
            self.image.write_at(at.addr, bytes);
            return Ok(());
        }
        assert_eq!(at.key, RemoteKey::new(ORDERS_KEY), "orders are written, and nothing else of a target that runs");
        let lost = self.lost();
        if lost == Some(false) {
            return Err(LOST.into());
        }
        let offset = at.addr - ORDERS_BASE;
        self.ordered.push((offset, bytes.len()));
        self.orders[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        if self.target == Target::Quarrels && offset as usize + bytes.len() > FIRST_SLOT {
            self.orders[FIRST_SLOT] ^= 1;
        }
        self.tick();
        lost.map_or(Ok(()), |_| Err(LOST.into()))
    }

    fn compare_swap(&mut self, _: Warrant<'_>, _: RemoteAddr, _: u64, _: u64) -> Result<u64, WriteError> {
        unreachable!("repairs write")
    }

    fn fetch_add(&mut self, _: Warrant<'_>, _: RemoteAddr, _: u64) -> Result<u64, WriteError> {
        unreachable!("repairs write")
    }
}

impl Table for Patient {
    fn lock(&mut self, _: &str, _: u32) -> Result<LockToken, LinkFailure> {
        self.locks += 1;
        Ok(LockToken::new(FenceToken { target: "web".into(), epoch: 1, ram_key: LOCK_KEY, secret: 3 }))
    }

    fn unlock(&mut self, _: &LockToken) -> Result<(), LinkFailure> {
        Ok(())
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        Ok(entry("ram", RAM_KEY, 0, 1 << 40, Rights::READ))
    }

    fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        let rights = if self.target == Target::ReadOnly { Rights::READ } else { Rights::ALL };
        match name {
            _ if self.target == Target::HasNoTable => Err(LinkFailure::NoRegion(name.to_owned())),
            ORDERS => Ok(entry(name, ORDERS_KEY, ORDERS_BASE, ORDERS_BYTES as u64, rights)),
            ANSWERS => Ok(entry(name, ANSWERS_KEY, 0, ANSWERS_BYTES as u64, Rights::READ)),
            _ => Err(LinkFailure::NoRegion(name.to_owned())),
        }
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        self
    }
}

fn entry(name: &str, key: u32, base: u64, len: u64, rights: Rights) -> RegionEntry {
    RegionEntry { name: name.to_owned(), key, base, len, rights: rights.bits(), extents: Vec::new() }
}

fn plan(culprits: Vec<Culprit>) -> Plan {
    Plan { policy: "TEST".into(), proof: String::new(), culprits }
}

/// All processes of the user.
fn everybody(evidence: &Evidence) -> Option<Plan> {
    Some(plan(evidence.judged().filter(|process| process.uid == Some(USER)).filter_map(Culprit::of).collect()))
}

/// All but one of them.
fn most(evidence: &Evidence) -> Option<Plan> {
    everybody(evidence).map(|plan| Plan { culprits: plan.culprits[1..].to_vec(), ..plan })
}

fn attempt(patient: &mut Patient, hook: Hook, safety: &Safety) -> Result<Operation, RepairError> {
    operate_by(hook, patient, &kernel(), "test", safety, &mut everybody)
}

#[test]
fn an_order_names_a_user_whom_it_ends_as_a_whole_and_others_one_by_one() {
    for (decide, is_whole) in [(everybody as fn(&Evidence) -> Option<Plan>, true), (most, false)] {
        let mut patient = Patient::new(Target::Obeys, &[0]);
        let mut decide = decide;
        let operation =
            operate_by(Hook::Table, &mut patient, &kernel(), "test", &Safety::default(), &mut decide).unwrap();
        let (plan, mut order) = (operation.plan.unwrap(), operation.order.unwrap());
        let marks: Vec<Mark> = order.marks.iter().map(|(mark, _)| *mark).collect();
        if is_whole {
            assert_eq!(marks, [Mark::Uid { uid: USER }]);
        } else {
            let each = plan.culprits.iter().map(|one| Mark::Pid { pid: one.pid, start_ns: one.start_ns });
            assert_eq!(marks, each.collect::<Vec<_>>());
        }
        assert!(operation.kill.edits.is_empty() && operation.locked.is_zero());
        assert_eq!(
            (patient.locks, patient.raw_writes),
            (0, 0),
            "it stood not still, and its kernel was not written to"
        );
        // The first write withdraws, the last one alone commits.
        assert_eq!((patient.ordered[0], *patient.ordered.last().unwrap()), ((0, 8), (0, 8)));
        assert!(patient.ordered[1..patient.ordered.len() - 1].iter().all(|(offset, _)| *offset >= 8));
        for culprit in &plan.culprits {
            let process = Process {
                pid: culprit.pid,
                uid: culprit.uid,
                effective_uid: culprit.uid,
                is_kernel: false,
                start_ns: culprit.start_ns,
                cgroup: 0,
            };
            assert!(Orders::over(&patient.orders).unwrap().find(order.number, &process).is_some());
        }
        conclude(&mut patient, &mut order).unwrap();
        assert_eq!((order.ended, order.ended_asleep), (3, 1));
        assert_eq!(Orders::over(&patient.orders).unwrap().number(), 0, "withdrawn");
    }
}

/// A target that drowns keeps its own adapter waiting: an order is written until it stands there, and is one order.
#[test]
fn an_order_that_was_lost_on_its_way_is_written_again_at_once() {
    let mut quiet = Patient::new(Target::Obeys, &[0]);
    attempt(&mut quiet, Hook::Table, &Safety::default()).unwrap();
    // The first is the look at the answers, before anything is written: the ward begins anew then.
    for (number, is_done) in (1..quiet.operations).flat_map(|number| [(number, false), (number, true)]) {
        let mut patient = Patient::new(Target::Obeys, &[0]);
        patient.lost = vec![(number, is_done), (number + 1, false), (number + 4, is_done)];
        let begin = Instant::now();
        let operation = attempt(&mut patient, Hook::Table, &Safety::default()).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2), "operation {number}: {:?}", begin.elapsed());
        let order = operation.order.unwrap();
        assert_eq!(Orders::over(&patient.orders).unwrap().number(), order.number, "operation {number}");
        assert_eq!((patient.locks, patient.raw_writes), (0, 0));
    }
    let mut patient = Patient::new(Target::Obeys, &[0]);
    patient.lost = (1..1000).map(|number| (number, false)).collect();
    let why = attempt(&mut patient, Hook::Auto, &Safety::default()).unwrap_err();
    assert!(why.is_path() && !why.speaks_of_the_target() && patient.operations < 100, "{why}");
    assert!(patient.ordered.is_empty() && patient.raw_writes == 0, "raw writes would take the same path");
}

#[test]
fn a_plan_outside_its_bounds_is_not_ordered_not_even_in_part() {
    for hook in [Hook::Table, Hook::Auto] {
        let mut patient = Patient::new(Target::Obeys, &[0]);
        let spared = Safety { spare_uids: vec![USER], ..Safety::default() };
        assert!(matches!(attempt(&mut patient, hook, &spared), Err(RepairError::Unsafe(Unsafe::Spared { .. }))));
        let capped = Safety { blast_cap: 1, ..Safety::default() };
        assert!(matches!(attempt(&mut patient, hook, &capped), Err(RepairError::Unsafe(Unsafe::TooMany { .. }))));
        assert_eq!((patient.ordered.len(), patient.locks), (0, 0));
    }
}

/// Raw writes would end them all the same: the target's own word stands above the hook.
#[test]
fn whom_the_target_itself_spares_no_hook_ends_instead() {
    for hook in [Hook::Table, Hook::Auto] {
        let mut patient = Patient::new(Target::Obeys, &[0, USER]);
        let outcome = attempt(&mut patient, hook, &Safety::default());
        assert!(matches!(outcome, Err(RepairError::SparedByTarget { uid: USER })));
        assert_eq!((patient.ordered.len(), patient.locks), (0, 0));
    }
}

#[test]
fn where_the_table_is_of_no_use_raw_writes_take_its_place_only_if_they_may() {
    for target in [Target::IsSilent, Target::Refuses, Target::Quarrels, Target::HasNoTable, Target::ReadOnly] {
        let mut patient = Patient::new(target, &[0]);
        let why = attempt(&mut patient, Hook::Table, &Safety::default()).unwrap_err();
        let is_expected = match target {
            Target::IsSilent => matches!(why, RepairError::NotAcknowledged(_)),
            Target::Refuses => matches!(why, RepairError::OrderRefused(Refusal::OtherTarget)),
            Target::Quarrels => matches!(why, RepairError::NotOrdered { .. }),
            _ => matches!(why, RepairError::NoTable { .. }),
        };
        assert!(is_expected, "{why}");
        assert_eq!((patient.locks, patient.raw_writes), (0, 0));
        assert_eq!(Orders::over(&patient.orders).unwrap().number(), 0, "nothing stands there that was not taken up");

        let mut patient = Patient::new(target, &[0]);
        let operation = attempt(&mut patient, Hook::Auto, &Safety::default()).unwrap();
        assert_eq!((operation.order.is_none(), operation.not_by_table), (true, Some(why.to_string())));
        assert!(patient.locks == 1 && patient.raw_writes > 0);
    }
}

#[test]
fn nothing_to_do_orders_nothing() {
    let mut patient = Patient::new(Target::Obeys, &[0]);
    let operation =
        operate_by(Hook::Table, &mut patient, &kernel(), "test", &Safety::default(), &mut |_| None).unwrap();
    assert_eq!((operation.plan, patient.ordered.len(), patient.locks), (None, 0, 0));
}
