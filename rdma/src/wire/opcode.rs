//! Opcodes of the reliable connection. Source: "Base Transport Header", table of opcodes; Linux
//! include/rdma/ib_pack.h.

/// The first byte of a packet. A newtype, not an enum: unknown codes must survive parsing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opcode(pub u8);

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl Opcode {
            $($(#[$doc])* pub const $name: Self = Self($code);)*
        }

        impl std::fmt::Debug for Opcode {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self(code) => write!(f, "Opcode({code:#04x})"),
                }
            }
        }
    };
}

opcodes! {
    /// First packet of a WRITE of several; carries the RETH.
    WRITE_FIRST = 0x06;
    /// Neither first nor last packet of a WRITE.
    WRITE_MIDDLE = 0x07;
    /// Last packet of a WRITE of several.
    WRITE_LAST = 0x08;
    /// Last packet of a WRITE with immediate data (which needs a receive queue, and we have none).
    WRITE_LAST_IMMEDIATE = 0x09;
    /// A WRITE of one packet; carries the RETH.
    WRITE_ONLY = 0x0a;
    /// A WRITE of one packet with immediate data.
    WRITE_ONLY_IMMEDIATE = 0x0b;
    /// Asks for memory; carries the RETH and takes as many sequence numbers as its answer has packets.
    READ_REQUEST = 0x0c;
    /// First packet of an answer of several; carries the AETH.
    READ_RESPONSE_FIRST = 0x0d;
    /// Neither first nor last; the only answer without an AETH.
    READ_RESPONSE_MIDDLE = 0x0e;
    /// Last packet of an answer of several; carries the AETH.
    READ_RESPONSE_LAST = 0x0f;
    /// An answer of one packet; carries the AETH.
    READ_RESPONSE_ONLY = 0x10;
    /// ACK or NAK; carries the AETH.
    ACKNOWLEDGE = 0x11;
    /// Answer to an atomic; AETH and the original value.
    ATOMIC_ACKNOWLEDGE = 0x12;
    /// Compare-and-swap; carries the AtomicETH.
    COMPARE_SWAP = 0x13;
    /// Fetch-and-add; carries the AtomicETH.
    FETCH_ADD = 0x14;
}

impl Opcode {
    /// Bits of the transport service: 0 is the reliable connection.
    const SERVICE_MASK: u8 = 0xe0;

    /// Whether this belongs to a reliable connection.
    pub const fn is_reliable_connection(self) -> bool {
        self.0 & Self::SERVICE_MASK == 0
    }

    /// Whether a responder sends this, so that a requester receives it.
    pub const fn is_response(self) -> bool {
        self.0 >= Self::READ_RESPONSE_FIRST.0 && self.0 <= Self::ATOMIC_ACKNOWLEDGE.0
    }

    /// Whether this carries a WRITE's payload.
    pub const fn is_write(self) -> bool {
        self.0 >= Self::WRITE_FIRST.0 && self.0 <= Self::WRITE_ONLY_IMMEDIATE.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_codes_keep_their_value() {
        assert_eq!(format!("{:?} {:?}", Opcode(0x1d), Opcode::READ_REQUEST), "Opcode(0x1d) READ_REQUEST");
        assert!(Opcode(0x1d).is_reliable_connection() && !Opcode(0x81).is_reliable_connection());
    }

    #[test]
    fn responses_are_told_from_requests() {
        let responses: Vec<u8> = (0..=255).filter(|code| Opcode(*code).is_response()).collect();
        assert_eq!(responses, [0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x12]);
    }
}
