//! An opened adapter: what it can do, what it has to tell, and whether it is still there.
//!
//! An adapter can vanish while it is open. Some drivers cut their users off and say so with an event; others, rxe among
//! them, wait until the last user has closed its descriptors, and until then everything goes on as if nothing had
//! happened. Both are noticed here ([`Adapter::is_gone`]), and it is on the owner to drop everything then.

use std::ffi::{CStr, c_int, c_uint};
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::VerbsError;
use super::ffi::{self, event};
use super::library::{Verbs, verbs};
use super::manners::Manners;
use super::ports::{CLASS, Choice, Chosen, choose};
use crate::PathMtu;

/// Where the kernel shows who may open which adapter.
const USER_CLASS: &str = "/sys/class/infiniband_verbs";

/// What an adapter can do, as far as it limits us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload of one packet, by the port's own MTU.
    pub path_mtu: PathMtu,
    /// Operations that one queue pair may have outstanding.
    pub depth: u32,
    /// Completions that one queue holds.
    pub completions: u32,
    /// READs and atomics that a queue pair answers at the same time.
    pub reads_answered: u8,
    /// READs and atomics that a queue pair asks for at the same time.
    pub reads_asked: u8,
    /// Who made it, by number: some have limits of other kinds, see `manners.rs`.
    pub vendor: u32,
}

/// What an adapter has told of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has failed for good, or is being removed.
    Gone,
    /// Its port has come up or gone down.
    Port {
        /// Which way.
        up: bool,
    },
    /// A queue pair has died by a request of its peer.
    QueuePair {
        /// Its number.
        number: u32,
        /// What happened, by the number in `enum ibv_event_type`.
        kind: u32,
    },
    /// Its addresses have changed.
    Addresses,
    /// What concerns nobody here.
    Other(u32),
}

/// An adapter, opened at one of its ports.
#[derive(Debug)]
pub struct Adapter {
    verbs: &'static Verbs,
    context: NonNull<ffi::Context>,
    chosen: Chosen,
    limits: Limits,
    presence: Option<Presence>,
    has_failed: AtomicBool,
}

// SAFETY: libibverbs may be called from any thread, by its manual; the context is only read here.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verbs")
    }
}

/// The kernel's node of an opened adapter: gone as soon as its removal begins.
#[derive(Debug)]
struct Presence {
    node: PathBuf,
    inode: u64,
}

impl Presence {
    fn of(device: &str) -> Option<Self> {
        let nodes = fs::read_dir(USER_CLASS).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_ours = |node: &PathBuf| fs::read_to_string(node.join("ibdev")).is_ok_and(|name| name.trim() == device);
        let node = nodes.into_iter().find(is_ours)?;
        let inode = fs::metadata(&node).ok()?.ino();
        Some(Self { node, inode })
    }

    /// The inode tells a new adapter of the same name from the old one.
    fn holds(&self) -> bool {
        fs::metadata(&self.node).is_ok_and(|found| found.ino() == self.inode)
    }
}

