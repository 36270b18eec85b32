//! What processes have, read out of a guest's RAM, against what its own /proc says: users, memory, threads, limits,
//! generations, namespaces, cgroups. Then kernel variables by name against the same. Slow.
//!
//! The programs must have been built (`make test` does).

mod ram;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use introspect::Kernel;
use introspect::linux::contain::{self, Means, Request};
use introspect::linux::task::{self, Detail};
use introspect::linux::variable::{self, Place, Variable};
use introspect::linux::{kill, ucounts};
use ram::Ram;
use remote_memory::RemoteKey;
use remote_memory::trace::Trace;
use testbed::guest::{self, ImageSpec};
use testbed::vm::{SWAP_DRIVER, Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Names a folder for recordings of the machines, as `introspect/tests/images` has them.
const RECORD_VARIABLE: &str = "BACKDOORS_RECORD_PROCESSES";

/// Few and many processes, between which the number of rounds must not change.
const FEW: usize = 10;
const MANY: usize = 1000;

/// Two processes of one user, one of another that holds ten megabytes; a server with threads whose effective user is
/// another one; two in nested pid namespaces; a limit; cgroups.
const SCENE: &str = r#"
set -e
for user in 1001 1002 1003 1004; do echo u$user:x:$user:$user::/:/bin/sh; done >/etc/passwd
mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/hogs/of-memory
for group in . hogs; do echo +pids >/sys/fs/cgroup/$group/cgroup.subtree_control; done
mkdir /sys/fs/cgroup/hogs/of-users /sys/fs/cgroup/mixed && echo 40 >/sys/fs/cgroup/hogs/of-users/pids.max
cp /bin/file-server /tmp/server && chown 1003 /tmp/server && chmod 4755 /tmp/server
run() { su u$1 -c "$2" >/dev/null 2>&1 & }
run 1001 'exec sleep 99991'
echo $! >/sys/fs/cgroup/hogs/of-users/cgroup.procs
run 1001 'ulimit -u 77; exec sleep 99992'
run 1002 'x=$(head -c 10000000 /dev/zero | tr \\0 x); sleep 99993; echo $x'
echo $! >/sys/fs/cgroup/mixed/cgroup.procs
run 1004 'exec /tmp/server --quiet --listen 127.0.0.1:7000 --root /tmp'
echo $! >/sys/fs/cgroup/mixed/cgroup.procs
unshare -p -f sleep 99994 >/dev/null 2>&1 &
unshare -p -f unshare -p -f sleep 99995 >/dev/null 2>&1 &
sleep 99996 >/dev/null 2>&1 &
echo $! >/sys/fs/cgroup/hogs/of-memory/cgroup.procs
"#;

/// Everything of /proc that is compared, each line behind the name of its file.
const TRUTH: &str = r"
grep -H -E '^(Name|State|Pid|PPid|Uid|Threads|NSpid):' /proc/[0-9]*/status 2>/dev/null
grep -H -E '^Max processes' /proc/[0-9]*/limits 2>/dev/null
grep -H '' /proc/[0-9]*/cgroup 2>/dev/null
grep -H -E '^(Rss|Swap):' /proc/[0-9]*/smaps_rollup 2>/dev/null
true
";

/// A process of ten megabytes in a cgroup of its own, most of which the kernel is then told to swap out.
const SWAPPED: &str = r#"
set -e
echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir /sys/fs/cgroup/swapped
(echo 0 >/sys/fs/cgroup/swapped/cgroup.procs
exec su u1002 -c 'x=$(head -c 10000000 /dev/zero | tr \\0 x); sleep 99997; echo $x') >/dev/null 2>&1 &
until ps -o args | grep -q '^sleep 99997'; do sleep 0.1; done
cd /sys/fs/cgroup/swapped
# What is in use at the moment is left for the next try.
until [ "$(cat memory.swap.current)" -gt 6000000 ]; do echo 2M >memory.reclaim || sleep 0.1; done 2>/dev/null
"#;

/// What the guest swaps to, in MiB.
const SWAP_MIB: u64 = 64;

/// What /proc says of one process: the lines of its files, by what they begin with.
#[derive(Debug, Default)]
struct Said(BTreeMap<String, String>);

impl Said {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn numbers(&self, key: &str) -> Vec<u64> {
        self.text(key).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    fn number(&self, key: &str) -> u64 {
        self.numbers(key)[0]
    }
}

fn truth(vm: &mut Vm) -> BTreeMap<u32, Said> {
    let mut all: BTreeMap<u32, Said> = BTreeMap::new();
    for line in vm.run_within("sh /etc/truth", BOUND).unwrap().text().lines() {
        let (file, line) = line.split_once(':').unwrap();
        let mut parts = file.split('/').skip(2);
        let (pid, file) = (parts.next().unwrap().parse().unwrap(), parts.next().unwrap());
        let (key, value) = match file {
            "cgroup" => ("cgroup", line.strip_prefix("0::").unwrap_or_default()),
            "limits" => ("limits", line.strip_prefix("Max processes").unwrap()),
            _ => line.split_once(':').unwrap(),
        };
        all.entry(pid).or_default().0.insert(key.to_owned(), value.trim().to_owned());
    }
    all
}

struct Guest {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
}

impl Guest {
    fn boot(line: &str) -> Self {
        let server = Path::new(env!("CARGO_BIN_EXE_testbed")).with_file_name("file-server");
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("file-server", &server);
        let image =
            image.module(SWAP_DRIVER).text("/etc/swapped", SWAPPED).text("/etc/scene", SCENE).text("/etc/truth", TRUTH);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("processes", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.memory_mib = 512;
        let swap = folder.join(format!("swap-{line}-{}", std::process::id()));
        File::create(&swap).unwrap().set_len(SWAP_MIB << 20).unwrap();
        spec.swap = Some(swap.clone());
        let mut vm = Vm::start(spec).unwrap();
        // It is held open, and ends with the machine.
        std::fs::remove_file(swap).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let mut ram = Ram::of(&vm);
        let kernel = ram.kernel();
        Self { vm, ram, kernel }
    }

    fn run(&mut self, command: &str) -> String {
        let output = self.vm.run_within(command, BOUND).unwrap();
        assert_eq!(output.status, 0, "{command}: {}", output.text());
        output.text()
    }

    fn until(&mut self, what: &str, command: &str, expected: &str) {
        let deadline = Instant::now() + BOUND;
        while self.vm.run(command).unwrap().text().trim() != expected {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.vm.run(command).unwrap().text());
        }
    }

    /// Starts so many processes more, and waits until all of them are what they are going to be.
    fn sleepers(&mut self, more: usize, all: usize) {
        self.run(&format!("for i in $(seq {more}); do sleep 88888 >/dev/null 2>&1 & done"));
        self.until("sleepers", "ps -o args | grep -c '^sleep 88888'", &all.to_string());
    }

    /// What `look` finds while the machine stands still.
    fn stopped<T>(&mut self, look: impl FnOnce(&Kernel, &mut Ram) -> T) -> T {
        self.vm.qmp().stop().unwrap();
        let found = look(&self.kernel, &mut self.ram);
        self.vm.qmp().cont().unwrap();
        found
    }

    /// Keeps what /proc says, then the pages that walks touch and the kernel's description.
    fn record(&mut self, prefix: &Path) {
        let said = self.vm.run_within("sh /etc/truth", BOUND).unwrap().text();
        let image = self.stopped(|kernel, ram| {
            let mut trace = Trace::new(ram);
            task::details(kernel, &mut trace, KEY).unwrap();
            ucounts::walk(kernel, &mut trace, KEY).unwrap();
            let (tasks, _) = task::walk(kernel, &mut trace, KEY).unwrap();
            let all: Vec<u32> = tasks.iter().map(|task| task.tgid).collect();
            kill::plan(kernel, &mut trace, KEY, &tasks, &all).unwrap();
            let means = [Means::Nproc, Means::Pids, Means::Oom].into();
            let request = Request { processes: all.into_iter().collect(), means, ..Request::default() };
            contain::plan(kernel, &mut trace, KEY, &tasks, &request).unwrap();
            trace.into_image().unwrap()
        });
        let path = |suffix: &str| PathBuf::from(format!("{}.{suffix}", prefix.display()));
        std::fs::write(path("truth.txt"), said + "\n").unwrap();
        image.save(File::create(path("image")).unwrap()).unwrap();
        serde_json::to_writer_pretty(File::create(path("kernel.json")).unwrap(), &self.kernel).unwrap();
    }

    /// All tasks, and the rounds that it took.
    fn details(&mut self) -> (Vec<Detail>, usize) {
        self.stopped(|kernel, ram| {
            let mut trace = Trace::new(ram);
            let (details, damage) = task::details(kernel, &mut trace, KEY).unwrap();
            assert!(damage.is_empty(), "{damage:?}");
            (details, trace.rounds())
        })
    }
}

/// Every field of every process that both saw: those that asked have ended by then.
fn compare(details: &[Detail], truth: &BTreeMap<u32, Said>) {
    let leaders: BTreeMap<u32, &Detail> =
        details.iter().filter(|one| one.task.pid == one.task.tgid).map(|one| (one.task.pid, one)).collect();
    let mut compared = 0;
    for (pid, said) in truth {
        let Some(found) = leaders.get(pid).filter(|found| said.text("Name").starts_with(found.task.comm.as_str()))
        else {
            assert!(["grep", "sh"].contains(&said.text("Name")), "{pid} {said:?} was not found");
            continue;
        };
        compared += 1;
        let uids = said.numbers("Uid");
        assert_eq!((found.task.uid, found.euid), (Some(uids[0] as u32), Some(uids[1] as u32)), "{found:?} {said:?}");
        assert_eq!(u64::from(found.task.parent), said.number("PPid"), "{found:?} {said:?}");
        assert_eq!(found.threads.map(u64::from), Some(said.number("Threads")), "{found:?} {said:?}");
        let threads = details.iter().filter(|one| one.task.tgid == *pid).count();
        assert_eq!(found.threads.map(|threads| threads as usize), Some(threads), "{found:?}");
        let numbers = said.numbers("NSpid");
        let namespace = found.namespace.unwrap();
        assert_eq!(
            (namespace.level as usize, namespace.pid.map(u64::from)),
            (numbers.len() - 1, numbers.last().copied())
        );
        let limit = |at: usize| match said.text("limits").split_whitespace().nth(at).unwrap() {
            "unlimited" => u64::MAX,
            number => number.parse().unwrap(),
        };
        let limits = found.processes_max.unwrap();
        assert_eq!((limits.soft, limits.hard), (limit(0), limit(1)), "{found:?} {said:?}");
        assert_eq!(found.cgroup.as_deref(), Some(said.text("cgroup")), "{found:?}");
        // Others may have had something to do since they were asked.
        if found.task.comm == "sleep" {
            assert!(said.text("State").starts_with('S') && found.task.state & 0x7f == 1, "{found:?} {said:?}");
        }
        assert_eq!(found.depth, Some(generations(*pid, truth)), "{found:?}");
        // A kernel thread has no memory of its own, and so nothing to roll up.
        let rolled = said.numbers("Rss").first().map(|kib| kib / 4);
        match (found.rss.map(|rss| rss.pages()), rolled) {
            // The pages of the vdso count there, and not in the kernel's counters.
            (Some(pages), Some(rolled)) => assert!(pages.abs_diff(rolled) <= 4, "{pages} of {rolled} pages: {found:?}"),
            (None, None) => {}
            other => panic!("{other:?}: {found:?} {said:?}"),
        }
        let swapped = said.numbers("Swap").first().map_or(0, |kib| kib / 4);
        assert_eq!(found.rss.map_or(0, |rss| rss.swap_entries), swapped, "{found:?} {said:?}");
    }
    assert!(compared > 50, "{compared} processes were compared");
}

/// Parents up to the idle task, whom no process is.
fn generations(pid: u32, truth: &BTreeMap<u32, Said>) -> u32 {
    match truth[&pid].number("PPid") {
        0 => 1,
        parent => 1 + generations(parent as u32, truth),
    }
}

/// The processes of [`SCENE`] are among those compared, with what was given to them.
fn scene_is_there(details: &[Detail]) {
    let of = |uid: u32| details.iter().filter(|one| one.task.uid == Some(uid)).collect::<Vec<_>>();
    assert_eq!(of(1001).len(), 2);
    assert!(of(1001).iter().any(|one| one.processes_max.is_some_and(|limit| (limit.soft, limit.hard) == (77, 77))));
    assert!(of(1002).iter().any(|one| one.rss.is_some_and(|rss| rss.anon_pages >= 10_000_000 / 4096)));
    let server = of(1004);
    assert!(server.len() > 1 && server.iter().all(|one| one.euid == Some(1003)), "{server:?}");
    assert!(server.iter().all(|one| (one.mm, one.signal, one.rss) == (server[0].mm, server[0].signal, server[0].rss)));
    let levels = |level: u32| details.iter().filter(|one| one.namespace.is_some_and(|it| it.level == level)).count();
    assert_eq!((levels(1), levels(2)), (2, 1));
    let grouped = details.iter().filter(|one| one.cgroup.as_deref() == Some("/hogs/of-memory"));
    assert_eq!(grouped.map(|one| one.task.comm.as_str()).collect::<Vec<_>>(), ["sleep"]);
}

/// What was swapped out is told of the process whose it is.
fn swapped_out_pages_are_counted(guest: &mut Guest) {
    guest.run("sh /etc/swapped");
    let said = truth(&mut guest.vm);
    let (details, _) = guest.details();
    compare(&details, &said);
    let most = details.iter().max_by_key(|one| one.rss.map(|rss| rss.swap_entries)).unwrap();
    let swapped = most.rss.map_or(0, |rss| rss.swap_entries);
    assert!(most.task.uid == Some(1002) && swapped > 1000, "{most:?}");
}

/// The kernel's own count of each user's processes is that of the tasks found.
fn users_are_counted(guest: &mut Guest) {
    let (users, details) = guest.stopped(|kernel, ram| {
        let (users, damage) = ucounts::walk(kernel, ram, KEY).unwrap();
        assert!(damage.is_empty(), "{damage:?}");
        (users, task::details(kernel, ram, KEY).unwrap().0)
    });
    for uid in [1001, 1002, 1004] {
        let mut expected = details.iter().filter(|one| one.task.uid == Some(uid));
        let user = users.iter().find(|user| user.uid == uid && user.is_initial).unwrap();
        assert!(expected.clone().all(|one| one.ucounts == Some(user.address)), "{user:?}");
        assert_eq!(user.processes, expected.by_ref().count() as u64, "{user:?}");
    }
    let root = users.iter().find(|user| user.uid == 0 && user.is_initial).unwrap();
    let tasks = details.iter().filter(|one| one.task.uid == Some(0)).count() as u64;
    // The idle task of each processor has no pid.
    assert!((tasks..=tasks + 3).contains(&root.processes), "{root:?}, {tasks} tasks");
}

/// What /proc says of the machine as a whole.
#[derive(Debug)]
struct Whole {
    threads: i128,
    forks: i128,
    switches: i128,
    oom_kills: i128,
    pages_free: i128,
    pages_total: i128,
}

fn whole(guest: &mut Guest) -> Whole {
    let mut number = |command: &str| guest.run(command).trim().parse::<i128>().unwrap();
    Whole {
        threads: number("cut -d/ -f2 /proc/loadavg | cut -d' ' -f1"),
        forks: number("awk '/^processes/ { print $2 }' /proc/stat"),
        switches: number("awk '/^ctxt/ { print $2 }' /proc/stat"),
        oom_kills: number("awk '/^oom_kill / { print $2 }' /proc/vmstat"),
        pages_free: number("awk '/^nr_free_pages / { print $2 }' /proc/vmstat"),
        pages_total: number("awk '/^MemTotal/ { print $2 / 4 }' /proc/meminfo"),
    }
}

/// The sum over the places of each variable, and how many there are.
fn sums(kernel: &Kernel, ram: &mut Ram, texts: &[&str]) -> Vec<(i128, usize)> {
    let found = variable::resolve(kernel, ram, KEY, texts).unwrap();
    let found = found.into_iter().map(|variable| variable.unwrap_or_else(|error| panic!("{error}")));
    let mut sum = |variable: Variable| {
        let mut bytes = vec![0; variable.bytes.into()];
        let mut one = |place: &Place| {
            ram.0.read_exact_at(&mut bytes, place.at.raw()).unwrap();
            variable.value(&bytes)
        };
        (variable.places.iter().map(&mut one).sum(), variable.places.len())
    };
    found.map(&mut sum).collect()
}

/// Counters lie between what /proc said before and after, levels near it.
fn variables_are_those_of_proc(guest: &mut Guest) {
    guest.run("(x=$(head -c 20000000 /dev/zero | tr \\\\0 x); sleep 99999; echo $x) >/dev/null 2>&1 &");
    guest.until("a large process", "ps -o args | grep -c '^sleep 99999'", "1");
    guest.run("echo f >/proc/sysrq-trigger");
    guest.until("the OOM killer has killed", "awk '/^oom_kill / { print $2 }' /proc/vmstat", "1");
    let before = whole(guest);
    let texts = [
        "nr_threads",
        "total_forks",
        "runqueues.nr_switches",
        "vm_event_states.event[OOM_KILL]",
        "vm_zone_stat[NR_FREE_PAGES]",
        "_totalram_pages",
        "init_task.signal->rlim[6].rlim_max",
        "(struct task_struct)init_task.pid",
        "tick_cpu_sched.idle_expires",
    ];
    let found = guest.stopped(|kernel, ram| sums(kernel, ram, &texts));
    let after = whole(guest);
    let said = format!("{found:?} of {texts:?}, before {before:?}, after {after:?}");
    let near = |at: usize, expected: i128, by: i128| assert!((found[at].0 - expected).abs() <= by, "{at}: {said}");
    let between = |at: usize, from: i128, to: i128| assert!((from..=to).contains(&found[at].0), "{at}: {said}");
    near(0, before.threads, 20);
    between(1, before.forks, after.forks);
    between(2, before.switches, after.switches);
    assert_eq!(found[3].0, before.oom_kills, "{said}");
    near(4, before.pages_free, 4096);
    assert_eq!(found[5].0, before.pages_total, "{said}");
    assert!(found[6].0 > 0 && found[7].0 == 0, "{said}");
    let cpus = found.iter().map(|(_, places)| *places).collect::<Vec<_>>();
    assert_eq!(cpus, [1, 1, 2, 2, 1, 1, 1, 1, 2], "{said}");
}

/// Without it no counter of a processor that is idle means anything.
fn whether_the_tick_stopped_can_be_seen(guest: &mut Guest) {
    let texts = ["tick_cpu_sched.tick_stopped", "tick_cpu_sched.flags"];
    let found = variable::resolve(&guest.kernel, &mut guest.ram, KEY, &texts).unwrap();
    let [known]: [&Variable; 1] = found.iter().flatten().collect::<Vec<_>>().try_into().expect("one of both");
    assert_eq!((known.places.len(), known.bits.is_some()), (2, known.text == texts[0]), "{known:?}");
}

/// What does not resolve is named, with what comes near.
fn misspelt_variables_are_told(guest: &mut Guest) {
    let mut check = |text: &str, expected: &[&str]| {
        let found = variable::resolve(&guest.kernel, &mut guest.ram, KEY, &[text]).unwrap().remove(0);
        let said = found.unwrap_err().to_string();
        assert!(expected.iter().all(|word| said.contains(word)), "{text}: {said}");
    };
    check("nr_treads", &["no variable nr_treads", "near it: nr_threads"]);
    check("runqueues.nr_switchs", &["runqueues has no member nr_switchs", "near it: nr_switches"]);
    check("vm_event_states.event[OOM_KIL]", &["no enumerator OOM_KIL", "OOM_KILL"]);
    check("vm_event_states.event[99999]", &["vm_event_states.event has", "none is 99999"]);
    check("runqueues", &["runqueues is no number"]);
    check("nr_threads.counter", &["nr_threads has no member counter"]);
    check("init_task.signal.rlim", &["init_task.signal is a pointer", "`->rlim`"]);
    check("(struct task_strct)init_task.pid", &["no type struct task_strct", "near it: task_struct"]);
    check("saved_command_line", &["the type of saved_command_line is not known", "(unsigned long)"]);
    check("schedule", &["no variable schedule"]);
}

fn check(line: &str) {
    let mut guest = Guest::boot(line);
    guest.run("sh /etc/scene");
    guest.until("the scene is set", "ps -o args | grep -c -E '^(sleep 9999[1-6]|/tmp/server)'", "7");
    let said = truth(&mut guest.vm);
    let (details, _) = guest.details();
    compare(&details, &said);
    scene_is_there(&details);
    users_are_counted(&mut guest);
    if let Some(folder) = std::env::var_os(RECORD_VARIABLE) {
        guest.record(&Path::new(&folder).join(format!("linux-{line}-processes")));
    }

    guest.sleepers(FEW, FEW);
    let (few, rounds_of_few) = guest.details();
    guest.sleepers(MANY, FEW + MANY);
    let (many, rounds_of_many) = guest.details();
    compare(&many, &truth(&mut guest.vm));
    println!("{line}: {} tasks in {rounds_of_few} rounds, {} in {rounds_of_many}", few.len(), many.len());
    assert!(many.len() >= few.len() + MANY - 5, "{} and {} tasks", few.len(), many.len());
    // Counters of memory that are kept per CPU come to lie in vmalloc when there are many: one walk of its page tables,
    // whatever their number.
    let more = rounds_of_many - rounds_of_few;
    assert!([0, usize::from(guest.kernel.paging_levels())].contains(&more), "{rounds_of_few}, then {rounds_of_many}");
    guest.sleepers(MANY / 2, FEW + MANY + MANY / 2);
    assert_eq!(guest.details().1, rounds_of_many);
    swapped_out_pages_are_counted(&mut guest);
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
fn on_each_line(check: impl Fn(&str)) {
    // Machines are emulated: two at once starve each other.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = guest::Kernel::lines().unwrap();
    assert!(lines.iter().any(|line| line == "6.1"), "{lines:?}: run scripts/setup");
    lines.iter().for_each(|line| check(line));
}

#[test]
fn what_processes_have_is_what_proc_says_and_rounds_do_not_grow_with_their_number() {
    on_each_line(check);
}

#[test]
fn kernel_variables_have_the_values_of_proc() {
    on_each_line(|line| {
        let mut guest = Guest::boot(line);
        variables_are_those_of_proc(&mut guest);
        whether_the_tick_stopped_can_be_seen(&mut guest);
    });
}

#[test]
fn what_does_not_resolve_is_named_with_what_comes_near() {
    on_each_line(|line| misspelt_variables_are_told(&mut Guest::boot(line)));
}
