//! A writer that stops after any single store leaves the old or the new snapshot, whole.

use contbox::continuation::{Exporter, Words};
use contbox::layout::FRONT_BYTES;
use contbox::reader::{BadBox, Snapshot, read_box};
use contbox::{ContinuationBox, Geometry, Opening, Pool};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A slot whose memory takes no more stores once the budget is spent: the machine has stopped.
#[derive(Clone)]
struct Cut {
    words: Rc<RefCell<Vec<u64>>>,
    budget: Rc<Cell<usize>>,
}

impl Cut {
    fn new(geometry: &Geometry, budget: usize) -> Self {
        let words = vec![0x5555_aaaa_5555_aaaa; geometry.slot_bytes as usize / 8];
        Self { words: Rc::new(RefCell::new(words)), budget: Rc::new(Cell::new(budget)) }
    }

    /// What a remote reader finds: the slot's two parts behind a page of header.
    fn pool(&self, geometry: &Geometry) -> Vec<u8> {
        let slot: Vec<u8> = self.words.borrow().iter().flat_map(|word| word.to_le_bytes()).collect();
        let (front, body) = slot.split_at(FRONT_BYTES as usize);
        let mut pool = vec![0; geometry.length_bytes() as usize];
        for (place, bytes) in [(geometry.front(0), front), (geometry.body(0), body)] {
            pool[place.start as usize..place.end as usize].copy_from_slice(bytes);
        }
        pool
    }
}

impl Words for Cut {
    fn load(&self, index: usize) -> u64 {
        self.words.borrow()[index]
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(left) = self.budget.get().checked_sub(1) {
            self.budget.set(left);
            self.words.borrow_mut()[index] = value;
        }
    }

    fn order(&self) {}
}

fn snapshot(number: u64) -> Snapshot {
    // By turns in the front and in the body.
    let length = (number * 77 % 256) as usize;
    Snapshot { lsr: number, lsw: 1000 * number, lws: vec![number as u8 ^ 0x5a; length] }
}

fn opening(peer: &str) -> Opening {
    let mut opening = Opening::fresh(1, "10.77.0.100:8080".parse().unwrap(), peer.parse().unwrap());
    opening.snapshot = snapshot(0);
    opening
}

const PLENTY: usize = usize::MAX;

#[test]
fn a_stop_after_any_store_of_an_export_leaves_a_whole_snapshot() {
    let geometry = Geometry::with(1, 256, 4096);
    for earlier in 0..4 {
        let mut stores = 0;
        loop {
            let memory = Cut::new(&geometry, PLENTY);
            let mut exporter = Exporter::create(memory.clone(), geometry, &opening("10.77.0.4:1")).unwrap();
            for number in 1..=earlier {
                let Snapshot { lsr, lsw, lws } = snapshot(number);
                exporter.export_state(&lws, lsr, lsw).unwrap();
            }
            memory.budget.set(stores);
            let (old, new) = (snapshot(earlier), snapshot(earlier + 1));
            exporter.export_state(&new.lws, new.lsr, new.lsw).unwrap();
            let finished = memory.budget.get() > 0;
            let found = read_box(&memory.pool(&geometry), &geometry, 0, 2000).unwrap().snapshot;
            assert!(found == old || found == new, "{stores} stores: {found:?}");
            assert!(!finished || found == new);
            if finished {
                break;
            }
            stores += 1;
        }
        assert!(stores > 4, "an export takes more than {stores} stores");
    }
}

#[test]
fn a_stop_while_a_slot_is_reused_never_shows_the_previous_session_to_the_new_client() {
    let geometry = Geometry::with(1, 256, 4096);
    let (first, second) = (opening("10.77.0.4:1"), opening("10.77.0.5:2"));
    for stores in 0.. {
        let memory = Cut::new(&geometry, PLENTY);
        let mut exporter = Exporter::create(memory.clone(), geometry, &first).unwrap();
        exporter.export_state(b"secret of the first", 5, 5).unwrap();
        memory.budget.set(stores);
        exporter.close();
        Exporter::create(memory.clone(), geometry, &second).unwrap();
        let finished = memory.budget.get() > 0;
        match read_box(&memory.pool(&geometry), &geometry, 0, 2000) {
            Ok(image) if image.peer == second.peer => assert_eq!(image.snapshot, second.snapshot),
            Ok(image) => assert_eq!((image.peer, image.snapshot.lsr), (first.peer, 5)),
            Err(why) => assert!(matches!(why, BadBox::NoSession { .. }), "{stores} stores: {why}"),
        }
        if finished {
            break;
        }
    }
}

#[test]
fn a_refused_export_leaves_the_newest_snapshot_alone() {
    let geometry = Geometry::with(1, 256, 4096);
    let memory = Cut::new(&geometry, PLENTY);
    let mut exporter = Exporter::create(memory.clone(), geometry, &opening("10.77.0.4:1")).unwrap();
    exporter.export_state(b"good", 7, 7).unwrap();
    assert!(exporter.export_state(&[0; 257], 8, 8).is_err());
    assert!(exporter.export_state(b"back", 6, 8).is_err());
    assert_eq!(read_box(&memory.pool(&geometry), &geometry, 0, 2000).unwrap().snapshot.lws, b"good");
}

#[test]
fn an_export_into_a_mapping_leaves_the_bytes_of_one_made_word_by_word() {
    let geometry = Geometry::with(1, 256, 4096);
    for length in (0..20).chain([63, 64, 127, 128, 129, 255]) {
        let lws: Vec<u8> = (1..=length).collect();
        let (_fd, pool) = Pool::memfd(geometry, 1).unwrap();
        let slot = pool.slot(0).unwrap();
        let mut mapped = ContinuationBox::create(slot.clone(), &opening("10.77.0.4:1")).unwrap();
        let memory = Cut::new(&geometry, PLENTY);
        memory.words.borrow_mut().fill(0);
        let mut stored = Exporter::create(memory.clone(), geometry, &opening("10.77.0.4:1")).unwrap();
        for number in 1..=3 {
            let padded = [&lws[..], b"left over"].concat();
            let longer = &padded[..padded.len().min(256)];
            for words in [longer, &lws] {
                mapped.export_state(words, 0, number).unwrap();
                stored.export_state(words, 0, number).unwrap();
            }
        }
        let word_by_word: Vec<u8> = memory.words.borrow().iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(slot.image() == word_by_word, "{length} bytes");
    }
}

#[test]
fn an_import_finds_the_newest_snapshot_and_refuses_a_log_with_a_gap() {
    let geometry = Geometry::with(1, 256, 4096);
    let (_fd, pool) = Pool::memfd(geometry, 1).unwrap();
    let slot = pool.slot(0).unwrap();
    let mut continuation = ContinuationBox::create(slot.clone(), &opening("10.77.0.4:1")).unwrap();
    continuation.note_received(4000);
    continuation.export_state(b"the newest", 100, 7).unwrap();
    let import = |received| ContinuationBox::import_state(slot.clone(), received).map(|(_, snapshot)| snapshot);
    let newest = Snapshot { lsr: 100, lsw: 7, lws: b"the newest".to_vec() };
    assert_eq!(import(100), Ok(newest.clone()));
    assert_eq!(import(100 + 4096), Ok(newest));
    for copied in [99, 100 + 4097] {
        assert_eq!(import(copied).unwrap_err(), BadBox::LogGap { lsr: 100, copied, log_bytes: 4096 });
    }
    continuation.give_up();
    assert_eq!(import(100).unwrap_err(), BadBox::LostLog);
}
