//! Windows of the peers: lists of stretches, and the data that they stand for (see [`remote_memory::window`]).
//!
//! ```text
//!   key of the list   written by its peer, taken apart when the data is used next
//!   key of the data   byte n is the n-th byte of all stretches; each is reached under the key that the list names
//! ```
//! What a peer writes into a list is not trusted: a list that is none, or another than an access names, refuses every
//! use of its data, and whatever it names, the guard is asked again for each stretch of each access. A window therefore
//! opens nothing that its peer could not reach by itself, and a key that ends closes it.
//!
//! Invariants: as many windows as peers, each of bounded size; nothing is written unless all stretches of a packet are
//! permitted.

use std::sync::{Mutex, PoisonError};

use rand::Rng;
use rdma::responder::Refusal;
use remote_memory::window::{self, List as Named, Stretch};
use remote_memory::{RemoteKey, Rights, Window};

use crate::guard::{Guard, Refused};
use crate::scatter::{Piece, Reach};

/// Stretches of one list: those of a walk over as many processes in one round.
const PIECES_MAX: u32 = 16 * 1024;

/// Stretches that a packet of data has, mostly.
const PIECES_OF_A_PACKET: usize = 128;

/// All open windows.
#[derive(Debug, Default)]
pub struct Windows {
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    window: Window,
    list: Mutex<List>,
}

/// A list as its peer has written it.
#[derive(Debug, Default)]
struct List {
    /// As long as has been written to so far.
    bytes: Vec<u8>,
    /// Taken apart; none since it was written to.
    parsed: Option<Parsed>,
}

#[derive(Debug)]
struct Parsed {
    key: RemoteKey,
    number: u32,
    stretches: Vec<Stretch>,
    /// Where the data of each stretch ends.
    ends: Vec<u64>,
}

/// What a key of a window stands for.
#[derive(Clone, Copy)]
enum Face {
    List,
    Data,
}

impl Windows {
    /// Opens a window for a peer.
    pub fn open(&mut self, rng: &mut impl Rng) -> Window {
        let mut fresh = || loop {
            let key = RemoteKey::new(rng.random());
            if key.raw() != 0 && self.find(key).is_none() {
                return key;
            }
        };
        let window = Window { list: fresh(), data: fresh(), pieces_max: PIECES_MAX };
        self.open.push(Open { window, list: Mutex::default() });
        window
    }

    /// Closes the window with this key of its list.
    pub fn close(&mut self, list: RemoteKey) {
        self.open.retain(|open| open.window.list != list);
    }

    fn find(&self, key: RemoteKey) -> Option<(&Open, Face)> {
        self.open.iter().find_map(|open| match key {
            key if key == open.window.list => Some((open, Face::List)),
            key if key == open.window.data => Some((open, Face::Data)),
            _ => None,
        })
    }

    /// Whether `len` bytes from `addr` of a window may be used with `rights`; `guard` is asked for each stretch. For a
    /// READ only whether the list has so many: it is asked for each packet of the answer anyhow, and nothing is left
    /// half done by one that ends with a refusal.
    pub fn check(&self, guard: &Guard, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        match self.find(key).ok_or(Refusal::Access)? {
            (open, Face::List) => {
                let end = addr.checked_add(len).filter(|_| Rights::WRITE.covers(rights));
                let fits = end.is_some_and(|end| end <= open.window.list_bytes_max() as u64);
                fits.then_some(()).ok_or(Refusal::Access)
            }
            (open, Face::Data) if rights == Rights::READ => open.with_list(addr, len, |_, _, _| Ok(())),
            (open, Face::Data) => open.each(guard, addr, len, rights, |_| Ok(())),
        }
    }

    /// Writes to a list; `false` if `key` is not one.
    pub fn note(&self, key: RemoteKey, addr: u64, bytes: &[u8]) -> Result<bool, Refusal> {
        let Some((open, Face::List)) = self.find(key) else { return Ok(false) };
        let begin = usize::try_from(addr).map_err(|_| Refusal::Access)?;
        let end = begin.checked_add(bytes.len()).filter(|end| *end <= open.window.list_bytes_max());
        let end = end.ok_or(Refusal::Access)?;
        let mut list = open.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.bytes.len() < end {
            list.bytes.resize(end, 0);
        }
        list.bytes[begin..end].copy_from_slice(bytes);
        list.parsed = None;
        Ok(true)
    }

