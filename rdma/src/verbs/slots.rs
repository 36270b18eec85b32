//! Operations that an adapter was handed, in the order of posting.
//!
//! ```text
//!   slots   … taken │ ended, not taken │ outstanding │ free …      one for each request to the adapter
//!                    ▲taken             ▲ended        ▲posted
//! ```
//! An operation is one request as a rule, and several where the adapter wants a long WRITE in pieces: then only the
//! last piece is anything to the queue's user, and it says what has become of all.

use remote_memory::{AccessError, Completion};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A READ.
    Read,
    /// A WRITE, or the last piece of one.
    Write,
    /// A piece of a WRITE, behind which another comes.
    Piece,
    /// An atomic: its outcome is a number.
    Atomic,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u64,
    kind: Kind,
    outcome: Result<u64, AccessError>,
}

/// See the module. Positions count requests since the connection began, and wrap.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    posted: u32,
    ended: u32,
    taken: u32,
    /// Behind the last READ, and behind the last WRITE, that was put in.
    reads_end: u32,
    writes_end: u32,
    /// How the pieces of a WRITE that have ended did so, if not well.
    pieces: Option<AccessError>,
}

impl Slots {
    /// For `depth` requests.
    pub fn new(depth: usize) -> Self {
        let blank = Slot { id: 0, kind: Kind::Read, outcome: Err(AccessError::Flushed) };
        let slots = vec![blank; depth];
        Self { slots, posted: 0, ended: 0, taken: 0, reads_end: 0, writes_end: 0, pieces: None }
    }

    /// Forgets everything: a connection begins.
    pub fn clear(&mut self) {
        (self.posted, self.ended, self.taken) = (0, 0, 0);
        (self.reads_end, self.writes_end, self.pieces) = (0, 0, None);
    }

    /// Requests that were put in, and whose end was not taken.
    pub fn outstanding(&self) -> usize {
        self.posted.wrapping_sub(self.taken) as usize
    }

    /// Where the next request goes: its position, and the place of its slot.
    pub fn next(&self) -> (u32, usize) {
        (self.posted, self.place(self.posted))
    }

    /// Puts one in there. There has to be room.
    pub fn put(&mut self, id: u64, kind: Kind) {
        debug_assert!(self.outstanding() < self.slots.len(), "no room");
        let place = self.place(self.posted);
        self.slots[place] = Slot { id, kind, outcome: Err(AccessError::Flushed) };
        self.posted = self.posted.wrapping_add(1);
        match kind {
            Kind::Read => self.reads_end = self.posted,
            Kind::Write | Kind::Piece => self.writes_end = self.posted,
            Kind::Atomic => {}
        }
    }

    /// Whether a READ has not ended.
    pub fn has_reads(&self) -> bool {
        is_behind(self.reads_end, self.ended)
    }

    /// Whether a WRITE has not ended.
    pub fn has_writes(&self) -> bool {
        is_behind(self.writes_end, self.ended)
    }

    /// How many requests end with the one at `position`; `None` if that is not on its way.
    pub fn ending_with(&self, position: u32) -> Option<u32> {
        let ahead = position.wrapping_sub(self.ended);
        (ahead < self.posted.wrapping_sub(self.ended)).then(|| ahead.wrapping_add(1))
    }

    /// The oldest request that has not ended: what it does, and the place of its slot.
    pub fn oldest(&self) -> Option<(Kind, usize)> {
        let place = self.place(self.ended);
        (self.ended != self.posted).then(|| (self.slots[place].kind, place))
    }

    /// How many have ended since the connection began.
    pub fn ended(&self) -> u32 {
        self.ended
    }

    /// Ends that one.
    pub fn end(&mut self, outcome: Result<u64, AccessError>) {
        let Some((kind, place)) = self.oldest() else { return };
        let outcome = self.pieces.take().map_or(outcome, Err);
        if kind == Kind::Piece {
            self.pieces = outcome.err();
        }
        self.slots[place].outcome = outcome;
        self.ended = self.ended.wrapping_add(1);
    }

