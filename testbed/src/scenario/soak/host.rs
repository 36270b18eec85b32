//! What the host did to the guest meanwhile: how long each virtual processor ran, and how long it was ready to run and
//! got no processor. A guest that stands still because its host lets it wait is told apart here from one that hangs;
//! no monitor can see this from the guest's memory.
//!
//! Sources: Documentation/scheduler/sched-stats.rst (`schedstat` of a thread: time on a processor, time waiting for
//! one, in nanoseconds), proc(5).

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use monitor::clock::{Clock, Monotonic};
use serde::Serialize;
use serde_json::json;

use crate::vm::Vm;

/// Fine enough to explain a stall of some tens of milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often the counters that change slowly are read.
const SLOW_EVERY: Duration = Duration::from_secs(1);

/// Ticks of /proc/stat in a second, as the kernel shows them to everybody.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at the host.
#[derive(Clone, Debug, PartialEq)]
struct Moment {
    at_ns: u64,
    /// Of each virtual processor, and last of QEMU's main thread: ran, waited.
    threads: Vec<(u64, u64)>,
}

/// What a thread of QEMU got within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Time on a processor of the host, in milliseconds.
    pub ran_ms: f64,
    /// Time it was ready and got none, in milliseconds.
    pub waited_ms: f64,
}

/// The host over a soak.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// All virtual processors together.
    pub vcpus: Share,
    /// Time that the host's own hypervisor took from it, in milliseconds, all processors together.
    pub steal_ms: f64,
    /// Mean of the load average.
    pub load_average: f64,
    /// The longest that the sampler of these figures itself was kept waiting, in milliseconds.
    pub sampler_late_ms: f64,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct HostRecord {
    moments: Vec<Moment>,
    steal_ticks: (u64, u64),
    loads: Vec<f64>,
    /// Monotonic time and packets that the host has sent to the guest.
    packets: Vec<(u64, u64)>,
}

/// Where a guest's virtual processors are found.
#[derive(Debug)]
pub(super) struct Vcpus {
    schedstats: Vec<PathBuf>,
    tap: &'static str,
}

impl Vcpus {
    /// Asks QEMU which threads they are.
    pub(super) fn of(vm: &mut Vm, tap: &'static str) -> Result<Self> {
        let answer = vm.qmp().execute("query-cpus-fast", json!({}))?;
        let mut threads: Vec<(u64, u64)> = answer
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|cpu| Some((cpu["cpu-index"].as_u64()?, cpu["thread-id"].as_u64()?)))
            .collect();
        threads.sort_unstable();
        // The main thread, whose number is the process's: an idle guest's timers go off there.
        threads.push((u64::MAX, vm.pid().into()));
        let place = |(_, thread)| PathBuf::from(format!("/proc/{}/task/{thread}/schedstat", vm.pid()));
        let schedstats: Vec<_> = threads.into_iter().map(place).collect();
        for path in &schedstats {
            fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        }
        Ok(Self { schedstats, tap })
    }

    /// Looks until `stop`.
    pub(super) fn record(&self, stop: &AtomicBool) -> HostRecord {
        let mut record = HostRecord { steal_ticks: (steal_ticks(), 0), ..HostRecord::default() };
        let mut slow = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let threads = self.schedstats.iter().map(|path| schedstat(&fs::read_to_string(path).unwrap_or_default()));
            record.moments.push(Moment { threads: threads.collect(), at_ns: Monotonic.now_ns() });
            if Instant::now() >= slow {
                slow += SLOW_EVERY;
                record.loads.extend(load_average());
                record.packets.extend(packets_to(self.tap).map(|count| (Monotonic.now_ns(), count)));
            }
            thread::sleep(LOOK_EVERY);
        }
        record.steal_ticks.1 = steal_ticks();
        record
    }
}

impl HostRecord {
    /// What virtual processor `cpu` got from `begin_ns` to `end_ns`, to the resolution of the looks around them.
    pub(super) fn share(&self, cpu: usize, begin_ns: u64, end_ns: u64) -> Option<Share> {
        if cpu < self.vcpus() { self.thread(cpu, begin_ns, end_ns) } else { None }
    }

    /// The same for QEMU's main thread.
    pub(super) fn main_thread(&self, begin_ns: u64, end_ns: u64) -> Option<Share> {
        self.thread(self.vcpus(), begin_ns, end_ns)
    }

