//! Windows: thousands of small stretches of a target's memory, read or written as one.
//!
//! Every operation costs a packet each way, and a walk over kernel structures asks for thousands of small stretches
//! that no merging brings together. A server may offer a window for that: a list, into which the asker writes which
//! stretches it means, and data, whose bytes are those of the stretches one after the other.
//!
//! ```text
//!   WRITE list     [key, 3]  [addr a, 8]  [addr b, 24]  [addr c, 8]        some packets
//!   READ  data     0..40  ─►  a a a a a a a a b b b b b b …                some packets, same round trip
//!   WRITE data     0..40      scattered over a, b and c
//! ```
//!
//! Of many equal structs the same members are wanted. Such a list says once where these are, and then where each struct
//! is:
//!
//! ```text
//!   WRITE list     [key, 3 of 2]  [+16, 8]  [+40, 4]  [base a] [base b] [base c]
//!   READ  data     0..36  ─►  a a a a a a a a a a a a b b b …
//! ```
//!
//! A window gives no right: the stretches are reached under the key that the list names, and every byte is checked
//! against that key when it is touched. Adapters know the same as an indirect memory key; a carrier without windows
//! reads each stretch by itself.
//!
//! A list stands until the next one is written, and has a number that the addresses of its data begin with. A new
//! one is written only when all answers to READs through the old one have come; a repetition of such a READ that is
//! under way still names a list that is gone, and gets no answer.

use crate::{RemoteAddr, RemoteKey};

/// Bytes of one entry of a list, the head included.
pub const ENTRY_BYTES: usize = 16;

/// Bytes of the place of one struct.
const BASE_BYTES: usize = 8;

/// A window of one connection, as its server made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Key of the list: written from address 0 on.
    pub list: RemoteKey,
    /// Key of the data: as many bytes as the stretches have, see [`data_addr`].
    pub data: RemoteKey,
    /// Stretches that a list may have.
    pub pieces_max: u32,
}

impl Window {
    /// Bytes of the longest list.
    pub fn list_bytes_max(&self) -> usize {
        ENTRY_BYTES.saturating_mul(self.pieces_max as usize + 1)
    }

    /// Byte `offset` of the data of list `number`.
    pub fn data_at(&self, number: u32, offset: u32) -> RemoteAddr {
        RemoteAddr::new(self.data, data_addr(number, offset))
    }
}

/// The address of byte `offset` of the data of list `number`.
pub fn data_addr(number: u32, offset: u32) -> u64 {
    u64::from(number) << 32 | u64::from(offset)
}

/// A member of a struct: its place among the struct's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// From the struct's first byte.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// A list taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    /// The key under which its stretches are reached.
    pub key: RemoteKey,
    /// Its number among those of its window.
    pub number: u32,
    /// What it names, in the order of the data.
    pub stretches: Vec<Stretch>,
}

/// A stretch of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Its first address, in the region of the list's key.
    pub addr: u64,
    /// Its length in bytes, never 0.
    pub len: u32,
}

/// Writes list `number` of `stretches` under `key` to the beginning of `out` and returns its length; `None` if it does
/// not fit.
pub fn encode(
    out: &mut [u8],
    (key, number): (RemoteKey, u32),
    stretches: impl ExactSizeIterator<Item = Stretch>,
) -> Option<usize> {
    let count = u32::try_from(stretches.len()).ok()?;
    let bytes = ENTRY_BYTES.checked_mul(stretches.len() + 1)?;
    let entries = out.get_mut(..bytes)?.chunks_exact_mut(ENTRY_BYTES);
    let head = (name(key, number), u64::from(count));
    let stretches = stretches.map(|stretch| (stretch.addr, u64::from(stretch.len)));
    entries.zip(std::iter::once(head).chain(stretches)).for_each(|(entry, words)| put(entry, words));
    Some(bytes)
}

/// Bytes of a list of so many members of so many structs.
pub(crate) fn members_bytes(members: usize, structs: usize) -> Option<usize> {
    ENTRY_BYTES.checked_mul(members.checked_add(1)?)?.checked_add(BASE_BYTES.checked_mul(structs)?)
}

/// Writes list `number` of `members` of the structs at `bases` under `key` to the beginning of `out` and returns its
/// length; `None` if it does not fit.
pub fn encode_members(
    out: &mut [u8],
    (key, number): (RemoteKey, u32),
    members: &[Member],
    bases: &[u64],
) -> Option<usize> {
    let (kinds, count) = (u32::try_from(members.len()).ok()?, u32::try_from(bases.len()).ok()?);
    let head_bytes = ENTRY_BYTES.checked_mul(members.len() + 1)?;
    let bytes = members_bytes(members.len(), bases.len())?;
    let (head, rest) = out.get_mut(..bytes)?.split_at_mut(head_bytes);
    let first = (name(key, number), u64::from(kinds) << 32 | u64::from(count));
    let members = members.iter().map(|member| (u64::from(member.offset), u64::from(member.len)));
    let entries = head.chunks_exact_mut(ENTRY_BYTES).zip(std::iter::once(first).chain(members));
    entries.for_each(|(entry, words)| put(entry, words));
    for (place, base) in rest.chunks_exact_mut(BASE_BYTES).zip(bases) {
        place.copy_from_slice(&base.to_le_bytes());
    }
    Some(bytes)
}

