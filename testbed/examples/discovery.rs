//! What it costs to find the kernel of a guest of any size: a guest boots, a backdoor serves its memory over loopback,
//! and its kernel is discovered over RoCEv2.
//!
//! `cargo build --release -p backdoor && cargo run --release -p testbed --example discovery -- --memory 4096`

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use introspect::Extent;
use link::{Link, Options};
use remote_memory::{RemoteKey, trace::Trace};
use testbed::{
    guest::{ImageSpec, Kernel},
    vm::{Vm, VmSpec},
};

/// Finds the kernel of a guest.
#[derive(Parser)]
struct Arguments {
    /// Kernel line below .cache/kernels.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// How often the guest is booted, each time with its image elsewhere.
    #[arg(long, default_value_t = 1)]
    boots: u32,
    /// The backdoor's program.
    #[arg(long, default_value = "target/release/backdoor")]
    backdoor: PathBuf,
    /// Where images are kept.
    #[arg(long, default_value = "target/guest-images")]
    images: PathBuf,
}

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const BACKDOOR: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 1);
const HERE: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 2);
const CONTROL_PORT: u16 = 47_790;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let image = ImageSpec::new(Kernel::cached(&arguments.kernel)?);
    let initramfs = image.build(&arguments.images)?;
    for _ in 0..arguments.boots {
        let mut spec = VmSpec::new("target", &image.kernel().vmlinuz, &initramfs);
        spec.memory_mib = arguments.memory;
        let mut vm = Vm::start(spec)?;
        vm.wait_ready(Duration::from_secs(240))?;
        measure(&arguments, &vm)?;
    }
    Ok(())
}

fn measure(arguments: &Arguments, vm: &Vm) -> Result<()> {
    let _served = serve(arguments, vm)?;
    let mut link = connected()?;
    let ram = link.region("ram")?;
    let extents: Vec<_> = ram.extents.iter().map(|it| Extent { start: it.start, len: it.len }).collect();
    let before = link.stats()?;
    let mut traced = Trace::new(link.memory());
    let begin = Instant::now();
    let kernel = introspect::Kernel::discover(&mut traced, RemoteKey::new(ram.key), &extents)?;
    let took = begin.elapsed();
    let pages: BTreeSet<u64> = traced.reads().iter().map(|read| read.at.addr >> 12).collect();
    let (asked, rounds) = (traced.reads().len(), traced.rounds());
    let after = link.stats()?;
    println!(
        "{} MiB, Linux {}: {:.1} ms, {asked} reads asked for in {rounds} rounds, {} READs, {:.1} MiB, {} page heads",
        arguments.memory,
        kernel.release,
        took.as_secs_f64() * 1e3,
        after.reads - before.reads,
        (after.read_bytes - before.read_bytes) as f64 / (1 << 20) as f64,
        pages.len(),
    );
    Ok(())
}

fn serve(arguments: &Arguments, vm: &Vm) -> Result<Served> {
    let config = std::env::temp_dir().join(format!("discovery-{}.toml", std::process::id()));
    let text = format!(
        "target = \"guest\"\nlisten = \"{BACKDOOR}\"\ncontrol_port = {CONTROL_PORT}\n\
         [vm]\nqmp = \"{}\"\nram = \"{}\"\n",
        vm.backdoor_qmp_socket().display(),
        vm.ram_path().display()
    );
    std::fs::write(&config, text)?;
    let child = Command::new(&arguments.backdoor).arg("--config").arg(&config).env("BACKDOORS_LOG", "warn").spawn();
    Ok(Served(child.with_context(|| format!("{}", arguments.backdoor.display()))?))
}

fn connected() -> Result<Link> {
    let begin = Instant::now();
    loop {
        let link = Link::connect((BACKDOOR, CONTROL_PORT).into(), HERE, Options::new("discovery"));
        match link.and_then(|mut link| link.region("ram").map(|_| link)) {
            Ok(link) => return Ok(link),
            Err(error) if begin.elapsed() > Duration::from_secs(10) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
