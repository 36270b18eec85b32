//! The lock of real guests, taken through their RAM as over a link: what a client beside the guest can reach, what
//! leaves it, who of it runs. The client is a network namespace of the same guest, at the other end of a pair of
//! interfaces. Slow.

mod port;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use control::agent::Registration;
use control::backdoor::RegionEntry;
use link::lock::{LockFailure, PATIENCE, Place, RealTime, attain, fence, is_held};
use locktable::layout::{LOCK, LOCKED, Mode};
use locktable::taking::Goal;
use locktable::{Locked, Standing, Unlocked, Verdict};
use port::BackdoorEnd;
use remote_memory::{AccessError, LinkError, Read, RemoteAddr, RemoteRead, RemoteWrite, Rights, Warrant, WriteError};
use testbed::fault::{Fault, build_lockup_module};
use testbed::guest::{self, ImageSpec, Service};
use testbed::vm::Vm;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

const USER: u32 = 1000;
const OTHER: u32 = 1001;
const SERVICE: &str = "10.9.0.1";
const SERVICE6: &str = "fd09::1";
const OWN: &str = "10.8.0.1";

/// The two regions, in the guest's RAM. Nobody else swaps the word, and the target never writes it.
struct Regions {
    ram: File,
    pages: [u64; 2],
}

impl Regions {
    fn at(&self, at: RemoteAddr) -> u64 {
        self.pages[at.key.raw() as usize] * 4096 + at.addr
    }
}

impl RemoteRead for Regions {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let at = self.at(read.at);
            read.outcome = self.ram.read_exact_at(read.into, at).map_err(|_| AccessError::Refused);
        }
        Ok(())
    }
}

impl RemoteWrite for Regions {
    fn write(&mut self, _: Warrant<'_>, _: RemoteAddr, _: &[u8]) -> Result<(), WriteError> {
        panic!("a lock is taken by swaps alone")
    }

    fn compare_swap(&mut self, _: Warrant<'_>, at: RemoteAddr, expect: u64, swap: u64) -> Result<u64, WriteError> {
        let mut was = [0; 8];
        self.ram.read_exact_at(&mut was, self.at(at)).unwrap();
        let was = u64::from_le_bytes(was);
        if was == expect {
            self.ram.write_all_at(&swap.to_le_bytes(), self.at(at)).unwrap();
        }
        Ok(was)
    }

    fn fetch_add(&mut self, _: Warrant<'_>, _: RemoteAddr, _: u64) -> Result<u64, WriteError> {
        panic!("a lock is taken by swaps alone")
    }
}

struct Patient {
    vm: Vm,
    regions: Regions,
    place: Place,
    _backdoor: BackdoorEnd,
}

impl Patient {
    fn boot(line: &str, xdp: &str) -> Self {
        let kernel = guest::Kernel::cached(line).unwrap();
        let lockup = build_lockup_module(&kernel).unwrap();
        let mut image = ImageSpec::new(kernel)
            .program("target-agent", &port::agent_program())
            .program("nip", Path::new("/sbin/ip"))
            .extra_module(&lockup);
        for module in ["veth", "sch_ingress", "cls_bpf"] {
            image = image.module(module);
        }
        // The interfaces first, then the agent that guards one of them.
        let wires = format!(
            "nip netns add c; nip link add v0 type veth peer name v1 netns c; \
             nip addr add {OWN}/24 dev v0; nip addr add {SERVICE}/24 dev v0; \
             nip addr add {SERVICE6}/64 dev v0 nodad; nip link set v0 up; \
             nip -n c addr add 10.8.0.2/24 dev v1; nip -n c addr add 10.9.0.2/24 dev v1; \
             nip -n c addr add fd09::2/64 dev v1 nodad; nip -n c link set v1 up; \
             nip -n c link set lo up"
        );
        let agent = format!(
            "/bin/target-agent --pool-slots 64 --service-address {SERVICE} --service-address {SERVICE6} \
             --service-interface v0 --service-uid {USER} --guard-xdp {xdp}"
        );
        let image = image.text("/etc/wires", &format!("{wires}\n")).service(Service {
            name: "agent".into(),
            command: format!("sh -c '[ -e /sys/class/net/v0 ] || sh /etc/wires; exec {agent}'"),
            ready_path: Some("/run/backdoors/box.sock".into()),
        });
        let mut vm = port::boot("fence", &image, 2);
        let backdoor = BackdoorEnd::of(&vm);
        let (lock, locked) = (backdoor.registration(LOCK), backdoor.registration(LOCKED));
        assert_eq!((lock.writable, locked.writable), (true, false));
        let ram = File::options().read(true).write(true).open(vm.ram_path()).unwrap();
        let place = Place::of(&[entry(&lock, 0), entry(&locked, 1)]).unwrap();
        let regions = Regions { ram, pages: [lock.pages[0], locked.pages[0]] };
        for uid in [USER, OTHER] {
            vm.run(&format!("echo 'u{uid}:x:{uid}:{uid}::/tmp:/bin/sh' >> /etc/passwd")).unwrap();
        }
        vm.run("chmod 1777 /tmp").unwrap();
        Self { vm, regions, place, _backdoor: backdoor }
    }

