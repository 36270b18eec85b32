//! What the agent costs a file server under load, in instructions: a guest with one processor whose clock counts them
//! (QEMU's `-icount`), server and `wrk` in it over its loopback, without an agent and with more and more of one, by
//! turns. Nothing in there idles, so a request's share of the guest's time is what it costs both ends in all.
//!
//! ```sh
//! cargo run --release -p testbed --example server_cost -- ROUNDS
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::guest::{ImageSpec, Kernel};
use testbed::vm::{Accel, Vm, VmSpec};

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(300);

/// Nanoseconds of the guest for each instruction.
const INSTRUCTION_NS: f64 = 2.0;

/// Ends when the agent is up, or after a while without.
const AGENT_IS_UP: &str = "i=0; until grep -q 'the agent is up' /tmp/log; do \
                           sleep 0.1; i=$((i+1)); [ $i -lt 300 ] || exit 1; done";

const PINS: &str = "/sys/fs/bpf/cost";
const MIRROR: &str = "--mirror-slots 128 --mirror-port 8080";
/// On a loopback each segment passes both hooks of the guard; on a real interface one. Nor has it XDP in its driver.
const GUARD: &str = "--service-address 127.0.0.1 --service-interface lo";

/// What is compared: a name, what the agent is told if there is one, and whether the server has boxes. A guard's hooks
/// outlive its agent, so it comes last.
const SETUPS: [(&str, Option<&[&str]>, bool); 6] = [
    ("no agent", None, false),
    ("process table", Some(&[]), false),
    ("and mirror", Some(&[MIRROR]), false),
    ("table, boxes", Some(&[]), true),
    ("and guard", Some(&[MIRROR, GUARD]), false),
    ("all, boxes", Some(&[MIRROR, GUARD]), true),
];

/// What is asked for, and over how many connections.
const LOADS: [(&str, u32); 2] = [("1KiB", 16), ("1MiB", 4)];

/// One run: what a request costs, and how many segments it took both ends to send.
#[derive(Clone, Copy)]
struct Cost {
    request_ns: f64,
    segments: f64,
}

fn main() -> Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(3), |word| word.parse())?;
    let folder = std::env::temp_dir().join(format!("server-cost-{}", std::process::id()));
    let mut costs = Costs::new();
    let measured = (0..rounds).try_for_each(|_| measure(&mut boot(&folder)?, &mut costs));
    std::fs::remove_dir_all(&folder)?;
    measured?;
    for ((load, setup), costs) in &costs {
        let ns = median(costs.iter().map(|cost| cost.request_ns).collect());
        let segments = median(costs.iter().map(|cost| cost.segments).collect());
        let instructions = ns / INSTRUCTION_NS;
        println!("{load} {:14} {instructions:9.0} instructions, {segments:6.1} segments a request", SETUPS[*setup].0);
    }
    Ok(())
}

fn boot(folder: &std::path::Path) -> Result<Vm> {
    let here = std::env::current_exe()?;
    let built = here.ancestors().nth(2).context("where this program lies")?;
    let mut image = ImageSpec::new(Kernel::cached("6.1")?).program("wrk", &PathBuf::from("/usr/bin/wrk"));
    // What the guard hangs on.
    for module in ["sch_ingress", "cls_bpf"] {
        image = image.module(module);
    }
    for name in ["target-agent", "file-server"] {
        let program = built.join(name);
        ensure!(program.is_file(), "{name} is not built: cargo build --release --workspace --bins");
        image = image.program(name, &program);
    }
    let mut spec = VmSpec::new("server-cost", &image.kernel().vmlinuz, &image.build(folder)?);
    (spec.cpus, spec.counted, spec.accel) = (1, true, Some(Accel::Tcg));
    let mut vm = Vm::start(spec)?;
    vm.wait_ready(BOUND)?;
    vm.run("mkdir -p /tmp/files; head -c 1024 /dev/zero >/tmp/files/1KiB; head -c 1048576 /dev/zero >/tmp/files/1MiB")?;
    Ok(vm)
}

type Costs = BTreeMap<(&'static str, usize), Vec<Cost>>;

/// A round: each setup in turn, under both loads.
fn measure(vm: &mut Vm, costs: &mut Costs) -> Result<()> {
    for (index, (name, agent, has_boxes)) in SETUPS.iter().enumerate() {
        if let Some(told) = agent {
            let told = told.join(" ");
            let line = format!("target-agent --pool-slots 64 --pin-dir {PINS} {told}");
            vm.run(&format!("(exec {line} >/tmp/log 2>&1 </dev/null) &"))?;
            let up = vm.run_within(AGENT_IS_UP, BOUND)?;
            ensure!(up.status == 0, "{name}: {}", vm.run("cat /tmp/log")?.text());
        }
        let boxes = if *has_boxes { "--box-socket /run/backdoors/box.sock" } else { "" };
        vm.run(&format!("(exec file-server --quiet --root /tmp/files {boxes} >/tmp/server 2>&1 </dev/null) &"))?;
        vm.run_within("until wget -q -O /dev/null http://127.0.0.1:8080/1KiB; do sleep 0.1; done", BOUND)?;
        for (file, connections) in LOADS {
            let cost = run(vm, file, connections)?;
            println!("{file} {name}: {:.0} ns, {:.1} segments", cost.request_ns, cost.segments);
            costs.entry((file, index)).or_default().push(cost);
        }
        vm.run("kill $(pidof file-server); sleep 0.5")?;
        if agent.is_some() {
            vm.run(&format!("kill $(pidof target-agent); sleep 0.5; rm -r {PINS} /tmp/log"))?;
        }
    }
    Ok(())
}

fn run(vm: &mut Vm, file: &str, connections: u32) -> Result<Cost> {
    let sent = "grep ^Tcp: /proc/net/snmp | tail -n 1 | cut -d ' ' -f 12";
    let load = format!("wrk --threads 1 --connections {connections} --duration 2s http://127.0.0.1:8080/{file}");
    let said = vm.run_within(&format!("{sent}; {load} 2>&1; {sent}"), BOUND)?.text();
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let (first, last) = (said.lines().next(), said.lines().last());
    let [first, last] = [first, last].map(|line| line.unwrap_or_default().trim().parse::<f64>());
    let word = |name: &str, at: usize| {
        let line = said.lines().map(str::trim).find(|line| line.contains(name))?;
        line.split_whitespace().nth(at)?.parse::<f64>().ok()
    };
    let rate = word("Requests/sec:", 1).with_context(|| said.clone())?;
    let requests = word(" requests in ", 0).with_context(|| said.clone())?;
    Ok(Cost { request_ns: 1e9 / rate, segments: (last? - first?) / requests })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
