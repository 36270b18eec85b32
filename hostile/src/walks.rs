//! Walks over the memory of a recorded machine that was damaged: tasks and connections of those that were stopped, log
//! and summary of those that panicked, what processes have of those with many kinds of them.
//!
//! An input: machine (u8), then damage: kind (u8) and operands. Kinds: 0 and 1, a pointer becomes another pointer of
//! the machine (two u16 of [`Pointers`]); 2, a pointer becomes a number (u16, u64); 3, one byte (u16 of pointers, u8
//! distance, u8); 4, a page is lost (u16); 5, one byte anywhere (u16 of pages, u16, u8); 6, a number anywhere (u16 of
//! pages, u16, u64).

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::LazyLock;

use introspect::Kernel;
use introspect::linux::kill::{self, Fate, Member, What};
use introspect::linux::task::{self, Task};
use introspect::linux::tcp::{self, TcpFilter};
use introspect::linux::{log, machine, ucounts};
use remote_memory::image::Image;
use remote_memory::{AccessError, LinkError, PAGE_BYTES, Read, RemoteKey, RemoteRead};

use crate::program::Program;

const KEY: RemoteKey = RemoteKey::new(1);
const STOPPED: [&str; 2] = ["linux-6.1-5level", "linux-6.12-4level"];
const PANICKED: [&str; 2] = ["linux-6.1-panic", "linux-6.12-panic"];
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
/// Damage of one input.
const STEPS_MAX: usize = 200;

struct Machine {
    kernel: Kernel,
    image: Image,
    pages: Vec<u64>,
    /// Where kernel pointers stand, and what they are.
    places: Vec<u64>,
    values: Vec<u64>,
}

static RECORDED: LazyLock<[Machine; 2]> = LazyLock::new(|| STOPPED.map(load));
static LAST_WORDS: LazyLock<[Machine; 2]> = LazyLock::new(|| PANICKED.map(load));
static MANY_PROCESSES: LazyLock<[Machine; 2]> = LazyLock::new(|| PROCESSES.map(load));

fn load(name: &str) -> Machine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../introspect/tests/images");
    let open = |suffix: &str| File::open(folder.join(format!("{name}.{suffix}"))).expect("a recorded machine");
    let kernel = serde_json::from_reader(open("kernel.json")).expect("a recorded kernel");
    let mut bytes = Vec::new();
    xz2::read::XzDecoder::new(open("image.xz")).read_to_end(&mut bytes).expect("a whole image");
    let image = Image::load(&bytes[..]).expect("a whole image");
    let pages: Vec<u64> = image.page_numbers().collect();
    let (mut places, mut values) = (Vec::new(), Vec::new());
    for place in pages.iter().flat_map(|page| (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(8)) {
        let mut raw = [0; 8];
        image.copy_out(place, &mut raw).expect("a page that is there");
        let value = u64::from_le_bytes(raw);
        if value > 0xff00_0000_0000_0000 && value != u64::MAX {
            places.push(place);
            values.push(value);
        }
    }
    Machine { kernel, image, pages, places, values }
}

/// An image with damage over it.
struct Damaged<'a> {
    image: &'a Image,
    pages: BTreeMap<u64, Option<[u8; PAGE_BYTES as usize]>>,
    rounds: usize,
}

impl Damaged<'_> {
    fn write(&mut self, addr: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(addr..) {
            let number = at / PAGE_BYTES;
            let page = self.pages.entry(number).or_insert_with(|| {
                let mut page = [0; PAGE_BYTES as usize];
                self.image.copy_out(number * PAGE_BYTES, &mut page).map(|()| page)
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
            let part = &mut into[(at - addr) as usize..][..here];
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => part.copy_from_slice(&page.as_ref()?[(at % PAGE_BYTES) as usize..][..here]),
                None => self.image.copy_out(at, part)?,
            }
            at += here as u64;
        }
        Some(())
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
    let mut memory = Damaged { image: &machine.image, pages: BTreeMap::new(), rounds: 0 };
    for _ in 0..STEPS_MAX {
        if program.is_over() {
            break;
        }
        // Odd multipliers spread small operands over all pointers.
        let kind = program.byte() % 7;
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

/// What the processes and users of a damaged machine have is read within its bounds.
pub(crate) fn processes(input: &[u8]) -> bool {
    let (kernel, mut memory) = damaged(&*MANY_PROCESSES, input);
    let (details, _) = task::details(kernel, &mut memory, KEY).expect("an image does not lose its path");
    memory.rounds = 0;
    let (users, _) = ucounts::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    assert!(details.len() < OBJECTS_MAX && users.len() < OBJECTS_MAX, "more objects than pages hold");
    for one in &details {
        assert!(one.namespace.is_none_or(|namespace| namespace.level <= 32), "deeper than namespaces go");
        assert!(one.depth.is_none_or(|depth| depth as usize <= details.len()), "more generations than tasks");
        assert!(one.rss.is_none_or(|rss| rss.pages() < MEMORY_PAGES_MAX), "more resident than there is memory");
    }
    !details.is_empty() && !users.is_empty()
}

/// Whatever is wrong in memory, what a repair would write is to be written into tasks that name the pid that names
/// them, into memory that belongs to nobody, or into a timer wheel; and each place holds what the plan says it does.
pub(crate) fn kills(input: &[u8]) -> bool {
    let (kernel, mut memory) = damaged(&*MANY_PROCESSES, input);
    let (tasks, _) = task::walk(kernel, &mut memory, KEY).expect("an image does not lose its path");
    let victims: Vec<u32> = tasks.iter().map(|task| task.tgid).collect();
    memory.rounds = 0;
    let planned = kill::plan(kernel, &mut memory, KEY, &tasks, &victims);
    let (plan, _) = planned.expect("an image does not lose its path");
    let is_refused = |fate: &Fate| matches!(fate, Fate::Refused { .. });
    let killed = |task: &&Task| plan.fate_of(task.tgid).is_some_and(|fate| !is_refused(fate));
    let marks = |task: &Task| [kernel.pending_signals_of(task.address), kernel.thread_flags_of(task.address)];
    let own: HashSet<u64> = tasks.iter().filter(killed).flat_map(marks).flatten().map(|at| at.raw()).collect();
    for edit in &plan.edits {
        let mut there = vec![0; edit.was.len()];
        memory.copy_out(edit.at, &mut there).expect("a place that was read");
        assert!(there == *edit.was && edit.now.len() == edit.was.len(), "{}: not what is there", edit.what);
        let is_mark = matches!(edit.what, What::OfTask(Member::PendingSignals | Member::ThreadFlags, _));
        assert!(!is_mark || own.contains(&edit.at), "{}: in no task", edit.what);
    }
    let spared = |task: &Task| task.tgid <= 1 || task.is_kernel_thread();
    assert!(tasks.iter().filter(|task| spared(task)).all(|task| !killed(&task)), "init or the kernel would die");
    // In memory that has not changed each is the task it was, and nobody is woken who has no mark.
    memory.rounds = 0;
    let (again, _) = kill::wake_marked(kernel, &mut memory, KEY, &tasks).expect("an image does not lose its path");
    let living = tasks.iter().filter(|task| !task.is_exiting()).count();
    assert_eq!(again.fates.len(), living, "not all are found again");
    assert!(again.edits.is_empty() || again.fates.iter().any(|(_, fate)| !is_refused(fate)), "a wake-up of nobody");
    !plan.edits.is_empty()
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
