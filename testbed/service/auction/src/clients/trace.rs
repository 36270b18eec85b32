//! What every client met, as it happens: one JSON line for each connection and each request, on the monotonic clock
//! that the journals of monitors use, too. Sums tell what a run was like; this tells what a crash was like.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The emulated user.
    pub client: u32,
    /// Which of the front ends it speaks to, from 0.
    pub front_end: usize,
    /// What it met.
    #[serde(flatten)]
    pub met: Met,
}

/// What a client met. Times in nanoseconds of the monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "met", rename_all = "kebab-case")]
pub enum Met {
    /// A connection is open.
    Connected {
        /// When.
        at_ns: u64,
    },
    /// A connection has ended, by whose doing ever.
    Closed {
        /// When.
        at_ns: u64,
    },
    /// A request and its own reply.
    Answered {
        /// When the request was sent.
        asked_ns: u64,
        /// When the reply's head was there.
        first_ns: u64,
        /// When all of it was.
        whole_ns: u64,
    },
    /// A request without its own reply.
    Failed {
        /// When the request was sent, or was to be.
        asked_ns: u64,
        /// When that was known.
        at_ns: u64,
        /// In what way.
        failure: Failure,
        /// In words.
        why: String,
    },
}

/// In what way a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// No connection could be made.
    Refused,
    /// The connection broke, or nothing came.
    Broken,
    /// The service said that it does not know (503).
    Unclear,
    /// The reply was another's.
    Mismatched,
}

/// Now, on the clock of a trace.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Where clients write; nowhere, if nobody wants to know.
#[derive(Debug, Default)]
pub struct Trace(Option<Mutex<File>>);

impl Trace {
    /// Into a new file, line by line: it can be read while clients run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn to(file: &Path) -> Result<Self> {
        let made = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
        Ok(Self(Some(Mutex::new(made))))
    }

    pub(super) fn note(&self, line: &Line) {
        let Some(file) = &self.0 else { return };
        let mut text = serde_json::to_vec(line).expect("a line has string keys only");
        text.push(b'\n');
        let written = file.lock().expect("no client panics while it writes").write_all(&text);
        if let Err(why) = written {
            tracing::warn!(%why, "the trace lacks a line");
        }
    }
}

/// Every whole line of a trace so far.
///
/// # Errors
/// When the file cannot be read, or a line is none of a trace.
pub fn read(from: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut file = BufReader::new(File::open(from).with_context(|| format!("cannot read {}", from.display()))?);
    let mut text = String::new();
    while file.read_line(&mut text)? > 0 && text.ends_with('\n') {
        let number = lines.len() + 1;
        lines.push(serde_json::from_str(&text).with_context(|| format!("{}:{number}", from.display()))?);
        text.clear();
    }
    Ok(lines)
}

/// Failures, by their kind.
pub fn failures(lines: &[Line]) -> BTreeMap<Failure, u64> {
    let mut counts = BTreeMap::new();
    for line in lines {
        if let Met::Failed { failure, .. } = &line.met {
            *counts.entry(*failure).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_still_being_written_is_left_for_later() {
        let path = std::env::temp_dir().join(format!("trace-{}", std::process::id()));
        let trace = Trace::to(&path).unwrap();
        let failed = Met::Failed { asked_ns: 5, at_ns: 6, failure: Failure::Broken, why: "reset".into() };
        let first = Line { client: 3, front_end: 1, met: Met::Connected { at_ns: 4 } };
        let second = Line { client: 3, front_end: 1, met: failed };
        trace.note(&first);
        trace.note(&second);
        trace.0.as_ref().unwrap().lock().unwrap().write_all(b"{\"client\":3,").unwrap();
        let read = read(&path);
        std::fs::remove_file(&path).unwrap();
        let read = read.unwrap();
        assert_eq!(read, [first, second]);
        assert_eq!(failures(&read), BTreeMap::from([(Failure::Broken, 1)]));
    }
}
