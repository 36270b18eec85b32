//! Kernel sensors of guests in which nothing of ours is installed: what they show against what the guest's own /proc
//! says, and what a detector makes of them, idle, busy and broken. Slow.
//!
//! The testbed must have been built (`make test` does).

mod ram;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use introspect::Kernel;
use monitor::detect::{Detector, Finding, Look, Observation, Plan, Quorum, Raises, Rule};
use monitor::kernel::recipe::{READY_MADE, ready_made};
use monitor::kernel::{KernelReader, KernelSensor, Survey, survey, survey_the_living, watched_users};
use ram::Ram;
use remote_memory::RemoteKey;
use testbed::fault::{Fault, build_lockup_module};
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// From one sample to the next.
const PERIOD: Duration = Duration::from_millis(5);

/// What a processor of an emulated guest keeps on a machine that is busy with other tests.
const TICKS_WITHIN: Duration = Duration::from_secs(2);
const SWITCHES_WITHIN: Duration = Duration::from_secs(6);

/// How long a healthy guest is watched.
const CALM: Duration = Duration::from_secs(8);

/// Processes of one user, more than any other has.
const SLEEPERS: u64 = 150;

/// A guest, and a monitor's eye on it.
struct Watched {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
    survey: Survey,
    reader: KernelReader,
    names: Vec<String>,
    detector: Detector,
    begin: Instant,
    /// When each value was first seen, and for how long one stood still at most.
    stands: Vec<(Option<u64>, Instant, Duration)>,
}

impl Watched {
    fn boot(line: &str, cpus: u32) -> Self {
        let kernel = guest::Kernel::cached(line).unwrap();
        let module = build_lockup_module(&kernel).unwrap();
        let image = ImageSpec::new(kernel).extra_module(&module);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("sensors", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.cpus = cpus;
        spec.reboots = true;
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let mut ram = Ram::of(&vm);
        let kernel = ram.kernel();
        let sensors: Vec<KernelSensor> = READY_MADE.iter().copied().filter_map(ready_made).collect();
        let users = watched_users(&kernel, &mut ram, KEY, None).unwrap().0;
        let survey = survey(&kernel, &mut ram, KEY, &sensors).unwrap().with_users(users);
        assert_eq!(survey.missing, [], "Linux {line}");
        let rule = |pattern: &str, deadline| Rule {
            pattern: pattern.to_owned(),
            deadline: Some(deadline),
            limit: None,
            window: None,
            quorum: Quorum::Any,
            raises: Raises::Hang,
        };
        let rules = [rule("TICKS.cpu*", TICKS_WITHIN), rule("SWITCHES.cpu*", SWITCHES_WITHIN)];
        let described: Vec<_> = survey.described().cloned().collect();
        let (plan, places) = Plan::new(&described, &rules, Duration::from_secs(1));
        assert!(plan.can_raise_hang() && places.len() == described.len(), "{described:?}");
        let reader = KernelReader::new(Arc::new(survey.clone()), KEY);
        let names: Vec<_> = described.into_iter().map(|sensor| sensor.name).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("TICKS.cpu")).count(), cpus as usize, "{names:?}");
        let (detector, begin) = (Detector::new(plan), Instant::now());
        Self { vm, ram, kernel, survey, reader, names, detector, begin, stands: Vec::new() }
    }

    fn now_ns(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    fn look(&mut self) -> Vec<Option<u64>> {
        let now_ns = self.now_ns();
        self.reader.look(&mut self.ram, now_ns).unwrap()
    }

    fn value(&mut self, name: &str) -> u64 {
        let at = self.names.iter().position(|one| one == name).unwrap_or_else(|| panic!("no {name}"));
        self.look()[at].unwrap_or_else(|| panic!("{name} says nothing"))
    }

    /// Takes samples for `time`, or until an alarm is raised; the rule that did.
    fn watch(&mut self, time: Duration) -> Option<String> {
        let begin = Instant::now();
        self.stands = vec![(None, begin, Duration::ZERO); self.names.len()];
        while begin.elapsed() < time {
            let begin_ns = self.now_ns();
            let values = self.look();
            for ((seen, since, longest), value) in self.stands.iter_mut().zip(&values) {
                if seen != value {
                    (*seen, *since) = (*value, Instant::now());
                }
                *longest = (*longest).max(since.elapsed());
            }
            let look = Look::Values { identity: self.survey.identity, values: &values };
            let findings = self.detector.observe(Observation { begin_ns, end_ns: self.now_ns(), look });
            let alarm = findings.into_iter().find_map(|finding| match finding {
                Finding::Hung(alarm) => Some(alarm.rule),
                _ => None,
            });
            if alarm.is_some() {
                return alarm;
            }
            std::thread::sleep(PERIOD);
        }
        None
    }

    /// For how long a sensor of that name stood still while it was watched, at most.
    fn longest_stand(&self, prefix: &str) -> Duration {
        let stands = self.names.iter().zip(&self.stands).filter(|(name, _)| name.starts_with(prefix));
        stands.map(|(_, (_, _, longest))| *longest).max().unwrap()
    }

    fn run(&mut self, command: &str) -> String {
        let output = self.vm.run_within(command, BOUND).unwrap();
        assert_eq!(output.status, 0, "{command}: {}", output.text());
        output.text()
    }

    fn number(&mut self, command: &str) -> u64 {
        let said = self.run(command);
        said.trim().parse().unwrap_or_else(|_| panic!("{command}: {said}"))
    }
}

