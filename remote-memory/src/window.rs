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
    let mut entries = out.get_mut(..bytes)?.chunks_exact_mut(ENTRY_BYTES);
    let mut put = |low: u64, high: u32| {
        let Some(entry) = entries.next() else { return };
        entry[..8].copy_from_slice(&low.to_le_bytes());
        entry[8..].copy_from_slice(&u64::from(high).to_le_bytes());
    };
    put(u64::from(number) << 32 | u64::from(key.raw()), count);
    stretches.for_each(|stretch| put(stretch.addr, stretch.len));
    Some(bytes)
}

/// Takes a list apart, whoever wrote it; `None` if it is none. Bytes behind it are those of an older one.
pub fn decode(bytes: &[u8]) -> Option<List> {
    let mut entries = bytes.chunks_exact(ENTRY_BYTES).map(|entry| {
        let (low, high) = entry.split_at(8);
        (
            u64::from_le_bytes(low.try_into().unwrap_or_default()),
            u64::from_le_bytes(high.try_into().unwrap_or_default()),
        )
    });
    let (head, count) = entries.next()?;
    let count = usize::try_from(count).ok()?;
    if count > entries.len() {
        return None;
    }
    let stretch = |(addr, len)| Some(Stretch { addr, len: u32::try_from(len).ok().filter(|len| *len > 0)? });
    let stretches = entries.take(count).map(stretch).collect::<Option<_>>()?;
    Some(List { key: RemoteKey::new(head as u32), number: (head >> 32) as u32, stretches })
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
            assert_eq!(decode(&bytes), Some(list));
        }
        assert_eq!(encode(&mut bytes, (KEY, 1), stretches(5).into_iter()), None);
    }

    #[test]
    fn what_is_no_list_is_none() {
        let mut bytes = vec![0; ENTRY_BYTES * 3];
        encode(&mut bytes, (KEY, 1), stretches(2).into_iter()).unwrap();
        assert_eq!(decode(&bytes[..ENTRY_BYTES * 2]), None, "shorter than it says");
        assert_eq!(decode(&bytes[..ENTRY_BYTES - 1]), None, "no head");
        for (at, byte) in [(15, 1), (ENTRY_BYTES + 8, 0), (ENTRY_BYTES + 12, 1)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert_eq!(decode(&bytes), None, "a count, no length, a long one: {at}");
        }
    }
}
