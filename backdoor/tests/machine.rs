//! A target on a real QEMU machine, without a network: memory where QEMU says it is, fences that hold.

mod vm;
mod watched;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use backdoor::guest_ram::layout::Machine;
use backdoor::target::{Places, Target, TargetError};
use control::agent::Registration;
use control::backdoor::{Afterwards, FenceState, FenceToken};
use rdma::responder::{Memory, Refusal};
use remote_memory::{RemoteKey, Rights};
use vm::{Folder, Vm, wait_for};
use watched::Watched;

fn fenced_key(token: &FenceToken) -> RemoteKey {
    RemoteKey::new(token.ram_key)
}

/// Writes at `addrs` under a fence and compares with what QEMU sees there.
fn check_addresses(machine: &str, mib: u64, known: Option<Machine>, addrs: &[u64], holes: &[u64]) {
    let folder = Folder::new();
    let vm = Vm::start(&folder, machine, mib, &["-S"]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    let (_, regions) = watched.target.regions(None).unwrap();
    if let Some(rule) = known {
        assert_eq!(regions[0].extents, rule.layout(mib << 20).unwrap().extents(), "QEMU's word and the rule differ");
    }
    let token = watched.fence();
    let memory = watched.target.memory();
    for &addr in addrs {
        let bytes = addr.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        memory.write(fenced_key(&token), addr, &bytes).unwrap();
        assert_eq!(monitor.memory(addr, 8), bytes, "{machine} {mib} MiB at {addr:#x}");
        let mut live = [0; 8];
        memory.read(watched.key("ram"), addr, &mut live).unwrap();
        assert_eq!(live, bytes);
    }
    for &addr in holes {
        assert_eq!(memory.check(fenced_key(&token), addr, 8, Rights::READ), Err(Refusal::Access), "{addr:#x}");
    }
}

#[test]
fn memory_is_where_qemu_says_it_is_also_above_the_hole() {
    const GIB: u64 = 1 << 30;
    check_addresses("q35", 64, Some(Machine::Q35), &[0x1000, (64 << 20) - 8], &[(64 << 20) - 7, 64 << 20]);
    check_addresses(
        "q35",
        5120,
        Some(Machine::Q35),
        &[0x1000, 2 * GIB - 8, 4 * GIB, 7 * GIB - 8],
        &[2 * GIB - 4, 2 * GIB, 4 * GIB - 8, 4 * GIB - 1, 7 * GIB - 4, 7 * GIB, u64::MAX - 7],
    );
    check_addresses("pc", 5120, Some(Machine::I440fx), &[3 * GIB - 8, 4 * GIB, 6 * GIB - 8], &[3 * GIB - 4]);
    // A border that no rule knows: only the machine's own word tells it.
    check_addresses("q35,max-ram-below-4g=1G", 2048, None, &[GIB - 8, 4 * GIB, 5 * GIB - 8], &[GIB, 5 * GIB]);
}

#[test]
fn memory_in_a_file_is_found_and_private_memory_is_explained() {
    let folder = Folder::new();
    let path = folder.join("ram");
    let backend = format!("memory-backend-file,share=on,mem-path={}", path.display());
    let vm = Vm::with_memory(&folder, "q35", 64, &backend, &["-S"]);
    let watched = Watched::start(&vm);
    let token = watched.fence();
    watched.target.memory().write(fenced_key(&token), 0x10_0000, b"here").unwrap();
    assert_eq!(vm.monitor().memory(0x10_0000, 4), b"here");
    drop((watched, vm));

    let vm = Vm::with_memory(&folder, "q35", 64, "memory-backend-ram", &["-S"]);
    let target = Target::new("t", Places { qmp: vm.qmp.clone(), ram: None, pid_file: None, record: None }).unwrap();
    let trouble = target.look_for_machine();
    assert!(trouble.contains("share=on"), "{trouble}");
    assert!(matches!(target.fence(None), Err(TargetError::NoMachine)));
}

#[test]
fn of_many_fences_at_once_one_is_given() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let given = thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|claim| {
                scope.spawn({
                    let watched = &watched;
                    move || watched.target.fence(Some(claim)).is_ok()
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).filter(|given| *given).count()
    });
    assert_eq!((given, watched.target.fences()), (1, 1));
}