/// The sensor's value lies between what the guest says before and after, give or take.
fn check(guest: &mut Watched, sensor: &str, command: &str, by: u64) {
    let before = guest.number(command);
    let value = guest.value(sensor);
    let after = guest.number(command);
    let (least, most) = (before.min(after).saturating_sub(by), before.max(after) + by);
    assert!((least..=most).contains(&value), "{sensor}: {value}, and {before} to {after} by {command}");
}

fn values_are_those_of_proc(guest: &mut Watched) {
    check(guest, "NPROCS", "cut -d/ -f2 /proc/loadavg | cut -d' ' -f1", 20);
    check(guest, "FORKS", "awk '/^processes/ { print $2 }' /proc/stat", 0);
    check(guest, "CONTEXT_SWITCHES", "awk '/^ctxt/ { print $2 }' /proc/stat", 0);
    let timers = "awk '/LOC:/ { for (i = 2; $i + 0 == $i; i++) sum += $i; print sum }' /proc/interrupts";
    check(guest, "TIMER_INTERRUPTS", timers, 0);
    check(guest, "FREE_PAGES", "awk '/^MemFree/ { print $2 / 4 }' /proc/meminfo", 1024);
    check(guest, "AVAILABLE_PAGES", "awk '/^MemAvailable/ { print $2 / 4 }' /proc/meminfo", 4096);
    check(guest, "OOM_KILLS", "awk '/^oom_kill / { print $2 }' /proc/vmstat", 0);
    assert_eq!(guest.value("OOM_KILLER_RUNNING"), 0);
    guest.run("(x=$(head -c 20000000 /dev/zero | tr \\\\0 x); sleep 99999; echo $x) >/dev/null 2>&1 & sleep 1");
    guest.run("echo f >/proc/sysrq-trigger; until grep -q '^oom_kill 1$' /proc/vmstat; do sleep 0.1; done");
    check(guest, "OOM_KILLS", "awk '/^oom_kill / { print $2 }' /proc/vmstat", 0);
}

/// A user whom the first walk did not see has grown by all that it has.
fn users_are_counted(guest: &mut Watched) {
    let (before, _) = (guest.value("MAXPROCS_PERUID"), guest.watch(Duration::from_secs(2)));
    assert!(before < SLEEPERS && guest.value("MAXPROCRATE_PERUID") < SLEEPERS / 2, "{before} before");
    let earlier = watched_users(&guest.kernel, &mut guest.ram, KEY, None).unwrap().1;
    guest.run("echo u1000:x:1000:1000::/:/bin/sh >>/etc/passwd");
    let bomb = format!("for i in $(seq {SLEEPERS}); do sleep 88888 & done; wait");
    guest.run(&format!("su u1000 -c '{bomb}' >/dev/null 2>&1 &"));
    let begin = Instant::now();
    while guest.run("ps -o args | grep -c '^sleep 88888' || true").trim() != SLEEPERS.to_string() {
        assert!(begin.elapsed() < BOUND, "the sleepers do not come");
    }
    let users = watched_users(&guest.kernel, &mut guest.ram, KEY, Some(&earlier)).unwrap().0;
    assert!(guest.reader.take_users(&Arc::new(guest.survey.clone().with_users(users))));
    let (most, growth) = (guest.value("MAXPROCS_PERUID"), guest.value("MAXPROCRATE_PERUID"));
    // The user's shell is one more.
    assert!((SLEEPERS..SLEEPERS + 5).contains(&most) && growth == most, "{most}, grown by {growth}");
    guest.run("killall sleep");
}

