//! The guard against a model that keeps, for every key ever seen, what it should permit byte by byte.

use std::collections::HashMap;

use control::agent::Registration;
use control::backdoor::{FenceToken, LockToken};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use remote_memory::{PAGE_BYTES, RemoteKey, Rights};

use super::{Guard, RAM};
use crate::scatter::{Run, Scatter};

/// Pages of the model's memory: 4 at address 0, a hole, 4 more from page 8 on.
const LOW_PAGES: u64 = 4;
const HIGH_START: u64 = 8;

fn memory() -> Scatter {
    let low = LOW_PAGES * PAGE_BYTES;
    Scatter::new(vec![
        Run { start: 0, offset: 0, len: low },
        Run { start: HIGH_START * PAGE_BYTES, offset: low, len: low },
    ])
    .expect("a proper layout")
}

/// Where guest page `page` lies in the file, in pages.
fn file_page(page: u64) -> Option<u64> {
    match page {
        0..LOW_PAGES => Some(page),
        HIGH_START.. if page < HIGH_START + LOW_PAGES => Some(page - HIGH_START + LOW_PAGES),
        _ => None,
    }
}

/// Under which fences and locks are made.
const CLAIM: u64 = 7;

#[derive(Clone, Debug)]
enum Step {
    Register { name: u8, pages: Vec<u64>, cut: u64, writable: bool },
    AgentGreets,
    AgentSettles,
    MachineResets,
    Fence,
    Lock,
    Harden,
    Unlock { forged: bool },
    BeginRelease { forged: bool },
    FinishRelease,
    Attach,
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop::collection::vec(0..HIGH_START + LOW_PAGES + 2, 0..5);
    prop_oneof![
        6 => (0..3u8, pages, 0..PAGE_BYTES + 2, any::<bool>())
            .prop_map(|(name, pages, cut, writable)| Step::Register { name, pages, cut, writable }),
        1 => Just(Step::AgentGreets),
        1 => Just(Step::AgentSettles),
        1 => Just(Step::MachineResets),
        3 => Just(Step::Fence),
        3 => Just(Step::Lock),
        1 => Just(Step::Harden),
        2 => any::<bool>().prop_map(|forged| Step::Unlock { forged }),
        2 => any::<bool>().prop_map(|forged| Step::BeginRelease { forged }),
        2 => Just(Step::FinishRelease),
        1 => Just(Step::Attach),
    ]
}

/// What the table says a key is for: the whole expectation about it.
#[derive(Clone, PartialEq, Debug)]
struct Expected {
    /// The file page behind each page of the region, and its length in bytes.
    pages: Vec<Option<u64>>,
    len: u64,
    rights: Rights,
}

/// What was registered, and whether a greeting, and silence after it, came since.
struct Registered {
    wanted: Registration,
    greeted: bool,
    asleep: bool,
}

#[derive(Default)]
struct Model {
    boxes: Vec<Registered>,
    /// What stands, a fence or a lock.
    fence: Option<FenceToken>,
    open: bool,
    leased: bool,
    /// The key each name had at the last look, and every key that has died since.
    keys: HashMap<String, u32>,
    dead: Vec<u32>,
}

impl Model {
    fn expected(&self) -> Vec<(String, Expected)> {
        let all: Vec<_> = (0..HIGH_START + LOW_PAGES).map(file_page).collect();
        let len = (HIGH_START + LOW_PAGES) * PAGE_BYTES;
        let mut table = vec![(RAM.to_owned(), Expected { pages: all, len, rights: Rights::READ })];
        for Registered { wanted, asleep, .. } in &self.boxes {
            let rights = if wanted.writable && !asleep && self.fence.is_none() { Rights::ALL } else { Rights::READ };
            let pages = wanted.pages.iter().map(|&page| file_page(page)).collect();
            table.push((wanted.name.clone(), Expected { pages, len: wanted.len, rights }));
        }
        table
    }
}

