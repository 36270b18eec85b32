//! Accepts connections with boxes: new ones from a TCP listener, and sessions that a spare has reinstated.
//!
//! A connection waits for the box service only while the answer that brings more boxes is due. Without a service (or
//! without a free slot) it is accepted unprotected and that is logged. Sessions handed over are taken and answered
//! together, as many as are waiting, up to some dozens: a spare has hundreds at once, and all their clients wait for
//! the last; but the first are not to wait for the last of thousands.
//!
//! The listening socket gets TCP_SAVE_SYN: some hundred bytes of kernel memory per connection.

use crate::channel::{ChannelEnd, Descriptors};
use crate::continuation::{ContinuationBox, Opening};
use crate::layout::canonical;
use crate::reader::Snapshot;
use crate::service::{BoxClient, Handed};
use crate::shared::{Slot, keep_syn};
use crate::stream::{Position, RecoverableStream};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;

/// Sessions taken at once.
const TAKEN_MAX: usize = 64;

/// A connection to serve.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: RecoverableStream,
    /// Its client.
    pub peer: SocketAddr,
    /// The snapshot to go on from, if the session began on another machine.
    pub resumed: Option<Snapshot>,
    /// The near ends of the session's channels, if it was resumed and has any: the snapshot names them in this order
    /// ([`joint`](crate::channel::joint)). Whoever gets them serves both, or drops all.
    pub channels: Vec<ChannelEnd<Descriptors>>,
}

impl Accepted {
    /// A connection that begins here.
    fn fresh(stream: RecoverableStream, peer: SocketAddr) -> Self {
        Self { stream, peer, resumed: None, channels: Vec::new() }
    }
}

/// What a receive buffer is set to where input is mirrored; the kernel makes it 64 KiB.
const RECEIVE_BYTES: usize = 32 << 10;

/// A TCP listener whose connections have boxes.
#[derive(Debug)]
pub struct RecoverableListener {
    listener: TcpListener,
    service: Option<Service>,
}

#[derive(Debug)]
struct Service {
    client: Arc<BoxClient>,
    /// Whether the listener was told how much its connections may queue.
    bounded: bool,
    handed: UnboundedReceiver<Handed>,
    /// Sessions handed over, taken and not yet given out.
    taken: VecDeque<Accepted>,
}

impl RecoverableListener {
    /// A listener whose connections are unprotected.
    pub fn unprotected(listener: TcpListener) -> Self {
        Self::with(listener, None)
    }

    /// A listener with what [`BoxClient::connect`] returned.
    pub fn new(listener: TcpListener, client: Arc<BoxClient>, handed: UnboundedReceiver<Handed>) -> Self {
        Self::with(listener, Some(Service { client, bounded: false, handed, taken: VecDeque::new() }))
    }

    fn with(listener: TcpListener, service: Option<Service>) -> Self {
        if let Err(why) = keep_syn(listener.as_fd()) {
            tracing::warn!(%why, "no SYN is kept: an upload is lost if the machine stops while it counts a segment");
        }
        Self { listener, service }
    }

    /// Waits for the next connection, new or handed over.
    ///
    /// # Errors
    /// Those of `accept`; the listener stays usable.
    pub async fn accept(&mut self) -> io::Result<Accepted> {
        let Some(service) = &mut self.service else {
            let (socket, peer) = self.listener.accept().await?;
            return Ok(Accepted::fresh(RecoverableStream::unprotected(socket), peer));
        };
        loop {
            if let Some(accepted) = service.taken.pop_front() {
                end_properly(&accepted);
                return Ok(accepted);
            }
            if let Some(geometry) = service.client.geometry().filter(|_| !service.bounded) {
                bound(&self.listener, geometry.send_bytes);
                service.bounded = true;
            }
            // Handed sessions first: their clients have waited for longer.
            tokio::select! {
                biased;
                Some(handed) = service.handed.recv() => service.take(handed),
                accepted = accept_with_stock(&self.listener, &service.client) => {
                    let (socket, peer) = accepted?;
                    return Ok(protect(socket, peer, &service.client));
                }
            }
        }
    }
}

