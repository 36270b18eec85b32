//! Takes TCP connections out of a stopped process and builds them again, with the kernel's own TCP_REPAIR.
//!
//! Stands in for a dead machine: the process is stopped at whatever instruction it has reached, packets are dropped at
//! both ends by socket filters, and what `introspect` would find in dead memory is asked from the live kernel instead.
//! The one unsafe module of this test: options that no crate wraps.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const QUEUE_NONE: i32 = 0;
const QUEUE_RECEIVE: i32 = 1;
const QUEUE_SEND: i32 = 2;
const OPTION_TIMESTAMPS: u8 = 1;
const OPTION_SACK: u8 = 2;
const OPTION_WSCALE: u8 = 4;

/// What a spare needs to know about one connection.
#[derive(Debug)]
pub struct Connection {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Bytes received since the socket was made, those still queued included.
    pub bytes_received: u64,
    pub bytes_acked: u64,
    pub receive_queue: Vec<u8>,
    pub send_queue: Vec<u8>,
    receive_next: u32,
    write_next: u32,
    mss: i32,
    options: u8,
    wscale: (u8, u8),
    timestamp: u32,
    window: [u32; 5],
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set<T: Copy>(fd: &impl AsRawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads size_of::<T>() bytes of a live value.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as u32) })
}

fn read<T: Copy>(fd: &impl AsRawFd, name: i32, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of a live value of integers.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, name, (&raw mut value).cast(), &mut length) })?;
    Ok(value)
}

fn queue(fd: &impl AsRawFd, queue: i32) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, &queue)
}

fn count(fd: &impl AsRawFd, request: libc::c_ulong) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCINQ and SIOCOUTQ write one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &mut count) })?;
    Ok(count as usize)
}

/// The last `length` bytes of the chosen queue. The kernel copies whole buffers: the first one of a send queue may
/// begin with bytes that are acknowledged already.
fn peek(fd: &impl AsRawFd, length: usize) -> io::Result<Vec<u8>> {
    const BUFFER_BYTES_MAX: usize = 1 << 20;
    if length == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; length + BUFFER_BYTES_MAX];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the vector has as many bytes as the call is told.
    let got = unsafe { libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    check(got as i32)?;
    bytes.truncate(got as usize);
    let acknowledged = bytes.len().checked_sub(length).expect("a queue is as long as the kernel says");
    Ok(bytes.split_off(acknowledged))
}

/// Drops every packet that arrives for a socket.
pub fn deafen(fd: &impl AsRawFd) -> io::Result<()> {
    let drop_all = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: (&raw const drop_all).cast_mut() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Lets packets in again.
pub fn undeafen(fd: &impl AsRawFd) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)
}

/// Descriptor `number` of another process.
pub fn borrow_descriptor(pid: u32, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls on numbers; each returned descriptor is new and ours.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        check(pidfd)?;
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) as i32;
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Makes the loopback interface of a new network namespace usable.
pub fn raise_loopback() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is valid; the name is shorter than IFNAMSIZ; SIOCSIFFLAGS reads name and flags.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request))
    }
}

/// Freezes a connection and tells everything about it; closing it afterwards sends nothing.
pub fn extract(socket: OwnedFd) -> io::Result<Connection> {
    set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1i32)?;
    let info: [u8; 192] = read(&socket, libc::TCP_INFO, [0u8; 192])?;
    let number = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap());
    let (queued, unacked) = (count(&socket, libc::FIONREAD as _)?, count(&socket, libc::TIOCOUTQ as _)?);
    queue(&socket, QUEUE_RECEIVE)?;
    let receive_next = read(&socket, libc::TCP_QUEUE_SEQ, 0u32)?;
    let receive_queue = peek(&socket, queued)?;
    queue(&socket, QUEUE_SEND)?;
    let write_next = read(&socket, libc::TCP_QUEUE_SEQ, 0u32)?;
    let send_queue = peek(&socket, unacked)?;
    let (mss, timestamp) = (read(&socket, libc::TCP_MAXSEG, 0i32)?, read(&socket, libc::TCP_TIMESTAMP, 0u32)?);
    let window = read(&socket, libc::TCP_REPAIR_WINDOW, [0u32; 5])?;
    let std = std::net::TcpStream::from(socket);
    Ok(Connection {
        local: std.local_addr()?,
        peer: std.peer_addr()?,
        bytes_received: number(128),
        bytes_acked: number(120),
        receive_queue,
        send_queue,
        receive_next,
        write_next,
        mss,
        options: info[5],
        wscale: (info[6] & 15, info[6] >> 4),
        timestamp,
        window,
    })
}

