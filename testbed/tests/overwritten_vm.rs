//! What is left of a guest's kernel after something was written over it, as by the kernel of its next life: looked
//! for, it is found or not, and that costs no more memory than a whole kernel does by far. Slow.
//!
//! The memory of this process is what is measured, so the test has a file, that is a process, of its own.

mod ram;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use introspect::{DiscoverError, Extent, Kernel};
use ram::Ram;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{PAGE_BYTES, RemoteKey};
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);
const PAGE: usize = PAGE_BYTES as usize;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(120);

/// Damaged copies of the kernel.
const RUNS: u64 = 60;

/// More than ten times what a whole kernel takes.
const GROWTH_KIB_MAX: u64 = 512 * 1024;

/// The pages by which a running kernel of 6.1 is known.
fn recorded() -> (Image, [Extent; 1]) {
    let image = ImageSpec::new(guest::Kernel::cached("6.1").unwrap());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
    let mut spec = VmSpec::new("overwritten", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
    spec.cpus = 1;
    let mut vm = Vm::start(spec).unwrap();
    vm.wait_ready(BOUND).unwrap();
    vm.qmp().stop().unwrap();
    let mut ram = Ram::of(&vm);
    let extents = ram.extents();
    let mut trace = Trace::new(&mut ram);
    Kernel::discover(&mut trace, KEY, &extents).unwrap();
    let reads = trace.reads().to_vec();
    (ram.touched(&reads), extents)
}

/// A copy with some stretches written over: by nothing, by text, by noise, by other pages of the same kernel.
fn overwritten(image: &Image, random: &mut StdRng) -> Image {
    let pages: Vec<u64> = image.page_numbers().collect();
    let mut copy = image.clone();
    for _ in 0..random.random_range(1..4) {
        let first = random.random_range(0..pages.len());
        let last = (first + random.random_range(1..60)).min(pages.len());
        let by = random.random_range(0..4);
        for page in &pages[first..last] {
            let mut bytes = [0; PAGE];
            match by {
                0 => {}
                1 => bytes.fill(b'n'),
                2 => random.fill_bytes(&mut bytes),
                _ => {
                    let other = pages[random.random_range(0..pages.len())];
                    image.copy_out(other * PAGE_BYTES, &mut bytes).unwrap();
                }
            }
            copy.insert(*page, &bytes);
        }
    }
    copy
}

/// A line of what the kernel says of this process, in KiB.
fn said(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_kernel_that_was_written_over_costs_no_more_memory_than_a_whole_one() {
    let (image, extents) = recorded();
    let before_kib = said("VmRSS:");
    let mut found = 0;
    for seed in 0..RUNS {
        let mut damaged = overwritten(&image, &mut StdRng::seed_from_u64(seed));
        match Kernel::discover(&mut damaged, KEY, &extents) {
            Ok(_) => found += 1,
            Err(DiscoverError::NoKernel { .. }) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        let growth_kib = said("VmHWM:") - before_kib;
        assert!(growth_kib < GROWTH_KIB_MAX, "seed {seed}: {growth_kib} KiB");
    }
    println!("{found} of {RUNS} kernels were found, with {} KiB more at most", said("VmHWM:") - before_kib);
    assert!((1..RUNS).contains(&found), "{found} of {RUNS} were found: nothing was shown");
}
