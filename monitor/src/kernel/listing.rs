//! What the kernel sensors of a target show: for an operator who wants to know what there is and how it moves.

use std::fmt::Write as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use introspect::Extent;
use remote_memory::{RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::recipe::KernelSensor;
use super::{KernelReader, survey_the_living, watched_users};
use crate::detect::Class;

/// Between the two looks.
const APART: Duration = Duration::from_secs(1);

/// All kernel sensors of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Kernel release.
    pub kernel: String,
    /// The sensors.
    pub sensors: Vec<Shown>,
    /// Sensors that this kernel does not have: each with what lacks.
    pub missing: Vec<(String, String)>,
}

/// One sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// Its value; `None` for one that says nothing now.
    pub value: Option<u64>,
    /// By how much it grew in a second; levels have none.
    pub per_second: Option<f64>,
}

impl Listing {
    /// Finds `sensors` and looks at them twice, a second apart.
    ///
    /// # Errors
    /// In a sentence.
    pub fn take(
        memory: &mut dyn RemoteRead,
        ram: RemoteKey,
        extents: &[Extent],
        sensors: &[KernelSensor],
    ) -> Result<Self, String> {
        let (kernel, mut survey) = survey_the_living(memory, ram, extents, sensors, &|| false)?;
        if survey.counts_users() {
            let walked = watched_users(&kernel, memory, ram, None).map_err(|error| error.to_string())?;
            survey.users = walked.0;
        }
        let missing = survey.missing.clone();
        let mut reader = KernelReader::new(Arc::new(survey), ram);
        let begin = Instant::now();
        let first = reader.look(memory, 0)?;
        thread::sleep(APART);
        let elapsed = begin.elapsed();
        let second = reader.look(memory, elapsed.as_nanos() as u64)?;
        let values = first.into_iter().zip(second);
        let sensors = reader.described().zip(values).map(|(described, (before, value))| Shown {
            name: described.name.clone(),
            class: described.class,
            value,
            per_second: (described.class != Class::Level)
                .then(|| Some(value?.wrapping_sub(before?) as f64 / elapsed.as_secs_f64()))
                .flatten(),
        });
        Ok(Self { kernel: kernel.release, sensors: sensors.collect(), missing })
    }

    /// As text for people.
    pub fn text(&self) -> String {
        let mut out = format!("{:<24} {:>10} {:>22} {:>14}\n", "sensor", "class", "value", "per second");
        for Shown { name, class, value, per_second } in &self.sensors {
            let class = format!("{class:?}").to_lowercase();
            let value = value.map_or("-".to_owned(), |value| value.to_string());
            let rate = per_second.map_or(String::new(), |rate| format!("{rate:.1}"));
            let _ = writeln!(out, "{name:<24} {class:>10} {value:>22} {rate:>14}");
        }
        for (name, why) in &self.missing {
            let _ = writeln!(out, "{name:<24} not in Linux {}: {why}", self.kernel.escape_debug());
        }
        out
    }
}
