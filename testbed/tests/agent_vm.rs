//! The agent in a real guest, seen from where a backdoor sits: the host's end of the virtio port and raw guest RAM.

mod port;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use contbox::reader::{PoolInfo, parse_pool};
use control::agent::Registration;
use port::BackdoorEnd;
use sensorbox::{Class, Reading, SensorBox};
use testbed::fault::{Fault, build_lockup_module};
use testbed::guest::{ImageSpec, Kernel, Service};
use testbed::vm::Vm;

const CPUS: u32 = 2;
const PAGE: u64 = 4096;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// A guest with the agent and the lock-up module.
fn boot(kernel: &str) -> Vm {
    let kernel = Kernel::cached(kernel).unwrap();
    let lockup = build_lockup_module(&kernel).unwrap();
    let image = ImageSpec::new(kernel).program("target-agent", &port::agent_program()).extra_module(&lockup);
    let image = image.service(Service {
        name: "agent".into(),
        command: "/bin/target-agent --pool-slots 64 --metrics 127.0.0.1:9793".into(),
        ready_path: Some("/run/backdoors/box.sock".into()),
    });
    port::boot("agent-test", &image, CPUS)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < deadline, "not in {BOUND:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The next registration of both boxes, made after this call. The agent then has said all that it has to say for some
/// seconds: killed in the middle of a message, it would leave a torso, which the port's end cannot tell from a message
/// that is still coming.
fn registrations(backdoor: &BackdoorEnd) -> [Registration; 2] {
    backdoor.forget();
    let sb = backdoor.registration("sb");
    let cb = backdoor.next();
    backdoor.registration(killtable::layout::ANSWERS);
    [sb, cb]
}

/// Guest RAM as the backdoor sees it: below 3 GiB addresses in the guest are offsets in the file.
struct Ram(File);

impl Ram {
    fn of(vm: &Vm) -> Self {
        Self(File::options().read(true).write(true).open(vm.ram_path()).unwrap())
    }

    fn region(&self, region: &Registration) -> Vec<u8> {
        let mut bytes = vec![0; region.len as usize];
        for (page, into) in region.pages.iter().zip(bytes.chunks_mut(PAGE as usize)) {
            self.0.read_exact_at(into, page * PAGE).unwrap();
        }
        bytes
    }

    fn sensors(&self, region: &Registration) -> SensorBox {
        let parsed = SensorBox::parse(&self.region(region)).unwrap();
        assert_eq!(parsed.damage, []);
        parsed
    }

    fn values(&self, region: &Registration, name: &str) -> Vec<u64> {
        self.sensors(region).named(name).map(|reading| reading.value).collect()
    }

    fn pool(&self, region: &Registration) -> PoolInfo {
        parse_pool(&self.region(region), region.len).unwrap()
    }
}

fn all_advance(ram: &Ram, sb: &Registration, name: &str) {
    let before = ram.values(sb, name);
    assert!(!before.is_empty(), "no sensor {name}");
    until(&format!("every {name} advances"), || {
        ram.values(sb, name).iter().zip(&before).all(|(now, before)| now > before)
    });
}

/// Waits until no sensor of that name has moved for half a second, a hundred ticks.
fn all_stand_still(ram: &Ram, sb: &Registration, name: &str) {
    until(&format!("every {name} stands still"), || {
        let before = ram.values(sb, name);
        thread::sleep(Duration::from_millis(500));
        ram.values(sb, name) == before
    });
}

fn one(sensors: &SensorBox, name: &str) -> Reading {
    let mut named = sensors.named(name);
    let reading = *named.next().unwrap_or_else(|| panic!("no sensor {name}"));
    assert!(named.next().is_none(), "two sensors {name}");
    reading
}

fn check(kernel: &str) {
    let mut vm = boot(kernel);
    let ram = Ram::of(&vm);
    let backdoor = BackdoorEnd::of(&vm);
    let [sb, cb] = registrations(&backdoor);
    assert_eq!((sb.name.as_str(), cb.name.as_str(), sb.writable, cb.writable), ("sb", "cb", false, false));

    sensors_show_the_idle_machine(&ram, &sb, &mut vm);
    let pool = ram.pool(&cb);
    assert_eq!(pool.geometry.slots, 64);
    let told = vm.run("wget -q -O - http://127.0.0.1:9793/metrics").unwrap().text();
    assert!(told.contains("\ntarget_agent_boxes 64\n") && told.contains("\ntarget_agent_boxes_free 64\n"), "{told}");

    let forks = one(&ram.sensors(&sb), "forks").value;
    let last_slot = pool.geometry.body(63).end - 8;
    let (page, inside) = (cb.pages[(last_slot / PAGE) as usize], last_slot % PAGE);
    ram.0.write_all_at(b"my state", page * PAGE + inside).unwrap();

    // A restarted agent: the connection stays, the agent says hello again and names the same pages.
    vm.run("kill -9 $(pidof target-agent)").unwrap();
    assert_eq!(registrations(&backdoor), [sb.clone(), cb.clone()]);
    assert_eq!(ram.pool(&cb), pool);
    assert_eq!(ram.region(&cb)[last_slot as usize..][..8], *b"my state");
    assert!(one(&ram.sensors(&sb), "forks").value > forks, "a counter began anew");
    all_advance(&ram, &sb, "tick");
    all_advance(&ram, &sb, "agent");

    programs_are_replaced_as_a_whole(&backdoor, &ram, &sb, &mut vm);

    // A restarted backdoor.
    drop(backdoor);
    let backdoor = BackdoorEnd::of(&vm);
    assert_eq!(registrations(&backdoor), [sb.clone(), cb.clone()]);

    sensors_move_while_no_user_process_does(&ram, &sb, &mut vm);

    vm.panic().unwrap();
    all_stand_still(&ram, &sb, "tick");
    let console = std::fs::read_to_string(vm.console_path()).unwrap();
    assert!(console.contains("sysrq triggered crash"), "it stood still without a panic");
}

fn sensors_show_the_idle_machine(ram: &Ram, sb: &Registration, vm: &mut Vm) {
    let sensors = ram.sensors(sb);
    for name in ["tick", "switches", "interrupts"] {
        let cpus: Vec<_> = sensors.named(name).map(|reading| reading.description.cpu).collect();
        assert_eq!(cpus, [Some(0), Some(1)], "{name}");
        all_advance(ram, sb, name);
    }
    let boot_id: String = sensors.header.boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = vm.run("cat /proc/sys/kernel/random/boot_id").unwrap().text();
    assert_eq!(boot_id, told.replace('-', ""));

    let tasks = one(&sensors, "tasks");
    assert_eq!(tasks.description.class, Class::Level);
    let told: u64 = vm.run("cut -d/ -f2 /proc/loadavg | cut -d' ' -f1").unwrap().text().parse().unwrap();
    assert!(tasks.value.abs_diff(told) < 30, "{} tasks, /proc/loadavg says {told}", tasks.value);
    assert!(tasks.value < tasks.description.limit);
    let free = one(&sensors, "free-pages");
    let told: u64 = vm.run("awk '/MemFree/ { print $2 / 4 }' /proc/meminfo").unwrap().text().parse().unwrap();
    assert!(free.value.abs_diff(told) < 8192, "{} free pages, /proc/meminfo says {told}", free.value);
    assert!(free.description.floor && free.value > free.description.limit);
    assert_eq!(one(&sensors, "oom-kills").value, 0);
}

/// Programs of another build go, half-attached ones are attached anew, and the sensors never notice.
fn programs_are_replaced_as_a_whole(backdoor: &BackdoorEnd, ram: &Ram, sb: &Registration, vm: &mut Vm) {
    let pinned = "cd /sys/fs/bpf/backdoors && ls -d programs-*/whole";
    let build = vm.run(pinned).unwrap().text();
    for damage in ["mv programs-* programs-0", "rmdir programs-*/whole"] {
        let ticks = ram.values(sb, "tick");
        vm.run(&format!("cd /sys/fs/bpf/backdoors && {damage} && kill -9 $(pidof target-agent)")).unwrap();
        assert_eq!(registrations(backdoor)[0], *sb);
        assert_eq!(vm.run(pinned).unwrap().text(), build, "after {damage}");
        assert!(ram.values(sb, "tick").iter().zip(&ticks).all(|(now, before)| now > before));
        all_advance(ram, sb, "tick");
    }
}

fn sensors_move_while_no_user_process_does(ram: &Ram, sb: &Registration, vm: &mut Vm) {
    vm.run("kill -STOP $(pidof target-agent)").unwrap();
    let agent = one(&ram.sensors(sb), "agent").value;
    all_advance(ram, sb, "tick");
    all_advance(ram, sb, "switches");
    assert_eq!(one(&ram.sensors(sb), "agent").value, agent, "the agent was stopped");
    vm.run("kill -CONT $(pidof target-agent)").unwrap();
}

/// Every kernel that scripts/setup has fetched; 6.1 is always among them.
#[test]
fn boxes_can_be_read_from_ram_and_outlive_the_agent_and_ticks_stop_with_the_kernel() {
    let _one = one_machine_at_a_time();
    let lines = Kernel::lines().unwrap();
    assert!(lines.iter().any(|line| line == "6.1"), "run scripts/setup");
    for line in lines {
        println!("kernel {line}");
        check(&line);
    }
}

/// The faults differ in what the sensors show: spinning with interrupts stops switches, without them ticks too.
#[test]
fn a_kernel_that_spins_with_interrupts_is_told_from_one_that_takes_none() {
    let _one = one_machine_at_a_time();
    spinning_with_interrupts_stops_switches_and_not_ticks();
    spinning_without_interrupts_stops_ticks();
}

fn spinning_with_interrupts_stops_switches_and_not_ticks() {
    let mut vm = boot("6.1");
    let (ram, backdoor) = (Ram::of(&vm), BackdoorEnd::of(&vm));
    let [sb, _] = registrations(&backdoor);
    Fault::Softlock.inject(&mut vm).unwrap();
    all_stand_still(&ram, &sb, "switches");
    let stuck = ram.values(&sb, "switches");
    all_advance(&ram, &sb, "tick");
    assert_eq!(ram.values(&sb, "switches"), stuck);
}

fn spinning_without_interrupts_stops_ticks() {
    let mut vm = boot("6.1");
    let (ram, backdoor) = (Ram::of(&vm), BackdoorEnd::of(&vm));
    let [sb, _] = registrations(&backdoor);
    Fault::Hardlock.inject(&mut vm).unwrap();
    all_stand_still(&ram, &sb, "tick");
    // Not only slow: given more time, it stays where it is.
    let stuck = ram.values(&sb, "tick");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(ram.values(&sb, "tick"), stuck);
}

/// An orderly shutdown is no hang: the sensors are retired before the processors stop. The end of the agent, killed
/// or asked to end, retires none.
#[test]
fn a_halt_retires_the_progress_sensors_and_the_end_of_the_agent_does_not() {
    let _one = one_machine_at_a_time();
    for line in Kernel::lines().unwrap() {
        let mut vm = boot(&line);
        let (ram, backdoor) = (Ram::of(&vm), BackdoorEnd::of(&vm));
        let [sb, _] = registrations(&backdoor);
        for signal in ["KILL", "TERM"] {
            vm.run(&format!("kill -{signal} $(pidof target-agent)")).unwrap();
            assert_eq!(registrations(&backdoor)[0], sb);
            all_advance(&ram, &sb, "tick");
        }
        vm.run("(sleep 0.2; halt -f) >/dev/null 2>&1 &").unwrap();
        until("the sensors to be retired", || {
            let sensors = ram.sensors(&sb);
            ["tick", "switches", "interrupts", "agent"].iter().all(|name| sensors.named(name).next().is_none())
        });
        assert_eq!(ram.sensors(&sb).named("tasks").count(), 1, "kernel {line}: levels stay");
    }
}

/// Machines are emulated: two at once starve each other.
fn one_machine_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
