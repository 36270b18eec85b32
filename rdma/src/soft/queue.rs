//! A requester on a socket: the carrier behind [`remote_memory::Queue`].
//!
//! Everything happens in the caller's thread, inside `post` and `poll`: a queue that nobody polls sends nothing and
//! repeats nothing. While answers are due, `poll` looks at the socket for a moment without sleeping and then blocks
//! until a packet, the requester's own deadline or the caller's.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use remote_memory::{Completion, LinkError, Queue, Request, Window};

use super::hub::Hub;
use super::port::Port;
use super::socket::Socket;
use super::{Options, SocketError};
use crate::requester::{self, Ended, Rejected, Requester};
use crate::{Dialed, PathMtu, QpAttributes, random};

/// Carries our fresh attributes to the peer and returns the peer's: how a broken queue gets a new connection.
pub type Dialer = Box<dyn FnMut(QpAttributes) -> Result<Dialed, LinkError> + Send>;

/// A requester with its own sockets.
pub struct SoftQueue {
    socket: Port,
    options: Options,
    ours: QpAttributes,
    dialer: Option<Dialer>,
    connection: Option<Connection>,
    landing: Vec<u8>,
    /// Something was sent, nothing was awaited before, and nobody has waited since: no answer can be there yet.
    is_fresh: bool,
    /// Zero of the requester's clock.
    epoch: Instant,
    /// Of connections that are gone.
    past: requester::Counters,
    dropped: u64,
}

struct Connection {
    requester: Requester,
    peer: SocketAddrV4,
    mtu: PathMtu,
    window: Option<Window>,
}

impl SoftQueue {
    /// Opens the sockets at `local`:`port`; returns the queue and the attributes its peer has to be told.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(local: Ipv4Addr, port: u16, options: Options) -> Result<(Self, QpAttributes), SocketError> {
        let socket = Port::own(Socket::open(SocketAddrV4::new(local, port), &options)?);
        Self::over(socket, local, port, options)
    }

    /// Opens a queue on the sockets of `hub`, which is at `local`:`port`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open_at(
        hub: &Hub,
        local: Ipv4Addr,
        port: u16,
        options: Options,
    ) -> Result<(Self, QpAttributes), SocketError> {
        Self::over(Port::at(hub), local, port, options)
    }

    fn over(
        mut socket: Port,
        local: Ipv4Addr,
        port: u16,
        options: Options,
    ) -> Result<(Self, QpAttributes), SocketError> {
        let ours = QpAttributes {
            number: socket.renumber()?,
            first_psn: random::psn(),
            address: local,
            port,
            path_mtu: socket.mtu().raw(),
            reads_in_flight: options.reads_in_flight,
        };
        let queue = Self {
            socket,
            ours,
            dialer: None,
            connection: None,
            landing: vec![0; options.landing_bytes],
            options,
            is_fresh: false,
            epoch: Instant::now(),
            past: requester::Counters::default(),
            dropped: 0,
        };
        Ok((queue, ours))
    }

    /// Joins the queue to its peer. Until then nothing can be posted.
    ///
    /// # Errors
    /// [`LinkError::Misused`] if `remote` makes no sense.
    pub fn connect(&mut self, dialed: impl Into<Dialed>) -> Result<(), LinkError> {
        let Dialed { remote, window, .. } = dialed.into();
        remote.check()?;
        let mtu = PathMtu::at_most(self.ours.path_mtu.min(remote.path_mtu));
        let limits = requester::Limits {
            depth: self.options.depth,
            landing_bytes: self.options.landing_bytes,
            window_packets: self.socket.window_packets(mtu),
            timeout: self.options.timeout,
            tries: self.options.tries,
        };
        self.retire();
        self.connection = Some(Connection {
            window,
            requester: Requester::new(&self.ours, &remote, limits),
            peer: SocketAddrV4::new(remote.address, remote.port),
            mtu,
        });
        Ok(())
    }

    /// Sets how [`Queue::reconnect`] reaches the peer's control plane.
    pub fn set_dialer(&mut self, dialer: Dialer) {
        self.dialer = Some(dialer);
    }

    /// This end, as its peer has to know it. Changes with each reconnection.
    pub fn attributes(&self) -> QpAttributes {
        self.ours
    }

    /// What all connections of this queue have seen.
    pub fn counters(&self) -> requester::Counters {
        let mut all = self.past;
        if let Some(connection) = &self.connection {
            all.absorb(connection.requester.counters());
        }
        all
    }

    /// Packets dropped before the requester saw them: wrong CRC, malformed, or from another address.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn retire(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.past.absorb(connection.requester.counters());
        }
    }

    /// Hands every packet that has arrived to the requester. Returns how many were there.
    fn receive(&mut self, now: Duration, is_own_turn: bool) -> Result<usize, LinkError> {
        let packets = self.connection.as_ref().map_or(1, |connection| connection.requester.packets_awaited() as usize);
        let arrived = self.socket.receive(packets + 1, is_own_turn).map_err(local)?;
        let Some(connection) = &mut self.connection else { return Ok(arrived) };
        for index in 0..arrived {
            match self.socket.arrived(index) {
                Ok(packet) if packet.source == *connection.peer.ip() => {
                    connection.requester.receive(now, packet.ib, &mut self.landing);
                }
                _ => self.dropped += 1,
            }
        }
        Ok(arrived)
    }

    /// Sends all that may be sent.
    fn send(&mut self, now: Duration, is_own_turn: bool) -> Result<(), LinkError> {
        let Some(Connection { requester, peer, .. }) = &mut self.connection else { return Ok(()) };
        requester.expire(now);
        while self.socket.stage(*peer, |out| requester.transmit(now, &self.landing, out)).map_err(local)? {}
        self.socket.flush(is_own_turn).map_err(local)
    }

    /// Takes finished operations into `completions`.
    fn harvest(&mut self, completions: &mut [Completion]) -> Result<usize, LinkError> {
        let Some(Connection { requester, peer, .. }) = &mut self.connection else { return Err(NOT_CONNECTED) };
        let mut taken = 0;
        for place in completions {
            let Some(completion) = requester.completion() else { break };
            *place = completion;
            taken += 1;
        }
        match requester.ended() {
            Some(Ended::Lost { tries }) if taken == 0 => Err(match self.socket.last_failure() {
                Some(error) => LinkError::Local(format!("cannot send to {peer}: {error}")),
                None => LinkError::Lost { tries },
            }),
            _ => Ok(taken),
        }
    }

    /// Spins at first, then sleeps until something can have changed.
    fn idle(&self, now: Duration, since: Duration, until: Duration) -> Result<(), LinkError> {
        if now.saturating_sub(since) < self.options.spin {
            std::thread::yield_now(); // gives way to a peer on the same processor
            return Ok(());
        }
        let due = self.connection.as_ref().and_then(|connection| connection.requester.deadline());
        let due = due.map_or(until, |due| until.min(due));
        self.socket.wait(due.saturating_sub(now)).map_err(local)
    }
}