    fn locked(&mut self) -> Locked {
        self.place.look(&mut self.regions).unwrap().1
    }

    fn by(&mut self, number: u32, goal: Goal) -> Result<Option<Mode>, LockFailure> {
        let outcome = attain(&mut self.regions, &self.place, (number, goal), PATIENCE, &mut RealTime::default());
        outcome.map(|taken| taken.mode)
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < BOUND, "{what}: {:?}", self.locked());
            thread::sleep(Duration::from_millis(20));
        }
        println!("{what}: {:?}", begin.elapsed());
    }

    /// Whether the client gets an answer to a ping of an address.
    fn answers(&mut self, address: &str) -> bool {
        self.vm.run(&format!("nip netns exec c ping -c 1 -W 1 {address} >/dev/null 2>&1; echo $?")).unwrap().text()
            == "0"
    }

    /// Packets that the client's end has received.
    fn heard(&mut self) -> u64 {
        let count = "nip netns exec c cat /sys/class/net/v1/statistics/rx_packets";
        self.vm.run(count).unwrap().text().trim().parse().unwrap()
    }

    /// Has the client send a datagram to the service.
    fn send(&mut self, port: u32) {
        let log = format!("(nip netns exec c syslogd -n -R {SERVICE}:{port} >/dev/null 2>&1 &)");
        self.vm.run(&format!("{log}; sleep 1; logger hello; sleep 1; killall syslogd; sleep 0.5")).unwrap();
    }

    /// Datagrams that the guest has received on ports that nobody listens on.
    fn strangers(&mut self) -> u64 {
        let told = self.vm.run("grep Udp: /proc/net/snmp | tail -n 1 | cut -d' ' -f3").unwrap().text();
        told.trim().parse().unwrap()
    }

    /// What processes of a user do: a letter of /proc for each.
    fn states(&mut self, uid: u32) -> String {
        let each = format!(
            "for p in /proc/[0-9]*; do [ \"$(stat -c %u $p 2>/dev/null)\" = {uid} ] && cut -d' ' -f3 $p/stat; done"
        );
        self.vm.run(&each).unwrap().text().split_whitespace().collect()
    }
}

fn entry(region: &Registration, key: u32) -> RegionEntry {
    let rights = if region.writable { Rights::READ.and(Rights::WRITE).and(Rights::ATOMIC) } else { Rights::READ };
    let (name, len) = (region.name.clone(), region.len);
    RegionEntry { name, key, base: 0, len, rights: rights.bits(), extents: Vec::new() }
}

/// Nothing reaches the service and nothing leaves it; other addresses are as they were, and RoCEv2 passes.
fn a_look_silences_the_service_and_nothing_else(patient: &mut Patient) {
    assert!(patient.answers(SERVICE) && patient.answers(SERVICE6) && patient.answers(OWN));
    for uid in [USER, OTHER] {
        let one = format!("su u{uid} -s /bin/sh -c 'exec md5sum /dev/zero' </dev/null >/dev/null 2>&1 &");
        patient.vm.run(&one).unwrap();
    }
    patient.until("they run", |patient| patient.states(USER) == "R" && patient.states(OTHER) == "R");
    let begin = Instant::now();
    assert_eq!(patient.by(7, Goal::Take(Mode::Look, 30_000)).unwrap(), Some(Mode::Look));
    println!("locked within {:?}", begin.elapsed());
    assert!(!patient.answers(SERVICE) && !patient.answers(SERVICE6) && patient.answers(OWN));
    patient.until("the service is stopped", |patient| patient.states(USER) == "T");
    assert_eq!(patient.states(OTHER), "R");
    let before = patient.locked();
    assert!(before.dropped_in > 0 && before.stopped > 0, "{before:?}");
    // The client has forgotten where the service is: the kernel behind it must not tell.
    patient.vm.run("nip -n c neigh flush all; nip neigh flush all").unwrap();
    assert!(!patient.answers(SERVICE) && !patient.answers(SERVICE6));
    // From the service's address: ping, and what announces it.
    let heard = patient.heard();
    patient
        .vm
        .run(&format!("ping -c 3 -W 1 -I {SERVICE} 10.9.0.2; arping -c 2 -w 3 -U -I v0 {SERVICE}; true"))
        .unwrap();
    let after = patient.locked();
    assert!(after.dropped_out > before.dropped_out, "{after:?}");
    // What the interface says of itself, by its own address, may be among them.
    let left = patient.heard() - heard;
    assert!(left < 3, "{left} packets have left");
    // RoCEv2 to the same address, from a client that knows where it is.
    patient.vm.run("nip -n c neigh replace 10.9.0.1 lladdr $(cat /sys/class/net/v0/address) dev v1").unwrap();
    let (dropped, strangers) = (patient.locked().dropped_in, patient.strangers());
    patient.until("a packet of RoCEv2 has come through", |patient| {
        patient.send(4791);
        patient.strangers() > strangers
    });
    assert_eq!(patient.locked().dropped_in, dropped);
    let strangers = patient.strangers();
    patient.until("another one has not", |patient| {
        patient.send(4792);
        patient.locked().dropped_in > dropped
    });
    assert_eq!(patient.strangers(), strangers);
    assert!(matches!(patient.by(8, Goal::Take(Mode::Look, 100)), Err(LockFailure::Unlocked(Unlocked::Busy { .. }))));
    assert_eq!(patient.by(7, Goal::Release).unwrap(), None);
    patient.until("the service goes on", |patient| patient.states(USER) == "R");
    patient.vm.run("nip -n c neigh flush all").unwrap();
    patient.until("it is reached again", |patient| patient.answers(SERVICE) && patient.answers(SERVICE6));
}

