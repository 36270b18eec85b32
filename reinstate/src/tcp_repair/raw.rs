//! The system calls of repair that no crate wraps: socket options whose value is a C structure, and the address of a
//! packet socket.
//!
//! This file holds all of this crate's unsafe code. Structures are the kernel's (`include/uapi/linux/tcp.h`): plain
//! integers without padding, so every bit pattern is a value.
#![allow(unsafe_code)]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd},
};

use socket2::{SockAddr, SockAddrStorage};

/// Values that may be exchanged with the kernel byte by byte.
///
/// # Safety
/// The type must be `repr(C)` or a primitive, without padding, and valid for every bit pattern.
pub(super) unsafe trait Plain: Copy + Default {}

// SAFETY: a primitive integer.
unsafe impl Plain for i32 {}
// SAFETY: a primitive integer.
unsafe impl Plain for u32 {}

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RepairOption {
    pub code: u32,
    pub value: u32,
}
// SAFETY: two u32, repr(C).
unsafe impl Plain for RepairOption {}
// SAFETY: arrays of a plain type have no padding either.
unsafe impl Plain for [RepairOption; 4] {}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RepairWindow {
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
}
// SAFETY: five u32, repr(C).
unsafe impl Plain for RepairWindow {}

/// The first 104 bytes of `struct tcp_info`, which every kernel since 2.6 fills; words of bytes kept as bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Info {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    /// Low nibble: the peer's window scale; high nibble: ours.
    pub scales: u8,
    pub rate_flags: u8,
    pub rto: u32,
    pub ato: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub more: [u32; 19],
}
// SAFETY: eight bytes and 24 u32, repr(C), no padding.
unsafe impl Plain for Info {}

/// Sets an option. `len` bytes of `value` count (for arrays of which only a part is used).
pub(super) fn set_part<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T, len: usize) -> io::Result<()> {
    assert!(len <= size_of::<T>(), "an option longer than its value");
    // SAFETY: `value` is a live reference to at least `len` bytes without padding (`Plain`, asserted above); the kernel
    // only reads them during the call.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option.
pub(super) fn set<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    set_part(fd, level, name, value, size_of::<T>())
}

/// Reads an option. What the kernel does not fill stays zero.
pub(super) fn fetch<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is exclusively ours, `len` is its size, and any bytes the kernel writes are a valid `T`
    // (`Plain`).
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Ends a connection whoever else has its socket: `connect` to no address. A connected peer is reset.
pub(super) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: the kernel reads the given number of bytes of a live sockaddr, which is plain old data.
    let result =
        unsafe { libc::connect(fd.as_raw_fd(), &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address of a packet socket: one interface, one protocol (an Ethertype), optionally a destination.
pub(crate) fn link_address(interface: u32, ethertype: u16, destination: Option<[u8; 6]>) -> SockAddr {
    // SAFETY: sockaddr_ll is plain old data; zero is a value of each member.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = interface as i32;
    if let Some(mac) = destination {
        address.sll_halen = mac.len() as u8;
        address.sll_addr[..mac.len()].copy_from_slice(&mac);
    }
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: SockAddrStorage is as large and as aligned as every socket address; sockaddr_ll is one.
    unsafe { *storage.view_as() = address };
    // SAFETY: the storage was just filled with a sockaddr_ll of exactly this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernel_sizes() {
        assert_eq!(size_of::<RepairOption>(), 8);
        assert_eq!(size_of::<RepairWindow>(), 20);
        assert_eq!(size_of::<Info>(), 104);
    }
}
