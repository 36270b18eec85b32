//! Requests as an adapter takes them, and what its answers mean.
//!
//! A chain of requests is laid out in lists that are made once, and handed over with one doorbell. Of a chain only the
//! last request, and one in [`SIGNAL_EVERY`], asks for a completion: a connection carries requests out in order, so
//! the completion of one says that those before it have succeeded. One that fails always has a completion of its own.

use std::ptr;

use remote_memory::{AccessError, LinkError, RemoteAddr, Work};

use super::ffi::{Atomic, Rdma, Remote, SendWr, Sge, opcode, send, status};
use super::landing::Landing;
use super::slots::Kind;

/// Requests from one completion to the next at most: enough that they cost little, few enough that a long chain is
/// consumed while it is still being carried out.
const SIGNAL_EVERY: usize = 32;

/// Lists for a chain of requests.
pub struct Chain {
    requests: Vec<SendWr>,
    places: Vec<Sge>,
    len: usize,
}

// SAFETY: the pointers are between the lists of the value itself and mean something only inside `Chain::first`'s user.
unsafe impl Send for Chain {}

impl Chain {
    /// For up to `depth` requests.
    pub fn new(depth: usize) -> Self {
        let blank = SendWr {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 1,
            opcode: 0,
            send_flags: 0,
            imm_data: 0,
            wr: Remote { atomic: Atomic { remote_addr: 0, compare_add: 0, swap: 0, rkey: 0 } },
            rest: [0; 7],
        };
        Self { requests: vec![blank; depth], places: vec![Sge::default(); depth], len: 0 }
    }

    /// Begins a chain anew.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds `work`, which is called `id` and whose answer, if it is an atomic, goes to answer `slot`.
    pub fn push(&mut self, id: u64, work: &Work, slot: usize, landing: &Landing, local_key: u32, inline_bytes: u32) {
        let mut flags = 0;
        let rdma = |at: &remote_memory::RemoteAddr| Remote { rdma: Rdma { remote_addr: at.addr, rkey: at.key.raw() } };
        let (code, remote, place) = match work {
            Work::Read { at, len, landing: offset } => (opcode::RDMA_READ, rdma(at), (landing.address(*offset), *len)),
            Work::Write { at, len, landing: offset } => {
                if *len <= inline_bytes {
                    flags |= send::INLINE;
                }
                (opcode::RDMA_WRITE, rdma(at), (landing.address(*offset), *len))
            }
            Work::CompareSwap { at, expect, swap } => {
                let atomic = Atomic { remote_addr: at.addr, compare_add: *expect, swap: *swap, rkey: at.key.raw() };
                (opcode::CMP_AND_SWP, Remote { atomic }, answer(landing, slot))
            }
            Work::FetchAdd { at, add } => {
                let atomic = Atomic { remote_addr: at.addr, compare_add: *add, swap: 0, rkey: at.key.raw() };
                (opcode::FETCH_AND_ADD, Remote { atomic }, answer(landing, slot))
            }
        };
        self.places[self.len] = Sge { addr: place.0, length: place.1, lkey: local_key };
        let request = &mut self.requests[self.len];
        request.wr_id = id;
        request.opcode = code;
        request.wr = remote;
        // An empty list is how some adapters want "nothing" said; a place of length 0 means 2 GiB to others.
        request.num_sge = i32::from(place.1 > 0);
        self.len += 1;
        if self.len.is_multiple_of(SIGNAL_EVERY) {
            flags |= send::SIGNALED;
        }
        request.send_flags = flags;
    }

    /// The chain's first request, with the others behind it. Valid until the value is used again.
    pub fn first(&mut self) -> *mut SendWr {
        if self.len == 0 {
            return ptr::null_mut();
        }
        let (requests, places) = (self.requests.as_mut_ptr(), self.places.as_mut_ptr());
        for index in 0..self.len {
            let next = if index + 1 < self.len { requests.wrapping_add(index + 1) } else { ptr::null_mut() };
            let request = &mut self.requests[index];
            request.next = next;
            request.sg_list = places.wrapping_add(index);
        }
        self.requests[self.len - 1].send_flags |= send::SIGNALED;
        requests
    }
}