#[test]
fn no_write_is_under_way_when_a_release_returns() {
    const PLACE: u64 = 0x200_0000;
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    vm.monitor().wait_for_bios();
    let memory = &watched.target.memory();
    for round in 1..=20u8 {
        let token = watched.fence();
        let key = fenced_key(&token);
        let written = &AtomicU64::new(0);
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let fill = |count: u64| vec![round.wrapping_add(count as u8); 1 << 20];
                while memory.write(key, PLACE, &fill(written.load(Ordering::Relaxed))).is_ok() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
            wait_for("the first write", || written.load(Ordering::Relaxed) > 0);
            watched.target.release(&token, Afterwards::Resume).unwrap();
            let now = || {
                let mut bytes = vec![0; 1 << 20];
                memory.read(watched.key("ram"), PLACE, &mut bytes).unwrap();
                bytes
            };
            let at_release = now();
            assert!(at_release.iter().all(|byte| *byte == at_release[0]), "a write was cut in the middle");
            writer.join().unwrap();
            assert!(now() == at_release, "a write came after the release");
        });
    }
}

#[test]
fn a_fence_stops_processors_and_links_until_it_is_released() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    assert!(monitor.is_running() && monitor.link_is_up());

    let (token, took) = watched.target.fence(Some(1)).unwrap();
    assert!(!monitor.is_running() && !monitor.link_is_up());
    println!("the fence took {took:?}");
    assert_eq!(watched.target.fence(Some(1)).unwrap().0, token, "the same claim gets the same fence");
    assert!(matches!(watched.target.fence(Some(2)), Err(TargetError::FencedAlready { .. })));
    assert!(matches!(watched.target.fence(None), Err(TargetError::FencedAlready { .. })));

    let live = watched.key("ram");
    let forged = FenceToken { secret: token.secret ^ 1, ..token.clone() };
    assert!(matches!(watched.target.release(&forged, Afterwards::Resume), Err(TargetError::NoSuchFence)));
    assert!(!monitor.is_running());
    watched.target.release(&token, Afterwards::Resume).unwrap();
    assert!(monitor.is_running());
    wait_for("the link", || monitor.link_is_up());
    for dead in [fenced_key(&token), live] {
        assert_eq!(watched.target.memory().check(dead, 0, 8, Rights::READ), Err(Refusal::Access));
    }
    assert!(matches!(watched.target.release(&token, Afterwards::Resume), Err(TargetError::NoSuchFence)));
    let second = watched.fence();
    assert!(second.epoch > token.epoch && second.ram_key != token.ram_key);
}

#[test]
fn a_fenced_machine_that_somebody_lets_run_is_stopped_again() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    let _token = watched.fence();
    monitor.execute("cont");
    wait_for("the machine to be stopped", || !monitor.is_running());
    assert!(!monitor.link_is_up(), "its link was never up");
}

#[test]
fn a_fenced_machine_that_somebody_gives_its_links_and_lets_run_has_neither() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    let token = watched.fence();
    for _ in 0..3 {
        monitor.set_links(true);
        monitor.execute("cont");
        wait_for("the machine to be stopped", || !monitor.is_running() && !monitor.link_is_up());
    }
    watched.target.release(&token, Afterwards::Resume).unwrap();
    assert!(monitor.is_running());
    wait_for("the link", || monitor.link_is_up());
}

#[test]
fn a_fenced_machine_that_somebody_resets_stays_stopped_under_the_same_fence() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    let hook = Registration { name: "sb".into(), len: 4096, pages: vec![0x2000], writable: false };
    watched.target.register(&hook).unwrap();
    let (token, _) = watched.target.fence(Some(7)).unwrap();
    monitor.execute("system_reset");
    wait_for("the reset to be noticed", || watched.target.regions(Some(&token)).unwrap().1.len() == 1);
    assert!(!monitor.is_running(), "a reset lets nothing run");
    assert_eq!(watched.target.fence(Some(7)).unwrap().0, token, "the fence stands");
    monitor.execute("cont");
    wait_for("the machine to be stopped", || !monitor.is_running());
}

