//! Guest RAM as QEMU holds it, read without a backdoor between.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use introspect::{Extent, Kernel};
use remote_memory::image::Image;
use remote_memory::trace::Traced;
use remote_memory::{AccessError, LinkError, PAGE_BYTES, Read, RemoteKey, RemoteRead};
use testbed::vm::Vm;

/// Any will do.
const KEY: RemoteKey = RemoteKey::new(1);

/// Of each page that is searched for a kernel's note, its head is read.
const SEARCHED_BYTES: usize = 40;

pub struct Ram(pub File);

#[allow(dead_code, reason = "each test file uses its part")]
impl Ram {
    /// That of `vm`.
    pub fn of(vm: &Vm) -> Self {
        Self(File::open(vm.ram_path()).unwrap())
    }

    /// The same, to be written to.
    pub fn writable(vm: &Vm) -> Self {
        Self(OpenOptions::new().read(true).write(true).open(vm.ram_path()).unwrap())
    }

    /// All of it.
    pub fn extents(&self) -> [Extent; 1] {
        [Extent { start: 0, len: self.0.metadata().unwrap().len() }]
    }

    /// The kernel in it.
    pub fn kernel(&mut self) -> Kernel {
        let extents = self.extents();
        Kernel::discover(self, KEY, &extents).unwrap()
    }

    /// The pages of these reads, those aside that were only looked at in search of a kernel.
    pub fn touched(&self, reads: &[Traced]) -> Image {
        let mut image = Image::new();
        for read in reads.iter().filter(|read| read.ok && read.len != SEARCHED_BYTES) {
            let pages = read.at.addr / PAGE_BYTES..(read.at.addr + read.len as u64).div_ceil(PAGE_BYTES);
            for page in pages.filter(|page| !image.holds(*page)).collect::<Vec<_>>() {
                let mut bytes = [0; PAGE_BYTES as usize];
                self.0.read_exact_at(&mut bytes, page * PAGE_BYTES).unwrap();
                image.insert(page, &bytes);
            }
        }
        image
    }
}

impl RemoteRead for Ram {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            read.outcome = self.0.read_exact_at(read.into, read.at.addr).map_err(|_| AccessError::Refused);
        }
        Ok(())
    }
}
