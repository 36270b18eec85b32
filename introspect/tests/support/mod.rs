//! The recorded machines: pages of real kernels, what they said of themselves, what their /proc said.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use introspect::Damage;
use introspect::Kernel;
use introspect::linux::task::{self, Task};
use introspect::linux::tcp::{self, TcpFilter, TcpSocket};
use rand::Rng;
use rand::rngs::StdRng;
use remote_memory::image::Image;
use remote_memory::{PAGE_BYTES, RemoteKey, RemoteRead};

/// The machines in `tests/images`: paging depth and kernel line differ, the software in them is the same.
pub const MACHINES: [&str; 2] = ["linux-6.1-5level", "linux-6.12-4level"];

/// Machines whose kernels panicked: only what the log and the summary are read from.
pub const PANICKED: [&str; 2] = ["linux-6.1-panic", "linux-6.12-panic"];

/// Machines with many kinds of processes (`testbed/tests/processes_vm.rs` records them).
pub const PROCESSES: [&str; 2] = ["linux-6.1-processes", "linux-6.12-processes"];

/// Machines with known bytes in pipes and sockets (`testbed/tests/channels_vm.rs` records them).
pub const CHANNELS: [&str; 2] = ["linux-6.1-channels", "linux-6.12-channels"];

pub const KEY: RemoteKey = RemoteKey::new(1);

pub fn path(machine: &str, suffix: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(format!("{machine}.{suffix}"))
}

pub fn load(machine: &str) -> (Kernel, Image) {
    let kernel = serde_json::from_slice(&fs::read(path(machine, "kernel.json")).unwrap()).unwrap();
    let mut bytes = Vec::new();
    let file = fs::File::open(path(machine, "image.xz")).unwrap();
    xz2::read::XzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    (kernel, Image::load(&bytes[..]).unwrap())
}

pub fn tasks(kernel: &Kernel, mem: &mut dyn RemoteRead) -> (Vec<Task>, Vec<Damage>) {
    task::walk(kernel, mem, KEY).unwrap()
}

pub fn sockets(kernel: &Kernel, mem: &mut dyn RemoteRead) -> (Vec<TcpSocket>, Vec<Damage>) {
    tcp::walk(kernel, mem, KEY, &TcpFilter::default()).unwrap()
}

/// Damage as if other memory had been written there: another word of the machine, or anything.
pub fn damaged(image: &Image, random: &mut StdRng) -> Image {
    let pages: Vec<u64> = image.page_numbers().collect();
    let mut damaged = image.clone();
    let place = |random: &mut StdRng| {
        pages[random.random_range(0..pages.len())] * PAGE_BYTES + random.random_range(0..PAGE_BYTES / 8) * 8
    };
    for _ in 0..random.random_range(1..2_000) {
        let (at, other) = (place(random), place(random));
        let mut word = [0; 8];
        damaged.copy_out(other, &mut word).unwrap();
        let word = if random.random_bool(0.8) { word } else { random.random() };
        damaged.write_at(at, &word);
    }
    damaged
}
