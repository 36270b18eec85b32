//! Loads the eBPF programs, attaches them and pins the links, so that sensors move without the agent.
//!
//! A link holds its program, its map and, for the timers, its perf event. Links of the same build that an earlier
//! agent pinned are left alone. Another build is attached *before* the old one is unpinned: for a moment both count,
//! which a progress sensor does not mind; a gap it would.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::{Link, Object, ObjectBuilder, PrintLevel, ProgramMut};
use sensorbox::layout::checksum;
use tracing::{debug, info, warn};

use crate::census::TICK_HERTZ;
use crate::maps::BoxMap;
use crate::pins::Pins;
use crate::shared::cpu_clock;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sensors.bpf.o"));

/// The map's name in the object.
const MAP: &str = "sensor_box";

/// The program that runs on a timer of each processor; without it nothing is watched.
const TICK: &str = "tick";

/// Sees to it that this build's programs move the sensors in `sensor_box` on every processor of `cpus`.
///
/// # Errors
/// If the kernel refuses the programs or a timer. A tracepoint that this kernel lacks is only logged.
pub fn attach(pins: &Pins, sensor_box: &BoxMap, cpus: &[u32]) -> Result<()> {
    libbpf_rs::set_print(Some((PrintLevel::Info, log)));
    let place = pins.programs(hash());
    if Pins::is_whole(&place) {
        info!("the eBPF programs of an earlier agent are kept");
    } else {
        attach_anew(&place, sensor_box, cpus)?;
    }
    pins.remove_programs_except(&place).context("cannot unpin eBPF programs of another build")
}

fn attach_anew(place: &Path, sensor_box: &BoxMap, cpus: &[u32]) -> Result<()> {
    // What a killed agent left half done.
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot clear {}", place.display()))?;
    }
    fs::create_dir(place).with_context(|| format!("cannot make {}", place.display()))?;
    let object = load(sensor_box)?;
    for program in object.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        if name == TICK {
            attach_ticks(&program, cpus, place)?;
        } else {
            attach_trace(&program, &place.join(&name))?;
        }
    }
    Pins::mark_whole(place).with_context(|| format!("cannot complete {}", place.display()))?;
    info!(processors = cpus.len(), "eBPF programs attached");
    Ok(())
}

fn load(sensor_box: &BoxMap) -> Result<Object> {
    let mut object = ObjectBuilder::default().open_memory(OBJECT).context("cannot read the eBPF object")?;
    for mut map in object.maps_mut().filter(|map| map.name() == MAP) {
        map.reuse_fd(sensor_box.as_fd()).context("the pinned sensor box does not fit these eBPF programs")?;
    }
    object.load().context("the kernel refuses the eBPF programs (it needs BTF, and the agent CAP_BPF and CAP_PERFMON)")
}

fn attach_ticks(program: &ProgramMut<'_>, cpus: &[u32], place: &Path) -> Result<()> {
    for cpu in cpus {
        let timer =
            cpu_clock(*cpu, TICK_HERTZ).with_context(|| format!("the kernel gives no timer on processor {cpu}"))?;
        let link = program.attach_perf_event(timer.as_raw_fd());
        // The link owns the descriptor from here on.
        std::mem::forget(timer);
        pin(link.with_context(|| format!("cannot attach to processor {cpu}"))?, place.join(format!("{TICK}-{cpu}")))?;
    }
    Ok(())
}

fn attach_trace(program: &ProgramMut<'_>, path: &Path) -> Result<()> {
    match program.attach_trace() {
        Ok(link) => pin(link, path.to_owned()),
        Err(error) => {
            warn!(program = %path.display(), %error, "this kernel lacks what the program hangs on; it does nothing");
            Ok(())
        }
    }
}

/// Pins `link` and lets go of it without detaching: from here on the pin holds it.
fn pin(mut link: Link, path: PathBuf) -> Result<()> {
    link.pin(&path).with_context(|| format!("cannot pin a link at {}", path.display()))?;
    link.disconnect();
    Ok(())
}

/// Names this build of the programs.
fn hash() -> u64 {
    let words: Vec<u64> =
        OBJECT.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect();
    checksum(&words)
}

fn log(level: PrintLevel, message: String) {
    let message = message.trim_end();
    match level {
        PrintLevel::Warn => warn!("libbpf: {message}"),
        PrintLevel::Info | PrintLevel::Debug => debug!("libbpf: {message}"),
    }
}
