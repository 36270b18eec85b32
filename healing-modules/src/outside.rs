//! What a monitor and a healing module outside of this tree say to each other: one JSON object per line.
//!
//! ```text
//!   monitor  {"hello": {"version": 1, "target": "web", "settings": {…}, "spare_uids": [0], …}}         once
//!   module   {"hello": {"version": 1, "earlier_ms": 250}}
//!   monitor  {"ask": 7, "standstill": false, "bound_ms": 2000, "now": {…}, "earlier": {…} or null}     again and again
//!   module   {"answer": 7, "healthy": true}
//!        or  {"answer": 7, "plan": {"policy": "TOO_MANY", "proof": "…", "culprits": [[4711, 8423000000], …]}}
//! ```
//! A process is a row of nine, since there may be tens of thousands: `[pid, parent, uid, comm, start_ns, depth,
//! rss_pages, flags, swap_pages]`, `null` where it is not known, flag 1 for a thread of the kernel and 2 for one on its
//! way out. What is added to rows in later builds stands at their end.
//!
//! A module is not trusted. All that it can express is processes of the very look it was asked about, each by its id
//! and the time of its start; what is to be done to them it cannot say, and [`Safety`] holds afterwards as it does for
//! every plan. Nothing here reads or writes: lines go in and come out.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::evidence::{Evidence, Process};
use crate::plan::{Culprit, Plan, Safety};

/// Version of the conversation; a module that speaks another one is not asked.
pub const VERSION: u32 = 1;

/// The longest line that a module may say, in bytes: twice what naming 30 000 processes takes.
pub const LINE_BYTES_MAX: usize = 2 << 20;

/// The longest policy and proof, in bytes. Both go into journals and logs.
const POLICY_BYTES_MAX: usize = 64;
const PROOF_BYTES_MAX: usize = 400;

/// The longest time between two looks that a module may ask for, in milliseconds.
const EARLIER_MS_MAX: u64 = 10_000;

/// How much of an answer is quoted when it is refused.
const QUOTED_CHARACTERS: usize = 80;

const KERNEL_THREAD: u8 = 1;
const EXITING: u8 = 2;

/// Why a module has no opinion.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Its program does not run, or has not said hello yet.
    #[error("its program is not ready: {why}")]
    NotReady {
        /// What became of it.
        why: String,
    },
    /// It thinks for too long.
    #[error("its program has not answered within {0:?}")]
    Late(Duration),
    /// It has ended, or does not listen.
    #[error("its program has ended: {why}")]
    Ended {
        /// What was seen.
        why: String,
    },
    /// What it said is no answer.
    #[error("its program said what is no answer: {what}: {said:?}")]
    Malformed {
        /// What is wrong with it.
        what: String,
        /// Its beginning.
        said: String,
    },
    /// It speaks another version.
    #[error("its program speaks version {0} of the conversation, this monitor {VERSION}")]
    Version(u32),
    /// It names a process that was not shown to it, or may not be judged.
    #[error("its program names process {pid}, started at {start_ns}, which is none of those that may be judged")]
    Unknown {
        /// Process id.
        pid: u32,
        /// When that process started, as the module says.
        start_ns: u64,
    },
}

/// What a module says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// How far apart two looks are that it wants, if it goes by what changed.
    pub earlier: Option<Duration>,
}

#[derive(Serialize)]
struct Hello<'a> {
    version: u32,
    target: &'a str,
    settings: &'a Map<String, Value>,
    spare_uids: &'a [u32],
    spare_comms: &'a [String],
    blast_cap: usize,
}

/// The line that opens the conversation: whom it is about, what the operator has set, and what no plan may touch.
pub fn hello(target: &str, settings: &Map<String, Value>, safety: &Safety) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        hello: Hello<'a>,
    }
    let Safety { spare_uids, spare_comms, blast_cap } = safety;
    let (version, blast_cap) = (VERSION, *blast_cap);
    line(&Line { hello: Hello { version, target, settings, spare_uids, spare_comms, blast_cap } })
}

/// The module's answer to [`hello`].
///
/// # Errors
/// [`Unanswered::Malformed`] or [`Unanswered::Version`].
pub fn introduction(said: &[u8]) -> Result<Introduction, Unanswered> {
    #[derive(Deserialize)]
    struct Said {
        version: u32,
        earlier_ms: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Line {
        hello: Said,
    }
    let Line { hello } = parsed(said)?;
    match hello {
        Said { version, .. } if version != VERSION => Err(Unanswered::Version(version)),
        Said { earlier_ms: Some(ms), .. } if ms == 0 || ms > EARLIER_MS_MAX => {
            Err(malformed(&format!("earlier_ms must be from 1 to {EARLIER_MS_MAX}"), said))
        }
        Said { earlier_ms, .. } => Ok(Introduction { earlier: earlier_ms.map(Duration::from_millis) }),
    }
}

#[derive(Serialize)]
struct Row<'a>(u32, u32, Option<u32>, &'a str, u64, Option<u32>, Option<u64>, u8, Option<u64>);

