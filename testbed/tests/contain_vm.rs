//! Processes of a real kernel, contained by writes into its memory while it stands still: what /proc and cgroups say of
//! it, and what comes of a fork. Nothing of ours runs in the guest. Slow.

mod ram;

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use introspect::Kernel;
use introspect::linux::contain::{self, Contained, Means, Request};
use introspect::linux::kill::Edit;
use introspect::linux::task;
use ram::Ram;
use remote_memory::RemoteKey;
use testbed::guest::{self, ImageSpec};
use testbed::vm::{Vm, VmSpec};

const KEY: RemoteKey = RemoteKey::new(1);

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(60);

/// What `fork` says with EAGAIN, in the words of the guest's shell.
const NO_FORK: &str = "can't fork: Resource temporarily unavailable";

/// A process that waits, and one that starts others until it cannot; what that says goes to a file.
const SCENE: &str = r#"
set -e
for user in 1001 1002 1003; do echo u$user:x:$user:$user::/tmp:/bin/sh; done >>/etc/passwd
mkdir -p /cg && mount -t cgroup2 none /cg && echo +pids >/cg/cgroup.subtree_control
mkdir /cg/own /cg/any /cg/mixed && echo 30 >/cg/own/pids.max
begin() { sh -c "echo \$\$ >/cg/$1/cgroup.procs; exec su u$2 -s /bin/sh -c '$3'" >/dev/null 2>/tmp/said-$1 & }
waits() { begin $1 $2 "exec sleep $3"; }
forks() { begin $1 $2 "while :; do (:); sleep 0.05; done"; }
waits . 1001 7101; waits own 1002 7201; sleep 0.5
forks . 1001; forks own 1002
waits any 1002 7301
waits mixed 1002 7401; waits mixed 1003 7501
"#;

struct Patient {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
}

impl Patient {
    fn boot(line: &str) -> Self {
        let image = ImageSpec::new(guest::Kernel::cached(line).unwrap()).text("/etc/scene", SCENE);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
        let mut spec = VmSpec::new("contain", &image.kernel().vmlinuz, &image.build(&folder).unwrap());
        spec.cpus = 2;
        let mut vm = Vm::start(spec).unwrap();
        vm.wait_ready(BOUND).unwrap();
        let mut ram = Ram::writable(&vm);
        let kernel = ram.kernel();
        Self { vm, ram, kernel }
    }

    fn said(&mut self, command: &str) -> String {
        self.vm.run_within(command, BOUND).unwrap().text().trim().to_owned()
    }

