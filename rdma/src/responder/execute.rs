//! What the expected packet asks is carried out.

use remote_memory::Rights;

use super::reply::{ReadReply, Reply, syndrome_of};
use super::{MESSAGE_BYTES_MAX, Memory, OpenWrite, Refusal, Responder, SavedAtomic, SavedRead};
use crate::wire::aeth::Syndrome;
use crate::wire::{Opcode, atomic, bth, packet, reth};

impl Responder {
    /// Executes the packet with the expected PSN, or breaks the connection over it.
    pub(super) fn execute<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) {
        let done = match header.opcode {
            Opcode::WRITE_FIRST | Opcode::WRITE_ONLY => self.begin_write(memory, header, body),
            Opcode::WRITE_MIDDLE | Opcode::WRITE_LAST => self.continue_write(memory, header, body),
            _ if self.open_write.is_some() => Err(Refusal::Malformed),
            Opcode::READ_REQUEST => self.read(memory, header, body),
            Opcode::COMPARE_SWAP | Opcode::FETCH_ADD => self.atomic(memory, header, body),
            _ => Err(Refusal::Malformed),
        };
        if let Err(refusal) = done {
            self.fail(header.psn, syndrome_of(refusal));
        }
    }

    fn begin_write<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) -> Result<(), Refusal> {
        let (reth, payload) = reth::split(body).map_err(|_| Refusal::Malformed)?;
        if self.open_write.is_some() || reth.len > MESSAGE_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        if reth.len > 0 {
            check(memory, &reth, Rights::WRITE)?;
        }
        let write = OpenWrite { key: reth.key, addr: reth.addr, remaining: reth.len };
        self.write_payload(memory, header, payload, write, header.opcode == Opcode::WRITE_ONLY)
    }

    fn continue_write<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        header: &bth::Repr,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let write = self.open_write.ok_or(Refusal::Malformed)?;
        self.write_payload(memory, header, payload, write, header.opcode == Opcode::WRITE_LAST)
    }

    /// Writes one packet's bytes. All packets but the last are full, and the last is what remains.
    fn write_payload<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        header: &bth::Repr,
        payload: &[u8],
        write: OpenWrite,
        last: bool,
    ) -> Result<(), Refusal> {
        let (mtu, remaining) = (self.mtu.bytes(), write.remaining as usize);
        let due = remaining.min(mtu);
        if last != (remaining <= mtu) || payload.len() != due || header.pad != packet::pad(due) {
            return Err(Refusal::Malformed);
        }
        if due > 0 {
            memory.write(write.key, write.addr, payload)?;
        }
        self.counters.write_bytes += due as u64;
        self.open_write = (!last).then(|| OpenWrite {
            key: write.key,
            addr: write.addr.wrapping_add(due as u64), // in range: checked with the first packet
            remaining: write.remaining - due as u32,
        });
        self.expected = header.psn.plus(1);
        if last {
            self.counters.writes += 1;
            self.finish_message();
        }
        if header.ack_request {
            self.acknowledge(header.psn, Syndrome::ACK);
        }
        Ok(())
    }

    fn read<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) -> Result<(), Refusal> {
        let reth = read_request(memory, body)?;
        let packets = self.mtu.packets(reth.len);
        self.expected = header.psn.plus(packets);
        self.writes_from = self.expected;
        self.finish_message();
        if self.reads.len() == self.saved_max {
            self.reads.pop_front();
        }
        self.reads.push_back(SavedRead { psn: header.psn, packets });
        self.queue_read(header, &reth, false);
        Ok(())
    }

    /// Queues the answer to a READ that was checked; `continued` if a part of it has left before.
    pub(super) fn queue_read(&mut self, header: &bth::Repr, reth: &reth::Repr, continued: bool) {
        self.counters.reads += 1;
        self.replies.push_back(Reply::Read(ReadReply {
            psn: header.psn,
            key: reth.key,
            addr: reth.addr,
            remaining: reth.len,
            msn: self.msn,
            started: continued,
        }));
    }

    fn atomic<M: Memory + ?Sized>(&mut self, memory: &M, header: &bth::Repr, body: &[u8]) -> Result<(), Refusal> {
        let (request, rest) = atomic::split(body).map_err(|_| Refusal::Malformed)?;
        if !rest.is_empty() || request.addr % size_of::<u64>() as u64 != 0 {
            return Err(Refusal::Malformed);
        }
        let original = if header.opcode == Opcode::COMPARE_SWAP {
            memory.compare_swap(request.key, request.addr, request.compare, request.swap_or_add)?
        } else {
            memory.fetch_add(request.key, request.addr, request.swap_or_add)?
        };
        self.counters.atomics += 1;
        self.expected = header.psn.plus(1);
        self.writes_from = self.expected;
        self.finish_message();
        if self.atomics.len() == self.saved_max {
            self.atomics.pop_front();
        }
        self.atomics.push_back(SavedAtomic { psn: header.psn, original });
        self.replies.push_back(Reply::Atomic { psn: header.psn, original, msn: self.msn });
        Ok(())
    }
}

/// Parses a READ request and asks memory about it.
pub(super) fn read_request<M: Memory + ?Sized>(memory: &M, body: &[u8]) -> Result<reth::Repr, Refusal> {
    let (reth, rest) = reth::split(body).map_err(|_| Refusal::Malformed)?;
    if !rest.is_empty() || reth.len > MESSAGE_BYTES_MAX {
        return Err(Refusal::Malformed);
    }
    if reth.len > 0 {
        check(memory, &reth, Rights::READ)?;
    }
    Ok(reth)
}

/// Asks memory about a whole message; one that would leave the address space is not worth asking about.
fn check<M: Memory + ?Sized>(memory: &M, reth: &reth::Repr, rights: Rights) -> Result<(), Refusal> {
    reth.addr.checked_add(u64::from(reth.len)).ok_or(Refusal::Access)?;
    memory.check(reth.key, reth.addr, u64::from(reth.len), rights)
}
