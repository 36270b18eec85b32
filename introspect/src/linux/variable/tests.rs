//! Variables of a kernel made byte by byte, whole and damaged; real ones are in `testbed/tests/processes_vm.rs`.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use remote_memory::RemoteKey;
use remote_memory::image::Image;

use super::*;
use crate::Kernel;
use crate::discover_tests::plain_machine;
use crate::memory::holds;

const KEY: RemoteKey = RemoteKey::new(1);

/// Damaged copies of the made machine.
const RUNS: u64 = 500;

const TEXTS: [&str; 4] =
    ["(struct page)init_net.c", "init_net.ipv4.tcp_death_row.hashinfo->ehash_mask", "(struct page)init_net", "nothing"];

fn check(bytes: u8, signed: bool, bits: Option<(u8, u8)>, read: &[u8], expected: i128) {
    let variable = Variable { text: String::new(), places: Vec::new(), bytes, signed, bits, followed: false };
    assert_eq!(variable.value(read), expected);
}

#[test]
fn numbers_have_their_width_and_sign() {
    check(4, true, None, &[0xff; 8], -1);
    check(4, false, None, &[0xff; 8], 0xffff_ffff);
    check(8, true, None, &[0xff; 8], -1);
    check(8, false, None, &[0xff; 8], u64::MAX.into());
    check(1, false, Some((1, 1)), &[2], 1);
    check(1, true, Some((1, 2)), &[6], -1);
    check(8, false, None, &[1], 0); // what is too short is no number
}

fn found(kernel: &Kernel, image: &mut Image) -> Vec<Result<Variable, VariableError>> {
    resolve(kernel, image, KEY, &TEXTS).unwrap()
}

#[test]
fn each_variable_is_found_or_told_by_itself() {
    let (kernel, mut image, [_, _, init_net]) = plain_machine();
    let found = found(&kernel, &mut image);
    let first = found[0].as_ref().unwrap();
    assert_eq!((first.bytes, first.signed, first.followed), (8, false, false));
    assert_eq!(first.places, [Place { cpu: None, at: GuestPhys::new(init_net + 16) }]);
    // Pointers of this machine are plain numbers to its type information.
    let said: Vec<String> = found[1..].iter().map(|one| one.as_ref().unwrap_err().to_string()).collect();
    assert!(said[0].contains("hashinfo is no pointer"), "{said:?}");
    assert!(said[1].contains("init_net is no number") && said[1].contains("near it: a, b, c"), "{said:?}");
    assert!(said[2].contains("no variable nothing"), "{said:?}");
}

#[test]
fn a_damaged_description_leads_nowhere_outside_memory() {
    let (kernel, image, [symbols, types, _]) = plain_machine();
    let mut wrong = 0;
    for seed in 0..RUNS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut damaged = image.clone();
        for _ in 0..random.random_range(1..20) {
            let (start, len) = if random.random_bool(0.5) { (symbols, 0x6000) } else { (types, 0x3000) };
            damaged.write_at(start + random.random_range(0..len), &[random.random()]);
        }
        for one in found(&kernel, &mut damaged) {
            let Ok(variable) = one else {
                wrong += 1;
                continue;
            };
            assert!((1..=8).contains(&variable.bytes), "seed {seed}: {variable:?}");
            let is_memory = |place: &Place| holds(&kernel.space.extents, place.at, variable.bytes.into());
            assert!(variable.places.iter().all(is_memory), "seed {seed}: {variable:?}");
        }
    }
    assert!(wrong > 3 * RUNS, "{wrong}: the damage missed");
}

#[test]
fn a_description_saved_before_this_was_read_says_so() {
    let (mut kernel, mut image, _) = plain_machine();
    kernel.sources = None;
    for one in found(&kernel, &mut image) {
        assert!(matches!(one, Err(VariableError::NoDescription { .. })), "{one:?}");
    }
}
