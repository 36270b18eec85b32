//! The hash tables of connections and the walk along their chains.
//!
//! ```text
//!   ehash[0] -> sock -> sock -> (0 << 1 | 1)      the end marker names its bucket: a chain that ends in
//!   ehash[1] -> (1 << 1 | 1)                      another's marker was left sideways
//! ```
//! The array is read in one go; then every chain advances one sock per round, all chains at once.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use remote_memory::{KernelVirt, LinkError};
use serde::{Deserialize, Serialize};

use super::layout::HeadLayout;
use super::{TcpFilter, ends};
use crate::btf::{Btf, Field, TypeError};
use crate::memory::{Memory, word};
use crate::paging::Space;
use crate::{Damage, Fault, Kernel};

/// The kernel caps the table at 512 Ki buckets unless told otherwise at boot.
const BUCKETS_MAX: u64 = 4 * 1024 * 1024;

/// Members of all tables together: more connections than we could rebuild.
const SOCKS_MAX: usize = 512 * 1024;

/// Rounds: the longest chain followed. Tables are sized so that chains of more than a few are rare.
const CHAIN_MAX: usize = 1024;

const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

/// TCP_NEW_SYN_RECV and TCP_TIME_WAIT mark smaller structs than a sock. A request's head is whole.
const TIME_WAIT: u64 = 6;
const NEW_SYN_RECV: u64 = 12;

/// One established-hash table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct TcpTable {
    ehash: u64,
    mask: u32,
}

impl TcpTable {
    pub(crate) fn start(&self) -> KernelVirt {
        KernelVirt::new(self.ehash)
    }

    pub(crate) fn bytes(&self) -> u64 {
        (u64::from(self.mask) + 1) * 8
    }
}

