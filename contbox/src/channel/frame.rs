//! What goes over a channel: frames that say where in the stream their bytes lie.
//!
//! ```text
//!   | magic | length | channel, 8 bytes | offset, 8 bytes | check | 0 | payload, at most 4064 bytes |
//! ```
//! TCP counts what has gone through a connection; the kernel counts nothing of the kind for pipes and Unix sockets.
//! So what lies in their buffers when the machine stops has to say it of itself. A frame is at most `PIPE_BUF` bytes,
//! which a pipe takes whole or not at all, and a Unix socket as one buffer of its own; and it is read whole.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of a frame: odd, and no text.
pub const FRAME_MAGIC: u32 = 0xf4a3_e0b1;
/// Bytes before the payload.
pub const FRAME_HEAD_BYTES: usize = 32;
/// Longest frame: `PIPE_BUF` of Linux. A write that is no longer happens at once.
pub const FRAME_BYTES_MAX: usize = 4096;
/// Longest payload of one frame.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEAD_BYTES;

/// What stands before a frame's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHead {
    /// [`FRAME_MAGIC`]: guards against bytes that are no frame.
    pub magic: U32,
    /// Bytes of payload, at least one.
    pub length: U32,
    /// Name of channel and direction: guards against frames that a recycled page or log still holds.
    pub channel: U64,
    /// Stream offset of the payload's first byte: guards against taking bytes twice or at another place.
    pub offset: U64,
    /// CRC-32 of everything before and the payload: guards against half a frame.
    pub check: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<FrameHead>() == FRAME_HEAD_BYTES);

impl FrameHead {
    /// The head of a frame of `channel` with `payload` at stream offset `offset`.
    ///
    /// # Panics
    /// If the payload is empty or longer than [`PAYLOAD_BYTES_MAX`].
    pub fn of(channel: u64, offset: u64, payload: &[u8]) -> Self {
        assert!((1..=PAYLOAD_BYTES_MAX).contains(&payload.len()), "{} bytes are no frame's", payload.len());
        let mut head = Self {
            magic: FRAME_MAGIC.into(),
            length: (payload.len() as u32).into(),
            channel: channel.into(),
            offset: offset.into(),
            check: 0.into(),
            reserved: 0.into(),
        };
        head.check = head.computed_check(payload).into();
        head
    }

    /// What `check` has to be for this payload.
    pub fn computed_check(&self, payload: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.as_bytes()[..std::mem::offset_of!(Self, check)]);
        hasher.update(payload);
        hasher.finalize()
    }

    /// Whether this begins a frame of `channel`; its payload is not looked at.
    pub fn is_of(&self, channel: u64) -> bool {
        let length = self.length.get() as usize;
        self.magic.get() == FRAME_MAGIC
            && self.channel.get() == channel
            && (1..=PAYLOAD_BYTES_MAX).contains(&length)
            && self.offset.get().checked_add(length as u64).is_some()
    }

    /// Stream offsets of the payload; meant for heads that [`FrameHead::is_of`] something.
    pub fn range(&self) -> Range<u64> {
        self.offset.get()..self.offset.get().saturating_add(self.length.get().into())
    }
}

/// A whole frame: head and payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'b> {
    /// Stream offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub payload: &'b [u8],
}

/// Takes the first frame of `channel` off `bytes`; `None` if they do not begin with a whole one.
pub fn split(channel: u64, bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (head, rest) = FrameHead::read_from_prefix(bytes).ok()?;
    let (payload, rest) = rest.split_at_checked(head.length.get() as usize).filter(|_| head.is_of(channel))?;
    (head.computed_check(payload) == head.check.get()).then_some(())?;
    Some((Frame { offset: head.offset.get(), payload }, rest))
}

/// All bytes of a frame, as they are written.
pub fn encode(channel: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    [FrameHead::of(channel, offset, payload).as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_these_bytes() {
        let bytes = encode(0x1122_3344_5566_7788, 0x0102, b"hi");
        let expected = [
            [0xb1, 0xe0, 0xa3, 0xf4, 2, 0, 0, 0].as_slice(),
            &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
            &[2, 1, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&expected);
        hasher.update(b"hi");
        let expected = [&expected[..], &hasher.finalize().to_le_bytes(), &[0; 4], b"hi"].concat();
        assert_eq!(bytes, expected);
        let frame = Frame { offset: 0x0102, payload: b"hi" };
        assert_eq!(split(0x1122_3344_5566_7788, &bytes), Some((frame, &[][..])));
    }

    #[test]
    fn no_byte_of_a_frame_can_change_unnoticed() {
        let whole = encode(7, 1000, &[1, 2, 3, 4, 5]);
        for at in (0..whole.len()).filter(|at| !(28..32).contains(at)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert_eq!(split(7, &bytes), None, "byte {at}");
            assert_eq!(split(7, &whole[..at]), None, "cut at {at}");
        }
        assert_eq!(split(8, &whole), None, "of another channel");
        assert_eq!(split(7, &encode(7, u64::MAX - 1, &[0; 5])), None, "beyond the end of all streams");
    }
}
