//! Through everything: a real QEMU's memory, a daemon, RoCEv2 packets over loopback, a link.

#[path = "vm/daemon.rs"]
mod daemon;
mod vm;

use control::backdoor::{Afterwards, FenceToken, RegionEntry};
use link::{Link, LinkFailure};
use remote_memory::{AccessError, HookWord, Read, RemoteAddr, RemoteKey, RemoteRead, RemoteWrite, Warrant, WriteError};
use vm::{Folder, Vm};

fn ram(link: &mut Link) -> RegionEntry {
    link.region("ram").unwrap()
}

fn at(key: u32, addr: u64) -> RemoteAddr {
    RemoteAddr::new(RemoteKey::new(key), addr)
}

fn read(link: &mut Link, key: u32, addr: u64, len: usize) -> Result<Vec<u8>, AccessError> {
    let mut bytes = vec![0; len];
    link.memory().read_one(at(key, addr), &mut bytes).unwrap().map(|()| bytes)
}

/// Writes whatever our own side thinks of it: the guard has to say no by itself.
fn write(link: &mut Link, key: u32, addr: u64, bytes: &[u8]) -> Result<(), AccessError> {
    let hook = HookWord::registered(at(key, addr), bytes.len());
    match link.memory().write(Warrant::Hook(&hook), at(key, addr), bytes) {
        Ok(()) => Ok(()),
        Err(WriteError::Access(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_memory_of_a_stopped_machine_reads_as_qemu_saves_it() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    vm.monitor().wait_for_bios();
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let token = link.fence("to hold it still").unwrap();
    let ram = ram(&mut link);
    // The first MiB is shadowed by what QEMU saves as the processor sees it: ROMs and VGA. Above it, all is RAM.
    let (start, len) = (1 << 20, ram.len - (1 << 20));
    let expected = vm.monitor().save(&folder, start, len);
    assert!(expected.iter().any(|&byte| byte != 0), "the BIOS leaves its tables near the end");
    let found: Vec<u8> =
        (0..len).step_by(1 << 20).flat_map(|off| read(&mut link, ram.key, start + off, 1 << 20).unwrap()).collect();
    assert!(found == expected, "first difference at {:?}", found.iter().zip(&expected).position(|(a, b)| a != b));
    assert!(link.stats().unwrap().read_bytes >= len);
    link.release(&token, Afterwards::Resume).unwrap();
}

#[test]
fn only_the_token_s_key_writes_and_it_dies_with_the_fence() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let mut monitor = vm.monitor();
    monitor.wait_for_bios();
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let (mut link, mut spare) = (daemon::connect(&daemon), daemon::connect(&daemon));
    let addr = 0x200_0000;
    let live = ram(&mut link).key;
    assert_eq!(write(&mut link, live, addr, b"live"), Err(AccessError::Refused));

    let token = link.fence("test").unwrap();
    println!("fence: the hypervisor took {:?}", link.fence_took());
    assert_eq!(write(&mut spare, live, addr, b"live"), Err(AccessError::Refused));
    let shown = spare.regions(Some(&token)).unwrap();
    assert_eq!((shown[0].key, shown[0].rights), (token.ram_key, 7));
    let forged = FenceToken { secret: token.secret ^ 1, ..token.clone() };
    assert!(matches!(spare.regions(Some(&forged)), Err(LinkFailure::Refused { .. })));
    assert_eq!(link.fence("again").unwrap(), token, "a lost answer is not a lost token");
    assert!(matches!(spare.fence("me too"), Err(LinkFailure::Refused { .. })));

    let fenced = token.fenced();
    let place = at(token.ram_key, addr);
    let pattern: Vec<u8> = (0..10_000u32).map(|n| (n * 7) as u8).collect();
    spare.memory().write(Warrant::Fenced(&fenced), place, &pattern).unwrap();
    assert_eq!(monitor.save(&folder, addr, 10_000), pattern);
    let word = at(token.ram_key, addr + 16_384);
    assert_eq!(spare.memory().compare_swap(Warrant::Fenced(&fenced), word, 0, 41).unwrap(), 0);
    assert_eq!(spare.memory().fetch_add(Warrant::Fenced(&fenced), word, 1).unwrap(), 41);
    assert_eq!(monitor.memory(addr + 16_384, 8), 42u64.to_le_bytes());

    link.release(&token, Afterwards::Resume).unwrap();
    assert!(monitor.is_running());
    assert_eq!(write(&mut spare, token.ram_key, addr, b"late"), Err(AccessError::Refused));
    assert_eq!(read(&mut spare, token.ram_key, addr, 4), Err(AccessError::Refused));
    assert_eq!(read(&mut spare, live, addr, 4), Err(AccessError::Refused), "live keys end with the epoch, too");
    spare.ping().expect("a ping looks the new key up");
}

#[test]
fn a_refused_access_is_counted_and_harms_nobody_else() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let (mut bad, mut good) = (daemon::connect(&daemon), daemon::connect(&daemon));
    let ram = ram(&mut good);
    let before = good.stats().unwrap();
    assert_eq!(before.queue_pairs, 2);
    let refused = [
        (ram.key.wrapping_add(1), 0, 8),
        (0, 0, 8),
        (ram.key, ram.len - 4, 8),
        (ram.key, ram.len, 1),
        (ram.key, u64::MAX - 3, 8),
    ];
    for (key, addr, len) in refused {
        assert_eq!(read(&mut bad, key, addr, len), Err(AccessError::Refused), "{key:#x} {addr:#x} {len}");
        assert!(read(&mut good, ram.key, 0, 4096).is_ok());
    }
    let mut buffers = [[0; 64]; 5];
    let [a, b, c, d, e] = &mut buffers;
    let mut batch = [
        Read::new(at(ram.key, 0), a),
        Read::new(at(ram.key, ram.len), b),
        Read::new(at(ram.key, 4096), c),
        Read::new(at(1, 0), d),
        Read::new(at(ram.key, 8192), e),
    ];
    bad.memory().read(&mut batch).unwrap();
    let outcomes: Vec<bool> = batch.iter().map(|read| read.outcome.is_ok()).collect();
    assert_eq!(outcomes, [true, false, true, false, true], "one bad address of a batch does not cost the others");
    let after = good.stats().unwrap();
    assert!(after.refused >= before.refused + 7, "{after:?}");
    assert_eq!(after.queue_pairs, 2);
    drop(bad);
    vm::wait_for("the end of its queue pair", || good.stats().unwrap().queue_pairs == 1);
}

#[test]
fn a_link_tells_a_restarted_backdoor_and_a_lost_one_apart() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let mut config = daemon::config(&folder, &vm);
    let first = daemon::start(&config);
    config.control_port = first.control().port();
    config.metrics_port = None;
    let mut link = daemon::connect(&first);
    let ram = ram(&mut link);
    let pulse = link.ping().unwrap();
    assert!(pulse.memory < vm::BOUND && pulse.control < vm::BOUND);

    drop(first);
    assert!(link.ping().unwrap_err().is_path());
    let second = daemon::start(&config);
    assert!(matches!(link.ping(), Err(LinkFailure::Restarted)));
    assert_eq!(read(&mut link, ram.key, 0, 8), Err(AccessError::Refused), "keys of before open nothing");
    link.ping().unwrap();
    drop(second);
    assert!(matches!(link.ping(), Err(LinkFailure::Unreachable { .. } | LinkFailure::PathLost { .. })));
}