    /// Calls `touch` with the places behind `len` bytes from `addr` of the data, in their order, if each of them may be
    /// used with `rights`: nothing is written in part.
    pub fn each(
        &self,
        guard: &Guard,
        (key, addr, len): (RemoteKey, u64, u64),
        rights: Rights,
        touch: impl FnOnce(&[Piece]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some((open, Face::Data)) = self.find(key) else { return Err(Refusal::Access) };
        let mut pieces = Vec::with_capacity(PIECES_OF_A_PACKET);
        open.each(guard, addr, len, rights, |reach| {
            pieces.extend(reach);
            Ok(())
        })?;
        touch(&pieces)
    }
}

impl Open {
    /// Calls `touch` for each of the places behind `len` bytes from `addr` of the data, up to the first that the guard
    /// does not permit.
    fn each(
        &self,
        guard: &Guard,
        addr: u64,
        len: u64,
        rights: Rights,
        mut touch: impl FnMut(Reach<'_>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.with_list(addr, len, |parsed, mut at, end| {
            let first = parsed.ends.partition_point(|ends| *ends <= at);
            for (stretch, ends) in parsed.stretches[first..].iter().zip(&parsed.ends[first..]) {
                if at >= end {
                    break;
                }
                let skipped = u64::from(stretch.len) - (ends - at);
                let here = (*ends).min(end) - at;
                let begin = stretch.addr.checked_add(skipped).ok_or(Refusal::Access)?;
                touch(guard.reach(parsed.key, begin, here, rights).map_err(|Refused| Refusal::Access)?)?;
                at += here;
            }
            Ok(())
        })
    }

    /// Hands over the list that `addr` names, and where in its data `len` bytes from there begin and end.
    fn with_list(
        &self,
        addr: u64,
        len: u64,
        then: impl FnOnce(&Parsed, u64, u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.parsed.is_none() {
            list.parsed = Parsed::of(&list.bytes);
        }
        let (number, addr) = ((addr >> 32) as u32, addr & u64::from(u32::MAX));
        let parsed = list.parsed.as_ref().filter(|list| list.number == number).ok_or(Refusal::Outdated)?;
        let end = addr.checked_add(len).filter(|end| *end <= parsed.bytes()).ok_or(Refusal::Access)?;
        then(parsed, addr, end)
    }
}

impl Parsed {
    fn of(bytes: &[u8]) -> Option<Self> {
        let Named { key, number, stretches } = window::decode(bytes, PIECES_MAX)?;
        let ends = stretches.iter().scan(0u64, |end, stretch| {
            *end += u64::from(stretch.len); // some thousand numbers of 32 bits
            Some(*end)
        });
        Some(Self { key, number, ends: ends.collect(), stretches })
    }

    fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use remote_memory::window::ENTRY_BYTES;

    use super::*;
    use crate::guard::RAM;
    use crate::scatter::{Run, Scatter};

    /// Addresses of the memory: 0..100 and 200..300, which lie behind each other in the file.
    fn guard(rng: &mut StdRng) -> (Guard, RemoteKey) {
        let runs = vec![Run { start: 0, offset: 0, len: 100 }, Run { start: 200, offset: 100, len: 100 }];
        let mut guard = Guard::new("web");
        guard.attach(Scatter::new(runs).unwrap(), rng);
        let ram = guard.regions(None).unwrap().into_iter().find(|region| region.name == RAM).unwrap();
        (guard, RemoteKey::new(ram.key))
    }

    const NUMBER: u32 = 9;

    fn bytes_of(pieces: &[Piece]) -> impl Iterator<Item = u64> {
        pieces.iter().flat_map(|Piece { offset, len }| *offset..offset + len)
    }

