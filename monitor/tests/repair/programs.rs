//! Healing modules that are programs of their own: the example of the guide repairs a recorded machine, and programs
//! that are slow, silent, dead or malicious do no harm to anything.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use healing_modules::{Healer, Moment, Process, Unanswered};
use monitor::config::Module;
use monitor::journal::replay::{Again, reconsider};
use monitor::journal::{Event, Line, RepairLine};
use monitor::repair::{Outside, Program};
use nix::sys::signal::kill as signal;
use nix::unistd::Pid;

use super::*;

/// A bound for waiting that only a broken build reaches.
const GENEROUS: Duration = Duration::from_secs(60);

fn python() -> String {
    "/usr/bin/python3".to_owned()
}

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../healing-modules/examples/crowd.py");
    path.to_str().unwrap().to_owned()
}

fn outside(command: Vec<String>, settings: &str) -> Outside {
    Outside { name: "tested".into(), command, user: None, settings: serde_json::from_str(settings).unwrap() }
}

fn program(outside: &Outside, safety: &Safety) -> Program {
    let program = Program::new(outside, "web", safety);
    program.await_ready(GENEROUS).unwrap();
    program
}

/// A module of a few lines: what it does with each line after the hello.
fn module(body: &str) -> Outside {
    greeting("{'version': 1}", body)
}

fn greeting(hello: &str, body: &str) -> Outside {
    let script = format!(
        "import json, os, sys, time\n\
         json.loads(sys.stdin.readline())\n\
         print(json.dumps({{'hello': {hello}}}), flush=True)\n\
         for line in sys.stdin:\n\
         \x20   question = json.loads(line)\n\
         \x20   ask, now = question['ask'], question['now']\n\
         \x20   {body}\n"
    );
    outside(vec![python(), "-c".into(), script], "{}")
}

fn answers(of: &str) -> String {
    format!("print(json.dumps({{'answer': ask, {of}}}), flush=True)")
}

fn process(pid: u32) -> Process {
    Process {
        pid,
        parent: 1,
        uid: Some(1000),
        comm: "worker".into(),
        start_ns: 1_000_000 * u64::from(pid),
        depth: Some(2),
        rss_pages: Some(1234),
        swap_pages: Some(5),
        is_kernel: false,
        is_exiting: false,
    }
}

fn evidence(pids: std::ops::Range<u32>) -> Evidence {
    Evidence { processes: pids.map(process).collect(), ..Evidence::default() }
}

fn ask(program: &Program, moment: Moment, now: &Evidence) -> Result<Option<Plan>, Unanswered> {
    program.consult(moment, now, None, &Safety::default())
}

/// A recorded machine, treated by the example, which allows nobody a process of the hog's name.
fn treated(act: bool) -> (Patient, Outside, Vec<RepairLine>) {
    let settings = format!("{{\"pattern\": \"{}\", \"limit\": 0}}", hog_name());
    let outside = outside(vec![python(), example()], &settings);
    let safety = Safety::default();
    let program = program(&outside, &safety);
    let mut patient = Patient::new(Mishap::None);
    let mut lines = Vec::new();
    // A recording does not die of its marks: one standstill is enough to see.
    let outcome = treat_once(&mut patient, &program, &safety, !act, |operation| {
        lines.push(RepairLine {
            order: None,
            not_by_table: None,
            module: Module::Program(outside.clone()),
            safety: safety.clone(),
            earlier: None,
            evidence: operation.evidence.clone(),
            plan: operation.plan.clone(),
            kill: operation.kill.clone(),
            contain: BTreeSet::new(),
            contained: Vec::new(),
            not_given_back: None,
            wakings: Vec::new(),
            locked_ns: 1,
            survivors: Vec::new(),
        });
    });
    outcome.unwrap();
    (patient, outside, lines)
}

