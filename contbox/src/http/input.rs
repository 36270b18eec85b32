//! Bytes of a stream that were read and not handed on yet, in memory that is zeroed once and not before each read.

/// Bytes in order: taken from the front, filled at the end.
#[derive(Debug, Default)]
pub(super) struct Input {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// With these bytes.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self { start: 0, end: bytes.len(), memory: bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room for `count` more bytes; what is written there counts once it is [`added`](Self::added).
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        if self.memory.len() < self.end + count {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            self.memory.resize(self.memory.len().max(self.end + count), 0);
        }
        &mut self.memory[self.end..self.end + count]
    }

    /// Counts the first `count` bytes of the room.
    pub(super) fn added(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.memory.len(), "only what there was room for was written");
    }

    /// Drops the first `count` bytes.
    pub(super) fn take(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "nobody takes more than there is");
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((0usize..40, 0usize..40), 0..60)) {
            let mut input = Input::of(vec![0, 1, 2]);
            let (mut next_in, mut next_out) = (3u8, 0u8);
            for (room, take) in steps {
                let added = room / 2;
                for byte in &mut input.room(room)[..added] {
                    (*byte, next_in) = (next_in, next_in.wrapping_add(1));
                }
                input.added(added);
                let taken = take.min(input.len());
                for byte in &input.bytes()[..taken] {
                    prop_assert_eq!(*byte, next_out);
                    next_out = next_out.wrapping_add(1);
                }
                input.take(taken);
                prop_assert_eq!(input.is_empty(), next_in == next_out);
            }
        }

        #[test]
        fn memory_is_bounded_by_what_is_held_at_once(reads in prop::collection::vec(1usize..100, 1..200)) {
            let mut input = Input::default();
            for count in reads {
                input.room(100);
                input.added(count);
                input.take(count.min(input.len()));
            }
            prop_assert!(input.memory.len() <= 100);
        }
    }
}
