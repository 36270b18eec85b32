//! Waking sleepers: timers of the kernel's own kind, put on a processor's wheel while the target stands still.
//!
//! ```text
//!   timer_bases[0] of a processor                 memory below 1 MiB, which Linux reserves and leaves alone
//!     vectors[i] ──────────────────────────────►  slot: process_timer { next, pprev, expires, function, flags, task }
//!     pending_map |= 1 << i                       slot: …
//!     next_expiry  = clk + 1                      the last one leads on to what was in the vector before
//! ```
//! The function is `process_timeout`, which ends `schedule_timeout()` and does one thing: it wakes the task that stands
//! behind its timer. So the kernel itself wakes the sleeper, at the next tick of that processor.
//!
//! Where a timer may lie: not in the sleeper's own memory, which is gone when it dies of something else before the
//! tick. The first megabyte of memory belongs to nobody since Linux 5.13 (`reserve_real_mode`), the trampoline for
//! starting processors aside; that it is reserved is read from its `struct page`s, page by page. A slot is free again
//! when its timer has fired: the kernel then clears `pprev`.
//!
//! A wheel is left alone while its lock is held: its processor was stopped in the middle of it. One whose processor
//! idles without a tick fires late, and one of a real-time kernel fires in a thread that may be late: a sleeper could
//! die of something else meanwhile and its `task_struct` be freed. There the sleeper gets one reference more, which is
//! never given back: 9 KiB of the target's memory for each.

use remote_memory::{GuestPhys, KernelVirt, LinkError};

use super::{Edit, KillLayout, Member, What, place, set, set_word};
use crate::linux::task::Task;
use crate::linux::walk::Walk;
use crate::memory::word;

/// Slots of the wheel's first level, one for each tick; the only one used here.
const LEVEL_SLOTS: u64 = 64;

/// `timer_list.flags`: the processor's number, `TIMER_PINNED`, and above bit 22 the slot of the wheel.
const PINNED: u32 = 0x0010_0000;
const SLOT_SHIFT: u32 = 22;

/// `NEXT_TIMER_MAX_DELTA`: no wheel that is used lags further behind, in ticks.
const LAG_MAX: u64 = 1 << 30;

/// A wheel as it stands.
struct Wheel {
    cpu: u32,
    at: KernelVirt,
    clk: u64,
    next: u64,
    is_idle: bool,
    bytes: Vec<u8>,
}