/// Where an atomic's answer is to go, in which nothing is there yet.
fn answer(landing: &Landing, slot: usize) -> (u64, u32) {
    landing.await_answer(slot);
    (landing.answer_address(slot), size_of::<u64>() as u32)
}

/// The requests that `work` is to an adapter: itself, or a WRITE's pieces of as many bytes as `piece_bytes` has them
/// for its length.
pub fn pieces(work: Work, piece_bytes: impl Fn(usize) -> usize) -> impl ExactSizeIterator<Item = (Kind, Work)> {
    let (kind, len) = match work {
        Work::Read { .. } => (Kind::Read, 1),
        Work::Write { len, .. } => (Kind::Write, len.max(1)),
        Work::CompareSwap { .. } | Work::FetchAdd { .. } => (Kind::Atomic, 1),
    };
    let each = if kind == Kind::Write { piece_bytes(len as usize) as u32 } else { len };
    let count = len.div_ceil(each);
    (0..count).map(move |index| {
        let from = index * each;
        match work {
            Work::Write { at, len, landing } if count > 1 => {
                let at = RemoteAddr::new(at.key, at.addr.wrapping_add(from.into()));
                let kind = if index + 1 < count { Kind::Piece } else { Kind::Write };
                (kind, Work::Write { at, len: each.min(len - from), landing: landing + from })
            }
            whole => (kind, whole),
        }
    })
}

/// Whether `work` fits the landing buffer, and makes sense.
pub fn check(work: &Work, landing_bytes: usize) -> Result<(), LinkError> {
    match work {
        Work::Read { len, landing, .. } | Work::Write { len, landing, .. } => {
            match u64::from(*landing) + u64::from(*len) <= landing_bytes as u64 {
                true => Ok(()),
                false => Err(LinkError::Misused("an operation reaches beyond the landing buffer")),
            }
        }
        Work::CompareSwap { at, .. } | Work::FetchAdd { at, .. } => match at.addr.is_multiple_of(8) {
            true => Ok(()),
            false => Err(LinkError::Misused("an atomic on a word that is not aligned")),
        },
    }
}

/// What a completion says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// Done.
    Done,
    /// The peer refused; the connection is dead.
    Refused(AccessError),
    /// Not tried, because the connection was dead.
    Flushed,
    /// The peer does not answer; the connection is dead.
    Silent,
    /// This side's fault, or the adapter's; the connection is dead.
    Failed(u32),
}

/// The meaning of a completion's status, as the software queue has it.
pub fn meaning(code: u32) -> Said {
    match code {
        status::SUCCESS => Said::Done,
        status::WR_FLUSH_ERR => Said::Flushed,
        status::REM_ACCESS_ERR => Said::Refused(AccessError::Refused),
        status::REM_INV_REQ_ERR => Said::Refused(AccessError::Malformed),
        status::REM_OP_ERR => Said::Refused(AccessError::Unreachable),
        status::RETRY_EXC_ERR | status::RNR_RETRY_EXC_ERR => Said::Silent,
        other => Said::Failed(other),
    }
}

#[cfg(test)]
mod tests {
    use remote_memory::RemoteKey;

    use super::*;

    const AT: RemoteAddr = RemoteAddr::new(RemoteKey::new(0x77), 0x1000);

    fn chain(works: &[Work], inline_bytes: u32) -> (Vec<SendWr>, Vec<Sge>, Landing) {
        let landing = Landing::new(4096, 64);
        let mut chain = Chain::new(64);
        for (index, work) in works.iter().enumerate() {
            chain.push(100 + index as u64, work, index, &landing, 5, inline_bytes);
        }
        chain.first();
        (chain.requests[..chain.len].to_vec(), chain.places[..chain.len].to_vec(), landing)
    }

