//! The limit of the path: bare UDP datagrams of the same sizes, as many in flight, as many per system call.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use crate::ground::{CLIENT, FLOOD_PORT, SERVER, SPIN};

/// As in `rdma::soft`.
const BATCH: usize = 64;
const IN_FLIGHT: usize = 128;
const DATAGRAM_MAX: usize = 4200;
/// A datagram was lost if nothing comes for so long.
const PATIENCE: Duration = Duration::from_millis(200);

/// One batch of datagrams.
struct Datagrams {
    socket: UdpSocket,
    bytes: Vec<[u8; DATAGRAM_MAX]>,
    /// Apart, because sending leaves its own addresses in them.
    to_receive: MultiHeaders<SockaddrIn>,
    to_send: MultiHeaders<SockaddrIn>,
    from: Vec<Option<SockaddrIn>>,
    lens: [usize; BATCH],
}

impl Datagrams {
    fn new(socket: UdpSocket) -> Result<Self> {
        socket.set_nonblocking(true)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))?;
        let headers = || MultiHeaders::preallocate(BATCH, None);
        let (to_receive, to_send) = (headers(), headers());
        Ok(Self {
            socket,
            bytes: vec![[0; DATAGRAM_MAX]; BATCH],
            to_receive,
            to_send,
            from: vec![None; BATCH],
            lens: [0; BATCH],
        })
    }

    /// Takes what is there; returns the number of datagrams.
    fn receive(&mut self) -> Result<usize> {
        let mut slices: Vec<_> = self.bytes.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
        let received =
            recvmmsg(self.socket.as_raw_fd(), &mut self.to_receive, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        let mut count = 0;
        match received {
            Ok(messages) => {
                for message in messages {
                    (self.lens[count], self.from[count]) = (message.bytes, message.address);
                    count += 1;
                }
                Ok(count)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends `count` datagrams of `self.lens` bytes to `self.from`.
    fn send(&mut self, count: usize) -> Result<()> {
        let slices: Vec<_> =
            self.bytes[..count].iter().zip(self.lens).map(|(bytes, len)| [IoSlice::new(&bytes[..len])]).collect();
        let fd = self.socket.as_raw_fd();
        sendmmsg(fd, &mut self.to_send, &slices, &self.from[..count], [], MsgFlags::empty())?;
        Ok(())
    }
}

/// Answers each datagram by one as long as its first two bytes say, until `stop`.
pub fn answer_until(stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind((SERVER, FLOOD_PORT))?;
    let waiting = socket.try_clone()?;
    let mut datagrams = Datagrams::new(socket)?;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let count = datagrams.receive()?;
        for index in 0..count {
            let len = u16::from_be_bytes([datagrams.bytes[index][0], datagrams.bytes[index][1]]);
            datagrams.lens[index] = usize::from(len);
        }
        if count > 0 {
            datagrams.send(count)?;
            last = Instant::now();
        } else if last.elapsed() < SPIN {
            thread::yield_now();
        } else {
            waiting.set_read_timeout(Some(Duration::from_millis(50)))?;
            waiting.set_nonblocking(false)?;
            waiting.peek_from(&mut [0]).ok();
            waiting.set_nonblocking(true)?;
        }
    }
    Ok(())
}

/// How long `count` requests with answers of `answer_len` bytes take.
pub fn once(count: usize, request_len: usize, answer_len: usize) -> Result<Duration> {
    let mut datagrams = Datagrams::new(UdpSocket::bind((CLIENT, 0))?)?;
    let SocketAddr::V4(to) = SocketAddr::from((SERVER, FLOOD_PORT)) else { unreachable!("an IPv4 address") };
    let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), to.port()));
    let (mut sent, mut received) = (0, 0);
    let began = Instant::now();
    let mut last = began;
    while received < count {
        let room = (IN_FLIGHT - (sent - received)).min(count - sent).min(BATCH);
        if room > 0 {
            for index in 0..room {
                (datagrams.lens[index], datagrams.from[index]) = (request_len, Some(to));
                datagrams.bytes[index][..2].copy_from_slice(&(answer_len as u16).to_be_bytes());
            }
            datagrams.send(room)?;
            sent += room;
        }
        match datagrams.receive()? {
            0 => thread::yield_now(),
            more => {
                received += more;
                last = Instant::now();
            }
        }
        ensure!(last.elapsed() < PATIENCE, "the flood lost datagrams");
    }
    Ok(began.elapsed())
}
