//! What the healers did, out of the monitor's journal. Its times are on the monotonic clock that all processes of this
//! machine share, so that they can be laid beside the clients'.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use control::reinstate::{Outcome, Report};
use monitor::journal::{Event, Line};

use crate::timeline::Stage;

/// One incident, from the last sign of life to the spare's report. Times in monotonic nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Incident {
    /// After this moment every raising sensor still moved.
    pub last_sign_ns: Option<u64>,
    /// The verdict.
    pub verdict_ns: Option<u64>,
    /// The fence: asked for, and standing.
    pub fence_ns: Option<(u64, u64)>,
    /// The order to the spare.
    pub ordered_ns: Option<u64>,
    /// Who took over; several that shared the work, with `+` between them.
    pub spare: Option<String>,
    /// The spare's report, and when it arrived.
    pub report: Option<(u64, Report)>,
    /// Sentences of the journal about what went wrong.
    pub trouble: Vec<String>,
}

/// Every line of a journal that is complete so far.
///
/// # Errors
/// When the file cannot be read; a line that is no journal's.
pub fn read(journal: &Path) -> Result<Vec<Line>> {
    let text = match fs::read_to_string(journal) {
        Ok(text) => text,
        // The monitor makes it when it starts.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("the journal {}", journal.display())),
    };
    parse(&text)
}

/// Between two looks at a journal that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The lines of `journal` as soon as `are_there`, which is called `what` in complaints.
///
/// # Errors
/// As [`read`]; when they do not come within `bound`.
pub fn wait_for(journal: &Path, what: &str, bound: Duration, are_there: impl Fn(&[Line]) -> bool) -> Result<Vec<Line>> {
    let begin = Instant::now();
    loop {
        let lines = read(journal)?;
        if are_there(&lines) {
            return Ok(lines);
        }
        ensure!(begin.elapsed() < bound, "{what}: not within {bound:?}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a treatment has come to a good end.
pub fn is_cured(lines: &[Line]) -> bool {
    lines.iter().any(|line| matches!(line.event, Event::Cured { .. }))
}

/// A journal that is read while it grows, each line once: who waits for a recovery shares the processors with those
/// who recover.
#[derive(Debug)]
pub struct Followed {
    journal: PathBuf,
    taken: u64,
    lines: Vec<Line>,
}

impl Followed {
    /// A journal, without what is in it already.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_now(journal: &Path) -> Result<Self> {
        let about = fs::metadata(journal).with_context(|| format!("the journal {}", journal.display()))?;
        Ok(Self { journal: journal.to_owned(), taken: about.len(), lines: Vec::new() })
    }

    /// All lines that have come since, if there are more than before.
    ///
    /// # Errors
    /// When the file cannot be read, or a whole line is none of a journal.
    pub fn grown(&mut self) -> Result<Option<&[Line]>> {
        let mut text = String::new();
        let read = File::open(&self.journal).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.taken))?;
            file.read_to_string(&mut text)
        });
        read.with_context(|| format!("the journal {}", self.journal.display()))?;
        let fresh = parse(&text)?;
        self.taken += text.rfind('\n').map_or(0, |end| end as u64 + 1);
        let has_grown = !fresh.is_empty();
        self.lines.extend(fresh);
        Ok(has_grown.then_some(&self.lines))
    }
}

fn parse(text: &str) -> Result<Vec<Line>> {
    let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    complete.lines().map(|line| serde_json::from_str(line).with_context(|| format!("journal line {line:?}"))).collect()
}

/// Whether the detector has begun to watch.
pub fn watches(lines: &[Line]) -> bool {
    watched_times(lines) > 0
}

/// How often the detector has begun to watch: once in each life of a monitor, if the target stays what it is.
pub fn watched_times(lines: &[Line]) -> usize {
    lines.iter().filter(|line| matches!(line.event, Event::Watching { .. })).count()
}

/// Whether a line says that the target is ill, or that something is done about it.
pub fn is_act(line: &Line) -> bool {
    matches!(line.event, Event::Verdict { .. } | Event::Fenced { .. } | Event::Ordered { .. })
}

