//! `[[target.kernel_sensor]]` and `agent`: what is read of a target's kernel itself, and whether anything else is.

use healing_modules::pattern::fits;
use introspect::linux::variable;
use toml::Spanned;

use super::{Checker, ConfigError, file};
use crate::detect::{Class, Raises, Rule};
use crate::kernel::recipe::{Formula, READY_MADE, Term, ready_made};
use crate::kernel::{KernelSensor, SLEEP};

/// Sensors of one target: what one sample has room for.
const SENSORS_MAX: usize = 64;

impl Checker<'_> {
    pub(super) fn kernel_sensors(
        &self,
        tables: &[Spanned<file::KernelSensor>],
    ) -> Result<Vec<KernelSensor>, ConfigError> {
        if let Some(first_too_many) = tables.get(SENSORS_MAX) {
            let what = format!("more than {SENSORS_MAX} kernel sensors; one sample has no room for them");
            return Err(self.source.error(first_too_many.span(), "target.kernel_sensor", what));
        }
        let mut sensors: Vec<KernelSensor> = Vec::new();
        for table in tables {
            let sensor = self.kernel_sensor(table)?;
            if sensors.iter().any(|other| other.name == sensor.name) {
                let what = format!("{} stands twice; give each its own name", sensor.name);
                return Err(self.source.error(table.get_ref().name.span(), "target.kernel_sensor.name", what));
            }
            sensors.push(sensor);
        }
        Ok(sensors)
    }

    fn kernel_sensor(&self, table: &Spanned<file::KernelSensor>) -> Result<KernelSensor, ConfigError> {
        let file::KernelSensor { name: spanned, class, variable, floor } = table.get_ref();
        let name = self.name(spanned, "target.kernel_sensor.name")?;
        if name.starts_with(SLEEP) {
            let what = format!("{SLEEP} is made by itself, of what progress sensors need; choose another name");
            return Err(self.source.error(spanned.span(), "target.kernel_sensor.name", what));
        }
        let Some(variable) = variable else {
            let ready = ready_made(&name).ok_or_else(|| {
                let what = format!(
                    "no ready-made sensor {name:?}; there are {}. Or say which variable it is (variable) and its class",
                    READY_MADE.join(", ")
                );
                self.source.error(spanned.span(), "target.kernel_sensor.name", what)
            })?;
            if class.is_some() || floor.is_some() {
                let what =
                    format!("{name} is ready-made and has its class; leave class and floor out, or add variable");
                return Err(self.source.error(table.span(), "target.kernel_sensor", what));
            }
            return Ok(ready);
        };
        variable::check(variable.get_ref()).map_err(|error| {
            let what = format!("{error}; an example: runqueues.nr_switches");
            self.source.error(variable.span(), "target.kernel_sensor.variable", what)
        })?;
        let Some(class) = class.as_ref().map(|class| *class.get_ref()) else {
            let what = "say how it is judged: class = \"progress\", \"level\" or \"pressure\"";
            return Err(self.source.error(table.span(), "target.kernel_sensor.class", what));
        };
        let floor = match floor {
            Some(floor) if class != Class::Level => {
                let what = "has a meaning with class = \"level\" only; leave it out";
                return Err(self.source.error(floor.span(), "target.kernel_sensor.floor", what));
            }
            floor => floor.as_ref().is_some_and(|floor| *floor.get_ref()),
        };
        Ok(KernelSensor { name, class, floor, formula: Formula::Sum(vec![Term::of(variable.get_ref())]) })
    }

    /// Whether an agent is expected. Without one, a rule must be able to see a hang by a kernel sensor.
    pub(super) fn agent(
        &self,
        agent: Option<&Spanned<bool>>,
        sensors: &[KernelSensor],
        rules: &[Rule],
    ) -> Result<bool, ConfigError> {
        let Some(without) = agent.filter(|agent| !*agent.get_ref()) else { return Ok(true) };
        let can_see = |rule: &&Rule| {
            let progress = sensors.iter().filter(|sensor| sensor.class == Class::Progress);
            let mut names = progress.flat_map(|sensor| [sensor.name.clone(), format!("{}.cpu0", sensor.name)]);
            rule.raises == Raises::Hang && names.any(|name| fits(&rule.pattern, &name))
        };
        if !rules.iter().any(|rule| can_see(&rule)) {
            let what = "without an agent only kernel sensors can show a hang, and no rule that raises one fits any; \
                        add a [[target.kernel_sensor]] with name = \"TICKS\" and a rule for \"TICKS.cpu*\"";
            return Err(self.source.error(without.span(), "target.agent", what));
        }
        Ok(false)
    }
}
