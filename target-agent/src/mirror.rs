//! Has the kernel keep the table of its services' TCP connections: loads the programs, and writes whose they are into
//! the table's header.
//!
//! Which connections are kept is said in the table, so that programs of an earlier agent go by what this one was told.
//! A connection that was established before there were programs is not kept. What a socket bears of its slot is pinned
//! beside the table: programs of another build go on with the same slots.
//!
//! Unlike sensors, the programs are of use only all together: a kernel that lacks one of the places they hang on has
//! no table.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::{Object, ObjectBuilder};
use tracing::info;

use crate::ebpf;
use crate::maps::BoxMap;
use crate::pins::{MIRROR, Pins};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mirror.bpf.o"));

/// What mirrored sockets bear; its name in the object, and its pin.
const SOCKETS: &str = "tcp_socks";

/// Has the connections of `ports` kept in `table` from here on.
///
/// # Errors
/// If the table is another release's, or the kernel refuses the programs.
pub fn keep(pins: &Pins, table: &BoxMap, ports: &[u16]) -> Result<()> {
    tcptable::header::write(table.mapping().words(), ports)
        .context("remove the pins `tcp` and `tcp_socks` to give the old table of connections up")?;
    let place = pins.programs(MIRROR, ebpf::hash(OBJECT));
    if Pins::is_whole(&place) {
        info!("the programs that mirror connections are an earlier agent's");
    } else {
        attach(pins, table, &place)?;
    }
    pins.remove_programs_except(MIRROR, Some(&place)).context("cannot unpin eBPF programs of another build")
}

fn attach(pins: &Pins, table: &BoxMap, place: &Path) -> Result<()> {
    ebpf::clear(place)?;
    let object = load(pins, table)?;
    for program in object.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        let link = program.attach().with_context(|| format!("this kernel has no place for the program {name}"))?;
        ebpf::pin(link, place.join(&name))?;
    }
    Pins::mark_whole(place).with_context(|| format!("cannot complete {}", place.display()))?;
    info!("connections are mirrored");
    Ok(())
}

fn load(pins: &Pins, table: &BoxMap) -> Result<Object> {
    let mut object = ObjectBuilder::default().open_memory(OBJECT).context("cannot read the eBPF object")?;
    for mut map in object.maps_mut() {
        if map.name() == table.name() {
            map.reuse_fd(table.as_fd()).context("the pinned table of connections does not fit these programs")?;
        } else if map.name() == SOCKETS {
            map.set_pin_path(pins.map(SOCKETS)).context("cannot pin what mirrored sockets bear")?;
        }
    }
    object.load().context("the kernel refuses the programs that mirror connections (it needs BTF and Linux 6.1)")
}

/// Sees to it that no connection is kept, nor the table: an earlier agent may have been told otherwise.
///
/// # Errors
/// If a pin cannot be removed.
pub fn give_up(pins: &Pins) -> Result<()> {
    pins.remove_programs_except(MIRROR, None).context("cannot unpin the programs that mirror connections")?;
    for name in [tcptable::layout::NAME, SOCKETS] {
        let path = pins.map(name);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("cannot remove the pin {}", path.display()))?;
        }
    }
    Ok(())
}
