//! What a Continuation Box costs the application: an export on every request, an import once after a recovery.

use anyhow::{Context, Result};
use contbox::{ContinuationBox, Geometry, Opening, Pool};

use super::measured;

const ROUNDS: usize = 20_000;

/// Snapshots measured: the sizes the dissertation reports.
const LWS_BYTES: [usize; 3] = [1_000, 5_000, 10_000];

/// Input a slot can log; not used here.
const LOG_BYTES: u32 = 16 << 10;

pub(super) fn measure() -> Result<()> {
    println!("\nContinuation Box          export p50      p99   import p50      p99");
    for lws_bytes in LWS_BYTES {
        let (_fd, pool) = Pool::memfd(Geometry::with(1, 10_240, LOG_BYTES), 1).context("memory for one box")?;
        let slot = || pool.slot(0).context("a pool of one slot");
        let opening = Opening::fresh(1, ([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        let mut continuation = ContinuationBox::create(slot()?, &opening).context("an empty snapshot fits")?;
        let lws = vec![0x5a; lws_bytes];
        let mut written = 0;
        let export = measured(ROUNDS, || {
            written += 1;
            continuation.export_state(&lws, 0, written).context("the snapshot fits")
        })?;
        let import = measured(ROUNDS, || {
            let (_, snapshot) = ContinuationBox::import_state(slot()?, 0).context("the box can be read")?;
            anyhow::ensure!(snapshot.lws.len() == lws_bytes, "another snapshot came back");
            Ok(())
        })?;
        println!(
            "  {lws_bytes:>6} bytes        {:>9.2?} {:>9.2?}    {:>9.2?} {:>9.2?}",
            export.0, export.1, import.0, import.1
        );
    }
    Ok(())
}
