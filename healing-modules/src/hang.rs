//! The hang: the system no longer makes progress and never will.
//!
//! Evidence: progress sensors that stand still beyond their deadline under a rule that the operator declared to mean
//! a hang. Which faults they reveal, given the sensors of target-agent:
//!
//! | fault | `tick` (its own timer) | `switches` (or idle, or in a user's program) | `agent` (user level) |
//! |---|---|---|---|
//! | panic | all stop: the panic stops the CPUs and turns the local APIC off | all stop | stops |
//! | stopped vCPUs | all stop | all stop | stops |
//! | hard lock-up of one CPU | that CPU's stops, for good | that CPU's stops | may stop |
//! | soft lock-up of one CPU | **goes on**: interrupts are taken | that CPU's stops | may stop |
//! | dead agent | goes on: its programs stay loaded | goes on | stops |
//! | idle target | goes on: the timer fires in idle too | goes on: an idle tick counts | goes on |
//!
//! So a rule on `tick.cpu*` with a short deadline finds all but the soft lock-up, a rule on `switches.cpu*` with a
//! longer one finds that too (a CPU may stay in the kernel for a while in health), and the agent's own sensor must
//! never raise a hang: it cannot tell its own death from the machine's.
//!
//! Confirmation: the path still works and brings the same values again. One look suffices, since the deadline has
//! been waited for already; what it guards against is a verdict on evidence that has just become old (the monitor
//! itself was not scheduled between the sample and the decision).
//!
//! Remedy: evacuation. A hung kernel has no hook left to write to.

use control::reinstate::Report;

use crate::{Alarm, Cure, Diagnosis, FreshSample, Illness, Remedy, accounted};

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hang;

impl Illness for Hang {
    fn name(&self) -> &'static str {
        "hang"
    }

    fn is_raised_by(&self, alarm: &Alarm) -> bool {
        !alarm.symptoms.is_empty()
    }

    fn confirming_samples(&self) -> usize {
        1
    }

    fn confirm(&self, alarm: &Alarm, fresh: &[FreshSample]) -> Diagnosis {
        let mut looks = 0;
        for sample in fresh.iter().filter(|sample| sample.begin_ns >= alarm.raised_ns) {
            let value_of = |index: usize| sample.values.get(index).copied().flatten();
            for symptom in &alarm.symptoms {
                match value_of(symptom.index) {
                    Some(value) if value != symptom.value => {
                        return Diagnosis::Refuted { sensor: symptom.sensor.clone() };
                    }
                    Some(_) => looks += 1,
                    None => {}
                }
            }
        }
        match looks >= alarm.symptoms.len() {
            true => Diagnosis::Confirmed,
            false => Diagnosis::Undecided {
                why: format!(
                    "{looks} of {} stalled sensors could be read again; the access path decides, not the target",
                    alarm.symptoms.len()
                ),
            },
        }
    }

    fn remedy(&self) -> Remedy {
        Remedy::Evacuate
    }

    fn proof_of_cure(&self, report: &Report) -> Cure {
        accounted(report)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Symptom;

    fn alarm() -> Alarm {
        let symptom = |index, value| Symptom {
            sensor: format!("tick.cpu{index}"),
            index,
            value,
            moved_after_ns: Some(90 + index as u64),
            moved_before_ns: 100,
            stalled: Duration::from_millis(20),
            deadline: Duration::from_millis(20),
        };
        Alarm { rule: "tick.cpu*".into(), symptoms: vec![symptom(0, 7), symptom(2, 9)], watched: 3, raised_ns: 1000 }
    }

    fn check(begin_ns: u64, values: &[Option<u64>], expected: Diagnosis) {
        let fresh = [FreshSample { begin_ns, values: values.to_vec() }];
        assert_eq!(Hang.confirm(&alarm(), &fresh), expected);
    }

    #[test]
    fn equal_values_in_a_fresh_sample_confirm() {
        check(1000, &[Some(7), Some(1), Some(9)], Diagnosis::Confirmed);
    }

    #[test]
    fn one_sensor_that_moved_refutes() {
        check(1000, &[Some(7), Some(1), Some(10)], Diagnosis::Refuted { sensor: "tick.cpu2".into() });
    }

    #[test]
    fn a_failed_torn_or_stale_sample_decides_nothing() {
        let why = |looks| Diagnosis::Undecided {
            why: format!("{looks} of 2 stalled sensors could be read again; the access path decides, not the target"),
        };
        check(1000, &[], why(0));
        check(1000, &[Some(7), None, None], why(1));
        check(999, &[Some(7), Some(1), Some(9)], why(0));
    }

    #[test]
    fn the_last_sign_of_life_is_the_oldest_move_at_its_lower_bound() {
        let mut alarm = alarm();
        assert_eq!(alarm.alive_after_ns(), Some(90));
        alarm.symptoms[1].moved_after_ns = None;
        assert_eq!(alarm.alive_after_ns(), None, "nobody saw that one move");
    }
}
