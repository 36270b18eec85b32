//! Reads and writes that wait, made from any [`Queue`].
//!
//! A batch is carried out in rounds, each as large as the landing buffer and the queue's depth allow: all of a round
//! is posted at once, so its cost is one round trip and the bytes. A refusal breaks a connection (that is how RDMA
//! answers a bad address); the reads that it flushed are then asked again on a new one, so that one bad address of a
//! batch does not cost the others. Neighbouring reads are fetched together (see `merge`).

use std::time::Duration;

use crate::gather;
use crate::merge::{Plan, Span};
use crate::operation::gather_apart;
use crate::{
    AccessError, Completion, Gather, LinkError, Queue, Read, RemoteAddr, RemoteRead, RemoteWrite, Request, Take,
    Warrant, Work, WriteError,
};

/// Completions taken per poll: drains a full queue in a few calls without a large stack frame.
const COMPLETIONS_PER_POLL: usize = 64;

/// Reconnections for one batch before the rest of it is reported as flushed. A bad address costs one, and one more if
/// it was read together with others; a caller with more bad addresses than this pays for is following garbage.
const RECONNECTS_PER_BATCH: usize = 16;

/// Landing offsets are kept this aligned, in bytes, so that atomics and copies stay aligned.
const LANDING_ALIGN: usize = 8;

/// Turns posted operations into calls that return when they are done.
#[derive(Debug)]
pub struct Blocking<Q> {
    pub(crate) queue: Q,
    patience: Duration,
    /// Operations were given up that may still complete: their completions would be taken for later ones' of the same
    /// id, so the connection is replaced before the next use.
    is_abandoned: bool,
    pub(crate) requests: Vec<Request>,
    /// What is left of the batch, and what the requests of this round stand for: the id of a request is an index into
    /// `spans`. All lists keep their capacity from batch to batch.
    pub(crate) plan: Plan,
    pub(crate) spans: Vec<Span>,
    pub(crate) merges: bool,
    /// Of the last list that was written through a window.
    pub(crate) list_number: u32,
    rounds: u64,
}

/// A round that has begun.
#[must_use = "what was posted is to be waited for"]
pub(crate) struct Round {
    posted: usize,
    outstanding: usize,
}

impl<Q: Queue> Blocking<Q> {
    /// Wraps `queue`; a call that sees no completion for `patience` reports the link lost.
    pub fn new(queue: Q, patience: Duration) -> Self {
        let requests = Vec::with_capacity(queue.depth());
        let spans = Vec::with_capacity(queue.depth());
        Self {
            queue,
            patience,
            is_abandoned: false,
            requests,
            plan: Plan::default(),
            spans,
            merges: true,
            list_number: 0,
            rounds: 0,
        }
    }

    /// The same with one operation for each read, however near they lie: to measure what an operation costs.
    #[must_use]
    pub fn without_merging(self) -> Self {
        Self { merges: false, ..self }
    }

    /// Rounds so far.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The queue underneath.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// The queue underneath, to drive it directly.
    pub fn queue_mut(&mut self) -> &mut Q {
        &mut self.queue
    }

    pub(crate) fn ensure_usable(&mut self) -> Result<(), LinkError> {
        if self.is_usable() { Ok(()) } else { self.renew() }
    }

    fn is_usable(&self) -> bool {
        !self.is_abandoned && !self.queue.is_broken()
    }

    fn renew(&mut self) -> Result<(), LinkError> {
        self.queue.reconnect()?;
        self.is_abandoned = false;
        Ok(())
    }

