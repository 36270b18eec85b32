//! The loads a healthy guest is kept under, and the proof that each was really there.
//!
//! | load | what is done | what must be seen in the guest |
//! |---|---|---|
//! | idle | nothing but one small request each second | its processors rest |
//! | cpu | twice as many busy shells as processors, one process in system calls | its processors never rest |
//! | memory | all but a few MiB filled for good, no swap; two readers fill the page cache | pages are reclaimed |
//! | network | 20 000 UDP packets a second and two TCP clients that connect anew for each request | packets arrive |

use std::{fs::File, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::vm::{Share, Vm, VmSpec};

/// Memory that is left to services and page cache, in KiB.
const LEFT_KIB: u64 = 24 * 1024;

/// More than a guest's memory, so that reading it through the page cache never ends in there. A hole on the host.
const CHURN_BYTES: u64 = 512 << 20;

/// For the guest to put itself under a load: filling memory takes an emulated processor a while.
const APPLY_BOUND: Duration = Duration::from_secs(120);

/// For the guest to say how it is, under a load.
const GAUGE_BOUND: Duration = Duration::from_secs(60);

/// Share of its time that an idle guest's processors may be busy: emulated, on a host that starves them.
const IDLE_BUSY_MAX: f64 = 0.6;
/// And a saturated one's must be.
const CPU_BUSY_MIN: f64 = 0.9;
/// Pages reclaimed in a second that show pressure.
const RECLAIMED_MIN: f64 = 100.0;
/// Packets received in a second that make a flood for an emulated guest.
const RECEIVED_MIN: f64 = 1000.0;

/// What keeps the guest busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// Nothing: a tickless kernel that sleeps.
    Idle,
    /// More busy processes than processors.
    Cpu,
    /// Hardly any memory left, and none to swap to.
    Memory,
    /// More packets than it can take.
    Network,
}

impl Load {
    /// Every load, in the order of a whole soak.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Cpu, Self::Memory, Self::Network];

    /// Its name on the command line, in results and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Network => "network",
        }
    }

    /// Adds to the machine what the load needs of the host.
    pub(super) fn furnish(self, spec: &mut VmSpec, folder: &Path) -> Result<()> {
        if self != Self::Memory {
            return Ok(());
        }
        let on_host = folder.join("churn");
        std::fs::create_dir_all(&on_host).with_context(|| format!("cannot make {}", on_host.display()))?;
        File::create(on_host.join("big")).and_then(|file| file.set_len(CHURN_BYTES)).context("the file to read")?;
        spec.shares.push(Share {
            tag: "churn".into(),
            on_host,
            in_guest: "/srv/churn".into(),
            at_boot: true,
            writable: false,
        });
        Ok(())
    }

    /// Begins the load, as far as it is the guest's own doing.
    pub(super) fn apply(self, vm: &mut Vm, vcpus: u32) -> Result<()> {
        let line = match self {
            Self::Idle | Self::Network => return Ok(()),
            Self::Cpu => format!(
                "for n in $(seq {}); do while :; do :; done >/dev/null 2>&1 & done; \
                 dd if=/dev/zero of=/dev/null bs=64k >/dev/null 2>&1 &",
                2 * vcpus
            ),
            // Mounted anew: init mounts shares without a cache, and the page cache is what is to be fought for.
            Self::Memory => format!(
                "umount /srv/churn && \
                 mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose churn /srv/churn && \
                 mount -t tmpfs -o size=100% hog /mnt && kib=$(awk '/^MemAvailable/ {{ print $2 }}' /proc/meminfo) && \
                 dd if=/dev/zero of=/mnt/hog bs=64k count=$(( (kib - {LEFT_KIB}) / 64 )) && \
                 for n in 1 2; do while :; do cat /srv/churn/big || sleep 1; done >/dev/null 2>&1 & done"
            ),
        };
        let output = vm.run_within(&line, APPLY_BOUND)?;
        ensure!(output.status == 0, "the load {} cannot be made: {}", self.name(), output.text());
        Ok(())
    }

    /// Why `seen` does not show this load, if it does not.
    pub(super) fn missing(self, seen: &Seen) -> Option<String> {
        let Seen { busy_share, reclaimed_per_s, received_per_s, oom_kills } = *seen;
        let why = match self {
            Self::Idle if busy_share > IDLE_BUSY_MAX => {
                format!("the idle guest was busy for {busy_share:.2} of the time")
            }
            Self::Cpu if busy_share < CPU_BUSY_MIN => {
                format!("the guest was busy for {busy_share:.2} of the time only")
            }
            Self::Memory if reclaimed_per_s < RECLAIMED_MIN => {
                format!("the guest reclaimed {reclaimed_per_s:.0} pages a second only")
            }
            Self::Network if received_per_s < RECEIVED_MIN => {
                format!("the guest received {received_per_s:.0} packets a second only")
            }
            _ if oom_kills > 0 => format!("the guest killed {oom_kills} processes for memory: it was not healthy"),
            _ => return None,
        };
        Some(why)
    }
}

