//! Our queue pairs on an adapter of Linux: rxe in a guest, or whatever a machine has, see `BACKDOORS_ADAPTER`.

mod inside;
#[allow(dead_code, reason = "nobody plays a backdoor here")]
mod port;

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use testbed::guest::{ImageSpec, Kernel};
use testbed::pair::{DEVICE, RdmaGuest};
use testbed::topology::Topology;

/// The address of an RDMA adapter of this machine: the checks are then made on it and not in a guest.
const ADAPTER: &str = "BACKDOORS_ADAPTER";

/// How long a path may take to be well again: generous, since guests are emulated. What it took is printed.
const RECOVERY: Duration = Duration::from_secs(60);

fn selftest() -> PathBuf {
    port::built(&["-p", "rdma", "--example", "verbs_selftest"], "examples/verbs_selftest")
}

#[test]
fn both_ends_work_on_one_adapter() {
    if let Some(address) = std::env::var_os(ADAPTER) {
        let status = Command::new(selftest()).arg(address).status().unwrap();
        assert!(status.success(), "the adapter of this machine does not do what is needed");
        return;
    }
    if inside::ran("both_ends_work_on_one_adapter") {
        return;
    }
    for line in Kernel::lines().unwrap() {
        let topology = Topology::build().unwrap();
        let image = ImageSpec::new(Kernel::cached(&line).unwrap()).program("verbs_selftest", &selftest());
        let [mut guest] = RdmaGuest::boot(&topology, image, &port::images(), |_| ()).unwrap();
        let address = guest.address();
        let before = guest.resources().unwrap();
        let told = guest.run(&format!("verbs_selftest {address} 2>&1")).unwrap();
        println!("Linux {line}\n{}", told.text());
        assert_eq!(told.status, 0, "{}", told.text());
        assert_eq!(guest.resources().unwrap(), before, "something is left behind");
    }
}

/// A target that serves its memory by its adapter, and somebody who looks at it through another.
struct Watched {
    target: RdmaGuest,
    watcher: RdmaGuest,
}

impl Watched {
    fn start_agent(&mut self) {
        let address = self.target.address();
        let line = format!("target-agent --pool-slots 64 --nic verbs --listen {address} --target web");
        self.target.run(&format!("{line} >>/run/agent.log 2>&1 </dev/null &")).unwrap();
    }

    /// Starts the agent, and waits until it has loaded its programs and answers: after a boot an emulated guest takes
    /// seconds for it.
    fn have_agent(&mut self) {
        let begin = Instant::now();
        self.target.run(": >/run/agent.log").unwrap();
        self.start_agent();
        while !self.agent_log().contains("the agent is up") {
            assert!(begin.elapsed() < RECOVERY, "the agent does not start:\n{}", self.agent_log());
            thread::sleep(Duration::from_millis(20));
        }
        println!("the agent has started in {:?}", begin.elapsed());
    }

    /// Ends the target without a word, as a power failure does, and boots it anew.
    fn reset_target(&mut self) {
        self.target.qmp().execute("system_reset", json!({})).unwrap();
    }

    fn have_target(&mut self) {
        self.target.wait_ready(Duration::from_secs(180)).unwrap();
        self.have_agent();
    }

    fn stop_agent(&mut self) {
        self.target.run("kill -9 $(pidof target-agent)").unwrap();
    }

    fn start_peek(&mut self) {
        let (target, own) = (self.target.address(), self.watcher.address());
        let line = format!("peek {target}:4790 {own} verbs 600");
        self.watcher.run(&format!("{line} >/run/peek 2>&1 </dev/null &")).unwrap();
    }

    fn stop_peek(&mut self) {
        self.watcher.run("kill -9 $(pidof peek)").unwrap();
    }

    /// Waits until the watcher says something that begins so; returns how long that took.
    fn until(&mut self, beginning: &str, bound: Duration) -> Duration {
        let begin = Instant::now();
        loop {
            let said = self.watcher.run("tail -n 1 /run/peek").unwrap().text();
            if said.starts_with(beginning) {
                return begin.elapsed();
            }
            // The target is left alone: it may be booting.
            let mut all = || self.watcher.run("cat /run/peek").unwrap().text();
            assert!(begin.elapsed() < bound, "not {beginning:?} within {bound:?}, but:\n{}", all());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is in use of both adapters.
    fn resources(&mut self) -> [String; 2] {
        [&mut self.target, &mut self.watcher].map(|guest| guest.resources().unwrap())
    }

    fn agent_log(&mut self) -> String {
        self.target.run("cat /run/agent.log").unwrap().text()
    }

    /// `cause` makes the path be lost, and `cure` ends that.
    fn recovers(&mut self, what: &str, cause: impl FnOnce(&mut Self), cure: impl FnOnce(&mut Self)) {
        cause(self);
        let noticed = self.until("lost: ", RECOVERY);
        cure(self);
        let recovered = self.until("moving", RECOVERY);
        println!("{what}: lost is said after {noticed:?}, moving {recovered:?} after the cause is gone");
    }
}

/// Deletes the adapter, which must not have to wait for anybody's process to end; makes it again.
fn unplug(guest: &mut RdmaGuest) {
    let told = guest.run(&format!("timeout 10 rdma link delete {DEVICE} 2>&1")).unwrap();
    assert_eq!(told.status, 0, "the adapter cannot be removed: {}", told.text());
}

fn plug(guest: &mut RdmaGuest) {
    let told = guest.run(&format!("rdma link add {DEVICE} type rxe netdev eth1 2>&1")).unwrap();
    assert_eq!(told.status, 0, "{}", told.text());
}

#[test]
fn a_target_s_own_adapter_shows_its_sensors_and_whatever_ends_the_path_is_recovered_from() {
    const TEST: &str = "a_target_s_own_adapter_shows_its_sensors_and_whatever_ends_the_path_is_recovered_from";
    if inside::ran(TEST) {
        return;
    }
    let agent = port::agent_program();
    let peek = port::built(&["-p", "link", "--example", "peek"], "examples/peek");
    for line in Kernel::lines().unwrap() {
        let topology = Topology::build().unwrap();
        let image = ImageSpec::new(Kernel::cached(&line).unwrap());
        let image = image.program("target-agent", &agent).program("peek", &peek);
        let [target, watcher] = RdmaGuest::boot(&topology, image, &port::images(), |spec| spec.reboots = true).unwrap();
        let mut watched = Watched { target, watcher };
        println!("Linux {line}");
        let before = watched.resources();
        watched.start_agent();
        watched.start_peek();
        watched.until("moving", Duration::from_secs(60));
        let said = watched.watcher.run("cat /run/peek").unwrap().text();
        assert!(said.contains("refused and gone on\n"), "{said}");

        watched.recovers("the target's adapter", |it| unplug(&mut it.target), |it| plug(&mut it.target));
        watched.recovers("the watcher's adapter", |it| unplug(&mut it.watcher), |it| plug(&mut it.watcher));
        watched.recovers("the agent", Watched::stop_agent, Watched::have_agent);
        watched.recovers("the target", Watched::reset_target, Watched::have_target);
        watched.stop_peek();
        watched.start_peek();
        let again = watched.until("moving", RECOVERY);
        println!("the watcher: moving {again:?} after its start");
        watched.stop_agent();
        watched.stop_peek();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(watched.resources(), before, "something is left behind\n{}", watched.agent_log());
    }
}
