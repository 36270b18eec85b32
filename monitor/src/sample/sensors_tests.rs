//! A target that is memory: with a box, with a kernel, with both.

use std::sync::atomic::{AtomicU64, Ordering};

use control::backdoor::{FenceState, FenceToken};
use remote_memory::image::Image;
use remote_memory::trace::Trace;
use remote_memory::{Region, RemoteRead, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

use super::super::Glance;
use super::*;
use crate::kernel::made;

/// Where the box is, and its length.
const BOX: u64 = 0x80_0000;
const RECORDS: usize = 3;

/// A door to memory that nobody can fence.
struct Memory {
    ram: Trace<Image>,
    is_up: bool,
    life: Life,
}

impl Memory {
    fn of_machine() -> Self {
        let words: Vec<_> = (0..(RECORDS + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let name = Name::new("tick").unwrap();
        let description =
            Description { name, class: Class::Progress, cpu: Some(0), limit: 1, period_ns: 5_000_000, floor: false };
        Producer::create(&words, [9; 16]).unwrap().new_sensor(&description).unwrap().set_sensor_value(42);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let mut image = made::machine();
        image.write_at(BOX, &bytes);
        Self { ram: Trace::new(image), is_up: true, life: Life { incarnation: 4, resets: 2 } }
    }

    fn region(&self, name: &str, base: u64, len: u64) -> Result<Region, LinkFailure> {
        match self.is_up {
            true => Ok(Region { name: name.into(), key: made::KEY, base, len, rights: Rights::READ }),
            false => {
                let backdoor = "127.0.0.1:4790".parse().unwrap();
                Err(LinkFailure::Unreachable { backdoor, source: std::io::ErrorKind::TimedOut.into() })
            }
        }
    }

    /// The same with another kernel in it.
    fn reboot(&mut self) {
        let mut image = made::machine();
        image.write_at(made::GUARD, &123u64.to_le_bytes());
        self.ram = Trace::new(image);
    }
}

impl Door for Memory {
    fn region(&mut self) -> Result<Region, LinkFailure> {
        Self::region(self, "sb", BOX, ((RECORDS + 1) * RECORD_WORDS * 8) as u64)
    }

    fn ram(&mut self) -> Result<Region, LinkFailure> {
        Self::region(self, "ram", 0, 1 << 32)
    }

    fn life(&mut self) -> Result<Life, LinkFailure> {
        Ok(self.life)
    }

    fn memory(&mut self) -> Option<&mut dyn RemoteRead> {
        self.is_up.then_some(&mut self.ram as &mut dyn RemoteRead)
    }

    fn fence(&mut self, _: &str, _: u64) -> Result<FenceToken, LinkFailure> {
        unreachable!("nothing is fenced here")
    }

    fn fence_state(&mut self, _: &FenceToken) -> Result<FenceState, LinkFailure> {
        unreachable!("nothing is fenced here")
    }

    fn reset(&mut self, _: &FenceToken) -> Result<(), LinkFailure> {
        unreachable!("nothing is fenced here")
    }

    fn plug(&mut self, _: &FenceToken) -> Result<(), LinkFailure> {
        unreachable!("nothing is fenced here")
    }
}

fn names(opened: &Opened) -> Vec<&str> {
    opened.described.iter().map(|sensor| sensor.name.as_str()).collect()
}

fn sensors(has_box: bool, surveyor: &Surveyor) -> Sensors {
    Sensors { has_box, surveyor: surveyor.clone(), heard: 0, opened_in: None, dead: None }
}

const OF_KERNEL: [&str; 4] = ["TICKS.cpu3", "OOM_KILLER_RUNNING", "AVAILABLE_PAGES", "SLEEP.cpu3"];

#[test]
fn box_and_kernel_are_read_in_one_round_and_values_come_in_order() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::with(made::survey());
    let (mut reader, opened) = sensors(true, &surveyor).open(&mut door).unwrap().unwrap();
    assert_eq!(names(&opened), [&["tick.cpu0"][..], &OF_KERNEL].concat());
    reader.keep(&[0, 1, 4]);
    let (rounds, mut values) = (door.ram.rounds(), Vec::new());
    for whole in [false, true] {
        let glance = reader.look(&mut door.ram, 0, &mut values, whole);
        assert_eq!(glance, Glance::Values { identity: opened.identity, changed: false });
        assert_eq!(values, [Some(42), Some(1234), Some(3000)]);
        assert!(!reader.differs_from(&opened));
    }
    assert_eq!(door.ram.rounds(), rounds + 2);
}

#[test]
fn a_box_is_not_waited_for_by_a_survey_nor_lost_by_a_stale_one() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::pending();
    let mut sensors = sensors(true, &surveyor);
    let mut reader = sensors.open(&mut door).unwrap();
    assert_eq!(names(&reader.as_ref().unwrap().1), ["tick.cpu0"]);
    sensors.heed(&mut reader);
    assert!(reader.is_some(), "nothing new was said");
    surveyor.say(Ok(made::survey_of(5)));
    sensors.heed(&mut reader);
    assert!(reader.is_none(), "its sensors are to be opened with those of the kernel");
    let (_, opened) = sensors.open(&mut door).unwrap().unwrap();
    assert_eq!((names(&opened), opened.stale, surveyor.is_wanted()), (vec!["tick.cpu0"], Some(1), true));
}

#[test]
fn without_a_box_the_survey_is_waited_for_and_the_path_is_watched_meanwhile() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::pending();
    let mut sensors = sensors(false, &surveyor);
    assert!(sensors.open(&mut door).unwrap().is_none());
    door.is_up = false;
    assert!(sensors.open(&mut door).unwrap_err().is_path);
    door.is_up = true;
    surveyor.say(Err("no kernel found"));
    assert_eq!(sensors.open(&mut door).unwrap_err(), Unreached { is_path: false, why: "no kernel found".into() });
    surveyor.say(Ok(made::survey()));
    let mut reader = sensors.open(&mut door).unwrap();
    let identity = made::survey().identity;
    assert_eq!(
        reader.as_ref().map(|(_, opened)| (names(opened), opened.identity)),
        Some((OF_KERNEL.to_vec(), identity))
    );
    sensors.heed(&mut reader);
    assert!(reader.is_some(), "the survey that it was opened with");
}

