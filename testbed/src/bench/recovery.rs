//! What a whole recovery takes: `hang-download`, some runs for each number of sessions, the medians of each stage.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    client::Kind,
    fault::Fault,
    sandbox,
    scenario::{Order, Progress, Run, Verdict, hang_download},
};

/// Sessions carried over at once.
const SESSIONS: [usize; 2] = [1, 20];

pub(super) fn measure(out: &Path, order: &Order, runs: u64, progress: Progress) -> Result<()> {
    debug_assert!(sandbox::entered());
    println!("\nrecovery (ms, medians of {runs})    detect    fence  extract  reinstate  gap p50  gap max");
    for sessions in SESSIONS {
        let mut verdicts = Vec::new();
        for seed in 1..=runs {
            let run = Run {
                fault: Fault::Panic,
                sessions,
                kinds: vec![Kind::Paced],
                ipv6: false,
                aim: None,
                afterwards: hang_download::AFTERWARDS,
                seed,
                order: order.clone(),
                out: out.join(format!("recovery-{sessions}-{seed}")),
                keep_logs: false,
                capture: None,
            };
            let (verdict, _) = hang_download::run(&run, progress)?;
            ensure!(verdict.pass, "a recovery failed, its time means nothing: {:?}", verdict.why);
            verdicts.push(verdict);
        }
        let of = |figure: fn(&Verdict) -> Option<f64>| median(verdicts.iter().filter_map(figure).collect());
        println!(
            "  {sessions:>4} sessions, deadline {:>4}  {:>7.1}  {:>7.1}  {:>7.1}  {:>9.1}  {:>7.1}  {:>7.1}",
            order.deadline_ms,
            of(|verdict| verdict.detect_ms),
            of(|verdict| verdict.fence_ms),
            of(|verdict| verdict.extract_ms),
            of(|verdict| verdict.reinstate_ms),
            of(|verdict| verdict.gap_ms_p50),
            of(|verdict| verdict.gap_ms_max),
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
