//! Which sensors a machine has, what they promise, and their places in the box.
//!
//! | name | of | class | unit | stands still or is beyond its limit when |
//! |---|---|---|---|---|
//! | `tick` | processor | progress | 5 ms | it takes no interrupts; the kernel panicked; the machine was stopped |
//! | `switches` | processor | progress | switches, idle or user ticks | the kernel spins, interrupts on or off |
//! | `interrupts` | processor | progress | timer and device interrupts | it takes none |
//! | `tasks` | machine | level, ceiling | tasks | a fork bomb went off |
//! | `forks` | machine | pressure | tasks made | a fork bomb goes off |
//! | `oom-kills` | machine | pressure | victims | memory ran out |
//! | `free-pages` | machine | level, floor | pages of 4 KiB | memory is running out |
//! | `agent` | machine | progress | 200 ms | user processes do not get to run, or the agent is gone |
//!
//! An orderly shutdown (restart, halt, power off, kexec) retires every progress sensor from inside the kernel, before
//! the processors stop; the end of the agent, however it comes, retires none. So a machine that is switched off is no
//! hang, and one whose agent was killed is watched on.
//!
//! `switches` and `agent` have periods of seconds: they serve to tell illnesses apart once `tick` or a client raised
//! the alarm. Limits are what a healthy machine keeps; a monitor may set its own in its configuration.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use sensorbox::{Class, Description, Malformed, Name, Producer, Sensor, producer::ProducerError};
use tracing::{info, warn};

use crate::records;
use crate::shared::Mapping;

/// Ticks of each processor in a second; 5 ms apart, so that a short deadline still holds many of them.
pub const TICK_HERTZ: u64 = 200;

/// Forks in a second that no healthy server makes.
const FORKS_PER_SECOND_MAX: u64 = 1000;

/// Of the tasks the kernel allows, as a divisor and a factor: nine tenths.
const TASKS_LIMIT_TENTHS: u64 = 9;

/// A processor that the kernel holds on to for so long is stuck: the kernel's own watchdog says so after 20 s.
const SWITCH_WITHIN: Duration = Duration::from_secs(10);

/// The agent's own thread advances its sensor ten times as often.
const AGENT_WITHIN: Duration = Duration::from_secs(2);

/// Below this share of RAM free memory is called low: one in 64.
const FREE_SHARE: u64 = 64;

/// A moment of low memory is nothing.
const FREE_PAGES_WITHIN: Duration = Duration::from_secs(5);

/// The sensor of the agent itself.
pub const AGENT_SENSOR: &str = "agent";

/// Opens the box in `mapping` or makes one, with a sensor for each processor of `cpus` and those of the machine.
/// Returns the agent's own sensor.
///
/// # Errors
/// If the memory holds a box this release cannot read: removing the pin gives it up.
pub fn take(mapping: Mapping, cpus: &[u32], tick_deadline: Duration) -> Result<Sensor<'static>> {
    let producer = match Producer::open(mapping.words()) {
        Ok(producer) => {
            info!("the sensor box of an earlier agent is kept");
            producer
        }
        // Fresh BPF memory is zero. Anything else may be in use by an agent of another release.
        Err(ProducerError::Malformed(Malformed::Magic { found: 0 })) => Producer::create(mapping.words(), boot_id()?)?,
        Err(refused) => return Err(refused).context("remove the pin `sb` to give the old sensors up"),
    };
    for cpu in cpus {
        for (first, description) in processor(*cpu, tick_deadline)? {
            if *cpu < records::CPUS {
                producer.new_sensor_at(first + cpu, &description)?;
            }
        }
    }
    if cpus.iter().any(|cpu| *cpu >= records::CPUS) {
        warn!("only the first {} processors are watched", records::CPUS);
    }
    for (id, description) in machine()? {
        producer.new_sensor_at(id, &description)?;
    }
    let agent = describe(AGENT_SENSOR, Class::Progress, 1, AGENT_WITHIN)?;
    Ok(producer.new_sensor_at(records::AGENT, &agent)?)
}

fn processor(cpu: u32, tick_deadline: Duration) -> Result<[(u32, Description); 3]> {
    let of = |description| Description { cpu: Some(cpu), ..description };
    Ok([
        (records::TICK, of(describe("tick", Class::Progress, 1, tick_deadline)?)),
        (records::SWITCHES, of(describe("switches", Class::Progress, 1, SWITCH_WITHIN)?)),
        (records::INTERRUPTS, of(describe("interrupts", Class::Progress, 1, SWITCH_WITHIN)?)),
    ])
}

fn machine() -> Result<[(u32, Description); 4]> {
    let second = Duration::from_secs(1);
    let tasks = number("/proc/sys/kernel/threads-max")?.min(number("/proc/sys/kernel/pid_max")?);
    let free = Description {
        floor: true,
        ..describe("free-pages", Class::Level, ram_pages()? / FREE_SHARE, FREE_PAGES_WITHIN)?
    };
    Ok([
        (records::TASKS, describe("tasks", Class::Level, tasks / 10 * TASKS_LIMIT_TENTHS, second)?),
        (records::FORKS, describe("forks", Class::Pressure, FORKS_PER_SECOND_MAX, second)?),
        (records::OOM_KILLS, describe("oom-kills", Class::Pressure, 0, second)?),
        (records::FREE_PAGES, free),
    ])
}

fn describe(name: &str, class: Class, limit: u64, period: Duration) -> Result<Description> {
    let name = Name::new(name).with_context(|| format!("`{name}` is no name of a sensor"))?;
    let period_ns = u64::try_from(period.as_nanos()).context("a period of centuries")?;
    Ok(Description { name, class, cpu: None, limit, period_ns, floor: false })
}

/// Numbers of the processors that are online.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn online_cpus() -> Result<Vec<u32>> {
    let path = "/sys/devices/system/cpu/online";
    let list = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_cpus(list.trim()).with_context(|| format!("{path} says {list:?}"))
}

/// A list such as `0-3,5`.
fn parse_cpus(list: &str) -> Option<Vec<u32>> {
    let mut all = vec![];
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} says {text:?}"))
}

/// Pages of 4 KiB that the kernel manages.
///
/// # Errors
/// If the kernel does not say.
pub fn ram_pages() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let kib: u64 = kib.context("/proc/meminfo has no MemTotal")?;
    Ok(kib / 4)
}

/// Names this boot of the machine.
///
/// # Errors
/// If the kernel does not say.
pub fn boot_id() -> Result<[u8; 16]> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).with_context(|| format!("{path} says {text:?}"))?;
    Ok(id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_ranges_and_single_numbers() {
        assert_eq!(parse_cpus("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus(""), None);
    }

    #[test]
    fn every_sensor_of_this_machine_has_a_record_of_its_own() {
        let machine = machine().unwrap();
        let mut ids: Vec<u32> = machine.iter().map(|(id, _)| *id).collect();
        for cpu in [0, records::CPUS - 1] {
            ids.extend(processor(cpu, AGENT_WITHIN).unwrap().iter().map(|(first, _)| first + cpu));
        }
        ids.push(records::AGENT);
        let distinct: std::collections::BTreeSet<u32> = ids.iter().copied().collect();
        assert_eq!(distinct.len(), ids.len());
        assert!(distinct.iter().all(|id| (1..=records::CAPACITY).contains(id)));
    }
}
