//! The last samples of one target, kept until a decision asks for them. Allocates once.

use std::time::Duration;

use super::event::{Event, SampleLook};
use crate::detect::{Look, Observation};

/// Samples kept beyond those that two of the longest deadlines hold: for samples taken between the ticks.
const EXTRA: usize = 64;

/// The most samples kept: an hour-long deadline must not cost gigabytes.
const SAMPLES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
enum Brought {
    Values { identity: u64 },
    Unreadable,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    begin_ns: u64,
    end_ns: u64,
    brought: Brought,
}

/// A ring of samples, all with the values of one plan.
#[derive(Debug, Default)]
pub struct Ring {
    slots: Vec<Slot>,
    values: Vec<Option<u64>>,
    sensors: usize,
    capacity: usize,
    /// Where the next sample goes once the ring is full.
    next: usize,
}

impl Ring {
    /// Room for what a verdict can rest on: two of the longest deadlines, sampled every `period`.
    pub fn new(sensors: usize, longest_deadline: Duration, period: Duration) -> Self {
        let held = 2 * longest_deadline.as_nanos() / period.as_nanos().max(1);
        let capacity = usize::try_from(held).unwrap_or(SAMPLES_MAX).saturating_add(EXTRA).min(SAMPLES_MAX);
        Self { slots: Vec::with_capacity(capacity), values: vec![None; capacity * sensors], sensors, capacity, next: 0 }
    }

    /// An empty ring of the same size, for the time after this one was handed over.
    #[must_use]
    pub fn renewed(&self) -> Self {
        let slots = Vec::with_capacity(self.capacity);
        Self { slots, values: vec![None; self.capacity * self.sensors], next: 0, ..*self }
    }

    /// Keeps `observation`, in the place of the oldest one if the ring is full.
    pub fn push(&mut self, observation: &Observation<'_>) {
        let Observation { begin_ns, end_ns, look } = *observation;
        let at = if self.slots.len() < self.capacity { self.slots.len() } else { self.next };
        let brought = match look {
            Look::Values { identity, values } => {
                let room = &mut self.values[at * self.sensors..(at + 1) * self.sensors];
                let values = values.iter().copied().chain(std::iter::repeat(None));
                room.iter_mut().zip(values).for_each(|(place, value)| *place = value);
                Brought::Values { identity }
            }
            Look::Unreadable => Brought::Unreadable,
            Look::Lost => Brought::Lost,
        };
        let slot = Slot { begin_ns, end_ns, brought };
        match self.slots.get_mut(at) {
            Some(oldest) => *oldest = slot,
            None => self.slots.push(slot),
        }
        self.next = (at + 1) % self.capacity.max(1);
    }

    /// The samples, oldest first, each with its end.
    pub(super) fn samples(&self) -> impl Iterator<Item = (u64, Event)> + '_ {
        let start = if self.slots.len() < self.capacity { 0 } else { self.next };
        let order = (start..self.slots.len()).chain(0..start);
        order.map(|at| {
            let Slot { begin_ns, end_ns, brought } = self.slots[at];
            let look = match brought {
                Brought::Values { identity } => {
                    let values = self.values[at * self.sensors..(at + 1) * self.sensors].to_vec();
                    SampleLook::Values { identity, values }
                }
                Brought::Unreadable => SampleLook::Unreadable,
                Brought::Lost => SampleLook::Lost,
            };
            (end_ns, Event::Sample { begin_ns, look })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_keeps_the_newest_in_order() {
        let mut ring = Ring::new(1, Duration::from_nanos(1), Duration::from_nanos(1));
        let capacity = EXTRA as u64 + 2;
        for at in 0..capacity + 3 {
            let values = [Some(at)];
            let look = if at == capacity { Look::Lost } else { Look::Values { identity: 1, values: &values } };
            ring.push(&Observation { begin_ns: at, end_ns: at, look });
        }
        let kept: Vec<_> = ring.samples().collect();
        assert_eq!(kept.iter().map(|(end, _)| *end).collect::<Vec<_>>(), (3..capacity + 3).collect::<Vec<_>>());
        assert!(
            matches!(&kept[0].1, Event::Sample { look: SampleLook::Values { values, .. }, .. } if values == &[Some(3)])
        );
        assert!(matches!(kept[capacity as usize - 3].1, Event::Sample { look: SampleLook::Lost, .. }));
        assert_eq!(ring.renewed().samples().count(), 0);
    }
}
