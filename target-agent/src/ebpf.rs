//! Loads the eBPF programs, attaches them and pins the links, so that sensors move and orders are enforced without the
//! agent.
//!
//! A link holds its program, its map and, for the timers, its perf event. Links of the same build that an earlier
//! agent pinned are left alone. Another build is attached *before* the old one is unpinned: for a moment both count,
//! which a progress sensor does not mind; a gap it would.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use killtable::layout::{ANSWERS, ORDERS};
use libbpf_rs::{Link, Object, ObjectBuilder, PrintLevel, ProgramMut};
use sensorbox::layout::checksum;
use tracing::{debug, info, warn};

use crate::census::TICK_HERTZ;
use crate::maps::BoxMap;
use crate::pins::{PROGRAMS, Pins};
use crate::shared::cpu_clock;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sensors.bpf.o"));

/// The name of the Sensor Box in the object; the other maps are called there as everywhere.
const SENSOR_BOX_IN_OBJECT: &str = "sensor_box";

/// The program that runs on a timer of each processor; without it nothing is watched.
const TICK: &str = "tick";

/// The program that lists whom an order names and who is left: read by [`crate::sweep`].
const LISTER: &str = "list_condemned";

/// What the programs share with the agent.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    /// The Sensor Box.
    pub sensor_box: &'a BoxMap,
    /// Orders to end processes.
    pub orders: &'a BoxMap,
    /// What became of them.
    pub answers: &'a BoxMap,
}

impl<'a> Maps<'a> {
    fn named(self, name: &str) -> Option<&'a BoxMap> {
        let in_object = [(SENSOR_BOX_IN_OBJECT, self.sensor_box), (ORDERS, self.orders), (ANSWERS, self.answers)];
        in_object.into_iter().find_map(|(known, map)| (known == name).then_some(map))
    }
}

/// Sees to it that this build's programs move the sensors and enforce the kill table on every processor of `cpus`.
/// Returns where the program is pinned that lists the condemned.
///
/// # Errors
/// If the kernel refuses the programs or a timer. A tracepoint that this kernel lacks is only logged.
pub fn attach(pins: &Pins, maps: Maps<'_>, cpus: &[u32]) -> Result<PathBuf> {
    libbpf_rs::set_print(Some((PrintLevel::Info, log)));
    let place = pins.programs(PROGRAMS, hash(OBJECT));
    if Pins::is_whole(&place) {
        info!("the eBPF programs of an earlier agent are kept");
    } else {
        attach_anew(&place, maps, cpus)?;
    }
    pins.remove_programs_except(PROGRAMS, Some(&place)).context("cannot unpin eBPF programs of another build")?;
    Ok(place.join(LISTER))
}

fn attach_anew(place: &Path, maps: Maps<'_>, cpus: &[u32]) -> Result<()> {
    clear(place)?;
    let object = load(maps)?;
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

/// Makes the folder `place`, without what a killed agent left half done.
pub(crate) fn clear(place: &Path) -> Result<()> {
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot clear {}", place.display()))?;
    }
    fs::create_dir(place).with_context(|| format!("cannot make {}", place.display()))
}

fn load(maps: Maps<'_>) -> Result<Object> {
    let mut object = ObjectBuilder::default().open_memory(OBJECT).context("cannot read the eBPF object")?;
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some(ours) = maps.named(&name) {
            let misfit = || format!("the pinned map {} does not fit these eBPF programs", ours.name());
            map.reuse_fd(ours.as_fd()).with_context(misfit)?;
        }
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
    match program.attach() {
        Ok(link) => pin(link, path.to_owned()),
        Err(error) => {
            warn!(program = %path.display(), %error, "this kernel lacks what the program hangs on; it does nothing");
            Ok(())
        }
    }
}

/// Pins `link` and lets go of it without detaching: from here on the pin holds it.
pub(crate) fn pin(mut link: Link, path: PathBuf) -> Result<()> {
    link.pin(&path).with_context(|| format!("cannot pin a link at {}", path.display()))?;
    link.disconnect();
    Ok(())
}

/// Names a build of programs.
pub(crate) fn hash(object: &[u8]) -> u64 {
    let words: Vec<u64> =
        object.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect();
    checksum(&words)
}

fn log(level: PrintLevel, message: String) {
    let message = message.trim_end();
    match level {
        PrintLevel::Warn => warn!("libbpf: {message}"),
        PrintLevel::Info | PrintLevel::Debug => debug!("libbpf: {message}"),
    }
}
