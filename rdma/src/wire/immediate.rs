//! ImmDt and IETH, the four bytes that follow some SENDs and WRITEs. Neither end of ours uses them; they are here so
//! that a foreign packet is measured right. Source: "Immediate Extended Transport Header" and "Invalidate Extended
//! Transport Header".

use remote_memory::RemoteKey;

use super::{Truncated, take};

/// Length of either header in bytes.
pub const LEN: usize = 4;

/// Immediate data: opaque to the transport, so no byte order is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Immediate(pub [u8; LEN]);

/// Takes immediate data off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split(bytes: &[u8]) -> Result<(Immediate, &[u8]), Truncated> {
    take(bytes).map(|(data, rest)| (Immediate(*data), rest))
}

/// Takes the key to invalidate off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split_invalidate(bytes: &[u8]) -> Result<(RemoteKey, &[u8]), Truncated> {
    take(bytes).map(|(key, rest)| (RemoteKey::new(u32::from_be_bytes(*key)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_are_taken() {
        assert_eq!(split(&[1, 2, 3, 4, 5]), Ok((Immediate([1, 2, 3, 4]), &[5][..])));
        assert_eq!(split_invalidate(&[0, 0, 1, 2]), Ok((RemoteKey::new(0x102), &[][..])));
        assert_eq!(split(&[1]), Err(Truncated { need: 4, have: 1 }));
    }
}
