//! What a Continuation Box costs the application: an export on every request, an import once after a recovery. The
//! limit is a copy and a checksum of as many bytes, in private memory; for an import, a copy into memory asked for.

use std::{hint::black_box, time::Instant};

use anyhow::{Context, Result, ensure};
use contbox::{ContinuationBox, Geometry, Opening, Pool, shared::Slot};

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
};

/// Bytes of a snapshot, then microseconds: the paper's export and import, and the goal of both.
const FIGURES: [(usize, f64, f64, f64); 3] =
    [(1_000, 11.0, 8.0, 0.3), (5_000, 20.0, 10.0, 1.0), (10_000, 28.0, 24.0, 2.0)];

/// Calls between two looks at the clock, which costs as much as a small export.
const CALLS: usize = 16;

/// Input a slot can log; not used here.
const LOG_BYTES: u32 = 16 << 10;

const BARE_EXPORT: &str = "a copy and a checksum of as many bytes, in private memory";
const BARE_IMPORT: &str = "a copy into new memory and a checksum of as many bytes";

pub(super) fn measure(effort: &Effort) -> Result<Vec<Line>> {
    let (mut exports, mut imports) = (Vec::new(), Vec::new());
    for (bytes, paper_export, paper_import, goal_us) in FIGURES {
        let (_fd, pool) = Pool::memfd(Geometry::with(1, 10_240, LOG_BYTES), 1).context("memory for one box")?;
        let slot = pool.slot(0).context("a pool of one slot")?;
        let (goal, size) = (Goal::AtMost(goal_us), bytes / 1000);
        let (ours, limit) = export(effort.exports, &slot, bytes)?;
        let line = Line::new(Group::Boxes, format!("export of {size} KB"), Unit::Micros, &ours, limit, BARE_EXPORT);
        exports.push(line.paper(paper_export).goal(goal));
        let (ours, limit) = import(effort.exports, &slot, bytes)?;
        let line = Line::new(Group::Boxes, format!("import of {size} KB"), Unit::Micros, &ours, limit, BARE_IMPORT);
        imports.push(line.paper(paper_import).goal(goal));
    }
    exports.append(&mut imports);
    Ok(exports)
}

fn export(rounds: usize, slot: &Slot, bytes: usize) -> Result<(Sample, f64)> {
    let opening = Opening::fresh(1, ([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
    let mut continuation = ContinuationBox::create(slot.clone(), &opening).context("an empty snapshot fits")?;
    let (mut lws, mut copy, mut written) = (vec![0x5a; bytes], vec![0; bytes], 0);
    let mut bare = lws.clone();
    by_turns(
        rounds,
        || {
            written += 1;
            lws[0] = written as u8;
            continuation.export_state(black_box(&lws), 0, written).context("the snapshot fits")
        },
        || {
            bare[0] ^= 1;
            copy.copy_from_slice(black_box(&bare));
            black_box((&mut copy, crc32fast::hash(&bare)));
            Ok(())
        },
    )
}

/// Imports what [`export`] has left in the slot.
fn import(rounds: usize, slot: &Slot, bytes: usize) -> Result<(Sample, f64)> {
    let bare = vec![0x5a; bytes];
    by_turns(
        rounds,
        || {
            let (_, snapshot) = ContinuationBox::import_state(slot.clone(), 0).context("the box can be read")?;
            ensure!(black_box(snapshot).lws.len() == bytes, "another snapshot came back");
            Ok(())
        },
        || {
            let copy = black_box(&bare).clone();
            black_box(crc32fast::hash(&copy));
            Ok(())
        },
    )
}

/// Ours and the median of the bare path in microseconds, measured by turns so that both meet the same machine.
fn by_turns(
    rounds: usize,
    mut ours: impl FnMut() -> Result<()>,
    mut bare: impl FnMut() -> Result<()>,
) -> Result<(Sample, f64)> {
    let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
    for round in 0..rounds + rounds / 10 {
        let times = (each_us(&mut ours)?, each_us(&mut bare)?);
        if round >= rounds / 10 {
            our_times.push(times.0);
            bare_times.push(times.1);
        }
    }
    Ok((Sample::of(our_times), Sample::of(bare_times).median))
}

fn each_us(mut once: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..CALLS {
        once()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / CALLS as f64)
}
