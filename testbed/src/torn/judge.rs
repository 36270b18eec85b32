//! What the walk of a stopped guest's memory says, against what its clients know.

use introspect::linux::tcp::TcpSocket;
use reinstate::{packet::Heard, position, session};
use serde::Serialize;

use super::clients::{Client, Position};

/// What one look at one connection showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The kernel had not counted as sent what the client has already: the state behind a mute connection.
    pub snd_nxt_behind_client: bool,
    /// The counts of what was received did not fit each other, and the client's SYN settled them.
    pub recounted: bool,
    /// The kernel held the socket.
    pub lock_held: bool,
    /// The walk reported something, and had the queues all the same.
    pub reported: bool,
}

/// Judges the socket of `client`.
///
/// # Errors
/// What would make the session go on wrongly, or be lost.
pub fn judge(socket: &TcpSocket, client: &Client, position: Position) -> Result<Seen, String> {
    if !socket.usable() {
        return Err(not_whole(socket));
    }
    session::rebuildable(socket).map_err(|loss| format!("not rebuildable: {loss}"))?;
    session::counted(socket).map_err(|loss| format!("not resumable: {loss}"))?;
    let queued: Vec<u8> = socket.send_queue.iter().flat_map(|segment| segment.bytes.iter().copied()).collect();
    let written = socket.written_offset();
    let una = written.checked_sub(queued.len() as u64).ok_or("more queued than written")?;
    check("send queue", una, &queued, |offset, into| client.heard_at(offset, into))?;
    let read = socket.read_offset();
    check("receive queue", read, &socket.receive_queue, |offset, into| client.sent_at(offset, into))?;
    let known = read + socket.receive_queue.len() as u64;
    if position.acknowledged > known {
        return Err(format!("{} bytes of the client were acknowledged, {known} found", position.acknowledged));
    }
    if position.received < una {
        return Err(format!("the client has {} bytes, the kernel says {una} were acknowledged", position.received));
    }
    let ahead = u32::try_from(position.received - una).map_err(|_| "the client is far ahead")?;
    let snapshot = session::snapshot(socket.clone(), std::time::Duration::ZERO);
    let heard = Heard {
        source: socket.peer,
        destination: socket.local,
        seq: socket.rcv_nxt,
        ack: socket.snd_una.wrapping_add(ahead),
        flags: reinstate::packet::ACK,
        window: 1000,
        carries_data: false,
    };
    let start = position::answered(&snapshot, &heard).map_err(|refused| format!("the client's answer: {refused}"))?;
    let rest = snapshot.sending_from(start.seq).ok_or("the client's position is not in the queue")?;
    if rest.len() as u64 != written - position.received {
        return Err(format!("{} bytes left to send, {} missing", rest.len(), written - position.received));
    }
    Ok(Seen {
        snd_nxt_behind_client: ahead > socket.snd_nxt.wrapping_sub(socket.snd_una),
        recounted: socket.damage.iter().any(|damage| damage.part.starts_with("bytes_received")),
        lock_held: socket.lock_held,
        reported: !socket.damage.is_empty(),
    })
}

/// What a spare reports as lost, because the stop tore it: one kind of mistake for all connections.
pub fn not_whole(socket: &TcpSocket) -> String {
    let damage: Vec<_> = socket.damage.iter().map(ToString::to_string).collect();
    format!("queues not whole: {}", damage.join("; "))
}

fn check(part: &str, offset: u64, found: &[u8], truth: impl Fn(u64, &mut [u8])) -> Result<(), String> {
    let mut expected = vec![0; found.len()];
    truth(offset, &mut expected);
    match found.iter().zip(&expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(format!("{part}: byte {} of the stream is wrong", offset + at as u64)),
    }
}
