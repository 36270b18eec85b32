//! The ends of real connections, hashed as a real kernel hashed them: IPv4, IPv6, and IPv4 on an IPv6 listener. Slow.
//!
//! The programs must have been built (`make test` does).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use introspect::linux::tcp::{self, TcpFilter, TcpSocket};
use introspect::{Damage, Extent, Kernel};
use remote_memory::{AccessError, LinkError, Read, RemoteKey, RemoteRead};
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(90);

/// Connections asked for, of each family; each has two sockets in the table.
const CONNECTIONS: usize = 3;

const PORT: u16 = 7000;

/// Where the ends are: in the first part of the struct that all members of the table begin with.
const HEAD_BYTES: usize = 80;

/// Guest RAM as QEMU holds it, with one place overwritten.
struct Ram {
    file: File,
    changed: Option<(u64, u8)>,
}

impl RemoteRead for Ram {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            read.outcome = self.file.read_exact_at(read.into, read.at.addr).map_err(|_| AccessError::Refused);
            if let Some((at, by)) = self.changed
                && let Some(byte) = at.checked_sub(read.at.addr).and_then(|place| read.into.get_mut(place as usize))
            {
                *byte ^= by;
            }
        }
        Ok(())
    }
}

impl Ram {
    fn walk(&mut self, kernel: &Kernel) -> (Vec<TcpSocket>, Vec<Damage>) {
        tcp::walk(kernel, self, KEY, &TcpFilter::default()).unwrap()
    }
}

fn boot(line: &str) -> Vm {
    let server = Path::new(env!("CARGO_BIN_EXE_testbed")).with_file_name("file-server");
    let image = ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("file-server", &server).service(Service {
        name: "file-server".to_owned(),
        command: format!("/bin/file-server --quiet --listen [::]:{PORT} --root /tmp"),
        ready_path: None,
    });
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
    let spec = VmSpec::new("ends", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
    let mut vm = Vm::start(spec).unwrap();
    vm.wait_ready(BOUND).unwrap();
    for address in ["127.0.0.1", "::1"] {
        let client = format!("until nc {address} {PORT} -e sleep 9999; do sleep 1; done");
        (0..CONNECTIONS).for_each(|_| drop(vm.run(&format!("({client}) >/dev/null 2>&1 &")).unwrap()));
    }
    vm
}

fn of_family(sockets: &[TcpSocket], is_four: bool) -> usize {
    sockets.iter().filter(|socket| socket.peer.is_ipv4() == is_four).count()
}

fn check(line: &str) {
    let mut vm = boot(line);
    let mut ram = Ram { file: File::open(vm.ram_path()).unwrap(), changed: None };
    let extents = [Extent { start: 0, len: ram.file.metadata().unwrap().len() }];
    let kernel = Kernel::discover(&mut ram, KEY, &extents).unwrap();
    let deadline = Instant::now() + BOUND;
    while [true, false].iter().any(|is_four| of_family(&ram.walk(&kernel).0, *is_four) < 2) {
        assert!(Instant::now() < deadline, "no connection of each family: {:?}", ram.walk(&kernel));
        thread::sleep(Duration::from_millis(100));
    }
    vm.qmp().stop().unwrap();
    let (sockets, damage) = ram.walk(&kernel);
    assert!(damage.is_empty(), "{damage:?}");
    assert!(sockets.iter().all(|socket| socket.damage.is_empty()), "{sockets:?}");
    for socket in &sockets {
        spoil_each_end_of(&mut ram, &kernel, socket);
    }
}

fn spoil_each_end_of(ram: &mut Ram, kernel: &Kernel, socket: &TcpSocket) {
    let start = kernel.phys(socket.address, HEAD_BYTES as u64).unwrap().raw();
    let mut head = [0; HEAD_BYTES];
    ram.file.read_exact_at(&mut head, start).unwrap();
    for ports in [socket.peer.port().to_be_bytes(), socket.local.port().to_le_bytes()] {
        let place = head.windows(2).position(|two| two == ports).unwrap();
        ram.changed = Some((start + place as u64, 1));
        let (sockets, damage) = ram.walk(kernel);
        ram.changed = None;
        assert!(damage.is_empty(), "one of many does not cast doubt on the rest: {damage:?}");
        for found in sockets {
            let is_spoilt = found.address == socket.address;
            assert_eq!((found.ends_doubtful(), found.usable()), (is_spoilt, !is_spoilt), "{found:?}");
        }
    }
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them, as the campaign does.
#[test]
fn ends_that_the_kernel_did_not_hash_are_told_from_those_it_did() {
    let lines = guest::Kernel::lines().unwrap();
    assert!(lines.iter().any(|line| line == "6.1"), "{lines:?}: run scripts/setup");
    lines.iter().for_each(|line| check(line));
}
