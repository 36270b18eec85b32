//! The mapping of a pool: memory that this process shares with a kernel map, other processes and remote readers.
//!
//! The only unsafe module of the crate. No reference into the mapping ever exists: words go through atomics, runs of
//! bytes through copies by pointer, and `recv` writes the log directly, which is the point of the log: what the kernel
//! counts as read is in it, wherever the process stopped.
//!
//! Invariants: a [`Slot`] lies inside its pool's mapping and the mapping lives as long as any of its slots; every
//! access goes through `Slot::pointer`, which checks bounds against the geometry the pool was opened with. That one
//! slot has one writer is the lease's business: breaking it yields a refused box, not undefined behaviour beyond it.
#![allow(unsafe_code)]

use crate::continuation::Words;
use crate::layout::{FRONT_BYTES, Geometry, HEADER_BYTES, SLOT_HEAD_BYTES, SlotState};
use crate::reader::{self, BadPool};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes before the ring's end that are worth a call of their own: most messages fit.
const LOG_RUN_MIN: u64 = 2 << 10;

/// Why a pool could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The operating system refused the mapping.
    #[error("cannot map {length} bytes as a pool of boxes: {why}")]
    Map {
        /// Length asked for.
        length: usize,
        /// The system's reason.
        why: nix::Error,
    },
    /// What is mapped is no pool.
    #[error(transparent)]
    Bad(#[from] BadPool),
}

/// A mapped pool.
#[derive(Debug)]
pub struct Pool {
    start: NonNull<u8>,
    length: usize,
    info: reader::PoolInfo,
}

// SAFETY: the mapping is plain memory, reached only through atomics and bounded copies by pointer.
unsafe impl Send for Pool {}
// SAFETY: as above; concurrent access to one slot is excluded by its lease.
unsafe impl Sync for Pool {}

impl Pool {
    /// Maps `fd` (a BPF array map, a memfd) and formats it as a pool of free slots named `pool`.
    ///
    /// # Errors
    /// [`PoolError`], also if `geometry` is unsound.
    pub fn create(fd: BorrowedFd<'_>, geometry: Geometry, pool: u64) -> Result<Arc<Self>, PoolError> {
        if !geometry.is_sound() {
            return Err(BadPool::Geometry(geometry).into());
        }
        let length = geometry.length_bytes() as usize;
        let created = Self { start: map(fd, length)?, length, info: reader::PoolInfo { pool, geometry } };
        let created = Arc::new(created);
        for slot in created.slots() {
            slot.set_state(SlotState::Free, 0);
        }
        let header = geometry.header(pool);
        let bytes = zerocopy::IntoBytes::as_bytes(&header);
        // SAFETY: a mapping is at least HEADER_BYTES long (length_bytes of a sound geometry) and the header is
        // shorter; nobody else knows the mapping yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), created.start.as_ptr(), bytes.len()) };
        Ok(created)
    }

