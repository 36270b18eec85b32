//! A campaign against the auction: a front end, a mid tier or both break, in each way, again and again with new seeds.
//! Its sum is what a bidder asks: was a bid lost, was one made twice, and how long did I wait?

mod row;

use anyhow::Result;
use auction::clients::Mix;
use rand::{Rng, rngs::StdRng};
use serde_json::json;

use super::{Runs, Summary, matrix::clap_name, runs};
use crate::{
    fault::Fault,
    scenario::rubis::{CRASHES, TierFault},
};
use row::Row;

/// What is broken, in turn.
const FAULTS: [TierFault; 3] = [TierFault::Fe, TierFault::Mt, TierFault::FeMt];
/// What users do, in turn: whoever browses has nothing to lose.
const MIXES: [Mix; 2] = [Mix::Bid, Mix::Register];

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Where and how.
    pub runs: Runs,
    /// Runs in all, those that the file holds already included: a round has every tier broken in every way, half of
    /// them while users bid and half while they register; the round after it has the other halves.
    pub count: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Lines of guest kernels; one is drawn for each run.
    pub kernels: Vec<String>,
    /// Emulated users.
    pub clients: u32,
    /// How long they go on, without the recovery.
    pub seconds: f64,
    /// They think so many times as long.
    pub slow_down: f64,
    /// The monitor's deadline.
    pub deadline_ms: u64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    fault: TierFault,
    crash: Fault,
    mix: Mix,
    clients: u32,
    kernel: String,
    seed: u32,
}

impl runs::Case for Case {
    fn name(&self) -> String {
        let Self { fault, crash, mix, clients, kernel, seed } = self;
        format!("{}-{}-{}-{clients}x-{kernel}-{seed}", clap_name(*fault), crash.name(), clap_name(*mix))
    }

    fn arguments(&self) -> Vec<String> {
        let Self { fault, crash, mix, clients, kernel, seed } = self;
        let words = [
            ("--fault", clap_name(*fault)),
            ("--crash", clap_name(*crash)),
            ("--mix", clap_name(*mix)),
            ("--clients", clients.to_string()),
            ("--kernel", kernel.clone()),
            ("--seed", seed.to_string()),
        ];
        let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        std::iter::once("rubis".to_owned()).chain(words).collect()
    }
}

impl Campaign {
    /// Round by round, each in an order of its own.
    fn cases(&self) -> Vec<Case> {
        runs::rounds(self.seed, self.count, |round, random| {
            let faults = FAULTS.iter().enumerate();
            let all = faults.flat_map(|(row, fault)| {
                // As on a chessboard, whose colours change with each round.
                let mix = move |column: usize| MIXES[(round + row + column) % MIXES.len()];
                CRASHES.iter().enumerate().map(move |(column, crash)| (*fault, *crash, mix(column)))
            });
            all.map(|(fault, crash, mix)| self.case(fault, crash, mix, random)).collect()
        })
    }

    fn case(&self, fault: TierFault, crash: Fault, mix: Mix, random: &mut StdRng) -> Case {
        let kernel = self.kernels[random.random_range(0..self.kernels.len())].clone();
        Case { fault, crash, mix, clients: self.clients, kernel, seed: random.random() }
    }
}

/// Makes the runs that are missing and returns the summary of all there are.
///
/// # Errors
/// When results cannot be read or written, or a run cannot be started at all.
pub fn crashes(order: &Campaign) -> Result<Summary<Row>> {
    let lines = order.runs.all(&order.cases(), |case| {
        let Campaign { seconds, slow_down, deadline_ms, .. } = order;
        let arguments = format!("--seconds {seconds} --slow-down {slow_down} --deadline-ms {deadline_ms}");
        Ok(runs::Equipment {
            arguments: arguments.split(' ').map(str::to_owned).collect(),
            noted: vec![
                ("broken", json!(clap_name(case.fault))),
                ("crash", json!(case.crash.name())),
                ("mix", json!(clap_name(case.mix))),
                ("line", json!(case.kernel)),
            ],
            held: (),
        })
    })?;
    Ok(Summary::of(&lines))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::PathBuf};

    use super::{runs::Case as _, *};

    #[test]
    fn a_round_breaks_every_tier_in_every_way_and_two_of_them_with_either_mix() {
        let campaign = |count| Campaign {
            runs: Runs { results: PathBuf::new(), parallel: 1, through: Vec::new() },
            count,
            seed: 3,
            kernels: vec!["6.1".into(), "6.12".into()],
            clients: 200,
            seconds: 9.0,
            slow_down: 0.1,
            deadline_ms: 500,
        };
        let round = FAULTS.len() * CRASHES.len();
        let cases = campaign(2 * round).cases();
        let broken = |case: &Case| (clap_name(case.fault), case.crash.name());
        assert_eq!(cases[..round].iter().map(broken).collect::<HashSet<_>>().len(), round);
        let what: HashSet<_> = cases.iter().map(|case| (broken(case), clap_name(case.mix))).collect();
        assert_eq!((cases.len(), what.len()), (2 * round, 2 * round));
        let registering = |cases: &[Case]| cases.iter().filter(|case| case.mix == Mix::Register).count();
        assert!(registering(&cases[..round]).abs_diff(round / 2) <= 1);
        let more = campaign(200).cases();
        assert_eq!(more[..2 * round], cases, "a longer campaign begins with the shorter");
        assert_eq!(more.iter().map(Case::name).collect::<HashSet<_>>().len(), 200);
    }
}
