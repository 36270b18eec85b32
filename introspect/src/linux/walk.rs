//! What a walk through a kernel's structures carries along: the kernel, its memory, and what was wrong with it.

use remote_memory::{KernelVirt, LinkError, RemoteKey, RemoteRead};

use crate::btf::Field;
use crate::memory::{Memory, Records, word};
use crate::{Damage, Fault, Kernel};

/// Members of a struct closer than this travel in one read, or closer than a request costs on this link if that is
/// less: what lies between them is read for nothing.
pub(super) const GAP_BYTES: usize = 256;

/// `CONFIG_NR_CPUS` of the largest kernels.
const CPUS_MAX: u64 = 8192;

pub(super) struct Walk<'a> {
    pub kernel: &'a Kernel,
    pub memory: Memory<'a>,
    pub damage: Vec<Damage>,
}

impl<'a> Walk<'a> {
    pub fn new(kernel: &'a Kernel, mem: &'a mut dyn RemoteRead, ram: RemoteKey) -> Self {
        Self { kernel, memory: Memory::new(mem, ram, &kernel.space.extents), damage: Vec::new() }
    }

    pub fn report(&mut self, at: u64, part: &'static str, fault: Fault) {
        self.damage.push(Damage { at: KernelVirt::new(at), part, fault });
    }

    /// The number behind a symbol.
    pub fn number(&mut self, symbol: &'static str, offset: u64, size: usize) -> Result<Option<u64>, LinkError> {
        let Some(at) = self.kernel.symbol(symbol).and_then(|at| at.checked_add(offset)) else { return Ok(None) };
        let bytes = self.kernel.space.fetch(&mut self.memory, at, size)?;
        if bytes.is_none() {
            self.report(at.raw(), symbol, Fault::Unreadable);
        }
        Ok(bytes.map(|bytes| word(&bytes, 0, size)))
    }

    /// What is added to the address of a per-CPU symbol, for each processor that the machine may have.
    pub fn cpu_bases(&mut self) -> Result<Vec<(u32, u64)>, LinkError> {
        let Some(offsets) = self.kernel.symbol("__per_cpu_offset") else { return Ok(Vec::new()) };
        let cpus = self.number("nr_cpu_ids", 0, 4)?.unwrap_or(0);
        if cpus > CPUS_MAX {
            self.report(offsets.raw(), "nr_cpu_ids", Fault::TooLong { limit: CPUS_MAX });
            return Ok(Vec::new());
        }
        let at: Vec<_> = (0..cpus).map(|cpu| KernelVirt::new(offsets.raw().wrapping_add(cpu * 8))).collect();
        let bases = self.kernel.space.fetch_equal(&mut self.memory, &at, 8)?;
        // A processor without a base of its own was never there.
        let present =
            |(cpu, base): (usize, Option<&[u8]>)| Some((cpu as u32, word(base?, 0, 8))).filter(|it| it.1 != 0);
        Ok(bases.iter().enumerate().filter_map(present).collect())
    }

    /// Stretches of `len` bytes, in one round; null pointers are not followed, what cannot be read is reported.
    pub fn stretches(&mut self, at: &[u64], len: usize, part: &'static str) -> Result<Records, LinkError> {
        let virts: Vec<_> = at.iter().map(|at| KernelVirt::new(*at)).collect();
        let records = self.kernel.space.fetch_equal(&mut self.memory, &virts, len)?;
        for (at, record) in at.iter().zip(records.iter()) {
            if record.is_none() && *at != 0 {
                self.report(*at, part, Fault::Unreadable);
            }
        }
        Ok(records)
    }

    /// What `of` takes out of each of the structs at `bases`, given a copy of its members `fields`.
    pub fn gather<T>(
        &mut self,
        bases: &[u64],
        fields: &[Field],
        part: &'static str,
        of: impl Fn(&[u8]) -> T,
    ) -> Result<Vec<Option<T>>, LinkError> {
        let mut found: Vec<Option<T>> = bases.iter().map(|_| None).collect();
        self.each_copy(bases, fields, part, |number, copy| found[number] = copy.map(&of))?;
        Ok(found)
    }

    /// Calls `each` with the number of every struct at `bases`, in any order, and a copy of it in which the members
    /// `fields` lie at their own offsets; `None` for one that could not be read, which is reported. Of a task's ten
    /// thousand bytes two hundred travel.
    pub fn each_copy(
        &mut self,
        bases: &[u64],
        fields: &[Field],
        part: &'static str,
        mut each: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), LinkError> {
        let parts = merged(fields, self.memory.gap_bytes().min(GAP_BYTES));
        let mut image = vec![0; parts.last().map_or(0, |(start, len)| start + len)];
        let damage = &mut self.damage;
        self.kernel.space.each_of_parts(&mut self.memory, bases, &parts, |number, packed| {
            let Some(mut rest) = packed else {
                damage.push(Damage { at: KernelVirt::new(bases[number]), part, fault: Fault::Unreadable });
                return each(number, None);
            };
            for (start, len) in &parts {
                let (piece, later) = rest.split_at(*len);
                image[*start..start + len].copy_from_slice(piece);
                rest = later;
            }
            each(number, Some(&image));
        })
    }
}

/// The parts of a struct to read, as (offset, length), neighbours merged.
fn merged(fields: &[Field], gap_bytes: usize) -> Vec<(usize, usize)> {
    let mut fields = fields.to_vec();
    fields.sort_by_key(|field| field.offset);
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for field in fields {
        match parts.last_mut() {
            Some((start, len)) if field.offset <= *start + *len + gap_bytes => {
                *len = (*len).max(field.end() - *start);
            }
            _ => parts.push((field.offset, field.size)),
        }
    }
    parts
}

/// Pointers without repetition and without null, in order.
pub(super) fn distinct(pointers: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut distinct: Vec<u64> = pointers.into_iter().filter(|pointer| *pointer != 0).collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
}
