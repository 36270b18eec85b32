//! Resident pages of an `mm_struct`, in both ways in which kernels count them.
//!
//! ```text
//!   up to 6.1    rss_stat.count[4]       atomic words; each thread keeps up to 64 pages of its own (task.rss_stat)
//!   from 6.2     rss_stat[4]             percpu_counter: a word, and a signed 32-bit part for each processor
//! ```
//! The kernel's own /proc leaves parts of either out; here they are added.

use remote_memory::LinkError;
use serde::{Deserialize, Serialize};

use super::detail::Layouts;
use crate::Fault;
use crate::btf::{Btf, Field};
use crate::keyed::NumberMap;
use crate::linux::walk::{Walk, distinct};
use crate::memory::word;

/// `NR_MM_COUNTERS`.
const KINDS: usize = 4;

/// Place of what is swapped out among the kinds that are read.
const SWAP: usize = 3;

/// Parts of counters that are read: those of a thousand processes on 256 processors. Beyond it, sums are as far off as
/// those of the kernel's own /proc.
const PARTS_MAX: usize = 1 << 20;

/// What is resident, in pages of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rss {
    /// Of files.
    pub file_pages: u64,
    /// Anonymous: what only the end of the process gives back.
    pub anon_pages: u64,
    /// Of shared memory.
    pub shmem_pages: u64,
    /// Swapped out, and so not resident.
    pub swap_entries: u64,
}

impl Rss {
    /// `VmRSS` of /proc/PID/status, in pages.
    pub fn pages(&self) -> u64 {
        self.file_pages.saturating_add(self.anon_pages).saturating_add(self.shmem_pages)
    }
}

/// Where one kernel counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RssLayout {
    /// All four counters.
    counters: Field,
    /// What a thread keeps for itself, four 32-bit numbers.
    cached: Option<Field>,
    /// Of a `percpu_counter`: its size, its word, the pointer to its parts.
    parts: Option<(usize, Field, Field)>,
    /// Places of file, anonymous, shared, swapped out ([`SWAP`]).
    kinds: [usize; KINDS],
}

impl RssLayout {
    pub(super) fn resolve(btf: &Btf) -> Option<Self> {
        let kind = |name: &str| btf.count_of(name).filter(|kind| *kind < KINDS);
        let kinds = [kind("MM_FILEPAGES")?, kind("MM_ANONPAGES")?, kind("MM_SHMEMPAGES")?, kind("MM_SWAPENTS")?];
        let four_words = |field: &Field| field.size >= KINDS * 8;
        if let Some(counters) = btf.field_at("mm_struct.rss_stat.count").ok().filter(four_words) {
            let cached = btf.field_at("task_struct.rss_stat.count").ok().filter(|field| field.size >= KINDS * 4);
            return Some(Self { counters, cached, parts: None, kinds });
        }
        let counters = btf.field_at("mm_struct.rss_stat").ok()?;
        let size = btf.size("percpu_counter").ok()?;
        let (count, parts) =
            (btf.field_at("percpu_counter.count").ok()?, btf.field_at("percpu_counter.counters").ok()?);
        let fits = counters.size == size.checked_mul(KINDS)?;
        fits.then_some(Self { counters, cached: None, parts: Some((size, count, parts)), kinds })
    }

    pub(super) fn cached(&self) -> Option<Field> {
        self.cached
    }

    /// What a thread keeps for itself, out of a copy of its task.
    pub(super) fn cached_of(field: Field, task: &[u8]) -> [i64; KINDS] {
        std::array::from_fn(|kind| i64::from(word(field.bytes_of(task), kind * 4, 4) as u32 as i32))
    }

    /// The four words, and the four pointers to parts.
    fn words(&self, image: &[u8]) -> ([i64; KINDS], [u64; KINDS]) {
        let bytes = self.counters.bytes_of(image);
        match &self.parts {
            None => (std::array::from_fn(|kind| word(bytes, kind * 8, 8).cast_signed()), [0; KINDS]),
            Some((size, count, parts)) => {
                let of = |kind: usize, field: Field| word(bytes, kind * size + field.offset, 8);
                (
                    std::array::from_fn(|kind| of(kind, *count).cast_signed()),
                    std::array::from_fn(|kind| of(kind, *parts)),
                )
            }
        }
    }
}

