//! The receive queue of a Unix stream socket.
//!
//! ```text
//!   unix_stream_sendmsg         fills a buffer, then puts it at the end of the peer's queue
//!   unix_stream_read_generic    copies out, then UNIXCB(skb).consumed += copied, then unlinks what is used up
//! ```
//! Source: net/unix/af_unix.c of Linux 6.1 and 6.12. One store makes a read count, so at any stop each byte is in the
//! queue or its reader has it, or both.

use remote_memory::{KernelVirt, LinkError};

use super::{ChannelLayout, Kind, Opened, S_IFSOCK, Waiting, afford, of_kind};
use crate::btf::layout;
use crate::linux::tcp::{Runs, Skb, Slice, payload, receive_queues};
use crate::linux::walk::Walk;

/// `AF_UNIX` and `SOCK_STREAM`: numbers of the kernel's interface.
const AF_UNIX: u64 = 1;
const SOCK_STREAM: u64 = 1;

layout! {
    /// From a file to the socket's queue.
    pub(crate) struct SocketLayout {
        file: "socket.file",
        sock: "socket.sk",
        family: "sock_common.skc_family",
        kind: "sock.sk_type",
        socket: "sock.sk_socket",
        consumed: "unix_skb_parms.consumed",
    }
}

/// A Unix stream socket: its number among those asked for, and what is known of it.
struct Stream {
    number: usize,
    sock: u64,
    inode: u64,
}

/// Reads the Unix stream sockets among `opened`: as many rounds as half the longest queue has buffers, and five.
pub(super) fn read(
    walk: &mut Walk<'_>,
    layout: &ChannelLayout,
    opened: &[Option<Opened>],
    budget: &mut u64,
) -> Result<Vec<Option<Waiting>>, LinkError> {
    let mut found: Vec<Option<Waiting>> = vec![None; opened.len()];
    let streams = streams(walk, layout, &of_kind(opened, S_IFSOCK))?;
    let socks: Vec<u64> = streams.iter().map(|stream| stream.sock).collect();
    let queues = receive_queues(walk.kernel, &mut walk.memory, &socks)?;
    let mut queued: Vec<(usize, Skb)> = Vec::new();
    for (stream, queue) in streams.iter().zip(queues) {
        let complete = queue.damage.is_empty();
        walk.damage.extend(queue.damage);
        let (address, kind) = (KernelVirt::new(stream.sock), Kind::UnixStream);
        let waiting = Waiting { address, kind, inode: stream.inode, chunks: Vec::new(), complete };
        found[stream.number] = Some(waiting);
        queued.extend(queue.receive.into_iter().map(|skb| (stream.number, skb)));
    }
    chunks(walk, layout, &queued, budget, &mut found)?;
    Ok(found)
}

/// Those of the sockets that are Unix streams and point back to where they were found.
fn streams(walk: &mut Walk<'_>, layout: &ChannelLayout, sockets: &[(usize, Opened)]) -> Result<Vec<Stream>, LinkError> {
    let layout = &layout.socket;
    let fields = [layout.file, layout.sock];
    let bases: Vec<_> = sockets.iter().map(|(_, it)| Some(it.private)).collect();
    let known = walk.taken_from(&bases, &fields, "socket", |copy| fields.map(|field| field.of(copy)))?;
    let socks: Vec<_> = bases.iter().map(|base| Some(known.get(&(*base)?)?[1])).collect();
    let fields = [layout.family, layout.kind, layout.socket];
    let described = walk.taken_from(&socks, &fields, "sock", |copy| fields.map(|field| field.of(copy)))?;
    let mut streams: Vec<Stream> = Vec::new();
    for ((number, it), sock) in sockets.iter().zip(socks) {
        let (Some([file, _]), Some(sock)) = (known.get(&it.private).copied(), sock) else { continue };
        let Some([family, kind, socket]) = described.get(&sock).copied() else { continue };
        if file != it.address {
            walk.contradiction(it.private, "socket.file", it.address, file);
        } else if socket != it.private {
            walk.contradiction(sock, "sock.sk_socket", it.private, socket);
        } else if (family, kind) == (AF_UNIX, SOCK_STREAM) {
            streams.push(Stream { number: *number, sock, inode: it.inode });
        }
    }
    Ok(streams)
}

/// Reads the part of each buffer that is not consumed; `queued` has the number of its socket beside each.
fn chunks(
    walk: &mut Walk<'_>,
    layout: &ChannelLayout,
    queued: &[(usize, Skb)],
    budget: &mut u64,
    found: &mut [Option<Waiting>],
) -> Result<(), LinkError> {
    let skbs: Vec<Skb> = queued.iter().map(|(_, skb)| *skb).collect();
    let cb = walk.kernel.tcp.skb.cb;
    let consumed = layout.socket.consumed;
    let bases: Vec<_> = skbs.iter().map(|skb| Some(skb.address)).collect();
    let counts = walk.taken_from(&bases, &[cb], "sk_buff.cb", |copy| consumed.of(cb.bytes_of(copy)))?;
    let located = payload::locate(walk.kernel, &mut walk.memory, &skbs)?;
    let mut wanted: Vec<(usize, &Runs, u32, Vec<u8>)> = Vec::new();
    for ((number, skb), runs) in queued.iter().zip(&located) {
        let Some(waiting) = found[*number].as_mut() else { continue };
        let consumed = counts.get(&skb.address).copied().unwrap_or(0);
        let left = u64::from(skb.len).checked_sub(consumed);
        if left.is_none() {
            walk.contradiction(skb.address, "unix_skb_parms.consumed", skb.len.into(), consumed);
        }
        walk.damage.extend(&runs.damage);
        let left = left.filter(|_| counts.contains_key(&skb.address) && runs.damage.is_empty());
        match left.filter(|left| afford(walk, budget, skb.address, "sk_buff.len", *left)) {
            // Used up, and not unlinked yet.
            Some(0) => {}
            Some(left) => wanted.push((*number, runs, consumed as u32, vec![0; left as usize])),
            None => waiting.complete = false,
        }
    }
    let mut slices = Vec::with_capacity(wanted.len());
    for (_, runs, skip, into) in &mut wanted {
        slices.push(Slice { runs, skip: *skip, into });
    }
    let failed = payload::fetch(walk.kernel, &mut walk.memory, slices)?;
    for (index, (number, .., bytes)) in wanted.into_iter().enumerate() {
        let Some(waiting) = found[number].as_mut() else { continue };
        if failed.binary_search(&index).is_ok() {
            waiting.complete = false;
        } else {
            waiting.chunks.push(bytes);
        }
    }
    Ok(())
}
