//! What hangs on an opened adapter: protection domains, registered memory, completion queues.
//!
//! Each value keeps alive what it hangs on and closes itself when it is dropped, so the order that libibverbs asks for
//! cannot be got wrong, and nothing is left behind by a value that went out of scope.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use remote_memory::Rights;

use super::VerbsError;
use super::adapter::{Adapter, set_nonblocking};
use super::ffi::{self, access};
use super::landing::Landing;

/// A protection domain: queue pairs reach the memory registered in theirs, and no other.
#[derive(Debug)]
pub struct Domain {
    adapter: Arc<Adapter>,
    raw: NonNull<ffi::Pd>,
}

// SAFETY: see `Adapter`.
unsafe impl Send for Domain {}
// SAFETY: see `Adapter`.
unsafe impl Sync for Domain {}

impl Domain {
    /// A new one.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn new(adapter: &Arc<Adapter>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: the context is open.
        let raw = unsafe { (adapter.verbs().ibv_alloc_pd)(adapter.context()) };
        let raw = NonNull::new(raw).ok_or_else(|| adapter.last_refusal("make a protection domain"))?;
        Ok(Arc::new(Self { adapter: Arc::clone(adapter), raw }))
    }

    /// The adapter.
    pub fn adapter(&self) -> &Arc<Adapter> {
        &self.adapter
    }

    pub(super) fn raw(&self) -> *mut ffi::Pd {
        self.raw.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: whatever was made in this domain holds an `Arc` of `self` and is gone.
        unsafe { (self.adapter.verbs().ibv_dealloc_pd)(self.raw()) };
    }
}

/// Memory that the adapter may reach, until this is dropped.
#[derive(Debug)]
pub struct Registered {
    domain: Arc<Domain>,
    raw: NonNull<ffi::Mr>,
    /// The memory, where it is not there for good.
    _memory: Option<Arc<Landing>>,
}

// SAFETY: see `Adapter`.
unsafe impl Send for Registered {}
// SAFETY: see `Adapter`.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers `memory`, for peers with `rights`. It is made of atomics, so that what peers write at any moment is
    /// something that the language knows of.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn shared(domain: &Arc<Domain>, memory: &'static [AtomicU64], rights: Rights) -> Result<Self, VerbsError> {
        Self::at(domain, memory.as_ptr().cast_mut().cast(), size_of_val(memory), access_of(rights), None)
    }

    /// Registers a landing buffer, which only this side's own operations reach.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn landing(domain: &Arc<Domain>, memory: &Arc<Landing>) -> Result<Self, VerbsError> {
        let (start, len) = (memory.start(), memory.len());
        Self::at(domain, start, len, access::LOCAL_WRITE, Some(Arc::clone(memory)))
    }

    fn at(
        domain: &Arc<Domain>,
        start: *mut u8,
        len: usize,
        access: c_uint,
        memory: Option<Arc<Landing>>,
    ) -> Result<Self, VerbsError> {
        let adapter = &domain.adapter;
        // SAFETY: the domain is open. The memory stays where it is until after the registration ends: it is there for
        // good, or held by the value that is made here. Whoever sees it knows that peers change it, see the callers.
        let raw = unsafe { (adapter.verbs().ibv_reg_mr)(domain.raw(), start.cast(), len, access as c_int) };
        let raw = NonNull::new(raw).ok_or_else(|| adapter.last_refusal("register memory"))?;
        Ok(Self { domain: Arc::clone(domain), raw, _memory: memory })
    }

    /// The key that peers name.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: registered until `self` is dropped.
        unsafe { self.raw.as_ref() }.rkey
    }

    /// The key for operations of this side.
    pub fn local_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.raw.as_ref() }.lkey
    }

    /// The address of the first byte, as peers name it.
    pub fn base(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.raw.as_ref() }.addr as u64
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered, and deregistered once; peers' operations on it fail from here on.
        unsafe { (self.domain.adapter.verbs().ibv_dereg_mr)(self.raw.as_ptr()) };
    }
}

/// The bits of `enum ibv_access_flags` that `rights` mean, and no other. What peers write, the adapter must be allowed
/// to write as well.
fn access_of(rights: Rights) -> c_uint {
    let mut bits = 0;
    if rights.covers(Rights::READ) {
        bits |= access::REMOTE_READ;
    }
    if rights.covers(Rights::WRITE) {
        bits |= access::REMOTE_WRITE | access::LOCAL_WRITE;
    }
    if rights.covers(Rights::ATOMIC) {
        bits |= access::REMOTE_ATOMIC | access::LOCAL_WRITE;
    }
    bits
}

