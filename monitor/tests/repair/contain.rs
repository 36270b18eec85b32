//! Containment on the recorded machine: who is contained, who is not, and what is given back.

use std::collections::BTreeSet;

use introspect::linux::contain::{Contained, Means, Measure};
use introspect::linux::task;
use monitor::config::Module;
use monitor::journal::replay::reconsider;
use monitor::journal::{Event, Line, RepairLine};
use monitor::repair::{Operation, Ways, give_back, operate_by, standard};

use super::*;

/// The user of whom one process is alone in a cgroup that may have 40, and one in the root.
const GROUPED_USER: u32 = 1001;
const GROUP_MAX: u64 = 40;

fn of_user(user: u32) -> impl FnMut(&Evidence) -> Option<Plan> {
    move |evidence| {
        let of_user = evidence.judged().filter(|process| process.uid == Some(user));
        let culprits: Vec<Culprit> = of_user.filter_map(Culprit::of).collect();
        Some(Plan { policy: "TEST".into(), proof: String::new(), culprits })
    }
}

fn operated(patient: &mut Patient, user: u32, cap: usize, contain: &[Means]) -> Result<Operation, RepairError> {
    let ways = Ways { hook: Hook::Raw, contain: contain.iter().copied().collect() };
    let safety = Safety { blast_cap: cap, ..Safety::default() };
    operate_by(ways, patient, &kernel(), "test", &safety, &mut of_user(user))
}

/// Limits of each process of a user, as walks find them now.
fn limits(patient: &mut Patient, user: u32) -> Vec<(u64, u64)> {
    let (details, _) = task::details(&kernel(), &mut patient.image, RemoteKey::new(READ_KEY)).unwrap();
    let of_user = details.iter().filter(|one| one.task.uid == Some(user));
    of_user.map(|one| one.processes_max.map(|limit| (limit.soft, limit.hard)).unwrap()).collect()
}

/// Has the first process of a user wait for a disk.
fn wait_for_a_disk(patient: &mut Patient, user: u32) -> u32 {
    let kernel = kernel();
    let (tasks, _) = task::walk(&kernel, &mut patient.image, RemoteKey::new(READ_KEY)).unwrap();
    let first = tasks.iter().find(|task| task.uid == Some(user)).unwrap();
    let layout = serde_json::to_value(&kernel).unwrap();
    let offset = layout["task"]["state"]["offset"].as_u64().unwrap();
    let state = kernel.phys(first.address.checked_add(offset).unwrap(), 4).unwrap();
    patient.image.write_at(state.raw(), &2u32.to_le_bytes());
    first.tgid
}

fn means_of(contained: &[Contained]) -> Vec<Means> {
    contained.iter().map(|one| one.measure.means()).collect()
}

#[test]
fn whoever_dies_at_once_is_not_contained_and_costs_no_write_more() {
    let mut patient = Patient::new(Mishap::None);
    let operation = operated(&mut patient, HOG_USER, 10, &[Means::Nproc, Means::Oom]).unwrap();
    assert!(operation.kill.fates.iter().all(|(_, fate)| *fate == Fate::Woken));
    assert_eq!((operation.contained.len(), patient.written.len()), (0, operation.kill.edits.len()));
}

#[test]
fn whoever_waits_for_a_disk_is_marked_and_contained() {
    let mut patient = Patient::new(Mishap::None);
    let waiting = wait_for_a_disk(&mut patient, HOG_USER);
    let operation = operated(&mut patient, HOG_USER, 10, &[Means::Nproc, Means::Oom]).unwrap();
    assert!(operation.contained.iter().all(|one| one.measure.culprits() == [waiting]), "{:?}", operation.contained);
    assert_eq!(means_of(&operation.contained), [Means::Nproc, Means::Oom]);
    let mut limits = limits(&mut patient, HOG_USER);
    limits.sort_unstable();
    assert_eq!(limits[0], (0, 0));
    assert_ne!(limits[1], (0, 0), "the other one dies at once");
    for one in &operation.contained {
        let mut there = vec![0; one.edit.now.len()];
        patient.image.copy_out(one.edit.at, &mut there).unwrap();
        assert_eq!(there, *one.edit.now);
    }
    // It is so already.
    assert!(operated(&mut patient, HOG_USER, 10, &[Means::Nproc, Means::Oom]).unwrap().contained.is_empty());
}

#[test]
fn beyond_the_blast_cap_nobody_is_ended_and_everybody_contained() {
    let mut patient = Patient::new(Mishap::None);
    let operation = operated(&mut patient, HOG_USER, 1, &[Means::Nproc, Means::Oom, Means::Pids]).unwrap();
    let culprits = operation.plan.unwrap().culprits.len();
    assert!(culprits > 1 && operation.kill.edits.is_empty());
    assert!(matches!(operation.beyond, Some(Unsafe::TooMany { cap: 1, .. })));
    assert_eq!(means_of(&operation.contained), [Means::Nproc, Means::Oom].repeat(culprits), "no cgroup is limited");
    assert_eq!(limits(&mut patient, HOG_USER), vec![(0, 0); culprits]);
    // Once more: nothing is left to be done, and the plan is refused as it is without containment.
    let outcome = operated(&mut patient, HOG_USER, 1, &[Means::Nproc, Means::Oom]);
    assert!(matches!(outcome, Err(RepairError::Unsafe(Unsafe::TooMany { .. }))));
    let mut patient = Patient::new(Mishap::None);
    let outcome = operated(&mut patient, HOG_USER, 1, &[]);
    assert!(matches!(outcome, Err(RepairError::Unsafe(Unsafe::TooMany { .. }))));
    assert!(patient.written.is_empty());
}

