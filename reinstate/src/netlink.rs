//! Netlink, as much of it as moving an address needs: build a message, send it, wait for the verdict.
//!
//! Synchronous and without a runtime: in an evacuation one message costs one system call each way, some 20 us. Layouts
//! are the kernel's (`include/uapi/linux/{netlink,rtnetlink}.h`), native-endian. What the kernel sends is believed only
//! as far as its lengths go.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType},
    time::TimeVal,
};

/// Bytes of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;
/// The kernel's largest dump message is 32 KiB.
const RECEIVE_LEN: usize = 64 * 1024;
/// Nothing here takes the kernel longer; a silent socket is an error, not a hang.
const PATIENCE_S: i64 = 2;

const KIND_ERROR: u16 = libc::NLMSG_ERROR as u16;
const KIND_DONE: u16 = libc::NLMSG_DONE as u16;

/// A message under construction: header, fixed part, attributes.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of `kind` whose fixed part is `body`. `flags` are added to `NLM_F_REQUEST`.
    pub fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    /// Appends an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The bytes of one attribute, for nesting.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes after a fixed part, as (kind, value). Ends at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & libc::NLA_TYPE_MASK as u16, value))
    })
}

/// A message from the kernel: kind and everything after the header.
#[derive(Clone, Debug)]
pub struct Answer {
    /// `RTM_…`.
    pub kind: u16,
    /// Fixed part and attributes.
    pub body: Vec<u8>,
}

/// A conversation with the kernel of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        Self::open_protocol(SockProtocol::NetlinkRoute)
    }

    /// The same for socket diagnostics.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_diagnostics() -> io::Result<Self> {
        Self::open_protocol(SockProtocol::NetlinkSockDiag)
    }

    fn open_protocol(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        socket::setsockopt(&socket, socket::sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        socket::send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Sends a message and waits for the verdict.
    ///
    /// # Errors
    /// The kernel's.
    pub fn request(&mut self, mut message: Message) -> io::Result<()> {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | libc::NLM_F_ACK as u16;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.exchange(message).map(drop)
    }

    /// Sends a question and collects what comes back, until the kernel says that was all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn exchange(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]);
        let single = flags & (libc::NLM_F_DUMP | libc::NLM_F_ACK) as u16 == 0;
        self.send(message)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; RECEIVE_LEN];
        loop {
            let len = socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..len];
            while let Some((sequence, answer, next)) = split_answer(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue; // left over from an exchange that failed half-way
                }
                match answer.kind {
                    KIND_ERROR => return verdict(&answer.body).map(|()| answers),
                    KIND_DONE => return Ok(answers),
                    _ => answers.push(answer),
                }
                if single {
                    return Ok(answers);
                }
            }
        }
    }
}

fn split_answer(bytes: &[u8]) -> Option<(u32, Answer, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().map(u32::from_ne_bytes).ok();
    let len = word(0)? as usize;
    let body = bytes.get(HEADER_LEN..len)?.to_vec();
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((word(8)?, Answer { kind, body }, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn verdict(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_went_in() {
        let message = Message::new(1, 0, &[9; 4]).with(3, &[1, 2, 3]).with(5, &[]).with(7, &[4; 8]);
        let bytes = message.finish(1);
        let found: Vec<_> = attributes(&bytes[HEADER_LEN + 4..]).collect();
        assert_eq!(found, [(3, &[1, 2, 3][..]), (5, &[][..]), (7, &[4; 8][..])]);
    }

    #[test]
    fn mad_lengths_end_the_walk() {
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[0xff, 0xff, 1, 0, 0, 0]).count(), 0);
        assert!(split_answer(&[0; 16]).is_none());
        assert!(split_answer(&[0xff; 16]).is_none());
    }

    #[test]
    fn the_kernel_lists_the_loopback_interface() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.exchange(Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16])).unwrap();
        let named = |name: &[u8]| {
            links.iter().any(|link| attributes(&link.body[16..]).any(|found| found == (libc::IFLA_IFNAME, name)))
        };
        assert!(named(b"lo\0"));
        let missing = Message::new(libc::RTM_DELLINK, 0, &[0; 16]);
        assert!(netlink.request(missing).is_err());
    }
}
