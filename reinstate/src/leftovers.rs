//! Ends the connections of an address that is about to leave this machine.
//!
//! What is left behind would go on sending in the name of the service: over IPv6 the kernel does not look whether a
//! socket's address is still local (over IPv4 it does, and the socket goes mute). Two machines must never speak for one
//! address, so connections are aborted while the address is still here: each client gets a reset, each application an
//! error. Done by socket diagnostics (`include/uapi/linux/inet_diag.h`), as `ss --kill` does.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use crate::{
    netlink::{Message, Netlink, attributes},
    routes::octets,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `TCP_LISTEN`: listeners belong to the application, not to the address.
const LISTEN: u32 = 10;
/// `TCP_TIME_WAIT`: a memory of a connection, with nothing to lose.
const TIME_WAIT: u8 = 6;
/// `TCP_CLOSE`: it has ended, and its application still has the socket open. Newer kernels show these too.
const CLOSE: u8 = 7;
/// `struct inet_diag_sockid`: ports, two 16-byte addresses, interface, cookie.
const ID_LEN: usize = 48;
const ID_SOURCE: usize = 4;
/// `idiag_wqueue` of `struct inet_diag_msg`.
const WRITE_QUEUE: Range<usize> = 60..64;
/// `idiag_timer`: a segment is repeated until it is acknowledged.
const RETRANSMISSION: u8 = 1;
/// One loss is nothing unusual, and its repetition may be lost as well.
const MUTE_RETRANSMITS: u8 = 2;
/// `1 << (INET_DIAG_INFO - 1)`: with `struct tcp_info`, as this attribute.
const WITH_INFO: u8 = 2;
const INFO: u16 = 2;
/// `struct inet_diag_msg`, after which attributes follow.
const ANSWER_LEN: usize = 72;
/// `tcpi_bytes_acked` and `tcpi_bytes_received`; Linux 4.1.
const INFO_ACKNOWLEDGED: Range<usize> = 120..128;
const INFO_RECEIVED: Range<usize> = 128..136;
/// `tcpi_rto` in microseconds, `tcpi_last_ack_recv` in milliseconds, `tcpi_total_retrans`, `tcpi_segs_out` and
/// `tcpi_segs_in`.
const INFO_RTO: Range<usize> = 8..12;
const INFO_LAST_ACK: Range<usize> = 56..60;
const INFO_REPEATED: Range<usize> = 100..104;
const INFO_SAID: Range<usize> = 136..140;
const INFO_HEARD: Range<usize> = 140..144;
/// Where the id lies in `struct inet_diag_msg`.
const ID_IN_ANSWER: usize = 4;

fn request(family: i32, states: u32, id: &[u8]) -> Vec<u8> {
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, WITH_INFO, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    body
}

/// How a socket of `family` shows `address`, if it can.
fn shown(family: i32, address: IpAddr) -> Option<Vec<u8>> {
    match (family, address) {
        (libc::AF_INET, IpAddr::V4(_)) | (libc::AF_INET6, IpAddr::V6(_)) => Some(octets(address)),
        (libc::AF_INET6, IpAddr::V4(v4)) => Some(Ipv6Addr::octets(&v4.to_ipv6_mapped()).to_vec()),
        _ => None,
    }
}

/// One connection of an address, as socket diagnostics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Our end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// The kernel's number for its state.
    pub state: u8,
    /// Bytes that the client has not acknowledged.
    pub unacknowledged: u32,
    /// Bytes that the client has acknowledged here.
    pub acknowledged: u64,
    /// Bytes, and the FIN, that came here, or were put back by TCP_REPAIR.
    pub received: u64,
    /// What went by.
    pub traffic: Traffic,
    timer: u8,
    retransmits: u8,
    family: i32,
    id: Vec<u8>,
}

/// What went by on a connection, for whoever looks for the reason of a silence: a socket that hears segments and takes
/// no acknowledgement from them refuses them, one that hears none is not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Segments that were sent.
    pub said: u32,
    /// Of them, those that were sent before.
    pub repeated: u32,
    /// Segments that came, whatever became of them.
    pub heard: u32,
    /// Milliseconds since an acknowledgement came that was taken.
    pub last_ack_ms: u32,
    /// How long a repetition is waited for, in milliseconds.
    pub rto_ms: u32,
}

