//! The corpus, and a slice of the campaign: what `make test` has time for.

use hostile::{TARGETS, campaign};

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
