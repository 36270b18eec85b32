//! Answers that wait to be sent, and how one becomes a packet.

use remote_memory::RemoteKey;

use super::{Memory, Refusal};
use crate::PathMtu;
use crate::wire::aeth::{self, Syndrome};
use crate::wire::{Opcode, Psn, bth, packet};

/// One waiting answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    /// ACK or NAK.
    Acknowledge { psn: Psn, syndrome: Syndrome, msn: u32 },
    /// The original value of an atomic.
    Atomic { psn: Psn, original: u64, msn: u32 },
    /// Memory, in as many packets as it takes.
    Read(ReadReply),
}

/// The part of a READ's answer that is not sent yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadReply {
    /// Of the next packet.
    pub psn: Psn,
    pub key: RemoteKey,
    /// Of the next packet.
    pub addr: u64,
    pub remaining: u32,
    pub msn: u32,
    /// Whether a packet of it has left.
    pub started: bool,
}

/// A packet was made.
pub(super) struct Made {
    /// From BTH to padding, in bytes.
    pub len: usize,
    /// Whether the answer goes on.
    pub more: bool,
    /// Memory that was copied into it.
    pub read_bytes: usize,
}

/// What goes on the wire for a refusal.
pub(super) fn syndrome_of(refusal: Refusal) -> Syndrome {
    match refusal {
        Refusal::Access => Syndrome::ACCESS_ERROR,
        Refusal::Malformed | Refusal::Outdated => Syndrome::INVALID_REQUEST,
        Refusal::Unreachable => Syndrome::OPERATIONAL_ERROR,
    }
}

impl Reply {
    /// Makes the next packet of this answer in `out`, or says which packet memory refused, and why.
    pub(super) fn make<M: Memory + ?Sized>(
        &mut self,
        peer: u32,
        mtu: PathMtu,
        memory: &M,
        out: &mut [u8],
    ) -> Result<Made, (Psn, Refusal)> {
        match self {
            Self::Acknowledge { psn, syndrome, msn } => {
                let aeth = aeth::Repr { syndrome: *syndrome, msn: *msn }.bytes();
                let header = bth::Repr::new(Opcode::ACKNOWLEDGE, peer, *psn);
                let (_, len) = packet::begin(out, header, &[&aeth], 0);
                Ok(Made { len, more: false, read_bytes: 0 })
            }
            Self::Atomic { psn, original, msn } => {
                let aeth = aeth::Repr { syndrome: Syndrome::ACK, msn: *msn }.bytes();
                let header = bth::Repr::new(Opcode::ATOMIC_ACKNOWLEDGE, peer, *psn);
                let (_, len) = packet::begin(out, header, &[&aeth, &original.to_be_bytes()], 0);
                Ok(Made { len, more: false, read_bytes: 0 })
            }
            Self::Read(read) => read.make(peer, mtu, memory, out),
        }
    }
}

impl ReadReply {
    fn make<M: Memory + ?Sized>(
        &mut self,
        peer: u32,
        mtu: PathMtu,
        memory: &M,
        out: &mut [u8],
    ) -> Result<Made, (Psn, Refusal)> {
        let last = self.remaining as usize <= mtu.bytes();
        let chunk = (self.remaining as usize).min(mtu.bytes());
        let opcode = match (self.started, last) {
            (false, true) => Opcode::READ_RESPONSE_ONLY,
            (false, false) => Opcode::READ_RESPONSE_FIRST,
            (true, false) => Opcode::READ_RESPONSE_MIDDLE,
            (true, true) => Opcode::READ_RESPONSE_LAST,
        };
        let aeth = aeth::Repr { syndrome: Syndrome::ACK, msn: self.msn }.bytes();
        let extension: &[&[u8]] = if opcode == Opcode::READ_RESPONSE_MIDDLE { &[] } else { &[&aeth] };
        let (payload, len) = packet::begin(out, bth::Repr::new(opcode, peer, self.psn), extension, chunk);
        if chunk > 0 {
            memory.read(self.key, self.addr, &mut out[payload]).map_err(|refusal| (self.psn, refusal))?;
        }
        self.psn = self.psn.plus(1);
        self.addr = self.addr.wrapping_add(chunk as u64); // in range: checked when the READ came
        self.remaining -= chunk as u32;
        self.started = true;
        Ok(Made { len, more: !last, read_bytes: chunk })
    }
}