    fn until(&mut self, what: &str, command: &str, is_so: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        loop {
            let said = self.said(command);
            if is_so(&said) {
                return println!("{what}: {:?}", begin.elapsed());
            }
            assert!(begin.elapsed() < BOUND, "{what}: {said:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Contains every process of a user during one standstill.
    fn contain(&mut self, uid: u32, means: &[Means]) -> Vec<Contained> {
        self.vm.qmp().stop().unwrap();
        let (tasks, _) = task::walk(&self.kernel, &mut self.ram, KEY).unwrap();
        let of_user = tasks.iter().filter(|task| task.uid == Some(uid)).map(|task| task.tgid);
        let processes: HashSet<u32> = of_user.collect();
        let request = Request { processes, means: means.iter().copied().collect(), ..Request::default() };
        let (contained, damage) = contain::plan(&self.kernel, &mut self.ram, KEY, &tasks, &request).unwrap();
        assert!(damage.is_empty(), "{damage:?}");
        contained.iter().for_each(|one| self.carry_out(&one.edit));
        self.vm.qmp().cont().unwrap();
        contained
    }

    /// Gives back what was lent, in another standstill; how many limits.
    fn give_back(&mut self, contained: &[Contained]) -> usize {
        self.vm.qmp().stop().unwrap();
        let edits = contain::give_back(&self.kernel, &mut self.ram, KEY, contained).unwrap();
        edits.iter().for_each(|edit| self.carry_out(edit));
        self.vm.qmp().cont().unwrap();
        edits.len()
    }

    fn carry_out(&self, edit: &Edit) {
        let mut there = vec![0; edit.was.len()];
        self.ram.0.read_exact_at(&mut there, edit.at).unwrap();
        assert_eq!((&there[..], edit.now.len()), (&edit.was[..], edit.was.len()), "{}", edit.what);
        self.ram.0.write_all_at(&edit.now, edit.at).unwrap();
    }
}

/// The command that says which process waits for so long.
fn waiting(seconds: u32) -> String {
    format!("ps -o pid,args | awk '$2 == \"sleep\" && $3 == {seconds} {{ print $1 }}'")
}

/// Limits and scores of every process of a user, and of nobody else.
fn check_processes(patient: &mut Patient) {
    let of = |number: u32| format!("cat /proc/$({})", waiting(number));
    let others = format!("{}/limits; {}/oom_score_adj", of(7201), of(7201));
    let before = patient.said(&others);
    let contained = patient.contain(1001, &[Means::Nproc, Means::Oom]);
    assert!(contained.iter().filter(|one| one.measure.means() == Means::Nproc).count() >= 2, "{contained:?}");
    patient.until("a contained process cannot fork", "cat /tmp/said-.", |said| said.contains(NO_FORK));
    let limits = patient.said(&format!("{}/limits | grep '^Max processes'", of(7101)));
    assert_eq!(limits.split_whitespace().collect::<Vec<_>>(), ["Max", "processes", "0", "0", "processes"]);
    assert_eq!(patient.said(&format!("{}/oom_score_adj", of(7101))), "1000");
    assert_eq!(patient.said(&others), before, "nobody else's");
    assert_eq!(
        patient.said("su u1001 -s /bin/sh -c '(:); echo a new one of the same user'"),
        "a new one of the same user"
    );
}

/// Limits of cgroups in which nobody else is, until they are given back.
fn check_cgroups(patient: &mut Patient) {
    let max = "cat /cg/own/pids.max /cg/any/pids.max /cg/mixed/pids.max | xargs";
    assert_eq!(patient.said(max), "30 max max");
    // The moment in which one of them is being made is none: as many must be seen as are counted.
    let begin = Instant::now();
    let mut contained = patient.contain(1002, &[Means::Pids]);
    while contained.len() < 2 {
        assert!(begin.elapsed() < BOUND, "{contained:?}");
        contained.extend(patient.contain(1002, &[Means::Pids]));
    }
    assert_eq!(patient.said(max), "0 0 max", "a stranger is in the third one");
    patient.until("nobody forks in a contained cgroup", "cat /tmp/said-own", |said| said.contains(NO_FORK));
    patient.said(&format!("kill $({})", waiting(7301)));
    patient.until("a cgroup is gone", "rmdir /cg/any 2>/dev/null; ls /cg", |said| !said.contains("any"));
    assert_eq!(patient.give_back(&contained), 1, "the one that is there still");
    assert_eq!(patient.said("cat /cg/own/pids.max /cg/mixed/pids.max | xargs"), "30 max");
    let again = "sh -c 'echo $$ >/cg/own/cgroup.procs; (echo it forks again)'";
    assert_eq!(patient.said(again), "it forks again");
    assert_eq!(patient.give_back(&contained), 0, "it is given back");
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn contained_processes_cannot_fork_and_their_kernel_says_what_was_written() {
    for line in guest::Kernel::lines().unwrap() {
        println!("kernel {line}");
        let mut patient = Patient::boot(&line);
        assert_eq!(patient.said("sh /etc/scene && echo set"), "set");
        patient.until("they have started", "ps -o args | grep -c '^sleep 7.01'", |said| said == "5");
        check_processes(&mut patient);
        check_cgroups(&mut patient);
        let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace'";
        assert_eq!(patient.said(complaints), "");
    }
}
