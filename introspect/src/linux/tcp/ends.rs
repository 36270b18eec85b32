//! Whether a socket's two ends are those it was put into the table with.
//!
//! ```text
//!   IPv4   skc_hash = J(local, peer, ports; secret + net.hash_mix)       ports = local << 16 | peer, as in memory
//!   IPv6   skc_hash = J(local[12..16], J(peer; peer secret), ports; secret + net.hash_mix)
//! ```
//! The kernel computes it when it inserts a socket or a request, and never again: ends that were overwritten since do
//! not fit. It is all that vouches for the ends of a connection without a box. `J` is Jenkins' hash (`linux/jhash.h`).
//!
//! The formula changed twice within stable series, without a trace in the type information: which one a kernel uses is
//! told by its sockets, one of 2^32 of which fits a formula that is not theirs. Sources: `inet_ehashfn`,
//! `inet6_ehashfn` and `__ipv6_addr_jhash` of 6.1.192 and 6.12.117; before d11b0df7ddf1 (6.5, 6.1.43) for
//! [`folded`]; from d4438ce68bf1 (6.16) on for [`Ports::Added`].
//!
//! Where a kernel's secrets are not known, or two and more connections of a family all do not fit, it is said once and
//! their ends are believed, as far as their clients do: docs/fault-model.md.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use remote_memory::{KernelVirt, LinkError};
use serde::{Deserialize, Serialize};

use super::tables::Member;
use crate::btf::Field;
use crate::memory::{Memory, word};
use crate::{Damage, Fault, Kernel};

/// Damage of a socket whose ends do not fit its place in the table.
pub(crate) const ENDS: &str = "skc_hash";

/// Damage of a kernel whose sockets cannot be checked.
const SECRETS: &str = "secrets of the connections' hash";

/// Where a kernel keeps what it hashes ends with: three secrets, and in each network namespace a part of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct EndsHash {
    pub secret4: u64,
    pub secret6: u64,
    pub peer6: u64,
    /// `net.hash_mix`.
    pub mix: Field,
}

/// The values at those places.
struct Secrets {
    four: u32,
    six: u32,
    peer6: u32,
    mixes: HashMap<u64, u32>,
}

/// Gives each member whose ends do not fit its hash the damage that says so.
pub(crate) fn check(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    members: &mut [Member],
    damage: &mut Vec<Damage>,
) -> Result<(), LinkError> {
    let Some(first) = members.first().map(|member| member.address.raw()) else { return Ok(()) };
    let mut unchecked = |at: u64, fault| damage.push(Damage { at: KernelVirt::new(at), part: SECRETS, fault });
    let (Some(places), true) = (kernel.ends, kernel.tcp.head.hash.is_some()) else {
        unchecked(first, Fault::Unknown);
        return Ok(());
    };
    let nets: BTreeSet<u64> = members.iter().map(|member| member.net).collect();
    let Some(secrets) = read(kernel, memory, places, nets)? else {
        unchecked(places.secret4, Fault::Unreadable);
        return Ok(());
    };
    for (is_four, at) in [(true, places.secret4), (false, places.secret6)] {
        let family: Vec<_> = members.iter_mut().filter(|member| member.local.is_ipv4() == is_four).collect();
        let doubts: Vec<_> = family.iter().map(|member| contradiction(&secrets, member)).collect();
        if doubts.len() > 1 && doubts.iter().all(Option::is_some) {
            unchecked(at, Fault::Unknown);
            continue;
        }
        family.into_iter().zip(doubts).for_each(|(member, doubt)| member.doubt = doubt);
    }
    Ok(())
}

fn read(
    kernel: &Kernel,
    memory: &mut Memory<'_>,
    places: EndsHash,
    nets: BTreeSet<u64>,
) -> Result<Option<Secrets>, LinkError> {
    let mixes = nets.iter().map(|net| net.wrapping_add(places.mix.offset as u64));
    let at = [places.secret4, places.secret6, places.peer6].into_iter().chain(mixes);
    let at: Vec<_> = at.map(KernelVirt::new).collect();
    let records = kernel.space.fetch_equal(memory, &at, 4)?;
    let mut values = records.iter().map(|bytes| bytes.map(|bytes| word(bytes, 0, 4) as u32));
    let mut next = || values.next().flatten();
    let (Some(four), Some(six), Some(peer6)) = (next(), next(), next()) else { return Ok(None) };
    let mixes = nets.into_iter().zip(values).filter_map(|(net, mix)| Some((net, mix?))).collect();
    Ok(Some(Secrets { four, six, peer6, mixes }))
}

