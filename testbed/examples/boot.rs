//! Boots a guest by hand and runs one shell line in it.
//!
//! `cargo run -p testbed --example boot -- --agent target/debug/target-agent 'cat /proc/uptime'`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use testbed::guest::{ImageSpec, Kernel, Service};
use testbed::vm::{Vm, VmSpec};

/// Boots a guest and runs a shell line in it.
#[derive(Parser)]
struct Arguments {
    /// Kernel line below .cache/kernels.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// The agent's program; without it the guest runs none.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Where images are kept.
    #[arg(long, default_value = "target/guest-images")]
    images: PathBuf,
    /// Shell line to run when the guest is ready.
    #[arg(default_value = "cat /proc/uptime; free; ls /sys/class/virtio-ports")]
    command: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut image = ImageSpec::new(Kernel::cached(&arguments.kernel)?);
    if let Some(agent) = &arguments.agent {
        image = with_agent(image, agent);
    }
    let initramfs = image.build(&arguments.images)?;
    println!("image {} ({} KiB)", initramfs.display(), std::fs::metadata(&initramfs)?.len() >> 10);
    let start = Instant::now();
    let mut vm = Vm::start(VmSpec::new("target", &image.kernel().vmlinuz, &initramfs))?;
    println!("RAM {}\nagent socket {}", vm.ram_path().display(), vm.agent_socket().display());
    vm.wait_ready(Duration::from_secs(120))?;
    println!("ready after {:.1} s", start.elapsed().as_secs_f64());
    let output = vm.run(&arguments.command)?;
    println!("{}\nstatus {}", output.text(), output.status);
    Ok(())
}

fn with_agent(image: ImageSpec, agent: &Path) -> ImageSpec {
    let command = "/bin/target-agent --box-socket /run/backdoors/box.sock".to_owned();
    image.program("target-agent", agent).service(Service {
        name: "agent".into(),
        command,
        ready_path: Some("/run/backdoors/box.sock".into()),
    })
}