    /// Fills `self.spans` and `self.requests` with the reads of `batch` that fit into one round.
    fn plan_round(&mut self, batch: &[Read<'_>]) {
        let limits = (self.queue.depth(), self.queue.landing().len(), LANDING_ALIGN);
        let gap_max = self.merges.then(|| self.queue.packet_bytes() as u64);
        self.plan.round(batch, &mut self.spans, limits, gap_max);
        self.requests.clear();
        self.requests.extend(self.spans.iter().enumerate().map(|(id, span)| {
            let at = RemoteAddr::new(span.key, span.addr);
            let work = Work::Read { at, len: span.len as u32, landing: span.landing as u32 };
            Request { id: id as u64, work }
        }));
    }

    /// Posts the planned requests and hands each completion to `finish`.
    pub(crate) fn run_round(&mut self, finish: impl FnMut(&Q, Completion)) -> Result<(), LinkError> {
        let round = self.begin_round()?;
        self.end_round(round, finish)
    }

    /// Posts as many of the planned requests as the queue takes. Nothing else is planned until [`Blocking::end_round`].
    pub(crate) fn begin_round(&mut self) -> Result<Round, LinkError> {
        // Should nobody end it, what is still to come would be taken for answers to others.
        self.is_abandoned = true;
        self.rounds += 1;
        let posted = self.queue.post(&self.requests)?;
        Ok(Round { posted, outstanding: posted })
    }

    /// Posts the rest, and hands each completion to `finish`.
    pub(crate) fn end_round(&mut self, round: Round, mut finish: impl FnMut(&Q, Completion)) -> Result<(), LinkError> {
        let Round { mut posted, mut outstanding } = round;
        let blank = Completion { id: 0, outcome: Err(AccessError::Flushed) };
        let mut completions = [blank; COMPLETIONS_PER_POLL];
        while posted < self.requests.len() || outstanding > 0 {
            if posted < self.requests.len() && !self.queue.is_broken() {
                let accepted = self.queue.post(&self.requests[posted..])?;
                posted += accepted;
                outstanding += accepted;
            }
            if outstanding == 0 {
                break; // broken before the rest could be posted: those stay flushed
            }
            let taken = self.queue.poll(&mut completions, self.patience)?;
            if taken == 0 {
                return Err(LinkError::Lost { tries: 1 });
            }
            for completion in &completions[..taken] {
                finish(&self.queue, *completion);
            }
            outstanding = outstanding.saturating_sub(taken);
        }
        self.is_abandoned = false;
        Ok(())
    }

    /// Puts as many of `writes` as one round holds into the landing buffer and plans them; at least one.
    fn place_round(&mut self, writes: &[(RemoteAddr, &[u8])]) -> Result<usize, LinkError> {
        self.requests.clear();
        let mut place = 0;
        for (id, (at, bytes)) in writes.iter().take(self.queue.depth()).enumerate() {
            let Some(room) = self.queue.landing_mut().get_mut(place..place + bytes.len()) else { break };
            room.copy_from_slice(bytes);
            let work = Work::Write { at: *at, len: bytes.len() as u32, landing: place as u32 };
            self.requests.push(Request { id: id as u64, work });
            place = (place + bytes.len()).next_multiple_of(LANDING_ALIGN);
        }
        match self.requests.len() {
            0 => Err(LinkError::Misused("one write is larger than the landing buffer")),
            count => Ok(count),
        }
    }

    /// One write or atomic under `warrant`, waited for. Never repeated: a lost answer leaves it undecided.
    fn mutate(&mut self, warrant: Warrant<'_>, at: RemoteAddr, len: usize, work: Work) -> Result<u64, WriteError> {
        if !warrant.covers(at, len) {
            return Err(WriteError::NoWarrant { at, len });
        }
        self.ensure_usable()?;
        self.requests.clear();
        self.requests.push(Request { id: 0, work });
        let mut outcome = Err(AccessError::Flushed);
        self.run_round(|_, completion| outcome = completion.outcome)?;
        Ok(outcome?)
    }
}

impl<Q: Queue> RemoteRead for Blocking<Q> {
    fn gap_bytes(&self) -> u64 {
        // A carrier without a window merges by itself what lies within a packet.
        if self.queue.window().is_some() { gather::GAP_BYTES } else { crate::operation::GAP_BYTES }
    }

