//! Walks over the memory of a recorded machine that was damaged: tasks and connections of those that were stopped, log
//! and summary of those that panicked, what processes have of those with many kinds of them, what waits between those
//! of machines with pipes and sockets.
//!
//! An input: machine (u8), then damage: kind (u8) and operands. Kinds: 0 and 1, a pointer becomes another pointer of
//! the machine (two u16 of [`Pointers`]); 2, a pointer becomes a number (u16, u64); 3, one byte (u16 of pointers, u8
//! distance, u8); 4, a page is lost (u16); 5, one byte anywhere (u16 of pages, u16, u8); 6, a number anywhere (u16 of
//! pages, u16, u64); 7, a share of everything ([`Scatter`]: u8, u8, u64).

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::LazyLock;

use introspect::Kernel;
use introspect::linux::channel::{self, Descriptor};
use introspect::linux::contain::{self, Means, Measure, Request};
use introspect::linux::kill::{self, Edit, Fate, Member, What};
use introspect::linux::task::{self, Task};
use introspect::linux::tcp::{self, TcpFilter};
use introspect::linux::{log, machine, ucounts};
use remote_memory::image::Image;
use remote_memory::{AccessError, GuestPhys, KernelVirt, LinkError, PAGE_BYTES, Read, RemoteKey, RemoteRead};

use crate::program::Program;
use crate::scatter::{Scatter, is_pointer};

const KEY: RemoteKey = RemoteKey::new(1);
const STOPPED: [&str; 2] = ["linux-6.1-5level", "linux-6.12-4level"];
const PANICKED: [&str; 2] = ["linux-6.1-panic", "linux-6.12-panic"];
const CHANNELS: [&str; 2] = ["linux-6.1-channels", "linux-6.12-channels"];
const PROCESSES: [&str; 2] = ["linux-6.1-processes", "linux-6.12-processes"];
/// No walk of an image of five hundred pages may take more round trips; the machines' own take about twenty.
const ROUNDS_MAX: usize = 2_000;
/// More objects than the pages hold.
const OBJECTS_MAX: usize = 1_000;
/// As many as the monitor asks for, and more than the machines wrote.
const LOG_RECORDS: usize = 4_000;
/// A text of 8 KiB, each byte of which may be written out as four.
const LOG_TEXT_MAX: usize = 32 * 1024;
/// Each of three kinds of pages is at most the machine's 512 MiB.
const MEMORY_PAGES_MAX: u64 = 3 * (512 << 20) / PAGE_BYTES + 1;
/// Processors of the machines with many processes.
const CPUS: u64 = 2;
/// No more than these structs have, in bytes.
const TASK_BYTES: u64 = 16 << 10;
const SIGNAL_BYTES: u64 = 2 << 10;
/// The clock of a wheel and its first level.
const WHEEL_BYTES: u64 = 1 << 10;
/// Memory below a megabyte that is nobody's.
const LOW_AREA: std::ops::Range<u64> = 0x1_0000..0x9_0000;
/// Descriptors looked at of each process, and of all.
const FDS: u32 = 12;
const DESCRIPTORS_MAX: usize = 1_000;
/// What one can hold: a thousand slots of 64 KiB each, or as many buffers as pages hold.
const CHANNEL_BYTES_MAX: usize = 64 << 20;
/// Damage of one input.
const STEPS_MAX: usize = 200;

struct Machine {
    kernel: Kernel,
    image: Image,
    pages: Vec<u64>,
    /// Where kernel pointers stand, and what they are.
    places: Vec<u64>,
    values: Vec<u64>,
    /// The timer wheel of each processor, and the `signal_struct` of each process, undamaged.
    wheels: Vec<KernelVirt>,
    signals: BTreeMap<u32, KernelVirt>,
}

static RECORDED: LazyLock<[Machine; 2]> = LazyLock::new(|| STOPPED.map(load));
static LAST_WORDS: LazyLock<[Machine; 2]> = LazyLock::new(|| PANICKED.map(load));
static FULL_CHANNELS: LazyLock<[Machine; 2]> = LazyLock::new(|| CHANNELS.map(load));
static MANY_PROCESSES: LazyLock<[Machine; 2]> = LazyLock::new(|| PROCESSES.map(load));