    /// Maps the first `length` bytes of `fd`, which somebody formatted before.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn open(fd: BorrowedFd<'_>, length: usize) -> Result<Arc<Self>, PoolError> {
        let length = length.max(HEADER_BYTES as usize);
        let info = reader::PoolInfo { pool: 0, geometry: Geometry::standard(0) };
        let mut opened = Self { start: map(fd, length)?, length, info };
        let mut header = [0; size_of::<crate::layout::PoolHeader>()];
        // SAFETY: the mapping is at least HEADER_BYTES long, which exceeds the header.
        unsafe { std::ptr::copy_nonoverlapping(opened.start.as_ptr(), header.as_mut_ptr(), header.len()) };
        opened.info = reader::parse_pool(&header, length as u64)?;
        Ok(Arc::new(opened))
    }

    /// A pool in a new memfd: what a spare offers, and what tests use.
    ///
    /// # Errors
    /// [`PoolError`]
    pub fn memfd(geometry: Geometry, pool: u64) -> Result<(OwnedFd, Arc<Self>), PoolError> {
        let length = geometry.length_bytes() as usize;
        let refused = |why| PoolError::Map { length, why };
        let fd = memfd_create(c"contbox-pool", MFdFlags::MFD_CLOEXEC).map_err(refused)?;
        nix::unistd::ftruncate(&fd, length as i64).map_err(refused)?;
        let pool = Self::create(fd.as_fd(), geometry, pool)?;
        Ok((fd, pool))
    }

    /// The pool's random name.
    pub fn name(&self) -> u64 {
        self.info.pool
    }

    /// Where its boxes lie.
    pub fn geometry(&self) -> Geometry {
        self.info.geometry
    }

    /// Length of the mapping in bytes.
    pub fn length_bytes(&self) -> usize {
        self.length
    }

    /// Slot `index`, or `None` if the pool has fewer.
    pub fn slot(self: &Arc<Self>, index: u32) -> Option<Slot> {
        (index < self.info.geometry.slots).then(|| Slot { pool: Arc::clone(self), index })
    }

    /// All slots.
    pub fn slots(self: &Arc<Self>) -> impl Iterator<Item = Slot> {
        let pool = Arc::clone(self);
        (0..pool.info.geometry.slots).map(move |index| Slot { pool: Arc::clone(&pool), index })
    }

    /// A copy of the whole pool: what a remote reader would find. For tests and images.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.length];
        // SAFETY: source and target are `length` bytes long.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr(), image.as_mut_ptr(), self.length) };
        image
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` come from the mmap in `map`; slots hold the pool alive, so none is left.
        // A failing munmap leaves a mapping behind, which is harmless.
        let _ = unsafe { munmap(self.start.cast::<c_void>(), self.length) };
    }
}

fn map(fd: BorrowedFd<'_>, length: usize) -> Result<NonNull<u8>, PoolError> {
    let refused = |why| PoolError::Map { length, why };
    let size = NonZeroUsize::new(length).ok_or(refused(nix::Error::EINVAL))?;
    // Populated: a spare fills hundreds of boxes while clients wait, and each page touched first would be a fault.
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
    let start = unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, fd, 0) };
    Ok(start.map_err(refused)?.cast::<u8>())
}

/// One slot of a mapped pool.
#[derive(Clone, Debug)]
pub struct Slot {
    pool: Arc<Pool>,
    index: u32,
}

impl Slot {
    /// Its number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The pool it lies in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The pool's geometry.
    pub fn geometry(&self) -> Geometry {
        self.pool.info.geometry
    }

    /// The state word, if it is one.
    pub fn state(&self) -> Option<SlotState> {
        SlotState::from_word(self.load(0) as u32)
    }

    /// The owner word.
    pub fn owner(&self) -> u32 {
        (self.load(0) >> 32) as u32
    }

    /// Sets state and owner in one store.
    pub fn set_state(&self, state: SlotState, owner: u32) {
        fence(Ordering::Release);
        self.store(0, state as u64 | u64::from(owner) << 32);
        fence(Ordering::Release);
    }

    /// A copy of the slot's front.
    pub fn front(&self) -> [u8; FRONT_BYTES as usize] {
        let mut front = [0; FRONT_BYTES as usize];
        let from = self.pointer(0, FRONT_BYTES);
        // SAFETY: `pointer` vouches for as many bytes as the array has.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), front.as_mut_ptr(), front.len()) };
        front
    }

    /// A copy of all the slot's bytes.
    pub fn image(&self) -> Vec<u8> {
        let body = self.geometry().slot_bytes - FRONT_BYTES;
        [self.bytes(0, FRONT_BYTES), self.bytes(FRONT_BYTES, body)].concat()
    }

    /// A copy of `length` bytes at `offset` inside the slot.
    ///
    /// # Panics
    /// If they are not inside its front or its body.
    pub fn bytes(&self, offset: u32, length: u32) -> Vec<u8> {
        let from = self.pointer(offset, length);
        let mut bytes = Vec::with_capacity(length as usize);
        // SAFETY: `pointer` vouches for `length` bytes, the vector has room for as many, and they are filled here.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), length as usize);
            bytes.set_len(length as usize);
        }
        bytes
    }

    /// Copies `bytes` into the log at stream offset `from`; at most one log's worth.
    pub fn log_fill(&self, from: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (into, length) in self.log_pieces(from, bytes.len() as u64) {
            let (piece, after) = rest.split_at(length);
            // SAFETY: `log_pieces` vouches for `length` bytes inside the log.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), into.as_ptr(), length) };
            rest = after;
        }
    }

    /// Copies log bytes from stream offset `from` into `into`; at most one log's worth.
    pub fn log_copy(&self, from: u64, into: &mut [u8]) {
        let mut rest = into;
        for (piece, length) in self.log_pieces(from, rest.len() as u64) {
            let (target, after) = rest.split_at_mut(length);
            // SAFETY: `log_pieces` vouches for `length` bytes inside the log, `target` has as many.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), target.as_mut_ptr(), length) };
            rest = after;
        }
    }

    /// Copies `bytes` into the send log at stream offset `from`; at most one log's worth.
    pub fn sent_fill(&self, from: u64, bytes: &[u8]) {
        let geometry = self.geometry();
        assert!(bytes.len() as u64 <= u64::from(geometry.send_bytes), "more than one log's worth: {}", bytes.len());
        let stretches = geometry.send_stretches(from, from + bytes.len() as u64);
        let mut rest = bytes;
        for stretch in stretches.into_iter().filter(|stretch| !stretch.is_empty()) {
            let length = stretch.end - stretch.start;
            let (piece, after) = rest.split_at(length as usize);
            let into = self.pointer(geometry.send_offset() + stretch.start, length);
            // SAFETY: `pointer` vouches for `length` bytes; `piece` has as many and is no part of the mapping.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), into.as_ptr(), piece.len()) };
            rest = after;
        }
    }

    /// How much of `room` to ask for at stream offset `from`: what lies before the ring's end, unless that is little.
    pub fn log_run(&self, from: u64, room: u64) -> u64 {
        let [before_end, _] = self.geometry().log_stretches(from, from + room);
        let run = u64::from(before_end.end - before_end.start);
        if run < LOG_RUN_MIN { room } else { run }
    }

    /// Receives up to `room` bytes from the socket straight into the log at stream offset `from`.
    ///
    /// The kernel advances its own position only after it has copied, so a byte that it counts as read is in the log.
    /// One `recv` for one stretch of the ring ([`Self::log_run`]), which is quicker than the `recvmsg` for two.
    ///
    /// # Errors
    /// Those of `recv`, `WouldBlock` among them.
    pub fn log_receive(&self, socket: BorrowedFd<'_>, from: u64, room: u64) -> io::Result<usize> {
        let mut pieces = self.log_pieces(from, room);
        if let (Some((start, length)), None) = (pieces.next(), pieces.next()) {
            // SAFETY: a stretch of the log that `log_pieces` vouches for, which lives on.
            let received = unsafe { libc::recv(socket.as_raw_fd(), start.as_ptr().cast(), length, libc::MSG_DONTWAIT) };
            return usize::try_from(received).map_err(|_| io::Error::last_os_error());
        }
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2];
        for (vector, (start, length)) in vectors.iter_mut().zip(self.log_pieces(from, room)) {
            *vector = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length };
        }
        // SAFETY: an all-zero msghdr is a valid, empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len() as _;
        // SAFETY: both vectors are stretches of the log that `log_pieces` vouches for (or empty), and live on.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Reads once from `file`: the first bytes into the front at `head_at`, the rest into the log at stream offset
    /// `from`, of which there must be room for `room`. As with [`Slot::log_receive`], what the kernel counts as read
    /// is here.
    ///
    /// # Errors
    /// Those of `readv`.
    pub(crate) fn frame_receive(
        &self,
        file: BorrowedFd<'_>,
        (head_at, head_bytes): (u32, u32),
        from: u64,
        room: u64,
    ) -> io::Result<usize> {
        assert!(head_at + head_bytes <= SLOT_HEAD_BYTES, "a head that is not in the slot's");
        let head =
            libc::iovec { iov_base: self.pointer(head_at, head_bytes).as_ptr().cast(), iov_len: head_bytes as usize };
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = [head, nothing, nothing];
        for (vector, (start, length)) in vectors[1..].iter_mut().zip(self.log_pieces(from, room)) {
            *vector = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: length };
        }
        // SAFETY: the vectors are a stretch of the front that `pointer` vouches for and stretches of the log that
        // `log_pieces` vouches for (or empty); all live on, and no reference into them exists.
        let count = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// The one or two runs of log memory behind `length` stream bytes from `from`.
    fn log_pieces(&self, from: u64, length: u64) -> impl Iterator<Item = (NonNull<u8>, usize)> + use<'_> {
        let geometry = self.geometry();
        assert!(length <= u64::from(geometry.log_bytes), "more than one log's worth: {length}");
        let stretches = geometry.log_stretches(from, from + length);
        stretches.into_iter().filter(|stretch| !stretch.is_empty()).map(move |stretch| {
            let length = stretch.end - stretch.start;
            (self.pointer(geometry.log_offset() + stretch.start, length), length as usize)
        })
    }

    /// The address of `length` bytes at `offset` inside the slot.
    fn pointer(&self, offset: u32, length: u32) -> NonNull<u8> {
        let geometry = self.geometry();
        let end = offset.checked_add(length).expect("offsets inside a slot fit 32 bits");
        let part_end = if offset < FRONT_BYTES { FRONT_BYTES } else { geometry.slot_bytes };
        assert!(end <= part_end, "byte {end} of a part of a slot that ends at {part_end}");
        let at = geometry.place(self.index, offset) as usize;
        // SAFETY: index < slots and `length` bytes from `offset` lie in one part of the slot, so `at + length` lies
        // inside `length_bytes` of the geometry, which `create` mapped and `open` compared with the mapping's length.
        unsafe { self.pool.start.add(at) }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let start = self.pointer(8 * index as u32, 8).cast::<AtomicU64>();
        // SAFETY: `pointer` vouches for 8 bytes; fronts and bodies start at multiples of 8 (a sound geometry) of a
        // page-aligned mapping; the words that publish (state, newest) are only ever accessed as atomics while a
        // box is open, and everything else of the slot by its one writer.
        unsafe { start.as_ref() }
    }
}

impl Words for Slot {
    fn load(&self, index: usize) -> u64 {
        u64::from_le(self.word(index).load(Ordering::Relaxed))
    }

    fn store(&self, index: usize, value: u64) {
        self.word(index).store(value.to_le(), Ordering::Relaxed);
    }

    fn order(&self) {
        fence(Ordering::Release);
    }

    /// One copy instead of a store for each word: a fifth of the time for 10 KB.
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        let rest = bytes.len().next_multiple_of(8) - bytes.len();
        let into = self.pointer(8 * first as u32, (bytes.len() + rest) as u32);
        // SAFETY: `pointer` vouches for `bytes.len() + rest` bytes; `bytes` is ours and no part of the mapping, into
        // which no reference exists.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), into.as_ptr(), bytes.len());
            std::ptr::write_bytes(into.as_ptr().add(bytes.len()), 0, rest);
        }
    }
}

/// Takes ownership of a descriptor that `recvmsg` has just delivered.
pub(crate) fn own_received(raw: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the only caller passes descriptors out of SCM_RIGHTS, which the kernel opened for us and nobody owns.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) }
}

/// Has the kernel keep the SYN of each connection that `listener` accepts. Its sequence number never changes and tells
/// a reader of dead memory where the client's stream begins, whatever the kernel was counting when it stopped.
pub(crate) fn keep_syn(listener: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (option, value) = (libc::TCP_SAVE_SYN, (&raw const on).cast());
    // SAFETY: TCP_SAVE_SYN reads one int, which lives here.
    let outcome = unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, option, value, length) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of output that the peer has not acknowledged yet.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (TIOCOUTQ by its other name) writes one int, which lives here.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(count.max(0) as usize) }
}

/// Whether the kernel keeps the SYN of connections that `listener` accepts.
#[cfg(test)]
pub(crate) fn keeps_syn(listener: BorrowedFd<'_>) -> bool {
    let mut kept: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = (&raw mut kept).cast();
    // SAFETY: TCP_SAVE_SYN writes one int and its length, which live here.
    let outcome = unsafe {
        libc::getsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, value, &raw mut length)
    };
    outcome == 0 && kept == 1
}
