//! RDMA Extended Transport Header: where in the peer's memory a READ or WRITE happens. On READ requests and on the
//! first (or only) packet of a WRITE. Source: "RDMA Extended Transport Header (RETH)".
//!
//! ```text
//!   0-7 virtual address | 8-11 R_Key | 12-15 DMA length
//! ```

use remote_memory::RemoteKey;

use super::{Truncated, be32, be64, take};

mod field {
    use std::ops::Range;

    pub const ADDR: Range<usize> = 0..8;
    pub const KEY: Range<usize> = 8..12;
    pub const DMA_LEN: Range<usize> = 12..16;
    pub const LEN: usize = DMA_LEN.end;
}

/// Length of the header in bytes.
pub const LEN: usize = field::LEN;

/// The owned form; small enough that a view would gain nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Address as the region was registered.
    pub addr: u64,
    /// Names the region.
    pub key: RemoteKey,
    /// Bytes of the whole message.
    pub len: u32,
}

/// Takes the header off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split(bytes: &[u8]) -> Result<(Repr, &[u8]), Truncated> {
    let (header, rest) = take::<LEN>(bytes)?;
    let repr = Repr {
        addr: be64(header, field::ADDR.start),
        key: RemoteKey::new(be32(header, field::KEY.start)),
        len: be32(header, field::DMA_LEN.start),
    };
    Ok((repr, rest))
}

impl Repr {
    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[field::ADDR].copy_from_slice(&self.addr.to_be_bytes());
        bytes[field::KEY].copy_from_slice(&self.key.raw().to_be_bytes());
        bytes[field::DMA_LEN].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; LEN] =
        [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x00, 0x00, 0x13, 0x50, 0x00, 0x00, 0x10, 0x00];

    #[test]
    fn both_directions_agree_with_the_literal_bytes() {
        let repr = Repr { addr: 0x1122_3344_5566_7788, key: RemoteKey::new(0x1350), len: 4096 };
        assert_eq!(split(&BYTES), Ok((repr, &[][..])));
        assert_eq!(repr.bytes(), BYTES);
        assert_eq!(split(&BYTES[1..]), Err(Truncated { need: 16, have: 15 }));
    }
}
