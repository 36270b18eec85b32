//! The process table in real guests, against what /proc of the same guest says: who is there, of whom, by whom, since
//! when, with how much memory; that the dead leave it, and that a table which is too small says so. Slow.

mod port;
mod ram;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use control::agent::Registration;
use port::BackdoorEnd;
use proctable::layout::PROCESSES;
use proctable::{Record, Table};
use ram::Ram;
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::Vm;

const PAGE: u64 = 4096;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

const USER: u32 = 1000;

/// What /proc says of a process.
#[derive(Clone, Debug)]
struct Told {
    comm: String,
    parent: u32,
    uid: u32,
    start_ticks: u64,
    rss_pages: u64,
}

struct Patient {
    vm: Vm,
    ram: Ram,
    backdoor: BackdoorEnd,
    region: Registration,
}

impl Patient {
    fn boot(line: &str) -> Self {
        let image =
            ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("target-agent", &port::agent_program());
        let image = image.service(Service {
            name: "agent".into(),
            command: "/bin/target-agent --pool-slots 64 --processes $(cat /tmp/processes 2>/dev/null || echo 4096)"
                .into(),
            ready_path: Some("/run/backdoors/box.sock".into()),
        });
        let mut vm = port::boot("process-table", &image, 2);
        let backdoor = BackdoorEnd::of(&vm);
        let region = backdoor.registration(PROCESSES);
        assert!(!region.writable);
        let ram = Ram::of(&vm);
        vm.run(&format!("echo 'u{USER}:x:{USER}:{USER}::/tmp:/bin/sh' >> /etc/passwd")).unwrap();
        Self { vm, ram, backdoor, region }
    }

    /// The table as one look brings it; what was being written at that moment is looked at again.
    fn table(&self) -> Table {
        let mut bytes = vec![0; self.region.len as usize];
        for (page, into) in self.region.pages.iter().zip(bytes.chunks_mut(PAGE as usize)) {
            self.ram.0.read_exact_at(into, page * PAGE).unwrap();
        }
        let mut table = Table::parse(&bytes).unwrap();
        for _ in 0..100 {
            let record = |index: &usize| {
                let (at, mut bytes) = (Table::offset(*index), [0; 64]);
                let page = self.region.pages[(at / PAGE) as usize];
                self.ram.0.read_exact_at(&mut bytes, page * PAGE + at % PAGE).unwrap();
                bytes
            };
            let again: Vec<_> = table.torn.iter().map(record).collect();
            table.mend(&again);
        }
        assert!(table.torn.is_empty(), "records stay torn: {:?}", table.torn);
        table
    }

    /// /proc of the guest, by process id.
    fn told(&mut self) -> BTreeMap<u32, Told> {
        let script = "for p in /proc/[0-9]*; do read -r s <$p/stat 2>/dev/null || continue; \
                      u=$(grep ^Uid: $p/status 2>/dev/null) || continue; echo \"$s|$u\"; done";
        let text = self.vm.run_within(script, BOUND).unwrap().text();
        text.lines().filter_map(told).collect()
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < BOUND, "{what}: {:?}", self.table());
            thread::sleep(Duration::from_millis(50));
        }
        println!("{what}: {:?}", begin.elapsed());
    }

    fn named(&self, uid: u32, comm: &str) -> Vec<Record> {
        self.table().processes.into_iter().filter(|one| one.uid == uid && one.comm == comm && !one.is_exiting).collect()
    }
}

/// A line of `PID (COMM) STATE PPID … |Uid: REAL …`. Source: proc_pid_stat(5).
fn told(line: &str) -> Option<(u32, Told)> {
    let (stat, uid) = line.rsplit_once('|')?;
    let (pid, rest) = stat.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let uid = uid.split_whitespace().nth(1)?.parse().ok()?;
    let (parent, start_ticks) = (fields[1].parse().ok()?, fields[19].parse().ok()?);
    let rss_pages = fields[21].parse().ok()?;
    Some((pid.parse().ok()?, Told { comm: comm.to_owned(), parent, uid, start_ticks, rss_pages }))
}

/// The table twice, and /proc in between.
struct Look {
    before: BTreeMap<u32, Record>,
    told: BTreeMap<u32, Told>,
    after: BTreeMap<u32, Record>,
}

impl Look {
    fn at(patient: &mut Patient) -> Self {
        let by_id = |table: Table| table.processes.into_iter().map(|one| (one.pid, one)).collect();
        let before = by_id(patient.table());
        let told = patient.told();
        Self { before, told, after: by_id(patient.table()) }
    }

    /// Whoever is in both looks of the table has to be in /proc between them.
    fn lasting(&self) -> impl Iterator<Item = (&Record, &Told)> {
        let lasts = |one: &Record| self.after.get(&one.pid).is_some_and(|now| now.start_ns == one.start_ns);
        self.before.values().filter(move |one| lasts(one) && !one.is_exiting).map(|one| {
            let said = self.told.get(&one.pid).unwrap_or_else(|| panic!("the table has {one:?}, and /proc has not"));
            (one, said)
        })
    }
}

/// Threads of the kernel have longer names in /proc, with what they work at.
fn is_named(one: &Record, said: &Told) -> bool {
    one.comm == said.comm || one.is_kernel && said.comm.starts_with(&one.comm[..one.comm.len().min(7)])
}

