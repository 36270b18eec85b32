//! Makes a test image out of a RAM file: the pages that the walkers touch, and the kernel's description beside it.
//!
//! `cargo run -p introspect --example record -- RAM_FILE PREFIX [log]` writes PREFIX.image and PREFIX.kernel.json. The
//! tests want the image as PREFIX.image.xz and what the guest's /proc said as PREFIX.truth.txt. With `log`, only the
//! log and the summary are recorded.

mod ram_file;

use std::{env, fs};

use introspect::Kernel;
use introspect::linux::{log, machine, task, tcp};
use ram_file::RamFile;
use remote_memory::RemoteKey;
use remote_memory::trace::Trace;

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(path), Some(prefix)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: record RAM_FILE PREFIX [log]");
    };
    let mut ram = RamFile::open(&path)?;
    let extents = [ram.extent()];
    let key = RemoteKey::new(0);
    let kernel = Kernel::discover(&mut ram, key, &extents)?;
    let mut trace = Trace::new(&mut ram);
    log::tail(&kernel, &mut trace, key, log::RECORDS_MAX)?;
    machine::summary(&kernel, &mut trace, key)?;
    if arguments.next().is_none() {
        task::walk(&kernel, &mut trace, key)?;
        tcp::walk(&kernel, &mut trace, key, &tcp::TcpFilter::default())?;
    }
    let image = trace.into_image()?;
    let write = |suffix: &str| fs::File::create(format!("{prefix}.{suffix}"));
    image.save(write("image")?)?;
    serde_json::to_writer_pretty(write("kernel.json")?, &kernel)?;
    println!("{} pages", image.page_numbers().count());
    Ok(())
}
