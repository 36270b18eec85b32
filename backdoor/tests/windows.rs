//! Many small stretches through a window, over real packets: the same bytes as one by one, the same refusals.

#[path = "vm/daemon.rs"]
mod daemon;
mod vm;

use control::backdoor::Afterwards;
use link::Link;
use remote_memory::{
    AccessError, Gather, Member, Queue, Read, RemoteAddr, RemoteKey, RemoteRead, RemoteWrite, Warrant, WriteError,
};
use vm::{Folder, Vm};

/// More than travel as operations of their own, and more than one packet of a list.
const STRETCHES: u64 = 2_000;

/// Bytes of each, and from one to the next: further apart than what is read along.
const LEN: usize = 24;
const APART: u64 = 5_000;

fn at(key: u32, addr: u64) -> RemoteAddr {
    RemoteAddr::new(RemoteKey::new(key), addr)
}

/// Reads stretches at `addrs` as one batch.
fn read_all(link: &mut Link, key: u32, addrs: &[u64]) -> Vec<Result<Vec<u8>, AccessError>> {
    let mut buffers = vec![vec![0; LEN]; addrs.len()];
    let places = addrs.iter().zip(&mut buffers);
    let mut batch: Vec<_> = places.map(|(addr, into)| Read::new(at(key, *addr), into.as_mut_slice())).collect();
    link.memory().read(&mut batch).unwrap();
    let outcomes: Vec<_> = batch.iter().map(|read| read.outcome).collect();
    outcomes.into_iter().zip(buffers).map(|(outcome, bytes)| outcome.map(|()| bytes)).collect()
}

/// Reads `members` of the structs at `bases`.
fn gather_all(link: &mut Link, key: u32, bases: &[u64], members: &[Member]) -> Vec<Result<Vec<u8>, AccessError>> {
    let mut found = Vec::new();
    link.memory()
        .gather(&Gather { key: RemoteKey::new(key), bases, members }, &mut |number, outcome| {
            assert_eq!(number, found.len(), "in their order");
            found.push(outcome.map(<[u8]>::to_vec));
        })
        .unwrap();
    found
}

fn sent(link: &mut Link) -> u64 {
    link.memory().queue().soft().unwrap().counters().sent
}

#[test]
fn a_window_reads_and_writes_what_operations_of_their_own_do_in_fewer_packets() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    vm.monitor().wait_for_bios();
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    assert!(link.memory().queue().window().is_some());
    let token = link.fence("to hold it still").unwrap();
    let fenced = token.fenced();
    let addrs: Vec<u64> = (0..STRETCHES).rev().map(|number| 0x20_0000 + number * APART).collect();
    let contents: Vec<Vec<u8>> =
        addrs.iter().map(|addr| (0..LEN as u64).map(|n| (addr / 7 + n) as u8).collect()).collect();
    let writes: Vec<_> =
        addrs.iter().zip(&contents).map(|(addr, bytes)| (at(token.ram_key, *addr), bytes.as_slice())).collect();

    let before = sent(&mut link);
    link.memory().write_all(Warrant::Fenced(&fenced), &writes).unwrap();
    let ram = link.region("ram").unwrap();
    let found = read_all(&mut link, ram.key, &addrs);
    let packets = sent(&mut link) - before;
    assert!(found.into_iter().map(Result::unwrap).eq(contents.iter().cloned()));
    println!("{packets} packets for {STRETCHES} writes and reads");
    // Another connection reads each by itself.
    let mut other = daemon::connect(&daemon);
    for (addr, bytes) in addrs.iter().zip(&contents).step_by(97) {
        let mut alone = vec![0; LEN];
        other.memory().read_one(at(ram.key, *addr), &mut alone).unwrap().unwrap();
        assert_eq!(alone, *bytes);
    }
    // Fewer by far, also where a busy machine makes some of them be repeated.
    assert!(packets < STRETCHES / 4, "{packets} packets");
    link.release(&token, Afterwards::Resume).unwrap();
    let late = link.memory().write_all(Warrant::Fenced(&fenced), &writes);
    assert_eq!(late, Err((0, WriteError::Access(AccessError::Refused))), "the fence has ended");
}