impl Connection {
    fn parse(body: &[u8], family: i32, local: &[u8]) -> Option<Self> {
        let id = body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID_LEN)?;
        (body[0] == family as u8 && id[ID_SOURCE..ID_SOURCE + local.len()] == *local).then_some(())?;
        let end = |port: usize, address: usize| {
            let octets = &id[address..address + 16];
            let address = match family {
                libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(&octets[..4]).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical(),
            };
            Some(SocketAddr::new(address, u16::from_be_bytes([id[port], id[port + 1]])))
        };
        let (local, peer) = (end(0, ID_SOURCE)?, end(2, ID_SOURCE + 16)?);
        // TIME_WAIT has none.
        let info = attributes(body.get(ANSWER_LEN..)?).find(|(kind, _)| *kind == INFO).map(|(_, info)| info);
        let count = |range: Range<usize>| Some(u64::from_ne_bytes(info?.get(range)?.try_into().ok()?));
        let acknowledged = count(INFO_ACKNOWLEDGED).unwrap_or(0);
        let received = count(INFO_RECEIVED).unwrap_or(0);
        let number = |range: Range<usize>| Some(u32::from_ne_bytes(info?.get(range)?.try_into().ok()?));
        let number = |range| number(range).unwrap_or(0);
        let traffic = Traffic {
            said: number(INFO_SAID),
            repeated: number(INFO_REPEATED),
            heard: number(INFO_HEARD),
            last_ack_ms: number(INFO_LAST_ACK),
            rto_ms: number(INFO_RTO) / 1000,
        };
        let unacknowledged = u32::from_ne_bytes(body.get(WRITE_QUEUE)?.try_into().ok()?);
        let (state, timer, retransmits) = (body[1], body[2], body[3]);
        let id = id.to_vec();
        Some(Self {
            local,
            peer,
            state,
            unacknowledged,
            acknowledged,
            received,
            traffic,
            timer,
            retransmits,
            family,
            id,
        })
    }

    /// Whether the client acknowledges nothing of what it was sent, however often. A closed window is not that: nothing
    /// is sent then, it is asked for.
    pub fn is_mute(&self) -> bool {
        self.unacknowledged > 0 && self.timer == RETRANSMISSION && self.retransmits >= MUTE_RETRANSMITS
    }
}

fn dump(diagnostics: &mut Netlink, address: IpAddr) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let Some(wanted) = shown(family, address) else { continue };
        let question = request(family, !(1 << LISTEN), &[0; ID_LEN]);
        let answers = diagnostics.exchange(Message::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &question))?;
        found.extend(answers.iter().filter_map(|answer| Connection::parse(&answer.body, family, &wanted)));
    }
    Ok(found)
}

/// The connections whose local address is `address` and which may still carry data: not those in TIME_WAIT or
/// ended.
///
/// # Errors
/// The kernel's.
pub fn connections(address: IpAddr) -> io::Result<Vec<Connection>> {
    let mut found = dump(&mut Netlink::open_diagnostics()?, address)?;
    found.retain(|connection| !matches!(connection.state, TIME_WAIT | CLOSE));
    Ok(found)
}

/// Aborts every TCP connection whose local address is `address`; returns how many.
///
/// # Errors
/// The kernel's, `EOPNOTSUPP` where it was built without CONFIG_INET_DIAG_DESTROY.
pub fn abort(address: IpAddr) -> io::Result<usize> {
    let mut diagnostics = Netlink::open_diagnostics()?;
    let mut aborted = 0;
    for Connection { family, id, .. } in dump(&mut diagnostics, address)? {
        match diagnostics.request(Message::new(SOCK_DESTROY, 0, &request(family, 0, &id))) {
            Ok(()) => aborted += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // it ended by itself
            Err(error) => return Err(error),
        }
    }
    Ok(aborted)
}
