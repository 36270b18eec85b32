//! Reads that were fetched together have the outcome that each would have had alone.

use std::collections::VecDeque;
use std::time::Duration;

use remote_memory::{
    AccessError, Blocking, Completion, LinkError, Queue, Read, RemoteAddr, RemoteKey, RemoteRead, Request, Work,
};

const MEMORY_BYTES: u64 = 64 << 10;
const KEY: RemoteKey = RemoteKey::new(1);

fn pattern(addr: u64) -> u8 {
    (addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// A server of patterned memory with forbidden stretches. A refusal breaks the connection, as RDMA's does, if `strict`.
struct Server {
    landing: Vec<u8>,
    depth: usize,
    forbidden: Vec<(u64, u64)>,
    waiting: VecDeque<Request>,
    is_strict: bool,
    is_broken: bool,
    operations: usize,
    reconnects: usize,
}

impl Server {
    /// Forbidden: from, to.
    fn new(forbidden: &[(u64, u64)]) -> Self {
        Self {
            landing: vec![0; 32 << 10],
            depth: 64,
            forbidden: forbidden.to_vec(),
            waiting: VecDeque::new(),
            is_strict: true,
            is_broken: false,
            operations: 0,
            reconnects: 0,
        }
    }

    fn permits(&self, at: RemoteAddr, len: u64) -> bool {
        let Some(end) = at.addr.checked_add(len) else { return false };
        let clear = self.forbidden.iter().all(|(from, to)| end <= *from || at.addr >= *to);
        len == 0 || (at.key == KEY && end <= MEMORY_BYTES && clear)
    }

    fn answer(&mut self, request: Request) -> Completion {
        let Work::Read { at, len, landing } = request.work else { panic!("only reads are asked") };
        let permitted = self.permits(at, u64::from(len));
        if self.is_broken || !permitted {
            let why = if self.is_broken { AccessError::Flushed } else { AccessError::Refused };
            self.is_broken |= self.is_strict;
            return Completion { id: request.id, outcome: Err(why) };
        }
        for index in 0..len {
            self.landing[(landing + index) as usize] = pattern(at.addr.wrapping_add(u64::from(index)));
        }
        Completion { id: request.id, outcome: Ok(0) }
    }
}

impl Queue for Server {
    fn landing(&self) -> &[u8] {
        &self.landing
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        &mut self.landing
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        let room = self.depth - self.waiting.len();
        let taken = &requests[..requests.len().min(room)];
        self.waiting.extend(taken);
        self.operations += taken.len();
        Ok(taken.len())
    }

    fn poll(&mut self, completions: &mut [Completion], _: Duration) -> Result<usize, LinkError> {
        let mut taken = 0;
        while taken < completions.len()
            && let Some(request) = self.waiting.pop_front()
        {
            completions[taken] = self.answer(request);
            taken += 1;
        }
        Ok(taken)
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        self.waiting.clear();
        self.is_broken = false;
        self.reconnects += 1;
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.is_broken
    }
}

/// The outcomes of `reads` (address, length), whose bytes are those of the memory where there are any.
fn outcomes(link: &mut Blocking<Server>, reads: &[(RemoteAddr, usize)]) -> Vec<Result<(), AccessError>> {
    let mut buffers: Vec<Vec<u8>> = reads.iter().map(|(_, len)| vec![0xee; *len]).collect();
    let mut batch: Vec<Read<'_>> =
        reads.iter().zip(&mut buffers).map(|((at, _), buffer)| Read::new(*at, buffer)).collect();
    link.read(&mut batch).unwrap();
    let outcomes: Vec<_> = batch.iter().map(|read| read.outcome).collect();
    for (((at, _), buffer), outcome) in reads.iter().zip(&buffers).zip(&outcomes) {
        let expected = |index: usize| if outcome.is_ok() { pattern(at.addr + index as u64) } else { 0xee };
        assert!(buffer.iter().enumerate().all(|(index, byte)| *byte == expected(index)), "{at:x?} {outcome:?}");
    }
    outcomes
}

fn at(addr: u64) -> RemoteAddr {
    RemoteAddr::new(KEY, addr)
}

#[test]
fn ten_thousand_neighbours_are_a_few_operations() {
    let mut link = Blocking::new(Server::new(&[]), Duration::ZERO);
    let reads: Vec<_> = (0..10_000u64).rev().map(|index| (at((index * 7919 % MEMORY_BYTES) & !7), 8)).collect();
    let reads: Vec<_> = reads.into_iter().filter(|(at, _)| at.addr + 8 <= MEMORY_BYTES).collect();
    assert!(outcomes(&mut link, &reads).iter().all(Result::is_ok));
    assert!(link.queue().operations <= 8, "{}", link.queue().operations);
}

#[test]
fn a_hole_between_two_reads_is_not_held_against_them() {
    let mut link = Blocking::new(Server::new(&[(100, 200)]), Duration::ZERO);
    let found = outcomes(&mut link, &[(at(0), 100), (at(200), 8), (at(150), 8), (at(9000), 8)]);
    assert_eq!(found, [Ok(()), Ok(()), Err(AccessError::Refused), Ok(())]);
    assert_eq!(link.queue().reconnects, 2, "the span, then the one bad read");
}

#[test]
fn a_server_that_keeps_the_connection_is_asked_no_oftener_than_needed() {
    let server = Server { is_strict: false, ..Server::new(&[(100, 200), (5000, 5001)]) };
    let mut link = Blocking::new(server, Duration::ZERO);
    let found = outcomes(&mut link, &[(at(0), 8), (at(150), 8), (at(4992), 16), (at(4000), 8), (at(20_000), 8)]);
    let refused = Err(AccessError::Refused);
    assert_eq!(found, [Ok(()), refused, refused, Ok(()), Ok(())]);
    assert_eq!((link.queue().reconnects, link.queue().operations), (0, 3 + 4));
}

#[test]
fn garbage_addresses_end_within_their_bound() {
    let mut link = Blocking::new(Server::new(&[(0, MEMORY_BYTES)]), Duration::ZERO);
    let reads: Vec<_> = (0..500).map(|index| (at(index * 32), 16)).collect();
    let found = outcomes(&mut link, &reads);
    assert!(found.iter().all(|outcome| matches!(outcome, Err(AccessError::Refused | AccessError::Flushed))));
    assert!(link.queue().reconnects <= 17, "{}", link.queue().reconnects);
}

/// Seeded batches over memory with holes: together as alone.
#[test]
fn merged_or_not_the_outcomes_are_the_same() {
    for seed in 0..2000u64 {
        let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let holes: Vec<_> = (0..random(3)).map(|_| random(MEMORY_BYTES)).map(|start| (start, start + 40)).collect();
        let reads: Vec<_> = (0..1 + random(60))
            .map(|_| {
                let key = RemoteKey::new(1 + u32::from(random(40) == 0));
                let addr = if random(4) == 0 { random(MEMORY_BYTES + 300) } else { random(4096) };
                (RemoteAddr::new(key, addr), random(300) as usize)
            })
            .collect();
        let server = Server { is_strict: false, ..Server::new(&holes) };
        let expected: Vec<_> = reads
            .iter()
            .map(|(at, len)| server.permits(*at, *len as u64).then_some(()).ok_or(AccessError::Refused))
            .collect();
        let found = outcomes(&mut Blocking::new(server, Duration::ZERO), &reads);
        assert_eq!(found, expected, "seed {seed}: {reads:x?}, holes {holes:x?}");
    }
}