    #[test]
    fn requests_become_a_chain_of_which_the_last_is_signalled() {
        let read = Work::Read { at: AT, len: 64, landing: 128 };
        let swap = Work::CompareSwap { at: AT, expect: 3, swap: 4 };
        let add = Work::FetchAdd { at: AT, add: 9 };
        let (requests, places, landing) = chain(&[read, swap, add], 0);
        assert_eq!(requests.iter().map(|one| one.wr_id).collect::<Vec<_>>(), [100, 101, 102]);
        assert_eq!(requests.iter().map(|one| one.opcode).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(requests.iter().map(|one| one.send_flags).collect::<Vec<_>>(), [0, 0, 2]);
        assert_eq!(requests.iter().map(|one| one.next.is_null()).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!((places[0].addr, places[0].length, places[0].lkey), (landing.address(128), 64, 5));
        assert_eq!((places[2].addr, places[2].length), (landing.answer_address(2), 8));
        // SAFETY: the member that was written.
        let (rdma, atomic) = unsafe { (requests[0].wr.rdma, requests[1].wr.atomic) };
        assert_eq!((rdma.remote_addr, rdma.rkey), (0x1000, 0x77));
        assert_eq!((atomic.remote_addr, atomic.compare_add, atomic.swap, atomic.rkey), (0x1000, 3, 4, 0x77));
    }

    #[test]
    fn only_small_writes_travel_inside_the_request_and_nothing_is_an_empty_list() {
        let write = |len| Work::Write { at: AT, len, landing: 0 };
        let (requests, _, _) = chain(&[write(64), write(65), write(0), Work::Read { at: AT, len: 8, landing: 0 }], 64);
        assert_eq!(requests.iter().map(|one| one.send_flags & send::INLINE).collect::<Vec<_>>(), [8, 0, 8, 0]);
        assert_eq!(requests.iter().map(|one| one.num_sge).collect::<Vec<_>>(), [1, 1, 0, 1]);
    }

    #[test]
    fn a_long_chain_is_signalled_now_and_then() {
        let (requests, _, _) = chain(&[Work::Read { at: AT, len: 8, landing: 0 }; 40], 0);
        let signalled = requests.iter().enumerate().filter(|(_, one)| one.send_flags & send::SIGNALED != 0);
        assert_eq!(signalled.map(|(index, _)| index).collect::<Vec<_>>(), [31, 39]);
    }

    #[test]
    fn a_write_is_cut_into_pieces_and_nothing_else_is() {
        let write =
            |from: u32, len| Work::Write { at: AT.checked_add(u64::from(from)).unwrap(), len, landing: 8 + from };
        let cut = |work| pieces(work, |len| len.min(40)).collect::<Vec<_>>();
        let expected = [(Kind::Piece, write(0, 40)), (Kind::Piece, write(40, 40)), (Kind::Write, write(80, 20))];
        assert_eq!(cut(write(0, 100)), expected);
        for len in [0, 1, 40] {
            assert_eq!(cut(write(0, len.min(40))).len(), 1);
            assert_eq!(pieces(write(0, len), |len| len.max(1)).collect::<Vec<_>>(), [(Kind::Write, write(0, len))]);
        }
        let read = Work::Read { at: AT, len: 100, landing: 0 };
        assert_eq!(cut(read), [(Kind::Read, read)]);
        let add = Work::FetchAdd { at: AT, add: 1 };
        assert_eq!(cut(add), [(Kind::Atomic, add)]);
    }

    #[test]
    fn what_does_not_fit_is_misuse() {
        let check = |work, expected| assert_eq!(super::check(&work, 4096).is_ok(), expected, "{work:?}");
        check(Work::Read { at: AT, len: 4096, landing: 0 }, true);
        check(Work::Read { at: AT, len: 4096, landing: 1 }, false);
        check(Work::Write { at: AT, len: u32::MAX, landing: u32::MAX }, false);
        check(Work::FetchAdd { at: AT, add: 1 }, true);
        check(Work::FetchAdd { at: RemoteAddr::new(AT.key, 0x1004), add: 1 }, false);
    }

    #[test]
    fn statuses_mean_what_the_software_queue_says() {
        let check = |code, expected| assert_eq!(meaning(code), expected, "status {code}");
        check(0, Said::Done);
        check(5, Said::Flushed);
        check(9, Said::Refused(AccessError::Malformed));
        check(10, Said::Refused(AccessError::Refused));
        check(11, Said::Refused(AccessError::Unreachable));
        check(12, Said::Silent);
        check(13, Said::Silent);
        check(7, Said::Failed(7));
        check(99, Said::Failed(99));
    }
}
