//! The lock of a target without a hypervisor, in virtual time: a target that decides as its kernel does, and answers
//! late, or never, or while others want its lock too.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::backdoor::{FenceToken, RegionEntry};
use link::lock::{FENCE_LEASE_MS, LockFailure, PATIENCE, Pace, Place, attain, fence, is_held};
use locktable::layout::{BYTES, LOCK, LOCKED, Mode, Word, answer};
use locktable::taking::Goal;
use locktable::{Sign, Standing, Taking, Unlocked, Verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use remote_memory::{LinkError, Read, RemoteAddr, RemoteRead, RemoteWrite, Rights, Warrant, WriteError};

const TARGET: u64 = 77;
const TICK: Duration = Duration::from_millis(5);

/// A target and its time.
struct World {
    now: Duration,
    word: u64,
    standing: Standing,
    words: Vec<AtomicU64>,
    /// Whether processors look, and which of the two are seen off the network.
    ticks: bool,
    settles: [bool; 2],
    /// Time from a look at the word to what follows from it: a processor that is held up.
    late: Duration,
    seen: Option<(Duration, u64)>,
    random: StdRng,
}

#[derive(Clone)]
struct Shared(Rc<RefCell<World>>);

impl World {
    fn shared(seed: u64) -> Shared {
        let words: Vec<_> = (0..BYTES / 8).map(|_| AtomicU64::new(0)).collect();
        Sign::put(&words, TARGET, &[0, 1], &[], 9).unwrap().guards(1, 0, 1);
        Shared(Rc::new(RefCell::new(Self {
            now: Duration::from_secs(100),
            word: 0,
            standing: Standing::Free { last: 0, how: None },
            words,
            ticks: true,
            settles: [true; 2],
            late: Duration::ZERO,
            seen: None,
            random: StdRng::seed_from_u64(seed),
        })))
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + TICK);
            if self.ticks {
                self.tick();
            }
        }
    }

    fn tick(&mut self) {
        let (at, word) = *self.seen.get_or_insert((self.now, self.word));
        if self.now - at < self.late {
            return;
        }
        self.seen = None;
        let (then, verdict) = self.standing.next(word, TARGET, self.now.as_millis() as u64);
        self.standing = then;
        let set = |index: usize, word: u64| self.words[index].store(word, Ordering::Relaxed);
        if matches!(verdict, Verdict::BadWord | Verdict::TooLate) {
            set(answer::REFUSED, word);
            set(answer::WHY, verdict.code());
        }
        set(answer::STANDING, then.encode());
        if let Standing::Stands { number, .. } = then {
            for cpu in (0..2).filter(|cpu| self.settles[*cpu]) {
                set(answer::SETTLED + cpu, number.into());
            }
        }
    }

    fn held(&self) -> Option<u32> {
        match self.standing {
            Standing::Stands { number, mode: Mode::Hold, .. } => Some(number),
            _ => None,
        }
    }
}

impl Shared {
    fn change(&self, how: impl FnOnce(&mut World)) {
        how(&mut self.0.borrow_mut());
    }

    fn by(&self, number: u32, goal: Goal) -> Result<Option<Mode>, Unlocked> {
        match attain(&mut self.clone(), &place(), (number, goal), PATIENCE, &mut self.clone()) {
            Ok(taken) => Ok(taken.mode),
            Err(LockFailure::Unlocked(why)) => Err(why),
            Err(other) => panic!("{other}"),
        }
    }

    fn take(&self, number: u32, mode: Mode, lease_ms: u32) -> Result<Option<Mode>, Unlocked> {
        self.by(number, Goal::Take(mode, lease_ms))
    }

    fn fence(&self, claim: u64) -> Result<FenceToken, LockFailure> {
        fence(&mut self.clone(), &place(), ("t", claim), &mut self.clone())
    }

    fn is_held(&self, token: &FenceToken) -> bool {
        is_held(&mut self.clone(), &place(), token).unwrap()
    }
}

impl Pace for Shared {
    fn now(&mut self) -> Duration {
        self.0.borrow().now
    }

