//! The queue pairs of one conversation.

use control::backdoor::{FURTHER_PAIRS, QueuePair};

/// Queue pairs of one peer, by the numbers of its own ends. What is kept for each, `P`, takes it away when dropped.
#[derive(Debug)]
pub struct Pairs<P>(Vec<(u32, P)>);

impl<P> Default for Pairs<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P> Pairs<P> {
    /// Makes room for one for `theirs`: those that are not among `keep` go.
    ///
    /// # Errors
    /// Answers would go nowhere, or there are too many: a sentence for people.
    pub fn make_room(&mut self, theirs: &QueuePair, keep: &[u32]) -> Result<(), String> {
        let QueuePair { address, port, .. } = *theirs;
        // Answers go to one machine that asked for them, nowhere else.
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() || port == 0 {
            return Err(format!("{address}:{port} is no address to answer to"));
        }
        self.0.retain(|(number, _)| keep.contains(number) && *number != theirs.number);
        if self.0.len() > usize::from(FURTHER_PAIRS) {
            return Err(format!("a conversation has one queue pair and {FURTHER_PAIRS} further ones, no more"));
        }
        Ok(())
    }

    /// Keeps `pair`, whose other end is `theirs`.
    pub fn add(&mut self, theirs: &QueuePair, pair: P) {
        self.0.push((theirs.number, pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(number: u32) -> QueuePair {
        QueuePair {
            number,
            first_psn: 0,
            address: [10, 0, 0, 1].into(),
            port: 4791,
            path_mtu: 1024,
            reads_in_flight: 1,
        }
    }

    fn numbers(pairs: &Pairs<()>) -> Vec<u32> {
        pairs.0.iter().map(|(number, ())| *number).collect()
    }

    #[test]
    fn a_new_one_takes_the_place_of_those_that_are_not_kept() {
        let mut pairs = Pairs::default();
        for (number, keep, expected) in [
            (20, &[][..], &[20][..]),
            (21, &[20], &[20, 21]),
            (22, &[20, 21], &[20, 21, 22]),
            (23, &[22], &[22, 23]),
            (22, &[22, 23], &[23, 22]),
            (24, &[], &[24]),
        ] {
            pairs.make_room(&end(number), keep).unwrap();
            pairs.add(&end(number), ());
            assert_eq!(numbers(&pairs), expected);
        }
    }

    #[test]
    fn there_is_a_limit_and_the_address_is_somebody_s() {
        let mut pairs = Pairs::default();
        let all: Vec<u32> = (20..=20 + u32::from(FURTHER_PAIRS)).collect();
        for number in &all {
            pairs.make_room(&end(*number), &all).unwrap();
            pairs.add(&end(*number), ());
        }
        assert!(pairs.make_room(&end(99), &all).is_err());
        assert_eq!(numbers(&pairs), all);
        pairs.make_room(&end(99), &all[1..]).unwrap();
        for nobody in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert!(pairs.make_room(&QueuePair { address: nobody.into(), ..end(30) }, &[]).is_err(), "{nobody:?}");
        }
        assert!(pairs.make_room(&QueuePair { port: 0, ..end(30) }, &[]).is_err());
    }
}