    fn gather(&mut self, wanted: &Gather<'_>, take: &mut Take<'_>) -> Result<(), LinkError> {
        match self.structs_of_a_list(wanted) {
            Some(structs) => self.gather_lists(structs, wanted, take),
            None => gather_apart(self, wanted, take),
        }
    }

    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let room = self.queue.landing().len();
        if batch.iter().any(|read| read.into.len() > room) {
            return Err(LinkError::Misused("one read is larger than the landing buffer"));
        }
        for read in batch.iter_mut() {
            read.outcome = Err(AccessError::Flushed);
        }
        self.plan.begin(batch);
        let mut window = self.window_for(batch);
        let mut reconnects = 0;
        loop {
            if !self.is_usable() {
                reconnects += 1;
                if reconnects > RECONNECTS_PER_BATCH {
                    return Ok(()); // what is left stays flushed
                }
                self.renew()?;
            }
            match &window {
                Some(window) => self.plan_gathering(window, batch)?,
                None => self.plan_round(batch),
            }
            if self.requests.is_empty() {
                return Ok(());
            }
            let (plan, spans) = (std::mem::take(&mut self.plan), std::mem::take(&mut self.spans));
            let mut outcomes = Outcomes { plan, spans, answered: 0 };
            let round = self.run_round(|queue, completion| match window {
                Some(_) => outcomes.take_gathered(queue.landing(), completion, batch),
                None => outcomes.take(queue.landing(), completion, batch),
            });
            // Refused as a whole: one by one, each has its own outcome.
            window = window.filter(|_| outcomes.answered > 0);
            outcomes.ask_again(batch);
            (self.plan, self.spans) = (outcomes.plan, outcomes.spans);
            round?;
        }
    }
}

/// Where the answers of one round go.
pub(crate) struct Outcomes {
    plan: Plan,
    spans: Vec<Span>,
    answered: usize,
}

impl Outcomes {
    pub(crate) fn spans(&self) -> usize {
        self.spans.len()
    }

