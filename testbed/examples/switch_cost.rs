//! What the agent's eBPF programs cost a context switch and a fork: in a guest with one processor whose clock counts
//! instructions (QEMU's `-icount`, two nanoseconds for each), without an agent and with each of the agents named, by
//! turns. Whatever else the host does is not in it.
//!
//! ```sh
//! cargo run -p testbed --example switch_cost -- target/release/target-agent OLDER-AGENT…
//! ```

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::guest::{ImageSpec, Kernel};
use testbed::vm::{Accel, Vm, VmSpec};

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Rounds through all agents: what else the machine does falls on all of them.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let agents: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    ensure!(!agents.is_empty(), "name agents");
    let here = std::env::current_exe()?;
    let rogue = here.ancestors().nth(2).context("where this program lies")?.join("rogue");
    ensure!(rogue.is_file(), "{} is not built: cargo build -p rogue", rogue.display());
    let mut image = ImageSpec::new(Kernel::cached("6.1")?).program("rogue", &rogue);
    for (index, agent) in agents.iter().enumerate() {
        image = image.program(&format!("agent-{index}"), agent);
    }
    let folder = std::env::temp_dir().join(format!("switch-cost-{}", std::process::id()));
    let mut spec = VmSpec::new("switch-cost", &image.kernel().vmlinuz, &image.build(&folder)?);
    (spec.cpus, spec.counted, spec.accel) = (1, true, Some(Accel::Tcg));
    let mut vm = Vm::start(spec)?;
    vm.wait_ready(BOUND)?;
    for _ in 0..ROUNDS {
        println!("none {}", measure(&mut vm)?);
        for (index, agent) in agents.iter().enumerate() {
            let pins = "/sys/fs/bpf/cost";
            vm.run(&format!("(exec /bin/agent-{index} --pin-dir {pins} >/tmp/log 2>&1 </dev/null) &"))?;
            vm.run("until grep -q 'the agent is up' /tmp/log; do sleep 0.1; done")?;
            println!("{} {}", agent.display(), measure(&mut vm)?);
            vm.run(&format!("kill $(pidof agent-{index}); sleep 0.5; rm -r {pins} /tmp/log"))?;
        }
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Nanoseconds for a switch and for a fork, each the median of three.
fn measure(vm: &mut Vm) -> Result<String> {
    let median = |what: &str, vm: &mut Vm| -> Result<String> {
        Ok(vm.run(&format!("/bin/rogue {what} --times 3 | sort -n | sed -n 2p"))?.text().trim().to_owned())
    };
    let (switches, forks) = (median("switches --turns 20000", vm)?, median("forks --forks 500", vm)?);
    Ok(format!("switch {switches} fork {forks}"))
}
