//! The logs of machines whose kernels panicked, read out of what was left of them: two processors, a process that wrote
//! control characters into it, then `echo c >/proc/sysrq-trigger`.
//!
//! Damage at random as in `campaign.rs`.

mod support;

use introspect::linux::{log, machine};
use introspect::{Damage, Fault};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use remote_memory::PAGE_BYTES;
use remote_memory::trace::Trace;
use support::{KEY, MACHINES, PANICKED, load};

/// Damaged copies of each machine.
const RUNS: u64 = 400;

/// The log is three rounds of reads and one for each level of page tables.
const ROUNDS_MAX: usize = 20;

#[test]
fn a_panicked_machine_says_why() {
    for machine in PANICKED {
        let (kernel, mut image) = load(machine);
        let (records, damage) = log::tail(&kernel, &mut image, KEY, log::RECORDS_MAX).unwrap();
        let (summary, more) = machine::summary(&kernel, &mut image, KEY).unwrap();
        assert_eq!((damage, more), (vec![], vec![]), "{machine}");
        // Every record that the ring still held, in order, the newest last.
        assert!(records.len() > 1_500, "{} records", records.len());
        assert!(records.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq && pair[0].time_ns <= pair[1].time_ns));
        let last = &records[records.len() - 1];
        assert_eq!(
            (last.level, last.text.contains("end Kernel panic - not syncing: sysrq triggered crash")),
            (0, true)
        );
        assert!(records.iter().any(|record| record.text.contains("line 1499 of a long log")));

        let (few, _) = log::tail(&kernel, &mut image, KEY, 60).unwrap();
        assert_eq!(few, records[records.len() - 60..]);

        // Two processors, one of which wrote into sysrq-trigger; 256 MiB less what the kernel keeps for itself.
        assert_eq!(summary.current.len(), 2, "{summary:?}");
        assert!(summary.current.iter().any(|current| current.comm == "sh"), "{summary:?}");
        let (free, total) = (summary.pages_free.unwrap(), summary.pages_total.unwrap());
        assert!(free > 0 && free < total && (30_000..65_536).contains(&total), "{summary:?}");
    }
}

#[test]
fn the_walk_of_a_damaged_log_ends_within_its_bounds_and_takes_no_text_for_another_s() {
    for (number, machine) in (0..).zip(PANICKED) {
        let (kernel, mut image) = load(machine);
        let (whole, _) = log::tail(&kernel, &mut image, KEY, 300).unwrap();
        let pages: Vec<u64> = image.page_numbers().collect();
        let mut reports = 0;
        for seed in 0..RUNS {
            let seed = seed << 8 | number;
            let mut random = StdRng::seed_from_u64(seed);
            let mut damaged = image.clone();
            for _ in 0..random.random_range(1..300) {
                let page = pages[random.random_range(0..pages.len())];
                let at = page * PAGE_BYTES + random.random_range(0..PAGE_BYTES / 8) * 8;
                let other = pages[random.random_range(0..pages.len())] * PAGE_BYTES;
                let mut word = [0; 8];
                damaged.copy_out(other + random.random_range(0..PAGE_BYTES / 8) * 8, &mut word).unwrap();
                let word = if random.random_bool(0.7) { word } else { random.random() };
                damaged.write_at(at, &word);
            }
            let mut trace = Trace::new(damaged);
            let (records, damage) = log::tail(&kernel, &mut trace, KEY, 300).unwrap();
            let _ = machine::summary(&kernel, &mut trace, KEY).unwrap();
            assert!(trace.rounds() < 2 * ROUNDS_MAX, "seed {seed}: {} rounds", trace.rounds());
            assert!(records.len() <= 300, "seed {seed}");
            reports += damage.len() + whole.len() - records.len().min(whole.len());
        }
        assert!(reports > RUNS as usize, "only {reports} reports: the damage missed");
    }
}

#[test]
fn a_lost_page_of_the_log_costs_its_records_and_no_others() {
    let (kernel, mut image) = load(PANICKED[0]);
    let (whole, _) = log::tail(&kernel, &mut image, KEY, 300).unwrap();
    let mut trace = Trace::new(image.clone());
    log::tail(&kernel, &mut trace, KEY, 300).unwrap();
    let touched = trace.into_image().unwrap();
    let mut costly = 0;
    for lost in touched.page_numbers() {
        let mut less = remote_memory::image::Image::new();
        for page in touched.page_numbers().filter(|page| *page != lost) {
            let mut bytes = [0; PAGE_BYTES as usize];
            touched.copy_out(page * PAGE_BYTES, &mut bytes).unwrap();
            less.insert(page, &bytes);
        }
        let (records, damage) = log::tail(&kernel, &mut less, KEY, 300).unwrap();
        assert!(!damage.is_empty(), "page {lost:#x} was needed");
        assert!(records.iter().all(|record| whole.contains(record)), "page {lost:#x}");
        costly += usize::from(records.len() > 100 && records.len() < whole.len());
    }
    assert!(costly > 3, "{costly} pages cost some of the records");
}

#[test]
fn a_description_without_the_log_s_layout_says_so() {
    // The older recordings were described before the log was read.
    let (kernel, mut image) = load(MACHINES[0]);
    let (records, damage) = log::tail(&kernel, &mut image, KEY, 10).unwrap();
    assert_eq!(records, []);
    assert!(matches!(damage[..], [Damage { part: "prb", fault: Fault::Unsupported, .. }]), "{damage:?}");
}
