//! What a campaign combines, and in which order.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{client::Kind, fault::Fault};

/// The dimensions of a campaign.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Lines of guest kernels.
    pub kernels: Vec<String>,
    /// What is done to the guest.
    pub faults: Vec<Fault>,
    /// Virtual CPUs.
    pub vcpus: Vec<u32>,
    /// Numbers of sessions.
    pub sessions: Vec<u16>,
    /// What clients do, in turn.
    pub kinds: Vec<Kind>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    kernel: String,
    fault: Fault,
    vcpus: u32,
    sessions: u16,
    kinds: Vec<Kind>,
    ipv6: bool,
    seed: u64,
}

impl Matrix {
    /// The first `runs` cases of the campaign `seed`: the whole matrix, shuffled, then again with other seeds.
    pub fn cases(&self, seed: u64, runs: usize) -> Vec<Case> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut cases = Vec::with_capacity(runs);
        while cases.len() < runs {
            let mut round = self.round(&mut random);
            if round.is_empty() {
                break;
            }
            round.shuffle(&mut random);
            round.truncate(runs - cases.len());
            cases.append(&mut round);
        }
        cases
    }

    fn round(&self, random: &mut StdRng) -> Vec<Case> {
        let mut cases = Vec::new();
        for kernel in &self.kernels {
            for &fault in &self.faults {
                for &vcpus in &self.vcpus {
                    for &sessions in &self.sessions {
                        let mut kinds = self.kinds.clone();
                        kinds.shuffle(random);
                        let (kernel, ipv6, seed) = (kernel.clone(), random.random(), random.random::<u32>().into());
                        cases.push(Case { kernel, fault, vcpus, sessions, kinds, ipv6, seed });
                    }
                }
            }
        }
        cases
    }
}

impl Case {
    /// Names the case; equal names are the same run.
    pub fn name(&self) -> String {
        let family = if self.ipv6 { "mixed" } else { "ipv4" };
        let (kernel, fault) = (&self.kernel, clap_name(self.fault));
        format!("{kernel}-{fault}-{}cpu-{}x-{family}-{}", self.vcpus, self.sessions, self.seed)
    }

    /// The arguments of `testbed run hang-download` that repeat it.
    pub fn arguments(&self) -> Vec<String> {
        let kinds: Vec<String> = self.kinds.iter().map(|kind| clap_name(*kind)).collect();
        let mut arguments: Vec<String> = [
            ("--kernel", self.kernel.clone()),
            ("--fault", clap_name(self.fault)),
            ("--vcpus", self.vcpus.to_string()),
            ("--sessions", self.sessions.to_string()),
            ("--kinds", kinds.join(",")),
            ("--seed", self.seed.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        arguments.extend(self.ipv6.then(|| "--ipv6".to_owned()));
        arguments
    }
}

/// The name under which the command line knows a value.
fn clap_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn matrix() -> Matrix {
        Matrix {
            kernels: vec!["6.1".into(), "6.12".into()],
            faults: vec![Fault::Panic, Fault::Stop],
            vcpus: vec![1, 2],
            sessions: vec![1, 20],
            kinds: vec![Kind::Paced, Kind::Fast],
        }
    }

    #[test]
    fn a_round_covers_the_matrix_and_a_longer_campaign_begins_with_the_shorter() {
        let cases = matrix().cases(7, 16);
        let covered: HashSet<_> =
            cases.iter().map(|case| (case.kernel.clone(), clap_name(case.fault), case.vcpus, case.sessions)).collect();
        assert_eq!(covered.len(), 16);
        assert_eq!(matrix().cases(7, 40)[..16], cases);
    }

    #[test]
    fn no_two_runs_have_the_same_name() {
        let names: HashSet<_> = matrix().cases(1, 500).iter().map(Case::name).collect();
        assert_eq!(names.len(), 500);
    }
}
