//! Repairs of a recorded machine: what is written, what is not, and what is said of it. The machine is Linux 6.1 with
//! processes of several users; the table lets the test break everything that can break.

mod machine;

use control::backdoor::{FenceToken, LockToken, RegionEntry};
use healing_modules::{Culprit, Evidence, MemHog, Plan, Safety, Unsafe};
use introspect::linux::kill::{Edit, Fate, Member, What};
use link::LinkFailure;
use machine::kernel;
use monitor::config::Hook;
use monitor::repair::{Cure, RepairError, Table, operate, survivors, treat};
use remote_memory::image::Image;
use remote_memory::{
    AccessError, LinkError, Read, RemoteAddr, RemoteKey, RemoteRead, RemoteWrite, Rights, Warrant, WriteError,
};
use std::time::Duration;

/// The user with a hog of ten megabytes.
const HOG_USER: u32 = 1002;

const READ_KEY: u32 = 1;
const LOCK_KEY: u32 = 2;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mishap {
    None,
    /// Somebody else holds the target.
    LockRefused,
    /// The lease ends after so many writes.
    LeaseEnds {
        after: usize,
    },
    /// The memory takes a write and does not hold it.
    Forgets,
    /// The target goes on between two rounds: what was read is not what is there.
    Moves,
}

struct Patient {
    image: Image,
    mishap: Mishap,
    is_locked: bool,
    written: Vec<(u64, Vec<u8>)>,
    unlocked: usize,
}

impl Patient {
    fn new(mishap: Mishap) -> Self {
        let image = machine::image();
        Self { image, mishap, is_locked: false, written: Vec::new(), unlocked: 0 }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.image.copy_out(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}

fn refused(why: &str) -> LinkFailure {
    LinkFailure::Refused { why: why.to_owned() }
}

impl RemoteRead for Patient {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        self.image.read(batch)?;
        let was_locked_by_key = batch.iter().any(|read| read.at.key == RemoteKey::new(LOCK_KEY));
        if self.mishap == Mishap::Moves && was_locked_by_key {
            batch.iter_mut().for_each(|read| read.into[0] ^= 1);
        }
        Ok(())
    }
}

impl RemoteWrite for Patient {
    fn write(&mut self, warrant: Warrant<'_>, at: RemoteAddr, bytes: &[u8]) -> Result<(), WriteError> {
        assert!(self.is_locked, "nothing is written without a lock");
        assert!(warrant.covers(at, bytes.len()) && at.key == RemoteKey::new(LOCK_KEY));
        match self.mishap {
            Mishap::LeaseEnds { after } if self.written.len() >= after => return Err(AccessError::Refused.into()),
            Mishap::Forgets => {}
            _ => self.image.write_at(at.addr, bytes),
        }
        self.written.push((at.addr, bytes.to_vec()));
        Ok(())
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
        if self.mishap == Mishap::LockRefused {
            return Err(refused("somebody else"));
        }
        self.is_locked = true;
        Ok(LockToken::new(FenceToken { target: "web".into(), epoch: 1, ram_key: LOCK_KEY, secret: 3 }))
    }

