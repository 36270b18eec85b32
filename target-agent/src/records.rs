//! Which record of the Sensor Box belongs to which sensor. Included by `build.rs` too, which hands these numbers to
//! the eBPF programs: programs that stay loaded while the agent is replaced have them compiled in, so a number, once
//! used in a release, keeps its meaning.

/// Processors that have sensors; those above are not watched.
pub const CPUS: u32 = 64;

/// First of [`CPUS`] records: ticks of the processor's own timer. Stands still while it takes no interrupts, and after
/// a panic.
pub const TICK: u32 = 1;

/// First of [`CPUS`] records: context switches, and ticks that found the processor idle or in a user's program. Stands
/// still while a processor is stuck in the kernel, with interrupts or without.
pub const SWITCHES: u32 = TICK + CPUS;

/// First of [`CPUS`] records: interrupts.
pub const INTERRUPTS: u32 = SWITCHES + CPUS;

/// Tasks that exist.
pub const TASKS: u32 = INTERRUPTS + CPUS;

/// Tasks made.
pub const FORKS: u32 = TASKS + 1;

/// Victims of the out-of-memory killer.
pub const OOM_KILLS: u32 = FORKS + 1;

/// Free pages.
pub const FREE_PAGES: u32 = OOM_KILLS + 1;

/// The agent's own heartbeat.
pub const AGENT: u32 = FREE_PAGES + 1;

/// Records after the header: four pages in all.
pub const CAPACITY: u32 = 255;

const _: () = assert!(AGENT <= CAPACITY);

/// Name and number as C sees them.
pub const ALL: [(&str, u32); 10] = [
    ("SENSOR_CPUS", CPUS),
    ("TICK", TICK),
    ("SWITCHES", SWITCHES),
    ("INTERRUPTS", INTERRUPTS),
    ("TASKS", TASKS),
    ("FORKS", FORKS),
    ("OOM_KILLS", OOM_KILLS),
    ("FREE_PAGES", FREE_PAGES),
    ("AGENT", AGENT),
    ("RECORDS", CAPACITY + 1),
];