/// A completion queue with the descriptor that wakes whoever waits for it.
#[derive(Debug)]
pub struct Completions {
    adapter: Arc<Adapter>,
    channel: NonNull<ffi::CompChannel>,
    raw: NonNull<ffi::Cq>,
}

// SAFETY: see `Adapter`; providers lock a completion queue while it is polled.
unsafe impl Send for Completions {}
// SAFETY: as above.
unsafe impl Sync for Completions {}

impl Completions {
    /// A queue with room for `count`.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn new(adapter: &Arc<Adapter>, count: u32) -> Result<Arc<Self>, VerbsError> {
        let verbs = adapter.verbs();
        // SAFETY: the context is open.
        let channel = unsafe { (verbs.ibv_create_comp_channel)(adapter.context()) };
        let channel = NonNull::new(channel).ok_or_else(|| adapter.last_refusal("make a completion channel"))?;
        let count = c_int::try_from(count).unwrap_or(c_int::MAX);
        // SAFETY: context and channel are open; there is no user pointer; vector 0 always exists.
        let raw = unsafe { (verbs.ibv_create_cq)(adapter.context(), count, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(raw) = NonNull::new(raw) else {
            let error = adapter.last_refusal("make a completion queue");
            // SAFETY: nothing uses the channel.
            unsafe { (verbs.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let queue = Self { adapter: Arc::clone(adapter), channel, raw };
        set_nonblocking(queue.fd()).map_err(|error| adapter.refused("deliver completions", error))?;
        Ok(Arc::new(queue))
    }

    /// Readable when there is something to [`Completions::disarm`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is open as long as `self` is, and its descriptor with it.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd as RawFd) }
    }

    /// Takes what has ended, at most `into` holds; returns how many.
    ///
    /// # Errors
    /// The adapter cannot say; it has failed.
    pub fn poll(&self, into: &mut [ffi::Wc]) -> Result<usize, VerbsError> {
        let room = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: the context is open.
        let poll = unsafe { (*self.adapter.context()).ops.poll_cq };
        let Some(poll) = poll else { return Err(self.refused("poll completions", libc::ENOSYS)) };
        // SAFETY: the queue is open and there is room for so many.
        let taken = unsafe { poll(self.raw.as_ptr(), room, into.as_mut_ptr()) };
        usize::try_from(taken).map_err(|_| self.refused("poll completions", libc::EIO))
    }

    /// Asks for one event when the next completion arrives. Poll once more after it: what came before does not count.
    ///
    /// # Errors
    /// The adapter has failed.
    pub fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the context is open.
        let notify = unsafe { (*self.adapter.context()).ops.req_notify_cq };
        let Some(notify) = notify else { return Err(self.refused("announce completions", libc::ENOSYS)) };
        // SAFETY: the queue is open.
        let status = unsafe { notify(self.raw.as_ptr(), 0) };
        self.adapter.checked(status, "announce completions")
    }

    /// Takes the event that [`Completions::arm`] asked for, if it is there.
    pub fn disarm(&self) -> bool {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        let verbs = self.adapter.verbs();
        // SAFETY: the channel is open and its descriptor does not block; what comes is of its only queue, `self.raw`.
        unsafe {
            if (verbs.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut queue, &raw mut context) != 0 {
                return false;
            }
            (verbs.ibv_ack_cq_events)(queue, 1);
        }
        true
    }

    pub(super) fn raw(&self) -> *mut ffi::Cq {
        self.raw.as_ptr()
    }

    fn refused(&self, what: &'static str, errno: i32) -> VerbsError {
        self.adapter.refused(what, io::Error::from_raw_os_error(errno))
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold an `Arc` of `self` and are gone; every event was acknowledged; the channel last.
        unsafe {
            (self.adapter.verbs().ibv_destroy_cq)(self.raw.as_ptr());
            (self.adapter.verbs().ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_the_rights_that_were_given_and_no_other() {
        let check = |rights, expected: c_uint| assert_eq!(access_of(rights), expected, "{rights:?}");
        check(Rights::NONE, 0);
        check(Rights::READ, 0b0100);
        check(Rights::READ.and(Rights::WRITE), 0b0111);
        check(Rights::READ.and(Rights::ATOMIC), 0b1101);
        check(Rights::ALL, 0b1111);
    }
}
