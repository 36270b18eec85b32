//! The two sockets of one end, and the invariant CRC in both directions.
//!
//! ```text
//!   receive   raw IPv4 socket, filtered by UDP port       the CRC covers the IP id, which a UDP socket hides
//!   send      UDP socket bound to address and port        DF and id 0: the CRC is known beforehand
//!             (receives nothing, but its being bound keeps the kernel from answering "port unreachable")
//! ```
//!
//! Packets are received and sent in batches on buffers that are allocated once. A packet that the kernel will not take
//! for now (no route, no buffer) counts as lost on the way: repeating is the state machines' business.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockFilter, Type};

use super::sys::{self, Slots};
use super::{Options, SocketError, filter};
use crate::PathMtu;
use crate::wire::{icrc, ipv4, packet, udp};

/// What a received packet costs of the receive buffer beyond its bytes, in bytes: the kernel's own headers.
const KERNEL_OVERHEAD_BYTES: usize = 512;

/// Packets on the way at most, as many as Linux' rxe has: a guest's rxe lost some of each longer burst, in rings that
/// hold 256.
const WINDOW_PACKETS_MAX: u32 = 128;

/// One end's sockets with their buffers.
pub(super) struct Socket {
    raw: socket2::Socket,
    udp: socket2::Socket,
    local: SocketAddrV4,
    mtu: PathMtu,
    received: Slots,
    staged: Slots,
    loss: Loss,
    send_failures: u64,
    /// Of the last packet that was offered to the kernel.
    last_failure: Option<io::Error>,
}

/// Why a received packet is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bad {
    /// Not a whole IPv4 and UDP packet.
    Shape,
    /// The invariant CRC does not fit.
    Icrc,
}

/// A packet whose CRC was right.
#[derive(Clone, Copy)]
pub(super) struct Arrived<'a> {
    /// Sender's address.
    pub source: Ipv4Addr,
    /// From BTH to padding.
    pub ib: &'a [u8],
}

impl Socket {
    /// Opens both sockets at `local`.
    pub(super) fn open(local: SocketAddrV4, options: &Options) -> Result<Self, SocketError> {
        let udp = socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
            .map_err(failed("open a UDP socket"))?;
        udp.set_reuse_address(true).map_err(failed("share the port"))?;
        udp.attach_filter(&filter::nothing()).map_err(failed("set a socket filter"))?;
        let bind = |source| SocketError::Bind { address: *local.ip(), port: local.port(), source };
        udp.bind(&local.into()).map_err(bind)?;
        sys::never_fragment(udp.as_fd()).map_err(failed("forbid fragments"))?;
        sys::without_checksum(udp.as_fd()).map_err(failed("switch off UDP checksums"))?;

        let raw = socket2::Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::PermissionDenied => SocketError::NoPermission,
            _ => failed("open a raw socket")(source),
        })?;
        raw.attach_filter(&filter::for_port(local.port())).map_err(failed("set a socket filter"))?;
        raw.bind(&SocketAddrV4::new(*local.ip(), 0).into()).map_err(bind)?;
        for socket in [&udp, &raw] {
            sys::enlarge_buffers(socket.as_fd(), options.socket_buffer_bytes).map_err(failed("size the buffers"))?;
        }
        let mtu = options.path_mtu.min(fitting_mtu(&udp, *local.ip())?);
        let received = Slots::new(ipv4::LEN + udp::LEN + packet::LEN_MAX);
        Ok(Self {
            raw,
            udp,
            local,
            mtu,
            received,
            staged: Slots::new(packet::LEN_MAX),
            loss: Loss { ppm: options.loss_ppm, state: LOSS_SEED },
            send_failures: 0,
            last_failure: None,
        })
    }

    /// Largest payload per packet that fits our options and our interface.
    pub(super) fn mtu(&self) -> PathMtu {
        self.mtu
    }

    /// Takes only packets for queue pair `number` from now on.
    pub(super) fn narrow(&self, number: u32) -> Result<(), SocketError> {
        let filter: &[SockFilter] = &filter::for_queue_pair(self.local.port(), number);
        self.raw.attach_filter(filter).map_err(failed("set a socket filter"))
    }

    /// Packets of up to `mtu` that the receive buffer surely holds.
    pub(super) fn window_packets(&self, mtu: PathMtu) -> u32 {
        // The kernel allocates powers of two and counts all of what it allocates.
        let each = (mtu.bytes() + KERNEL_OVERHEAD_BYTES).next_power_of_two() + KERNEL_OVERHEAD_BYTES;
        let granted = self.raw.recv_buffer_size().unwrap_or(0);
        u32::try_from(granted / each).unwrap_or(WINDOW_PACKETS_MAX).clamp(2, WINDOW_PACKETS_MAX)
    }

    /// Receives one batch of up to `packets_max` without waiting; returns the number of packets, to be looked at with
    /// [`Socket::arrived`].
    pub(super) fn receive(&mut self, packets_max: usize) -> io::Result<usize> {
        match self.received.receive(self.raw.as_fd(), packets_max) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Ok(arrived) => {
                for index in (0..arrived).filter(|_| self.loss.strikes()) {
                    self.received.blank(index);
                }
                Ok(arrived)
            }
            failed => failed,
        }
    }

    /// Packet `index` of the last batch.
    pub(super) fn arrived(&self, index: usize) -> Result<Arrived<'_>, Bad> {
        let (ip, ip_bytes, datagram) = ipv4::split(self.received.packet(index)).map_err(|_| Bad::Shape)?;
        let (_, udp_bytes, payload) = udp::split(datagram).map_err(|_| Bad::Shape)?;
        let (ib, crc) = payload.split_last_chunk().ok_or(Bad::Shape)?;
        if *crc != icrc::over_ipv4(ip_bytes, udp_bytes, ib) {
            return Err(Bad::Icrc);
        }
        Ok(Arrived { source: ip.source, ib })
    }

    /// Offers a buffer to `make`, which returns the bytes it made from BTH to padding, and stages them for `to` with
    /// their CRC. Sends what is staged when the batch is full. Returns whether `make` had something.
    pub(super) fn stage(
        &mut self,
        to: SocketAddrV4,
        make: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> io::Result<bool> {
        if self.staged.filled() == sys::BATCH {
            self.flush()?;
        }
        let Some(slot) = self.staged.vacant() else { return Ok(false) };
        let Some(len) = make(slot) else { return Ok(false) };
        if self.loss.strikes() {
            return Ok(true);
        }
        let crc = foreseen_icrc(self.local, to, &slot[..len]);
        slot[len..len + icrc::LEN].copy_from_slice(&crc);
        self.staged.occupy(len + icrc::LEN, to);
        Ok(true)
    }

    /// Sends what is staged.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut first = 0;
        while first < self.staged.filled() {
            match self.staged.send(self.udp.as_fd(), first) {
                Ok(sent) => {
                    self.last_failure = None;
                    first += sent.max(1);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_like_loss(&error) => {
                    self.send_failures += 1;
                    self.last_failure = Some(error);
                    first += 1;
                }
                Err(error) => {
                    self.staged.clear();
                    return Err(error);
                }
            }
        }
        self.staged.clear();
        Ok(())
    }

    /// Packets the kernel would not send.
    pub(super) fn send_failures(&self) -> u64 {
        self.send_failures
    }

    /// Why the kernel would not send the last packet, if it would not: the reason behind a peer that seems silent.
    pub(super) fn last_failure(&self) -> Option<&io::Error> {
        self.last_failure.as_ref()
    }

    /// Sleeps until a packet is there, at most `wait`.
    pub(super) fn wait(&self, wait: Duration) -> io::Result<()> {
        wait_for(&self.raw, wait)
    }

    /// The sleeping part, for a thread that does not hold the socket.
    pub(super) fn waiter(&self) -> Result<Waiter, SocketError> {
        Ok(Waiter(self.raw.try_clone().map_err(failed("share a socket"))?))
    }
}

