//! A guest that is reset again and again, each time to another place of its memory: the kernel that lives is told from
//! what is left of earlier ones, while it runs and when it stands still. Slow.

mod ram;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use introspect::{Extent, Kernel};
use ram::Ram;
use remote_memory::RemoteKey;
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(120);

/// Resets until one leaves a kernel that can be read whole; most do.
const RESETS_MAX: usize = 12;

/// And so many of these.
const LEFT_WANTED: usize = 2;

struct Guest {
    vm: Vm,
    ram: Ram,
    extents: [Extent; 1],
}

impl Guest {
    fn boot(line: &str) -> Self {
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("living", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.reboots = true;
        // Room enough that one kernel does not come to lie on what is left of another.
        spec.memory_mib = 1024;
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let ram = Ram(File::open(vm.ram_path()).unwrap());
        let extents = [Extent { start: 0, len: ram.0.metadata().unwrap().len() }];
        Self { vm, ram, extents }
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

    /// Kernels in its memory that are none of those that were found.
    fn left(&mut self, living: u64) -> bool {
        let mut found = vec![Kernel::discover(&mut self.ram, KEY, &self.extents).unwrap()];
        while let Ok(other) = Kernel::discover_other_than(&mut self.ram, KEY, &self.extents, &found) {
            found.push(other);
        }
        found.iter().any(|kernel| kernel.symbol("init_task").unwrap().raw() != living)
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn the_kernel_that_lives_is_told_from_what_resets_have_left() {
    for line in guest::Kernel::lines().unwrap() {
        let mut guest = Guest::boot(&line);
        let (mut left, mut resets) = (0, 0);
        while left < LEFT_WANTED {
            assert!(resets < RESETS_MAX, "{left} of {resets} resets have left a kernel: nothing is told from another");
            guest.reset();
            resets += 1;
            let truth = guest.init_task();
            assert_eq!(guest.living(), truth, "Linux {line}, while it runs, reset {resets}");
            guest.vm.qmp().stop().unwrap();
            assert_eq!(guest.living(), truth, "Linux {line}, standing still, reset {resets}");
            left += usize::from(guest.left(truth));
            guest.vm.qmp().cont().unwrap();
        }
        println!("Linux {line}: {left} of {resets} resets have left a kernel beside the one that lives");
    }
}
