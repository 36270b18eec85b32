//! Makes a test image out of a RAM file: the pages that the walkers touch, and the kernel's description beside it.
//!
//! `cargo run -p introspect --example record -- RAM_FILE PREFIX` writes PREFIX.image and PREFIX.kernel.json. The tests
//! want the image as PREFIX.image.xz and what the guest's /proc said as PREFIX.truth.txt.

use std::{env, fs};

use anyhow::Context;
use introspect::linux::{task, tcp};
use introspect::{Extent, Kernel};
use remote_memory::trace::Trace;
use remote_memory::{AccessError, LinkError, Read, RemoteKey, RemoteRead};

struct RamFile(Vec<u8>);

impl RemoteRead for RamFile {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let start = usize::try_from(read.at.addr).unwrap_or(usize::MAX);
            let found = start.checked_add(read.into.len()).and_then(|end| self.0.get(start..end));
            read.outcome = found.map(|found| read.into.copy_from_slice(found)).ok_or(AccessError::Refused);
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(path), Some(prefix)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: record RAM_FILE PREFIX");
    };
    let bytes = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let extents = [Extent { start: 0, len: bytes.len() as u64 }];
    let mut ram = RamFile(bytes);
    let key = RemoteKey::new(0);
    let kernel = Kernel::discover(&mut ram, key, &extents)?;
    let mut trace = Trace::new(&mut ram);
    task::walk(&kernel, &mut trace, key)?;
    tcp::walk(&kernel, &mut trace, key, &tcp::TcpFilter::default())?;
    let image = trace.into_image()?;
    let write = |suffix: &str| fs::File::create(format!("{prefix}.{suffix}"));
    image.save(write("image")?)?;
    serde_json::to_writer_pretty(write("kernel.json")?, &kernel)?;
    println!("{} pages", image.page_numbers().count());
    Ok(())
}
