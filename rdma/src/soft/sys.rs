//! The system calls that no safe crate offers in the shape needed here: batched receive and send on buffers that are
//! reused, three socket options, and the MTU of an interface.
//!
//! The only `unsafe` of this crate. Every block hands the kernel pointers into locals or slots that outlive the call,
//! with the lengths they were allocated with.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::slice;

/// Packets per system call: enough to make its cost small beside that of the packets.
pub(super) const BATCH: usize = 64;

/// Buffers for one batch of packets, allocated once.
pub(super) struct Slots {
    bytes: Vec<u8>,
    slot_len: usize,
    lens: [usize; BATCH],
    to: [SocketAddrV4; BATCH],
    filled: usize,
}

impl Slots {
    /// Slots for packets of up to `slot_len` bytes.
    pub(super) fn new(slot_len: usize) -> Self {
        let nowhere = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
        Self { bytes: vec![0; slot_len * BATCH], slot_len, lens: [0; BATCH], to: [nowhere; BATCH], filled: 0 }
    }

    /// Slots in use.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// The bytes of packet `index`, which is in use.
    pub(super) fn packet(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.slot_len..][..self.lens[index]]
    }

    /// The whole buffer of the first slot not in use, or `None` if all are.
    pub(super) fn vacant(&mut self) -> Option<&mut [u8]> {
        (self.filled < BATCH).then(|| &mut self.bytes[self.filled * self.slot_len..][..self.slot_len])
    }

    /// Takes the vacant slot into use, with `len` bytes for `to`.
    pub(super) fn occupy(&mut self, len: usize, to: SocketAddrV4) {
        assert!(self.filled < BATCH && len <= self.slot_len, "occupy follows vacant");
        (self.lens[self.filled], self.to[self.filled]) = (len, to);
        self.filled += 1;
    }

    /// Leaves nothing of packet `index`.
    pub(super) fn blank(&mut self, index: usize) {
        self.lens[index] = 0;
    }

    /// Takes all slots out of use.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Describes slot `index`, of which `len` bytes count, to the kernel.
    fn vector(&mut self, index: usize, len: usize) -> libc::iovec {
        let start = index * self.slot_len;
        libc::iovec { iov_base: self.bytes[start..].as_mut_ptr().cast(), iov_len: len.min(self.slot_len) }
    }

    /// Receives what is there, up to `packets_max` and one batch, without waiting. A packet larger than its slot is
    /// cut, and its length fields then give it away.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, packets_max: usize) -> io::Result<usize> {
        self.filled = 0;
        let count = packets_max.min(BATCH);
        let mut messages = Messages::new();
        for slot in 0..count {
            let vector = self.vector(slot, self.slot_len);
            messages.set(slot, vector, None);
        }
        let headers = messages.headers(count);
        // SAFETY: `headers` are `count` initialised elements; they and what they point to (vectors in `messages`, the
        // slots) live until after the call, and each vector describes bytes of `self.bytes` nobody else refers to.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        match usize::try_from(got) {
            Ok(got) => {
                for (len, header) in self.lens.iter_mut().zip(&headers[..got]) {
                    *len = (header.msg_len as usize).min(self.slot_len);
                }
                self.filled = got;
                Ok(got)
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Sends the packets in use from number `first` on. Returns how many the kernel took.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let mut messages = Messages::new();
        for slot in first..self.filled {
            let vector = self.vector(slot, self.lens[slot]);
            messages.set(slot - first, vector, Some(to_sockaddr(self.to[slot])));
        }
        let headers = messages.headers(self.filled.saturating_sub(first));
        // SAFETY: as in `receive`; the kernel only reads.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn to_sockaddr(to: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// Message headers with what they point to. Only as many are written as are used: a batch of 64 is 6 KB, and most
/// batches are one packet.
struct Messages {
    headers: [MaybeUninit<libc::mmsghdr>; BATCH],
    vectors: [MaybeUninit<libc::iovec>; BATCH],
    addresses: [MaybeUninit<libc::sockaddr_in>; BATCH],
    /// The first so many of each are written.
    written: usize,
}

impl Messages {
    fn new() -> Self {
        Self {
            headers: [const { MaybeUninit::uninit() }; BATCH],
            vectors: [const { MaybeUninit::uninit() }; BATCH],
            addresses: [const { MaybeUninit::uninit() }; BATCH],
            written: 0,
        }
    }

    /// Writes message `index`, which is the first one not written.
    fn set(&mut self, index: usize, vector: libc::iovec, to: Option<libc::sockaddr_in>) {
        assert_eq!(index, self.written, "messages are written in order");
        self.vectors[index].write(vector);
        // SAFETY: `mmsghdr` consists of integers and pointers, for which all zeroes is a valid (null) value.
        let header = self.headers[index].write(unsafe { zeroed() });
        header.msg_hdr.msg_iovlen = 1;
        if let Some(to) = to {
            self.addresses[index].write(to);
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        self.written += 1;
    }

    /// The first `count` messages, pointing into `self`: to be used before it moves.
    fn headers(&mut self, count: usize) -> &mut [libc::mmsghdr] {
        let count = count.min(self.written);
        for index in 0..count {
            // SAFETY: `index < self.written`, so `set` has written this header.
            let header = unsafe { self.headers[index].assume_init_mut() };
            header.msg_hdr.msg_iov = self.vectors[index].as_mut_ptr();
            if header.msg_hdr.msg_namelen != 0 {
                header.msg_hdr.msg_name = self.addresses[index].as_mut_ptr().cast();
            }
        }
        // SAFETY: `count <= self.written`, so `set` has written these headers; `MaybeUninit` has their layout.
        unsafe { slice::from_raw_parts_mut(self.headers.as_mut_ptr().cast(), count) }
    }
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes of a local that lives until after the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Never fragment: on an unconnected socket this also makes the IP id 0, which the ICRC has to foresee.
/// Source: Linux `ip_select_ident_segs`.
pub(super) fn never_fragment(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
}

/// Send with a UDP checksum of 0, as rxe does: the ICRC is the check.
pub(super) fn without_checksum(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

/// Asks for large buffers, beyond the system's limit where we may.
pub(super) fn enlarge_buffers(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
            set_option(socket, libc::SOL_SOCKET, ask, bytes)?;
        }
    }
    Ok(())
}

/// The MTU of the interface called `name`, in the network namespace of `socket`.
pub(super) fn interface_mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: `ifreq` consists of integers, arrays of them and a union of such: all zeroes is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte.cast_signed();
    }
    // SAFETY: SIOCGIFMTU reads the name from and writes the MTU to the `ifreq` it is given, which is a local.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.max(0).cast_unsigned())
}