    fn rest(&mut self, time: Duration) {
        self.change(|world| world.pass(time));
    }
}

impl RemoteRead for Shared {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let world = self.0.borrow();
        for read in batch {
            let bytes = match read.at.key.raw() {
                1 => world.word.to_le_bytes().to_vec(),
                _ => world.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect(),
            };
            read.into.copy_from_slice(&bytes[..read.into.len()]);
            read.outcome = Ok(());
        }
        Ok(())
    }
}

impl RemoteWrite for Shared {
    fn write(&mut self, _: Warrant<'_>, _: RemoteAddr, _: &[u8]) -> Result<(), WriteError> {
        panic!("a lock is taken by swaps alone")
    }

    fn compare_swap(
        &mut self,
        warrant: Warrant<'_>,
        at: RemoteAddr,
        expect: u64,
        swap: u64,
    ) -> Result<u64, WriteError> {
        assert!(warrant.covers(at, 8) && at.key.raw() == 1);
        let mut world = self.0.borrow_mut();
        let was = world.word;
        if was == expect {
            world.word = swap;
        }
        Ok(was)
    }

    fn fetch_add(&mut self, _: Warrant<'_>, _: RemoteAddr, _: u64) -> Result<u64, WriteError> {
        panic!("a lock is taken by swaps alone")
    }
}

fn place() -> Place {
    let entry = |name: &str, key, rights: Rights| RegionEntry {
        name: name.to_owned(),
        key,
        base: 0,
        len: BYTES as u64,
        rights: rights.bits(),
        extents: Vec::new(),
    };
    let all = Rights::READ.and(Rights::WRITE).and(Rights::ATOMIC);
    assert!(Place::of(&[entry(LOCK, 1, Rights::READ), entry(LOCKED, 2, Rights::READ)]).is_err());
    assert!(Place::of(&[entry(LOCK, 1, all)]).is_err());
    Place::of(&[entry(LOCK, 1, all), entry(LOCKED, 2, Rights::READ)]).unwrap()
}

#[test]
fn a_fence_is_held_and_asked_again_it_is_the_same() {
    let world = World::shared(1);
    let token = world.fence(5).unwrap();
    assert!(world.is_held(&token));
    world.change(|world| world.pass(Duration::from_secs(3600)));
    assert_eq!(world.fence(5).unwrap(), token);
    assert!(matches!(world.fence(6), Err(LockFailure::Unlocked(Unlocked::Busy { .. }))));
    // Garbage in the word changes nothing, nor who may release it.
    world.change(|world| world.word = 0x1234);
    world.change(|world| world.pass(TICK));
    assert_eq!(world.fence(5).unwrap().epoch, token.epoch);
    assert_eq!(world.by(token.epoch as u32, Goal::Release), Ok(None));
    assert!(!world.is_held(&token));
    assert_ne!(world.fence(5).unwrap().epoch, token.epoch, "a fence that has ended is not the one that stands");
}

#[test]
fn a_target_that_does_not_answer_is_not_locked_and_its_word_is_taken_back() {
    let world = World::shared(2);
    world.change(|world| world.ticks = false);
    assert_eq!(world.take(7, Mode::Fence, 1000), Err(Unlocked::NotAnswered));
    assert_eq!(world.0.borrow().word, 0);
    world.change(|world| world.ticks = true);
    world.change(|world| world.pass(TICK));
    assert_eq!(world.take(7, Mode::Look, 1000), Ok(Some(Mode::Look)));
}

#[test]
fn a_processor_that_may_have_a_packet_under_way_is_no_fence() {
    let world = World::shared(3);
    world.change(|world| world.settles[1] = false);
    assert_eq!(world.take(7, Mode::Fence, 10_000), Err(Unlocked::Unsettled { processors: 0b10 }));
    world.change(|world| world.pass(TICK));
    let how = Some(Verdict::Withdrawn);
    assert_eq!(world.0.borrow().standing, Standing::Free { last: 7, how });
}

