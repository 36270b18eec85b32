//! How many verdicts a deadline would have given on a target that was healthy all the time: each one is false.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Recording, Sample};
use crate::detect::{Detector, Finding, Look, Observation, Plan, Quorum, Raises, Rule};

/// What one deadline would have done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// The deadline, in milliseconds.
    pub deadline_ms: f64,
    /// Alarms that would have been raised; one that lasts counts once.
    pub verdicts: u64,
    /// Those that fresh samples would not have refuted: the sensors stood still in the next sample, too.
    pub confirmed: u64,
    /// Recorded time, in hours.
    pub hours: f64,
    /// The longest that a sensor of the rule stood still in the eyes of the detector, in milliseconds.
    pub longest_stall_ms: f64,
}

/// Draws the verdicts of a rule for `pattern` with each of `deadlines` from what was recorded.
pub fn false_verdicts(recordings: &[Recording], pattern: &str, deadlines: &[Duration]) -> Vec<Tally> {
    deadlines.iter().map(|deadline| tally(recordings, pattern, *deadline)).collect()
}

fn tally(recordings: &[Recording], pattern: &str, deadline: Duration) -> Tally {
    let rule = Rule {
        pattern: pattern.to_owned(),
        deadline: Some(deadline),
        limit: None,
        window: None,
        quorum: Quorum::Any,
        raises: Raises::Hang,
    };
    let deadline_ms = deadline.as_secs_f64() * 1e3;
    let mut tally = Tally { deadline_ms, verdicts: 0, confirmed: 0, hours: 0.0, longest_stall_ms: 0.0 };
    for recording in recordings {
        let (plan, places) = Plan::new(&recording.head.sensors, std::slice::from_ref(&rule), Duration::from_secs(1));
        let (first, last) = (recording.samples.first(), recording.samples.last());
        if let (Some(first), Some(last)) = (first, last) {
            tally.hours += Duration::from_nanos(last.0.saturating_sub(first.0)).as_secs_f64() / 3600.0;
        }
        run(&recording.samples, plan, &places, &mut tally);
    }
    tally
}

fn run(samples: &[Sample], plan: Plan, places: &[usize], tally: &mut Tally) {
    let mut detector = Detector::new(plan);
    let mut lasting = 0;
    let mut values = Vec::with_capacity(places.len());
    for Sample(begin_ns, took_ns, brought) in samples {
        let look = match brought {
            Some(all) => {
                values.clear();
                values.extend(places.iter().map(|place| all.get(*place).copied().flatten()));
                Look::Values { identity: 0, values: &values }
            }
            None => Look::Lost,
        };
        let findings = detector.observe(Observation { begin_ns: *begin_ns, end_ns: begin_ns + took_ns, look });
        let stalls = findings.iter().filter_map(|finding| match finding {
            Finding::Hung(alarm) => alarm.symptoms.iter().map(|symptom| symptom.stalled).max(),
            _ => None,
        });
        match stalls.max() {
            Some(stalled) => {
                lasting += 1;
                tally.verdicts += u64::from(lasting == 1);
                tally.confirmed += u64::from(lasting == 2);
                tally.longest_stall_ms = tally.longest_stall_ms.max(stalled.as_secs_f64() * 1e3);
            }
            None => lasting = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;
    use crate::detect::{Class, DescribedSensor};

    const MS: u64 = 1_000_000;

    /// A tick each 5 ms that pauses once, from 1000 ms on, for `pause_ms`; sampled each millisecond for two seconds.
    fn recording(pause_ms: u64) -> Recording {
        let name = "tick.cpu0".to_owned();
        let tick = DescribedSensor { name, class: Class::Progress, limit: 1, period_ns: 0, floor: false, sleep: None };
        let value = |ms: u64| 1 + if ms < 1000 { ms } else { ms.max(1000 + pause_ms) - pause_ms } / 5;
        let samples = (0..2000).map(|ms| Sample(ms * MS, 20_000, Some(vec![Some(value(ms))]))).collect();
        Recording { head: Head { target: "web".into(), period_ns: MS, sensors: vec![tick] }, samples }
    }

    fn verdicts(pause_ms: u64, deadline_ms: u64) -> (u64, u64) {
        let tallies = false_verdicts(&[recording(pause_ms)], "tick.cpu*", &[Duration::from_millis(deadline_ms)]);
        (tallies[0].verdicts, tallies[0].confirmed)
    }

    #[test]
    fn a_pause_longer_than_the_deadline_is_one_false_verdict() {
        assert_eq!(verdicts(100, 50), (1, 1));
        assert_eq!(verdicts(100, 120), (0, 0));
    }

    #[test]
    fn a_stall_that_ends_with_the_next_sample_would_have_been_refuted() {
        // 5 ms of tick and 45 of pause: the detector has seen 48 when the last sample before the move comes.
        assert_eq!(verdicts(45, 48), (1, 0));
    }

    #[test]
    fn a_deadline_below_the_tick_itself_is_false_all_the_time() {
        let tallies = false_verdicts(&[recording(0)], "tick.cpu*", &[Duration::from_millis(2)]);
        assert!(tallies[0].verdicts > 300, "{tallies:?}");
        assert!((tallies[0].hours * 3600.0 - 2.0).abs() < 0.01);
    }
}
