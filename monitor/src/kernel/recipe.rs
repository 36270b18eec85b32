//! What kernel sensors are made of: the ready-made ones, and those that a configuration names.
//!
//! | name | class | value |
//! |---|---|---|
//! | `NPROCS` | level | processes and threads of the machine |
//! | `MAXPROCS_PERUID` | level | of the user that has most |
//! | `MAXPROCRATE_PERUID` | level | by how many the processes of one user have grown within a second, at most |
//! | `FORKS` | pressure | tasks made since boot |
//! | `OOM_KILLER_RUNNING` | level | 1 while the out-of-memory killer looks for a victim |
//! | `OOM_KILLS` | pressure | its victims since boot |
//! | `FREE_PAGES` | level, floor | pages of 4 KiB that are free |
//! | `AVAILABLE_PAGES` | level, floor | those and what the kernel would give back: caches of files, less its reserves |
//! | `CONTEXT_SWITCHES` | pressure | of all processors, since boot |
//! | `TIMER_INTERRUPTS` | pressure | of all processors, since boot |
//! | `TICKS.cpuN` | progress | timer interrupts of a processor; stands still after a panic |
//! | `SWITCHES.cpuN` | progress | moves while the processor switches, idles or runs a user's program |
//!
//! Names of the dissertation are kept where it has them. Limits are the configuration's: none is built in.

use crate::detect::Class;

/// A sensor that is made of kernel variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSensor {
    /// Its name; of a progress sensor of processors, with `.cpuN` behind it.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// For a level: whether its limit is a floor.
    pub floor: bool,
    /// What its value is.
    pub formula: Formula,
}

/// How a value follows from variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formula {
    /// Their sum; over all processors too, but for progress, which each processor makes by itself.
    Sum(Vec<Term>),
    /// 1 while a lock has an owner: a pointer with flags in its lowest bits.
    IsHeld(Term),
    /// Processes of the user that has most.
    MostOfOneUser,
    /// By how many the processes of one user have grown within a second, at most.
    GrowthOfOneUser,
}

impl Formula {
    /// Whether it is made of the counts of users.
    pub fn is_of_users(&self) -> bool {
        matches!(self, Self::MostOfOneUser | Self::GrowthOfOneUser)
    }
}

/// One variable of a sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// How it is written; the first that the kernel has counts.
    pub variables: Vec<String>,
    /// Whether it is taken off.
    pub is_negative: bool,
}

impl Term {
    /// One variable under one name.
    pub fn of(variable: &str) -> Self {
        Self { variables: vec![variable.to_owned()], is_negative: false }
    }
}

/// The lock of `mm/oom_kill.c`; real-time kernels have another mutex.
const OOM_LOCK: [&str; 2] = ["(struct mutex)oom_lock.owner", "(struct mutex)oom_lock.rtmutex.owner"];

/// Memory that can be had without swapping, as `si_mem_available` counts it, but for the low watermarks that it takes
/// off: some per cent.
const AVAILABLE: [&str; 4] = [
    "vm_zone_stat[NR_FREE_PAGES]",
    "vm_node_stat[NR_ACTIVE_FILE]",
    "vm_node_stat[NR_INACTIVE_FILE]",
    "vm_node_stat[NR_SLAB_RECLAIMABLE_B]",
];
const RESERVED: &str = "(unsigned long)totalreserve_pages";

/// What moves while the kernel does not hold on to a processor: it switches, a tick finds it in a user's program, or it
/// goes to idle.
const SWITCHES: [&str; 4] = [
    "runqueues.nr_switches",
    "kernel_cpustat.cpustat[CPUTIME_USER]",
    "kernel_cpustat.cpustat[CPUTIME_NICE]",
    "tick_cpu_sched.idle_entrytime",
];

/// Names of the ready-made sensors, in the order of the table above.
pub const READY_MADE: [&str; 12] = [
    "NPROCS",
    "MAXPROCS_PERUID",
    "MAXPROCRATE_PERUID",
    "FORKS",
    "OOM_KILLER_RUNNING",
    "OOM_KILLS",
    "FREE_PAGES",
    "AVAILABLE_PAGES",
    "CONTEXT_SWITCHES",
    "TIMER_INTERRUPTS",
    "TICKS",
    "SWITCHES",
];

/// The ready-made sensor of that name.
pub fn ready_made(name: &str) -> Option<KernelSensor> {
    let sum = |variables: &[&str]| Formula::Sum(variables.iter().map(|variable| Term::of(variable)).collect());
    let (class, floor, formula) = match name {
        "NPROCS" => (Class::Level, false, sum(&["nr_threads"])),
        "MAXPROCS_PERUID" => (Class::Level, false, Formula::MostOfOneUser),
        "MAXPROCRATE_PERUID" => (Class::Level, false, Formula::GrowthOfOneUser),
        "FORKS" => (Class::Pressure, false, sum(&["total_forks"])),
        "OOM_KILLER_RUNNING" => {
            let owner = Term { variables: OOM_LOCK.map(str::to_owned).to_vec(), is_negative: false };
            (Class::Level, false, Formula::IsHeld(owner))
        }
        "OOM_KILLS" => (Class::Pressure, false, sum(&["vm_event_states.event[OOM_KILL]"])),
        "FREE_PAGES" => (Class::Level, true, sum(&["vm_zone_stat[NR_FREE_PAGES]"])),
        "AVAILABLE_PAGES" => {
            let mut terms: Vec<_> = AVAILABLE.iter().map(|variable| Term::of(variable)).collect();
            terms.push(Term { is_negative: true, ..Term::of(RESERVED) });
            (Class::Level, true, Formula::Sum(terms))
        }
        "CONTEXT_SWITCHES" => (Class::Pressure, false, sum(&["runqueues.nr_switches"])),
        "TIMER_INTERRUPTS" => (Class::Pressure, false, sum(&["irq_stat.apic_timer_irqs"])),
        "TICKS" => (Class::Progress, false, sum(&["irq_stat.apic_timer_irqs"])),
        "SWITCHES" => (Class::Progress, false, sum(&SWITCHES)),
        _ => return None,
    };
    Some(KernelSensor { name: name.to_owned(), class, floor, formula })
}

#[cfg(test)]
mod tests {
    use introspect::linux::variable;

    use super::*;

    #[test]
    fn every_ready_made_sensor_is_made_of_variables_that_can_be_read() {
        for name in READY_MADE {
            let sensor = ready_made(name).unwrap_or_else(|| panic!("{name} is none"));
            let terms = match sensor.formula {
                Formula::Sum(terms) => terms,
                Formula::IsHeld(term) => vec![term],
                Formula::MostOfOneUser | Formula::GrowthOfOneUser => continue,
            };
            assert!(!terms.is_empty(), "{name}");
            for variable in terms.iter().flat_map(|term| &term.variables) {
                assert_eq!(variable::check(variable), Ok(()), "{name}");
            }
        }
        assert_eq!(ready_made("NPROC"), None);
    }
}
