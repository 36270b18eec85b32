//! The kernel's log, out of its ring buffer (`kernel/printk/printk_ringbuffer.c`, from 5.10 on): what a machine said
//! last, also when nobody was left to write it to a disk.
//!
//! ```text
//!   prb -> descs[id % n]    state, id, where the text begins and ends
//!          infos[id % n]    sequence number, time, level, length
//!          data[begin % size .. end % size]    the id again (8 bytes), then the text; a block never wraps: one that
//!                                              would not fit before the end begins anew at the start
//! ```
//! A record is believed if its descriptor and its block both name its id: a place that was reused names another one.
//! Records that were being written at the stop have no text yet and are passed over, as the kernel does.

use std::ops::Range;

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::walk::Walk;
use crate::btf::{Btf, TypeError, layout};
use crate::memory::word;
use crate::paging::Pieces;
use crate::{Damage, Fault, Kernel};

/// More records than anybody reads; bounds our memory.
pub const RECORDS_MAX: usize = 64 * 1024;

/// `LOG_BUF_LEN_MAX` is 2^31 bytes; a ring that claims more is none.
const SIZE_BITS_MAX: u64 = 31;

/// The longest text taken of one record, in bytes; the kernel's own limit for a line is about a thousand.
const TEXT_BYTES_MAX: u64 = 8 * 1024;

/// The id that stands before each text.
const BLOCK_ID_BYTES: u64 = 8;

/// The two highest bits of `state_var` are the state, the others the id.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;

/// Everything the walk needs to know of the kernel's types.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LogLayout {
    ring: RingLayout,
    desc: DescLayout,
    desc_bytes: usize,
    info: InfoLayout,
    info_bytes: usize,
}

layout! {
    /// The ring itself.
    pub(crate) struct RingLayout {
        count_bits: "printk_ringbuffer.desc_ring.count_bits",
        descs: "printk_ringbuffer.desc_ring.descs",
        infos: "printk_ringbuffer.desc_ring.infos",
        head_id: "printk_ringbuffer.desc_ring.head_id",
        tail_id: "printk_ringbuffer.desc_ring.tail_id",
        size_bits: "printk_ringbuffer.text_data_ring.size_bits",
        data: "printk_ringbuffer.text_data_ring.data",
    }
}

layout! {
    /// A record's place.
    pub(crate) struct DescLayout {
        state: "prb_desc.state_var",
        begin: "prb_desc.text_blk_lpos.begin",
        next: "prb_desc.text_blk_lpos.next",
    }
}

layout! {
    /// What is said of a record.
    pub(crate) struct InfoLayout {
        seq: "printk_info.seq",
        time: "printk_info.ts_nsec",
        text_len: "printk_info.text_len",
        level: "printk_info.level",
    }
}

impl LogLayout {
    pub(crate) fn resolve(btf: &Btf) -> Result<Self, TypeError> {
        Ok(Self {
            ring: RingLayout::resolve(btf)?,
            desc: DescLayout::resolve(btf)?,
            desc_bytes: btf.size("prb_desc")?,
            info: InfoLayout::resolve(btf)?,
            info_bytes: btf.size("printk_info")?,
        })
    }
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its number since boot.
    pub seq: u64,
    /// When it was written, in nanoseconds of the target's clock since boot.
    pub time_ns: u64,
    /// 0 emergency … 7 debug.
    pub level: u8,
    /// The text; may have several lines. Control characters are written out, so that it can be shown to people.
    pub text: String,
}

/// A record on its way to its text.
struct Draft {
    id: u64,
    seq: u64,
    time_ns: u64,
    level: u8,
    block: Vec<u8>,
}

/// Reads the newest `wanted` records ([`RECORDS_MAX`] at most), oldest first.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn tail(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
    wanted: usize,
) -> Result<(Vec<Record>, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let records = walk.tail(wanted.min(RECORDS_MAX))?;
    Ok((records, walk.damage))
}

/// Where the parts of the ring are, within their bounds.
struct Ring {
    descs: u64,
    infos: u64,
    data: u64,
    data_bytes: u64,
    places: u64,
    head: u64,
    tail: u64,
}