/// What the guest itself counted over a soak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// Share of its processors' time that was not idle.
    pub busy_share: f64,
    /// Pages reclaimed in a second.
    pub reclaimed_per_s: f64,
    /// Packets received in a second.
    pub received_per_s: f64,
    /// Victims of the out-of-memory killer.
    pub oom_kills: u64,
}

/// The guest's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    busy: u64,
    idle: u64,
    reclaimed: u64,
    received: u64,
    oom_kills: u64,
}

impl Counters {
    /// Asks the guest.
    pub(super) fn read(vm: &mut Vm) -> Result<Self> {
        let said = vm.run_within("cat /proc/stat /proc/vmstat /proc/net/dev", GAUGE_BOUND)?;
        Self::parse(&said.text()).context("the guest's counters make no sense")
    }

    /// Sources: proc(5), /proc/stat in ticks (user nice system idle iowait irq softirq), /proc/vmstat,
    /// /proc/net/dev (bytes and packets received first).
    fn parse(text: &str) -> Option<Self> {
        let number_after = |name: &str, skipped: usize| -> Option<u64> {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name))?;
            line.split_whitespace().nth(skipped)?.parse().ok()
        };
        let time = |field| number_after("cpu ", field);
        Some(Self {
            busy: time(0)? + time(1)? + time(2)? + time(5)? + time(6)?,
            idle: time(3)? + time(4)?,
            reclaimed: number_after("pgsteal_kswapd ", 0)? + number_after("pgsteal_direct ", 0)?,
            received: number_after("eth0:", 1)?,
            oom_kills: number_after("oom_kill ", 0)?,
        })
    }

    /// What happened from `earlier` to here, in `time`.
    pub(super) fn since(self, earlier: Self, time: Duration) -> Seen {
        let grown = |now: u64, then: u64| now.saturating_sub(then) as f64;
        let (busy, idle) = (grown(self.busy, earlier.busy), grown(self.idle, earlier.idle));
        let seconds = time.as_secs_f64().max(1e-3);
        Seen {
            busy_share: busy / (busy + idle).max(1.0),
            reclaimed_per_s: grown(self.reclaimed, earlier.reclaimed) / seconds,
            received_per_s: grown(self.received, earlier.received) / seconds,
            oom_kills: self.oom_kills.saturating_sub(earlier.oom_kills),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(busy: u64, reclaimed: u64, received: u64) -> Counters {
        let text = format!(
            "cpu  {busy} 1 2 70 5 3 4 0 0 0\ncpu0 9 9 9 9\npgsteal_kswapd {reclaimed}\npgsteal_direct 7\noom_kill 0\n\
             Inter-|   Receive\n    lo:  1 2 0\n  eth0: 999 {received} 0 0\n"
        );
        Counters::parse(&text).unwrap()
    }

    #[test]
    fn counters_are_read_where_the_kernel_writes_them() {
        let read = counters(100, 30, 50);
        assert_eq!(read, Counters { busy: 110, idle: 75, reclaimed: 37, received: 50, oom_kills: 0 });
        assert_eq!(Counters::parse("cpu  1 2 3"), None);
    }

    #[test]
    fn a_load_that_was_not_there_is_no_soak() {
        let seen = |busy, reclaimed, received| {
            let earlier = counters(0, 0, 0);
            Counters { idle: earlier.idle + 100, ..counters(busy, reclaimed, received) }
                .since(earlier, Duration::from_secs(1))
        };
        assert_eq!(Load::Idle.missing(&seen(10, 0, 5)), None);
        assert!(Load::Idle.missing(&seen(900, 0, 5)).is_some());
        assert!(Load::Cpu.missing(&seen(10, 0, 5)).is_some());
        assert_eq!(Load::Cpu.missing(&seen(2000, 0, 5)), None);
        assert_eq!(Load::Memory.missing(&seen(10, 5000, 5)), None);
        assert!(Load::Memory.missing(&seen(10, 0, 5)).is_some());
        assert!(Load::Memory.missing(&Seen { oom_kills: 1, ..seen(10, 5000, 5) }).is_some());
        assert!(Load::Network.missing(&seen(10, 0, 5)).is_some());
        assert_eq!(Load::Network.missing(&seen(10, 0, 5000)), None);
    }
}
