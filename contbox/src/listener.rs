//! Accepts connections with boxes: new ones from a TCP listener, and sessions that a spare has reinstated.
//!
//! A connection waits for the box service only where it has been asked for more slots and is about to answer. Without one
//! (or without a free slot) it is accepted unprotected and that is logged; sessions handed over are answered the moment they are accepted.
//!
//! The listening socket gets TCP_SAVE_SYN: some hundred bytes of kernel memory per connection.

use crate::continuation::{ContinuationBox, Opening};
use crate::layout::canonical;
use crate::reader::Snapshot;
use crate::service::{BoxClient, Handed};
use crate::shared::{Slot, keep_syn};
use crate::stream::{Position, RecoverableStream};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;

/// A connection to serve.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: RecoverableStream,
    /// Its client.
    pub peer: SocketAddr,
    /// The snapshot to go on from, if the session began on another machine.
    pub resumed: Option<Snapshot>,
}

/// A TCP listener whose connections have boxes.
#[derive(Debug)]
pub struct RecoverableListener {
    listener: TcpListener,
    service: Option<Service>,
}

#[derive(Debug)]
struct Service {
    client: Arc<BoxClient>,
    handed: UnboundedReceiver<Handed>,
    /// Accepted by the kernel, without a box yet; kept here so that a caller who gives up waiting loses nobody.
    newcomer: Option<(TcpStream, SocketAddr)>,
}

impl RecoverableListener {
    /// A listener whose connections are unprotected.
    pub fn unprotected(listener: TcpListener) -> Self {
        Self::with(listener, None)
    }

    /// A listener with what [`BoxClient::connect`] returned.
    pub fn new(listener: TcpListener, client: Arc<BoxClient>, handed: UnboundedReceiver<Handed>) -> Self {
        Self::with(listener, Some(Service { client, handed, newcomer: None }))
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
            return Ok(Accepted { stream: RecoverableStream::unprotected(socket), peer, resumed: None });
        };
        loop {
            if service.newcomer.is_some() {
                let lease = service.client.lease_soon().await;
                if let Some((socket, peer)) = service.newcomer.take() {
                    return Ok(protect(socket, peer, &service.client, lease));
                }
            }
            // Handed sessions first: their clients have waited for longer.
            tokio::select! {
                biased;
                Some(handed) = service.handed.recv() => {
                    let (order, slot) = (handed.order.order, handed.slot.clone());
                    match take_over(handed, &service.client) {
                        Ok(accepted) => {
                            service.client.resumed(order);
                            return Ok(accepted);
                        }
                        Err(why) => {
                            tracing::warn!(order, why, "a session handed over cannot be resumed");
                            service.client.give_back(&slot);
                            service.client.declined(order, &why);
                        }
                    }
                }
                accepted = self.listener.accept() => service.newcomer = Some(accepted?),
            }
        }
    }
}

/// Gives a new connection a box, if there is one.
fn protect(socket: TcpStream, peer: SocketAddr, client: &Arc<BoxClient>, lease: Option<(Slot, u32)>) -> Accepted {
    let Some((continuation, slot)) = socket.local_addr().ok().zip(lease).map(|(local, (slot, owner))| {
        let opening = Opening::fresh(owner, canonical(local), canonical(peer));
        (ContinuationBox::create(slot.clone(), &opening), slot)
    }) else {
        tracing::debug!(%peer, "no box: the connection is unprotected");
        return Accepted { stream: RecoverableStream::unprotected(socket), peer, resumed: None };
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
    Accepted { stream, peer, resumed: None }
}

/// Makes a stream of a reinstated socket and the box that came with it.
fn take_over(handed: Handed, client: &Arc<BoxClient>) -> Result<Accepted, String> {
    let Handed { order, slot, socket } = handed;
    let imported = ContinuationBox::import_state(slot, order.received);
    let (continuation, snapshot) = imported.map_err(|why| why.to_string())?;
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true).map_err(|why| why.to_string())?;
    // Until here it lingered for no time, so that a spare which dies with it in its hands resets the client.
    let patient = nix::libc::linger { l_onoff: 0, l_linger: 0 };
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &patient)
        .map_err(|why| why.to_string())?;
    let socket = TcpStream::from_std(socket).map_err(|why| why.to_string())?;
    let position = Position { read: snapshot.lsr, written: snapshot.lsw, discard: order.discard };
    let stream = RecoverableStream::protected(socket, continuation, position, Some(Arc::clone(client)));
    Ok(Accepted { stream, peer: order.peer, resumed: Some(snapshot) })
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
