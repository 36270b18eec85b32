//! What a target's process table says, in the words of the healing modules: evidence of a target whose memory cannot be
//! read but for what its agent has registered.
//!
//! The table is kept by the target's own kernel, so a look at it is two reads: its head, which says how long it is, and
//! all of it; records that were being written at that moment are read again.

use std::time::Instant;

use healing_modules::{Evidence, Process};
use proctable::layout::{HEAD_RECORDS, PROCESSES, RECORD_BYTES, table_bytes};
use proctable::{Record, Table as Processes, table};
use remote_memory::{Read, RemoteAddr, RemoteKey};

use super::table::region;
use super::{RepairError, Table};
use crate::clock::{Clock, Monotonic};

/// Times that torn records are read again. A record is written within microseconds.
const AGAIN_MAX: usize = 8;

/// Whether the machine of an earlier look is the one that lives: its processors come by 200 times a second.
pub(super) fn lives_on(before: &Processes, now: &Processes) -> bool {
    before.target == now.target && now.beat_ns > before.beat_ns
}

/// Reads a target's process table.
///
/// # Errors
/// See [`RepairError`].
pub(super) fn read(target: &mut dyn Table) -> Result<Processes, RepairError> {
    let begin = Instant::now();
    let found = region(target, PROCESSES, HEAD_RECORDS * RECORD_BYTES)?;
    let no_table = |why: String| RepairError::NoTable { why };
    let at = |offset: u64| {
        let start = RemoteAddr::new(RemoteKey::new(found.key), found.base);
        start.checked_add(offset).ok_or_else(|| no_table("a region that ends beyond all addresses".to_owned()))
    };
    let mut head = vec![0; HEAD_RECORDS * RECORD_BYTES];
    target.memory().read_one(at(0)?, &mut head)?.map_err(|error| no_table(error.to_string()))?;
    let capacity = table::capacity(&head).map_err(|error| no_table(error.to_string()))?;
    if found.len < table_bytes(capacity) as u64 {
        return Err(no_table(format!("{PROCESSES} has {} bytes, and says it has {capacity} records", found.len)));
    }
    let mut bytes = vec![0; table_bytes(capacity)];
    target.memory().read_one(at(0)?, &mut bytes)?.map_err(|error| no_table(error.to_string()))?;
    let mut processes = Processes::parse(&bytes).map_err(|error| no_table(error.to_string()))?;
    for _ in 0..AGAIN_MAX {
        if processes.torn.is_empty() {
            break;
        }
        let mut again = vec![[0; RECORD_BYTES]; processes.torn.len()];
        let mut batch = Vec::with_capacity(again.len());
        for (index, into) in processes.torn.iter().zip(&mut again) {
            batch.push(Read::new(at(Processes::offset(*index))?, into));
        }
        target.memory().read(&mut batch)?;
        processes.mend(&again);
    }
    tracing::debug!(processes = processes.processes.len(), took = ?begin.elapsed(), "process table read");
    Ok(processes)
}

/// The same as evidence.
///
/// # Errors
/// See [`RepairError`]; a table that nobody has filled is none.
pub(super) fn look(target: &mut dyn Table) -> Result<Evidence, RepairError> {
    let taken_ns = Monotonic.now_ns();
    let table = read(target)?;
    if table.rounds == 0 {
        let why = "its agent has not been through all processes yet".to_owned();
        return Err(RepairError::NoTable { why });
    }
    if !table.torn.is_empty() {
        tracing::warn!(records = table.torn.len(), "records of the process table stay torn");
    }
    Ok(Evidence {
        taken_ns,
        processes: table.processes.into_iter().map(process).collect(),
        pages_total: Some(table.pages_total),
        pages_free: Some(table.pages_free),
    })
}

fn process(record: Record) -> Process {
    Process {
        pid: record.pid,
        parent: record.parent,
        uid: Some(record.uid),
        comm: record.comm.into(),
        start_ns: record.start_ns,
        depth: record.depth,
        rss_pages: Some(record.rss_pages).filter(|_| !record.is_kernel && !record.is_exiting),
        swap_pages: Some(record.swap_pages).filter(|_| !record.is_kernel && !record.is_exiting),
        is_kernel: record.is_kernel,
        is_exiting: record.is_exiting,
    }
}
