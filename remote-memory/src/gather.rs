//! Rounds through a [`Window`]: what a batch of many small stretches becomes where its server offers one.
//!
//! ```text
//!   landing     [ list | data ............................ ]
//!   reads       WRITE the list, READ the data in one go       a few packets instead of one for each stretch
//!   writes      WRITE the list, WRITE the data packet by packet
//! ```
//! A window is only ever a faster way: where one refuses, the same batch goes stretch by stretch, which tells what each
//! of them came to.
//!
//! Writes keep their contract. A packet of data ends with a stretch, and a server checks all of a packet before it
//! writes the first byte of it: the first that fails is the first of the packet that was refused.

use crate::blocking::{Blocking, Outcomes, Round};
use crate::operation::gather_apart;
use crate::window::{Stretch, encode, encode_members, members_bytes};
use crate::{
    AccessError, Completion, Gather, LinkError, Queue, Read, RemoteAddr, RemoteKey, Request, Take, Window, Work,
    WriteError,
};

/// Bytes between two stretches of a window that are read along: an entry of its list, and what the server does for it.
pub(crate) const GAP_BYTES: u64 = 64;

/// Stretches from which on a list costs less than packets of their own.
const STRETCHES_MIN: usize = 8;

/// Writes longer than this fill packets of their own.
const SMALL_BYTES_MAX: usize = 1024;

/// Data land at a multiple of it.
const ALIGN: usize = 16;

/// The name of the list's own operation; others count from 0.
const LIST: u64 = u64::MAX;

/// Room for data behind the longest list; 0 if the landing buffer is too small for windows to be worth it.
fn room(window: &Window, landing_bytes: usize) -> usize {
    landing_bytes.checked_sub(window.list_bytes_max()).filter(|room| *room >= window.list_bytes_max()).unwrap_or(0)
}

impl<Q: Queue> Blocking<Q> {
    /// The window to read `batch` through, if it is worth it.
    pub(crate) fn window_for(&self, batch: &[Read<'_>]) -> Option<Window> {
        let window = self.queue().window().filter(|_| self.merges && batch.len() >= STRETCHES_MIN)?;
        let key = batch.first()?.at.key;
        let room = room(&window, self.queue().landing().len());
        // An empty read is checked by nobody, and one that leaves the address space is the server's to refuse.
        let fits = |read: &Read<'_>| {
            let len = read.into.len();
            read.at.key == key && (1..=room).contains(&len) && read.at.checked_add(len as u64).is_some()
        };
        batch.iter().all(fits).then_some(window)
    }