impl Service {
    /// Takes `first` and all that wait behind it.
    fn take(&mut self, first: Handed) {
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(handed) = next {
            let order = handed.order.order;
            let slots: Vec<Slot> =
                std::iter::once(&handed.slot).chain(handed.ends.iter().map(|end| &end.slot)).cloned().collect();
            let taken = take_over(handed, &self.client);
            if let Err(why) = &taken {
                tracing::warn!(order, why, "a session handed over cannot be resumed");
                slots.iter().for_each(|slot| self.client.refuse(slot));
            }
            answers.push((order, taken.as_ref().map(drop).map_err(Clone::clone)));
            self.taken.extend(taken);
            next = if answers.len() < TAKEN_MAX { self.handed.try_recv().ok() } else { None };
        }
        self.client.answer(&answers);
    }
}

/// Leaves connections in the kernel's queue while more boxes are on their way: a burst of clients is not to go
/// unprotected because the stock was for fewer.
async fn accept_with_stock(listener: &TcpListener, client: &BoxClient) -> io::Result<(TcpStream, SocketAddr)> {
    client.stocked().await;
    listener.accept().await
}

/// Gives a new connection a box, if there is one.
fn protect(socket: TcpStream, peer: SocketAddr, client: &Arc<BoxClient>) -> Accepted {
    let Some((continuation, slot)) = socket.local_addr().ok().zip(client.lease()).map(|(local, (slot, owner))| {
        let opening = Opening::fresh(owner, canonical(local), canonical(peer));
        (ContinuationBox::create(slot.clone(), &opening), slot)
    }) else {
        tracing::debug!(%peer, "no box: the connection is unprotected");
        return Accepted::fresh(RecoverableStream::unprotected(socket), peer);
    };
    let stream = match continuation {
        Ok(continuation) => {
            RecoverableStream::protected(socket, continuation, Position::default(), Some(Arc::clone(client)))
        }
        Err(why) => {
            tracing::warn!(%peer, %why, "no box: the connection is unprotected");
            client.give_back(&slot);
            RecoverableStream::unprotected(socket)
        }
    };
    Accepted::fresh(stream, peer)
}

/// Has the kernel queue no more for each connection that `listener` accepts than is kept outside of its queues: output
/// in a send log of `send_bytes`, input in the ring of the target's table of connections. Half of what it is told is
/// for overhead; a socket may exceed it by a buffer. Without send logs nothing is kept, and nothing bounded.
fn bound(listener: &TcpListener, send_bytes: u32) {
    if send_bytes == 0 {
        return;
    }
    let sending = setsockopt(listener, sockopt::SndBuf, &(send_bytes as usize / 4));
    if let Err(why) = sending.and_then(|()| setsockopt(listener, sockopt::RcvBuf, &RECEIVE_BYTES)) {
        tracing::warn!(%why, "a connection may have more in the kernel's queues than a spare can find");
    }
}

/// Makes a stream of a reinstated socket and the box that came with it.
fn take_over(handed: Handed, client: &Arc<BoxClient>) -> Result<Accepted, String> {
    let Handed { order, slot, socket, ends } = handed;
    let channels = ends.into_iter().map(|end| end.take().map(|(end, _)| end)).collect::<Result<Vec<_>, _>>()?;
    let imported = ContinuationBox::import_state(slot, order.received);
    let (continuation, snapshot) = imported.map_err(|why| why.to_string())?;
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true).map_err(|why| why.to_string())?;
    let socket = TcpStream::from_std(socket).map_err(|why| why.to_string())?;
    let position = Position { read: snapshot.lsr, written: snapshot.lsw, discard: order.discard };
    let stream = RecoverableStream::protected(socket, continuation, position, Some(Arc::clone(client)));
    Ok(Accepted { stream, peer: order.peer, resumed: Some(snapshot), channels })
}

/// Until the application has it, a session's socket lingers for no time, so that whoever dies with it in his hands
/// resets the client. From here on its end is what the application makes of it.
fn end_properly(accepted: &Accepted) {
    let patient = nix::libc::linger { l_onoff: 0, l_linger: 0 };
    if let Err(why) = setsockopt(accepted.stream.socket(), sockopt::Linger, &patient) {
        tracing::warn!(peer = %accepted.peer, %why, "a resumed session will end in a reset");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::keeps_syn;

    #[tokio::test]
    async fn a_listener_has_the_kernel_keep_each_clients_syn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(!keeps_syn(listener.as_fd()));
        assert!(keeps_syn(RecoverableListener::unprotected(listener).listener.as_fd()));
    }
}