impl Ring {
    /// Where in `data` the block from `begin` to `next` lies, its id included; `None` if no block of a whole ring
    /// lies so.
    fn block(&self, begin: u64, next: u64) -> Option<Range<u64>> {
        let turn = |position: u64| position / self.data_bytes;
        let (from, to) = (begin % self.data_bytes, next % self.data_bytes);
        let range = match turn(next).wrapping_sub(turn(begin)) {
            0 => from..to,
            // It ends where the ring does, or would not have fitted there.
            1 if to == 0 => from..self.data_bytes,
            1 => 0..to,
            _ => return None,
        };
        (range.end.checked_sub(range.start)? >= BLOCK_ID_BYTES).then_some(range)
    }
}

impl Walk<'_> {
    fn tail(&mut self, wanted: usize) -> Result<Vec<Record>, LinkError> {
        let (Some(layout), Some(prb)) = (&self.kernel.log, self.kernel.symbol("prb")) else {
            self.report(0, "prb", Fault::Unsupported);
            return Ok(Vec::new());
        };
        let Some(ring) = self.ring(&layout.ring, prb)? else { return Ok(Vec::new()) };
        let held = (ring.head.wrapping_sub(ring.tail) & ID_MASK).saturating_add(1);
        let count = held.min(ring.places).min(wanted as u64);
        let ids: Vec<u64> = (0..count).rev().map(|back| ring.head.wrapping_sub(back) & ID_MASK).collect();
        let drafts = self.drafts(layout, &ring, &ids)?;
        Ok(self.judged(&ring, drafts))
    }

    fn ring(&mut self, layout: &RingLayout, prb: KernelVirt) -> Result<Option<Ring>, LinkError> {
        let pointer = self.kernel.space.fetch(&mut self.memory, prb, 8)?.map(|bytes| word(&bytes, 0, 8));
        let bytes = match pointer {
            Some(at) => self.kernel.space.fetch(&mut self.memory, KernelVirt::new(at), layout.span())?,
            None => None,
        };
        let Some(bytes) = bytes else {
            self.report(prb.raw(), "prb", Fault::Unreadable);
            return Ok(None);
        };
        let (count_bits, size_bits) = (layout.count_bits.of(&bytes), layout.size_bits.of(&bytes));
        if count_bits > SIZE_BITS_MAX || size_bits > SIZE_BITS_MAX {
            self.report(pointer.unwrap_or(0), "size of the log", Fault::TooLong { limit: 1 << SIZE_BITS_MAX });
            return Ok(None);
        }
        Ok(Some(Ring {
            descs: layout.descs.of(&bytes),
            infos: layout.infos.of(&bytes),
            data: layout.data.of(&bytes),
            data_bytes: 1 << size_bits,
            places: 1 << count_bits,
            head: layout.head_id.of(&bytes) & ID_MASK,
            tail: layout.tail_id.of(&bytes) & ID_MASK,
        }))
    }

    /// Descriptors and infos in two rounds, the blocks they lead to in a third.
    fn drafts(&mut self, layout: &LogLayout, ring: &Ring, ids: &[u64]) -> Result<Vec<Draft>, LinkError> {
        let space = &self.kernel.space;
        let at = |base: u64, bytes: usize| -> Vec<KernelVirt> {
            let offset = |id: &u64| (id % ring.places).wrapping_mul(bytes as u64);
            ids.iter().map(|id| KernelVirt::new(base.wrapping_add(offset(id)))).collect()
        };
        let (desc_at, info_at) = (at(ring.descs, layout.desc_bytes), at(ring.infos, layout.info_bytes));
        let descs = space.fetch_equal(&mut self.memory, &desc_at, layout.desc.span())?;
        let infos = space.fetch_equal(&mut self.memory, &info_at, layout.info.span())?;
        let (mut drafts, mut places) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for (index, id) in ids.iter().enumerate() {
            let (Some(desc), Some(info)) = (descs.bytes(index), infos.bytes(index)) else {
                self.report(desc_at[index].raw(), "prb_desc", Fault::Unreadable);
                continue;
            };
            let state = layout.desc.state.of(desc);
            if ![COMMITTED, FINALIZED].contains(&(state >> STATE_SHIFT)) {
                continue; // being written, or about to be overwritten
            }
            if state & ID_MASK != *id {
                let fault = Fault::Mismatch { expected: *id, found: state & ID_MASK };
                self.report(desc_at[index].raw(), "prb_desc.state_var", fault);
                continue;
            }
            let (begin, next) = (layout.desc.begin.of(desc), layout.desc.next.of(desc));
            // Both odd: a record without text.
            let is_empty = begin & next & 1 == 1;
            let block = if is_empty { Some(0..0) } else { ring.block(begin, next) };
            let Some(block) = block else {
                let fault = Fault::Mismatch { expected: begin, found: next };
                self.report(desc_at[index].raw(), "prb_desc.text_blk_lpos", fault);
                continue;
            };
            let text_bytes = layout.info.text_len.of(info).min(TEXT_BYTES_MAX);
            let len = (block.end - block.start).min(BLOCK_ID_BYTES + text_bytes);
            places.push(KernelVirt::new(ring.data.wrapping_add(block.start)));
            let (seq, time_ns) = (layout.info.seq.of(info), layout.info.time.of(info));
            let level = layout.info.level.of(info) as u8;
            drafts.push(Draft { id: *id, seq, time_ns, level, block: vec![0; len as usize] });
        }
        self.fill(&mut drafts, &places)?;
        Ok(drafts)
    }

    fn fill(&mut self, drafts: &mut Vec<Draft>, places: &[KernelVirt]) -> Result<(), LinkError> {
        let mut pieces = Pieces::default();
        for (owner, (draft, at)) in drafts.iter_mut().zip(places).enumerate() {
            if !draft.block.is_empty() {
                pieces.add(&self.kernel.space, owner, *at, &mut draft.block);
            }
        }
        let mut failed = vec![false; places.len()];
        pieces.fetch(&self.kernel.space, &mut self.memory, |owner| failed[owner] = true)?;
        for (at, _) in places.iter().zip(&failed).filter(|(_, failed)| **failed) {
            self.report(at.raw(), "text of the log", Fault::Unreadable);
        }
        let mut failed = failed.into_iter();
        drafts.retain(|_| !failed.next().unwrap_or(true));
        Ok(())
    }

    /// The records whose blocks are theirs.
    fn judged(&mut self, ring: &Ring, drafts: Vec<Draft>) -> Vec<Record> {
        let mut records = Vec::with_capacity(drafts.len());
        let mut last: Option<(u64, u64)> = None;
        for Draft { id, seq, time_ns, level, block } in drafts {
            let found = word(&block, 0, 8);
            if !block.is_empty() && found != id {
                self.report(ring.data, "text of the log", Fault::Mismatch { expected: id, found });
                continue;
            }
            if let Some((last_id, last_seq)) = last {
                let expected = last_seq.wrapping_add(id.wrapping_sub(last_id) & ID_MASK);
                if expected != seq {
                    self.report(ring.infos, "printk_info.seq", Fault::Mismatch { expected, found: seq });
                }
            }
            last = Some((id, seq));
            let text = shown(block.get(BLOCK_ID_BYTES as usize..).unwrap_or(&[]));
            records.push(Record { seq, time_ns, level, text });
        }
        records
    }
}

