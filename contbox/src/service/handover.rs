//! Where a session that is handed over goes: slots, records and orders for its connection and each end of its channels.
//!
//! ```text
//!   the application that serves the port   End(near) … Resume       answered once, for all of them
//!   the application with the role          End(far)                 answered by itself
//! ```
//! A session is taken when all of its orders are. If one is not, the others are undone: its socket goes back to the
//! caller, who resets it, and the sockets of its channels are shut, so that whoever has an end reads its end.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::message::{Resume, ResumeEnd, ToApp};
use super::server::State;
use crate::channel::{FoundChannel, LaidChannel};
use crate::continuation::{ContinuationBox, Opening};

/// A session to hand to the application that serves its port.
#[derive(Debug)]
pub struct Handover {
    /// What the box gets: addresses, the *new* socket's bases, snapshot and logged input. The owner is filled in.
    pub opening: Opening,
    /// Bytes of regenerated output to swallow.
    pub discard: u64,
    /// The live socket.
    pub socket: OwnedFd,
    /// Channels to other processes of the session.
    pub channels: Vec<FoundChannel>,
}

/// A session that nobody took; the socket comes back for the caller to abort.
#[derive(Debug)]
pub struct Declined {
    /// For people.
    pub why: String,
    /// The socket of the handover.
    pub socket: OwnedFd,
}

/// A session handed over whose applications have not been heard yet.
#[derive(Debug)]
pub struct Ordered {
    pub(super) socket: OwnedFd,
    /// The orders, or the reason why there are none.
    pub(super) placing: Result<Vec<Order>, String>,
}

/// One message to one application.
#[derive(Debug)]
pub(super) struct Order {
    /// The application.
    pub(super) owner: u32,
    pub(super) message: ToApp,
    /// The end's socket; `None` for the connection's, which the session has.
    end: Option<OwnedFd>,
}

impl Order {
    /// The number that is answered; `None` if the session's answer is this one's, too.
    pub(super) fn number(&self) -> Option<u64> {
        match &self.message {
            ToApp::Resume(order) => Some(order.order),
            ToApp::End(end) if end.role != 0 => Some(end.order),
            _ => None,
        }
    }

    pub(super) fn fd<'a>(&'a self, connection: &'a OwnedFd) -> BorrowedFd<'a> {
        self.end.as_ref().map_or(connection.as_fd(), AsFd::as_fd)
    }

    /// Ends the channel for both who have it.
    pub(super) fn sever(self) {
        if let Some(end) = self.end {
            // One that both have closed is severed.
            let _ = UnixStream::from(end).shutdown(Shutdown::Both);
        }
    }
}

/// A session whose channels are laid, as far as they could be.
pub(super) struct Laid {
    opening: Opening,
    discard: u64,
    socket: OwnedFd,
    channels: Result<Vec<LaidChannel>, String>,
}

impl Laid {
    /// Lays the channels of a session; system calls, so not to be done under a lock.
    pub(super) fn of(handover: Handover, log_bytes: u32) -> Self {
        let Handover { opening, discard, socket, channels } = handover;
        let lay = |channel: FoundChannel| channel.lay(log_bytes).map_err(|why| format!("laying a channel: {why}"));
        Self { opening, discard, socket, channels: channels.into_iter().map(lay).collect() }
    }
}

impl State {
    /// Puts a session into slots of the applications that serve it.
    pub(super) fn place(&mut self, laid: Laid) -> Ordered {
        let Laid { mut opening, discard, socket, channels } = laid;
        let mut granted = Vec::new();
        let placing = channels.and_then(|channels| self.place_all(&mut opening, discard, channels, &mut granted));
        match &placing {
            Ok(orders) => {
                let numbers = orders.iter().filter_map(|order| Some((order.number()?, order.owner)));
                self.open_orders.extend(numbers);
            }
            Err(_) => granted.into_iter().for_each(|(owner, slot)| self.leases.release(owner, &[slot])),
        }
        Ordered { socket, placing }
    }

    fn place_all(
        &mut self,
        opening: &mut Opening,
        discard: u64,
        channels: Vec<LaidChannel>,
        granted: &mut Vec<(u32, u32)>,
    ) -> Result<Vec<Order>, String> {
        let (port, peer) = (opening.local.port(), opening.peer);
        let owner = self.serving(port, !channels.is_empty())?;
        let slot = self.grant_one(owner, granted)?;
        opening.owner = owner;
        let place = self.leases.pool().slot(slot).expect("granted slots exist");
        let place = ContinuationBox::create(place, opening).map_err(|why| why.to_string())?.place();
        let number = self.next_order();
        let mut orders = Vec::with_capacity(1 + 2 * channels.len());
        for channel in channels {
            let (near, far) = (&channel.found.near.identity, &channel.found.far.identity);
            let worker = self.in_role(far.role)?;
            let slots = [self.grant_one(owner, granted)?, self.grant_one(worker, granted)?];
            let [near_slot, far_slot] = slots.map(|slot| self.leases.pool().slot(slot).expect("granted slots exist"));
            channel.record_near(&near_slot, owner, place).map_err(|why| why.to_string())?;
            channel.record_far(&far_slot, worker).map_err(|why| why.to_string())?;
            let end = |order, role, slot, channel, discard| {
                ToApp::End(ResumeEnd { order, role, slot, channel, discard, peer })
            };
            // What a reader has seen already, its writer produces for nobody.
            let message = end(number, 0, slots[0], near.name, channel.found.to_far.discard_from_writer);
            let (far_number, name) = (self.next_order(), far.name);
            let far_message = end(far_number, far.role, slots[1], name, channel.found.to_near.discard_from_writer);
            orders.push(Order { owner, message, end: Some(channel.near) });
            orders.push(Order { owner: worker, message: far_message, end: Some(channel.far) });
        }
        let (local, received) = (opening.local, opening.snapshot.lsr + opening.logged.len() as u64);
        let channels = orders.len() as u32 / 2;
        let message = ToApp::Resume(Resume { order: number, slot, local, peer, received, discard, channels });
        orders.push(Order { owner, message, end: None });
        Ok(orders)
    }

    fn serving(&self, port: u16, with_channels: bool) -> Result<u32, String> {
        let mut serving = self.apps.values().filter(|connected| connected.app.ports.contains(&port)).peekable();
        serving.peek().ok_or_else(|| format!("no application here serves port {port}"))?;
        let able = serving.find(|connected| connected.channels || !with_channels);
        let able = able.ok_or_else(|| format!("who serves port {port} here takes no sessions with channels"))?;
        Ok(able.app.owner)
    }

    fn in_role(&self, role: u32) -> Result<u32, String> {
        let found = self.apps.values().find(|connected| role != 0 && connected.roles.contains(&role));
        let found = found.ok_or_else(|| format!("no application here has the role {role:#x} of a worker"))?;
        Ok(found.app.owner)
    }

    fn grant_one(&mut self, owner: u32, granted: &mut Vec<(u32, u32)>) -> Result<u32, String> {
        let slot = *self.leases.grant(owner, 1).first().ok_or("no free box left in the pool")?;
        granted.push((owner, slot));
        Ok(slot)
    }

    fn next_order(&mut self) -> u64 {
        self.last_order += 1;
        self.last_order
    }
}