fn apply(guard: &mut Guard, model: &mut Model, rng: &mut StdRng, step: &Step) {
    match step {
        Step::Register { name, pages, cut, writable } => {
            let name = format!("box-{name}");
            let len = (pages.len() as u64 * PAGE_BYTES).saturating_sub(*cut);
            let wanted = Registration { name: name.clone(), len, pages: pages.clone(), writable: *writable };
            let proper = !pages.is_empty() && *cut < PAGE_BYTES && pages.iter().all(|&page| file_page(page).is_some());
            assert_eq!(guard.register(&wanted, rng).is_ok(), proper, "{wanted:?}");
            if proper {
                let fresh = Registered { wanted, greeted: false, asleep: false };
                match model.boxes.iter_mut().find(|it| it.wanted.name == name) {
                    Some(old) => *old = fresh,
                    None => model.boxes.push(fresh),
                }
            }
        }
        Step::AgentGreets => {
            guard.agent_greets();
            model.boxes.iter_mut().for_each(|it| it.greeted = true);
        }
        Step::AgentSettles => {
            guard.agent_settles();
            model.boxes.iter_mut().for_each(|it| it.asleep |= it.greeted);
        }
        Step::MachineResets => {
            guard.machine_reset();
            model.boxes.clear();
        }
        Step::Fence if model.fence.is_none() => {
            model.fence = Some(guard.fence(Some(CLAIM), rng));
            (model.open, model.leased) = (true, false);
        }
        Step::Lock if model.fence.is_none() => {
            model.fence = Some(guard.lock(CLAIM, rng).inner().clone());
            (model.open, model.leased) = (true, true);
        }
        Step::Fence | Step::Lock => assert_eq!((guard.is_fenced(), guard.is_locked()), (!model.leased, model.leased)),
        Step::Harden => {
            assert_eq!(guard.harden(Some(CLAIM + 1)), None, "somebody else's lock");
            let expected = model.fence.clone().filter(|_| model.leased);
            assert_eq!(guard.harden(Some(CLAIM)), expected);
            model.leased = false;
        }
        Step::Unlock { forged } => {
            let Some(mut token) = model.fence.clone() else { return };
            token.secret ^= u64::from(*forged);
            let is_ended = guard.unlock(Some(&LockToken::new(token))).is_ok();
            assert_eq!(is_ended, model.leased && !forged);
            if is_ended {
                model.dead.extend(model.fence.take().map(|token| token.ram_key));
                (model.open, model.leased) = (false, false);
            }
        }
        Step::BeginRelease { forged } => {
            let Some(mut token) = model.fence.clone() else { return };
            token.secret ^= u64::from(*forged);
            assert_eq!(guard.begin_release(&token, rng).is_err(), *forged || model.leased);
            if !forged && !model.leased {
                model.open = false;
                model.dead.push(token.ram_key);
                model.dead.extend(model.keys.values()); // a release ends every key of the epoch
                model.keys.clear();
            }
        }
        Step::FinishRelease if model.fence.is_some() && !model.open && !model.leased => {
            guard.finish_release();
            model.fence = None;
        }
        Step::FinishRelease => {}
        Step::Attach => {
            guard.attach(memory(), rng);
            model.boxes.clear();
            model.open = false;
            model.dead.extend(model.keys.values());
            model.dead.extend(model.fence.iter().map(|token| token.ram_key));
            model.keys.clear();
        }
    }
}

/// Every probe of every key must be answered as the expectation says, byte by byte.
fn compare(guard: &Guard, model: &mut Model, probes: &[(u64, u64, u8)]) {
    let table = guard.regions(None).expect("no token was shown");
    let expected = model.expected();
    let names: Vec<_> = table.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let mut live = Vec::new();
    for (entry, (name, expected)) in table.iter().zip(&expected) {
        assert_eq!((entry.len, entry.rights), (expected.len, expected.rights.bits()), "{name}");
        live.push((entry.key, expected.clone()));
        if let Some(old) = model.keys.insert(name.clone(), entry.key).filter(|old| *old != entry.key) {
            model.dead.push(old);
        }
    }
    if let Some(token) = &model.fence {
        let forged = FenceToken { secret: token.secret ^ 1, ..token.clone() };
        assert!(guard.regions(Some(&forged)).is_err());
        assert_eq!(guard.regions(Some(token)).is_ok(), model.open && !model.leased, "no spare acts under a lock");
        if model.open {
            live.push((token.ram_key, Expected { rights: Rights::ALL, ..expected[0].1.clone() }));
        }
    }
    for (key, _) in &live {
        assert!(!model.dead.contains(key), "a key survived the end of its epoch");
    }
    for &(addr, len, rights) in probes {
        let rights = Rights::from_bits(rights);
        for (key, expected) in &live {
            assert_eq!(answer(guard, *key, addr, len, rights), permitted(expected, addr, len, rights));
        }
        for key in &model.dead {
            assert_eq!(answer(guard, *key, addr, len, rights), None, "a dead key opened something");
        }
    }
}

