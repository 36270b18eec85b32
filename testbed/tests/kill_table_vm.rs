//! The kill table in real guests: whom an order names is ended by the guest's own kernel, in its own context, and by
//! the agent where it sleeps; whom nobody may end lives on, whatever stands in the table. Seen from where a backdoor
//! sits: the host's end of the agent's port, and raw RAM. Slow.

mod port;
mod ram;

use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use control::agent::Registration;
use introspect::Kernel;
use introspect::linux::task::{self, Task};
use killtable::layout::{ANSWERS, ANSWERS_BYTES, ORDERS, Refusal};
use killtable::{Answers, Mark, Order};
use port::BackdoorEnd;
use ram::Ram;
use remote_memory::RemoteKey;
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::Vm;

const KEY: RemoteKey = RemoteKey::new(1);
const PAGE: u64 = 4096;
const CPUS: u32 = 2;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// An ordinary user, one whom the agent spares, and one that has nothing to do with it.
const USER: u32 = 1000;
const SPARED: u32 = 1001;
const OTHER: u32 = 1002;

const SLEEPERS: usize = 25;
const LEASE_MS: u32 = 30_000;

/// Long enough for ticks, switches and sweeps of a guest to have done what they do.
const A_WHILE: Duration = Duration::from_secs(2);

struct Patient {
    vm: Vm,
    ram: Ram,
    kernel: Kernel,
    orders: Registration,
    answers: Registration,
    _backdoor: BackdoorEnd,
    number: u64,
}

impl Patient {
    fn boot(line: &str) -> Self {
        let image =
            ImageSpec::new(guest::Kernel::cached(line).unwrap()).program("target-agent", &port::agent_program());
        let image = image.service(Service {
            name: "agent".into(),
            command: format!("/bin/target-agent --pool-slots 64 --spare-uid 0 --spare-uid {SPARED}"),
            ready_path: Some("/run/backdoors/box.sock".into()),
        });
        let mut vm = port::boot("kill-table", &image, CPUS);
        let backdoor = BackdoorEnd::of(&vm);
        let (orders, answers) = (backdoor.registration(ORDERS), backdoor.registration(ANSWERS));
        assert_eq!((orders.writable, answers.writable), (true, false));
        let mut ram = Ram::writable(&vm);
        let kernel = ram.kernel();
        for uid in [USER, SPARED, OTHER] {
            vm.run(&format!("echo 'u{uid}:x:{uid}:{uid}::/tmp:/bin/sh' >> /etc/passwd")).unwrap();
        }
        Self { vm, ram, kernel, orders, answers, _backdoor: backdoor, number: 0x1_0000_0001 }
    }

    fn tasks(&mut self) -> Vec<Task> {
        task::walk(&self.kernel, &mut self.ram, KEY).unwrap().0
    }

    fn of_user(&mut self, uid: u32, comm: &str) -> Vec<Task> {
        let is_one = |task: &Task| task.uid == Some(uid) && task.comm == comm && !task.is_exiting();
        self.tasks().into_iter().filter(is_one).collect()
    }

    fn count(&mut self, uid: u32, comm: &str) -> usize {
        self.of_user(uid, comm).len()
    }