fn treat_once(
    patient: &mut Patient,
    program: &Program,
    safety: &Safety,
    is_dry_run: bool,
    mut note: impl FnMut(&monitor::repair::Operation),
) -> Result<(), RepairError> {
    if is_dry_run {
        let cure = treat(patient, &kernel(), program, safety, Hook::Raw, true, |_| panic!("no repair"))?;
        assert!(matches!(cure, Cure::DryRun(..)), "{cure:?}");
        return Ok(());
    }
    let mut decide = |evidence: &Evidence| ask(program, Moment::Standstill, evidence).unwrap();
    note(&operate(patient, &kernel(), "test", safety, &mut decide)?);
    Ok(())
}

fn hog_name() -> String {
    let mut patient = Patient::new(Mishap::None);
    let found = monitor::repair::look_at(&mut patient, &kernel()).unwrap().evidence;
    let hog = found.judged().find(|process| process.uid == Some(HOG_USER)).unwrap();
    hog.comm.to_string()
}

#[test]
fn the_example_of_the_guide_ends_whom_it_names_on_a_recorded_machine() {
    let (patient, _, lines) = treated(true);
    let plan = lines[0].plan.clone().unwrap();
    assert_eq!((plan.policy.as_str(), patient.unlocked), ("CROWD", 1));
    assert!(plan.culprits.iter().all(|culprit| culprit.comm == hog_name() && culprit.uid == HOG_USER), "{plan:?}");
    assert!(plan.proof.starts_with(&format!("user {HOG_USER} has")), "{}", plan.proof);
    let marks = lines[0].kill.edits.iter().filter(|edit| is_mark(edit)).count();
    assert_eq!((patient.written.len(), marks), (lines[0].kill.edits.len(), 2 * plan.culprits.len()));
    let (patient, ..) = treated(false);
    assert!(patient.written.is_empty(), "a dry run");
}

#[test]
fn a_replay_checks_what_a_program_said_and_asks_it_again_only_if_told_to() {
    let (_, _, mut lines) = treated(true);
    let journal = |line: &RepairLine| {
        let event = Event::Repaired(Box::new(line.clone()));
        let line = Line { wall_ns: 0, mono_ns: 5, target: "web".into(), event };
        // As it comes out of the file.
        vec![serde_json::from_str::<Line>(&serde_json::to_string(&line).unwrap()).unwrap()]
    };
    let again = |line: &RepairLine, run: bool| reconsider(&journal(line), run).remove(0);
    let mut line = lines.remove(0);
    assert_eq!(again(&line, false).again, Again::Checked { is_in_bounds: true });
    let asked = again(&line, true);
    assert!(asked.agrees() && asked.again == Again::Decided(line.plan.clone()), "{asked:?}");

    line.plan.as_mut().unwrap().culprits[0].start_ns += 1;
    assert!(!again(&line, false).agrees() && !again(&line, true).agrees(), "of another process");
    let Module::Program(outside) = &mut line.module else { panic!() };
    outside.command = vec!["/bin/false".into()];
    assert!(matches!(again(&line, true).again, Again::Unanswered { .. }));
}

#[test]
fn what_a_program_names_is_held_to_the_bounds_of_every_plan() {
    let (safety, now) = (Safety::default(), evidence(100..103));
    let naming = |pid: u32, start: u64| {
        answers(&format!("'plan': {{'policy': 'P', 'proof': 'p', 'culprits': [[{pid}, {start}]]}}"))
    };
    let good = program(&module(&naming(101, 101_000_000)), &safety);
    assert_eq!(ask(&good, Moment::Running, &now).unwrap().unwrap().culprits[0].comm, "worker");
    // The first process, one of the kernel's, one that is not there, one that has the number of another.
    let mut now = evidence(1..103);
    now.processes[1].is_kernel = true;
    for (pid, start_ns) in [(1, 1_000_000), (2, 2_000_000), (4711, 1), (100, 7)] {
        let bad = program(&module(&naming(pid, start_ns)), &safety);
        assert_eq!(ask(&bad, Moment::Running, &now), Err(Unanswered::Unknown { pid, start_ns }));
        assert!(matches!(ask(&bad, Moment::Running, &now), Err(Unanswered::NotReady { .. })), "and it is ended");
    }
    let root_s = |process: &mut Process| process.uid = Some(0);
    now.processes.iter_mut().skip(2).for_each(root_s);
    let plan = ask(&program(&module(&naming(101, 101_000_000)), &safety), Moment::Running, &now).unwrap().unwrap();
    assert!(matches!(safety.check(&plan, &now), Err(Unsafe::Spared { pid: 101, .. })));
}