/// Finds the tables: the global one and that of the initial network namespace, which differ if the latter was made
/// with its own (`net.ipv4.tcp_child_ehash_entries` is for children, so normally they are the same).
pub(crate) fn find(
    memory: &mut Memory<'_>,
    space: &Space,
    btf: &Btf,
    [global, init_net]: [KernelVirt; 2],
) -> Result<Result<Vec<TcpTable>, TypeError>, LinkError> {
    let (ehash, mask) = match (btf.field_at("inet_hashinfo.ehash"), btf.field_at("inet_hashinfo.ehash_mask")) {
        (Ok(ehash), Ok(mask)) => (ehash, mask),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let mut infos = vec![global.raw()];
    if let Ok(of_net) = btf.field_at("net.ipv4.tcp_death_row.hashinfo")
        && let Some(info) = read_field(memory, space, init_net.raw(), of_net)?
        && info != global.raw()
    {
        infos.push(info);
    }
    let mut tables = Vec::new();
    for info in infos {
        let at = read_field(memory, space, info, ehash)?;
        let buckets = read_field(memory, space, info, mask)?.map(|mask| mask + 1);
        if let (Some(at), Some(buckets)) = (at, buckets)
            && at != 0
            && buckets.is_power_of_two()
            && buckets <= BUCKETS_MAX
        {
            tables.push(TcpTable { ehash: at, mask: (buckets - 1) as u32 });
        }
    }
    Ok(Ok(tables))
}

fn read_field(memory: &mut Memory<'_>, space: &Space, base: u64, field: Field) -> Result<Option<u64>, LinkError> {
    let at = KernelVirt::new(base.wrapping_add(field.offset as u64));
    Ok(space.fetch(memory, at, field.size)?.map(|bytes| word(&bytes, 0, field.size)))
}

/// A sock that passed the filter, with what its head told.
pub(crate) struct Member {
    pub address: KernelVirt,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub inet6: bool,
    pub state: u64,
    pub net: u64,
    pub device: u32,
    pub hash: u32,
    /// What is wrong with its ends.
    pub doubt: Option<Damage>,
}

impl Member {
    /// Whether it is a handshake in progress.
    pub(crate) fn is_request(&self) -> bool {
        self.state == NEW_SYN_RECV
    }
}

/// Where the walk stands in one chain.
struct Chain {
    bucket: u64,
    /// Address of the pointer that led here.
    link: u64,
    next: u64,
}

/// Collects the members of all tables that `filter` wants.
pub(crate) fn members(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    filter: &TcpFilter,
    damage: &mut Vec<Damage>,
) -> Result<Vec<Member>, LinkError> {
    let mut members = all(kernel, memory, damage)?;
    // One that is not wanted tells how the others are hashed.
    ends::check(kernel, memory, &mut members, damage)?;
    members.retain(|member| {
        let is_wanted = filter.admits(member.local);
        // It may have been wanted before its ends were overwritten.
        damage.extend(member.doubt.filter(|_| !is_wanted));
        is_wanted
    });
    Ok(members)
}

/// Collects the members of all tables.
fn all(kernel: &Kernel, memory: &mut Memory<'_>, damage: &mut Vec<Damage>) -> Result<Vec<Member>, LinkError> {
    let mut chains = heads(kernel, memory, damage)?;
    let layout = &kernel.tcp.head;
    let mut seen = HashSet::new();
    let mut members = Vec::new();
    let mut report = |at: u64, part, fault| damage.push(Damage { at: KernelVirt::new(at), part, fault });
    for _ in 0..CHAIN_MAX {
        chains.retain(|chain| {
            let sock = chain.next.wrapping_sub(layout.next.offset as u64);
            let fault = if chain.next & 1 == 1 {
                let found = chain.next >> 1;
                (found != chain.bucket).then_some(Fault::Mismatch { expected: chain.bucket, found })
            } else if !seen.insert(chain.next) {
                Some(Fault::Cycle)
            } else if seen.len() > SOCKS_MAX {
                Some(Fault::TooLong { limit: SOCKS_MAX as u64 })
            } else {
                return true;
            };
            if let Some(fault) = fault {
                report(sock, "ehash chain", fault);
            }
            false
        });
        if chains.is_empty() {
            return Ok(members);
        }
        let socks: Vec<_> =
            chains.iter().map(|chain| KernelVirt::new(chain.next.wrapping_sub(layout.next.offset as u64))).collect();
        let heads = kernel.space.fetch_equal(memory, &socks, layout.span())?;
        let mut still = Vec::with_capacity(chains.len());
        for (index, chain) in chains.into_iter().enumerate() {
            let sock = socks[index];
            let Some(head) = heads.bytes(index) else {
                report(sock.raw(), "ehash chain", Fault::Unreadable);
                continue;
            };
            let pprev = layout.pprev.of(head);
            if pprev != chain.link {
                report(sock.raw(), "skc_nulls_node.pprev", Fault::Mismatch { expected: chain.link, found: pprev });
            }
            match member(layout, sock, head) {
                Some(member) => members.push(member),
                None if layout.state.of(head) == TIME_WAIT => {}
                None => {
                    let found = layout.family.of(head);
                    report(sock.raw(), "skc_family", Fault::Mismatch { expected: AF_INET, found });
                }
            }
            still.push(Chain { bucket: chain.bucket, link: chain.next, next: layout.next.of(head) });
        }
        chains = still;
    }
    chains.iter().for_each(|chain| report(chain.next, "ehash chain", Fault::TooLong { limit: CHAIN_MAX as u64 }));
    Ok(members)
}

/// The first pointers of all buckets that are not empty.
fn heads(kernel: &Kernel, memory: &mut Memory<'_>, damage: &mut Vec<Damage>) -> Result<Vec<Chain>, LinkError> {
    let mut chains = Vec::new();
    for table in &kernel.tcp_tables {
        // A record per page, so that one lost page of a vmalloc'ed table costs its buckets only.
        const BUCKETS_PER_RECORD: u64 = 512;
        let records = (u64::from(table.mask) + 1).div_ceil(BUCKETS_PER_RECORD);
        let len = table.bytes().min(BUCKETS_PER_RECORD * 8);
        let at: Vec<_> = (0..records).map(|record| KernelVirt::new(table.ehash.wrapping_add(record * len))).collect();
        let pages = kernel.space.fetch_equal(memory, &at, len as usize)?;
        for (record, start) in at.iter().enumerate() {
            let Some(page) = pages.bytes(record) else {
                damage.push(Damage { at: *start, part: "ehash", fault: Fault::Unreadable });
                continue;
            };
            for (index, slot) in page.chunks_exact(8).enumerate() {
                let bucket = record as u64 * BUCKETS_PER_RECORD + index as u64;
                let next = word(slot, 0, 8);
                if next != bucket << 1 | 1 {
                    chains.push(Chain { bucket, link: start.raw().wrapping_add(index as u64 * 8), next });
                }
            }
        }
    }
    Ok(chains)
}

/// Reads a sock's head; `None` if it is no TCP socket or request of a family we know.
fn member(layout: &HeadLayout, address: KernelVirt, head: &[u8]) -> Option<Member> {
    let state = layout.state.of(head);
    if state == TIME_WAIT {
        return None;
    }
    let family = layout.family.of(head);
    let ip = |four: Field, six: Option<Field>| match family {
        AF_INET => <[u8; 4]>::try_from(four.bytes_of(head)).ok().map(|raw| IpAddr::V4(Ipv4Addr::from(raw))),
        AF_INET6 => {
            let raw = <[u8; 16]>::try_from(six?.bytes_of(head)).ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(raw)).to_canonical())
        }
        _ => None,
    };
    let peer_port = u16::from_be(layout.peer_port.of(head) as u16);
    Some(Member {
        address,
        local: SocketAddr::new(ip(layout.local, layout.local6)?, layout.local_port.of(head) as u16),
        peer: SocketAddr::new(ip(layout.peer, layout.peer6)?, peer_port),
        inet6: family == AF_INET6,
        state,
        net: layout.net.of(head),
        device: layout.device.of(head) as u32,
        hash: layout.hash.map_or(0, |hash| hash.of(head) as u32),
        doubt: None,
    })
}