fn load(name: &str) -> Machine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../introspect/tests/images");
    let open = |suffix: &str| File::open(folder.join(format!("{name}.{suffix}"))).expect("a recorded machine");
    let kernel = serde_json::from_reader(open("kernel.json")).expect("a recorded kernel");
    let mut bytes = Vec::new();
    xz2::read::XzDecoder::new(open("image.xz")).read_to_end(&mut bytes).expect("a whole image");
    let mut image = Image::load(&bytes[..]).expect("a whole image");
    let wheels = wheels(&kernel, &image);
    let details = task::details(&kernel, &mut image, KEY).expect("an image does not lose its path").0;
    let signals = details.iter().filter_map(|one| Some((one.task.tgid, one.signal?))).collect();
    let pages: Vec<u64> = image.page_numbers().collect();
    let (mut places, mut values) = (Vec::new(), Vec::new());
    for place in pages.iter().flat_map(|page| (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(8)) {
        let mut raw = [0; 8];
        image.copy_out(place, &mut raw).expect("a page that is there");
        let value = u64::from_le_bytes(raw);
        if is_pointer(value) {
            places.push(place);
            values.push(value);
        }
    }
    Machine { kernel, image, pages, places, values, wheels, signals }
}

/// Where each processor's timers are; none of a machine that was recorded without them.
fn wheels(kernel: &Kernel, image: &Image) -> Vec<KernelVirt> {
    let (Some(wheel), Some(offsets)) = (kernel.symbol("timer_bases"), kernel.symbol("__per_cpu_offset")) else {
        return Vec::new();
    };
    let base_of = |cpu: u64| {
        let (mut bytes, at) = ([0; 8], kernel.phys(KernelVirt::new(offsets.raw() + cpu * 8), 8)?);
        image.copy_out(at.raw(), &mut bytes)?;
        Some(KernelVirt::new(wheel.raw().wrapping_add(u64::from_le_bytes(bytes))))
    };
    (0..CPUS).filter_map(base_of).collect()
}

/// An image with damage over it.
struct Damaged<'a> {
    machine: &'a Machine,
    pages: BTreeMap<u64, Option<[u8; PAGE_BYTES as usize]>>,
    /// Over what the pages hold, and decided when they are read.
    scattered: Vec<Scatter>,
    rounds: usize,
}

impl Damaged<'_> {
    fn write(&mut self, addr: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(addr..) {
            let number = at / PAGE_BYTES;
            let page = self.pages.entry(number).or_insert_with(|| {
                let mut page = [0; PAGE_BYTES as usize];
                self.machine.image.copy_out(number * PAGE_BYTES, &mut page).map(|()| page)
            });
            if let Some(page) = page {
                page[(at % PAGE_BYTES) as usize] = *byte;
            }
        }
    }

    fn copy_out(&self, addr: u64, into: &mut [u8]) -> Option<()> {
        let end = addr.checked_add(into.len() as u64)?;
        let mut at = addr;
        while at < end {
            let here = (PAGE_BYTES - at % PAGE_BYTES).min(end - at) as usize;
            self.of_one_page(at, &mut into[(at - addr) as usize..][..here])?;
            at += here as u64;
        }
        Some(())
    }

    fn of_one_page(&self, at: u64, into: &mut [u8]) -> Option<()> {
        // Whole words: whether one is hit does not depend on which part of it is read.
        let (before, len) = ((at % 8) as usize, into.len());
        let mut words = [0; PAGE_BYTES as usize];
        let words = &mut words[..(before + len).next_multiple_of(8)];
        let start = at - before as u64;
        match self.pages.get(&(at / PAGE_BYTES)) {
            Some(page) => words.copy_from_slice(&page.as_ref()?[(start % PAGE_BYTES) as usize..][..words.len()]),
            None => self.machine.image.copy_out(start, words)?,
        }
        for scatter in &self.scattered {
            scatter.hit(start, words, &self.machine.values)?;
        }
        into.copy_from_slice(&words[before..before + len]);
        Some(())
    }
}

