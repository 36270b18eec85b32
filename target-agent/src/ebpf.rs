//! Loads the eBPF programs, attaches them and pins the links, so that sensors move and orders are enforced without the
//! agent.
//!
//! A link holds its program, its map and, for the timers, its perf event. Links of the same build that an earlier
//! agent pinned are left alone. Another build is attached *before* the old one is unpinned: for a moment both count,
//! which a progress sensor does not mind; a gap it would.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::{Link, Object, ObjectBuilder, PrintLevel, ProgramMut};
use sensorbox::layout::checksum;
use tracing::{debug, info, warn};

use crate::census::TICK_HERTZ;
use crate::pins::{PROGRAMS, Pins};
use crate::shared::cpu_clock;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sensors.bpf.o"));

/// The name of the Sensor Box in the object; the other maps are called there as everywhere.
pub const SENSOR_BOX_IN_OBJECT: &str = "sensor_box";

/// The program that runs on a timer of each processor; without it nothing is watched.
const TICK: &str = "tick";

/// The program that lists whom an order names and who is left: read by [`crate::sweep`].
const CONDEMNED: &str = "list_condemned";

/// The program that notes every process in the table: read by [`crate::roster`].
const ALL: &str = "list_all";

/// Programs that packets run through: attached to interfaces by [`crate::fence`], and pinned themselves.
pub const GUARDS: [&str; 3] = ["guard_in", "guard_out", "guard_xdp"];

/// The program that lists whom a lock has stopped.
const STOPPED: &str = "list_stopped";

/// Where the programs are pinned that the agent uses.
#[derive(Clone, Debug)]
pub struct Placed {
    /// All of them: for [`GUARDS`].
    pub folder: PathBuf,
    /// Of those whom a lock has stopped.
    pub stopped: PathBuf,
    /// Of those whom an order names.
    pub condemned: PathBuf,
    /// Of everybody.
    pub all: PathBuf,
}

/// What the programs share with the agent: maps by their names in the object.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a>(pub &'a [(&'a str, BorrowedFd<'a>)]);

/// Sees to it that this build's programs move the sensors and enforce the kill table on every processor of `cpus`.
/// Returns where those are pinned that the agent uses.
///
/// # Errors
/// If the kernel refuses the programs or a timer. A tracepoint that this kernel lacks is only logged.
pub fn attach(pins: &Pins, maps: Maps<'_>, cpus: &[u32]) -> Result<Placed> {
    libbpf_rs::set_print(Some((PrintLevel::Info, log)));
    let place = pins.programs(PROGRAMS, hash(OBJECT));
    if Pins::is_whole(&place) {
        info!("the eBPF programs of an earlier agent are kept");
    } else {
        attach_anew(&place, maps, cpus)?;
    }
    pins.remove_programs_except(PROGRAMS, Some(&place)).context("cannot unpin eBPF programs of another build")?;
    let [condemned, all, stopped] = [CONDEMNED, ALL, STOPPED].map(|name| place.join(name));
    Ok(Placed { folder: place, stopped, condemned, all })
}

fn attach_anew(place: &Path, maps: Maps<'_>, cpus: &[u32]) -> Result<()> {
    clear(place)?;
    let object = load(maps)?;
    for mut program in object.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        if name == TICK {
            attach_ticks(&program, cpus, place)?;
        } else if GUARDS.contains(&name.as_str()) {
            program.pin(place.join(&name)).with_context(|| format!("cannot pin the program {name}"))?;
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
        if let Some((_, ours)) = maps.0.iter().find(|(known, _)| *known == name) {
            let misfit = || format!("the pinned map {name} does not fit these eBPF programs");
            map.reuse_fd(*ours).with_context(misfit)?;
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
