//! What would be written to end processes of recorded machines, sleepers by timers: and not where memory only looks
//! like a timer wheel.

mod support;

use introspect::Kernel;
use introspect::linux::kill::{self, Fate, KillPlan, What};
use introspect::linux::task;
use remote_memory::KernelVirt;
use remote_memory::image::Image;
use support::{KEY, PROCESSES, load};

/// A user with sleepers.
const USER: u32 = 1001;

fn planned(kernel: &Kernel, image: &mut Image) -> KillPlan {
    let (tasks, _) = task::walk(kernel, image, KEY).unwrap();
    let victims: Vec<u32> = tasks.iter().filter(|task| task.uid == Some(USER)).map(|task| task.tgid).collect();
    assert!(victims.len() > 1);
    kill::plan(kernel, image, KEY, &tasks, &victims).unwrap().0
}

/// Nothing is written but the marks, and it is said why.
fn nobody_is_woken(plan: &KillPlan, expected: &str) {
    for (pid, fate) in &plan.fates {
        assert!(matches!(fate, Fate::Sleeps { why } if why.contains(expected)), "{pid}: {fate:?}, not {expected:?}");
    }
    assert_eq!(plan.edits.len(), 2 * plan.fates.len(), "{:?}", plan.edits);
}

#[test]
fn sleepers_of_recorded_machines_are_woken_by_timers() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let plan = planned(&kernel, &mut image);
        assert!(plan.fates.iter().all(|(_, fate)| *fate == Fate::Woken), "{machine}: {:?}", plan.fates);
        assert!(plan.edits.len() > 2 * plan.fates.len());
    }
}

/// Found by reading: what a processor's base was taken for became a place of zeroes.
#[test]
fn what_is_not_near_the_kernel_s_clock_is_no_wheel() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let (wheel, offsets) = (kernel.symbol("timer_bases").unwrap(), kernel.symbol("__per_cpu_offset").unwrap());
        let (tasks, _) = task::walk(&kernel, &mut image, KEY).unwrap();
        // A task's own struct, made empty but for the marks' places: a free lock, no timers.
        let empty = tasks.iter().find(|task| task.is_kernel_thread()).unwrap().address;
        let start = kernel.phys(empty, 4096).unwrap().raw();
        image.write_at(start, &[0; 4096]);
        for cpu in 0..8 {
            let at = kernel.phys(KernelVirt::new(offsets.raw() + cpu * 8), 8).unwrap().raw();
            if image.holds(at / remote_memory::PAGE_BYTES) {
                image.write_at(at, &empty.raw().wrapping_sub(wheel.raw()).to_le_bytes());
            }
        }
        nobody_is_woken(&planned(&kernel, &mut image), "in the middle of its timers");
    }
}

#[test]
fn a_vector_that_leads_to_no_timer_of_its_own_is_left_alone() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let plan = planned(&kernel, &mut image);
        let vector = plan.edits.iter().find(|edit| edit.what == What::from("vector of a timer wheel")).unwrap().at;
        let (tasks, _) = task::walk(&kernel, &mut image, KEY).unwrap();
        image.write_at(vector, &tasks[0].address.raw().to_le_bytes());
        nobody_is_woken(&planned(&kernel, &mut image), "not what it should be");
    }
}
