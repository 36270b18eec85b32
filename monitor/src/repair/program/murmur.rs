//! What a module says on its standard error, for the monitor's log: by the line, cut, and not more than people read.

use std::io::Read;
use std::process::ChildStderr;
use std::time::{Duration, Instant};

/// The longest line that is logged, in bytes; the rest of it is left out.
const LINE_BYTES_MAX: usize = 500;

/// Lines that are logged in a second.
const LINES_PER_SECOND: u32 = 20;

/// Logs what comes until the other end is closed, on a thread of its own.
///
/// # Errors
/// If there is no thread.
pub(super) fn listen(mut errors: ChildStderr, module: &str, target: &str) -> std::io::Result<()> {
    let (module, target) = (module.to_owned(), target.to_owned());
    let log = move |line: &str| tracing::info!(target_name = %target, module = %module, said = line, "module");
    let mut quota = Quota::new(Instant::now());
    let body = move || {
        let (mut lines, mut chunk) = (Lines::default(), [0; 4096]);
        while let Ok(count @ 1..) = errors.read(&mut chunk) {
            lines.take(&chunk[..count], |line| {
                if let Some(left_out) = quota.admits(Instant::now()) {
                    if left_out > 0 {
                        log(&format!("({left_out} lines were left out)"));
                    }
                    log(line);
                }
            });
        }
    };
    std::thread::Builder::new().name("module's log".into()).spawn(body).map(drop)
}

/// Bytes, made lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' => line(&String::from_utf8_lossy(&std::mem::take(&mut self.begun))),
                _ if self.begun.len() < LINE_BYTES_MAX => self.begun.push(*byte),
                _ => {}
            }
        }
    }
}

/// How many lines have been logged in this second.
struct Quota {
    begin: Instant,
    lines: u32,
    left_out: u64,
}

impl Quota {
    fn new(now: Instant) -> Self {
        Self { begin: now, lines: 0, left_out: 0 }
    }

    /// Whether one more may be logged, and how many were not since the last that was.
    fn admits(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.begin) >= Duration::from_secs(1) {
            (self.begin, self.lines) = (now, 0);
        }
        self.lines += 1;
        if self.lines <= LINES_PER_SECOND {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_whole_whatever_the_pieces() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let long = "x".repeat(2 * LINE_BYTES_MAX);
        for piece in ["a", "b\nc", "\n", &long, "\nd"] {
            lines.take(piece.as_bytes(), |line| found.push(line.to_owned()));
        }
        assert_eq!(found, ["ab", "c", &long[..LINE_BYTES_MAX]]);
    }

    #[test]
    fn a_flood_is_counted_and_not_logged() {
        let begin = Instant::now();
        let mut quota = Quota::new(begin);
        let logged = (0..1000).filter(|_| quota.admits(begin).is_some()).count();
        assert_eq!(logged, LINES_PER_SECOND as usize);
        assert_eq!(quota.admits(begin + Duration::from_secs(1)), Some(1000 - u64::from(LINES_PER_SECOND)));
        assert_eq!(quota.admits(begin + Duration::from_secs(1)), Some(0));
    }
}