    /// Hands the bytes of one span to its reads. Those of a refused span stay flushed, if they are several.
    pub(crate) fn take(&mut self, landing: &[u8], completion: Completion, batch: &mut [Read<'_>]) {
        let Some(span) = self.spans.get_mut(completion.id as usize) else {
            return; // a completion we did not ask for: the carrier's defect, not worth dying for
        };
        match completion.outcome {
            Err(AccessError::Flushed) => return,
            Err(_) if span.is_merged() => {
                span.is_refused = true;
                return;
            }
            _ => span.is_answered = true,
        }
        self.answered += 1;
        for index in self.plan.members(span) {
            let read = &mut batch[*index as usize];
            read.outcome = completion.outcome.map(drop);
            if read.outcome.is_ok() {
                let from = span.landing + (read.at.addr - span.addr) as usize;
                read.into.copy_from_slice(&landing[from..from + read.into.len()]);
            }
        }
    }

    /// What has no outcome is planned anew.
    fn ask_again(&mut self, batch: &[Read<'_>]) {
        if self.answered < self.spans.len() {
            for span in self.spans.iter().filter(|span| !span.is_answered) {
                self.plan.ask_again(span, batch.len());
            }
        }
    }
}

impl<Q: Queue> RemoteWrite for Blocking<Q> {
    fn write(&mut self, warrant: Warrant<'_>, at: RemoteAddr, bytes: &[u8]) -> Result<(), WriteError> {
        let room = self.queue.landing_mut();
        let Some(place) = room.get_mut(..bytes.len()) else {
            return Err(LinkError::Misused("one write is larger than the landing buffer").into());
        };
        place.copy_from_slice(bytes);
        self.mutate(warrant, at, bytes.len(), Work::Write { at, len: bytes.len() as u32, landing: 0 }).map(drop)
    }

    /// As many at a time as queue and landing buffer hold: a round trip for each round and not for each write. A
    /// connection carries them out in order, and a refusal flushes those behind it.
    fn write_all(&mut self, warrant: Warrant<'_>, writes: &[(RemoteAddr, &[u8])]) -> Result<(), (usize, WriteError)> {
        let uncovered = writes.iter().position(|(at, bytes)| !warrant.covers(*at, bytes.len()));
        if let Some(index) = uncovered {
            let (at, len) = (writes[index].0, writes[index].1.len());
            return Err((index, WriteError::NoWarrant { at, len }));
        }
        let mut written = 0;
        while written < writes.len() {
            self.ensure_usable().map_err(|error| (written, error.into()))?;
            match self.scatter(&writes[written..]) {
                Ok(0) => self.ensure_usable().map_err(|error| (written, error.into()))?,
                Ok(count) => {
                    written += count;
                    continue;
                }
                Err((index, error)) => return Err((written + index, error)),
            }
            let count = self.place_round(&writes[written..]).map_err(|error| (written, error.into()))?;
            let mut outcomes = vec![Err(AccessError::Flushed); count];
            let round = self.run_round(|_, completion| {
                if let Some(outcome) = outcomes.get_mut(completion.id as usize) {
                    *outcome = completion.outcome;
                }
            });
            let failed = outcomes.iter().enumerate().find_map(|(index, outcome)| Some((index, outcome.err()?)));
            match (round, failed) {
                (Err(error), failed) => return Err((written + failed.map_or(count, |it| it.0), error.into())),
                (Ok(()), Some((index, error))) => return Err((written + index, error.into())),
                (Ok(()), None) => written += count,
            }
        }
        Ok(())
    }

    fn compare_swap(
        &mut self,
        warrant: Warrant<'_>,
        at: RemoteAddr,
        expect: u64,
        swap: u64,
    ) -> Result<u64, WriteError> {
        self.mutate(warrant, at, size_of::<u64>(), Work::CompareSwap { at, expect, swap })
    }

    fn fetch_add(&mut self, warrant: Warrant<'_>, at: RemoteAddr, add: u64) -> Result<u64, WriteError> {
        self.mutate(warrant, at, size_of::<u64>(), Work::FetchAdd { at, add })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RemoteKey;

    /// Answers each read with the number of reads posted so far, one poll too late if `is_slow`.
    #[derive(Default)]
    struct Slow {
        landing: Vec<u8>,
        posted: u8,
        waiting: Vec<u64>,
        is_slow: bool,
        reconnects: usize,
    }

    impl Queue for Slow {
        fn landing(&self) -> &[u8] {
            &self.landing
        }

        fn landing_mut(&mut self) -> &mut [u8] {
            &mut self.landing
        }

        fn depth(&self) -> usize {
            4
        }

        fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
            self.waiting.extend(requests.iter().map(|request| request.id));
            self.posted += 1;
            Ok(requests.len())
        }

        fn poll(&mut self, completions: &mut [Completion], _: Duration) -> Result<usize, LinkError> {
            if std::mem::take(&mut self.is_slow) {
                return Ok(0);
            }
            self.landing[0] = self.posted.wrapping_sub(self.waiting.len() as u8).wrapping_add(1);
            completions[0] = Completion { id: self.waiting.remove(0), outcome: Ok(0) };
            Ok(1)
        }

        fn reconnect(&mut self) -> Result<(), LinkError> {
            self.waiting.clear();
            self.reconnects += 1;
            Ok(())
        }

        fn is_broken(&self) -> bool {
            false
        }
    }

    #[test]
    fn many_writes_travel_in_rounds_and_nothing_goes_without_a_warrant() {
        let mut link = Blocking::new(Slow { landing: vec![0; 40], ..Slow::default() }, Duration::ZERO);
        let fenced = crate::Fenced::attested(crate::Epoch::new(1), RemoteKey::new(1));
        let at = |key, addr| RemoteAddr::new(RemoteKey::new(key), addr);
        let writes: Vec<_> = (0..10).map(|number| (at(1, number * 8), &b"12345678"[..])).collect();
        link.write_all(Warrant::Fenced(&fenced), &writes).unwrap();
        assert_eq!(link.queue().posted, 3, "four at a time");
        let foreign = [writes[0], (at(2, 0), b"x")];
        assert!(matches!(link.write_all(Warrant::Fenced(&fenced), &foreign), Err((1, WriteError::NoWarrant { .. }))));
        let large = [(at(1, 0), &[0; 41][..])];
        assert!(matches!(link.write_all(Warrant::Fenced(&fenced), &large), Err((0, WriteError::Link(_)))));
    }

    #[test]
    fn a_read_that_was_given_up_never_answers_for_a_later_one() {
        let mut link = Blocking::new(Slow { landing: vec![0; 8], is_slow: true, ..Slow::default() }, Duration::ZERO);
        let at = RemoteAddr::new(RemoteKey::new(1), 0);
        let mut byte = [0];
        assert_eq!(link.read_one(at, &mut byte), Err(LinkError::Lost { tries: 1 }));
        link.read_one(at, &mut byte).unwrap().unwrap();
        assert_eq!((byte, link.queue().reconnects), ([2], 1), "the second read has the second answer");
    }
}
