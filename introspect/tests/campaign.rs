//! Recorded machines damaged at random: whatever memory holds, a walk ends within its bounds and does not panic. A
//! failure prints the seed of the damage.

mod support;

use introspect::linux::tcp::{TcpFilter, walk};
use introspect::{DiscoverError, Extent, Kernel};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use remote_memory::faults::{Faults, Rates};
use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{LinkError, PAGE_BYTES, RemoteKey};
use support::{KEY, MACHINES, load, sockets, tasks};

/// Damaged copies of all machines together, unless the variable says another number: a campaign takes 100000.
const RUNS: u64 = 3_000;
const RUNS_VARIABLE: &str = "BACKDOORS_CORRUPTIONS";

/// Damaged copies of each machine.
fn runs() -> u64 {
    let asked = std::env::var(RUNS_VARIABLE).map(|text| text.parse().expect("a number of corruptions"));
    asked.unwrap_or(RUNS).div_ceil(MACHINES.len() as u64)
}

/// No walk of an image of five hundred pages may take more round trips than this: the machines' own walks take about
/// twenty, and a chain that was bent can at most run through objects that exist, each once.
const ROUNDS_MAX: usize = 2_000;

/// The places of an image that hold kernel pointers, and the pointers.
struct Pointers {
    places: Vec<u64>,
    values: Vec<u64>,
}