/// Sleeps until a packet is there, without receiving it.
pub(super) struct Waiter(socket2::Socket);

impl Waiter {
    /// At most `wait`.
    pub(super) fn wait(&self, wait: Duration) -> io::Result<()> {
        wait_for(&self.0, wait)
    }
}

fn wait_for(socket: &socket2::Socket, wait: Duration) -> io::Result<()> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where the losses of a test begin; any number but 0.
const LOSS_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// See [`Options::loss_ppm`].
struct Loss {
    ppm: u32,
    state: u64,
}

impl Loss {
    /// Whether the next packet is lost: the same packets in each run.
    fn strikes(&mut self) -> bool {
        if self.ppm == 0 {
            return false;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % 1_000_000 < u64::from(self.ppm)
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Kernel { what, source }
}

/// The CRC of what the kernel will make of `ib`: DF set, id 0, no options; the fields it chooses are left out.
fn foreseen_icrc(from: SocketAddrV4, to: SocketAddrV4, ib: &[u8]) -> [u8; icrc::LEN] {
    let udp_length = udp::LEN + ib.len() + icrc::LEN;
    let udp = udp::Repr { source: from.port(), destination: to.port(), length: udp_length as u16 };
    let ip = ipv4::Repr {
        total_length: (ipv4::LEN + udp_length) as u16,
        id: 0,
        dont_fragment: true,
        protocol: ipv4::PROTOCOL_UDP,
        source: *from.ip(),
        destination: *to.ip(),
    };
    icrc::over_ipv4(&ip.bytes(), &udp.bytes(), ib)
}

/// Whether a failure concerns this packet or the path to its receiver, and not our socket. Such a packet counts as
/// lost: whatever one peer's address or route does, the other peers' packets go out.
fn is_like_loss(error: &io::Error) -> bool {
    use nix::libc::{EBADF, EFAULT, ENOTSOCK};
    !matches!(error.raw_os_error(), None | Some(EBADF | EFAULT | ENOTSOCK))
}

/// What the interface that has `address` can carry; the smallest where that cannot be found out.
fn fitting_mtu(socket: &socket2::Socket, address: Ipv4Addr) -> Result<PathMtu, SocketError> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|error| failed("list the interfaces")(error.into()))?;
    let holder = interfaces.into_iter().find(|interface| holds(interface, address));
    let mtu = holder.and_then(|interface| sys::interface_mtu(socket.as_fd(), &interface.interface_name).ok());
    Ok(mtu.map_or(PathMtu::MIN, PathMtu::fitting))
}

/// Whether `interface` has `address`, or the net that `address` is in: all of 127/8 belongs to the loopback.
fn holds(interface: &nix::ifaddrs::InterfaceAddress, address: Ipv4Addr) -> bool {
    let v4 = |storage: Option<nix::sys::socket::SockaddrStorage>| {
        storage.and_then(|storage| storage.as_sockaddr_in().map(|v4| u32::from(v4.ip())))
    };
    let Some(own) = v4(interface.address) else { return false };
    let mask = v4(interface.netmask).unwrap_or(u32::MAX);
    own == u32::from(address) || (own & mask == u32::from(address) & mask && Ipv4Addr::from(own).is_loopback())
}