impl Adapter {
    /// Opens the adapter that `choice` means.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn open(choice: &Choice) -> Result<Arc<Self>, VerbsError> {
        let chosen = choose(Path::new(CLASS), choice)?;
        let verbs = verbs()?;
        // Before it is opened: an adapter that is replaced in between then counts as gone.
        let presence = Presence::of(&chosen.device);
        let context = open_context(verbs, &chosen.device)?;
        let blank =
            Limits { path_mtu: PathMtu::MIN, depth: 0, completions: 0, reads_answered: 0, reads_asked: 0, vendor: 0 };
        let has_failed = AtomicBool::new(false);
        let mut adapter = Self { verbs, context, chosen, limits: blank, presence, has_failed };
        adapter.limits = adapter.ask_limits()?;
        set_nonblocking(adapter.event_fd()).map_err(|error| adapter.refused("deliver events", error))?;
        Ok(Arc::new(adapter))
    }

    /// The port and address it was opened for.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How it wants to be asked.
    pub(super) fn manners(&self) -> Manners {
        Manners::of(self.limits.vendor)
    }

    /// Whether it was removed or has failed for good.
    pub fn is_gone(&self) -> bool {
        if self.presence.as_ref().is_some_and(|presence| !presence.holds()) {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        self.has_failed.load(Ordering::Relaxed)
    }

    /// The next thing it has to tell; `None` if there is nothing.
    pub fn event(&self) -> Option<Event> {
        let mut told = ffi::AsyncEvent { element: ptr::null_mut(), event_type: 0 };
        // SAFETY: the context is open; the library fills the event and, the descriptor being non-blocking, returns.
        let status = unsafe { (self.verbs.ibv_get_async_event)(self.context.as_ptr(), &raw mut told) };
        if status != 0 {
            return None;
        }
        let event = match told.event_type {
            event::DEVICE_FATAL => {
                self.has_failed.store(true, Ordering::Relaxed);
                Event::Gone
            }
            event::PORT_ACTIVE => Event::Port { up: true },
            event::PORT_ERR => Event::Port { up: false },
            event::GID_CHANGE => Event::Addresses,
            kind @ (event::QP_FATAL | event::QP_REQ_ERR | event::QP_ACCESS_ERR | event::COMM_EST) => {
                // SAFETY: the event is about a queue pair of this context, which cannot be freed before the event is
                // acknowledged below.
                let number = unsafe { (*told.element.cast::<ffi::Qp>()).qp_num };
                Event::QueuePair { number, kind }
            }
            kind => Event::Other(kind),
        };
        // SAFETY: the event was filled by the library just now and is acknowledged once.
        unsafe { (self.verbs.ibv_ack_async_event)(&raw mut told) };
        Some(event)
    }

    /// Readable when there is an event.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self` is, and its descriptor with it.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).async_fd) }
    }

    pub(super) fn verbs(&self) -> &'static Verbs {
        self.verbs
    }

    pub(super) fn context(&self) -> *mut ffi::Context {
        self.context.as_ptr()
    }

    pub(super) fn refused(&self, what: &'static str, source: io::Error) -> VerbsError {
        if self.is_gone() {
            return VerbsError::Gone { device: self.chosen.device.clone() };
        }
        VerbsError::refused(&self.chosen.device, what, source)
    }

    /// What the last call that returned nothing left in `errno`.
    pub(super) fn last_refusal(&self, what: &'static str) -> VerbsError {
        self.refused(what, io::Error::last_os_error())
    }

    fn ask_limits(&self) -> Result<Limits, VerbsError> {
        // SAFETY: numbers, for which zero is a value.
        let mut device: ffi::DeviceAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and there is room for what libraries of this interface write.
        let status = unsafe { (self.verbs.ibv_query_device)(self.context(), &raw mut device) };
        self.checked(status, "say what it can do")?;
        let mut port = ffi::PortAttr::default();
        // SAFETY: as above.
        let status = unsafe { (self.verbs.ibv_query_port)(self.context(), self.chosen.port, &raw mut port) };
        self.checked(status, "describe its port")?;
        let number = |value: c_int| u32::try_from(value).unwrap_or(0);
        let few = |value: c_int| u8::try_from(value.clamp(0, READS_MAX)).unwrap_or(0);
        Ok(Limits {
            path_mtu: mtu_of(port.active_mtu),
            depth: number(device.max_qp_wr),
            completions: number(device.max_cqe),
            reads_answered: few(device.max_qp_rd_atom),
            reads_asked: few(device.max_qp_init_rd_atom),
            vendor: device.vendor_id,
        })
    }

    pub(super) fn checked(&self, status: c_int, what: &'static str) -> Result<(), VerbsError> {
        match status {
            0 => Ok(()),
            errno if errno > 0 => Err(self.refused(what, io::Error::from_raw_os_error(errno))),
            _ => Err(self.last_refusal(what)),
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: whatever was made on this context holds an `Arc` of `self` and is gone.
        unsafe { (self.verbs.ibv_close_device)(self.context()) };
    }
}

/// READs at the same time that are asked for at most: more than any adapter has, and a power of two as rxe needs it.
const READS_MAX: c_int = 128;

/// The payload that `enum ibv_mtu` means.
fn mtu_of(number: c_uint) -> PathMtu {
    PathMtu::at_most(128u16.checked_shl(number).filter(|_| number < 6).unwrap_or(0))
}

fn open_context(verbs: &'static Verbs, device: &str) -> Result<NonNull<ffi::Context>, VerbsError> {
    // SAFETY: a null count is permitted.
    let list = unsafe { (verbs.ibv_get_device_list)(ptr::null_mut()) };
    if list.is_null() {
        return Err(VerbsError::refused(device, "be listed", io::Error::last_os_error()));
    }
    let mut opened = Err(VerbsError::NoProvider { device: device.to_owned() });
    let mut place = list;
    // SAFETY: the list ends with a null, and its members live until it is freed below; an opened device stays.
    unsafe {
        while !(*place).is_null() {
            if CStr::from_ptr((verbs.ibv_get_device_name)(*place)).to_bytes() == device.as_bytes() {
                let context = NonNull::new((verbs.ibv_open_device)(*place));
                opened = context.ok_or_else(|| VerbsError::refused(device, "be opened", io::Error::last_os_error()));
                break;
            }
            place = place.add(1);
        }
        (verbs.ibv_free_device_list)(list);
    }
    opened
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_mtus_are_those_of_the_header_and_others_are_the_smallest() {
        for (number, bytes) in [(0, 256), (1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096), (6, 256), (40, 256)] {
            assert_eq!(mtu_of(number).raw(), bytes, "{number}");
        }
    }
}