#[test]
fn a_lease_that_ends_before_the_hold_leaves_nothing_to_hand_over() {
    let how = Some(Verdict::LeaseEnded);
    let world = World::shared(4);
    assert_eq!(world.take(7, Mode::Fence, 100), Ok(Some(Mode::Fence)));
    world.change(|world| world.pass(Duration::from_millis(200)));
    assert_eq!(world.by(7, Goal::Hold), Err(Unlocked::Ended { number: 7, how }));
    // It ends between the swap and what a processor that is late makes of it.
    let world = World::shared(5);
    assert_eq!(world.take(8, Mode::Fence, 100), Ok(Some(Mode::Fence)));
    world.change(|world| world.late = Duration::from_millis(150));
    assert_eq!(world.by(8, Goal::Hold), Err(Unlocked::Ended { number: 8, how }));
    assert_eq!(world.0.borrow().held(), None);
}

#[test]
fn a_hold_without_an_answer_is_neither_and_told_to_whoever_asks_again() {
    let world = World::shared(6);
    let number = Taking::number_of(5, 0);
    assert_eq!(world.take(number, Mode::Fence, FENCE_LEASE_MS), Ok(Some(Mode::Fence)));
    world.change(|world| world.ticks = false);
    assert_eq!(world.by(number, Goal::Hold), Err(Unlocked::Unknown));
    world.change(|world| world.ticks = true);
    world.change(|world| world.pass(TICK));
    assert_eq!(world.fence(5).unwrap().epoch, u64::from(number));
}

#[test]
fn what_cannot_be_is_refused() {
    let world = World::shared(7);
    assert_eq!(world.take(0, Mode::Look, 100), Err(Unlocked::Misused));
    assert_eq!(world.take(1, Mode::Hold, 100), Err(Unlocked::Misused));
    assert_eq!(world.take(1, Mode::Look, 50_000), Err(Unlocked::Misused));
    assert_eq!(world.by(3, Goal::Hold), Err(Unlocked::Ended { number: 3, how: None }));
    Sign::put(&world.0.borrow().words, TARGET, &[0], &[], 9).unwrap().guards(0, 0, 0);
    assert_eq!(world.take(1, Mode::Look, 100), Err(Unlocked::Unguarded));
}

/// Does at random moments what others do to a lock word and a machine to itself, between any two steps.
struct Rivalry(Shared);

impl Pace for Rivalry {
    fn now(&mut self) -> Duration {
        self.0.now()
    }

    fn rest(&mut self, time: Duration) {
        let mut world = self.0.0.borrow_mut();
        let (number, lease) = (world.random.random_range(1..4u32), world.random.random_range(1..30u16));
        let mode = [Mode::Look, Mode::Fence, Mode::Hold, Mode::Release][world.random.random_range(0..4)];
        match world.random.random_range(0..60) {
            // As other monitors do: only what is free is swapped, and what is theirs taken back.
            0 if world.word == 0 => world.word = Word { number, mode, lease }.encode(TARGET),
            1..10 if Word::decode(world.word, TARGET).is_some_and(|word| word.number < 4) => world.word = 0,
            10 => world.ticks = !world.ticks,
            11 => world.late = Duration::from_millis(world.random.random_range(0..200)),
            12 => world.settles[1] = !world.settles[1],
            _ => {}
        }
        world.pass(time);
    }
}

/// Whatever happens meanwhile: who has a token has a target that is held under it.
#[test]
fn no_token_without_a_held_fence() {
    let (mut tokens, mut refusals) = (0, 0);
    for seed in 0..2000 {
        let world = World::shared(seed);
        let mut rivalry = Rivalry(world.clone());
        for _ in 0..20 {
            rivalry.rest(Duration::from_millis(1));
        }
        match fence(&mut world.clone(), &place(), ("t", seed), &mut rivalry) {
            Ok(token) => {
                tokens += 1;
                rivalry.rest(Duration::from_secs(100));
                assert_eq!(world.0.borrow().held(), Some(token.epoch as u32), "seed {seed}");
            }
            Err(LockFailure::Unlocked(_)) => refusals += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    println!("{tokens} fences, {refusals} refusals");
    assert!(tokens > 200 && refusals > 100, "{tokens} fences, {refusals} refusals: too little was tried");
}