#[test]
fn a_machine_reset_behind_its_fence_runs_with_its_links_down() {
    let folder = Folder::new();
    let (vm, record) = (Vm::start(&folder, "q35", 64, &[]), folder.join("fence"));
    let watched = Watched::remembering(&vm, Some(record.clone()));
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    let claim = Some(7);
    let (token, _) = watched.target.fence(claim).unwrap();
    let memory = watched.target.memory();
    memory.write(fenced_key(&token), 0x10_0000, b"before").unwrap();
    assert_eq!(watched.target.fence_state(&token), FenceState::Stands);
    let stranger = FenceToken { secret: !token.secret, ..token.clone() };
    assert!(matches!(watched.target.reset(&stranger), Err(TargetError::NoSuchFence)));
    assert!(!monitor.is_running(), "nobody but the token's holder resets it");

    watched.target.reset(&token).unwrap();
    assert!(monitor.is_running());
    assert_eq!(watched.target.fence_state(&token), FenceState::Reset);
    assert_eq!(memory.write(fenced_key(&token), 0x10_0000, b"late"), Err(Refusal::Access), "the key died first");
    assert!(matches!(watched.target.fence(claim), Err(TargetError::FencedAlready { .. })), "no fence to act under");
    // It is not stopped as one that somebody let run, and not reset by an order that comes again.
    monitor.wait_for_bios();
    assert!(!monitor.link_is_up());
    let registered = Registration { name: "sb".into(), len: 4096, pages: vec![0x2000], writable: false };
    // QEMU's own word of the reset may come late and take a box along: an agent registers again and again.
    wait_for("its new box to stay", || {
        watched.target.register(&registered).unwrap();
        watched.target.reset(&token).unwrap();
        thread::sleep(std::time::Duration::from_millis(300));
        watched.target.regions(None).unwrap().1.len() == 2
    });
    assert!(monitor.is_running() && !monitor.link_is_up());

    // A daemon that is started anew knows what runs there.
    drop(watched);
    let watched = Watched::remembering(&vm, Some(record));
    assert_eq!(watched.target.fence_state(&token), FenceState::Reset);
    assert!(monitor.is_running() && !monitor.link_is_up());
    watched.target.release(&token, Afterwards::Resume).unwrap();
    assert!(monitor.is_running());
    wait_for("the link", || monitor.link_is_up());
    assert_eq!(watched.target.fence_state(&token), FenceState::Ended);
}

#[test]
fn a_reset_forgets_the_boxes_and_a_fence_writes_no_hooks() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let mut monitor = vm.monitor();
    let hook = Registration { name: "hooks".into(), len: 4096, pages: vec![0x2000], writable: true };
    watched.target.register(&hook).unwrap();
    let (key, memory) = (watched.key("hooks"), watched.target.memory());
    memory.write(key, 16, &7u64.to_le_bytes()).unwrap();
    assert_eq!(memory.fetch_add(key, 16, 1), Ok(7));
    assert_eq!(monitor.memory(0x200_0010, 8), 8u64.to_le_bytes());

    let token = watched.fence();
    assert_eq!(memory.write(key, 16, &[0; 8]), Err(Refusal::Access));
    assert_eq!(memory.compare_swap(fenced_key(&token), 0x200_0010, 8, 9), Ok(8));
    watched.target.release(&token, Afterwards::Reset).unwrap();
    assert!(monitor.is_running());
    let names = || watched.target.regions(None).unwrap().1.len();
    assert_eq!(names(), 1, "ram is all that is left");

    watched.target.register(&hook).unwrap();
    assert_eq!(names(), 2);
    monitor.execute("system_reset");
    wait_for("the reset to be noticed", || names() == 1);
}

#[test]
fn power_off_ends_the_machine_and_gives_its_memory_back() {
    let folder = Folder::new();
    let mut vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    let token = watched.fence();
    watched.target.release(&token, Afterwards::PowerOff).unwrap();
    vm.wait();
    wait_for("the memory to be given back", || !watched.target.has_memory());
    assert!(matches!(watched.target.fence(None), Err(TargetError::NoMachine)));
}

#[test]
fn the_memory_of_a_killed_qemu_can_be_fenced_and_read_and_its_successor_is_stopped() {
    let folder = Folder::new();
    let mut vm = Vm::start(&folder, "q35", 64, &[]);
    let watched = Watched::start(&vm);
    vm.monitor().wait_for_bios();
    vm.monitor().execute("stop"); // the BIOS writes there while it runs
    let before = vm.monitor().save(&folder, 0xf0000, 0x10000);
    vm.kill();
    let token = watched.fence();
    let mut found = vec![0; 0x10000];
    watched.target.memory().read(fenced_key(&token), 0xf0000, &mut found).unwrap();
    assert_eq!(found, before, "the BIOS lies where it lay");

    let incarnation = watched.target.incarnation();
    let successor = Vm::start(&folder, "q35", 64, &[]);
    wait_for("the successor to be found", || watched.target.incarnation() != incarnation);
    assert!(!successor.monitor().is_running(), "a fence outlives QEMU");
    assert_eq!(watched.target.memory().check(fenced_key(&token), 0, 8, Rights::READ), Err(Refusal::Access));
    watched.target.release(&token, Afterwards::Resume).unwrap();
    assert!(successor.monitor().is_running());
}
