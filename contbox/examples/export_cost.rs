//! Prints what an export costs the application, by the size of its snapshot: `cargo run --release --example
//! export_cost`.

use contbox::shared::Pool;
use contbox::{ContinuationBox, Geometry, Opening};
use std::time::{Duration, Instant};

const EXPORTS: u32 = 200_000;

fn main() {
    let (_fd, pool) = Pool::memfd(Geometry::standard(1), 1).expect("memory for one box");
    let slot = pool.slot(0).expect("a pool of one slot");
    let opening = Opening::fresh(1, ([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
    let mut continuation = ContinuationBox::create(slot, &opening).expect("an empty snapshot fits");
    for lws_bytes in [0, 16, 64, 256, 1024, 3840] {
        let lws = vec![0x5a; lws_bytes];
        let started = Instant::now();
        for count in 0..EXPORTS {
            continuation.export_state(&lws, 0, u64::from(count)).expect("the snapshot fits");
        }
        let each = started.elapsed() / EXPORTS;
        println!("{lws_bytes:>5} bytes {:>6} ns", Duration::as_nanos(&each));
    }
}