const NOT_CONNECTED: LinkError = LinkError::Misused("the queue is not connected");

fn local(error: std::io::Error) -> LinkError {
    LinkError::Local(error.to_string())
}

impl Queue for SoftQueue {
    fn landing(&self) -> &[u8] {
        &self.landing
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        &mut self.landing
    }

    fn depth(&self) -> usize {
        self.options.depth
    }

    fn packet_bytes(&self) -> usize {
        self.connection.as_ref().map_or(usize::from(self.ours.path_mtu), |connection| connection.mtu.bytes())
    }

    fn window(&self) -> Option<Window> {
        self.connection.as_ref()?.window
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        let Some(Connection { requester, .. }) = &mut self.connection else { return Err(NOT_CONNECTED) };
        if let Some(Ended::Lost { tries }) = requester.ended() {
            return Err(LinkError::Lost { tries });
        }
        self.is_fresh = requester.outstanding() == 0;
        let mut posted = 0;
        for request in requests {
            match requester.post(*request) {
                Ok(()) => posted += 1,
                Err(Rejected::Full | Rejected::Broken) => break,
                Err(Rejected::Misused(why)) if posted == 0 => return Err(LinkError::Misused(why)),
                Err(Rejected::Misused(_)) => break, // reported when it comes first
            }
        }
        self.send(self.epoch.elapsed(), false)?;
        Ok(posted)
    }

    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError> {
        // One look at the clock serves a whole round: with a thousand queues they add up.
        let began = self.epoch.elapsed();
        let mut last_packet = began;
        let mut now = began;
        let mut is_too_early = std::mem::take(&mut self.is_fresh) && !wait.is_zero();
        loop {
            let arrived = if std::mem::take(&mut is_too_early) { 0 } else { self.receive(now, !wait.is_zero())? };
            self.send(now, !wait.is_zero())?;
            let taken = self.harvest(completions)?;
            let outstanding = self.connection.as_ref().map_or(0, |connection| connection.requester.outstanding());
            if taken > 0 || completions.is_empty() || outstanding == 0 {
                return Ok(taken);
            }
            if wait.is_zero() && arrived == 0 {
                return Ok(0);
            }
            now = self.epoch.elapsed();
            if arrived > 0 {
                last_packet = now;
            } else if now >= began + wait {
                return Ok(0);
            } else {
                self.idle(now, last_packet, began + wait)?;
                now = self.epoch.elapsed();
            }
        }
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        let Some(dialer) = &mut self.dialer else {
            return Err(LinkError::Misused("the queue has no dialer to reconnect with"));
        };
        let number = self.socket.renumber().map_err(|error| LinkError::Local(error.to_string()))?;
        let fresh = QpAttributes { number, first_psn: random::psn(), ..self.ours };
        let dialed = dialer(fresh)?;
        self.ours = fresh;
        self.connect(dialed)
    }

    fn is_broken(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.requester.ended().is_some())
    }
}

impl fmt::Debug for SoftQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftQueue").field("ours", &self.ours).field("broken", &self.is_broken()).finish_non_exhaustive()
    }
}