    fn spawn(&mut self, uid: u32, command: &str, count: usize) {
        let comm = command.split(' ').next().unwrap();
        let before = self.count(uid, comm);
        // Each through a shell that becomes it: nothing but the processes themselves is the user's.
        let one = format!("su u{uid} -s /bin/sh -c 'exec {command}' </dev/null >/dev/null 2>&1 &");
        self.vm.run(&format!("i=0; while [ $i -lt {count} ]; do {one} i=$((i+1)); done")).unwrap();
        self.until("they have started", |patient| patient.count(uid, comm) >= before + count);
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < BOUND, "{what}: {:?} {:?}", self.answers(), self.tasks());
            thread::sleep(Duration::from_millis(10));
        }
        println!("{what}: {:?}", begin.elapsed());
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let at = offset + index as u64;
            let page = self.orders.pages[(at / PAGE) as usize];
            self.ram.0.write_all_at(&[*byte], page * PAGE + at % PAGE).unwrap();
        }
    }

    /// A word in one piece, as an RDMA WRITE of one does.
    fn put_word(&self, offset: u64, word: [u8; 8]) {
        self.ram.0.write_all_at(&word, self.orders.pages[0] * PAGE + offset).unwrap();
    }

    fn answers(&self) -> Answers {
        let mut bytes = vec![0; ANSWERS_BYTES];
        for (page, into) in self.answers.pages.iter().zip(bytes.chunks_mut(PAGE as usize)) {
            self.ram.0.read_exact_at(into, page * PAGE).unwrap();
        }
        Answers::parse(&bytes).unwrap()
    }

    fn withdraw(&self) {
        let (offset, zero) = Order::withdrawal();
        self.put_word(offset, zero);
    }

    /// Writes an order without the word that makes it one.
    fn prepare(&mut self, marks: &[Mark], most: u32, lease_ms: u32) -> Order {
        self.number += 1;
        let marks: Vec<_> = marks.iter().map(|mark| (*mark, most)).collect();
        let order = Order::new(self.number, self.answers().target, &marks, most, lease_ms).unwrap();
        self.withdraw();
        order.body().iter().for_each(|(offset, bytes)| self.put(*offset, bytes));
        order
    }

    fn commit(&mut self, order: &Order) {
        let (offset, number) = order.commit();
        self.put_word(offset, number);
    }

    /// Gives an order and waits until it is in force.
    fn order(&mut self, marks: &[Mark], most: u32, lease_ms: u32) -> Order {
        let order = self.prepare(marks, most, lease_ms);
        self.commit(&order);
        self.until("the order is in force", |patient| patient.answers().armed == order.number());
        order
    }

    /// The guest does what it did before, and its kernel has nothing to complain of.
    fn is_well(&mut self) {
        assert_eq!(self.vm.run("sleep 0.1; echo well").unwrap().text().trim(), "well");
        let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace|sleeping function'";
        assert_eq!(self.vm.run(complaints).unwrap().text().trim(), "");
    }
}

fn pid_mark(task: &Task) -> Mark {
    Mark::Pid { pid: task.tgid, start_ns: task.start_time_ns }
}

/// What keeps the agent alive, and its sweeping thread before all others, in a machine that drowns.
fn the_agent_is_protected(patient: &mut Patient) {
    let said =
        patient.vm.run("cd /proc/$(pidof target-agent) && cat oom_score_adj && grep VmLck status").unwrap().text();
    let mut words = said.split_whitespace();
    assert_eq!(words.next(), Some("-1000"), "{said}");
    assert!(words.nth(1).is_some_and(|kib| kib != "0"), "{said}");
    // Source: proc_pid_stat(5), the 41st field; 1 is SCHED_FIFO.
    let policy =
        "for t in /proc/$(pidof target-agent)/task/*; do [ $(cat $t/comm) = sweep ] && cut -d' ' -f41 $t/stat; done";
    assert_eq!(patient.vm.run(policy).unwrap().text().trim(), "1");
}

/// Running ones die by the kernel's programs alone, sleepers when the agent can run again.
fn the_kernel_ends_what_runs_and_the_agent_what_sleeps(patient: &mut Patient) {
    patient.spawn(USER, "md5sum /dev/zero", 3);
    patient.spawn(USER, "sleep 9999", SLEEPERS);
    patient.spawn(OTHER, "sleep 9999", 2);
    patient.vm.run("kill -STOP $(pidof target-agent)").unwrap();
    let order = patient.order(&[Mark::Uid { uid: USER }], 1000, LEASE_MS);
    patient.until("those that run are gone, the agent stopped", |patient| patient.count(USER, "md5sum") == 0);
    assert_eq!(patient.count(USER, "sleep"), SLEEPERS, "sleepers do not run, and nobody else ends them");
    patient.vm.run("kill -CONT $(pidof target-agent)").unwrap();
    patient.until("sleepers are gone", |patient| patient.count(USER, "sleep") == 0);
    patient.until("the agent says so", |patient| patient.answers().swept == order.number());
    let (answers, number) = (patient.answers(), order.number());
    assert_eq!((answers.ended(number), answers.ended_asleep(number)), (SLEEPERS as u32 + 3, SLEEPERS as u32));
    assert_eq!(answers.ended_by(order.number(), 0) as usize, SLEEPERS + 3);
    assert_eq!(patient.count(OTHER, "sleep"), 2);
    // While the order stands, nobody of that user lives for long; then anybody does.
    patient.vm.run(&format!("su u{USER} -s /bin/sh -c 'md5sum /dev/zero' </dev/null >/dev/null 2>&1 &")).unwrap();
    patient.until("who comes later is gone", |patient| patient.answers().ended(number) > SLEEPERS as u32 + 3);
    patient.withdraw();
    patient.until("it was withdrawn", |patient| patient.answers().armed == 0);
    patient.spawn(USER, "sleep 9999", 1);
    thread::sleep(A_WHILE);
    assert_eq!(patient.count(USER, "sleep"), 1);
}

