//! What waits between processes of recorded machines, against what these processes said that they wrote and read; and
//! damaged at random as in `campaign.rs`. `testbed/tests/channels_vm.rs` records them.

mod support;

use introspect::linux::channel::{self, Descriptor, Kind, Waiting};
use introspect::{Damage, Fault, Kernel};
use rand::SeedableRng;
use rand::rngs::StdRng;
use remote_memory::trace::Trace;
use remote_memory::{PAGE_BYTES, RemoteRead};
use support::{CHANNELS, KEY, MACHINES, damaged, load, path, tasks};

/// Damaged copies of each machine, unless the variable says another number of all together.
const RUNS: u64 = 400;
const RUNS_VARIABLE: &str = "BACKDOORS_CORRUPTIONS";

/// A socket's ring that was bent can run through buffers that exist, each once.
const ROUNDS_MAX: usize = 400;

/// As `testbed/service/relay/src/hold.rs` writes it.
fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(7) ^ offset >> 8) as u8
}

/// What a process said of one stream.
#[derive(Debug)]
struct Said {
    name: String,
    input: Descriptor,
    inode: u64,
    written: u64,
    read: u64,
}

/// Lines `name input output inode written read`, with `pid PID` behind those of a process.
fn truth(machine: &str) -> Vec<Said> {
    let text = std::fs::read_to_string(path(machine, "truth.txt")).unwrap();
    let (mut all, mut of_one) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (name, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split_whitespace().map(|word| word.parse().unwrap()).collect();
        match numbers[..] {
            [pid] => all.extend(of_one.drain(..).map(|mut said: Said| {
                said.input.pid = pid as u32;
                said
            })),
            [input, _, inode, written, read] => {
                let input = Descriptor { pid: 0, fd: input as u32 };
                of_one.push(Said { name: name.to_owned(), input, inode, written, read });
            }
            _ => panic!("{line}"),
        }
    }
    all
}

fn waiting(kernel: &Kernel, mem: &mut dyn RemoteRead, said: &[Said]) -> (Vec<Option<Waiting>>, Vec<Damage>) {
    let (tasks, _) = tasks(kernel, mem);
    let wanted: Vec<_> = said.iter().map(|said| said.input).collect();
    channel::walk(kernel, mem, KEY, &tasks, &wanted).unwrap()
}

fn is_as_said(said: &Said, found: &Waiting) -> bool {
    let kind = if said.name == "socket" { Kind::UnixStream } else { Kind::Pipe };
    let bytes = found.chunks.concat();
    (found.kind, found.inode, bytes.len() as u64) == (kind, said.inode, said.written - said.read)
        && (said.read..).zip(&bytes).all(|(at, byte)| *byte == byte_at(at))
}

#[test]
fn what_waits_is_what_was_written_and_not_read() {
    for machine in CHANNELS {
        let (kernel, mut image) = load(machine);
        let said = truth(machine);
        let (found, damage) = waiting(&kernel, &mut image, &said);
        assert_eq!(damage, [], "{machine}");
        for (said, found) in said.iter().zip(&found) {
            let found = found.as_ref().unwrap_or_else(|| panic!("{said:?} was not found"));
            assert!(found.complete && is_as_said(said, found), "{said:?}");
        }
        for name in ["plain", "packets", "socket"] {
            let bytes: u64 = said.iter().filter(|said| said.name == name).map(|said| said.written - said.read).sum();
            assert!(bytes > 1000, "{machine}: {bytes} bytes in all of {name}");
        }
    }
}

#[test]
fn walks_of_damaged_machines_end_within_their_bounds() {
    let asked = std::env::var(RUNS_VARIABLE).map(|text| text.parse().expect("a number of corruptions"));
    let runs = asked.map_or(RUNS, |all: u64| all.div_ceil(CHANNELS.len() as u64));
    for (number, machine) in (0..).zip(CHANNELS) {
        let (kernel, image) = load(machine);
        let said = truth(machine);
        let (mut reports, mut whole) = (0, 0);
        for seed in 0..runs {
            let seed = seed << 8 | number;
            let mut trace = Trace::new(damaged(&image, &mut StdRng::seed_from_u64(seed)));
            let (found, damage) = waiting(&kernel, &mut trace, &said);
            assert!(trace.rounds() < ROUNDS_MAX, "seed {seed}: {} rounds", trace.rounds());
            let bytes: usize = found.iter().flatten().flat_map(|one| &one.chunks).map(Vec::len).sum();
            assert!(bytes < 64 << 20, "seed {seed}: {bytes} bytes of so few streams");
            whole += found.iter().flatten().filter(|one| one.complete).count();
            reports += damage.len();
        }
        assert!(reports > runs as usize && whole > 0, "{reports} reports, {whole} streams: the damage missed, or all");
    }
}

/// The pointers that lead to another process's pipe are seen where the kernel keeps a way back.
#[test]
fn a_file_that_was_turned_to_another_pipe_is_not_taken_for_it() {
    for machine in CHANNELS {
        let (kernel, image) = load(machine);
        let said = truth(machine);
        let of = |name: &str| said.iter().position(|said| said.name == name).unwrap();
        let (one, other) = (of("plain"), of("packets"));
        let mut seen = 0;
        // Every word that could be the one: pointers of the first's file that equal the second's.
        let (found, _) = waiting(&kernel, &mut image.clone(), &said);
        let [Some(first), Some(second)] = [&found[one], &found[other]] else { panic!("both are there") };
        assert_ne!(first.inode, second.inode);
        for page in image.page_numbers() {
            for at in (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(8) {
                let mut word = [0; 8];
                image.copy_out(at, &mut word).unwrap();
                if u64::from_le_bytes(word) != first.address.raw() {
                    continue;
                }
                let mut turned = image.clone();
                turned.write_at(at, &second.address.raw().to_le_bytes());
                let (found, damage) = waiting(&kernel, &mut turned, &said);
                let is_same = found[one].as_ref().is_some_and(|found| is_as_said(&said[one], found));
                let is_noticed =
                    found[one].is_none() && damage.iter().any(|damage| matches!(damage.fault, Fault::Mismatch { .. }));
                assert!(is_same || is_noticed, "{:?} {damage:?}", found[one]);
                seen += usize::from(is_noticed);
            }
        }
        assert!(seen > 0, "{machine}: no pointer to the pipe was found");
    }
}

#[test]
fn a_description_saved_before_this_was_read_says_so() {
    let (kernel, mut image) = load(MACHINES[0]);
    let (tasks, _) = tasks(&kernel, &mut image);
    let wanted = [Descriptor { pid: 1, fd: 0 }];
    let (found, damage) = channel::walk(&kernel, &mut image, KEY, &tasks, &wanted).unwrap();
    assert!(found == [None] && matches!(damage[..], [Damage { fault: Fault::Unknown, .. }]), "{damage:?}");
}
