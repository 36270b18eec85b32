//! The corpus, and a slice of the campaign: what `make test` has time for.

use hostile::{TARGETS, campaign, scattered};

/// Shared out over the targets.
const RUNS: u64 = 20_000;

#[test]
fn every_target_keeps_its_promises_over_the_corpus_and_a_slice_of_mutations() {
    for target in &TARGETS {
        let outcome = campaign::run(target, 0, RUNS * target.share / 1000).unwrap();
        assert!(outcome.corpus > 0, "{} has no corpus", target.name);
        let all = outcome.corpus + outcome.mutations;
        assert!(outcome.accepted * 20 > all, "{}: {} of {all} accepted test too little", target.name, outcome.accepted);
    }
}

/// Of each target, shape and share.
const SCATTERED: u64 = 25;

/// Tasks that are found on average although every hundredth byte is another one; the machines have some seventy.
const TASKS_MIN: usize = 30;

#[test]
fn a_share_of_everything_may_be_damaged_and_walks_go_deep_all_the_same() {
    let mut kinds = 0;
    scattered::run(0, SCATTERED, |kind| {
        kinds += 1;
        let each = |sum: usize| sum / SCATTERED as usize;
        assert!(each(kind.depth.tasks) >= TASKS_MIN, "these runs test little: {kind:?}");
        assert!(kind.accepted * 4 > kind.runs * 3, "these runs test little: {kind:?}");
        assert!(kind.share < 100 || kind.depth.faults > 0, "no damage was noticed: {kind:?}");
    })
    .unwrap();
    assert_eq!(kinds, 36);
}

#[test]
fn the_shares_are_a_whole() {
    assert_eq!(TARGETS.iter().map(|target| target.share).sum::<u64>(), 1000);
}

#[test]
fn a_seed_makes_the_same_input_each_time() {
    let corpus = [b"abc".to_vec(), b"something longer".to_vec()];
    let inputs = || (0..50).map(|seed| hostile::mutation::of(&corpus, seed)).collect::<Vec<_>>();
    assert_eq!(inputs(), inputs());
    assert!(inputs().windows(2).any(|two| two[0] != two[1]));
}