/// What today's formula says, if what is there fits none.
fn contradiction(secrets: &Secrets, member: &Member) -> Option<Damage> {
    let hashes = secrets.mixes.get(&member.net).map_or(Vec::new(), |mix| {
        formulas(secrets, *mix, member.local, member.peer) // none where the namespace cannot be read
    });
    let expected = hashes.first().copied().unwrap_or(0).into();
    let fault = Fault::Mismatch { expected, found: member.hash.into() };
    (!hashes.contains(&member.hash)).then_some(Damage { at: member.address, part: ENDS, fault })
}

/// What a kernel would have put into the table for these ends, for tests that make sockets.
#[cfg(test)]
pub(super) fn today(kernel: &Kernel, memory: &mut Memory<'_>, net: u64, ends: [SocketAddr; 2]) -> u32 {
    let secrets = read(kernel, memory, kernel.ends.unwrap(), [net].into()).unwrap().unwrap();
    formulas(&secrets, secrets.mixes[&net], ends[0], ends[1])[0]
}

/// How the local port goes into the hash.
#[derive(Clone, Copy)]
enum Ports {
    Hashed,
    Added,
}

/// The hash of two ends by each formula; none for ends of two families.
fn formulas(secrets: &Secrets, mix: u32, local: SocketAddr, peer: SocketAddr) -> Vec<u32> {
    let fields = match (local.ip(), peer.ip()) {
        (IpAddr::V4(local), IpAddr::V4(peer)) => {
            let (local, peer) = (u32::from_le_bytes(local.octets()), u32::from_le_bytes(peer.octets()));
            vec![(local, peer, secrets.four)]
        }
        (IpAddr::V6(local), IpAddr::V6(peer)) => {
            let [.., local] = words(local.octets());
            let peers = [whole, folded].map(|hash| hash(words(peer.octets()), secrets.peer6));
            peers.map(|peer| (local, peer, secrets.six)).to_vec()
        }
        _ => Vec::new(),
    };
    let with = |ports: Ports, (a, b, secret): (u32, u32, u32)| {
        let ours = u32::from(local.port());
        let (hashed, added) = match ports {
            Ports::Hashed => (ours << 16, 0),
            Ports::Added => (0, ours),
        };
        three_words([a, b, hashed | u32::from(peer.port().to_be())], secret.wrapping_add(mix)).wrapping_add(added)
    };
    [Ports::Hashed, Ports::Added].into_iter().flat_map(|ports| fields.iter().map(move |it| with(ports, *it))).collect()
}