    /// As a round without a window: fills `self.spans` and `self.requests` with what fits.
    pub(crate) fn plan_gathering(&mut self, window: &Window, batch: &[Read<'_>]) -> Result<(), LinkError> {
        self.requests.clear();
        let limits = (window.pieces_max as usize, room(window, self.queue.landing().len()), 1);
        self.plan.round(batch, &mut self.spans, limits, Some(GAP_BYTES));
        let Some(first) = self.spans.first() else { return Ok(()) };
        let stretches = self.spans.iter().map(|span| Stretch { addr: span.addr, len: span.len as u32 });
        self.list_number = self.list_number.wrapping_add(1);
        let name = (first.key, self.list_number);
        let list_bytes = encode(self.queue.landing_mut(), name, stretches).ok_or(TOO_LARGE)?;
        let bytes = self.spans.last().map_or(0, |span| span.landing + span.len);
        self.spans.iter_mut().for_each(|span| span.landing += list_bytes);
        self.push_list(window, list_bytes);
        let at = window.data_at(self.list_number, 0);
        self.requests.push(Request { id: 0, work: Work::Read { at, len: bytes as u32, landing: list_bytes as u32 } });
        Ok(())
    }

    /// How many structs of `wanted` fit into one list of the window, if there is one and it is worth it.
    pub(crate) fn structs_of_a_list(&self, wanted: &Gather<'_>) -> Option<usize> {
        if !wanted.is_sound() {
            return None;
        }
        let (count, bytes) = (wanted.members.len(), wanted.struct_bytes());
        let pieces = wanted.bases.len().saturating_mul(count);
        let window = self.queue().window().filter(|_| self.merges && pieces >= STRETCHES_MIN)?;
        let by_room = room(&window, self.queue().landing().len()).checked_div(bytes)?;
        let structs = by_room.min(window.pieces_max as usize / count);
        let list = members_bytes(count, structs);
        // One that leaves the address space is the server's to refuse.
        let end = wanted.members.iter().map(|member| u64::from(member.offset) + u64::from(member.len)).max()?;
        let fits = wanted.bases.iter().all(|base| base.checked_add(end).is_some());
        let is_small = list.is_some_and(|bytes| bytes <= window.list_bytes_max());
        (structs > 0 && is_small && fits).then_some(structs)
    }

    /// List after list of so many structs through the window. While one is under way, what came by the one before it is
    /// handed over.
    pub(crate) fn gather_lists(
        &mut self,
        structs: usize,
        wanted: &Gather<'_>,
        take: &mut Take<'_>,
    ) -> Result<(), LinkError> {
        let bytes = wanted.struct_bytes();
        let mut came = vec![0; bytes * structs.min(wanted.bases.len())];
        let mut lists = wanted.bases.chunks(structs).map(|bases| Gather { bases, ..*wanted }).enumerate().peekable();
        let mut asked = None;
        if let Some((_, first)) = lists.peek() {
            asked = self.ask_members(first)?;
        }
        while let Some((number, list)) = lists.next() {
            let came = &mut came[..bytes * list.bases.len()];
            let mut take = |index: usize, outcome: Result<&[u8], AccessError>| take(number * structs + index, outcome);
            let is_answered = match asked.take() {
                Some(asked) => self.members_came(asked, came)?,
                None => false,
            };
            if !is_answered {
                gather_apart(self, &list, &mut take)?;
            }
            if let Some((_, next)) = lists.peek() {
                asked = self.ask_members(next)?;
            }
            if is_answered {
                came.chunks_exact(bytes).enumerate().for_each(|(index, came)| take(index, Ok(came)));
            }
        }
        Ok(())
    }

    /// Asks for members by a list, and returns where they land; `None` if a new connection has no window for it.
    fn ask_members(&mut self, wanted: &Gather<'_>) -> Result<Option<(Round, usize)>, LinkError> {
        self.ensure_usable()?;
        let pieces = wanted.bases.len() * wanted.members.len();
        let Some(window) = self.queue.window().filter(|window| window.pieces_max as usize >= pieces) else {
            return Ok(None);
        };
        self.requests.clear();
        self.list_number = self.list_number.wrapping_add(1);
        let name = (wanted.key, self.list_number);
        let list = encode_members(self.queue.landing_mut(), name, wanted.members, wanted.bases).ok_or(TOO_LARGE)?;
        let (len, landing) = (wanted.struct_bytes() * wanted.bases.len(), list.next_multiple_of(ALIGN));
        self.push_list(&window, list);
        let at = window.data_at(self.list_number, 0);
        self.requests.push(Request { id: 0, work: Work::Read { at, len: len as u32, landing: landing as u32 } });
        Ok(Some((self.begin_round()?, landing)))
    }

    /// Waits for what was asked; `false` if it was refused, or the connection is broken.
    fn members_came(&mut self, (round, landing): (Round, usize), into: &mut [u8]) -> Result<bool, LinkError> {
        let mut is_answered = false;
        self.end_round(round, |queue, completion| {
            if completion.id == LIST || completion.outcome.is_err() {
                return;
            }
            if let Some(found) = queue.landing().get(landing..landing + into.len()) {
                into.copy_from_slice(found);
                is_answered = true;
            }
        })?;
        Ok(is_answered)
    }

    fn push_list(&mut self, window: &Window, list_bytes: usize) {
        let work = Work::Write { at: RemoteAddr::new(window.list, 0), len: list_bytes as u32, landing: 0 };
        self.requests.push(Request { id: LIST, work });
    }

    /// Writes the first of `writes` through the window, if that is worth it; returns how many.
    pub(crate) fn scatter(&mut self, writes: &[(RemoteAddr, &[u8])]) -> Result<usize, (usize, WriteError)> {
        let Some(window) = self.queue.window() else { return Ok(0) };
        let room = room(&window, self.queue.landing().len());
        let packets = packets(writes, self.queue.packet_bytes(), room, window.pieces_max as usize);
        let count = packets.last().map_or(0, |packet| packet.end);
        if count < STRETCHES_MIN {
            return Ok(0);
        }
        let failed = |error: LinkError| (0, error.into());
        self.plan_scattering(&window, &writes[..count], &packets).map_err(failed)?;
        let mut outcomes = vec![Err(AccessError::Flushed); packets.len()];
        let mut list = Ok(0);
        let round = self.run_round(|_, Completion { id, outcome }| match outcomes.get_mut(id as usize) {
            Some(place) => *place = outcome,
            None => list = outcome,
        });
        let refused = outcomes.iter().position(Result::is_err).zip(outcomes.iter().find_map(|outcome| outcome.err()));
        let written = refused.map_or(count, |(packet, _)| packets[packet].start);
        match (round, list, refused) {
            (Err(error), ..) => Err((written, error.into())),
            // The window is gone, and nothing was written through it.
            (Ok(()), Err(_), _) => Ok(0),
            (Ok(()), Ok(_), Some((_, error))) => Err((written, error.into())),
            (Ok(()), Ok(_), None) => Ok(count),
        }
    }

    fn plan_scattering(
        &mut self,
        window: &Window,
        writes: &[(RemoteAddr, &[u8])],
        packets: &[std::ops::Range<usize>],
    ) -> Result<(), LinkError> {
        self.requests.clear();
        let key = writes.first().map_or(RemoteKey::default(), |(at, _)| at.key);
        let stretches = writes.iter().map(|(at, bytes)| Stretch { addr: at.addr, len: bytes.len() as u32 });
        self.list_number = self.list_number.wrapping_add(1);
        let list_bytes = encode(self.queue.landing_mut(), (key, self.list_number), stretches).ok_or(TOO_LARGE)?;
        self.push_list(window, list_bytes);
        let mut done = 0;
        for (id, packet) in packets.iter().enumerate() {
            let begin = done;
            for (_, bytes) in &writes[packet.clone()] {
                let place = list_bytes + done..list_bytes + done + bytes.len();
                self.queue.landing_mut().get_mut(place).ok_or(TOO_LARGE)?.copy_from_slice(bytes);
                done += bytes.len();
            }
            let (at, landing) = (window.data_at(self.list_number, begin as u32), (list_bytes + begin) as u32);
            self.requests
                .push(Request { id: id as u64, work: Work::Write { at, len: (done - begin) as u32, landing } });
        }
        Ok(())
    }
}

const TOO_LARGE: LinkError = LinkError::Misused("a list is larger than the landing buffer");

/// The first of `writes` that a window can take, in packets; each a range of them.
fn packets(
    writes: &[(RemoteAddr, &[u8])],
    packet_bytes: usize,
    room: usize,
    pieces_max: usize,
) -> Vec<std::ops::Range<usize>> {
    let mut packets: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut in_packet, mut in_all) = (0, 0);
    for (index, (at, bytes)) in writes.iter().enumerate().take(pieces_max) {
        let len = bytes.len();
        let is_small = (1..=SMALL_BYTES_MAX.min(packet_bytes)).contains(&len) && at.key == writes[0].0.key;
        if !is_small || in_all + len > room {
            break;
        }
        match packets.last_mut().filter(|_| in_packet + len <= packet_bytes) {
            Some(packet) => packet.end += 1,
            None => {
                packets.push(index..index + 1);
                in_packet = 0;
            }
        }
        (in_packet, in_all) = (in_packet + len, in_all + len);
    }
    packets
}