/// Text from a machine that nobody trusts, fit for a terminal.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for letter in String::from_utf8_lossy(bytes).chars() {
        match letter {
            '\n' | '\t' => text.push(letter),
            control if control.is_control() => text.extend(control.escape_default()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        Ring { descs: 0, infos: 0, data: 0, data_bytes: 1024, places: 8, head: 0, tail: 0 }
    }

    #[test]
    fn a_block_lies_in_one_piece_or_nowhere() {
        let ring = ring();
        assert_eq!(ring.block(1024 + 16, 1024 + 48), Some(16..48));
        assert_eq!(ring.block(1000, 1024), Some(1000..1024));
        assert_eq!(ring.block(1000, 1024 + 64), Some(0..64), "it did not fit before the end");
        assert_eq!(ring.block(48, 16), None);
        assert_eq!(ring.block(16, 20), None, "shorter than its id");
        assert_eq!(ring.block(0, 4096), None, "two turns");
        assert_eq!(ring.block(u64::MAX, 8), None);
    }

    #[test]
    fn what_a_target_logs_cannot_steer_a_terminal() {
        assert_eq!(shown(b"one\ntwo\t\x1b[31mred\x07"), "one\ntwo\t\\u{1b}[31mred\\u{7}");
        assert_eq!(shown(&[0xff, b'a']), "\u{fffd}a");
    }
}