fn words(octets: [u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// Added to the length in bytes and the caller's number where the hash begins (`JHASH_INITVAL`).
const BEGIN: u32 = 0xdead_beef;

/// An IPv6 address, all of it (`jhash2` of four words).
fn whole(address: [u32; 4], secret: u32) -> u32 {
    let begin = BEGIN.wrapping_add(16).wrapping_add(secret);
    let [first, second, third, last] = address;
    let [a, b, c] = mixed([first, second, third].map(|word| word.wrapping_add(begin)));
    finished([a.wrapping_add(last), b, c])
}

/// An IPv6 address as older kernels took it.
fn folded([first, second, third, last]: [u32; 4], secret: u32) -> u32 {
    three_words([first ^ second, third, last], secret)
}

/// `jhash_3words`.
fn three_words(words: [u32; 3], secret: u32) -> u32 {
    let begin = BEGIN.wrapping_add(12).wrapping_add(secret);
    finished(words.map(|word| word.wrapping_add(begin)))
}

/// `__jhash_mix`.
fn mixed([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    let step = |from: &mut u32, other: u32, by: u32| *from = from.wrapping_sub(other) ^ other.rotate_left(by);
    for (first, second, third) in [(4, 6, 8), (16, 19, 4)] {
        step(&mut a, c, first);
        c = c.wrapping_add(b);
        step(&mut b, a, second);
        a = a.wrapping_add(c);
        step(&mut c, b, third);
        b = b.wrapping_add(a);
    }
    [a, b, c]
}

/// `__jhash_final`.
fn finished([mut a, mut b, mut c]: [u32; 3]) -> u32 {
    let step = |into: &mut u32, from: u32, by: u32| *into = (*into ^ from).wrapping_sub(from.rotate_left(by));
    step(&mut c, b, 14);
    step(&mut a, c, 11);
    step(&mut b, a, 25);
    step(&mut c, b, 16);
    step(&mut a, c, 4);
    step(&mut b, a, 14);
    step(&mut c, b, 24);
    c
}

#[cfg(test)]
mod tests {
    use super::super::TcpSocket;
    use super::super::damage_tests::Machine;
    use super::*;

    /// Of two machines, each with its own secret: numbers that their kernels computed.
    #[test]
    fn recorded_kernels_hashed_ipv4_ends_like_this() {
        let check = |secret: u32, net: &str, ends: [&str; 2], hash: u32| {
            let secrets = Secrets { four: secret, six: 0, peer6: 0, mixes: HashMap::new() };
            let [local, peer] = ends.map(|end| end.parse().unwrap());
            assert_eq!(formulas(&secrets, 0, local, peer)[0], hash, "{net}");
        };
        check(0x0d5c4260, "6.1", ["10.0.2.15:7000", "10.0.2.2:36416"], 0xa223462f);
        check(0xdcb53062, "6.1, another namespace", ["127.0.0.1:9000", "127.0.0.1:56216"], 0x31bd35b7);
        check(0x157fee2d, "6.12", ["10.0.2.15:7003", "10.0.2.2:49106"], 0xf3b0511b);
    }

    fn damages(damage: &[Damage]) -> Vec<&'static str> {
        damage.iter().map(|damage| damage.part).collect()
    }

    fn doubtful(sockets: &[TcpSocket]) -> usize {
        sockets.iter().filter(|socket| socket.ends_doubtful()).count()
    }

    #[test]
    fn every_end_that_is_overwritten_casts_doubt_on_its_socket_and_no_other() {
        let mut machine = Machine::load();
        let (sockets, damage) = machine.walk();
        assert_eq!((doubtful(&sockets), damage), (0, Vec::new()));
        let head = machine.kernel.tcp.head.clone();
        for socket in &sockets {
            let six = socket.peer.is_ipv6();
            let addresses = if six { [head.local6, head.peer6] } else { [Some(head.local), Some(head.peer)] };
            // An IPv4 connection of an IPv6 listener has its ends in both places, and is found by the longer ones.
            let addresses = if socket.inet6_socket { [head.local6, head.peer6] } else { addresses };
            for field in addresses.into_iter().flatten().chain([head.local_port, head.peer_port, head.hash.unwrap()]) {
                let at = socket.address.raw() + (field.end() - 1) as u64;
                let (word, shift) = (at & !7, 8 * (at % 8));
                let before = machine.get(word);
                machine.put(word, before ^ 1 << shift);
                let (found, damage) = machine.walk();
                machine.put(word, before);
                assert!(damage.is_empty(), "{damage:?}");
                assert_eq!(doubtful(&found), 1, "{}: {field:?}", socket.peer);
                let victim = found.iter().find(|found| found.address == socket.address).unwrap();
                assert!(victim.ends_doubtful() && !victim.usable());
            }
        }
    }

    #[test]
    fn a_socket_that_left_the_wanted_ports_is_reported_all_the_same() {
        let mut machine = Machine::load();
        let filter = super::super::TcpFilter { ports: vec![7000], ..Default::default() };
        let walk = |machine: &mut Machine| {
            super::super::walk(&machine.kernel, &mut machine.image, super::super::damage_tests::KEY, &filter).unwrap()
        };
        let (before, _) = walk(&mut machine);
        let at = before[0].address.raw() + machine.kernel.tcp.head.local_port.offset as u64;
        machine.put(at & !7, machine.get(at & !7) ^ 1 << (8 * (at % 8)));
        let (after, damage) = walk(&mut machine);
        assert_eq!((after.len() + 1, damages(&damage)), (before.len(), vec![ENDS]));
    }

    #[test]
    fn without_the_right_secrets_it_is_said_once_and_ends_are_believed() {
        let mut machine = Machine::load();
        let places = machine.kernel.ends.unwrap();
        let before = machine.walk().0;
        machine.put(places.secret4, machine.get(places.secret4) ^ 1);
        let (sockets, damage) = machine.walk();
        assert_eq!((&sockets, damages(&damage)), (&before, vec![SECRETS]));
        machine.kernel.ends = None;
        let (sockets, damage) = machine.walk();
        assert_eq!((&sockets, damages(&damage)), (&before, vec![SECRETS]));
    }
}