impl Walk<'_> {
    /// The edits that wake the first of `sleepers`, and how many there is room for; or why none can be woken.
    pub(super) fn wake(&mut self, sleepers: &[&Task]) -> Result<Result<(Vec<Edit>, usize), String>, LinkError> {
        if sleepers.is_empty() {
            return Ok(Ok((Vec::new(), 0)));
        }
        let Some(layout) = self.kernel.kill.clone() else {
            return Ok(Err("the timers of this kernel are not known here".to_owned()));
        };
        let Some(function) = self.kernel.symbol("process_timeout") else {
            return Ok(Err("this kernel's symbol table has no process_timeout".to_owned()));
        };
        let Some(jiffies) = self.number("jiffies", 0, 8)? else {
            return Ok(Err("the kernel's clock cannot be read".to_owned()));
        };
        let Some(wheel) = self.free_wheel(&layout, jiffies)? else {
            return Ok(Err("every processor stands in the middle of its timers".to_owned()));
        };
        let mut slots = match self.free_slots(&layout, sleepers.len())? {
            Ok(slots) => slots,
            Err(why) => return Ok(Err(why)),
        };
        let sleepers = &sleepers[..slots.places.len()];
        let clk = forwarded(wheel.clk, wheel.next, jiffies);
        let tick = clk.wrapping_add(1);
        let index = tick % LEVEL_SLOTS;
        let vector = place(wheel.at, layout.base_vectors.offset + index as usize * 8);
        let first = word(&wheel.bytes, layout.base_vectors.offset + index as usize * 8, 8);
        let Some(first_pprev) = self.pprev_of(&layout, first, vector)? else {
            return Ok(Err("a timer that waits already is not what it should be".to_owned()));
        };
        let flags = wheel.cpu | PINNED | (index as u32) << SLOT_SHIFT;
        let fill = |slot: &mut [u8], next: u64, pprev: u64, sleeper: &Task| {
            let mut put = |field: crate::btf::Field, value: u64| {
                slot[field.offset..field.end()].copy_from_slice(&value.to_le_bytes()[..field.size]);
            };
            put(layout.node_next, next);
            put(layout.node_pprev, pprev);
            put(layout.expires, clk);
            put(layout.function, function.raw());
            put(layout.flags, flags.into());
            put(layout.sleeper, sleeper.address.raw());
        };
        let nodes: Vec<u64> = slots.places.iter().map(|at| self.low(*at) + layout.node.offset as u64).collect();
        let mut pprev = vector.raw();
        for (number, sleeper) in sleepers.iter().enumerate() {
            let next = nodes.get(number + 1).copied().unwrap_or(first);
            fill(slots.slot(number), next, pprev, sleeper);
            pprev = nodes[number];
        }
        let mut edits = Vec::new();
        if wheel.is_idle || layout.expiry_lock.is_some() {
            let Some(held) = self.held(&layout, sleepers) else {
                return Ok(Err("the references of a sleeper cannot be read".to_owned()));
            };
            edits.extend(held);
        }
        edits.extend(slots.edits());
        let Some(linked) =
            self.linked(&layout, &wheel, clk, (vector, first, nodes[0]), first_pprev.map(|at| (at, pprev)))
        else {
            return Ok(Err("a wheel that is not where it should be".to_owned()));
        };
        edits.extend(linked);
        Ok(Ok((edits, sleepers.len())))
    }

    /// The wheel of a processor that does not hold it, one with a running tick if there is one. What a processor's
    /// base says is only a claim: a place whose clock is not near the kernel's is no wheel.
    fn free_wheel(&mut self, layout: &KillLayout, jiffies: u64) -> Result<Option<Wheel>, LinkError> {
        let Some(bases) = self.kernel.symbol("timer_bases") else { return Ok(None) };
        let processors = self.cpu_bases()?;
        let at: Vec<_> = processors.iter().map(|(_, base)| KernelVirt::new(base.wrapping_add(bases.raw()))).collect();
        let records = self.kernel.space.fetch_equal(&mut self.memory, &at, layout_span(layout))?;
        let wheel = |(index, (cpu, _)): (usize, &(u32, u64))| {
            let bytes = records.bytes(index)?;
            let lag = jiffies.wrapping_add(1).wrapping_sub(layout.base_clk.of(bytes));
            // A raw spin lock that is free is zero.
            (lag <= LAG_MAX && word(bytes, layout.base_lock.offset, 4) == 0).then(|| Wheel {
                cpu: *cpu,
                at: at[index],
                clk: layout.base_clk.of(bytes),
                next: layout.base_next.of(bytes),
                is_idle: layout.base_is_idle.of(bytes) != 0,
                bytes: bytes.to_vec(),
            })
        };
        Ok(processors.iter().enumerate().filter_map(wheel).min_by_key(|wheel| wheel.is_idle))
    }

    /// Where the `pprev` of the first timer of a vector is, which must be the vector; `Some(None)` if that is empty.
    #[allow(clippy::type_complexity, reason = "three answers: cannot be read, empty, there")]
    fn pprev_of(
        &mut self,
        layout: &KillLayout,
        first: u64,
        vector: KernelVirt,
    ) -> Result<Option<Option<GuestPhys>>, LinkError> {
        if first == 0 {
            return Ok(Some(None));
        }
        let at = KernelVirt::new(first.wrapping_add((layout.node_pprev.offset - layout.node.offset) as u64));
        let known = self.kernel.phys(at, 8);
        let found = match known {
            Some(at) => Some(at),
            // On the stack of a task, most often.
            None => self.kernel.space.walk_pages(&mut self.memory, &[at.raw()])?.pop().flatten(),
        };
        let there = self.memory.fetch_equal(&[found], 8)?;
        let is_the_vector = there.bytes(0).is_some_and(|bytes| word(bytes, 0, 8) == vector.raw());
        Ok(found.filter(|_| is_the_vector).map(Some))
    }

    /// One reference more for each sleeper.
    fn held(&self, layout: &KillLayout, sleepers: &[&Task]) -> Option<Vec<Edit>> {
        let edit = |task: &&Task| {
            let was = task.words.references;
            let now = was.checked_add(1).filter(|_| was > 0 && was < i32::MAX as u32)?;
            let at = self.kernel.phys(place(task.address, layout.usage.offset), 4)?;
            let what = What::OfTask(Member::References, task.pid);
            Some(set(at, &was.to_le_bytes()[..], &now.to_le_bytes()[..], what))
        };
        sleepers.iter().map(edit).collect()
    }

    /// The edits that put a chain of timers before the `first` of `vector`: the chain's head first, so that a beginning
    /// of them leaves the vector as good as it was.
    fn linked(
        &self,
        layout: &KillLayout,
        wheel: &Wheel,
        clk: u64,
        (vector, first, head): (KernelVirt, u64, u64),
        first_pprev: Option<(GuestPhys, u64)>,
    ) -> Option<Vec<Edit>> {
        let at = |field: crate::btf::Field| self.kernel.phys(place(wheel.at, field.offset), field.size as u64);
        let mut edits = vec![set_word(self.kernel.phys(vector, 8)?, first, head, "vector of a timer wheel")];
        if let Some((at, tail)) = first_pprev {
            edits.push(set_word(at, vector.raw(), tail, "a timer that waited already"));
        }
        let tick = clk.wrapping_add(1);
        let bit = tick % LEVEL_SLOTS;
        let map = word(&wheel.bytes, layout.base_map.offset, 8);
        edits.push(set_word(self.kernel.phys(place(wheel.at, layout.base_map.offset), 8)?, map, map | 1 << bit, "map"));
        edits.push(set_word(at(layout.base_clk)?, wheel.clk, clk, "clock of a timer wheel"));
        if is_before(tick, wheel.next) {
            edits.push(set_word(at(layout.base_next)?, wheel.next, tick, "next expiry of a timer wheel"));
            for (field, value, what) in
                [(layout.base_has_timers, 1, "timers pending"), (layout.base_recalc, 0, "expiry to be counted anew")]
            {
                let was = field.of(&wheel.bytes) as u8;
                edits.push(set(at(field)?, &[was][..], &[value][..], what));
            }
        }
        Some(edits)
    }
}