    fn vcpus(&self) -> usize {
        self.moments.first().map_or(0, |moment| moment.threads.len().saturating_sub(1))
    }

    fn thread(&self, index: usize, begin_ns: u64, end_ns: u64) -> Option<Share> {
        let first = self.moments.partition_point(|moment| moment.at_ns <= begin_ns).checked_sub(1)?;
        let last = self.moments.partition_point(|moment| moment.at_ns < end_ns).min(self.moments.len() - 1);
        let (from, to) = (self.moments[first].threads.get(index)?, self.moments[last].threads.get(index)?);
        let ms = |now: u64, then: u64| now.saturating_sub(then) as f64 / 1e6;
        Some(Share { ran_ms: ms(to.0, from.0), waited_ms: ms(to.1, from.1) })
    }

    /// The whole time.
    pub(super) fn summary(&self) -> Summary {
        let end_ns = self.moments.last().map_or(0, |moment| moment.at_ns);
        let begin_ns = self.moments.first().map_or(0, |moment| moment.at_ns);
        let shares = (0..self.vcpus()).filter_map(|cpu| self.share(cpu, begin_ns, end_ns));
        let late = self.moments.windows(2).map(|pair| pair[1].at_ns - pair[0].at_ns).max().unwrap_or(0);
        Summary {
            vcpus: shares.fold(Share::default(), |all, one| Share {
                ran_ms: all.ran_ms + one.ran_ms,
                waited_ms: all.waited_ms + one.waited_ms,
            }),
            steal_ms: self.steal_ticks.1.saturating_sub(self.steal_ticks.0) as f64 * 1e3 / TICKS_PER_SECOND,
            load_average: self.loads.iter().sum::<f64>() / self.loads.len().max(1) as f64,
            sampler_late_ms: (late as f64 / 1e6 - LOOK_EVERY.as_secs_f64() * 1e3).max(0.0),
        }
    }

    /// Packets per second towards the guest, by seconds since the beginning; one point for each `step`.
    pub(super) fn packets(&self, step: usize) -> Vec<(f64, f64)> {
        let Some((begin_ns, _)) = self.packets.first().copied() else { return Vec::new() };
        let marks: Vec<_> = self.packets.iter().step_by(step.max(1)).collect();
        let rate = |pair: &[&(u64, u64)]| {
            let seconds = (pair[1].0 - pair[0].0) as f64 / 1e9;
            ((pair[1].0 - begin_ns) as f64 / 1e9, pair[1].1.saturating_sub(pair[0].1) as f64 / seconds.max(1e-3))
        };
        marks.windows(2).map(rate).collect()
    }
}

fn schedstat(text: &str) -> (u64, u64) {
    let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Eighth time of the first line: steal.
fn steal_ticks() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.split_whitespace().nth(8).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Packets sent through a network device of this namespace: ninth of what /proc/net/dev has before them.
fn packets_to(device: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().nth(9)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_stall_is_explained_by_the_looks_around_it() {
        // Runs for a second, then waits for 100 ms without running.
        let moment = |at_ms: u64| {
            let (ran, waited) = (at_ms.min(1000) + at_ms.max(1100) - 1100, at_ms.clamp(1000, 1100) - 1000);
            Moment { at_ns: at_ms * MS, threads: vec![(ran * MS, waited * MS), (at_ms * MS, 0)] }
        };
        let record = HostRecord { moments: (0..200).map(|look| moment(look * 10)).collect(), ..HostRecord::default() };
        assert_eq!(record.share(0, 1005 * MS, 1095 * MS), Some(Share { ran_ms: 0.0, waited_ms: 100.0 }));
        assert_eq!(record.share(0, 500 * MS, 600 * MS), Some(Share { ran_ms: 100.0, waited_ms: 0.0 }));
        assert_eq!(record.share(1, 500 * MS, 600 * MS), None);
        assert_eq!(record.main_thread(500 * MS, 600 * MS), Some(Share { ran_ms: 100.0, waited_ms: 0.0 }));
        assert_eq!(record.summary().vcpus.waited_ms, 100.0);
        assert_eq!(record.summary().sampler_late_ms, 0.0);
    }

    #[test]
    fn this_host_tells_what_is_asked() {
        assert_eq!(schedstat("123 45 6\n"), (123, 45));
        assert!(load_average().is_some());
        assert!(packets_to("lo").is_some());
        assert_eq!(packets_to("no-such-device"), None);
    }
}
