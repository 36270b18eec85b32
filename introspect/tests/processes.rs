//! What processes have, of recorded machines with several users, nested pid namespaces, cgroups, limits and threads:
//! against what those machines' /proc said, and damaged at random as in `campaign.rs`.

mod support;

use std::collections::BTreeMap;
use std::fs;

use introspect::linux::task::{self, Detail};
use introspect::linux::ucounts::{self, UserCount};
use introspect::{Damage, Fault, Kernel};
use rand::SeedableRng;
use rand::rngs::StdRng;
use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{PAGE_BYTES, RemoteRead};
use support::{KEY, MACHINES, PROCESSES, damaged, load, path};

/// Damaged copies of each machine, unless the variable says another number of all together.
const RUNS: u64 = 400;
const RUNS_VARIABLE: &str = "BACKDOORS_CORRUPTIONS";

/// Sixteen of the tasks and a few of the users; a chain that was bent can run through objects that exist, each once.
const ROUNDS_MAX: usize = 400;

/// More objects than the pages hold.
const OBJECTS_MAX: usize = 1_000;

fn details(kernel: &Kernel, mem: &mut dyn RemoteRead) -> (Vec<Detail>, Vec<Damage>) {
    task::details(kernel, mem, KEY).unwrap()
}

fn users(kernel: &Kernel, mem: &mut dyn RemoteRead) -> (Vec<UserCount>, Vec<Damage>) {
    ucounts::walk(kernel, mem, KEY).unwrap()
}

/// The lines of each process's files in /proc, by what they begin with.
fn truth(machine: &str) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut all: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
    for line in fs::read_to_string(path(machine, "truth.txt")).unwrap().lines() {
        let (file, line) = line.split_once(':').unwrap();
        let (pid, file) = file.strip_prefix("/proc/").unwrap().split_once('/').unwrap();
        let (key, value) = match file {
            "cgroup" => ("cgroup", line.strip_prefix("0::").unwrap()),
            "limits" => ("limits", line.strip_prefix("Max processes").unwrap()),
            _ => line.split_once(':').unwrap(),
        };
        all.entry(pid.parse().unwrap()).or_default().insert(key.to_owned(), value.trim().to_owned());
    }
    all
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn what_processes_have_is_what_proc_said() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let (details, damage) = details(&kernel, &mut image);
        assert_eq!(damage, [], "{machine}");
        let truth = truth(machine);
        let mut compared = 0;
        for found in details.iter().filter(|one| one.task.pid == one.task.tgid) {
            // A worker of the kernel may have been made since, and the guest still says what it was asked for.
            let Some(said) =
                truth.get(&found.task.pid).filter(|said| said["Name"].starts_with(found.task.comm.as_str()))
            else {
                assert!(found.task.is_kernel_thread() || found.task.comm == "cat", "{found:?}");
                continue;
            };
            let uids = numbers(&said["Uid"]);
            assert_eq!([found.task.uid, found.euid], [uids[0], uids[1]].map(|uid| Some(uid as u32)), "{found:?}");
            assert_eq!(u64::from(found.task.parent), numbers(&said["PPid"])[0], "{found:?}");
            assert_eq!(found.threads.map(u64::from), Some(numbers(&said["Threads"])[0]), "{found:?}");
            assert_eq!(found.cgroup.as_deref(), Some(said["cgroup"].as_str()), "{found:?}");
            let (inside, namespace) = (numbers(&said["NSpid"]), found.namespace.unwrap());
            assert_eq!(namespace.level as usize, inside.len() - 1, "{found:?}");
            assert_eq!(namespace.pid.map(u64::from), inside.last().copied(), "{found:?}");
            let (limits, said_limits) = (found.processes_max.unwrap(), numbers(&said["limits"]));
            assert_eq!([limits.soft, limits.hard], said_limits[..], "{found:?}");
            let rolled = said.get("Rss").map(|text| numbers(text)[0] / 4);
            assert_eq!(found.rss.is_some(), rolled.is_some(), "{found:?}");
            // The pages of the vdso count in /proc, and not in the kernel's counters.
            let difference = found.rss.zip(rolled).map(|(rss, rolled)| rss.pages().abs_diff(rolled));
            assert!(difference.unwrap_or(0) <= 4, "{found:?} {said:?}");
            compared += 1;
        }
        assert!(compared > 60, "{compared} processes in {machine}");
        // Two users' processes, a hog of ten megabytes, a server whose effective user is another, nested namespaces.
        let of = |uid: u32| details.iter().filter(move |one| one.task.uid == Some(uid));
        assert_eq!(of(1001).filter(|one| one.processes_max.is_some_and(|limit| limit.hard == 77)).count(), 1);
        assert!(of(1002).any(|one| one.rss.is_some_and(|rss| rss.anon_pages > 2400)));
        assert!(of(1004).count() > 1 && of(1004).all(|one| one.euid == Some(1003)));
        assert_eq!(details.iter().filter(|one| one.namespace.is_some_and(|it| it.level > 0)).count(), 3);
        assert!(details.iter().any(|one| one.cgroup.as_deref() == Some("/hogs/of-memory")));
    }
}

