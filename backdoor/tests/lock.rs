//! Locks of a real QEMU machine: it stands still for the time of a lease and not longer, whoever dies meanwhile.

mod vm;
mod watched;

use std::thread;
use std::time::Duration;

use backdoor::target::TargetError;
use control::backdoor::{Afterwards, FenceState, LEASE_MS_MAX, LockToken};
use rdma::responder::{Memory, Refusal};
use remote_memory::RemoteKey;
use vm::{Folder, Vm, wait_for};
use watched::Watched;

const CLAIM: u64 = 7;

/// Longer than a test takes between two steps, on a machine that is busy.
const LONG_MS: u32 = LEASE_MS_MAX;

/// Runs out while the test waits for it.
const SHORT_MS: u32 = 300;

fn key(token: &LockToken) -> RemoteKey {
    RemoteKey::new(token.inner().ram_key)
}

#[test]
fn a_lock_stops_the_machine_and_nothing_else_and_its_key_alone_writes() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    monitor.wait_for_bios();
    let everybodys = watched.key("ram");
    let (token, _) = watched.target.lock(CLAIM, LONG_MS).unwrap();
    assert!(!monitor.is_running() && monitor.link_is_up());
    assert!(watched.target.is_locked() && !watched.target.is_fenced(), "no spare takes it for a fence");
    let memory = watched.target.memory();
    memory.write(key(&token), 0x10_0000, b"held").unwrap();
    assert_eq!(monitor.memory(0x10_0000, 4), b"held");
    assert_eq!(memory.write(everybodys, 0x10_0000, b"live"), Err(Refusal::Access));
    assert_eq!(watched.target.fence_state(token.inner()), FenceState::Ended);
    assert!(watched.target.regions(Some(token.inner())).is_err());

    let left = watched.target.lock_left().unwrap();
    assert!(left <= Duration::from_millis(LONG_MS.into()), "{left:?}");

    watched.target.unlock(&token).unwrap();
    assert!(monitor.is_running());
    assert_eq!(watched.target.lock_left(), None);
    assert_eq!(memory.write(key(&token), 0x10_0000, b"late"), Err(Refusal::Access));
    assert!(matches!(watched.target.unlock(&token), Err(TargetError::NoSuchLock)));
    memory.read(everybodys, 0x10_0000, &mut [0; 4]).unwrap();
}

#[test]
fn a_machine_whose_lock_s_holder_died_goes_on_by_itself() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    let (token, _) = watched.target.lock(CLAIM, SHORT_MS).unwrap();
    wait_for("the lease to end", || monitor.is_running());
    assert!(!watched.target.is_locked());
    assert_eq!(watched.target.memory().write(key(&token), 0, b"late"), Err(Refusal::Access));
    assert!(matches!(watched.target.unlock(&token), Err(TargetError::NoSuchLock)), "the holder learns of it");
    let (again, _) = watched.target.lock(CLAIM, LONG_MS).unwrap();
    assert_ne!(again, token);
}

#[test]
fn a_lease_begins_anew_for_its_holder_and_nobody_else_gets_the_machine() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    for lease_ms in [0, LEASE_MS_MAX + 1] {
        assert!(matches!(watched.target.lock(CLAIM, lease_ms), Err(TargetError::BadLease { .. })));
    }
    let (token, _) = watched.target.lock(CLAIM, SHORT_MS).unwrap();
    assert_eq!(watched.target.lock(CLAIM, LONG_MS).unwrap().0, token, "a lost answer is not a lost lock");
    thread::sleep(Duration::from_millis(2 * u64::from(SHORT_MS)));
    assert!(!monitor.is_running(), "by the first lease it would run");
    assert!(matches!(watched.target.lock(CLAIM + 1, LONG_MS), Err(TargetError::FencedAlready { .. })));
    assert!(matches!(watched.target.fence(Some(CLAIM + 1)), Err(TargetError::FencedAlready { .. })));
    assert!(matches!(watched.target.fence(None), Err(TargetError::FencedAlready { .. })));
}

#[test]
fn a_lock_becomes_a_fence_without_the_machine_running_in_between() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    monitor.wait_for_bios();
    let (lock, _) = watched.target.lock(CLAIM, SHORT_MS).unwrap();
    let (fence, _) = watched.target.fence(Some(CLAIM)).unwrap();
    assert_eq!(fence, *lock.inner());
    assert!(matches!(watched.target.unlock(&lock), Err(TargetError::NoSuchLock)));
    wait_for("every link to be down", || !monitor.link_is_up());
    thread::sleep(Duration::from_millis(2 * u64::from(SHORT_MS)));
    assert!(!monitor.is_running(), "a fence has no lease");
    assert_eq!(watched.target.fence_state(&fence), FenceState::Stands);
    watched.target.release(&fence, Afterwards::Resume).unwrap();
    assert!(monitor.is_running(), "what the lock stopped is what the release lets run");
}

#[test]
fn a_machine_that_stood_still_before_stands_still_after_a_lock() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    let (token, _) = watched.target.lock(CLAIM, LONG_MS).unwrap();
    watched.target.unlock(&token).unwrap();
    assert!(!monitor.is_running());
}

#[test]
fn somebody_who_lets_a_locked_machine_run_is_overruled() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let (watched, mut monitor) = (Watched::start(&vm), vm.monitor());
    let (token, _) = watched.target.lock(CLAIM, LONG_MS).unwrap();
    monitor.execute("cont");
    wait_for("the machine to be stopped", || !monitor.is_running());
    watched.target.unlock(&token).unwrap();
    assert!(monitor.is_running());
}

#[test]
fn a_lock_ends_also_if_the_daemon_died_meanwhile() {
    let folder = Folder::new();
    let (vm, record) = (Vm::start(&folder, "q35", 64, &[]), folder.join("fence"));
    let watched = Watched::remembering(&vm, Some(record.clone()));
    watched.target.lock(CLAIM, SHORT_MS).unwrap();
    drop(watched); // it lets nothing go
    let mut monitor = vm.monitor();
    assert!(!monitor.is_running());
    let _watched = Watched::remembering(&vm, Some(record.clone()));
    wait_for("the lease to end", || monitor.is_running());
    wait_for("the lock to be forgotten", || !record.exists());
}