impl Damaged<'_> {
    /// Each place holds what the plan says it does.
    fn is_as_planned(&self, edit: &Edit) {
        let mut there = vec![0; edit.was.len()];
        self.copy_out(edit.at, &mut there).expect("a place that was read");
        assert!(there == *edit.was && edit.now.len() == edit.was.len(), "{}: not what is there", edit.what);
    }
}

impl RemoteRead for Damaged<'_> {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        self.rounds += 1;
        assert!(self.rounds < ROUNDS_MAX, "a walk does not end");
        for read in batch {
            read.outcome = self.copy_out(read.at.addr, read.into).ok_or(AccessError::Refused);
        }
        Ok(())
    }
}

/// The machine that an input chooses among `machines`, with the input's damage.
fn damaged<'a>(machines: &'a [Machine], input: &[u8]) -> (&'a Kernel, Damaged<'a>) {
    let mut program = Program::new(input);
    let machine = &machines[usize::from(program.byte()) % machines.len()];
    let mut memory = Damaged { machine, pages: BTreeMap::new(), scattered: Vec::new(), rounds: 0 };
    for _ in 0..STEPS_MAX {
        if program.is_over() {
            break;
        }
        // Odd multipliers spread small operands over all pointers.
        let kind = program.byte() % 8;
        if kind == 7 {
            memory.scattered.push(Scatter::read(&mut program));
            continue;
        }
        let first = usize::from(program.short()) * 40_503;
        let (place, page) = (machine.places[first % machine.places.len()], machine.pages[first % machine.pages.len()]);
        match kind {
            0 | 1 => {
                let value = machine.values[usize::from(program.short()) * 40_503 % machine.values.len()];
                memory.write(place, &value.to_le_bytes());
            }
            2 => memory.write(place, &program.long().to_le_bytes()),
            3 => memory.write(place ^ u64::from(program.byte() & 63), &[program.byte()]),
            4 => drop(memory.pages.insert(page, None)),
            _ => {
                let at = page * PAGE_BYTES + u64::from(program.short()) % PAGE_BYTES;
                match kind {
                    5 => memory.write(at, &[program.byte()]),
                    _ => memory.write(at & !7, &program.long().to_le_bytes()),
                }
            }
        }
    }
    (&machine.kernel, memory)
}

/// The log and the summary of a damaged machine are read within their bounds.
pub(crate) fn last_words(input: &[u8]) -> bool {
    let (kernel, mut memory) = damaged(&*LAST_WORDS, input);
    let (records, _) = log::tail(kernel, &mut memory, KEY, LOG_RECORDS).expect("an image does not lose its path");
    assert!(records.len() <= LOG_RECORDS, "more records than were wanted");
    let is_bounded = |record: &log::Record| record.text.len() <= LOG_TEXT_MAX && record.level < 8;
    assert!(records.iter().all(is_bounded), "a record beyond its bounds");
    memory.rounds = 0;
    let (summary, _) = machine::summary(kernel, &mut memory, KEY).expect("an image does not lose its path");
    assert!(summary.current.len() < OBJECTS_MAX, "more processors than pages hold");
    !records.is_empty()
}

/// How far walks over a damaged machine came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Tasks found.
    pub tasks: usize,
    /// Of them, those whose memory was counted, or who were marked.
    pub reached: usize,
    /// Users found, or edits planned.
    pub found: usize,
    /// Faults reported.
    pub faults: usize,
}

/// What the processes and users of a damaged machine have is read within its bounds.
pub(crate) fn processes(input: &[u8]) -> bool {
    let depth = processes_depth(input);
    depth.tasks > 0 && depth.found > 0
}

pub(crate) fn processes_depth(input: &[u8]) -> Depth {
    let (kernel, mut memory) = damaged(&*MANY_PROCESSES, input);
    let (details, damage) = task::details(kernel, &mut memory, KEY).expect("an image does not lose its path");
    memory.rounds = 0;
    let (users, more) = ucounts::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    assert!(details.len() < OBJECTS_MAX && users.len() < OBJECTS_MAX, "more objects than pages hold");
    for one in &details {
        assert!(one.namespace.is_none_or(|namespace| namespace.level <= 32), "deeper than namespaces go");
        assert!(one.depth.is_none_or(|depth| depth as usize <= details.len()), "more generations than tasks");
        assert!(one.rss.is_none_or(|rss| rss.pages() < MEMORY_PAGES_MAX), "more resident than there is memory");
    }
    let reached = details.iter().filter(|one| one.rss.is_some()).count();
    Depth { tasks: details.len(), reached, found: users.len(), faults: damage.len() + more.len() }
}

