//! What clients counted: sums, and a bin for each second.

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Mistakes that are quoted; all are counted.
const QUOTED_MAX: usize = 20;

/// One second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Which, from 0.
    pub second: usize,
    /// Replies that arrived in it.
    pub replies: u64,
    /// Requests that failed in it.
    pub failures: u64,
    /// Connections opened in it.
    pub connections_opened: u64,
    /// Connections open at its end.
    pub connections_open: i64,
    /// Of the replies that arrived in it, from the request's first byte to the reply's last.
    pub latency_ms_mean: f64,
    /// The longest.
    pub latency_ms_max: f64,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Emulated users.
    pub clients: u32,
    /// How long they went on, without the last replies.
    pub seconds: f64,
    /// Requests sent.
    pub requests: u64,
    /// Whole replies with an answer.
    pub replies: u64,
    /// Requests without one: a connection failed, or the service did not know.
    pub failures: u64,
    /// Replies that did not belong to their request. There must be none.
    pub mismatched: u64,
    /// The first failures and mismatches, in words.
    pub quoted: Vec<String>,
    /// Replies per second.
    pub throughput_s: f64,
    /// Half of the replies took no longer.
    pub latency_ms_p50: f64,
    /// 99 of 100 took no longer.
    pub latency_ms_p99: f64,
    /// None took longer.
    pub latency_ms_max: f64,
    /// Second by second.
    pub bins: Vec<Bin>,
}

/// Counts while clients run.
#[derive(Debug)]
pub(super) struct Tally {
    began: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    report: Report,
    closed: Vec<i64>,
    latencies_ms: Vec<f64>,
}

impl Tally {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), counts: Mutex::default() }
    }

    pub(super) fn opened(&self) {
        let now = self.began.elapsed();
        self.lock().bin(now).connections_opened += 1;
    }

    pub(super) fn closed(&self) {
        let now = self.began.elapsed();
        let mut counts = self.lock();
        let second = counts.bin(now).second;
        let seconds = counts.closed.len().max(second + 1);
        counts.closed.resize(seconds, 0);
        counts.closed[second] += 1;
    }

    pub(super) fn asked(&self) {
        self.lock().report.requests += 1;
    }

    pub(super) fn replied(&self, took: Duration) {
        let (now, took_ms) = (self.began.elapsed(), took.as_secs_f64() * 1e3);
        let mut counts = self.lock();
        counts.report.replies += 1;
        counts.latencies_ms.push(took_ms);
        let bin = counts.bin(now);
        bin.replies += 1;
        // The sum for now; the report divides it.
        bin.latency_ms_mean += took_ms;
        bin.latency_ms_max = bin.latency_ms_max.max(took_ms);
    }

    pub(super) fn failed(&self, what: String) {
        let now = self.began.elapsed();
        let mut counts = self.lock();
        counts.report.failures += 1;
        counts.bin(now).failures += 1;
        counts.quote(what);
    }

    pub(super) fn mismatched(&self, what: String) {
        let mut counts = self.lock();
        counts.report.mismatched += 1;
        counts.quote(what);
    }

    /// The result, of so many clients that went on for `length`.
    pub(super) fn report(self, clients: u32, length: Duration) -> Report {
        let Counts { mut report, mut closed, mut latencies_ms } =
            self.counts.into_inner().expect("no client panics while it counts");
        latencies_ms.sort_by(f64::total_cmp);
        let rank = |share: f64| latencies_ms.get((latencies_ms.len() as f64 * share) as usize).copied();
        (report.clients, report.seconds) = (clients, length.as_secs_f64());
        report.latency_ms_p50 = rank(0.5).unwrap_or_default();
        report.latency_ms_p99 = rank(0.99).unwrap_or_default();
        report.latency_ms_max = latencies_ms.last().copied().unwrap_or_default();
        report.throughput_s = report.replies as f64 / report.seconds.max(f64::EPSILON);
        closed.resize(report.bins.len(), 0);
        let mut open = 0;
        for (bin, closed) in report.bins.iter_mut().zip(closed) {
            open += bin.connections_opened.cast_signed() - closed;
            bin.connections_open = open;
            bin.latency_ms_mean /= bin.replies.max(1) as f64;
        }
        report
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("no client panics while it counts")
    }
}

impl Counts {
    fn bin(&mut self, at: Duration) -> &mut Bin {
        let (bins, second) = (&mut self.report.bins, at.as_secs() as usize);
        (bins.len()..=second).for_each(|second| bins.push(Bin { second, ..Bin::default() }));
        &mut bins[second]
    }

    fn quote(&mut self, what: String) {
        if self.report.quoted.len() < QUOTED_MAX {
            self.report.quoted.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_follow_each_other_and_add_up() {
        let tally = Tally::begin();
        tally.opened();
        tally.opened();
        (1..=4).for_each(|ms| tally.replied(Duration::from_millis(ms)));
        tally.failed("why".into());
        tally.closed();
        let report = tally.report(2, Duration::from_secs(2));
        let counted: u64 = report.bins.iter().map(|bin| bin.replies).sum();
        assert_eq!((report.replies, counted, report.failures, report.throughput_s), (4, 4, 1, 2.0));
        assert_eq!((report.latency_ms_p50, report.latency_ms_p99, report.latency_ms_max), (3.0, 4.0, 4.0));
        assert_eq!(report.bins.last().map(|bin| bin.connections_open), Some(1));
        assert_eq!(report.quoted, ["why"]);
    }
}