impl Incident {
    /// The first incident of a journal.
    pub fn of(lines: &[Line]) -> Self {
        let mut incident = Self::default();
        for line in lines {
            incident.take(line);
        }
        incident
    }

    fn take(&mut self, line: &Line) {
        let at = line.mono_ns;
        match &line.event {
            Event::LastSign { known: true } => _ = self.last_sign_ns.get_or_insert(at),
            Event::Verdict { .. } => _ = self.verdict_ns.get_or_insert(at),
            Event::Fenced { asked_ns, .. } => _ = self.fence_ns.get_or_insert((*asked_ns, at)),
            Event::Ordered { .. } => self.ordered_ns = Some(at),
            Event::Evacuated { spare, report, .. } => {
                self.spare.get_or_insert_with(|| spare.clone());
                self.report.get_or_insert_with(|| (at, report.clone()));
            }
            Event::FenceFailed { why } => self.trouble.push(format!("the fence failed: {why}")),
            Event::Passed { spare, why } => self.trouble.push(format!("{spare} did not take over: {why}")),
            Event::OutcomeUnknown { spare, why } => self.trouble.push(format!("{spare} did not answer: {why}")),
            Event::Undecided { illness, why } => self.trouble.push(format!("{illness} undecided: {why}")),
            _ => {}
        }
    }

    /// Whether it has come to an end, good or bad.
    pub fn is_over(&self) -> bool {
        self.report.is_some()
    }

    /// From the last sign of life to the verdict, in milliseconds.
    pub fn detect_ms(&self) -> Option<f64> {
        Some(millis_between(self.last_sign_ns?, self.verdict_ns?))
    }

    /// The fence, from request to answer, in milliseconds.
    pub fn fence_ms(&self) -> Option<f64> {
        self.fence_ns.map(|(asked, stood)| millis_between(asked, stood))
    }

    /// A stage of the spare's report, in milliseconds.
    pub fn stage_ms(&self, name: &str) -> Option<f64> {
        let (_, report) = self.report.as_ref()?;
        let stage = report.stages.iter().find(|stage| stage.name == name)?;
        Some(stage.end_us.saturating_sub(stage.begin_us) as f64 / 1e3)
    }

    /// From the order to the end of the spare's last stage, in milliseconds.
    pub fn reinstate_ms(&self) -> Option<f64> {
        let (_, report) = self.report.as_ref()?;
        report.stages.iter().map(|stage| stage.end_us as f64 / 1e3).reduce(f64::max)
    }

    /// From the verdict to the end of the spare's last stage, in milliseconds: fence and order included.
    pub fn verdict_to_live_ms(&self) -> Option<f64> {
        Some(millis_between(self.verdict_ns?, self.ordered_ns?) + self.reinstate_ms()?)
    }

    /// Sessions the spare could not resume, with its reasons.
    pub fn lost(&self) -> Vec<String> {
        let sessions = self.report.iter().flat_map(|(_, report)| &report.sessions);
        let lost = sessions.filter_map(|session| match &session.outcome {
            Outcome::Resumed => None,
            Outcome::Lost { why } => Some(format!("the spare lost {}: {why}", session.peer)),
        });
        lost.collect()
    }

    /// Bytes that were put back, of all sessions.
    pub fn bytes_carried(&self) -> u64 {
        let sessions = self.report.iter().flat_map(|(_, report)| &report.sessions);
        sessions.map(|session| session.bytes).sum()
    }

    /// Sessions that live on.
    pub fn resumed(&self) -> usize {
        let sessions = self.report.iter().flat_map(|(_, report)| &report.sessions);
        sessions.filter(|session| session.outcome == Outcome::Resumed).count()
    }

