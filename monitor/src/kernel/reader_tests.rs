//! Values out of memory made word by word; kernels are in `testbed/tests/sensors_vm.rs`.

use introspect::linux::variable::Variable;
use proptest::prelude::*;
use remote_memory::image::Image;

use super::*;
use crate::detect::Class;
use crate::kernel::survey::{Surveyed, Word};

pub(crate) const KEY: RemoteKey = RemoteKey::new(5);

/// Where things are: far apart, and across the end of a page.
pub(crate) const GUARD: u64 = 0x1000;
const ONLINE: u64 = 0x5ffc;
const PANIC: u64 = 0x9000;
const STATE: u64 = 0x9010;
const TICKS: u64 = 0x2_0000;
const FLAGS: u64 = 0x3_0000;
const ENTERED: u64 = 0x3_0010;
const TICK: u64 = 0x3_0018;
const ACTIVE: u64 = 0x4_0000;
const TIMER: u64 = 0x4_0010;
const OWNER: u64 = 0x5_0000;
const FREE: u64 = 0x6_0000;

fn word(at: u64, bytes: u8, signed: bool) -> Word {
    let shape = Variable { text: String::new(), places: Vec::new(), bytes, signed, bits: None, followed: false };
    Word::made(GuestPhys::new(at), shape)
}

fn surveyed(name: &str, class: Class, source: Source) -> Surveyed {
    let sleep = (class == Class::Progress).then(|| "SLEEP.cpu3".to_owned());
    let described =
        DescribedSensor { name: name.to_owned(), class, limit: u64::MAX, period_ns: 0, floor: false, sleep };
    Surveyed { described, source }
}

/// Where everything of [`machine`] is.
pub(crate) fn survey() -> Survey {
    let sleep = Sleep {
        cpu: 3,
        state: vec![word(FLAGS, 8, false)],
        entered: word(ENTERED, 8, true),
        tick: word(TICK, 8, true),
        timer: Some([word(ACTIVE, 4, false), word(TIMER, 8, true)]),
    };
    let words = vec![word(TICKS, 4, false)];
    Survey {
        number: 1,
        identity: identity([77].into_iter()),
        release: "made".into(),
        missing: Vec::new(),
        guards: vec![word(GUARD, 8, false)],
        online: word(ONLINE, 8, false),
        sign: word(TICKS, 4, false),
        panic: Some(word(PANIC, 4, true)),
        state: Some(word(STATE, 4, false)),
        sensors: vec![
            surveyed("TICKS.cpu3", Class::Progress, Source::Progress { cpu: Some(3), words }),
            surveyed("OOM_KILLER_RUNNING", Class::Level, Source::IsHeld(word(OWNER, 8, false))),
            surveyed(
                "AVAILABLE_PAGES",
                Class::Level,
                Source::Sum(vec![(word(FREE, 8, true), false), (word(FREE + 8, 8, true), true)]),
            ),
            surveyed("SLEEP.cpu3", Class::Level, Source::Sleep(vec![sleep])),
        ],
        users: Vec::new(),
    }
}

/// The same of another life.
pub(crate) fn survey_of(identity: u64) -> Survey {
    Survey { identity, ..survey() }
}

/// A machine that runs, with its processor idle since 1000 and due at 5000 by its tick and 4000 by a timer.
pub(crate) fn machine() -> Image {
    let mut image = Image::new();
    for page in [0x1000, 0x5000, 0x6000, 0x9000, TICKS, FLAGS, ACTIVE, OWNER, FREE] {
        image.write_at(page & !0xfff, &[0; 0x1000]);
    }
    let mut put = |at: u64, value: u64| image.write_at(at, &value.to_le_bytes());
    put(GUARD, 77);
    put(ONLINE, 0b1000);
    put(PANIC, 0xffff_ffff);
    put(STATE, 3);
    put(TICKS, 1234);
    put(FLAGS, 3);
    put(ENTERED, 1000);
    put(TICK, 5000);
    put(ACTIVE, 1);
    put(TIMER, 4000);
    put(FREE, 900);
    put(FREE + 8, 300);
    image
}

fn seen(image: &mut Image) -> Result<Vec<Option<u64>>, String> {
    KernelReader::new(Arc::new(survey()), KEY).look(image, 0)
}

fn check(writes: &[(u64, u64)], expected: [Option<u64>; 4]) {
    let mut image = machine();
    writes.iter().for_each(|(at, value)| image.write_at(*at, &value.to_le_bytes()));
    assert_eq!(seen(&mut image).unwrap(), expected, "after {writes:x?}");
}