impl Walk<'_> {
    /// What is resident of each task's mm; `cached` is what its threads keep for themselves.
    pub(super) fn resident(
        &mut self,
        mms: &[Option<u64>],
        cached: &[[i64; KINDS]],
        layouts: &Layouts,
    ) -> Result<Vec<Option<Rss>>, LinkError> {
        let Some(layout) = &layouts.rss else {
            self.report(0, "rss_stat", Fault::Unknown);
            return Ok(vec![None; mms.len()]);
        };
        let spaces = distinct(mms.iter().flatten().copied());
        let counted = self.gather(&spaces, &[layout.counters], "mm_struct.rss_stat", |image| layout.words(image))?;
        let mut sums: NumberMap<u64, [i64; KINDS]> = NumberMap::default();
        let mut parts = Vec::new();
        for (mm, counted) in spaces.iter().zip(counted) {
            let Some((words, pointers)) = counted else { continue };
            sums.insert(*mm, words);
            parts.extend(pointers.into_iter().enumerate().map(|(kind, at)| (*mm, kind, at)).filter(|part| part.2 != 0));
        }
        for (mm, cached) in mms.iter().zip(cached) {
            let Some(sum) = mm.and_then(|mm| sums.get_mut(&mm)) else { continue };
            sum.iter_mut().zip(cached).for_each(|(sum, more)| *sum = sum.wrapping_add(*more));
        }
        if !parts.is_empty() {
            self.add_parts(&parts, &mut sums)?;
        }
        // Asked only where somebody claims to have something there: most machines hardly swap.
        let claimed = sums.values().any(|sum| sum[layout.kinds[SWAP]] > 0);
        let swap = if claimed { self.number("total_swap_pages", 0, 8)?.unwrap_or(0) } else { 0 };
        Ok(self.plausible(mms, &sums, layout, swap))
    }

    /// Adds the processors' parts of the counters, which are (mm, kind, per-CPU pointer).
    fn add_parts(
        &mut self,
        parts: &[(u64, usize, u64)],
        sums: &mut NumberMap<u64, [i64; KINDS]>,
    ) -> Result<(), LinkError> {
        let bases = self.cpu_bases()?;
        if parts.len().saturating_mul(bases.len()) > PARTS_MAX {
            self.report(parts[0].0, "parts of rss_stat", Fault::TooLong { limit: PARTS_MAX as u64 });
            return Ok(());
        }
        let at: Vec<u64> =
            parts.iter().flat_map(|part| bases.iter().map(move |(_, base)| base.wrapping_add(part.2))).collect();
        let records = self.stretches(&at, 4, "percpu_counter.counters")?;
        for (index, (mm, kind, _)) in parts.iter().enumerate() {
            let whole = (0..bases.len()).all(|cpu| records.bytes(index * bases.len() + cpu).is_some());
            if !whole {
                // A sum without its parts may be wrong by anything.
                sums.remove(mm);
                continue;
            }
            let Some(sum) = sums.get_mut(mm) else { continue };
            for cpu in 0..bases.len() {
                let part = records.bytes(index * bases.len() + cpu).map_or(0, |bytes| word(bytes, 0, 4) as u32 as i32);
                sum[*kind] = sum[*kind].wrapping_add(part.into());
            }
        }
        Ok(())
    }

    /// Sums as pages; nobody has more resident than there is memory, nor more swapped out than there is `swap`. Below
    /// zero is a moment between two additions.
    fn plausible(
        &mut self,
        mms: &[Option<u64>],
        sums: &NumberMap<u64, [i64; KINDS]>,
        layout: &RssLayout,
        swap: u64,
    ) -> Vec<Option<Rss>> {
        let limit = self.kernel.space.extents.iter().map(|extent| extent.len / remote_memory::PAGE_BYTES).sum();
        let mut found: NumberMap<u64, Option<Rss>> = NumberMap::default();
        for (mm, sum) in sums {
            let [file_pages, anon_pages, shmem_pages, swap_entries] = layout.kinds.map(|kind| sum[kind].max(0) as u64);
            let rss = Rss { file_pages, anon_pages, shmem_pages, swap_entries };
            let is_resident = [file_pages, anon_pages, shmem_pages].iter().all(|pages| *pages <= limit);
            let is_plausible = is_resident && swap_entries <= swap;
            if !is_plausible {
                let limit = if is_resident { swap } else { limit };
                self.report(*mm, "mm_struct.rss_stat", Fault::TooLong { limit });
            }
            found.insert(*mm, is_plausible.then_some(rss));
        }
        mms.iter().map(|mm| found.get(&(*mm)?).copied().flatten()).collect()
    }
}