/// Whoever is in both looks of the table, before and after, is in /proc between them, and the other way round. The name
/// of a thread of the kernel may be behind by a round of the agent's: it is born with its maker's, and sleeps.
fn the_table_says_what_proc_says(patient: &mut Patient) {
    let mut look = Look::at(patient);
    patient.until("threads of the kernel have names of their own", |patient| {
        let have = look.lasting().all(|(one, said)| !one.is_kernel || is_named(one, said));
        if !have {
            look = Look::at(patient);
        }
        have
    });
    let mut compared = 0;
    for (one, said) in look.lasting() {
        let is_it = is_named(one, said) && (one.parent, one.uid) == (said.parent, said.uid);
        assert!(is_it, "{one:?}, /proc says {said:?}");
        // A start in the clock that counts time asleep, and a machine that never slept; in hundredths of a second.
        assert!((one.start_ns / 10_000_000).abs_diff(said.start_ticks) <= 1, "{one:?}, /proc says {said:?}");
        // What threads or processors have not yet added: 64 pages each, of three kinds.
        let slack = 3 * 64 * 2 + said.rss_pages / 20;
        assert!(one.rss_pages.abs_diff(said.rss_pages) <= slack, "{one:?}, /proc says {said:?}");
        let depth = std::iter::successors(Some(one.pid), |pid| look.told.get(pid).map(|one| one.parent));
        let depth = depth.take_while(|pid| *pid != 0).count() as u32 - 1;
        assert_eq!(one.depth, Some(depth), "{one:?}");
        compared += 1;
    }
    for (pid, said) in &look.told {
        let lasts = look.before.contains_key(pid) || look.after.contains_key(pid);
        let is_young = look.told.values().map(|one| one.start_ticks).max() < Some(said.start_ticks + 500);
        assert!(lasts || is_young, "/proc has {pid} {said:?}, and the table has not");
    }
    assert!(compared >= 30, "{compared} processes were compared");
    println!("{compared} processes are as /proc says");
}

/// Memory is counted of whoever runs, and of sleepers once a second; user, name and parent follow.
fn what_changes_is_followed(patient: &mut Patient) {
    let hog = "dd if=/dev/zero of=/dev/null bs=40M count=1 2>/dev/null; exec dd if=/dev/zero of=/dev/null bs=40M";
    patient.vm.run(&format!("su u{USER} -s /bin/sh -c '{hog}' </dev/null >/dev/null 2>&1 &")).unwrap();
    patient.until("a process that runs shows its memory", |patient| {
        patient.named(USER, "dd").iter().any(|one| one.rss_pages > 9000 && one.does == 'R')
    });
    patient
        .vm
        .run(&format!("su u{USER} -s /bin/sh -c '(sleep 9999 &) ; exec sleep 8888' </dev/null >/dev/null 2>&1 &"))
        .unwrap();
    patient.until("an orphan has its new parent", |patient| {
        let sleepers = patient.named(USER, "sleep");
        sleepers.len() == 2 && sleepers.iter().any(|one| one.parent == 1 && one.does == 'S')
    });
    let dd = patient.named(USER, "dd");
    patient.vm.run("killall dd").unwrap();
    patient.until("the dead are gone", |patient| {
        !patient.table().processes.iter().any(|one| one.pid == dd[0].pid && one.start_ns == dd[0].start_ns)
    });
    // Exits before its parent asks for it: it is there, and exiting.
    patient.vm.run("sh -c 'sleep 0.1 & exec sleep 7777' </dev/null >/dev/null 2>&1 &").unwrap();
    patient.until("who is not buried is exiting", |patient| {
        patient.table().processes.iter().any(|one| one.comm == "sleep" && one.is_exiting)
    });
}

/// Thousands that come and go leave nothing behind.
fn the_dead_leave(patient: &mut Patient) {
    let storm = "i=0; while [ $i -lt 400 ]; do (:); (:) & i=$((i+1)); done; wait";
    patient.vm.run_within(&format!("({storm}) & ({storm}); wait"), BOUND).unwrap();
    patient.until("nobody is left of a storm", |patient| {
        let told = patient.told();
        let table = patient.table();
        let young = |one: &&Record| !one.is_kernel && !told.contains_key(&one.pid);
        table.processes.iter().filter(young).count() <= 3
    });
    assert_eq!(patient.table().left_out, 0);
    the_table_says_what_proc_says(patient);
}

/// A table that is too small has as many as it can have, and says that some were left out.
fn a_table_that_is_too_small_says_so(patient: &mut Patient) {
    patient.backdoor.forget();
    let again = "echo 64 >/tmp/processes; rm -r /sys/fs/bpf/backdoors/processes /sys/fs/bpf/backdoors/programs-*; \
                 kill -9 $(pidof target-agent)";
    patient.vm.run(again).unwrap();
    patient.region = patient.backdoor.registration(PROCESSES);
    assert_eq!(patient.region.len, 2 * PAGE);
    patient.vm.run("i=0; while [ $i -lt 60 ]; do sleep 6666 </dev/null >/dev/null 2>&1 & i=$((i+1)); done").unwrap();
    patient.until("some were left out", |patient| patient.table().left_out > 0);
    assert!(patient.table().processes.len() <= 64);
    // Room that becomes free is taken by those who had none.
    patient.vm.run("killall sleep").unwrap();
    let said: u32 = patient.vm.run("pidof target-agent").unwrap().text().trim().parse().unwrap();
    patient.until("who had no room has some", |patient| patient.table().processes.iter().any(|one| one.pid == said));
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn the_table_says_what_proc_says_and_the_dead_leave_it() {
    for line in guest::Kernel::lines().unwrap() {
        println!("kernel {line}");
        let mut patient = Patient::boot(&line);
        patient.until("the agent has been through all", |patient| patient.table().rounds > 0);
        the_table_says_what_proc_says(&mut patient);
        what_changes_is_followed(&mut patient);
        the_dead_leave(&mut patient);
        a_table_that_is_too_small_says_so(&mut patient);
        let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace|sleeping function'";
        assert_eq!(patient.vm.run(complaints).unwrap().text().trim(), "");
    }
}
