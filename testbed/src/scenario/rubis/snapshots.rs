//! How large the tiers' snapshots were: each process of a tier says so as the last thing in its log when it ends. A
//! machine that has stopped for good says nothing; what its peer carried on is among the peer's.

use auction::snapshot::Figures;
use serde::Serialize;

/// Of each tier that lived to the end, both machines together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Snapshots {
    /// The front ends'.
    pub fe: Sizes,
    /// The mid tiers'.
    pub mt: Sizes,
}

/// What snapshots came to, with 13 bytes of frame each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sizes {
    /// How many were written.
    pub count: u64,
    /// The mean of their bytes.
    pub bytes_mean: f64,
    /// The largest.
    pub bytes_max: u64,
}

impl Sizes {
    /// Adds those of one more process.
    pub(super) fn add(&mut self, figures: &Figures) {
        let bytes = self.bytes_mean * self.count as f64 + figures.snapshot_bytes_mean * figures.snapshots as f64;
        self.count += figures.snapshots;
        self.bytes_mean = bytes / self.count.max(1) as f64;
        self.bytes_max = self.bytes_max.max(figures.snapshot_bytes_max);
    }
}

/// What a tier said in its log, if it came to that.
pub(super) fn told(log: &str) -> Option<Figures> {
    serde_json::from_str(log.lines().next_back()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_of_all_snapshots_whoever_wrote_them_and_a_log_that_ends_otherwise_tells_nothing() {
        let mut sizes = Sizes::default();
        for said in [
            r#"{"snapshots":3,"snapshot_bytes_mean":60.0,"snapshot_bytes_max":80}"#,
            r#"{"snapshots":0,"snapshot_bytes_mean":0.0,"snapshot_bytes_max":0}"#,
            r#"{"snapshots":1,"snapshot_bytes_mean":100.0,"snapshot_bytes_max":100}"#,
        ] {
            sizes.add(&told(&format!("INFO serving\n{said}\n")).expect("figures"));
        }
        assert_eq!(sizes, Sizes { count: 4, bytes_mean: 70.0, bytes_max: 100 });
        assert_eq!((told(""), told("INFO serving\n")), (None, None));
    }
}