#[derive(Serialize)]
struct Look<'a> {
    taken_ns: u64,
    pages_total: Option<u64>,
    pages_free: Option<u64>,
    processes: Vec<Row<'a>>,
}

impl<'a> Look<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let Evidence { taken_ns, processes, pages_total, pages_free } = evidence;
        let processes = processes.iter().map(row).collect();
        Self { taken_ns: *taken_ns, pages_total: *pages_total, pages_free: *pages_free, processes }
    }
}

fn row(process: &Process) -> Row<'_> {
    let Process { pid, parent, uid, comm, start_ns, depth, rss_pages, swap_pages, is_kernel, is_exiting } = process;
    let flags = (u8::from(*is_kernel) * KERNEL_THREAD) | (u8::from(*is_exiting) * EXITING);
    Row(*pid, *parent, *uid, comm, *start_ns, *depth, *rss_pages, flags, *swap_pages)
}

/// A question: the target as it is now and, for a module that goes by what changed, as it was. `bound` is how long the
/// answer may take.
pub fn question(number: u64, standstill: bool, bound: Duration, now: &Evidence, earlier: Option<&Evidence>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        ask: u64,
        standstill: bool,
        bound_ms: u64,
        now: Look<'a>,
        earlier: Option<Look<'a>>,
    }
    let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    let (now, earlier) = (Look::of(now), earlier.map(Look::of));
    line(&Line { ask: number, standstill, bound_ms, now, earlier })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    policy: String,
    proof: String,
    culprits: Vec<(u32, u64)>,
}

/// The answer to the question of that number about `now`. Its culprits are looked up there: a module says which, and
/// nothing else about them.
///
/// # Errors
/// [`Unanswered::Malformed`] or [`Unanswered::Unknown`].
pub fn answer(said: &[u8], number: u64, now: &Evidence) -> Result<Option<Plan>, Unanswered> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        answer: u64,
        healthy: Option<bool>,
        plan: Option<Wanted>,
    }
    let line: Line = parsed(said)?;
    if line.answer != number {
        return Err(malformed(&format!("it answers {}, asked was {number}", line.answer), said));
    }
    match line {
        Line { healthy: Some(true), plan: None, .. } => Ok(None),
        Line { healthy: None | Some(false), plan: Some(wanted), .. } => plan(wanted, said, now).map(Some),
        _ => Err(malformed("say either \"healthy\": true or a plan", said)),
    }
}

fn plan(wanted: Wanted, said: &[u8], now: &Evidence) -> Result<Plan, Unanswered> {
    let Wanted { policy, proof, culprits: mut named } = wanted;
    for (text, what, max) in [(&policy, "policy", POLICY_BYTES_MAX), (&proof, "proof", PROOF_BYTES_MAX)] {
        if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
            let what = format!("the {what} must be 1 to {max} bytes long, without control characters");
            return Err(malformed(&what, said));
        }
    }
    if named.is_empty() {
        return Err(malformed("a plan names its culprits", said));
    }
    named.sort_unstable();
    named.dedup();
    let culprits = named.into_iter().map(|(pid, start_ns)| {
        let at = now.processes.binary_search_by_key(&pid, |process| process.pid);
        let process = at.ok().map(|at| &now.processes[at]).filter(|process| process.start_ns == start_ns);
        process.and_then(Culprit::of).ok_or(Unanswered::Unknown { pid, start_ns })
    });
    Ok(Plan { policy, proof, culprits: culprits.collect::<Result<_, _>>()? })
}

/// Whether a plan that such a module made, by what a journal says, is one that it could have made about `now`.
pub fn is_of(plan: &Plan, now: &Evidence) -> bool {
    let is_seen = |culprit: &Culprit| {
        let at = now.processes.binary_search_by_key(&culprit.pid, |process| process.pid);
        at.is_ok_and(|at| Culprit::of(&now.processes[at]).as_ref() == Some(culprit))
    };
    !plan.culprits.is_empty() && plan.culprits.iter().all(is_seen)
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("numbers, text and lists always have a form in JSON");
    bytes.push(b'\n');
    bytes
}

fn parsed<T: serde::de::DeserializeOwned>(said: &[u8]) -> Result<T, Unanswered> {
    serde_json::from_slice(said).map_err(|error| malformed(&error.to_string(), said))
}