/// By id a process is ended only if it started when the order says.
fn an_id_alone_is_not_enough(patient: &mut Patient) {
    patient.spawn(USER, "md5sum /dev/zero", 2);
    let busy = patient.of_user(USER, "md5sum");
    let asleep = patient.of_user(USER, "sleep");
    let others: Vec<_> =
        busy.iter().chain(&asleep).map(|task| Task { start_time_ns: task.start_time_ns + 1, ..task.clone() }).collect();
    let order = patient.order(&others.iter().map(pid_mark).collect::<Vec<_>>(), 100, LEASE_MS);
    thread::sleep(A_WHILE);
    assert_eq!(
        (patient.count(USER, "md5sum"), patient.count(USER, "sleep"), patient.answers().ended(order.number())),
        (2, 1, 0)
    );
    patient.order(&[pid_mark(&busy[0]), pid_mark(&asleep[0])], 100, LEASE_MS);
    patient.until("one of two is gone", |patient| patient.count(USER, "md5sum") == 1);
    patient.until("the sleeper is gone", |patient| patient.count(USER, "sleep") == 0);
    assert_eq!(patient.of_user(USER, "md5sum")[0].tgid, busy[1].tgid);
    // The bound of an order is not passed: two are named, one may be ended.
    patient.spawn(USER, "md5sum /dev/zero", 1);
    let declined = patient.answers().declined;
    let order = patient.order(&[Mark::Uid { uid: USER }], 1, LEASE_MS);
    patient.until("a second one is declined", |patient| patient.answers().declined > declined);
    thread::sleep(A_WHILE);
    assert_eq!((patient.count(USER, "md5sum"), patient.answers().ended(order.number())), (1, 1));
}

/// A child that a condemned process makes before it sees its signal is ended with it, the agent stopped.
fn children_of_the_condemned_are_condemned(patient: &mut Patient) {
    let live = patient.count(OTHER, "sleep");
    // One wait and no more: it goes on to its first child without being switched away from.
    let bomb = "exec 3<>/tmp/go; read go <&3; while :; do sleep 9999 & done";
    patient.vm.run("mkfifo /tmp/go && chmod 666 /tmp/go").unwrap();
    patient.vm.run(&format!("su u{OTHER} -s /bin/sh -c '{bomb}' </dev/null >/dev/null 2>&1 &")).unwrap();
    patient.until("it waits", |patient| patient.count(OTHER, "sh") == 1);
    patient.vm.run("kill -STOP $(pidof target-agent)").unwrap();
    let condemned = patient.of_user(OTHER, "sh");
    let order = patient.order(&[pid_mark(&condemned[0])], 100, LEASE_MS);
    patient.vm.run("echo go >/tmp/go").unwrap();
    patient.until("it is gone", |patient| patient.count(OTHER, "sh") == 0);
    thread::sleep(A_WHILE);
    println!("{} were ended", patient.answers().ended(order.number()));
    assert_eq!(patient.count(OTHER, "sleep"), live);
    patient.vm.run("kill -CONT $(pidof target-agent)").unwrap();
}

/// Whatever an order says: the first process, the kernel's own, the agent, and whom its configuration spares.
fn whom_nobody_may_end_lives_on(patient: &mut Patient) {
    patient.spawn(SPARED, "md5sum /dev/zero", 1);
    patient.spawn(SPARED, "sleep 9999", 1);
    let earlier = patient.tasks();
    thread::sleep(A_WHILE);
    // Those that come and go by themselves prove nothing.
    let is_old = |task: &Task| earlier.iter().any(|old| (old.pid, old.start_time_ns) == (task.pid, task.start_time_ns));
    let before: Vec<Task> = patient.tasks().into_iter().filter(is_old).collect();
    let untouchable = |task: &&Task| task.uid != Some(OTHER) && task.comm != "md5sum" || task.uid == Some(SPARED);
    let leaders: Vec<Task> = before.iter().filter(|task| task.pid == task.tgid).filter(untouchable).cloned().collect();
    assert!(leaders.iter().any(|task| task.pid == 1) && leaders.iter().any(Task::is_kernel_thread));
    assert!(leaders.iter().any(|task| task.comm == "target-agent"));
    let mut marks: Vec<Mark> = leaders.iter().map(pid_mark).collect();
    marks.extend([Mark::Uid { uid: 0 }, Mark::Uid { uid: SPARED }]);
    let declined = patient.answers().declined;
    let order = patient.order(&marks, 1000, LEASE_MS);
    patient.until("somebody was met and not ended", |patient| patient.answers().declined > declined);
    thread::sleep(A_WHILE);
    let after = patient.tasks();
    for task in leaders.iter().filter(|task| !task.comm.starts_with("kworker")) {
        let lives = after.iter().any(|now| (now.pid, now.start_time_ns) == (task.pid, task.start_time_ns));
        assert!(lives, "{task:?}");
    }
    assert_eq!(patient.answers().ended(order.number()), 0);
}