#[test]
fn one_bad_stretch_does_not_cost_the_others() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let ram = link.region("ram").unwrap();
    let mut addrs: Vec<u64> = (0..100).map(|number| number * APART).collect();
    addrs[40] = ram.len;
    addrs[60] = u64::MAX - 4;
    let found = read_all(&mut link, ram.key, &addrs);
    for (number, outcome) in found.iter().enumerate() {
        assert_eq!(outcome.is_err(), number == 40 || number == 60, "{number}: {outcome:?}");
    }
    // Far behind what one packet of the answer holds.
    let mut many: Vec<u64> = (0..STRETCHES).map(|number| number * APART).collect();
    many[1_500] = ram.len;
    let found = read_all(&mut link, ram.key, &many);
    assert!(found.iter().enumerate().all(|(number, outcome)| outcome.is_err() == (number == 1_500)));
    // The next batch has a window again.
    assert!(link.memory().queue().window().is_some());
    assert!(read_all(&mut link, ram.key, &addrs[..40]).iter().all(Result::is_ok));
    let members = [Member { offset: 8, len: 4 }, Member { offset: 16, len: 8 }];
    let found = gather_all(&mut link, ram.key, &addrs, &members);
    for (number, outcome) in found.iter().enumerate() {
        assert_eq!(outcome.is_err(), number == 40 || number == 60, "{number}: {outcome:?}");
    }
}

#[test]
fn a_part_of_the_writes_outside_the_memory_is_told_by_its_place() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let token = link.fence("to hold it still").unwrap();
    let (fenced, bytes) = (token.fenced(), [7; LEN]);
    let ram = link.region("ram").unwrap();
    let mut writes: Vec<_> = (0..1000).map(|number| (at(token.ram_key, number * APART), &bytes[..])).collect();
    writes[900].0 = at(token.ram_key, ram.len);
    let (first, error) = link.memory().write_all(Warrant::Fenced(&fenced), &writes).unwrap_err();
    assert_eq!(error, WriteError::Access(AccessError::Refused));
    let written: Vec<u64> = (0..1000).map(|number| number * APART).collect();
    let found = read_all(&mut link, ram.key, &written);
    let count = found.iter().take_while(|found| **found == Ok(bytes.to_vec())).count();
    assert_eq!(count, first, "those before it were written, and it was not");
    assert!((1..=900).contains(&first));
    assert!(found[first..].iter().all(|found| *found != Ok(bytes.to_vec())), "and none behind it");
}

/// Batches of every size, one after the other on one connection: none is answered with another's bytes, none hangs.
#[test]
fn many_batches_of_every_size_come_back_right() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    vm.monitor().wait_for_bios();
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let mut link = daemon::connect(&daemon);
    let token = link.fence("to hold it still").unwrap();
    let ram = link.region("ram").unwrap();
    let (begin, len) = (1 << 20, 32 << 20);
    let pattern: Vec<u8> =
        (0..len as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    link.memory()
        .write_all(
            Warrant::Fenced(&token.fenced()),
            &pattern
                .chunks(1 << 20)
                .enumerate()
                .map(|(n, bytes)| (at(token.ram_key, begin + (n << 20) as u64), bytes))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    let mut random = 1u64;
    let mut draw = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    for round in 0..3_000 {
        let size = draw(14);
        let count = 1 + draw(1 << size);
        let wants: Vec<(u64, usize)> = (0..count)
            .map(|_| {
                let len = 1 + draw(300) as usize;
                (draw((pattern.len() - len) as u64), len)
            })
            .collect();
        let mut buffers: Vec<Vec<u8>> = wants.iter().map(|(_, len)| vec![0; *len]).collect();
        let places = wants.iter().zip(&mut buffers);
        let mut batch: Vec<_> =
            places.map(|((addr, _), into)| Read::new(at(ram.key, begin + addr), into.as_mut_slice())).collect();
        if round % 3 == 0 {
            let members: Vec<Member> =
                (0..1 + draw(9)).map(|_| Member { offset: draw(400) as u32, len: 1 + draw(60) as u32 }).collect();
            let bases: Vec<u64> = wants.iter().map(|(addr, _)| begin + addr.min(&(len as u64 - 1000))).collect();
            let bytes = |base: &u64, member: &Member| {
                let at = (base - begin) as usize + member.offset as usize;
                pattern[at..at + member.len as usize].to_vec()
            };
            let whole = |base| members.iter().flat_map(|member| bytes(base, member)).collect::<Vec<u8>>();
            let expected = bases.iter().map(whole);
            let found = gather_all(&mut link, ram.key, &bases, &members);
            assert!(found.into_iter().map(Result::unwrap).eq(expected), "round {round}: {count} structs, {members:?}");
            continue;
        }
        if let Err(error) = link.memory().read(&mut batch) {
            let counters = link.memory().queue().soft().unwrap().counters();
            panic!("round {round}, {count} stretches: {error}; {counters:?}, {:?}", link.stats());
        }
        assert!(batch.iter().all(|read| read.outcome.is_ok()));
        for ((addr, len), found) in wants.iter().zip(&buffers) {
            assert!(*found == pattern[*addr as usize..][..*len], "round {round}: {addr} {len}");
        }
    }
    println!("{:?}", link.memory().queue().soft().unwrap().counters());
    link.release(&token, Afterwards::Resume).unwrap();
}