/// The file offsets of every byte, as the guard says.
fn answer(guard: &Guard, key: u32, addr: u64, len: u64, rights: Rights) -> Option<Vec<u64>> {
    let pieces = guard.reach(RemoteKey::new(key), addr, len, rights).ok()?;
    Some(pieces.flat_map(|piece| piece.offset..piece.offset + piece.len).collect())
}

/// The same, as the model says.
fn permitted(expected: &Expected, addr: u64, len: u64, rights: Rights) -> Option<Vec<u64>> {
    let byte = |at: u64| {
        let page = expected.pages.get((at / PAGE_BYTES) as usize).copied().flatten()?;
        (at < expected.len).then_some(page * PAGE_BYTES + at % PAGE_BYTES)
    };
    if !expected.rights.covers(rights) {
        return None;
    }
    (0..len).map(|index| addr.checked_add(index).and_then(byte)).collect()
}

proptest! {
    #[test]
    fn the_guard_permits_exactly_what_the_model_does(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..16),
        probes in prop::collection::vec((
            prop_oneof![
                (0..14 * PAGE_BYTES),
                (0..14u64, 0..16u64).prop_map(|(page, off)| (page * PAGE_BYTES).saturating_add(off).saturating_sub(8)),
                Just(u64::MAX - 3),
            ],
            prop_oneof![1..64u64, Just(PAGE_BYTES), Just(2 * PAGE_BYTES + 1)],
            0..8u8,
        ), 1..5),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut guard = Guard::new("t");
        guard.attach(memory(), &mut rng);
        let mut model = Model::default();
        compare(&guard, &mut model, &probes);
        for step in &steps {
            apply(&mut guard, &mut model, &mut rng, step);
            compare(&guard, &mut model, &probes);
        }
    }

    #[test]
    fn registering_the_same_again_keeps_the_key(
        seed in any::<u64>(),
        writable in any::<bool>(),
        fenced in any::<bool>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut guard = Guard::new("t");
        guard.attach(memory(), &mut rng);
        let wanted = Registration { name: "sb".into(), len: 5000, pages: vec![9, 2], writable };
        guard.register(&wanted, &mut rng).unwrap();
        let before = guard.regions(None).unwrap();
        guard.agent_greets();
        guard.agent_settles();
        if fenced {
            guard.fence(None, &mut rng);
        }
        guard.register(&wanted, &mut rng).unwrap();
        let after = guard.regions(None).unwrap();
        prop_assert_eq!(before[1].key, after[1].key);
        guard.register(&Registration { pages: vec![9, 3], ..wanted }, &mut rng).unwrap();
        prop_assert_ne!(before[1].key, guard.regions(None).unwrap()[1].key);
    }
}

#[test]
fn a_guard_without_memory_refuses_the_key_zero() {
    let guard = Guard::new("t");
    assert!(guard.regions(None).unwrap().is_empty());
    assert_eq!(answer(&guard, 0, 0, 1, Rights::READ), None);
}

#[test]
fn a_fence_is_given_again_to_its_claim_only() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut guard = Guard::new("t");
    guard.attach(memory(), &mut rng);
    let token = guard.fence(Some(7), &mut rng);
    assert_eq!(guard.claimed(Some(7)), Some(token));
    assert_eq!(guard.claimed(Some(8)), None);
    assert_eq!(guard.claimed(None), None);
}

#[test]
fn hostile_registrations_are_refused_and_change_nothing() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut guard = Guard::new("t");
    guard.attach(memory(), &mut rng);
    let good = Registration { name: "sb".into(), len: 4096, pages: vec![1], writable: false };
    guard.register(&good, &mut rng).unwrap();
    let table = guard.regions(None).unwrap();
    let mut check = |wanted: Registration| {
        guard.register(&wanted, &mut rng).unwrap_err();
        assert_eq!(guard.regions(None).unwrap(), table);
    };
    for name in ["", "ram", "../x", "SB", "a\n", &"x".repeat(33)] {
        check(Registration { name: name.into(), ..good.clone() });
    }
    for page in [LOW_PAGES, HIGH_START - 1, u64::MAX, u64::MAX / PAGE_BYTES, 1 << 52] {
        check(Registration { pages: vec![page], ..good.clone() });
    }
    check(Registration { len: 0, ..good.clone() });
    check(Registration { len: u64::MAX, ..good.clone() });
    check(Registration { pages: vec![1; control::agent::REGION_PAGES_MAX + 1], ..good.clone() });
}