    /// Forgets what has not ended.
    pub fn void(&mut self) {
        self.posted = self.ended;
    }

    /// Takes the ends of operations, in order; says how many.
    pub fn take(&mut self, completions: &mut [Completion]) -> usize {
        let mut count = 0;
        while count < completions.len() && self.taken != self.ended {
            let slot = self.slots[self.place(self.taken)];
            self.taken = self.taken.wrapping_add(1);
            if slot.kind != Kind::Piece {
                completions[count] = Completion { id: slot.id, outcome: slot.outcome };
                count += 1;
            }
        }
        count
    }

    fn place(&self, position: u32) -> usize {
        position as usize % self.slots.len()
    }
}

fn is_behind(position: u32, ended: u32) -> bool {
    position.wrapping_sub(ended).cast_signed() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(slots: &mut Slots) -> Vec<(u64, Result<u64, AccessError>)> {
        let mut completions = [Completion { id: 0, outcome: Ok(0) }; 8];
        let count = slots.take(&mut completions);
        completions[..count].iter().map(|completion| (completion.id, completion.outcome)).collect()
    }

    fn with(kinds: &[Kind]) -> Slots {
        let mut slots = Slots::new(8);
        for (index, kind) in kinds.iter().enumerate() {
            slots.put(10 + index as u64, *kind);
        }
        slots
    }

    #[test]
    fn operations_end_in_order_and_are_taken_once() {
        let mut slots = with(&[Kind::Read, Kind::Atomic]);
        assert_eq!(slots.ending_with(1), Some(2));
        assert_eq!(slots.ending_with(2), None);
        slots.end(Ok(0));
        assert_eq!(slots.ending_with(0), None, "it has ended");
        assert_eq!(slots.oldest(), Some((Kind::Atomic, 1)));
        slots.end(Ok(7));
        assert_eq!(taken(&mut slots), [(10, Ok(0)), (11, Ok(7))]);
        assert_eq!((taken(&mut slots), slots.outstanding()), (vec![], 0));
    }

    #[test]
    fn of_a_write_in_pieces_the_last_one_says_what_has_become_of_it() {
        let mut slots = with(&[Kind::Piece, Kind::Piece, Kind::Write, Kind::Write]);
        slots.end(Ok(0));
        slots.end(Ok(0));
        assert_eq!((taken(&mut slots), slots.outstanding()), (vec![], 2));
        slots.end(Ok(0));
        assert_eq!(taken(&mut slots), [(12, Ok(0))]);

        let mut slots = with(&[Kind::Piece, Kind::Piece, Kind::Write, Kind::Write]);
        slots.end(Err(AccessError::Refused));
        while slots.oldest().is_some() {
            slots.end(Err(AccessError::Flushed));
        }
        assert_eq!(taken(&mut slots), [(12, Err(AccessError::Refused)), (13, Err(AccessError::Flushed))]);
    }

    #[test]
    fn reads_and_writes_on_their_way_are_known_until_they_end() {
        let mut slots = with(&[Kind::Write, Kind::Read, Kind::Atomic]);
        assert_eq!((slots.has_reads(), slots.has_writes()), (true, true));
        slots.end(Ok(0));
        assert_eq!((slots.has_reads(), slots.has_writes()), (true, false));
        slots.end(Ok(0));
        assert_eq!((slots.has_reads(), slots.has_writes()), (false, false));
    }

    #[test]
    fn positions_wrap() {
        let mut slots = Slots::new(4);
        (slots.posted, slots.ended, slots.taken) = (u32::MAX, u32::MAX, u32::MAX);
        (slots.reads_end, slots.writes_end) = (u32::MAX, u32::MAX);
        slots.put(1, Kind::Write);
        slots.put(2, Kind::Read);
        assert_eq!((slots.next().0, slots.ending_with(0), slots.has_reads()), (1, Some(2), true));
        slots.end(Ok(0));
        assert!(slots.has_reads() && !slots.has_writes());
        slots.void();
        assert_eq!((taken(&mut slots), slots.outstanding()), (vec![(1, Ok(0))], 0));
    }
}
