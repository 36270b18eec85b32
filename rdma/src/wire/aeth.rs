//! ACK Extended Transport Header: how a request went. On every answer except a READ response in the middle.
//! Source: "ACK Extended Transport Header (AETH)" and "NAK codes".
//!
//! ```text
//!   0 syndrome | 1-3 message sequence number        syndrome: 000 credits | 001 RNR timer | 011 NAK code
//! ```

use std::time::Duration;

use super::{Truncated, be24, take};

/// Length of the header in bytes.
pub const LEN: usize = 4;

/// The code that says how it went. A newtype: unknown codes must survive parsing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Syndrome(pub u8);

/// What a syndrome means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Done; the credits in it are for receive queues, and nobody here has one.
    Ack,
    /// Receiver not ready: wait this long, then repeat.
    NotReady(Duration),
    /// A packet before this one is missing: repeat from the PSN of the NAK.
    SequenceError,
    /// The request makes no sense; the connection is broken.
    InvalidRequest,
    /// Key, bounds or rights forbid it; the connection is broken.
    AccessError,
    /// The responder could not do it; the connection is broken.
    OperationalError,
    /// A code without a meaning for a reliable connection.
    Unknown(u8),
}

impl Syndrome {
    /// ACK, credits "no limit": what rxe sends always.
    pub const ACK: Self = Self(0x1f);
    /// NAK: PSN sequence error.
    pub const SEQUENCE_ERROR: Self = Self(0x60);
    /// NAK: invalid request.
    pub const INVALID_REQUEST: Self = Self(0x61);
    /// NAK: remote access error.
    pub const ACCESS_ERROR: Self = Self(0x62);
    /// NAK: remote operational error.
    pub const OPERATIONAL_ERROR: Self = Self(0x63);

    const KIND_SHIFT: u32 = 5;
    const VALUE_MASK: u8 = 0x1f;

    /// What it means.
    pub fn verdict(self) -> Verdict {
        match (self.0 >> Self::KIND_SHIFT, self) {
            (0, _) => Verdict::Ack,
            (1, _) => Verdict::NotReady(rnr_delay(self.0 & Self::VALUE_MASK)),
            (_, Self::SEQUENCE_ERROR) => Verdict::SequenceError,
            (_, Self::INVALID_REQUEST) => Verdict::InvalidRequest,
            (_, Self::ACCESS_ERROR) => Verdict::AccessError,
            (_, Self::OPERATIONAL_ERROR) => Verdict::OperationalError,
            (_, Self(code)) => Verdict::Unknown(code),
        }
    }
}

/// The waits that the 32 RNR timer codes stand for, in units of 10 µs.
/// Source: "Encoding for RNR NAK Timer Field".
const RNR_DELAY_10_US: [u32; 32] = [
    65_536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12_288, 16_384, 24_576, 32_768, 49_152,
];

/// The wait that RNR timer `code` (its low 5 bits) stands for.
pub fn rnr_delay(code: u8) -> Duration {
    Duration::from_micros(10) * RNR_DELAY_10_US[usize::from(code & Syndrome::VALUE_MASK)]
}

/// The owned form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// How it went.
    pub syndrome: Syndrome,
    /// Messages the responder has finished, modulo 2^24.
    pub msn: u32,
}

/// Takes the header off the front of `bytes`.
///
/// # Errors
/// [`Truncated`] if it is not all there.
pub fn split(bytes: &[u8]) -> Result<(Repr, &[u8]), Truncated> {
    let (header, rest) = take::<LEN>(bytes)?;
    Ok((Repr { syndrome: Syndrome(header[0]), msn: be24(header, 1) }, rest))
}

impl Repr {
    /// The header's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        let [_, high, mid, low] = self.msn.to_be_bytes();
        [self.syndrome.0, high, mid, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_agree_with_the_literal_bytes() {
        let repr = Repr { syndrome: Syndrome::ACK, msn: 7 };
        assert_eq!(split(&[0x1f, 0, 0, 7, 9]), Ok((repr, &[9][..])));
        assert_eq!(repr.bytes(), [0x1f, 0, 0, 7]);
        assert_eq!(split(&[0; 3]), Err(Truncated { need: 4, have: 3 }));
    }

    #[test]
    fn syndromes_mean_what_the_specification_says() {
        let check = |code, verdict| assert_eq!(Syndrome(code).verdict(), verdict, "{code:#04x}");
        check(0x00, Verdict::Ack);
        check(0x1f, Verdict::Ack);
        check(0x2c, Verdict::NotReady(Duration::from_micros(640)));
        check(0x20, Verdict::NotReady(Duration::from_micros(655_360)));
        check(0x60, Verdict::SequenceError);
        check(0x61, Verdict::InvalidRequest);
        check(0x62, Verdict::AccessError);
        check(0x63, Verdict::OperationalError);
        check(0x64, Verdict::Unknown(0x64));
        check(0xff, Verdict::Unknown(0xff));
    }
}
