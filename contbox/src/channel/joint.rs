//! The snapshot of a connection whose session has channels: where each of them stood, before the application's words.
//!
//! ```text
//!   | magic, 8 bytes | number of channels | check | name, digested, released: 8 bytes each | … | words of its own |
//! ```
//! One export says where a process stands at its connection and at its channels at once: a stop between two exports
//! would leave a state that never was. The magic says that a snapshot begins so; the check says that it is whole. A
//! snapshot whose words happen to begin like one costs its own session and no other: a channel belongs to a connection
//! only if the channel's own record says so, too.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a snapshot with channels: odd, and no text.
const MAGIC: u64 = 0x9d1f_a6c3_e28b_47f5;

/// Channels of one session. An application that has more is another kind of application.
pub const CHANNELS_MAX: usize = 16;

/// What stands before the channels.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: U64,
    count: U32,
    /// CRC-32 of the channels.
    check: U32,
}

/// One channel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    name: U64,
    digested: U64,
    released: U64,
}

/// Where the end of a channel stands at an export of its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The channel's name.
    pub name: u64,
    /// Stream offset of the first byte of input that is not digested.
    pub digested: u64,
    /// Stream offset of the first byte of output that is yet to be produced.
    pub released: u64,
}

/// A snapshot says that channels belong to it, and not which.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its snapshot does not say whole which channels it has")]
pub struct Unclear;

/// A snapshot: the channels as they stand, then the application's words.
///
/// # Panics
/// If there are more than [`CHANNELS_MAX`].
pub fn snapshot(channels: &[Standing], words: &[u8]) -> Vec<u8> {
    assert!(channels.len() <= CHANNELS_MAX, "a session of {} channels", channels.len());
    let entry =
        |it: &Standing| Entry { name: it.name.into(), digested: it.digested.into(), released: it.released.into() };
    let entries: Vec<Entry> = channels.iter().map(entry).collect();
    let check = crc32fast::hash(entries.as_bytes());
    let head = Head { magic: MAGIC.into(), count: (channels.len() as u32).into(), check: check.into() };
    [head.as_bytes(), entries.as_bytes(), words].concat()
}

/// The channels that a snapshot names, and the application's words; none of one that has no channels.
///
/// # Errors
/// [`Unclear`]
pub fn split(snapshot: &[u8]) -> Result<(Vec<Standing>, &[u8]), Unclear> {
    let head = Head::read_from_prefix(snapshot).ok().filter(|(head, _)| head.magic.get() == MAGIC);
    let Some((head, rest)) = head else { return Ok((Vec::new(), snapshot)) };
    let count = head.count.get() as usize;
    if count > CHANNELS_MAX {
        return Err(Unclear);
    }
    let (entries, words) = rest.split_at_checked(count * size_of::<Entry>()).ok_or(Unclear)?;
    if crc32fast::hash(entries) != head.check.get() {
        return Err(Unclear);
    }
    let standing = |bytes: &[u8]| Entry::read_from_bytes(bytes).ok();
    let entries = entries.chunks_exact(size_of::<Entry>()).filter_map(standing);
    let channels =
        entries.map(|it| Standing { name: it.name.get(), digested: it.digested.get(), released: it.released.get() });
    Ok((channels.collect(), words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_with_channels_is_these_bytes() {
        let channels = [Standing { name: 0x0102, digested: 3, released: 4 }];
        let entry = [[2, 1, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]].concat();
        let head = [0xf5, 0x47, 0x8b, 0xe2, 0xc3, 0xa6, 0x1f, 0x9d, 1, 0, 0, 0];
        let expected = [&head[..], &crc32fast::hash(&entry).to_le_bytes(), &entry, b"words"].concat();
        let bytes = snapshot(&channels, b"words");
        assert_eq!(bytes, expected);
        assert_eq!(split(&bytes), Ok((channels.to_vec(), &b"words"[..])));
    }

    #[test]
    fn what_does_not_begin_so_has_no_channels_and_what_is_not_whole_is_unclear() {
        assert_eq!(split(b"words of an application"), Ok((vec![], &b"words of an application"[..])));
        assert_eq!(split(b""), Ok((vec![], &b""[..])));
        let whole = snapshot(&[Standing { name: 1, digested: 2, released: 3 }; 2], b"");
        for length in 16..whole.len() {
            assert_eq!(split(&whole[..length]), Err(Unclear), "cut at {length}");
        }
        for at in 8..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert_eq!(split(&bytes), Err(Unclear), "byte {at}");
        }
    }
}
