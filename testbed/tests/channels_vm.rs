//! What waits in pipes and Unix sockets of a guest's processes, read out of its RAM, against what these processes say
//! that they wrote and read. Slow.
//!
//! The programs must have been built (`make test` does).

mod ram;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use introspect::Kernel;
use introspect::linux::channel::{self, Descriptor, Kind, Waiting};
use introspect::linux::task;
use ram::Ram;
use relay::hold::byte_at;
use remote_memory::RemoteKey;
use remote_memory::trace::Trace;
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Names a folder for recordings of the machines, as `introspect/tests/images` has them.
const RECORD_VARIABLE: &str = "BACKDOORS_RECORD_CHANNELS";

/// Processes with streams of their own.
const SEEDS: std::ops::Range<u64> = 1..9;

/// What a process says of one stream.
#[derive(Debug)]
struct Said {
    name: String,
    input: Descriptor,
    output: Descriptor,
    inode: u64,
    written: u64,
    read: u64,
}

struct Guest {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
}

impl Guest {
    fn boot(line: &str) -> Self {
        let relay = Path::new(env!("CARGO_BIN_EXE_testbed")).with_file_name("relay");
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("relay", &relay);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("channels", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.memory_mib = 512;
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let mut ram = Ram::of(&vm);
        let kernel = ram.kernel();
        Self { vm, ram, kernel }
    }

    /// Starts the processes and hears what they hold.
    fn said(&mut self) -> (String, Vec<Said>) {
        let mut all = (String::new(), Vec::new());
        for seed in SEEDS {
            let file = format!("/tmp/held-{seed}");
            self.vm.run_within(&format!("relay --hold {seed} >{file} 2>&1 &"), BOUND).unwrap();
            let deadline = Instant::now() + BOUND;
            let text = loop {
                let text = self.vm.run_within(&format!("cat {file}"), BOUND).unwrap().text();
                if text.contains("pid ") {
                    break text;
                }
                assert!(Instant::now() < deadline, "relay says {text:?}");
            };
            all.1.extend(parse(&text));
            all.0.push_str(&(text.trim().to_owned() + "\n"));
        }
        all
    }
}

/// Lines of `relay --hold`: streams, then whose they are.
fn parse(text: &str) -> Vec<Said> {
    let pid = text.lines().find_map(|line| line.strip_prefix("pid ")).unwrap().trim().parse().unwrap();
    let stream = |line: &str| {
        let (name, numbers) = line.split_once(' ')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [input, output, inode, written, read] = numbers[..] else { return None };
        let of = |fd: u64| Descriptor { pid, fd: fd as u32 };
        Some(Said { name: name.to_owned(), input: of(input), output: of(output), inode, written, read })
    };
    text.lines().filter_map(stream).collect()
}

fn is_as_said(said: &Said, found: &Waiting) {
    let kind = if said.name == "socket" { Kind::UnixStream } else { Kind::Pipe };
    assert_eq!((found.kind, found.inode, found.complete), (kind, said.inode, true), "{said:?}");
    let bytes = found.chunks.concat();
    assert_eq!(bytes.len() as u64, said.written - said.read, "{said:?}");
    let is_right = (said.read..).zip(&bytes).all(|(at, byte)| *byte == byte_at(at));
    assert!(is_right, "{said:?}: other bytes than were written");
}

fn check(line: &str) {
    let mut guest = Guest::boot(line);
    let (text, said) = guest.said();
    assert_eq!(said.len(), 4 * SEEDS.count());
    assert!(said.iter().filter(|one| one.written > one.read).count() > 16, "{said:?}");
    guest.vm.qmp().stop().unwrap();
    let mut wanted: Vec<Descriptor> = said.iter().map(|one| one.input).collect();
    // A pipe is found by its other end, too; what is neither or not there is nothing.
    wanted.extend(said.iter().map(|one| one.output));
    let nobody = [(said[0].input.pid, 0), (said[0].input.pid, 4000), (4_000_000, 1)];
    wanted.extend(nobody.map(|(pid, fd)| Descriptor { pid, fd }));
    let (found, rounds, image) = {
        let mut trace = Trace::new(&mut guest.ram);
        let (tasks, _) = task::walk(&guest.kernel, &mut trace, KEY).unwrap();
        let before = trace.rounds();
        let (found, damage) = channel::walk(&guest.kernel, &mut trace, KEY, &tasks, &wanted).unwrap();
        assert!(damage.is_empty(), "{damage:?}");
        (found, trace.rounds() - before, trace.into_image().unwrap())
    };
    println!("Linux {line}: {} streams in {rounds} rounds", said.len());
    for (said, found) in said.iter().zip(&found) {
        is_as_said(said, found.as_ref().unwrap_or_else(|| panic!("{said:?} was not found")));
    }
    for (said, found) in said.iter().zip(&found[said.len()..]) {
        let found = found.as_ref().unwrap();
        match said.name.as_str() {
            "socket" => assert!(found.chunks.is_empty() && found.inode != said.inode, "{said:?}"),
            _ => is_as_said(said, found),
        }
    }
    assert!(found[2 * said.len()..].iter().all(Option::is_none));
    if let Some(folder) = std::env::var_os(RECORD_VARIABLE) {
        let path = |suffix: &str| Path::new(&folder).join(format!("linux-{line}-channels.{suffix}"));
        std::fs::write(path("truth.txt"), text).unwrap();
        image.save(File::create(path("image")).unwrap()).unwrap();
        serde_json::to_writer_pretty(File::create(path("kernel.json")).unwrap(), &guest.kernel).unwrap();
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn what_waits_between_processes_is_what_was_written_and_not_read() {
    for line in guest::Kernel::lines().unwrap() {
        check(&line);
    }
}