fn malformed(what: &str, said: &[u8]) -> Unanswered {
    let said = String::from_utf8_lossy(&said[..said.len().min(4 * QUOTED_CHARACTERS)]);
    Unanswered::Malformed { what: what.to_owned(), said: said.chars().take(QUOTED_CHARACTERS).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::{evidence, process};

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_lines_of_a_monitor_are_these() {
        let settings = serde_json::from_str("{\"limit\": 3}").unwrap();
        assert_eq!(
            text(hello("web", &settings, &Safety::default())),
            "{\"hello\":{\"version\":1,\"target\":\"web\",\"settings\":{\"limit\":3},\"spare_uids\":[0],\
             \"spare_comms\":[],\"blast_cap\":2000}}\n"
        );
        let kernel = Process { is_kernel: true, uid: None, depth: None, rss_pages: None, ..process(2, 0, "kthreadd") };
        let tricky = Process { is_exiting: true, swap_pages: Some(8), ..process(7, 1000, "a\"\n") };
        let mut now = evidence([kernel, tricky]);
        now.pages_free = Some(12);
        assert_eq!(
            text(question(7, true, Duration::from_millis(200), &now, None)),
            "{\"ask\":7,\"standstill\":true,\"bound_ms\":200,\"now\":{\"taken_ns\":5000000000,\"pages_total\":null,\
             \"pages_free\":12,\"processes\":[[2,1,null,\"kthreadd\",2,null,null,1,null],\
             [7,1,1000,\"a\\\"\\n\",7,1,100,2,8]]},\
             \"earlier\":null}\n"
        );
    }

    #[test]
    fn a_module_introduces_itself_in_this_version() {
        let check = |said: &str, expected: Result<Option<u64>, &str>| {
            let found = introduction(said.as_bytes()).map(|it| it.earlier.map(|time| time.as_millis() as u64));
            assert_eq!(
                found.map_err(|error| error.to_string()).as_ref().map_err(String::as_str),
                expected.as_ref().map_err(|expected| *expected),
                "{said}"
            );
        };
        check("{\"hello\":{\"version\":1}}", Ok(None));
        check("{\"hello\":{\"version\":1,\"name\":\"x\",\"earlier_ms\":250}}", Ok(Some(250)));
        check("{\"hello\":{\"version\":2}}", Err("its program speaks version 2 of the conversation, this monitor 1"));
        assert!(introduction(b"{\"hello\":{\"version\":1,\"earlier_ms\":3600000}}").is_err());
        assert!(introduction(b"hello").is_err());
    }

    fn asked(said: &str) -> Result<Option<Plan>, Unanswered> {
        let dying = Process { is_exiting: true, ..process(12, 1000, "z") };
        let kernel = Process { is_kernel: true, ..process(2, 0, "kthreadd") };
        answer(said.as_bytes(), 7, &evidence([process(1, 0, "init"), kernel, process(10, 1000, "a"), dying]))
    }

    fn naming(culprits: &str) -> Result<Option<Plan>, Unanswered> {
        asked(&format!("{{\"answer\":7,\"plan\":{{\"policy\":\"P\",\"proof\":\"too many\",\"culprits\":{culprits}}}}}"))
    }

    #[test]
    fn an_answer_names_processes_of_the_question_and_can_say_nothing_else() {
        assert_eq!(asked("{\"answer\":7,\"healthy\":true}"), Ok(None));
        let plan = naming("[[10,10],[10,10]]").unwrap().unwrap();
        assert_eq!((plan.policy.as_str(), plan.proof.as_str(), plan.culprits.len()), ("P", "too many", 1));
        assert_eq!((plan.culprits[0].uid, plan.culprits[0].comm.as_str()), (1000, "a"), "as it was read, not as said");
        for (pid, start_ns) in [(1, 1), (2, 2), (12, 12), (99, 99), (10, 11)] {
            let unknown = Err(Unanswered::Unknown { pid, start_ns });
            assert_eq!(naming(&format!("[[10,10],[{pid},{start_ns}]]")), unknown);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused_with_what_is_wrong() {
        let long = "x".repeat(401);
        for said in [
            "",
            "{}",
            "kill 1",
            "{\"answer\":7}",
            "{\"answer\":6,\"healthy\":true}",
            "{\"answer\":7,\"healthy\":false}",
            "{\"answer\":7,\"healthy\":true,\"write\":[4096,1]}",
            "{\"answer\":7,\"plan\":{\"policy\":\"P\",\"proof\":\"p\",\"culprits\":[]}}",
            "{\"answer\":7,\"plan\":{\"policy\":\"P\",\"proof\":\"p\",\"culprits\":[[10]]}}",
            "{\"answer\":7,\"plan\":{\"policy\":\"P\",\"proof\":\"p\",\"culprits\":[[-1,10]]}}",
            "{\"answer\":7,\"plan\":{\"policy\":\"P\",\"proof\":\"\\u001b[2J\",\"culprits\":[[10,10]]}}",
            &format!("{{\"answer\":7,\"plan\":{{\"policy\":\"P\",\"proof\":\"{long}\",\"culprits\":[[10,10]]}}}}"),
            &format!("{}1", "[".repeat(100_000)),
        ] {
            assert!(matches!(asked(said), Err(Unanswered::Malformed { .. })), "{:?}", asked(said));
        }
    }

    #[test]
    fn a_plan_out_of_a_journal_is_compared_with_its_evidence() {
        let now = evidence([process(10, 1000, "a")]);
        let culprit = Culprit::of(&process(10, 1000, "a")).unwrap();
        let of = |culprits: Vec<Culprit>| Plan { policy: "P".into(), proof: "p".into(), culprits };
        assert!(is_of(&of(vec![culprit.clone()]), &now));
        assert!(!is_of(&of(vec![Culprit { start_ns: 11, ..culprit.clone() }]), &now));
        assert!(!is_of(&of(vec![Culprit { comm: "b".into(), ..culprit }]), &now));
        assert!(!is_of(&of(Vec::new()), &now));
    }
}