fn pointers(image: &Image) -> Pointers {
    let mut found = Pointers { places: Vec::new(), values: Vec::new() };
    for page in image.page_numbers() {
        for place in (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(8) {
            let mut raw = [0; 8];
            image.copy_out(place, &mut raw).unwrap();
            let value = u64::from_le_bytes(raw);
            if value > 0xff00_0000_0000_0000 && value != u64::MAX {
                found.places.push(place);
                found.values.push(value);
            }
        }
    }
    found
}

fn damage(image: &Image, pointers: &Pointers, random: &mut StdRng) -> Image {
    let mut damaged = Image::new();
    let lost = if random.random_bool(0.3) { random.random_range(0..500) } else { usize::MAX };
    for (index, page) in image.page_numbers().enumerate().filter(|(index, _)| *index != lost) {
        let mut bytes = [0; PAGE_BYTES as usize];
        image.copy_out(page * PAGE_BYTES, &mut bytes).unwrap();
        if random.random_bool(0.002) {
            let from = random.random_range(0..bytes.len());
            bytes[from..].fill(if index % 2 == 0 { 0 } else { 0xff });
        }
        damaged.insert(page, &bytes);
    }
    for _ in 0..random.random_range(1..200) {
        let place = pointers.places[random.random_range(0..pointers.places.len())];
        if !damaged.holds(place / PAGE_BYTES) {
            continue;
        }
        match random.random_range(0..4) {
            // Another valid pointer: the damage that looks like nothing.
            0 | 1 => {
                let value = pointers.values[random.random_range(0..pointers.values.len())];
                damaged.write_at(place, &value.to_le_bytes());
            }
            2 => damaged.write_at(place, &random.random::<u64>().to_le_bytes()),
            _ => damaged.write_at(place ^ random.random_range(0..64), &[random.random()]),
        }
    }
    damaged
}

#[test]
fn every_walk_of_a_damaged_machine_ends_within_its_bounds() {
    for (number, machine) in (0..).zip(MACHINES) {
        let (kernel, image) = load(machine);
        let pointers = pointers(&image);
        let mut reports = 0;
        for seed in 0..runs() {
            let seed = seed << 8 | number;
            let mut random = StdRng::seed_from_u64(seed);
            let mut trace = Trace::new(damage(&image, &pointers, &mut random));
            let (tasks, task_damage) = tasks(&kernel, &mut trace);
            let (sockets, damage) = sockets(&kernel, &mut trace);
            assert!(trace.rounds() < ROUNDS_MAX, "seed {seed}: {} rounds", trace.rounds());
            assert!(tasks.len() < 1_000 && sockets.len() < 1_000, "seed {seed}: more objects than pages hold");
            for socket in sockets.iter().filter(|socket| socket.send_queue_complete) {
                let bytes: usize = socket.send_queue.iter().map(|segment| segment.bytes.len()).sum();
                let fins = socket.send_queue.iter().filter(|segment| segment.fin).count();
                let claimed = socket.write_seq.wrapping_sub(socket.snd_una) as usize;
                assert!(bytes + fins == claimed, "seed {seed}: {bytes} bytes and {fins} FINs for {claimed}");
            }
            reports += task_damage.len() + damage.len();
            reports += sockets.iter().map(|socket| socket.damage.len()).sum::<usize>();
        }
        assert!(reports > runs() as usize, "only {reports} reports: the damage missed");
    }
}

#[test]
fn a_link_that_fails_ends_the_walk_with_its_error_or_with_damage() {
    let rates = Rates { refused_ppm: 20_000, damaged_ppm: 20_000, lost_ppm: 10_000 };
    let (kernel, image) = load(MACHINES[0]);
    let mut lost = 0;
    for seed in 0..300 {
        let mut link = Faults::new(image.clone(), rates, seed);
        match walk(&kernel, &mut link, KEY, &TcpFilter::default()) {
            Ok(_) => {}
            Err(LinkError::Lost { .. }) => lost += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(lost > 10 && lost < 290, "{lost} of 300 lost");
}

#[test]
fn round_trips_do_not_grow_with_the_number_of_sockets() {
    for machine in MACHINES {
        let (kernel, image) = load(machine);
        let rounds = |ports: &[u16]| {
            let mut trace = Trace::new(image.clone());
            let filter = TcpFilter { ports: ports.to_vec(), ..TcpFilter::default() };
            let (sockets, _) = walk(&kernel, &mut trace, KEY, &filter).unwrap();
            (trace.rounds(), sockets.len())
        };
        let each = [7000, 7001, 7003, 7004].map(|port| rounds(&[port]));
        let (all, count) = rounds(&[7000, 7001, 7003, 7004]);
        assert_eq!(count, each.iter().map(|(_, count)| count).sum::<usize>());
        assert_eq!(Some(all), each.iter().map(|(rounds, _)| *rounds).max(), "the longest queue decides, not the sum");
    }
}

#[test]
fn a_filter_of_addresses_admits_these_only() {
    let (kernel, mut image) = load(MACHINES[0]);
    let address = "10.0.2.15".parse().unwrap();
    let filter = TcpFilter { addresses: vec![address], ports: vec![7001] };
    let (sockets, _) = walk(&kernel, &mut image, KEY, &filter).unwrap();
    assert!(!sockets.is_empty());
    assert!(sockets.iter().all(|socket| socket.local == (address, 7001).into() && socket.inet6_socket));
}

#[test]
fn a_machine_without_a_kernel_is_reported_as_that() {
    let (_, mut image) = load(MACHINES[0]);
    let extents = [Extent { start: 0, len: 16 << 20 }];
    let found = Kernel::discover(&mut image, RemoteKey::new(1), &extents);
    assert!(matches!(found, Err(DiscoverError::NoKernel { candidates: 0, .. })), "{found:?}");
}

proptest! {
    #[test]
    fn false_notes_lead_nowhere(
        values in proptest::collection::vec(any::<u64>(), 12),
        near in proptest::collection::vec(any::<bool>(), 12),
        fill: u8,
    ) {
        let mut values = values.iter().zip(near).map(|(value, near)| {
            // Half of the addresses lie in the few pages that exist.
            if near { 0xffff_ffff_8000_0000 + value % 0x8000 } else { *value }
        });
        let mut text = String::from("OSRELEASE=6.1.0\nNUMBER(phys_base)=0\n");
        for name in ["_stext", "init_top_pgt", "kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table",
            "kallsyms_token_index", "kallsyms_offsets", "kallsyms_relative_base"] {
            text += &format!("SYMBOL({name})={:x}\n", values.next().unwrap());
        }
        let mut image = Image::new();
        image.write_at(0, &[fill; 0x8000]);
        image.write_at(0x3000, text.as_bytes());
        let found = Kernel::discover(&mut image, RemoteKey::new(1), &[Extent { start: 0, len: 0x8000 }]);
        let is_no_kernel = matches!(found, Err(DiscoverError::NoKernel { candidates: 1, .. }));
        prop_assert!(is_no_kernel, "{:?}", found);
    }
}