/// Idle it sleeps longer than ticks are apart, busy it does not switch: neither is a hang.
fn a_healthy_guest_raises_nothing(guest: &mut Watched) {
    assert_eq!(guest.watch(CALM), None, "an idle guest");
    let slept = guest.longest_stand("TICKS.cpu");
    println!("Linux {}: idle, a processor took no timer interrupt for {slept:?}", guest.survey.release);
    assert!(slept > Duration::from_millis(100), "its ticks never stopped: {slept:?}, and nothing was tried");
    let cpus = guest.names.iter().filter(|name| name.starts_with("TICKS.cpu")).count();
    let seconds = CALM.as_secs() + 1;
    guest.run(&format!(
        "for i in $(seq {cpus}); do timeout {seconds} sh -c 'while :; do :; done' >/dev/null 2>&1 & done"
    ));
    assert_eq!(guest.watch(CALM), None, "a guest whose processors all compute");
}

fn a_fault_is_seen(guest: &mut Watched, fault: Fault, rule: &str) {
    fault.inject(&mut guest.vm).unwrap();
    let begin = Instant::now();
    let raised = guest.watch(BOUND);
    println!("Linux {}: {} seen after {:?}", guest.survey.release, fault.name(), begin.elapsed());
    assert_eq!(raised.as_deref(), Some(rule), "{}", fault.name());
}

fn it_is_well_again(guest: &mut Watched) {
    let begin = Instant::now();
    while guest.watch(Duration::from_millis(500)).is_some() {
        assert!(begin.elapsed() < BOUND, "it goes on, and is taken for hung still");
    }
}

/// What is left of the kernel that was reset is not taken for the one that lives, however whole it is.
fn its_next_life_is_told_from_this_one(guest: &mut Watched) {
    guest.vm.qmp().execute("system_reset", serde_json::json!({})).unwrap();
    guest.vm.wait_ready(BOUND).unwrap();
    let now_ns = guest.now_ns();
    let old = guest.reader.look(&mut guest.ram, now_ns);
    println!("Linux {}: the old kernel can still be read: {}", guest.survey.release, old.is_ok());
    let extents = guest.ram.extents();
    let sensors = [ready_made("TICKS").unwrap()];
    let (_, next) = survey_the_living(&mut guest.ram, KEY, &extents, &sensors, &|| false).unwrap();
    assert_ne!(next.identity, guest.survey.identity);
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
fn on_each_line(check: impl Fn(&str)) {
    // Machines are emulated: two at once starve each other.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = guest::Kernel::lines().unwrap();
    assert!(lines.iter().any(|line| line == "6.1"), "{lines:?}: run scripts/setup");
    lines.iter().for_each(|line| check(line));
}

#[test]
fn kernel_sensors_show_what_proc_says_and_a_stop_and_a_panic_are_told_from_idleness() {
    on_each_line(|line| {
        let mut guest = Watched::boot(line, 2);
        values_are_those_of_proc(&mut guest);
        users_are_counted(&mut guest);
        a_healthy_guest_raises_nothing(&mut guest);
        a_fault_is_seen(&mut guest, Fault::Stop, "TICKS.cpu*");
        guest.vm.qmp().cont().unwrap();
        it_is_well_again(&mut guest);
        a_fault_is_seen(&mut guest, Fault::Panic, "TICKS.cpu*");
        its_next_life_is_told_from_this_one(&mut guest);
    });
}

#[test]
fn a_lone_processor_in_panic_or_stuck_in_the_kernel_is_seen() {
    on_each_line(|line| {
        a_fault_is_seen(&mut Watched::boot(line, 1), Fault::Panic, "TICKS.cpu*");
        a_fault_is_seen(&mut Watched::boot(line, 1), Fault::Softlock, "SWITCHES.cpu*");
    });
}
