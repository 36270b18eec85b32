//! What a monitor shows a healing module: the sensors that raised the alarm, and later looks at the same sensors.

use std::time::Duration;

/// A sensor outside its bounds, with the samples that say so. Times are monotonic nanoseconds of the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symptom {
    /// The sensor's name in the Sensor Box.
    pub sensor: String,
    /// Its place in the monitor's plan; [`FreshSample::values`] has the same order.
    pub index: usize,
    /// The value at which it stands.
    pub value: u64,
    /// Begin of the last read that still returned an older value: it moved after this. `None` if it has stood since the
    /// monitor's first look: nobody saw when it moved.
    pub moved_after_ns: Option<u64>,
    /// End of the first read that returned the value: it moved before this, and never since.
    pub moved_before_ns: u64,
    /// Time without change that successful samples have seen.
    pub stalled: Duration,
    /// What it was allowed.
    pub deadline: Duration,
}

/// Progress sensors that stand still beyond their deadlines, and what the monitor's rules make of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Pattern of the rule whose sensors raised it (`tick.cpu*`).
    pub rule: String,
    /// The stalled sensors of that rule; never empty.
    pub symptoms: Vec<Symptom>,
    /// How many sensors the rule watches.
    pub watched: usize,
    /// End of the sample that completed the evidence.
    pub raised_ns: u64,
}

impl Alarm {
    /// The last sign of life: a time after which every raising sensor still moved. `None` if one of them was never seen
    /// to move, so that the target may have been silent for any time.
    pub fn alive_after_ns(&self) -> Option<u64> {
        let moves = self.symptoms.iter().map(|symptom| symptom.moved_after_ns);
        moves.min().unwrap_or(Some(self.raised_ns))
    }
}

/// One later look at the sensors of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreshSample {
    /// Begin of the read.
    pub begin_ns: u64,
    /// The sensors' values in the order of the plan; `None` where a record could not be read whole. The vector is
    /// empty if the read failed.
    pub values: Vec<Option<u64>>,
}
