//! Healing modules that repair in place, and who of them is asked when a sensor leaves its bounds.
//!
//! ```text
//!   sensor ──► [Dispatcher] ──► every module that registered it ──► diagnose(evidence) ──► [Plan] ──► [Safety] ──► …
//! ```
//! Many to many, as in the dissertation: a module may register several sensors, a sensor may be registered by several
//! modules; they are asked in the order in which they were made.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::pattern::fits;

use crate::evidence::Evidence;
use crate::outside::Unanswered;
use crate::plan::{Plan, Safety};

/// One illness that can be cured in the target's own memory.
pub trait Healer: Send + Sync + Debug {
    /// Its name in configurations, journals and metrics.
    fn name(&self) -> &str;

    /// Whether it decides from what changed since an earlier look, and how many nanoseconds that look must be apart.
    fn needs_earlier_ns(&self) -> Option<u64> {
        None
    }

    /// Whether it judges processes by what memory they have. Who does not, holds the target still for less.
    fn judges_memory(&self) -> bool {
        true
    }

    /// What is to be done, if the illness is there. Pure: the same evidence gives the same plan.
    fn diagnose(&self, evidence: &Evidence, earlier: Option<&Evidence>, safety: &Safety) -> Option<Plan>;

    /// The same of a module that may fail to say so: one of another program ([`crate::outside`]). `moment` says how
    /// long it may take.
    ///
    /// # Errors
    /// [`Unanswered`]: nothing is known of the illness then. Never for a module of this build.
    fn consult(
        &self,
        _moment: Moment,
        evidence: &Evidence,
        earlier: Option<&Evidence>,
        safety: &Safety,
    ) -> Result<Option<Plan>, Unanswered> {
        Ok(self.diagnose(evidence, earlier, safety))
    }
}

/// When a module is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The target runs.
    Running,
    /// It stands still, and its clients wait for the answer.
    Standstill,
}

/// Names a module of a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealingModule(usize);

/// Which modules a sensor concerns.
#[derive(Debug, Default)]
pub struct Dispatcher {
    modules: Vec<Box<dyn Healer>>,
    /// Patterns of sensor names, each with its modules.
    sensors: BTreeMap<String, Vec<HealingModule>>,
}

impl Dispatcher {
    /// Takes a module in.
    pub fn new_hm(&mut self, module: Box<dyn Healer>) -> HealingModule {
        self.modules.push(module);
        HealingModule(self.modules.len() - 1)
    }

    /// Has `module` asked when a sensor whose name fits `pattern` leaves its bounds.
    pub fn register_sensor(&mut self, module: HealingModule, pattern: &str) {
        let modules = self.sensors.entry(pattern.to_owned()).or_default();
        if !modules.contains(&module) {
            modules.push(module);
        }
    }

    /// The modules that `sensor` concerns, each once.
    pub fn concerned(&self, sensor: &str) -> Vec<HealingModule> {
        let fitting = self.sensors.iter().filter(|(pattern, _)| fits(pattern, sensor));
        let mut modules: Vec<_> = fitting.flat_map(|(_, modules)| modules.iter().copied()).collect();
        modules.sort_unstable();
        modules.dedup();
        modules
    }

    /// The module of that name.
    pub fn module(&self, module: HealingModule) -> Option<&dyn Healer> {
        self.modules.get(module.0).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ForkBomb, MemHog};

    #[test]
    fn sensors_and_modules_are_many_to_many_and_each_module_is_asked_once() {
        let mut dispatcher = Dispatcher::default();
        let bomb = dispatcher.new_hm(Box::new(ForkBomb::default()));
        let hog = dispatcher.new_hm(Box::new(MemHog::default()));
        dispatcher.register_sensor(hog, "free");
        dispatcher.register_sensor(bomb, "procs.*");
        dispatcher.register_sensor(bomb, "procs.uid*");
        dispatcher.register_sensor(hog, "procs.*");
        assert_eq!(dispatcher.concerned("procs.uid1000"), [bomb, hog]);
        assert_eq!(dispatcher.concerned("free"), [hog]);
        assert!(dispatcher.concerned("tick.cpu0").is_empty());
        assert_eq!(dispatcher.module(bomb).unwrap().name(), "forkbomb");
    }
}