/// Whatever is wrong in memory, what a repair would write is to be written into tasks that name the pid that names
/// them, into memory that belongs to nobody, or into a timer wheel; and each place holds what the plan says it does.
pub(crate) fn kills(input: &[u8]) -> bool {
    kills_depth(input).found > 0
}

pub(crate) fn kills_depth(input: &[u8]) -> Depth {
    let (kernel, mut memory) = damaged(&*MANY_PROCESSES, input);
    let (tasks, damage) = task::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    let victims: Vec<u32> = tasks.iter().map(|task| task.tgid).collect();
    memory.rounds = 0;
    let planned = kill::plan(kernel, &mut memory, KEY, &tasks, &victims);
    let (plan, more) = planned.expect("an image does not lose its path");
    let is_refused = |fate: &Fate| matches!(fate, Fate::Refused { .. });
    let killed = |task: &&Task| plan.fate_of(task.tgid).is_some_and(|fate| !is_refused(fate));
    let marks = |task: &Task| [kernel.pending_signals_of(task.address), kernel.thread_flags_of(task.address)];
    let own: HashSet<u64> = tasks.iter().filter(killed).flat_map(marks).flatten().map(|at| at.raw()).collect();
    let wheels = &memory.machine.wheels;
    for edit in &plan.edits {
        memory.is_as_planned(edit);
        let is_mark = matches!(edit.what, What::OfTask(Member::PendingSignals | Member::ThreadFlags, _));
        assert!(!is_mark || own.contains(&edit.at), "{}: in no task", edit.what);
        let in_a_task = || tasks.iter().filter(killed).any(|task| lies_in(kernel, task.address, TASK_BYTES, edit.at));
        let in_a_wheel = || wheels.iter().any(|wheel| lies_in(kernel, *wheel, WHEEL_BYTES, edit.at));
        // A timer that waited already points back to its wheel.
        let was = KernelVirt::new(u64::from_le_bytes(edit.was[..8.min(edit.was.len())].try_into().unwrap_or([0; 8])));
        let of_a_wheel = || wheels.iter().any(|at| at.raw() <= was.raw() && was.raw() < at.raw() + WHEEL_BYTES);
        let is_nobody_s = LOW_AREA.contains(&edit.at);
        assert!(is_nobody_s || in_a_task() || in_a_wheel() || of_a_wheel(), "{}: somewhere else", edit.what);
    }
    let spared = |task: &Task| task.tgid <= 1 || task.is_kernel_thread();
    assert!(tasks.iter().filter(|task| spared(task)).all(|task| !killed(&task)), "init or the kernel would die");
    // In memory that has not changed each is the task it was, and nobody is woken who has no mark.
    memory.rounds = 0;
    let (again, _) = kill::wake_marked(kernel, &mut memory, KEY, &tasks).expect("an image does not lose its path");
    let living = tasks.iter().filter(|task| !task.is_exiting()).count();
    assert_eq!(again.fates.len(), living, "not all are found again");
    assert!(again.edits.is_empty() || again.fates.iter().any(|(_, fate)| !is_refused(fate)), "a wake-up of nobody");
    memory.rounds = 0;
    let contained = contained(kernel, &mut memory, &tasks, victims.into_iter().collect());
    let reached = plan.fates.iter().filter(|(_, fate)| !is_refused(fate)).count();
    Depth { tasks: tasks.len(), reached, found: plan.edits.len() + contained, faults: damage.len() + more.len() }
}