#[test]
fn a_program_that_is_slow_holds_nobody_for_longer_than_its_bound() {
    let slow = module(&format!("time.sleep(3600); {}", answers("'healthy': True")));
    let program = program(&slow, &Safety::default());
    let begin = Instant::now();
    let outcome = ask(&program, Moment::Standstill, &evidence(100..103));
    assert_eq!(outcome, Err(Unanswered::Late(Duration::from_millis(200))));
    // The bound, and what a busy machine needs to get round to it: far from the hour that the module would take.
    assert!(begin.elapsed() < GENEROUS, "{:?}", begin.elapsed());
}

/// In a treatment: the target is let go, nothing is written, and it is told.
#[test]
fn a_program_that_fails_in_the_standstill_is_told_and_the_target_goes_on() {
    let fails = "print(json.dumps({'answer': ask, 'plan': {'policy': 'P', 'proof': 'p', 'culprits': \
                 [p[0:5:4] for p in now['processes'] if p[2] == 1002 and p[7] == 0]}}), flush=True) \
                 if not question['standstill'] else sys.exit(3)";
    let program = program(&module(fails), &Safety::default());
    let mut patient = Patient::new(Mishap::None);
    let outcome =
        treat(&mut patient, &kernel(), &program, &Safety::default(), Hook::Raw, false, |_| panic!("no repair"));
    let Err(RepairError::Unanswered(Unanswered::Ended { why })) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("output") || why.contains("exit status: 3"), "{why}");
    assert_eq!((patient.written.len(), patient.unlocked, patient.is_locked), (0, 1, false));
}

#[test]
fn a_program_that_goes_by_what_changed_is_shown_both_looks() {
    let compares = "then = question['earlier']; \
                    hogs = [p[0:5:4] for p in now['processes'] if p[2] == 1002 and not p[7]]; \
                    is_later = then['processes'] == now['processes'] and then['taken_ns'] + 3e6 < now['taken_ns']; \
                    plan = {'policy': 'LATER', 'proof': 'both looks are here', 'culprits': hogs}; \
                    said = {'plan': plan} if is_later else {'healthy': True}; \
                    print(json.dumps({'answer': ask, **said}), flush=True)";
    let program = program(&greeting("{'version': 1, 'earlier_ms': 3}", compares), &Safety::default());
    let mut patient = Patient::new(Mishap::LockRefused);
    let cure =
        treat(&mut patient, &kernel(), &program, &Safety::default(), Hook::Raw, true, |_| panic!("no repair")).unwrap();
    assert!(matches!(&cure, Cure::DryRun(plan, _) if plan.policy == "LATER"), "{cure:?}");
}

#[test]
fn garbage_floods_and_silence_end_the_program_and_it_is_started_again() {
    let flood = "[sys.stdout.write('x' * 65536) for _ in range(10 ** 9)]";
    let murmur =
        format!("[sys.stderr.write('x' * 99 + '\\n') for _ in range(10 ** 4)]; {}", answers("'healthy': True"));
    for (body, expected) in [
        ("print('kill everything', flush=True)", "is no answer"),
        ("print('\\0' * 99, flush=True)", "is no answer"),
        (flood, "longer than"),
        ("os.kill(os.getpid(), 9)", "has ended"),
        ("os.close(1); time.sleep(3600)", "has ended"),
        (&answers("'healthy': True, 'write': [4096, 7]"), "unknown field `write`"),
        (&format!("{0}; {0}", answers("'healthy': True")), ""),
        (&murmur, ""),
    ] {
        let program = program(&module(body), &Safety::default());
        let (now, first) = (evidence(100..103), program.pid());
        let outcome = ask(&program, Moment::Running, &now);
        if expected.is_empty() {
            assert_eq!(outcome, Ok(None), "{body}");
            continue;
        }
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(expected), "{body}: {error}");
        assert!(matches!(ask(&program, Moment::Running, &now), Err(Unanswered::NotReady { why }) if why == error));
        program.await_ready(GENEROUS).unwrap();
        assert_ne!(program.pid(), first, "{body}");
    }
}

