//! A campaign of repairs: everything that drowns a guest, by what it is seen and by what it is ended, on every kernel.
//! Its sum is what an operator asks: was it cured, how soon, and was anybody else harmed?

mod row;

use std::fmt::Write;

use anyhow::Result;
use rand::{Rng, rngs::StdRng};
use serde_json::json;

use super::{Runs, Summary, matrix::clap_name, runs};
use crate::scenario::drown::{Hook, Variant};
use row::Row;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Where and how.
    pub runs: Runs,
    /// Runs in all, those that the file holds already included: a round of twelve has every illness once in a guest
    /// with an agent, and once in one without.
    pub count: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Lines of guest kernels; one is drawn for each run.
    pub kernels: Vec<String>,
    /// Numbers of processes of a bomb; one is drawn.
    pub procs: Vec<u32>,
    /// How long a piece of useful work takes alone, in milliseconds.
    pub piece_ms: u64,
    /// The monitor's deadline.
    pub deadline_ms: u64,
}

/// Everything that drowns a guest.
const ILLNESSES: [Illness; 6] = [
    Illness::Bomb(Variant::Cpu),
    Illness::Bomb(Variant::Io),
    Illness::Bomb(Variant::Shell),
    Illness::Bomb(Variant::Sleepers),
    Illness::Hog { respawn: false },
    Illness::Hog { respawn: true },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Illness {
    Bomb(Variant),
    Hog { respawn: bool },
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    illness: Illness,
    procs: u32,
    agent: bool,
    hook: Hook,
    kernel: String,
    vcpus: u32,
    seed: u32,
}

impl Illness {
    fn name(self) -> String {
        match self {
            Self::Bomb(variant) => clap_name(variant),
            Self::Hog { respawn: false } => "memhog".to_owned(),
            Self::Hog { respawn: true } => "memhog-respawn".to_owned(),
        }
    }
}

impl runs::Case for Case {
    fn name(&self) -> String {
        let Self { illness, procs, hook, kernel, vcpus, seed, .. } = self;
        let agent = if self.agent { format!("agent-{hook}") } else { "alone".to_owned() };
        format!("{}-{procs}-{agent}-{kernel}-{vcpus}cpu-{seed}", illness.name())
    }

    fn arguments(&self) -> Vec<String> {
        let Self { illness, procs, hook, kernel, vcpus, seed, .. } = self;
        let mut words = match illness {
            Illness::Bomb(Variant::Shell) => "forkbomb --variant shell".to_owned(),
            Illness::Bomb(variant) => format!("forkbomb --variant {} --procs {procs}", clap_name(*variant)),
            Illness::Hog { respawn } => format!("memhog{}", if *respawn { " --respawn" } else { "" }),
        };
        let _ = write!(words, " --hook {hook} --kernel {kernel} --vcpus {vcpus} --seed {seed}");
        if !self.agent {
            words.push_str(" --no-agent");
        }
        words.split(' ').map(str::to_owned).collect()
    }
}

impl Campaign {
    /// Round by round, each in an order of its own.
    fn cases(&self) -> Vec<Case> {
        runs::rounds(self.seed, self.count, |_, random| {
            let all = ILLNESSES.iter().flat_map(|illness| [(*illness, true), (*illness, false)]);
            all.map(|(illness, agent)| self.case(illness, agent, random)).collect()
        })
    }

    fn case(&self, illness: Illness, agent: bool, random: &mut StdRng) -> Case {
        let kernel = self.kernels[random.random_range(0..self.kernels.len())].clone();
        let procs = self.procs[random.random_range(0..self.procs.len())];
        // Orders in the table are the agent's to carry out.
        let hook = if agent && random.random() { Hook::Table } else { Hook::Raw };
        let vcpus = random.random_range(1..=2);
        Case { illness, procs, agent, hook, kernel, vcpus, seed: random.random() }
    }
}

/// Makes the runs that are missing and returns the summary of all there are.
///
/// # Errors
/// When results cannot be read or written, or a run cannot be started at all.
pub fn repairs(order: &Campaign) -> Result<Summary<Row>> {
    let lines = order.runs.all(&order.cases(), |case| {
        let Campaign { piece_ms, deadline_ms, .. } = order;
        let arguments = format!("--piece-ms {piece_ms} --deadline-ms {deadline_ms}");
        Ok(runs::Equipment {
            arguments: arguments.split(' ').map(str::to_owned).collect(),
            noted: vec![
                ("row", json!(case.illness.name())),
                ("by", json!(if case.agent { format!("agent, {}", case.hook) } else { "no agent".to_owned() })),
                ("line", json!(case.kernel)),
                ("vcpus", json!(case.vcpus)),
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
    fn a_round_has_every_illness_with_and_without_an_agent_and_rounds_differ() {
        let campaign = |count| Campaign {
            runs: Runs { results: PathBuf::new(), parallel: 1, through: Vec::new() },
            count,
            seed: 3,
            kernels: vec!["6.1".into(), "6.12".into()],
            procs: vec![50, 200],
            piece_ms: 300,
            deadline_ms: 2000,
        };
        let cases = campaign(12).cases();
        let what: HashSet<_> = cases.iter().map(|case| (case.illness.name(), case.agent)).collect();
        assert_eq!((cases.len(), what.len()), (12, 12));
        assert!(cases.iter().all(|case| case.agent || case.hook == Hook::Raw));
        let more = campaign(245).cases();
        assert_eq!(more[..12], cases, "a longer campaign begins with the shorter");
        assert_eq!(more.iter().map(Case::name).collect::<HashSet<_>>().len(), 245);
    }
}
