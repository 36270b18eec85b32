//! `testbed demo`: one curl, one panic, one checksum. Everything a newcomer wants to see, and nothing to configure.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{
    client::{Arrival, Kind, Outcome, Signals, content},
    fault::Fault,
    scenario::{Order, Progress, Run, Verdict, hang_download, hang_download::Clock},
    timeline::Timeline,
    topology::{FILE_PORT, SERVICE, service_v4},
};

/// What curl downloads: long enough for life before and after the panic.
const DOWNLOAD_BYTES: u64 = 8_000_000;

/// The pace asked of the server.
const BYTES_PER_SECOND: u64 = 1_600_000;

/// Between two looks at the file that curl writes.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// Runs it and tells the story on standard output; results lie in `out` afterwards.
///
/// # Errors
/// When it cannot be carried out.
pub fn demo(out: &Path, order: Order, seed: u64) -> Result<bool> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let run = Run {
        fault: Fault::Panic,
        sessions: 1,
        kinds: vec![Kind::Paced],
        ipv6: false,
        aim: None,
        afterwards: hang_download::AFTERWARDS,
        seed,
        order,
        out: out.to_owned(),
        keep_logs: false,
        capture: None,
    };
    let download = Download { file: out.join("download"), seed };
    let (verdict, timeline) =
        hang_download::run_with(&run, Progress::begin(), |clock, signals| Ok(vec![download.run(clock, signals)?]))?;
    tell(&download, &verdict, &timeline, out)
}

/// curl's download.
struct Download {
    file: PathBuf,
    seed: u64,
}

impl Download {
    fn url(&self) -> String {
        let (address, seed) = (service_v4(SERVICE), self.seed);
        format!("http://{address}:{FILE_PORT}/synthetic/{seed}/{DOWNLOAD_BYTES}?rate={BYTES_PER_SECOND}")
    }

    /// Runs curl and watches the file grow.
    fn run(&self, clock: Clock, signals: &Signals) -> Result<Outcome> {
        let _ = fs::remove_file(&self.file);
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--no-buffer", "--output"]).arg(&self.file).arg(self.url());
        let mut curl =
            command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("curl: run scripts/setup")?;
        let mut outcome = Outcome::new(Kind::Paced);
        let mut seen = 0;
        while curl.try_wait().context("waiting for curl")?.is_none() {
            self.look(&mut seen, clock, &mut outcome);
            signals.under_way.store(usize::from(seen > 0), Ordering::Relaxed);
            thread::sleep(LOOK_AGAIN);
        }
        self.look(&mut seen, clock, &mut outcome);
        signals.under_way.store(1, Ordering::Relaxed);
        self.check(curl, &mut outcome)?;
        Ok(outcome)
    }

    fn look(&self, seen: &mut u64, clock: Clock, outcome: &mut Outcome) {
        let bytes = fs::metadata(&self.file).map_or(0, |data| data.len());
        if bytes > *seen {
            outcome.arrivals.push(Arrival { at: clock.zero.elapsed(), bytes: bytes - *seen });
            *seen = bytes;
        }
    }

    fn check(&self, curl: Child, outcome: &mut Outcome) -> Result<()> {
        let output = curl.wait_with_output().context("waiting for curl")?;
        if !output.status.success() {
            outcome.lost = Some(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let got = fs::read(&self.file).unwrap_or_default();
        let expected = self.expected();
        outcome.bytes_checked = got.len() as u64;
        let differing = got.iter().zip(&expected).filter(|(ours, theirs)| ours != theirs).count() as u64;
        outcome.wrong_bytes = differing + got.len().abs_diff(expected.len()) as u64;
        outcome.requests = 1;
        Ok(())
    }

    fn expected(&self) -> Vec<u8> {
        let mut bytes = vec![0; DOWNLOAD_BYTES as usize];
        content::fill(self.seed, 0, &mut bytes);
        bytes
    }
}

fn tell(download: &Download, verdict: &Verdict, timeline: &Timeline, out: &Path) -> Result<bool> {
    let got = sha256(&fs::read(&download.file).context("the download")?);
    let expected = sha256(&download.expected());
    println!("\n{}", timeline.text(100));
    println!("curl {}", download.url());
    println!("  sha256 of what curl got    {got}");
    println!("  sha256 of what it should   {expected}   {}", if got == expected { "equal" } else { "DIFFERENT" });
    if let (Some(gap), Some(detect)) = (verdict.gap_ms_max, verdict.detect_ms) {
        println!(
            "\nThe guest's kernel panicked in the middle of the download. It was noticed after {detect:.0} ms, from \
             its memory;\nthe connection went on from the spare, and curl saw a pause of {gap:.0} ms."
        );
    }
    println!("The same as a drawing: {}", out.join("timeline.svg").display());
    let _ = fs::remove_file(&download.file);
    for reason in &verdict.why {
        println!("failed: {reason}");
    }
    if verdict.pass && got != expected {
        bail!("the verdict and the checksum contradict each other");
    }
    Ok(verdict.pass)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