fn a_torn_order_is_none(patient: &mut Patient) {
    let live = patient.count(OTHER, "sleep");
    let first = patient.prepare(&[Mark::Uid { uid: OTHER }], 100, LEASE_MS);
    // The number of an order whose head never arrived.
    patient.number += 1;
    let (offset, _) = first.commit();
    patient.put_word(offset, patient.number.to_le_bytes());
    let refused = (patient.number, Refusal::Header);
    patient.until("it is refused", |patient| patient.answers().refused == Some(refused));
    // For another machine.
    patient.number += 1;
    let target = patient.answers().target ^ 1;
    let foreign = Order::new(patient.number, target, &[(Mark::Uid { uid: OTHER }, 9)], 9, LEASE_MS).unwrap();
    foreign.body().iter().for_each(|(offset, bytes)| patient.put(*offset, bytes));
    patient.commit(&foreign);
    let refused = (foreign.number(), Refusal::OtherTarget);
    patient.until("it is refused, too", |patient| patient.answers().refused == Some(refused));
    // Garbage all over, with a number that changes.
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..20 {
        let garbage: Vec<u8> = (0..PAGE / 8)
            .flat_map(|_| {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                word.to_le_bytes()
            })
            .collect();
        for page in &patient.orders.pages {
            patient.ram.0.write_all_at(&garbage, page * PAGE).unwrap();
        }
        patient.put_word(0, (word | round).to_le_bytes());
        thread::sleep(Duration::from_millis(20));
    }
    patient.withdraw();
    assert_eq!((patient.answers().armed, patient.count(OTHER, "sleep")), (0, live));
}

fn an_order_ends_with_its_lease(patient: &mut Patient) {
    patient.order(&[Mark::Uid { uid: 4321 }], 100, 200);
    patient.until("its lease has ended", |patient| patient.answers().armed == 0);
}

fn a_cgroup_is_ended_as_a_whole(patient: &mut Patient) {
    let live = patient.count(OTHER, "sleep");
    let made = patient.vm.run("mkdir -p /cg; mount -t cgroup2 none /cg; mkdir /cg/bad; ls -di /cg/bad").unwrap().text();
    let inode = made.split_whitespace().next().and_then(|inode| inode.parse().ok());
    let id = inode.unwrap_or_else(|| panic!("no cgroup was made: {made}"));
    patient.spawn(OTHER, "md5sum /dev/zero", 1);
    patient.spawn(OTHER, "sleep 9999", 1);
    let inside: Vec<Task> =
        patient.of_user(OTHER, "md5sum").into_iter().chain(patient.of_user(OTHER, "sleep").pop()).collect();
    for task in &inside {
        patient.vm.run(&format!("echo {} > /cg/bad/cgroup.procs", task.tgid)).unwrap();
    }
    patient.order(&[Mark::Cgroup { id }], 100, LEASE_MS);
    patient.until("the one that runs is gone", |patient| patient.count(OTHER, "md5sum") == 0);
    patient.until("the one that sleeps is gone", |patient| patient.count(OTHER, "sleep") == live);
    patient.withdraw();
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn orders_are_carried_out_by_the_guest_itself_and_nobody_else_is_ended() {
    for line in guest::Kernel::lines().unwrap() {
        println!("kernel {line}");
        let mut patient = Patient::boot(&line);
        the_agent_is_protected(&mut patient);
        the_kernel_ends_what_runs_and_the_agent_what_sleeps(&mut patient);
        an_id_alone_is_not_enough(&mut patient);
        children_of_the_condemned_are_condemned(&mut patient);
        whom_nobody_may_end_lives_on(&mut patient);
        a_torn_order_is_none(&mut patient);
        an_order_ends_with_its_lease(&mut patient);
        a_cgroup_is_ended_as_a_whole(&mut patient);
        patient.is_well();
    }
}
