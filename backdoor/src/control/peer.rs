//! The conversation with one peer, from its greeting to its end.

use std::net::IpAddr;
use std::time::Instant;

use control::backdoor::{MemoryWindow, QueuePair, Reply, Request};
use control::{Channel, FrameError, VERSION};
use rdma::QpAttributes;
use remote_memory::Window;

use super::stream::Patient;
use super::{NOTICE, Plane};

/// How long a peer may take to greet.
const GREETING_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What a peer holds.
struct Peer<'a> {
    plane: &'a Plane,
    from: IpAddr,
    /// Its name, once it has greeted.
    name: Option<String>,
    /// The incarnation it was told.
    incarnation: u64,
    /// Our end of its queue pair, by number, and the pair's window.
    pair: Option<(u32, Window)>,
}

/// Answers a peer until one side ends it.
pub(super) fn converse(plane: &Plane, stream: Patient, from: IpAddr) {
    let incarnation = plane.target.incarnation();
    let mut peer = Peer { plane, from, name: None, incarnation, pair: None };
    let mut channel = Channel::new(stream);
    match peer.serve(&mut channel) {
        Ok(()) | Err(FrameError::Closed) => {}
        Err(error) => tracing::warn!(%from, peer = ?peer.name, %error, "control connection ended"),
    }
}

impl Peer<'_> {
    fn serve(&mut self, channel: &mut Channel<Patient>) -> Result<(), FrameError> {
        let accepted = Instant::now();
        loop {
            while !channel.stream().begins(NOTICE)? {
                let rude = self.name.is_none() && accepted.elapsed() > GREETING_PATIENCE;
                if rude || self.plane.is_stopping() || self.is_stale() {
                    return Ok(());
                }
            }
            let request = channel.receive()?;
            if self.is_stale() {
                return Ok(()); // the peer dials anew and is told the new incarnation
            }
            let reply = self.answer(request);
            channel.stream().allow_message();
            channel.send(&reply)?;
            if self.name.is_none() {
                return Ok(()); // it did not greet as it should
            }
        }
    }

    /// Whether the keys this peer knows are of another machine.
    fn is_stale(&self) -> bool {
        self.incarnation != self.plane.target.incarnation()
    }

    fn answer(&mut self, request: Request) -> Reply {
        let outcome = match request {
            Request::Hello(hello) => {
                // One of another version is told ours, so that it can say so, and then nothing more: it has no name.
                if hello.version == VERSION {
                    self.name = Some(hello.name.chars().take(64).collect());
                } else {
                    tracing::warn!(from = %self.from, theirs = hello.version, ours = VERSION, "another version");
                }
                Ok(Reply::Welcome {
                    version: VERSION,
                    target: self.plane.target.name().to_owned(),
                    incarnation: self.incarnation,
                    fenced: self.plane.target.is_fenced(),
                })
            }
            _ if self.name.is_none() => Err("say hello first".to_owned()),
            Request::Connect(theirs) => self.connect(theirs),
            request => self.command(request),
        };
        outcome.unwrap_or_else(|why| {
            tracing::info!(from = %self.from, peer = ?self.name, why, "refused");
            Reply::Refused { why }
        })
    }

    /// What concerns the target.
    fn command(&self, request: Request) -> Result<Reply, String> {
        let target = &self.plane.target;
        let said = |error: crate::target::TargetError| error.to_string();
        match request {
            Request::Regions { token } => {
                let (epoch, regions) = target.regions(token.as_ref()).map_err(said)?;
                Ok(Reply::Regions { epoch, regions })
            }
            Request::Fence { reason, claim } => {
                let (token, took) = target.fence(claim).map_err(said)?;
                let reason: String = reason.chars().take(200).collect();
                let epoch = token.epoch;
                tracing::warn!(from = %self.from, peer = ?self.name, reason, ?took, epoch, "target fenced");
                Ok(Reply::Fenced { token, took_us: took.as_micros() as u64 })
            }
            Request::Lock { reason, claim, lease_ms } => {
                let (token, took) = target.lock(claim, lease_ms).map_err(said)?;
                let reason: String = reason.chars().take(200).collect();
                self.plane.note_lock(self.name.as_deref().unwrap_or_default(), &reason);
                tracing::warn!(from = %self.from, peer = ?self.name, reason, ?took, lease_ms, "target locked");
                Ok(Reply::Locked { token, took_us: took.as_micros() as u64 })
            }
            Request::Unlock { token } => {
                target.unlock(&token).map_err(said)?;
                tracing::info!(from = %self.from, peer = ?self.name, "target unlocked");
                Ok(Reply::Unlocked)
            }
            Request::LockHolder => Ok(Reply::LockHolder { holder: self.plane.lock_holder() }),
            Request::Release { token, then } => {
                target.release(&token, then).map_err(said)?;
                tracing::warn!(from = %self.from, peer = ?self.name, ?then, epoch = token.epoch, "target released");
                Ok(Reply::Released)
            }
            Request::Reset { token } => {
                target.reset(&token).map_err(said)?;
                tracing::warn!(from = %self.from, peer = ?self.name, epoch = token.epoch, "reset behind its fence");
                Ok(Reply::Reset)
            }
            Request::Standing { token } => Ok(Reply::Standing { state: target.fence_state(&token) }),
            Request::Stats => Ok(Reply::Stats(self.plane.stats())),
            Request::Hello(_) | Request::Connect(_) => unreachable!("answered by the caller"),
        }
    }

    fn disconnect(&mut self) {
        if let Some((ours, window)) = self.pair.take() {
            self.plane.pairs.remove(ours);
            self.plane.target.memory().close_window(&window);
        }
    }

    fn connect(&mut self, theirs: QueuePair) -> Result<Reply, String> {
        check(&theirs)?;
        self.disconnect();
        let QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight } = theirs;
        let remote = QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight };
        let ours = self.plane.pairs.add(remote).map_err(|error| error.to_string())?;
        let window = self.plane.target.memory().open_window(&mut rand::rng());
        self.pair = Some((ours.number, window));
        let QpAttributes { number, first_psn, address, port, path_mtu, reads_in_flight } = ours;
        let pair = QueuePair { number, first_psn, address, port, path_mtu, reads_in_flight };
        let Window { list, data, pieces_max } = window;
        Ok(Reply::Connected { pair, window: Some(MemoryWindow { list: list.raw(), data: data.raw(), pieces_max }) })
    }
}

/// Answers go to one machine that asked for them, nowhere else.
fn check(pair: &QueuePair) -> Result<(), String> {
    if pair.address.is_unspecified() || pair.address.is_multicast() || pair.address.is_broadcast() || pair.port == 0 {
        return Err(format!("{}:{} is no address to answer to", pair.address, pair.port));
    }
    Ok(())
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        self.disconnect();
    }
}