#[test]
fn places_that_lie_close_are_read_together_and_all_in_one_round() {
    let reader = KernelReader::new(Arc::new(survey()), KEY);
    let starts: Vec<u64> = reader.reads().map(|(at, _)| at.addr).collect();
    assert_eq!(starts, [GUARD, ONLINE, PANIC, TICKS, FLAGS, ACTIVE, OWNER, FREE]);
    let mut trace = remote_memory::trace::Trace::new(machine());
    let mut reader = KernelReader::new(Arc::new(survey()), KEY);
    reader.look(&mut trace, 0).unwrap();
    assert_eq!(trace.rounds(), 1);
}

#[test]
fn values_are_what_the_words_say() {
    check(&[], [Some(1234), Some(0), Some(600), Some(3000)]);
    check(&[(OWNER, 0xffff_8880_1234_5601)], [Some(1234), Some(1), Some(600), Some(3000)]);
    check(&[(OWNER, 5)], [Some(1234), Some(0), Some(600), Some(3000)]);
    check(&[(FREE + 8, 1000)], [Some(1234), Some(0), Some(0), Some(3000)]);
}

#[test]
fn a_processor_may_sleep_until_its_next_timer_and_only_while_it_idles_without_ticks() {
    check(&[(FLAGS, 1)], [Some(1234), Some(0), Some(600), Some(0)]);
    check(&[(ACTIVE, 0)], [Some(1234), Some(0), Some(600), Some(4000)]);
    check(&[(TICK, 500), (TIMER, 500)], [Some(1234), Some(0), Some(600), Some(0)]);
    check(&[(TICK, i64::MAX as u64)], [Some(1234), Some(0), Some(600), Some(3000)]);
    check(&[(TICK, i64::MAX as u64), (TIMER, i64::MAX as u64)], [Some(1234), Some(0), Some(600), Some(u64::MAX)]);
    check(&[(FLAGS, 2)], [Some(1234), Some(0), Some(600), Some(u64::MAX)]);
}

#[test]
fn nothing_is_promised_by_what_goes_down_in_order_and_a_panic_is_a_standstill() {
    check(&[(STATE, 6)], [None, Some(0), Some(600), Some(3000)]);
    check(&[(ONLINE, 0b0100)], [None, Some(0), Some(600), None]);
    for ticks in [1234, 1235] {
        check(&[(PANIC, 0), (STATE, 3), (TICKS, ticks)], [Some(PANICKED), Some(0), Some(600), Some(0)]);
    }
}

#[test]
fn another_life_of_the_machine_has_no_values() {
    let mut image = machine();
    image.write_at(GUARD, &78u64.to_le_bytes());
    assert!(seen(&mut image).unwrap_err().contains("another kernel"));
    let mut reader = KernelReader::new(Arc::new(survey()), KEY);
    let mut values = vec![Some(9)];
    reader.is_current(&mut image).unwrap();
    assert!(!reader.values(0, &mut values));
    assert_eq!(values, [Some(9), None, None, None, None]);
}

#[test]
fn a_newer_survey_with_other_users_is_taken_and_one_of_another_life_is_not() {
    let mut reader = KernelReader::new(Arc::new(survey()), KEY);
    assert!(reader.take_users(&Arc::new(Survey { number: 2, ..survey() })));
    assert_eq!(reader.survey().number, 2);
    assert!(!reader.take_users(&Arc::new(survey_of(4))));
    assert_eq!(reader.survey().number, 2);
}

#[test]
fn more_places_than_one_sample_takes_leave_the_others_without_a_value() {
    let mut survey = survey();
    for at in 0..2 * STRETCHES_MAX as u64 {
        let words = vec![(word(0x100_0000 + at * 4096, 8, false), false)];
        survey.sensors.push(surveyed(&format!("s{at}"), Class::Level, Source::Sum(words)));
    }
    let mut reader = KernelReader::new(Arc::new(survey), KEY);
    assert!(reader.reads().len() <= STRETCHES_MAX);
    let mut image = machine();
    for at in 0..2 * STRETCHES_MAX as u64 {
        image.write_at(0x100_0000 + at * 4096, &[7; 4096]);
    }
    let values = reader.look(&mut image, 0).unwrap();
    assert_eq!((values[0], values.last()), (Some(1234), Some(&None)));
}

proptest! {
    #[test]
    fn any_memory_is_looked_at_without_harm(
        noise in prop::collection::vec((0usize..12, any::<u64>()), 0..24),
    ) {
        let places = [ONLINE, PANIC, STATE, TICKS, FLAGS, ENTERED, TICK, ACTIVE, TIMER, OWNER, FREE, FREE + 8];
        let mut image = machine();
        noise.iter().for_each(|(place, value)| image.write_at(places[*place], &value.to_le_bytes()));
        prop_assert_eq!(seen(&mut image).unwrap().len(), 4);
    }
}
