//! A guest that is reset, and boots at another place of its memory: the kernel that lives is told from what is left of
//! the one before, while it runs and when it stands still. Slow.
//!
//! What a reset leaves is a matter of luck: of twelve in a guest of 1 GiB one left a kernel whole. So what the earlier
//! one was described by is kept, and laid back where its successor was not looked at, for those who read.

mod ram;

use std::path::PathBuf;
use std::time::Duration;

use introspect::{Extent, Kernel};
use monitor::kernel;
use ram::Ram;
use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{LinkError, PAGE_BYTES, Read, RemoteAddr, RemoteKey, RemoteRead};
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(120);

/// Resets until what is left does not lie where the next kernel does: about three of four.
const RESETS_MAX: usize = 12;

/// Twice as many places for a kernel as in the usual guest.
const MEMORY_MIB: u32 = 512;

struct Guest {
    vm: Vm,
    ram: Overlaid,
    extents: [Extent; 1],
}

/// A guest's memory, with pages of an earlier life over it.
struct Overlaid {
    ram: Ram,
    left: Image,
}

impl RemoteRead for Overlaid {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        self.ram.read(batch)?;
        for read in batch {
            let (mut at, mut rest) = (read.at.addr, &mut *read.into);
            while !rest.is_empty() {
                let here = rest.len().min((PAGE_BYTES - at % PAGE_BYTES) as usize);
                let (piece, later) = rest.split_at_mut(here);
                // What is not of that life stays.
                let _ = self.left.copy_out(at, piece);
                (at, rest) = (at + here as u64, later);
            }
        }
        Ok(())
    }
}

impl Guest {
    fn boot(line: &str) -> Self {
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("living", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        (spec.reboots, spec.memory_mib) = (true, MEMORY_MIB);
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let ram = Ram::of(&vm);
        let extents = ram.extents();
        Self { vm, ram: Overlaid { ram, left: Image::new() }, extents }
    }

    /// The pages by which the kernel that runs alone is known.
    fn known_by(&mut self) -> Image {
        self.ram.left = Image::new();
        self.vm.qmp().stop().unwrap();
        let mut trace = Trace::new(&mut self.ram);
        let kernel = Kernel::discover(&mut trace, KEY, &self.extents).unwrap();
        kernel.wall_clock_s(&mut trace, KEY).unwrap().unwrap();
        kernel::survey(&kernel, &mut trace, KEY, &[]).unwrap();
        let ticks = kernel.phys(kernel.symbol("jiffies").unwrap(), 8).unwrap();
        trace.read(&mut [Read::new(RemoteAddr::new(KEY, ticks.raw()), &mut [0; 8])]).unwrap();
        let reads = trace.reads().to_vec();
        let image = self.ram.ram.touched(&reads);
        self.vm.qmp().cont().unwrap();
        image
    }

    fn reset(&mut self) {
        self.vm.qmp().execute("system_reset", serde_json::json!({})).unwrap();
        self.vm.wait_ready(BOUND).unwrap();
    }

    /// Where the kernel that runs says that its first task is.
    fn init_task(&mut self) -> u64 {
        let said = self.vm.run_within("grep ' init_task$' /proc/kallsyms", BOUND).unwrap().text();
        u64::from_str_radix(said.split_whitespace().next().unwrap(), 16).unwrap()
    }

    fn living(&mut self) -> u64 {
        let kernel = Kernel::discover_living(&mut self.ram, KEY, &self.extents).unwrap();
        assert!(kernel.wall_clock_s(&mut self.ram, KEY).unwrap().is_some(), "its clock agrees with itself");
        kernel.symbol("init_task").unwrap().raw()
    }

    /// The same by what moves, as a monitor looks for kernel sensors.
    fn moving(&mut self) -> u64 {
        let found = kernel::survey_the_living(&mut self.ram, KEY, &self.extents, &[], &|| false);
        let (kernel, _) = found.unwrap();
        kernel.symbol("init_task").unwrap().raw()
    }

    /// Whether the kernel that is found first, or one beside it, is not the one that runs.
    fn has_another(&mut self, living: u64) -> bool {
        let first = Kernel::discover(&mut self.ram, KEY, &self.extents).unwrap();
        let is_another = |kernel: &Kernel| kernel.symbol("init_task").unwrap().raw() != living;
        is_another(&first)
            || Kernel::discover_other_than(&mut self.ram, KEY, &self.extents, &[first]).is_ok_and(|it| is_another(&it))
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn the_kernel_that_lives_is_told_from_what_resets_have_left() {
    for line in guest::Kernel::lines().unwrap() {
        let mut guest = Guest::boot(&line);
        let mut resets = 0;
        loop {
            let before = guest.known_by();
            guest.reset();
            resets += 1;
            let (truth, own) = (guest.init_task(), guest.known_by());
            for page in before.page_numbers().filter(|page| !own.holds(*page)) {
                let mut bytes = [0; PAGE_BYTES as usize];
                before.copy_out(page * PAGE_BYTES, &mut bytes).unwrap();
                guest.ram.left.insert(page, &bytes);
            }
            assert_eq!(guest.living(), truth, "Linux {line}, while it runs, reset {resets}");
            assert_eq!(guest.moving(), truth, "Linux {line}, by what moves, reset {resets}");
            guest.vm.qmp().stop().unwrap();
            assert_eq!(guest.living(), truth, "Linux {line}, standing still, reset {resets}");
            let has_another = guest.has_another(truth);
            guest.vm.qmp().cont().unwrap();
            if has_another {
                break println!("Linux {line}: told from the one before, after {resets} resets");
            }
            assert!(resets < RESETS_MAX, "no reset has left a kernel: nothing is told from another");
        }
    }
}