    fn unlock(&mut self, _: &LockToken) -> Result<(), LinkFailure> {
        assert!(std::mem::take(&mut self.is_locked));
        self.unlocked += 1;
        match self.mishap {
            Mishap::LeaseEnds { .. } => Err(refused("the lease has ended")),
            _ => Ok(()),
        }
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        let (name, rights) = ("ram".to_owned(), Rights::READ.bits());
        Ok(RegionEntry { name, key: READ_KEY, base: 0, len: 1 << 40, rights, extents: Vec::new() })
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        self
    }
}

/// All processes of the user with the hog.
fn hogs(evidence: &Evidence) -> Option<Plan> {
    let of_user = evidence.judged().filter(|process| process.uid == Some(HOG_USER));
    let culprits: Vec<Culprit> = of_user.filter_map(Culprit::of).collect();
    Some(Plan { policy: "TEST".into(), proof: String::new(), culprits })
}

fn attempt(patient: &mut Patient, safety: &Safety) -> Result<monitor::repair::Operation, RepairError> {
    operate(patient, &kernel(), "test", safety, &mut hogs)
}

#[test]
fn the_marks_of_the_culprits_are_written_and_nothing_else() {
    let mut patient = Patient::new(Mishap::None);
    let operation = attempt(&mut patient, &Safety::default()).unwrap();
    let culprits = &operation.plan.unwrap().culprits;
    assert!(!culprits.is_empty() && operation.kill.fates.len() == culprits.len());
    assert_eq!((patient.unlocked, patient.is_locked), (1, false));
    assert_eq!(patient.written.len(), operation.kill.edits.len());
    for edit in operation.kill.edits.iter().filter(|edit| matches!(edit.what, What::OfTask(Member::PendingSignals, _)))
    {
        assert_eq!(patient.word(edit.at) & 1 << 8, 1 << 8, "SIGKILL");
    }
    for edit in operation.kill.edits.iter().filter(|edit| matches!(edit.what, What::OfTask(Member::ThreadFlags, _))) {
        assert_eq!(patient.word(edit.at) & 1 << 2, 1 << 2, "TIF_SIGPENDING");
    }
    // Both sleep, and are woken by timers: all of that lies in memory of nobody, and in the wheel.
    assert!(operation.kill.fates.iter().all(|(_, fate)| *fate == Fate::Woken), "{:?}", operation.kill.fates);
    let marks = operation.kill.edits.iter().filter(|edit| is_mark(edit)).count();
    assert_eq!(marks, 2 * culprits.len());
}

fn is_mark(edit: &Edit) -> bool {
    matches!(edit.what, What::OfTask(Member::PendingSignals | Member::ThreadFlags, _))
}

#[test]
fn a_plan_outside_its_bounds_is_not_carried_out_not_even_in_part() {
    let mut patient = Patient::new(Mishap::None);
    let spared = Safety { spare_uids: vec![HOG_USER], ..Safety::default() };
    assert!(matches!(attempt(&mut patient, &spared), Err(RepairError::Unsafe(Unsafe::Spared { .. }))));
    let capped = Safety { blast_cap: 1, ..Safety::default() };
    assert!(matches!(attempt(&mut patient, &capped), Err(RepairError::Unsafe(Unsafe::TooMany { .. }))));
    assert_eq!((patient.written.len(), patient.unlocked), (0, 2), "and the target goes on");
}

#[test]
fn init_and_the_kernel_s_own_are_refused_whoever_names_them() {
    let mut patient = Patient::new(Mishap::None);
    let anybody = Safety { spare_uids: Vec::new(), ..Safety::default() };
    for pid in [1, 2] {
        let mut name = |_: &Evidence| {
            let culprit = Culprit { pid, uid: 0, comm: "x".into(), start_ns: 0 };
            Some(Plan { policy: "TEST".into(), proof: String::new(), culprits: vec![culprit] })
        };
        let outcome = operate(&mut patient, &kernel(), "test", &anybody, &mut name);
        assert!(matches!(outcome, Err(RepairError::Unsafe(Unsafe::Unknown { .. }))));
    }
    assert!(patient.written.is_empty());
}

#[test]
fn whose_fault_a_failed_repair_is_and_what_was_written_is_said() {
    let mut patient = Patient::new(Mishap::LockRefused);
    assert!(matches!(attempt(&mut patient, &Safety::default()), Err(RepairError::NotLocked(_))));
    assert_eq!((patient.written.len(), patient.unlocked), (0, 0));

    let mut patient = Patient::new(Mishap::Moves);
    assert!(matches!(attempt(&mut patient, &Safety::default()), Err(RepairError::Changed { .. })));
    assert_eq!((patient.written.len(), patient.unlocked), (0, 1));

    let mut patient = Patient::new(Mishap::LeaseEnds { after: 3 });
    let Err(RepairError::NotWritten { written, .. }) = attempt(&mut patient, &Safety::default()) else {
        panic!("three writes were made")
    };
    assert_eq!((written, patient.written.len(), patient.unlocked), (3, 3, 1));

    let mut patient = Patient::new(Mishap::Forgets);
    assert!(matches!(attempt(&mut patient, &Safety::default()), Err(RepairError::NotHeld { .. })));
    assert_eq!(patient.unlocked, 1);
}

#[test]
fn a_lease_that_ended_is_said_even_if_all_was_written() {
    let mut patient = Patient::new(Mishap::LeaseEnds { after: usize::MAX });
    assert!(matches!(attempt(&mut patient, &Safety::default()), Err(RepairError::NotUnlocked(_))));
}

#[test]
fn nothing_to_do_writes_nothing() {
    let mut patient = Patient::new(Mishap::None);
    let operation = operate(&mut patient, &kernel(), "test", &Safety::default(), &mut |_| None).unwrap();
    assert_eq!((operation.plan, patient.written.len(), patient.unlocked), (None, 0, 1));
}

/// A recording does not die of its marks.
#[test]
fn a_cure_that_does_not_help_is_told_with_who_lives_on() {
    let mut patient = Patient::new(Mishap::None);
    let culprits = attempt(&mut patient, &Safety::default()).unwrap().plan.unwrap().culprits;
    assert_eq!(survivors(&mut patient, &kernel(), &culprits, Duration::ZERO).unwrap(), culprits);
}

#[test]
fn a_dry_run_does_not_even_lock() {
    let mut patient = Patient::new(Mishap::LockRefused);
    let healer = MemHog { max_rss_mib: Some(5), ..MemHog::default() };
    let cure =
        treat(&mut patient, &kernel(), &healer, &Safety::default(), Hook::Raw, true, |_| panic!("no repair")).unwrap();
    let Cure::DryRun(plan, _) = cure else { panic!("{cure:?}") };
    assert_eq!((plan.policy.as_str(), plan.culprits.len(), plan.culprits[0].uid), ("MAX_RSS", 1, HOG_USER));
    let lenient = MemHog { max_rss_mib: Some(500), ..MemHog::default() };
    let cure = treat(&mut patient, &kernel(), &lenient, &Safety::default(), Hook::Raw, false, |_| panic!("no repair"))
        .unwrap();
    assert_eq!(cure, Cure::Healthy);
}

#[path = "repair/contain.rs"]
mod contain;
#[path = "repair/programs.rs"]
mod programs;