/// Lets new sockets of this network namespace hold any queue that a dead one had, while it lives. The buffer options
/// that would do it per socket want a capability that root of a user namespace lacks.
pub struct LargeBuffers([(&'static str, String); 2]);

impl LargeBuffers {
    pub fn set() -> io::Result<Self> {
        let enlarge = |path| {
            let before = std::fs::read_to_string(path)?;
            std::fs::write(path, "4096 67108864 67108864")?;
            io::Result::Ok((path, before))
        };
        Ok(Self([enlarge("/proc/sys/net/ipv4/tcp_wmem")?, enlarge("/proc/sys/net/ipv4/tcp_rmem")?]))
    }
}

impl Drop for LargeBuffers {
    fn drop(&mut self) {
        for (path, before) in &self.0 {
            let _ = std::fs::write(path, before);
        }
    }
}

/// Builds a connection again, still frozen; [`release`] lets it live.
pub fn rebuild(from: &Connection) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    let family = if from.local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    let tcp = libc::IPPROTO_TCP;
    set(&fd, tcp, libc::TCP_REPAIR, &1i32)?;
    set(&fd, tcp, libc::TCP_MAXSEG, &from.mss.min(32767))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from.local))?;
    queue(&fd, QUEUE_RECEIVE)?;
    set(&fd, tcp, libc::TCP_QUEUE_SEQ, &from.receive_next.wrapping_sub(from.receive_queue.len() as u32))?;
    queue(&fd, QUEUE_SEND)?;
    set(&fd, tcp, libc::TCP_QUEUE_SEQ, &from.write_next.wrapping_sub(from.send_queue.len() as u32))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(from.peer))?;
    let option = |code: u32, value: u32| set(&fd, tcp, libc::TCP_REPAIR_OPTIONS, &[code, value]);
    option(2, from.mss as u32)?;
    if from.options & OPTION_WSCALE != 0 {
        option(3, u32::from(from.wscale.0) | u32::from(from.wscale.1) << 16)?;
    }
    if from.options & OPTION_SACK != 0 {
        option(4, 0)?;
    }
    if from.options & OPTION_TIMESTAMPS != 0 {
        option(8, 0)?;
        set(&fd, tcp, libc::TCP_TIMESTAMP, &(from.timestamp.wrapping_add(2) & !1))?;
    }
    queue(&fd, QUEUE_RECEIVE)?;
    fill(&fd, &from.receive_queue)?;
    queue(&fd, QUEUE_SEND)?;
    fill(&fd, &from.send_queue)?;
    queue(&fd, QUEUE_NONE)?;
    set(&fd, tcp, libc::TCP_REPAIR_WINDOW, &from.window)?;
    Ok(fd)
}

fn fill(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = &bytes[..bytes.len().min(16 << 10)];
        bytes = &bytes[nix::unistd::write(fd.as_fd(), piece)?..];
    }
    Ok(())
}

/// The same as soon as the address pair is free: a killed process may still be closing its sockets.
pub fn rebuild_when_free(from: &Connection, patience: Duration) -> OwnedFd {
    let deadline = Instant::now() + patience;
    loop {
        match rebuild(from) {
            Err(why) if why.kind() == io::ErrorKind::AddrNotAvailable => {}
            rebuilt => return rebuilt.unwrap(),
        }
        assert!(Instant::now() < deadline, "never: the address pair is free");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the repair: the kernel probes the client's window and goes on.
pub fn release(fd: &OwnedFd) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &0i32)
}