#[test]
fn a_cgroup_is_limited_where_culprits_are_alone_and_has_its_limit_back_afterwards() {
    let mut patient = Patient::new(Mishap::None);
    let contained = operated(&mut patient, GROUPED_USER, 10, &[Means::Pids]).unwrap().contained;
    let [one] = contained.as_slice() else { panic!("{contained:?}") };
    let Measure::Pids { limit, pids, .. } = &one.measure else { panic!("{one:?}") };
    assert_eq!((*limit, pids.len(), patient.word(one.edit.at)), (Some(GROUP_MAX), 1, 0));
    assert_eq!(give_back(&mut patient, &kernel(), &contained).unwrap(), 1);
    assert_eq!((patient.word(one.edit.at), patient.unlocked), (GROUP_MAX, 2));
    // What somebody else has set, or what is another cgroup by now, is left alone.
    let before = patient.written.len();
    assert_eq!(give_back(&mut patient, &kernel(), &contained).unwrap(), 0);
    let mut other = one.clone();
    patient.image.write_at(one.edit.at, &[0; 8]);
    if let Measure::Pids { serial, .. } = &mut other.measure {
        *serial += 1;
    }
    assert_eq!(give_back(&mut patient, &kernel(), &[other]).unwrap(), 0);
    assert_eq!((patient.written.len(), patient.is_locked), (before, false));
}

#[test]
fn a_cgroup_with_a_stranger_in_it_is_not_limited() {
    let mut patient = Patient::new(Mishap::None);
    assert!(operated(&mut patient, HOG_USER, 10, &[Means::Pids]).unwrap().contained.is_empty());
}

#[test]
fn a_limit_that_cannot_be_given_back_is_told() {
    let mut patient = Patient::new(Mishap::None);
    let contained = operated(&mut patient, GROUPED_USER, 10, &[Means::Pids]).unwrap().contained;
    patient.mishap = Mishap::LockRefused;
    assert!(matches!(give_back(&mut patient, &kernel(), &contained), Err(RepairError::NotLocked(_))));
    patient.mishap = Mishap::None;
    assert_eq!(give_back(&mut patient, &kernel(), &contained).unwrap(), 1, "it is tried again");
}

#[test]
fn a_dry_run_shows_who_would_be_contained() {
    let mut patient = Patient::new(Mishap::LockRefused);
    let waiting = wait_for_a_disk(&mut patient, HOG_USER);
    let healer = MemHog { max_rssuid_mib: Some(5), ..MemHog::default() };
    let ways = Ways { hook: Hook::Raw, contain: standard() };
    let cure =
        treat(&mut patient, &kernel(), &healer, &Safety::default(), ways, true, |_| panic!("no repair")).unwrap();
    let Cure::DryRun(_, contained) = cure else { panic!("{cure:?}") };
    assert!(contained.iter().all(|one| one.measure.culprits() == [waiting]), "{contained:?}");
    assert_eq!((means_of(&contained), patient.written.len()), (vec![Means::Nproc, Means::Oom], 0));
}

#[test]
fn a_journal_holds_what_was_written_and_a_replay_tells_who_should_not_have_been_contained() {
    let mut patient = Patient::new(Mishap::None);
    let healer = MemHog { max_rssuid_mib: Some(5), ..MemHog::default() };
    let contain: BTreeSet<Means> = [Means::Nproc, Means::Pids, Means::Oom].into();
    let safety = Safety { blast_cap: 1, ..Safety::default() };
    let (mut lines, ways) = (Vec::new(), Ways { hook: Hook::Raw, contain: contain.clone() });
    let cure = treat(&mut patient, &kernel(), &healer, &safety, ways, false, |treated| {
        let operation = &treated.operation;
        assert_eq!(Some(&treated.survivors), operation.plan.as_ref().map(|plan| &plan.culprits));
        lines.push(RepairLine {
            module: Module::MemHog(healer),
            safety: safety.clone(),
            earlier: None,
            evidence: operation.evidence.clone(),
            plan: operation.plan.clone(),
            kill: operation.kill.clone(),
            contain: contain.clone(),
            contained: operation.contained.clone(),
            not_given_back: None,
            wakings: Vec::new(),
            locked_ns: 1,
            order: None,
            not_by_table: None,
            survivors: treated.survivors.clone(),
        });
    });
    assert!(matches!(&cure, Ok(Cure::Ill { why }) if why.contains("contained")), "{cure:?}");
    let again = |line: &RepairLine| {
        let event = Event::Repaired(Box::new(line.clone()));
        let line = Line { wall_ns: 0, mono_ns: 5, target: "web".into(), event };
        let read: Line = serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
        assert_eq!(read, line);
        let one = reconsider(&[read], false).remove(0);
        (one.agrees(), one.is_contained_rightly)
    };
    let line = lines.remove(0);
    assert!(!line.contained.is_empty());
    assert_eq!(again(&line), (true, true));
    let unasked = RepairLine { contain: [Means::Pids].into(), ..line.clone() };
    assert_eq!(again(&unasked), (false, false));
    let mut stranger = line;
    if let Measure::Nproc { pid, .. } = &mut stranger.contained[0].measure {
        *pid = 1;
    }
    assert_eq!(again(&stranger), (false, false));
}