    fn listed(key: RemoteKey, stretches: &[(u64, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY_BYTES * (stretches.len() + 1)];
        let stretches = stretches.iter().map(|(addr, len)| Stretch { addr: *addr, len: *len });
        window::encode(&mut bytes, (key, NUMBER), stretches).unwrap();
        bytes
    }

    fn used(
        windows: &Windows,
        guard: &Guard,
        window: &Window,
        (addr, len): (u64, u64),
        rights: Rights,
    ) -> Result<Vec<u64>, Refusal> {
        let mut found = Vec::new();
        let addr = window::data_addr(NUMBER, addr as u32);
        windows.each(guard, (window.data, addr, len), rights, |pieces| {
            found.extend(bytes_of(pieces));
            Ok(())
        })?;
        Ok(found)
    }

    proptest! {
        /// What a window reaches is what its stretches reach one by one, and nothing if one of them is refused.
        #[test]
        fn a_window_reaches_what_its_stretches_do(
            stretches in prop::collection::vec((0..310u64, 1..12u32), 0..20),
            (addr, len) in (0..150u64, 0..150u64),
        ) {
            let mut rng = StdRng::seed_from_u64(1);
            let (guard, ram) = guard(&mut rng);
            let mut windows = Windows::default();
            let window = windows.open(&mut rng);
            prop_assert!(windows.note(window.list, 0, &listed(ram, &stretches)).unwrap());
            let each = |(addr, len): &(u64, u32)| (*addr..addr + u64::from(*len)).collect::<Vec<_>>();
            let all: Vec<u64> = stretches.iter().flat_map(each).collect();
            let wanted = all.get(addr as usize..(addr + len) as usize);
            let place = |at: &u64| guard.reach(ram, *at, 1, Rights::READ).ok().and_then(|mut it| it.next());
            let expected = wanted.and_then(|all| all.iter().map(|at| Some(place(at)?.offset)).collect());
            prop_assert_eq!(used(&windows, &guard, &window, (addr, len), Rights::READ).ok(), expected.clone());
            let at = window::data_addr(NUMBER, addr as u32);
            // Asked before a READ, a window says whether its list has so many bytes.
            let may = windows.check(&guard, window.data, at, len, Rights::READ).is_ok();
            prop_assert_eq!(may, wanted.is_some());
            // The memory of a machine that runs is not written, through whatever.
            let written = used(&windows, &guard, &window, (addr, len.max(1)), Rights::WRITE);
            prop_assert!(written.is_err());
        }

        /// Whatever a peer writes into its list, it reaches nothing that the key in it does not open.
        #[test]
        fn garbage_in_a_list_reaches_nothing_else(
            at in 0..80u64,
            garbage in prop::collection::vec(any::<u8>(), 0..80),
            (addr, len) in (0..40u64, 1..40u64),
        ) {
            let mut rng = StdRng::seed_from_u64(2);
            let (guard, ram) = guard(&mut rng);
            let mut windows = Windows::default();
            let window = windows.open(&mut rng);
            windows.note(window.list, 0, &listed(ram, &[(0, 10), (90, 10), (200, 10)])).unwrap();
            windows.note(window.list, at, &garbage).unwrap();
            for place in used(&windows, &guard, &window, (addr, len), Rights::READ).unwrap_or_default() {
                prop_assert!(place < 200);
            }
        }
    }

    #[test]
    fn a_window_ends_with_its_peer_and_with_the_key_that_its_list_names() {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut guard, ram) = guard(&mut rng);
        let mut windows = Windows::default();
        let (window, other) = (windows.open(&mut rng), windows.open(&mut rng));
        windows.note(window.list, 0, &listed(ram, &[(5, 3), (201, 2)])).unwrap();
        assert_eq!(used(&windows, &guard, &window, (1, 4), Rights::READ), Ok(vec![6, 7, 101, 102]));
        assert_eq!(used(&windows, &guard, &other, (0, 1), Rights::READ), Err(Refusal::Outdated), "no list yet");
        assert_eq!(used(&windows, &guard, &window, (0, 6), Rights::READ), Err(Refusal::Access), "beyond the list");
        assert!(!windows.note(window.data, 0, &[0]).unwrap(), "data is no list");
        assert_eq!(windows.note(window.list, window.list_bytes_max() as u64, &[0]), Err(Refusal::Access));
        assert_eq!(windows.check(&guard, window.list, 0, 8, Rights::READ), Err(Refusal::Access));

        let token = guard.lock(1, &mut rng);
        let key = RemoteKey::new(token.inner().ram_key);
        windows.note(window.list, 0, &listed(key, &[(5, 3)])).unwrap();
        assert_eq!(used(&windows, &guard, &window, (0, 3), Rights::WRITE), Ok(vec![5, 6, 7]));
        guard.unlock(Some(&token)).unwrap();
        assert_eq!(used(&windows, &guard, &window, (0, 3), Rights::READ), Err(Refusal::Access));
        windows.close(window.list);
        assert!(!windows.note(window.list, 0, &[0; 16]).unwrap());
    }
}
