//! The processor time of a monitor's sampling thread for one box of a hundred sensors, as `monitor/examples/cost.rs`
//! measures it. The limit is a thread that sleeps, sends one datagram and waits for one with as many bytes.

use std::{
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::time::{ClockId, clock_gettime};
use sensorbox::layout::RECORD_BYTES;
use serde_json::Value;

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
};
use crate::scenario::program;

const SENSORS: usize = 100;
/// Milliseconds between samples, then percent of a processor: the paper's, and the goal.
const FIGURES: [(u64, f64, f64); 2] = [(10, 5.0, 0.2), (100, 1.0, 0.05)];
/// A READ request: BTH, RETH and ICRC.
const REQUEST_BYTES: usize = 32;
const BARE: &str = "sleep, send a request, wait for one datagram with the bytes of all sensors";

pub(super) fn measure(effort: &Effort) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for ((period_ms, paper, goal), seconds) in FIGURES.into_iter().zip(effort.monitor_s) {
        let ours = watched(period_ms, seconds)?;
        let bare = bare(Duration::from_millis(period_ms), Duration::from_secs(seconds))?;
        let name = format!("monitor, {SENSORS} sensors, {period_ms} ms");
        let line = Line::new(Group::Monitor, name, Unit::Processor, &Sample::of(vec![ours]), bare, BARE);
        lines.push(line.paper(paper).goal(Goal::AtMost(goal)));
    }
    Ok(lines)
}

/// Percent of a processor, by the monitor's own example.
fn watched(period_ms: u64, seconds: u64) -> Result<f64> {
    let mut command = Command::new(program("examples/cost")?);
    command.args(["--boxes", "1", "--sensors", &SENSORS.to_string()]);
    command.args(["--period-ms", &period_ms.to_string(), "--seconds", &seconds.to_string()]);
    let output = command.output().context("examples/cost")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "examples/cost failed: {}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).context("examples/cost")?;
    let wanted = 1000 * seconds / period_ms;
    let taken = result["samples_per_second"].as_f64().unwrap_or_default() * seconds as f64;
    ensure!(taken > wanted as f64 * 0.8, "{taken:.0} of {wanted} samples were taken: the machine is too busy");
    result["monitor_cpu_percent"].as_f64().ok_or_else(|| anyhow!("no monitor_cpu_percent in {result}"))
}

/// Percent of a processor that the bare loop takes.
fn bare(period: Duration, length: Duration) -> Result<f64> {
    let (ours, theirs) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    ours.connect(theirs.local_addr()?)?;
    theirs.connect(ours.local_addr()?)?;
    let rounds = length.as_nanos() / period.as_nanos();
    let answer = [0; SENSORS * RECORD_BYTES];
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut request = [0; REQUEST_BYTES];
            for _ in 0..rounds {
                if theirs.recv(&mut request).and_then(|_| theirs.send(&answer)).is_err() {
                    return;
                }
            }
        });
        // In a thread of its own: a clock of its own.
        scope.spawn(move || sample(&ours, period, rounds)).join().map_err(|_| anyhow!("the bare loop panicked"))?
    })
}

fn sample(socket: &UdpSocket, period: Duration, rounds: u128) -> Result<f64> {
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let mut answer = [0; SENSORS * RECORD_BYTES];
    let (began, spent) = (Instant::now(), cpu()?);
    let mut next = began;
    for _ in 0..rounds {
        next += period;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        socket.send(&[0; REQUEST_BYTES])?;
        socket.recv(&mut answer)?;
    }
    Ok((cpu()? - spent).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
}