#[test]
fn another_kernel_has_no_values_until_it_is_surveyed() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::with(made::survey());
    let mut sensors = sensors(false, &surveyor);
    let mut reader = sensors.open(&mut door).unwrap();
    let mut values = Vec::new();
    door.reboot();
    let glance = reader.as_mut().unwrap().0.look(&mut door.ram, 0, &mut values, false);
    assert_eq!(glance, Glance::Unreadable);
    let unreached = sensors.open(&mut door).unwrap_err();
    assert!(!unreached.is_path && surveyor.is_wanted(), "{unreached:?}");
    surveyor.say(Ok(made::survey_of(123)));
    sensors.heed(&mut reader);
    assert!(reader.is_none() && !surveyor.is_wanted());
    reader = sensors.open(&mut door).unwrap();
    let glance = reader.as_mut().unwrap().0.look(&mut door.ram, 0, &mut values, false);
    assert_eq!(glance, Glance::Values { identity: 123, changed: false });
    assert_eq!(values[0], Some(1234));
}

#[test]
fn a_kernel_that_a_reset_has_ended_is_not_believed_while_its_memory_is_still_there() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::with(made::survey());
    let mut sensors = sensors(false, &surveyor);
    assert!(sensors.open(&mut door).unwrap().is_some() && sensors.are_of_this_life(&mut door).unwrap());
    door.life.resets += 1;
    assert!(!sensors.are_of_this_life(&mut door).unwrap());
    for number in 1..3 {
        assert!(sensors.open(&mut door).unwrap_err().why.contains("was reset"), "all words are as they were");
        assert!(surveyor.is_wanted(), "survey {number}");
        surveyor.say(Ok(made::survey()));
    }
    door.reboot();
    surveyor.say(Ok(made::survey_of(123)));
    assert!(sensors.open(&mut door).unwrap().is_some() && sensors.are_of_this_life(&mut door).unwrap());
    // A backdoor that was started anew has seen no reset, and knows nothing.
    door.life = Life { incarnation: 5, resets: 0 };
    assert!(sensors.open(&mut door).unwrap().is_some() && sensors.are_of_this_life(&mut door).unwrap());
}

#[test]
fn a_region_under_a_key_that_died_is_refused_and_no_lost_path() {
    let mut door = Memory::of_machine();
    let surveyor = Surveyor::with(made::survey());
    let (mut reader, _) = sensors(false, &surveyor).open(&mut door).unwrap().unwrap();
    // Memory that is not there is refused as a dead key is.
    door.ram = Trace::new(Image::new());
    assert_eq!(reader.look(&mut door.ram, 0, &mut Vec::new(), false), Glance::Refused);
}
