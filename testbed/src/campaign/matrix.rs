//! What a campaign combines, and in which order.

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

use super::runs;
use crate::{client::Kind, fault::Fault, scenario::Aim, topology::Wire};

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
    /// Where stops are aimed, beside the faults above: with one vCPU, and with at most [`AIMED_SESSIONS_MAX`].
    pub aims: Vec<Aim>,
    /// What clients do: all of it, in turn; a lone client one of it.
    pub kinds: Vec<Kind>,
    /// How the clients' cable is around the fault: drawn for each run.
    pub wires: Vec<Wire>,
}

/// Many sessions add nothing to where one processor stops.
pub const AIMED_SESSIONS_MAX: u16 = 20;

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub(super) kernel: String,
    fault: Fault,
    aim: Option<Aim>,
    pub(super) vcpus: u32,
    sessions: u16,
    kinds: Vec<Kind>,
    ipv6: bool,
    wire: Wire,
    seed: u64,
}

impl Matrix {
    /// The first `count` cases of the campaign `seed`: the whole matrix, shuffled, then again with other seeds.
    pub fn cases(&self, seed: u64, count: usize) -> Vec<Case> {
        runs::rounds(seed, count, |_, random| self.round(random))
    }

    fn round(&self, random: &mut StdRng) -> Vec<Case> {
        let mut cases = Vec::new();
        for kernel in &self.kernels {
            for &sessions in &self.sessions {
                for &vcpus in &self.vcpus {
                    for &fault in &self.faults {
                        cases.push(self.case(kernel, (fault, None), vcpus, sessions, random));
                    }
                }
                for &aim in self.aims.iter().filter(|_| sessions <= AIMED_SESSIONS_MAX) {
                    cases.push(self.case(kernel, (Fault::Stop, Some(aim)), 1, sessions, random));
                }
            }
        }
        cases
    }

    fn case(&self, kernel: &str, fault: (Fault, Option<Aim>), vcpus: u32, sessions: u16, random: &mut StdRng) -> Case {
        let (fault, aim) = fault;
        let mut kinds = self.kinds.clone();
        kinds.shuffle(random);
        if sessions == 1 {
            // One that comes by the place.
            kinds.retain(|kind| aim.is_none_or(|aim| aim.kinds().contains(kind)));
            kinds.truncate(1);
        }
        let wire = self.wires[random.random_range(0..self.wires.len())];
        let (ipv6, seed) = (random.random(), random.random::<u32>().into());
        Case { kernel: kernel.to_owned(), fault, aim, vcpus, sessions, kinds, ipv6, wire, seed }
    }

    /// Most sessions of a run.
    pub(super) fn sessions_max(&self) -> u16 {
        self.sessions.iter().copied().max().unwrap_or(1)
    }
}

impl runs::Case for Case {
    fn name(&self) -> String {
        let family = if self.ipv6 { "mixed" } else { "ipv4" };
        let fault = self.aim.map_or(self.fault.name().to_owned(), |aim| format!("stop-in-{}", aim.name()));
        let Self { kernel, vcpus, sessions, seed, .. } = self;
        format!("{kernel}-{fault}-{vcpus}cpu-{sessions}x-{family}-{}-{seed}", self.wire.name())
    }

    fn arguments(&self) -> Vec<String> {
        let kinds: Vec<String> = self.kinds.iter().map(|kind| clap_name(*kind)).collect();
        let mut arguments: Vec<(&str, String)> = vec![
            ("--kernel", self.kernel.clone()),
            ("--fault", clap_name(self.fault)),
            ("--vcpus", self.vcpus.to_string()),
            ("--sessions", self.sessions.to_string()),
            ("--kinds", kinds.join(",")),
            ("--wire", clap_name(self.wire)),
            ("--seed", self.seed.to_string()),
        ];
        arguments.extend(self.aim.map(|aim| ("--aim", clap_name(aim))));
        let options = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let mut arguments: Vec<String> = std::iter::once("hang-download".to_owned()).chain(options).collect();
        arguments.extend(self.ipv6.then(|| "--ipv6".to_owned()));
        arguments
    }
}

/// The name under which the command line knows a value.
pub(super) fn clap_name(value: impl clap::ValueEnum) -> String {
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
            sessions: vec![1, 20, 200],
            aims: vec![Aim::Recv],
            kinds: vec![Kind::Paced, Kind::Fast, Kind::Upload],
            wires: vec![Wire::Good, Wire::Lossy],
        }
    }

    #[test]
    fn a_round_covers_the_matrix_and_a_longer_campaign_begins_with_the_shorter() {
        let cases = matrix().cases(7, 28);
        let place = |case: &Case| (case.kernel.clone(), clap_name(case.fault), case.aim, case.vcpus, case.sessions);
        let covered: HashSet<String> = cases.iter().map(|case| format!("{:?}", place(case))).collect();
        assert_eq!(covered.len(), 28, "24 combinations of faults, and an aim at 1 and 20 sessions in each kernel");
        assert_eq!(matrix().cases(7, 40)[..28], cases);
    }

    #[test]
    fn a_lone_client_does_what_comes_by_the_place_that_is_aimed_at() {
        let cases = matrix().cases(3, 28);
        let mut alone = cases.iter().filter(|case| case.sessions == 1 && case.aim.is_some());
        assert!(alone.all(|case| case.kinds == [Kind::Upload]));
    }

    #[test]
    fn no_two_runs_have_the_same_name() {
        let names: HashSet<_> = matrix().cases(1, 500).iter().map(runs::Case::name).collect();
        assert_eq!(names.len(), 500);
    }
}