/// A holder that dies: what it took ends with its lease, and processes go on, unless nobody could let them go.
fn a_lease_ends_by_itself(patient: &mut Patient) {
    assert_eq!(patient.by(9, Goal::Take(Mode::Fence, 500)).unwrap(), Some(Mode::Fence));
    let ended = Standing::Free { last: 9, how: Some(Verdict::LeaseEnded) };
    patient.until("its lease has ended", |patient| patient.locked().standing == ended);
    patient.until("the service goes on", |patient| patient.states(USER) == "R" && patient.answers(SERVICE));
    let late = patient.by(9, Goal::Hold);
    assert!(matches!(late, Err(LockFailure::Unlocked(Unlocked::Ended { number: 9, .. }))), "{late:?}");
    patient.vm.run("kill -STOP $(pidof target-agent); sleep 1.5").unwrap();
    assert_eq!(patient.by(10, Goal::Take(Mode::Look, 3000)).unwrap(), Some(Mode::Look));
    assert!(!patient.answers(SERVICE));
    assert_eq!(patient.states(USER), "R", "the agent is stopped: who would let it go?");
    patient.until("it has ended", |patient| matches!(patient.locked().standing, Standing::Free { .. }));
    patient.vm.run("kill -CONT $(pidof target-agent)").unwrap();
}

/// Held without user space; it outlives garbage, and everything but its release. The agent comes back meanwhile.
fn a_held_fence_stays(patient: &mut Patient) {
    patient.vm.run("kill -STOP $(pidof target-agent)").unwrap();
    let begin = Instant::now();
    let token = fence(&mut patient.regions, &patient.place, ("guest", 5), &mut RealTime::default()).unwrap();
    println!("fenced and held within {:?}", begin.elapsed());
    patient.until("the service is stopped", |patient| patient.states(USER) == "T");
    patient.vm.run("kill -KILL $(pidof target-agent)").unwrap();
    let at = patient.regions.pages[0] * 4096;
    patient.regions.ram.write_all_at(&[0xa5; 4096], at).unwrap();
    patient.vm.run("sleep 2").unwrap();
    patient.regions.ram.write_all_at(&[0; 4096], at).unwrap();
    patient.until("the agent is back", |patient| patient.vm.run("pidof target-agent").unwrap().text().len() > 1);
    patient.vm.run("sleep 2").unwrap();
    assert!(is_held(&mut patient.regions, &patient.place, &token).unwrap());
    assert!(!patient.answers(SERVICE) && patient.answers(OWN));
    assert_eq!(patient.states(USER), "T");
    assert_eq!(patient.by(token.epoch as u32, Goal::Release).unwrap(), None);
    patient.until("it is reached again", |patient| patient.answers(SERVICE));
    patient.vm.run("sleep 1").unwrap();
    assert_eq!(patient.states(USER), "T", "what it holds may live elsewhere");
    patient.vm.run("kill -KILL $(pidof md5sum)").unwrap();
}

/// No process gets to run any more, and the word is answered.
fn a_machine_whose_scheduler_is_dead_answers(patient: &mut Patient) {
    Fault::Softlock.inject(&mut patient.vm).unwrap();
    thread::sleep(Duration::from_secs(2));
    let begin = Instant::now();
    let token = fence(&mut patient.regions, &patient.place, ("guest", 6), &mut RealTime::default());
    println!("a soft lock-up was fenced within {:?}: {token:?}", begin.elapsed());
    let token = token.unwrap();
    assert!(is_held(&mut patient.regions, &patient.place, &token).unwrap());
}

/// 6.1 always; the other lines where `scripts/setup --all` has fetched them.
#[test]
fn a_lock_is_taken_answered_and_kept_by_the_guest_s_kernel() {
    for (line, xdp) in guest::Kernel::lines().unwrap().iter().zip(["generic", "native", "off"].iter().cycle()) {
        println!("kernel {line}, XDP {xdp}");
        let mut patient = Patient::boot(line, xdp);
        a_look_silences_the_service_and_nothing_else(&mut patient);
        a_lease_ends_by_itself(&mut patient);
        a_held_fence_stays(&mut patient);
        let complaints = "dmesg | grep -E 'WARNING|BUG|Oops|protection fault|stalls on|Call Trace|sleeping function'";
        assert_eq!(patient.vm.run(complaints).unwrap().text().trim(), "");
        a_machine_whose_scheduler_is_dead_answers(&mut patient);
    }
}