/// What would be written to contain everybody lies in what the processes of ordinary users have of their own, or in
/// cgroups of them.
fn contained(kernel: &Kernel, memory: &mut Damaged<'_>, tasks: &[Task], processes: HashSet<u32>) -> usize {
    let means = [Means::Nproc, Means::Pids, Means::Oom].into();
    let request = Request { processes, means, ..Request::default() };
    let planned = contain::plan(kernel, memory, KEY, tasks, &request);
    let (contained, _) = planned.expect("an image does not lose its path");
    let ordinary = |pid: u32| {
        let mut leader = tasks.iter().filter(|task| task.tgid == pid && task.pid == pid);
        leader.any(|task| pid > 1 && !task.is_kernel_thread() && task.uid.is_some_and(|uid| uid != 0))
    };
    for one in &contained {
        memory.is_as_planned(&one.edit);
        assert!(one.measure.culprits().iter().all(|pid| ordinary(*pid)), "{one:?}: not of an ordinary process");
        match one.measure {
            Measure::Nproc { pid, .. } | Measure::Oom { pid, .. } => {
                let own = memory.machine.signals.get(&pid);
                let is_own = own.is_some_and(|own| lies_in(kernel, *own, SIGNAL_BYTES, one.edit.at));
                assert!(is_own, "{one:?}: not its own limits");
            }
            Measure::Pids { state, .. } => {
                let mut controller = [0; 8];
                let at = kernel.phys(KernelVirt::new(state + 8), 8).map(GuestPhys::raw);
                memory.copy_out(at.expect("a place"), &mut controller).expect("a place that was read");
                let expected = kernel.symbol("pids_cgrp_subsys").map(KernelVirt::raw);
                assert_eq!(Some(u64::from_le_bytes(controller)), expected, "{one:?}: of another controller");
            }
        }
    }
    contained.len()
}

/// What waits behind descriptors of a damaged machine is read within its bounds.
pub(crate) fn channels(input: &[u8]) -> bool {
    channels_depth(input).found > 0
}

pub(crate) fn channels_depth(input: &[u8]) -> Depth {
    let (kernel, mut memory) = damaged(&*FULL_CHANNELS, input);
    let (tasks, damage) = task::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    let leaders = tasks.iter().filter(|task| task.pid == task.tgid && !task.is_kernel_thread());
    let wanted: Vec<_> =
        leaders.flat_map(|task| (0..FDS).map(|fd| Descriptor { pid: task.pid, fd })).take(DESCRIPTORS_MAX).collect();
    memory.rounds = 0;
    let walked = channel::walk(kernel, &mut memory, KEY, &tasks, &wanted);
    let (found, more) = walked.expect("an image does not lose its path");
    assert_eq!(found.len(), wanted.len(), "not as many as were asked for");
    let found: Vec<_> = found.iter().flatten().collect();
    for one in &found {
        let bytes: usize = one.chunks.iter().map(Vec::len).sum();
        assert!(bytes <= CHANNEL_BYTES_MAX && one.chunks.iter().all(|chunk| !chunk.is_empty()), "{bytes} bytes wait");
    }
    let reached = found.iter().filter(|one| one.complete).count();
    Depth { tasks: tasks.len(), reached, found: found.len(), faults: damage.len() + more.len() }
}

/// Whether guest-physical `at` lies in the `len` bytes of the direct map or the kernel's image from `base` on.
fn lies_in(kernel: &Kernel, base: KernelVirt, len: u64, at: u64) -> bool {
    kernel.phys(base, 1).is_some_and(|base| (base.raw()..base.raw() + len).contains(&at))
}

/// Every walk of a damaged machine ends within its bounds, and a queue it calls complete holds what the socket claims.
pub(crate) fn walk(input: &[u8]) -> bool {
    let (kernel, mut memory) = damaged(&*RECORDED, input);
    let (tasks, _) = task::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    memory.rounds = 0;
    let walked = tcp::walk(kernel, &mut memory, KEY, &TcpFilter::default());
    let (sockets, _) = walked.expect("an image does not lose its path");
    assert!(tasks.len() < OBJECTS_MAX && sockets.len() < OBJECTS_MAX, "more objects than pages hold");
    for socket in sockets.iter().filter(|socket| socket.send_queue_complete) {
        let bytes: usize = socket.send_queue.iter().map(|segment| segment.bytes.len()).sum();
        let fins = socket.send_queue.iter().filter(|segment| segment.fin).count();
        let claimed = socket.write_seq.wrapping_sub(socket.snd_una) as usize;
        assert_eq!(bytes + fins, claimed, "{bytes} bytes and {fins} FINs in a complete queue");
    }
    !sockets.is_empty()
}
