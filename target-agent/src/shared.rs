//! Memory shared with the kernel, and the system calls that no safe wrapper covers.
//!
//! The only unsafe module of this crate. A mapping is seen as atomic words and nothing else: the kernel's programs
//! write it at any moment.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::libbpf_sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::signal::Signal;

/// x86-64 with 4 KiB pages, as the backdoor counts them.
pub const PAGE_BYTES: usize = 4096;

/// A shared mapping for the rest of the process's life.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    words: &'static [AtomicU64],
}

impl Mapping {
    /// Maps the first `len` bytes, whole pages, of a BPF array map and touches every page.
    ///
    /// It is never unmapped: sensors are moved and pages stay registered until the process ends, and the map itself
    /// lives on anyway.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(map: impl AsFd, len: usize) -> io::Result<Self> {
        let whole = len.is_multiple_of(PAGE_BYTES);
        let size = NonZeroUsize::new(len).filter(|_| whole).ok_or(io::ErrorKind::InvalidInput)?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe { mmap(None, size, rights, MapFlags::MAP_SHARED, map, 0) }?;
        let start: NonNull<AtomicU64> = start.cast();
        // SAFETY: the mapping is `len` readable and writable bytes, page-aligned, never unmapped, and only ever
        // reached through this slice of atomics in this process.
        let words = unsafe { std::slice::from_raw_parts(start.as_ptr(), len / size_of::<AtomicU64>()) };
        let mapping = Self { words };
        for page in words.chunks(PAGE_BYTES / size_of::<AtomicU64>()) {
            page[0].load(Ordering::Relaxed);
        }
        Ok(mapping)
    }

    /// The mapping as words.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// Its virtual address.
    pub fn address(&self) -> usize {
        self.words.as_ptr().addr()
    }

    /// Its length.
    pub fn len_bytes(&self) -> usize {
        size_of_val(self.words)
    }
}

/// Opens a timer of processor `cpu` that fires `hertz` times a second of wall-clock time, also when it idles.
///
/// # Errors
/// If the processor is offline or the kernel refuses.
pub fn cpu_clock(cpu: u32, hertz: u64) -> io::Result<OwnedFd> {
    let attributes = clock_attributes(hertz);
    let (every_process, no_group) = (-1, -1);
    // SAFETY: the attributes outlive the call and announce their own length, in the second half of their first word.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), every_process, cpu, no_group, CLOSE_ON_EXEC)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of the process `pid`, which means this process also when its id belongs to another one.
///
/// # Errors
/// If there is no such process, or the kernel is older than Linux 5.3.
pub fn process(pid: u32) -> io::Result<OwnedFd> {
    let no_flags = 0;
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, no_flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind a descriptor from [`process`].
///
/// # Errors
/// If it has ended.
pub fn signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let (no_information, no_flags) = (std::ptr::null::<libc::siginfo_t>(), 0);
    // SAFETY: without information about the signal the kernel makes its own; the descriptor is open.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as libc::c_int, no_information, no_flags)
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor of the eBPF program that is pinned at `path`.
///
/// # Errors
/// If there is none, or the kernel refuses.
pub fn pinned_program(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a string that ends with a zero and outlives the call.
    let fd = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just opened this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the calling thread before all ordinary ones, however many these are (SCHED_FIFO, lowest priority of it).
///
/// # Errors
/// If the kernel refuses: the process has no right to it, or its cgroup no real-time budget.
pub fn before_ordinary_threads() -> io::Result<()> {
    let this_thread = 0;
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call.
    let set = unsafe { libc::sched_setscheduler(this_thread, libc::SCHED_FIFO, &raw const lowest) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps what this process has, and will have, in memory once it was touched.
///
/// # Errors
/// If the kernel refuses.
pub fn stay_in_memory() -> io::Result<()> {
    // SAFETY: the call takes a number.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if locked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// PERF_FLAG_FD_CLOEXEC. Source: include/uapi/linux/perf_event.h.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr` in its first published size: 8 words. Source: include/uapi/linux/perf_event.h.
fn clock_attributes(hertz: u64) -> [u64; 8] {
    const TYPE_SOFTWARE: u64 = 1;
    const SIZE: u64 = 64;
    const CONFIG_CPU_CLOCK: u64 = 0;
    const FLAG_FREQUENCY: u64 = 1 << 10;
    [TYPE_SOFTWARE | SIZE << 32, CONFIG_CPU_CLOCK, hertz, 0, 0, FLAG_FREQUENCY, 0, 0]
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapping_shows_what_the_file_holds_and_must_be_whole_pages() {
        let path = std::env::temp_dir().join(format!("agent-mapping-{}", std::process::id()));
        let mut file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&[7; 2 * PAGE_BYTES]).unwrap();
        let mapping = Mapping::new(&file, 2 * PAGE_BYTES).unwrap();
        assert_eq!(mapping.len_bytes(), 2 * PAGE_BYTES);
        assert_eq!(mapping.words()[1000].load(Ordering::Relaxed), 0x0707_0707_0707_0707);
        assert!(Mapping::new(&file, 100).is_err());
        assert!(Mapping::new(&file, 0).is_err());
    }
}