    /// The stages for the drawing, in milliseconds since `zero_ns`.
    pub fn stages(&self, zero_ns: u64) -> Vec<Stage> {
        let stage = |name: &str, begin_ns: u64, end_ns: u64| Stage {
            name: name.to_owned(),
            begin_ms: millis_between(zero_ns, begin_ns),
            end_ms: millis_between(zero_ns, end_ns),
        };
        let mut stages = Vec::new();
        if let Some(verdict) = self.verdict_ns {
            stages.push(stage("detect", self.last_sign_ns.unwrap_or(zero_ns), verdict));
        }
        if let Some((asked, stood)) = self.fence_ns {
            stages.push(stage("fence", asked, stood));
        }
        if let (Some(ordered), Some((_, report))) = (self.ordered_ns, &self.report) {
            stages.extend(
                report
                    .stages
                    .iter()
                    .map(|part| stage(&part.name, ordered + part.begin_us * 1000, ordered + part.end_us * 1000)),
            );
        }
        stages
    }
}

/// Signed, because a clock of events may put either first.
pub(super) fn millis_between(from_ns: u64, to_ns: u64) -> f64 {
    (to_ns as f64 - from_ns as f64) / 1e6
}

#[cfg(test)]
mod tests {
    use control::backdoor::FenceToken;

    use super::*;

    fn line(ms: u64, event: Event) -> Line {
        Line { wall_ns: 0, mono_ns: ms * 1_000_000, target: "guest".into(), event }
    }

    fn journal() -> Vec<Line> {
        let stage = |name: &str, begin_us, end_us| control::reinstate::Stage { name: name.into(), begin_us, end_us };
        let token = FenceToken { target: "guest".into(), epoch: 2, ram_key: 7, secret: 9 };
        let report =
            Report { stages: vec![stage("extract", 0, 2_000), stage("resume", 2_000, 5_500)], ..Report::default() };
        let (illness, rule) = ("hang".into(), "tick.cpu*".into());
        let verdict = Event::Verdict { illness, rule, raised_ns: 1_058_900_000, symptoms: Vec::new(), watched: 1 };
        vec![
            line(1000, Event::LastSign { known: true }),
            line(1059, verdict),
            line(1060, Event::Fenced { token, asked_ns: 1_059_000_000 }),
            line(1061, Event::Ordered { spare: "spare".into(), silent_ms: 61 }),
            line(1067, Event::Evacuated { spare: "spare".into(), resumed: 0, lost: 0, report }),
        ]
    }

    #[test]
    fn a_journal_that_grows_is_read_once_and_a_line_when_it_is_whole() {
        let path = std::env::temp_dir().join(format!("followed-{}.jsonl", std::process::id()));
        let lines: Vec<String> = journal().iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        assert!(Followed::from_now(&path).is_err(), "there is none");
        fs::write(&path, &lines[0]).unwrap();
        let mut followed = Followed::from_now(&path).unwrap();
        let (begun, rest) = lines[2].split_at(20);
        fs::write(&path, lines[..2].concat() + begun).unwrap();
        assert_eq!(followed.grown().unwrap(), Some(&journal()[1..2]));
        assert_eq!(followed.grown().unwrap(), None);
        fs::write(&path, lines[..2].concat() + begun + rest).unwrap();
        assert_eq!(followed.grown().unwrap(), Some(&journal()[1..3]));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_incident_is_measured_from_its_journal() {
        let incident = Incident::of(&journal());
        assert!(incident.is_over());
        assert_eq!(incident.spare.as_deref(), Some("spare"));
        assert_eq!(incident.fence_ms(), Some(1.0));
        assert_eq!(incident.stage_ms("extract"), Some(2.0));
        assert_eq!(incident.reinstate_ms(), Some(5.5));
        assert_eq!(incident.verdict_to_live_ms(), Some(2.0 + 5.5));
        let stages = incident.stages(1_000_000_000);
        assert_eq!(stages.last(), Some(&Stage { name: "resume".into(), begin_ms: 63.0, end_ms: 66.5 }));
    }

    #[test]
    fn a_line_still_being_written_is_left_for_later() {
        let file = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        let whole = serde_json::to_string(&journal()[0]).unwrap();
        fs::write(&file, format!("{whole}\n{}", &whole[..20])).unwrap();
        let lines = read(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!(lines.unwrap(), journal()[..1]);
    }
}