/// Bytes of a wheel that are read: all but the levels above the first.
fn layout_span(layout: &KillLayout) -> usize {
    let fields = [layout.base_lock, layout.base_clk, layout.base_next, layout.base_recalc, layout.base_is_idle];
    let more = [layout.base_has_timers, layout.base_map];
    let end = fields.iter().chain(&more).map(|field| field.end()).max().unwrap_or(0);
    end.max(layout.base_vectors.offset + LEVEL_SLOTS as usize * 8)
}

/// As `forward_timer_base`: a wheel that idled is brought up to the present before a timer is put on it.
fn forwarded(clk: u64, next: u64, jiffies: u64) -> u64 {
    if !is_before(clk, jiffies) {
        clk
    } else if is_before(jiffies, next) {
        jiffies
    } else if is_before(next, clk) {
        clk
    } else {
        next
    }
}

/// `time_before`.
fn is_before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_is_brought_to_the_present_but_not_past_what_is_due() {
        assert_eq!(forwarded(100, 200, 100), 100);
        assert_eq!(forwarded(100, 200, 150), 150, "nothing is due");
        assert_eq!(forwarded(100, 120, 150), 120, "that one comes first");
        assert_eq!(forwarded(100, 90, 150), 100, "no wheel of a healthy kernel");
        assert_eq!(forwarded(u64::MAX, 20, 5), 5, "jiffies wrap");
    }
}