#[test]
fn the_kernel_s_counts_of_users_are_those_of_their_tasks() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let (details, _) = details(&kernel, &mut image);
        let (users, damage) = users(&kernel, &mut image);
        assert_eq!(damage, [], "{machine}");
        for uid in [1001, 1002, 1004] {
            let user = users.iter().find(|user| user.uid == uid).unwrap();
            let tasks = details.iter().filter(|one| one.ucounts == Some(user.address)).count() as u64;
            assert_eq!((user.processes, user.is_initial), (tasks, true), "{user:?}");
        }
        assert_eq!(users[0].uid, 0, "those with most processes first: {users:?}");
    }
}

#[test]
fn walks_of_damaged_machines_end_within_their_bounds_and_claim_nothing_that_cannot_be() {
    let asked = std::env::var(RUNS_VARIABLE).map(|text| text.parse().expect("a number of corruptions"));
    let runs = asked.map_or(RUNS, |all: u64| all.div_ceil(PROCESSES.len() as u64));
    for (number, machine) in (0..).zip(PROCESSES) {
        let (kernel, image) = load(machine);
        let mut reports = 0;
        for seed in 0..runs {
            let seed = seed << 8 | number;
            let mut trace = Trace::new(damaged(&image, &mut StdRng::seed_from_u64(seed)));
            let (details, damage) = details(&kernel, &mut trace);
            let (users, more) = users(&kernel, &mut trace);
            assert!(trace.rounds() < ROUNDS_MAX, "seed {seed}: {} rounds", trace.rounds());
            assert!(details.len() < OBJECTS_MAX && users.len() < OBJECTS_MAX, "seed {seed}: more than pages hold");
            for one in &details {
                assert!(one.rss.is_none_or(|rss| rss.pages() <= 3 * (512 << 20) / PAGE_BYTES), "seed {seed}: {one:?}");
                assert!(one.rss.is_none_or(|rss| rss.swap_entries == 0), "seed {seed}: it has no swap: {one:?}");
                assert!(one.namespace.is_none_or(|it| it.level <= 32), "seed {seed}: {one:?}");
                assert!(one.depth.is_none_or(|depth| depth as usize <= details.len()), "seed {seed}: {one:?}");
                assert!(one.cgroup.as_ref().is_none_or(|path| path.starts_with('/')), "seed {seed}: {one:?}");
            }
            reports += damage.len() + more.len();
        }
        assert!(reports > runs as usize, "only {reports} reports: the damage missed");
    }
}

/// A pointer to what a task has, turned to another task's of the same kind, is seen where the kernel keeps a way back.
#[test]
fn what_belongs_to_another_process_is_not_taken_for_one_s_own() {
    for machine in PROCESSES {
        let (kernel, mut image) = load(machine);
        let (whole, _) = details(&kernel, &mut image);
        let of = |uid: u32| whole.iter().find(|one| one.task.uid == Some(uid)).unwrap();
        let (victim, other) = (of(1001), of(1002));
        let turn = |from: u64, to: u64| {
            let start = kernel.phys(victim.task.address, 8).unwrap().raw();
            let mut turned = image.clone();
            let place = (start..start + 8192).step_by(8).find(|at| word_at(&turned, *at) == Some(from)).unwrap();
            turned.write_at(place, &to.to_le_bytes());
            let (found, damage) = details(&kernel, &mut turned);
            (found.into_iter().find(|one| one.task.pid == victim.task.pid).unwrap(), damage)
        };
        let (found, damage) = turn(victim.signal.unwrap().raw(), other.signal.unwrap().raw());
        assert_eq!((found.signal, found.threads, found.processes_max), (None, None, None), "{machine}");
        assert!(damage.iter().any(|it| it.part == "signal_struct.pids" && matches!(it.fault, Fault::Mismatch { .. })));
    }
}

fn word_at(image: &Image, at: u64) -> Option<u64> {
    let mut raw = [0; 8];
    image.copy_out(at, &mut raw).map(|()| u64::from_le_bytes(raw))
}

#[test]
fn a_description_saved_before_this_was_read_says_so_and_tells_the_tasks() {
    let (kernel, mut image) = load(MACHINES[0]);
    let (details, damage) = details(&kernel, &mut image);
    assert!(details.len() > 50 && details.iter().all(|one| one.rss.is_none() && one.depth.is_some()), "{details:?}");
    assert!(matches!(damage[..], [Damage { fault: Fault::Unknown, .. }]), "{damage:?}");
    let (users, damage) = users(&kernel, &mut image);
    assert!(users.is_empty() && matches!(damage[..], [Damage { fault: Fault::Unknown, .. }]), "{damage:?}");
}
