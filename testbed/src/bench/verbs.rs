//! READs of adapters (soft-RoCE in two guests) by our carrier, beside perftest between the same devices: `ib_read_lat`
//! for one READ at a time, `ib_read_bw` for many.
//!
//! Both have the same length, path MTU, depth and batches, and take turns. perftest looks for completions without end.
//! Whoever locks, diagnoses or recovers looks for as long as answers usually take, and then sleeps: that is what has a
//! goal. A monitor's samples sleep at once, since one that comes late costs nothing: that is shown beside it. Guests
//! are emulated: ratios mean something, microseconds do not.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Effort,
    files::least,
    line::{Goal, Group, Line, Sample, Unit},
};
use crate::{
    guest::{ImageSpec, Kernel},
    interop::pace::{BATCH, Paced},
    pair::{DEVICE, RdmaGuest},
    sandbox::SCRATCH,
    scenario::{Order, Progress, program},
    topology::Topology,
};

/// Bytes read at once: a word, a record of a Sensor Box, a page.
const LENGTHS: [u32; 3] = [8, 64, 4096];
/// READs under way at the same time, where it is more than one.
const DEPTH: usize = 128;
const MTU: usize = 4096;
const RATIO_MAX: f64 = 1.1;
const RATIO_MIN: f64 = 0.91;
/// Memory of a guest: the passive end's region and our landing buffer.
const GUEST_MIB: u32 = 320;
/// For one run of either.
const RUN_BOUND: Duration = Duration::from_secs(120);
/// What samples look before they sleep.
const SAMPLES_LOOK_US: u64 = 0;
/// Ends when perftest listens at its TCP port, as /proc/net/tcp writes both, or after a while.
const WAITS: &str = "i=0; until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':4853 .* 0A '; do \
                     sleep 0.05; i=$((i+1)); [ $i -lt 200 ] || break; done";

pub(super) fn measure(effort: &Effort, order: &Order, progress: Progress) -> Result<Vec<Line>> {
    let mut ends = Guests::boot(&order.kernel, progress)?;
    let mut lines = Vec::new();
    for many in [false, true] {
        for len in LENGTHS {
            let what = if many { "many READs" } else { "a READ" };
            progress.step(format_args!("{what} of {len} bytes, ours and perftest's"));
            let count = effort.verbs_reads[usize::from(many)];
            lines.extend(ends.compare(many, len, count, effort.verbs_rounds)?);
        }
    }
    Ok(lines)
}

/// Who serves, and who asks.
struct Guests {
    target: RdmaGuest,
    monitor: RdmaGuest,
    _topology: Topology,
}

impl Guests {
    fn boot(kernel: &str, progress: Progress) -> Result<Self> {
        let topology = Topology::build()?;
        let kernel = Kernel::cached(kernel)?;
        progress.step(format_args!("two guests with soft-RoCE boot, Linux {}", kernel.release));
        let image = ImageSpec::new(kernel).program("interop", &program("interop")?);
        let folder = Path::new(SCRATCH).join("verbs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let [mut target, monitor] = RdmaGuest::boot(&topology, image, &folder, |spec| {
            spec.memory_mib = GUEST_MIB;
            spec.cpus = 1; // emulated ones of two guests would share the host's processors anyway
        })?;
        let (local, talk) = (target.address(), target.service_address());
        let serve = format!("interop serve --carrier verbs --local {local} --talk {talk}");
        target.run(&format!("({serve} >/run/interop 2>&1 </dev/null &)"))?;
        Ok(Self { target, monitor, _topology: topology })
    }

    /// By turns; each round begins with the other one.
    fn compare(&mut self, many: bool, len: u32, count: u32, rounds: usize) -> Result<[Line; 2]> {
        let (mut looking, mut sleeping, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            if round % 2 == 1 {
                theirs.push(self.theirs(many, len, count)?);
            }
            looking.push(self.ours(many, len, count, None)?);
            sleeping.push(self.ours(many, len, count, Some(SAMPLES_LOOK_US))?);
            if round % 2 == 0 {
                theirs.push(self.theirs(many, len, count)?);
            }
        }
        let limit = Sample::of(theirs).median;
        let line = |how: &str, ours: Vec<f64>| {
            if many {
                let name = format!("verbs READs of {len} B{how}");
                let is = "ib_read_bw of perftest, same depth, batches and devices";
                Line::new(Group::Verbs, name, Unit::Reads, &least(ours), limit, is)
            } else {
                let name = format!("verbs READ of {len} B{how}");
                let is = "ib_read_lat of perftest, which looks without end, same devices";
                Line::new(Group::Verbs, name, Unit::Micros, &Sample::of(ours), limit, is)
            }
        };
        let goal = if many { Goal::RatioAtLeast(RATIO_MIN) } else { Goal::RatioAtMost(RATIO_MAX) };
        Ok([line("", looking).goal(goal), line(", as samples wait", sleeping)])
    }

    fn ours(&mut self, many: bool, len: u32, count: u32, spin_us: Option<u64>) -> Result<f64> {
        let depth = if many { DEPTH } else { 1 };
        let (local, peer) = (self.monitor.address(), self.target.service_address());
        let spin = spin_us.map_or_else(String::new, |us| format!(" --spin-us {us}"));
        let what = format!("--len {len} --depth {depth} --count {count}{spin}");
        let said = self.monitor.run_within(&format!("interop pace --local {local} --peer {peer} {what}"), RUN_BOUND)?;
        ensure!(said.status == 0, "{}", said.text());
        let paced: Paced = serde_json::from_str(said.text().trim()).with_context(|| said.text())?;
        ensure!(paced.mtu == MTU, "a path MTU of {} and not {MTU}", paced.mtu);
        Ok(paced.typical_us.unwrap_or(paced.reads_per_s))
    }

    fn theirs(&mut self, many: bool, len: u32, count: u32) -> Result<f64> {
        let common =
            format!("--ib-dev {DEVICE} --gid-index 1 --connection RC --mtu {MTU} --size {len} --iters {count}");
        let line = if many {
            format!("ib_read_bw {common} --tx-depth {DEPTH} --post_list {BATCH} --cq-mod {BATCH}")
        } else {
            format!("ib_read_lat {common}")
        };
        self.target.run(&format!("{line} >/run/served 2>&1 </dev/null & {WAITS}"))?;
        let said = self.monitor.run_within(&format!("{line} {} 2>&1", self.target.address()), RUN_BOUND)?;
        ensure!(said.status == 0, "{}\nserver: {}", said.text(), self.target.run("cat /run/served")?.text());
        let text = said.text();
        let found = figure(&text, len, count);
        let found = found.with_context(|| format!("perftest said {text}"))?;
        Ok(if many { found * 1e6 } else { found })
    }
}

/// Of perftest's line of figures: length, iterations, then what it measured. The typical one of a latency in
/// microseconds and the rate of messages in millions both come fifth.
fn figure(text: &str, len: u32, count: u32) -> Option<f64> {
    let row = |line: &str| line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>().ok();
    let rows = text.lines().filter_map(row);
    let mut ours = rows.filter(|row| row.get(..2) == Some(&[f64::from(len), f64::from(count)]));
    ours.next().and_then(|row| row.get(4).copied())
}
