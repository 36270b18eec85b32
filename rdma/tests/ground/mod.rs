//! The ground tests stand on: memory that checks every access, and private network namespaces.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::process::Command;
use std::sync::Mutex;

use nix::sched::{CloneFlags, unshare};
use rdma::responder::{Memory, Refusal};
use remote_memory::{RemoteKey, Rights};

/// The key that may do anything.
pub const ALL: RemoteKey = RemoteKey::new(0x1350);
/// The key that may only read.
pub const READ_ONLY: RemoteKey = RemoteKey::new(0x1351);
/// Address of the first byte.
pub const BASE: u64 = 0x1000;

/// One region of bytes under two keys; counts the atomics.
pub struct Ram {
    bytes: Mutex<Vec<u8>>,
    atomics: Mutex<u64>,
}

impl Ram {
    /// `len` bytes, each made from its place so that misplaced data show.
    pub fn patterned(len: usize) -> Self {
        let bytes = (0..len).map(pattern).collect();
        Self { bytes: Mutex::new(bytes), atomics: Mutex::new(0) }
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// Atomics executed.
    pub fn atomics(&self) -> u64 {
        *self.atomics.lock().unwrap()
    }

    fn place(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<usize, Refusal> {
        let granted = match key {
            ALL => Rights::ALL,
            READ_ONLY => Rights::READ,
            _ => Rights::NONE,
        };
        let start = addr.checked_sub(BASE).ok_or(Refusal::Access)?;
        let end = start.checked_add(len).ok_or(Refusal::Access)?;
        let inside = end <= self.bytes.lock().unwrap().len() as u64;
        if inside && granted.covers(rights) { Ok(start as usize) } else { Err(Refusal::Access) }
    }

    fn update(&self, key: RemoteKey, addr: u64, change: impl FnOnce(u64) -> u64) -> Result<u64, Refusal> {
        let at = self.place(key, addr, 8, Rights::ATOMIC)?;
        let mut bytes = self.bytes.lock().unwrap();
        let word: &mut [u8; 8] = (&mut bytes[at..at + 8]).try_into().unwrap();
        let original = u64::from_ne_bytes(*word);
        *word = change(original).to_ne_bytes();
        *self.atomics.lock().unwrap() += 1;
        Ok(original)
    }
}

/// The byte at place `at` of a patterned region.
pub fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8).wrapping_mul(7) ^ (at >> 16).wrapping_mul(13)) as u8
}

impl Memory for Ram {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        self.place(key, addr, len, rights).map(drop)
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        let at = self.place(key, addr, into.len() as u64, Rights::READ)?;
        into.copy_from_slice(&self.bytes.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let at = self.place(key, addr, bytes.len() as u64, Rights::WRITE)?;
        self.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn compare_swap(&self, key: RemoteKey, addr: u64, expect: u64, swap: u64) -> Result<u64, Refusal> {
        self.update(key, addr, |word| if word == expect { swap } else { word })
    }

    fn fetch_add(&self, key: RemoteKey, addr: u64, add: u64) -> Result<u64, Refusal> {
        self.update(key, addr, |word| word.wrapping_add(add))
    }
}

/// Marks the process that was started inside a user namespace.
const INSIDE: &str = "RDMA_TEST_INSIDE_NAMESPACE";

/// Gives the calling thread (and threads it starts) a network namespace of its own with the loopback up, and returns
/// false: the test goes on. Without the right to, runs the test called `test` again inside an unprivileged user
/// namespace and returns true once it has passed there.
pub fn ran_in_a_namespace(test: &str) -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => ip(&["link", "set", "lo", "up"]),
        Err(error) if std::env::var_os(INSIDE).is_some() => panic!("no network namespace even as root of one: {error}"),
        Err(_) => {
            let program = std::env::current_exe().unwrap();
            let mut again = Command::new("unshare");
            again.args(["--user", "--map-root-user", "--net"]).arg(program).args(["--exact", test, "--nocapture"]);
            let status = again.env(INSIDE, "1").status().expect("unshare(1) runs");
            assert!(status.success(), "{test} failed inside an unprivileged namespace");
            return true;
        }
    }
    false
}

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip(8) runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