#[test]
fn an_answer_too_many_is_not_taken_for_that_of_the_next_question() {
    let twice = program(&module(&format!("{0}; {0}", answers("'healthy': True"))), &Safety::default());
    assert_eq!(ask(&twice, Moment::Running, &evidence(100..103)), Ok(None));
    let outcome = ask(&twice, Moment::Running, &evidence(100..103));
    assert!(matches!(&outcome, Err(Unanswered::Malformed { what, .. }) if what.contains("asked was 2")), "{outcome:?}");
}

#[test]
fn a_program_that_cannot_be_started_says_nothing_or_speaks_otherwise_is_never_ready() {
    let saying = |line: &str| outside(vec!["/bin/sh".into(), "-c".into(), format!("{line}; sleep 3600")], "{}");
    for (outside, expected) in [
        (outside(vec!["/nonexistent/module".into()], "{}"), "it has"),
        (outside(vec!["/bin/false".into()], "{}"), "it has"),
        (saying("echo '{\"hello\":{\"version\":9}}'"), "speaks version 9"),
        (saying("echo hello"), "is no answer"),
    ] {
        let program = Program::new(&outside, "web", &Safety::default());
        let said = || program.await_ready(Duration::ZERO).map_err(|error| error.to_string());
        let begin = Instant::now();
        while !said().is_err_and(|error| error.contains(expected) && !error.contains("not been started")) {
            assert!(begin.elapsed() < GENEROUS, "{:?}: {:?}", outside.command, said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An orphan may stay a zombie until the system's first process gets round to it.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn is_there(pid: u32) -> bool {
    signal(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

/// Also what it has started itself, if it has not gone its own ways.
#[test]
fn a_program_ends_with_its_module_and_leaves_no_zombie() {
    static RUN: AtomicUsize = AtomicUsize::new(0);
    let file = format!("module-{}-{}", std::process::id(), RUN.fetch_add(1, Ordering::Relaxed));
    let file: PathBuf = std::env::temp_dir().join(file);
    let mut script = String::new();
    let _ = write!(script, "sleep 3600 & echo $! > {}; ", file.display());
    script.push_str("echo '{\"hello\":{\"version\":1}}'; exec 0<&-; sleep 3600");
    let program = program(&outside(vec!["/bin/sh".into(), "-c".into(), script], "{}"), &Safety::default());
    let pid = program.pid().unwrap();
    let grandchild: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(is_there(pid) && lives(grandchild));
    drop(program);
    assert!(!is_there(pid), "it is there, if only as a zombie");
    let begin = Instant::now();
    while lives(grandchild) {
        assert!(begin.elapsed() < GENEROUS, "what it started lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tens of thousands of processes, asked twice since a pipe may hold the first whole: how long it takes is printed.
#[test]
fn a_crowd_of_thirty_thousand_is_shown_and_named() {
    let settings = "{\"pattern\": \"worker\", \"limit\": 10}";
    let safety = Safety { blast_cap: 40_000, ..Safety::default() };
    let program = program(&outside(vec![python(), example()], settings), &safety);
    for count in [1500, 30_000, 30_000] {
        let now = evidence(100..100 + count);
        let begin = Instant::now();
        let bytes = healing_modules::outside::question(1, true, Duration::ZERO, &now, None).len();
        let encoded = begin.elapsed();
        let plan = ask(&program, Moment::Running, &now).unwrap().unwrap();
        println!(
            "{count} processes: {bytes} bytes, encoded in {encoded:?}, answered in {:?}",
            begin.elapsed() - encoded
        );
        assert_eq!(plan.culprits.len(), count as usize - 10);
    }
}
