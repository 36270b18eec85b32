//! Recordings: what the sensors of a live target showed, sample by sample, and what can be said from it afterwards.
//!
//! A recording is made once and asked many questions: how many false verdicts each deadline would have given (the same
//! detector draws them that watches targets), and how each counter moves under a load. Nothing here acts.
//!
//! ```text
//!   {"target":"web","period_ns":1000000,"sensors":[…]}      the first line; again when the target's sensors changed
//!   [begin_ns, took_ns, [value, null, …]]                   a sample; null where a record could not be read whole
//!   [begin_ns, took_ns, null]                               a sample without an answer
//! ```

mod false_verdicts;
mod motion;

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::detect::DescribedSensor;
use crate::sample::{Door, Glance, Opened, Reader, Sensors};

pub use false_verdicts::{Tally, false_verdicts};
pub use motion::{Motion, motions};

/// What a recording is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The target.
    pub target: String,
    /// From one sample to the next, as planned.
    pub period_ns: u64,
    /// The sensors, in the order of the values.
    pub sensors: Vec<DescribedSensor>,
}

/// One sample: begin and length of the read, and what it brought. Times are monotonic nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample(pub u64, pub u64, pub Option<Vec<Option<u64>>>);

/// A stretch of samples of the same sensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// What it is of.
    pub head: Head,
    /// The samples, in order.
    pub samples: Vec<Sample>,
}

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file failed.
    #[error("the recording cannot be read or written: {0}")]
    File(#[from] std::io::Error),
    /// A line is none.
    #[error("line {line}: no line of a recording: {source}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Samples without a head.
    #[error("the recording does not say what it is of: its first line must name target, period and sensors")]
    Headless,
    /// The target could not be reached at all.
    #[error("nothing was recorded: {0}")]
    Unreachable(String),
}

/// Samples every one of `sensors` of `target` behind `door` each `period_ns` and writes them to `out` until `is_over`
/// says so.
///
/// # Errors
/// [`RecordingError::Unreachable`] if there are no sensors at the beginning, [`RecordingError::File`] if `out` fails. A
/// path that is lost later is part of the recording.
pub fn record(
    (target, sensors): (&str, &mut Sensors),
    door: &mut impl Door,
    clock: &impl Clock,
    period_ns: u64,
    out: &mut impl Write,
    is_over: impl Fn() -> bool,
) -> Result<u64, RecordingError> {
    let mut reader = Some(open((target, sensors), door, period_ns, out).map_err(RecordingError::Unreachable)?);
    let (mut values, mut count, mut next_ns) = (Vec::new(), 0, clock.now_ns());
    while !is_over() {
        clock.sleep_until(next_ns);
        let begin_ns = clock.now_ns();
        next_ns = begin_ns.max(next_ns + period_ns);
        sensors.heed(&mut reader);
        if reader.is_none() {
            reader = open((target, sensors), door, period_ns, out).ok();
        }
        let glance = match (&mut reader, door.memory()) {
            (Some((reader, _)), Some(memory)) => reader.look(memory, begin_ns, &mut values, false),
            _ => Glance::Lost,
        };
        let brought = matches!(glance, Glance::Values { .. }).then(|| values.clone());
        if !matches!(glance, Glance::Values { changed: false, .. } | Glance::Lost) {
            reader = None;
        }
        write_line(out, &Sample(begin_ns, clock.now_ns() - begin_ns, brought))?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

fn open(
    (target, sensors): (&str, &mut Sensors),
    door: &mut impl Door,
    period_ns: u64,
    out: &mut impl Write,
) -> Result<(Reader, Opened), String> {
    let found = sensors.open(door).map_err(|unreached| unreached.why)?;
    let (mut reader, opened) = found.ok_or("the sensors of its kernel have not been found yet")?;
    reader.keep(&(0..opened.described.len()).collect::<Vec<_>>());
    let head = Head { target: target.to_owned(), period_ns, sensors: opened.described.clone() };
    write_line(out, &head).map_err(|error| error.to_string())?;
    Ok((reader, opened))
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads a recording: one for each head in it.
///
/// # Errors
/// See [`RecordingError`].
pub fn read(from: impl BufRead) -> Result<Vec<Recording>, RecordingError> {
    let mut all: Vec<Recording> = Vec::new();
    for (index, text) in from.lines().enumerate() {
        let text = text?;
        let wrong = |source| RecordingError::Line { line: index + 1, source };
        if text.starts_with('{') {
            let head = serde_json::from_str(&text).map_err(wrong)?;
            // A box that was opened again and is the same goes on.
            if all.last().is_none_or(|last| last.head != head) {
                all.push(Recording { head, samples: Vec::new() });
            }
        } else {
            let sample = serde_json::from_str(&text).map_err(wrong)?;
            all.last_mut().ok_or(RecordingError::Headless)?.samples.push(sample);
        }
    }
    if all.is_empty() { Err(RecordingError::Headless) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"target\":\"web\",\"period_ns\":5,\"sensors\":[]}\n[1,2,[3,null]]\n[6,1,null]\n";

    #[test]
    fn a_recording_reads_as_it_was_written() {
        let read = read(TEXT.as_bytes()).unwrap();
        assert_eq!(read[0].samples, [Sample(1, 2, Some(vec![Some(3), None])), Sample(6, 1, None)]);
        let mut again = Vec::new();
        write_line(&mut again, &read[0].head).unwrap();
        read[0].samples.iter().for_each(|sample| write_line(&mut again, sample).unwrap());
        assert_eq!(again, TEXT.as_bytes());
    }

    #[test]
    fn a_line_that_is_none_and_a_missing_head_are_named() {
        assert!(matches!(read(&b""[..]), Err(RecordingError::Headless)));
        assert!(matches!(read(&b"[1,2,null]\n"[..]), Err(RecordingError::Headless)));
        let error = read(format!("{TEXT}[1,\n").as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("line 4: no line of a recording"), "{error}");
    }
}