/// Takes a list apart, whoever wrote it; `None` if it is none, or has more than `pieces_max` stretches. Bytes behind it
/// are those of an older one.
pub fn decode(bytes: &[u8], pieces_max: u32) -> Option<List> {
    let (head, rest) = bytes.split_at_checked(ENTRY_BYTES)?;
    let (name, counts) = pair(head);
    let (kinds, count) = ((counts >> 32) as usize, counts as u32 as usize);
    if count.checked_mul(kinds.max(1))? > pieces_max as usize {
        return None;
    }
    let key = RemoteKey::new(name as u32);
    let stretch = |(addr, len)| Some(Stretch { addr, len: u32::try_from(len).ok().filter(|len| *len > 0)? });
    let entries = |bytes: &[u8], count: usize| -> Option<Vec<Stretch>> {
        let bytes = bytes.get(..count.checked_mul(ENTRY_BYTES)?)?;
        bytes.chunks_exact(ENTRY_BYTES).map(|entry| stretch(pair(entry))).collect()
    };
    let stretches = if kinds == 0 {
        entries(rest, count)?
    } else {
        let members = entries(rest, kinds)?;
        let bases = rest.get(kinds * ENTRY_BYTES..)?.get(..count.checked_mul(BASE_BYTES)?)?;
        let mut stretches = Vec::with_capacity(count * kinds);
        for base in bases.chunks_exact(BASE_BYTES) {
            let base = u64::from_le_bytes(base.try_into().ok()?);
            for member in &members {
                stretches.push(Stretch { addr: base.checked_add(member.addr)?, len: member.len });
            }
        }
        stretches
    };
    Some(List { key, number: (name >> 32) as u32, stretches })
}

/// The first word of a list.
fn name(key: RemoteKey, number: u32) -> u64 {
    u64::from(number) << 32 | u64::from(key.raw())
}

/// Fills an entry.
fn put(entry: &mut [u8], (low, high): (u64, u64)) {
    entry[..8].copy_from_slice(&low.to_le_bytes());
    entry[8..].copy_from_slice(&high.to_le_bytes());
}

/// Two words of an entry.
fn pair(entry: &[u8]) -> (u64, u64) {
    let (low, high) = entry.split_at(8);
    (u64::from_le_bytes(low.try_into().unwrap_or_default()), u64::from_le_bytes(high.try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RemoteKey = RemoteKey::new(0x1234_5678);

    fn stretches(count: u32) -> Vec<Stretch> {
        (1..=count).map(|number| Stretch { addr: u64::MAX - u64::from(number), len: number }).collect()
    }

    #[test]
    fn a_list_comes_back_out_as_it_went_in_whatever_lies_behind_it() {
        let mut bytes = vec![0xff; ENTRY_BYTES * 5];
        for count in 0..=4 {
            let len = encode(&mut bytes, (KEY, 7 + count), stretches(count).into_iter()).unwrap();
            assert_eq!(len, ENTRY_BYTES * (count as usize + 1));
            let list = List { key: KEY, number: 7 + count, stretches: stretches(count) };
            assert_eq!(decode(&bytes, 4), Some(list));
        }
        assert_eq!(encode(&mut bytes, (KEY, 1), stretches(5).into_iter()), None);
    }

    const MEMBERS: [Member; 2] = [Member { offset: 16, len: 8 }, Member { offset: 40, len: 4 }];

    #[test]
    fn members_of_structs_are_their_stretches_struct_by_struct() {
        let mut bytes = vec![0xff; ENTRY_BYTES * 6];
        let len = encode_members(&mut bytes, (KEY, 7), &MEMBERS, &[1000, 50, u64::MAX - 100]).unwrap();
        assert_eq!(len, 3 * ENTRY_BYTES + 3 * 8);
        let places = [(1016, 8), (1040, 4), (66, 8), (90, 4), (u64::MAX - 84, 8), (u64::MAX - 60, 4)];
        let stretches = places.map(|(addr, len)| Stretch { addr, len }).to_vec();
        assert_eq!(decode(&bytes, 6), Some(List { key: KEY, number: 7, stretches }));
        assert_eq!(decode(&bytes, 5), None, "more than a window may have");
        assert_eq!(decode(&bytes[..len - 1], 6), None, "shorter than it says");
        encode_members(&mut bytes, (KEY, 7), &MEMBERS, &[u64::MAX - 20]).unwrap();
        assert_eq!(decode(&bytes, 6), None, "behind the end of all addresses");
        assert_eq!(encode_members(&mut bytes[..len - 1], (KEY, 7), &MEMBERS, &[1, 2, 3]), None);
        // Every count and length that a hostile peer may claim.
        for at in 8..3 * ENTRY_BYTES {
            let mut bytes = bytes.clone();
            encode_members(&mut bytes, (KEY, 7), &MEMBERS, &[1, 2, 3]).unwrap();
            bytes[at] = 0xff;
            let found = decode(&bytes, 6).map_or(0, |list| list.stretches.len());
            assert!(found <= 6, "{at}: {found}");
        }
    }

    #[test]
    fn what_is_no_list_is_none() {
        let mut bytes = vec![0; ENTRY_BYTES * 3];
        encode(&mut bytes, (KEY, 1), stretches(2).into_iter()).unwrap();
        assert_eq!(decode(&bytes[..ENTRY_BYTES * 2], 9), None, "shorter than it says");
        assert_eq!(decode(&bytes[..ENTRY_BYTES - 1], 9), None, "no head");
        for (at, byte) in [(15, 1), (ENTRY_BYTES + 8, 0), (ENTRY_BYTES + 12, 1)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert_eq!(decode(&bytes, 9), None, "a count, no length, a long one: {at}");
        }
    }
}
