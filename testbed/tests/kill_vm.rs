//! Processes of a real kernel, killed by writes into its memory while it stands still: running ones, sleepers, the
//! second and third time as well as the first. Nothing of ours runs in the guest. Slow.

mod ram;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use introspect::Kernel;
use introspect::linux::kill::{self, Edit, Fate, KillPlan};
use introspect::linux::task::{self, Task};
use ram::Ram;
use remote_memory::RemoteKey;
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(60);

/// Enough to need slots side by side, and few enough for a guest of busybox.
const SLEEPERS: usize = 150;

/// Stopped ones.
const STOPPED: usize = 20;

/// `TASK_RUNNING` of include/linux/sched.h.
const RUNNING: u32 = 0;

/// A processor is in the middle of its timers for microseconds, every few milliseconds.
const STANDSTILLS_MAX: usize = 10;

/// An ordinary user.
const USER: u32 = 1000;

struct Patient {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
}

impl Patient {
    fn boot(line: &str, vcpus: u32) -> Self {
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("kill", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.cpus = vcpus;
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let mut ram = Ram::writable(&vm);
        let kernel = ram.kernel();
        Self { vm, ram, kernel }
    }

    fn tasks(&mut self) -> Vec<Task> {
        task::walk(&self.kernel, &mut self.ram, KEY).unwrap().0
    }

    /// Kills every process of such a task during one standstill. Where the processors were stopped in the middle of
    /// their timers, sleepers are marked only: the next one wakes them, as a monitor's next repair does.
    fn kill(&mut self, is_victim: impl Fn(&Task) -> bool) -> KillPlan {
        let stands_badly = |plan: &KillPlan| {
            plan.fates
                .iter()
                .any(|(_, fate)| matches!(fate, Fate::Sleeps { why } if why.contains("in the middle of its")))
        };
        for _ in 0..STANDSTILLS_MAX {
            let plan = self.kill_in_one(&is_victim);
            if !stands_badly(&plan) {
                return plan;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("no processor was outside its timers in {STANDSTILLS_MAX} standstills");
    }

    fn kill_in_one(&mut self, is_victim: impl Fn(&Task) -> bool) -> KillPlan {
        self.vm.qmp().stop().unwrap();
        let tasks = self.tasks();
        let victims: Vec<u32> = tasks.iter().filter(|task| is_victim(task)).map(|task| task.tgid).collect();
        let (plan, damage) = kill::plan(&self.kernel, &mut self.ram, KEY, &tasks, &victims).unwrap();
        assert!(damage.is_empty(), "{damage:?}");
        plan.edits.iter().for_each(|edit| self.carry_out(edit));
        self.vm.qmp().cont().unwrap();
        plan
    }

    /// Wakes those who are marked already, in another standstill.
    fn wake(&mut self, marked: &[Task]) -> KillPlan {
        self.vm.qmp().stop().unwrap();
        let (plan, _) = kill::wake_marked(&self.kernel, &mut self.ram, KEY, marked).unwrap();
        plan.edits.iter().for_each(|edit| self.carry_out(edit));
        self.vm.qmp().cont().unwrap();
        plan
    }

    fn carry_out(&self, edit: &Edit) {
        let mut there = vec![0; edit.was.len()];
        self.ram.0.read_exact_at(&mut there, edit.at).unwrap();
        assert_eq!((&there[..], edit.now.len()), (&edit.was[..], edit.was.len()), "{}", edit.what);
        self.ram.0.write_all_at(&edit.now, edit.at).unwrap();
    }

    fn count(&mut self, comm: &str) -> usize {
        self.tasks().iter().filter(|task| task.comm == comm && !task.is_exiting()).count()
    }

    fn wait_until(&mut self, what: &str, count: impl Fn(&mut Self) -> bool) {
        let begin = Instant::now();
        while !count(self) {
            assert!(begin.elapsed() < BOUND, "{what}: {:?}", self.tasks());
            thread::sleep(Duration::from_millis(20));
        }
        println!("{what}: {:?}", begin.elapsed());
    }

    fn spawn(&mut self, comm: &str, command: &str, count: usize) {
        let before = self.count(comm);
        let spawn = format!("i=0; while [ $i -lt {count} ]; do {command} >/dev/null 2>&1 & i=$((i+1)); done");
        self.vm.run(&spawn).unwrap();
        self.wait_until("they have started", |patient| patient.count(comm) >= before + count);
        if comm == "sleep" {
            // A name comes before the sleep does.
            let sleeps = |task: &Task| task.comm != "sleep" || task.state != RUNNING || task.is_exiting();
            self.wait_until("they sleep", |patient| patient.tasks().iter().all(sleeps));
        }
    }

    /// The guest does what it did before, and its kernel has nothing to complain of.
    fn is_well(&mut self) {
        assert_eq!(self.vm.run("sleep 0.1; echo well").unwrap().text().trim(), "well");
        let complaints =
            self.vm.run("dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace'").unwrap();
        assert_eq!(complaints.text().trim(), "");
    }
}

fn called(comm: &str) -> impl Fn(&Task) -> bool {
    move |task| task.comm == comm
}

fn check(line: &str, vcpus: u32) {
    println!("kernel {line}, {vcpus} processors");
    let mut patient = Patient::boot(line, vcpus);
    for round in 0..3 {
        patient.spawn("sleep", "sleep 9999", SLEEPERS);
        let plan = patient.kill(called("sleep"));
        let woken = plan.fates.iter().filter(|(_, fate)| *fate == Fate::Woken).count();
        assert_eq!(woken, SLEEPERS, "round {round}: {:?}", plan.fates);
        patient.wait_until("sleepers are gone", |patient| patient.count("sleep") == 0);
        patient.is_well();
    }
    patient.spawn("md5sum", "md5sum /dev/zero", 3);
    let plan = patient.kill(called("md5sum"));
    assert!(plan.fates.iter().all(|(_, fate)| *fate == Fate::Runs), "{:?}", plan.fates);
    patient.wait_until("those that ran are gone", |patient| patient.count("md5sum") == 0);
    // Sleepers beside processors that are busy.
    patient.spawn("md5sum", "md5sum /dev/zero", 2 * vcpus as usize);
    patient.spawn("sleep", "sleep 9999", 5);
    patient.kill(called("sleep"));
    patient.wait_until("sleepers beside busy processors are gone", |patient| patient.count("sleep") == 0);
    patient.kill(called("md5sum"));
    patient.wait_until("those that ran are gone", |patient| patient.count("md5sum") == 0);
    patient.is_well();
}

/// A stopped process is ended like one that sleeps. One that the freezer of its cgroup holds is marked, and ends when
/// it is thawed: today's answer, see decision 0010.
fn check_held(line: &str, vcpus: u32) {
    let mut patient = Patient::boot(line, vcpus);
    for _ in 0..2 {
        patient.spawn("sleep", "sleep 9999", STOPPED);
        patient.vm.run("kill -STOP $(pidof sleep)").unwrap();
        let is_stopped = |task: &Task| task.comm == "sleep" && task.state & 0x4 != 0;
        patient.wait_until("they are stopped", |patient| {
            patient.tasks().iter().filter(|it| is_stopped(it)).count() == STOPPED
        });
        let plan = patient.kill(called("sleep"));
        assert!(plan.fates.iter().all(|(_, fate)| *fate == Fate::Woken), "{:?}", plan.fates);
        patient.wait_until("the stopped are gone", |patient| patient.count("sleep") == 0);
        patient.is_well();
    }
    patient.spawn("sleep", "sleep 9999", 1);
    let freeze = "mkdir -p /cg && mount -t cgroup2 none /cg && mkdir /cg/f && pidof sleep > /cg/f/cgroup.procs && \
                  echo 1 > /cg/f/cgroup.freeze && until grep -q 'frozen 1' /cg/f/cgroup.events; do sleep 0.1; done";
    patient.vm.run(freeze).unwrap();
    let plan = patient.kill(called("sleep"));
    let is_told = |fate: &Fate| matches!(fate, Fate::Sleeps { why } if why.contains("frozen"));
    assert!(plan.fates.len() == 1 && is_told(&plan.fates[0].1), "{:?}", plan.fates);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(patient.count("sleep"), 1, "it is frozen still");
    patient.vm.run("echo 0 > /cg/f/cgroup.freeze").unwrap();
    patient.wait_until("the thawed one is gone", |patient| patient.count("sleep") == 0);
    patient.is_well();
}

/// Timers lie from here on, the header first, each slot with the address of what points to its timer at its second
/// word as long as that waits.
const TIMERS: u64 = 0x1_0000;
const SLOT_BYTES: u64 = 48;

/// Where they lay before.
const OLD_TIMERS: u64 = 0x2_0000;

/// Slots that are left.
const ROOM: usize = 40;

/// More than there is room for: marked at once, woken by and by, whoever has gone meanwhile aside.
fn check_crowd(line: &str, vcpus: u32) {
    let mut patient = Patient::boot(line, vcpus);
    patient.spawn("sleep", "sleep 9999", 3);
    patient.kill(called("sleep"));
    patient.wait_until("the first are gone", |patient| patient.count("sleep") == 0);
    let all = kill::room(&patient.kernel, &mut patient.ram, KEY).unwrap();
    assert!(all > ROOM, "room for {all}");
    // As if an older monitor had left timers, which lay elsewhere.
    for (magic, slot_bytes) in [(b"bdwakr48", 48), (b"bdwakers", 64)] {
        let header = [magic.as_slice(), &1u64.to_le_bytes()].concat();
        patient.ram.0.write_all_at(&header, OLD_TIMERS).unwrap();
        for (waits, room) in [(1u64, 0), (0, all)] {
            patient.ram.0.write_all_at(&waits.to_le_bytes(), OLD_TIMERS + slot_bytes + 8).unwrap();
            assert_eq!(kill::room(&patient.kernel, &mut patient.ram, KEY).unwrap(), room);
        }
    }
    // As if all were used, and timers waited in most of them that never fire.
    patient.ram.0.write_all_at(&(all as u64).to_le_bytes(), TIMERS + 8).unwrap();
    for slot in 0..all as u64 {
        let waits = u64::from(slot >= ROOM as u64);
        patient.ram.0.write_all_at(&waits.to_le_bytes(), TIMERS + (slot + 1) * SLOT_BYTES + 8).unwrap();
    }
    assert_eq!(kill::room(&patient.kernel, &mut patient.ram, KEY).unwrap(), ROOM);

    patient.spawn("sleep", "sleep 9999", 100);
    let plan = patient.kill(called("sleep"));
    let count = |plan: &KillPlan, fate: Fate| plan.fates.iter().filter(|(_, it)| *it == fate).count();
    assert_eq!((count(&plan, Fate::Woken), count(&plan, Fate::Later), plan.waiting.len()), (ROOM, 60, 60));
    patient.wait_until("the first are gone", |patient| patient.count("sleep") == 60);
    // One of those that wait is woken by another. No other signal would do that: the kernel takes one with
    // TIF_SIGPENDING for awake.
    patient.vm.run(&format!("kill -KILL {}", plan.waiting[0].pid)).unwrap();
    patient.wait_until("it is gone", |patient| patient.count("sleep") == 59);
    let second = patient.wake(&plan.waiting);
    assert_eq!((count(&second, Fate::Woken), count(&second, Fate::Later)), (ROOM, 19), "{:?}", second.fates);
    assert_eq!(second.fate_of(plan.waiting[0].tgid), None);
    patient.wait_until("the second are gone", |patient| patient.count("sleep") == 19);
    // Whoever has their number now is somebody else.
    let strangers = second.waiting.iter().map(|task| Task { start_time_ns: task.start_time_ns + 1, ..task.clone() });
    let none = patient.wake(&strangers.collect::<Vec<_>>());
    assert!(none.edits.is_empty() && none.fates.is_empty(), "{:?}", none.fates);
    let third = patient.wake(&second.waiting);
    assert_eq!((count(&third, Fate::Woken), third.waiting.len()), (19, 0));
    patient.wait_until("all are gone", |patient| patient.count("sleep") == 0);
    patient.is_well();
}

#[test]
fn sleepers_for_whom_there_was_no_room_are_woken_by_the_next_standstills() {
    for line in guest::Kernel::lines().unwrap() {
        check_crowd(&line, 1);
    }
}

#[test]
fn stopped_processes_die_too_and_frozen_ones_when_they_are_thawed() {
    for line in guest::Kernel::lines().unwrap() {
        check_held(&line, 2);
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn processes_die_of_what_is_written_into_their_kernel_s_memory_and_it_stays_well() {
    for line in guest::Kernel::lines().unwrap() {
        check(&line, 1);
        check(&line, 2);
    }
}

/// An ordinary user's processes that copy themselves as fast as the machine allows, up to a limit: beyond it the guest
/// itself would be out of memory.
#[test]
fn a_fork_bomb_is_over_after_one_standstill() {
    let mut patient = Patient::boot("6.1", 2);
    patient.vm.run(&format!("echo 'u:x:{USER}:{USER}::/tmp:/bin/sh' >> /etc/passwd")).unwrap();
    let bomb = "ulimit -u 400; b() { b & b & sleep 1000; }; b";
    patient.vm.run(&format!("(su u -s /bin/sh -c '{bomb}') </dev/null >/dev/null 2>&1 &")).unwrap();
    let is_bomb = |task: &Task| task.uid == Some(USER) && !task.is_exiting();
    let count = |patient: &mut Patient| patient.tasks().iter().filter(|task| is_bomb(task)).count();
    patient.wait_until("the bomb goes off", |patient| count(patient) > 50);
    let plan = patient.kill(is_bomb);
    println!("{} processes", plan.fates.len());
    patient.wait_until("the bomb is over", |patient| count(patient) == 0);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(count(&mut patient), 0, "none was born of a marked one");
    patient.is_well();
}