impl Outcomes {
    /// What came of a round through a window: all of its spans, or none.
    pub(crate) fn take_gathered(&mut self, landing: &[u8], completion: Completion, batch: &mut [Read<'_>]) {
        if completion.id == LIST || completion.outcome.is_err() {
            return;
        }
        for id in 0..self.spans() as u64 {
            self.take(landing, Completion { id, outcome: Ok(0) }, batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_end_with_a_write_and_large_or_foreign_ones_end_the_run() {
        let bytes = [0; 2000];
        let at = |key, addr| RemoteAddr::new(RemoteKey::new(key), addr);
        let writes: Vec<_> = [8, 8, 90, 8, 1000, 8].iter().map(|len| (at(1, 0), &bytes[..*len])).collect();
        assert_eq!(packets(&writes, 100, 10_000, 100), [0..2, 2..4], "the fifth is larger than a packet");
        assert_eq!(packets(&writes, 1024, 10_000, 100), [0..4, 4..6]);
        assert_eq!(packets(&writes, 50, 10_000, 100), [0..2, 2..3][..1], "the third is larger than a packet");
        assert_eq!(packets(&writes, 100, 110, 100), [0..2, 2..3], "no room");
        assert_eq!(packets(&writes, 100, 10_000, 3), [0..2, 2..3], "no more entries");
        let writes = [(at(1, 0), &bytes[..8]), (at(2, 0), &bytes[..8]), (at(1, 0), &bytes[..0])];
        assert_eq!(packets(&writes, 1024, 10_000, 100).last(), Some(&(0..1)));
        assert_eq!(packets(&writes[2..], 1024, 10_000, 100), []);
    }
}
