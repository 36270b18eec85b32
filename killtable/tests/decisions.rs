//! `include/killtable.h`, which decides in the kernel, against the Rust reference: the same bytes, the same decisions,
//! for tables as monitors write them and for garbage. The header is compiled for this machine and asked over a pipe.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;

use killtable::layout::{self, ANSWERS_BYTES, BROAD_SLOTS, ORDERS_BYTES, PID_SLOTS, Refusal};
use killtable::reference::{Orders, Process, Spared};
use killtable::{Answers, Ledger, Mark, Order};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

const TARGET: u64 = 0x1234_5678_9abc;

/// Takes orders, answers, the number in force and processes; says the refusal, then slot and permission of each.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include "killtable.h"
static struct kt_orders orders;
static struct kt_answers answers;
static void take(void *into, size_t len) { if (fread(into, 1, len, stdin) != len) exit(0); }
int main(void) {
    for (;;) {
        kt_u64 number, target;
        kt_u32 count;
        take(&orders, sizeof orders);
        take(&answers, sizeof answers);
        take(&number, 8);
        take(&target, 8);
        take(&count, 4);
        kt_u32 refusal = kt_refusal(&orders, number, target);
        fwrite(&refusal, 4, 1, stdout);
        for (; count; count--) {
            struct kt_process p;
            take(&p, sizeof p);
            kt_u32 said[2] = { kt_find(&orders, number, &p), kt_may_end(&answers, &p) };
            fwrite(said, 4, 2, stdout);
        }
        fflush(stdout);
    }
}
"#;

/// The header, compiled; ends with the test.
struct Header {
    folder: PathBuf,
    child: Child,
}

impl Drop for Header {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Header {
    fn compile(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("killtable-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (source, program) = (folder.join("decide.c"), folder.join("decide"));
        std::fs::write(&source, PROGRAM).unwrap();
        let built = Command::new("cc")
            .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler");
        assert!(built.success());
        let child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { folder, child }
    }

    fn ask(&mut self, orders: &[u8], answers: &[u8], number: u64, processes: &[Process]) -> Said {
        let pipe = self.child.stdin.as_mut().unwrap();
        pipe.write_all(orders).unwrap();
        pipe.write_all(answers).unwrap();
        pipe.write_all(&number.to_le_bytes()).unwrap();
        pipe.write_all(&TARGET.to_le_bytes()).unwrap();
        pipe.write_all(&(processes.len() as u32).to_le_bytes()).unwrap();
        for process in processes {
            let Process { pid, uid, effective_uid, is_kernel, start_ns, cgroup } = *process;
            let words = [pid, uid, effective_uid, is_kernel.into()].map(u32::to_le_bytes).concat();
            pipe.write_all(&words).unwrap();
            pipe.write_all(&[start_ns, cgroup].map(u64::to_le_bytes).concat()).unwrap();
        }
        pipe.flush().unwrap();
        let mut said = vec![0; 4 + 8 * processes.len()];
        self.child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let words: Vec<u32> = said.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let slot = |slot: u32| (slot != u32::MAX).then_some(slot as usize);
        let judged = words[1..].as_chunks::<2>().0.iter().map(|pair| (slot(pair[0]), pair[1] == 1)).collect();
        Said { refusal: Refusal::from_code(words[0].into()), judged }
    }
}

#[derive(Debug, PartialEq)]
struct Said {
    refusal: Option<Refusal>,
    /// For each process its slot, and whether it may be ended.
    judged: Vec<(Option<usize>, bool)>,
}

fn reference(orders: &[u8], spared: &Spared, number: u64, processes: &[Process]) -> Said {
    let orders = Orders::over(orders).unwrap();
    let judge = |process: &Process| (orders.find(number, process), spared.may_end(process));
    Said { refusal: orders.refusal(number, TARGET), judged: processes.iter().map(judge).collect() }
}

fn written(orders: &mut [u8], order: &Order) {
    let (at, zero) = Order::withdrawal();
    orders[at as usize..][..8].copy_from_slice(&zero);
    for (at, bytes) in order.body() {
        orders[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let (at, number) = order.commit();
    orders[at as usize..][..8].copy_from_slice(&number);
}

fn answers(spared: &Spared) -> Vec<u8> {
    let words = |len| (0..len / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (orders, answers) = (words(ORDERS_BYTES), words(ANSWERS_BYTES));
    Ledger::open(&orders, &answers, TARGET, &spared.uids, spared.agent).unwrap();
    answers.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect()
}

fn process(pid: u32, uid: u32) -> Process {
    Process { pid, uid, effective_uid: uid, is_kernel: false, start_ns: u64::from(pid) * 1000, cgroup: 7 }
}

fn of(process: &Process) -> Mark {
    Mark::Pid { pid: process.pid, start_ns: process.start_ns }
}

#[test]
fn header_and_reference_decide_the_same_of_orders_as_monitors_write_them() {
    let mut header = Header::compile("orders");
    let spared = Spared { uids: vec![0, 33], agent: 400 };
    let answers = answers(&spared);
    let processes: Vec<Process> = (1..3000).map(|pid| process(pid, pid % 50)).collect();
    let mut orders = vec![0; ORDERS_BYTES];
    for number in [1, 2, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
        let mut marks: Vec<_> = processes.iter().step_by(2).map(|process| (of(process), 1)).collect();
        marks.extend([(Mark::Uid { uid: 11 }, 9), (Mark::Cgroup { id: 8 }, 9)]);
        let order = Order::new(number, TARGET, &marks, 2000, 1000).unwrap();
        written(&mut orders, &order);
        let said = header.ask(&orders, &answers, order.number(), &processes);
        assert_eq!(said, reference(&orders, &spared, order.number(), &processes));
        assert_eq!(said.refusal, None);
        for (index, (process, (slot, may_end))) in processes.iter().zip(&said.judged).enumerate() {
            let by_user = (process.uid == 11).then_some(0);
            let expected = if index % 2 == 0 { Some(order.slots()[index / 2]) } else { by_user };
            assert_eq!(*slot, expected, "{process:?}");
            assert_eq!(*may_end, !matches!(process.uid, 0 | 33) && process.pid != 1 && process.pid != 400);
        }
        // Another process under the same id is not meant.
        let later: Vec<_> = processes.iter().map(|old| Process { start_ns: old.start_ns + 1, ..*old }).collect();
        let said = header.ask(&orders, &answers, order.number(), &later);
        assert!(said.judged.iter().zip(&later).all(|((slot, _), process)| slot.is_none() || process.uid == 11));
    }
}

/// A target whose adapter is a program answers each WRITE, when nothing of it has a processor to spare.
#[test]
fn an_order_is_few_writes_in_front_of_its_number() {
    let writes = |marks: &[(Mark, u32)]| {
        let order = Order::new(0x1234_5678, TARGET, marks, 2000, 1000).unwrap();
        let body = order.body();
        assert!(body.iter().all(|(at, _)| *at >= 8), "the number is not in it");
        assert_eq!(body.last().map(|(at, bytes)| *at as usize + bytes.len()), Some(order.len_bytes()));
        // Bytes between the slots mean nobody, whatever stood there.
        let mut orders = vec![0xa5; ORDERS_BYTES];
        written(&mut orders, &order);
        let held = Orders::over(&orders).unwrap();
        assert!(marks.iter().zip(order.slots()).all(|((mark, _), slot)| held.names(order.number(), *slot, *mark)));
        assert_eq!(held.find(order.number(), &process(70_000, 70_000)), None);
        body.len()
    };
    assert_eq!(writes(&[(Mark::Uid { uid: 1000 }, 60)]), 1, "head and slot in one");
    let crowd = |count: u32| (2..2 + count).map(|pid| (of(&process(pid, 1000)), 1)).collect::<Vec<_>>();
    assert!((1..=2).contains(&writes(&crowd(60))), "sixty slots lie near one another");
    assert!(writes(&crowd(2)) <= 3, "few slots are not worth what lies between them");
    assert_eq!(writes(&crowd(2000)), 1);
}

#[test]
fn a_torn_order_is_none_wherever_it_was_torn() {
    let mut header = Header::compile("torn");
    let spared = Spared::default();
    let answers = answers(&spared);
    let processes: Vec<Process> = (2..40).map(|pid| process(pid, 1000)).collect();
    let order = |number, step| {
        let marks: Vec<_> = processes.iter().step_by(step).map(|process| (of(process), 1)).collect();
        Order::new(number, TARGET, &marks, 100, 1000).unwrap()
    };
    let (first, second) = (order(77, 2), order(99, 3));
    let mut orders = vec![0; ORDERS_BYTES];
    written(&mut orders, &first);
    // The second's writes arrive one after the other, each cut in its middle before it is whole.
    let mut writes = vec![(Order::withdrawal().0, Order::withdrawal().1.to_vec())];
    writes.extend(second.body());
    for (at, bytes) in writes {
        for part in [bytes.len() / 2, bytes.len()] {
            orders[at as usize..][..part].copy_from_slice(&bytes[..part]);
            let number = Orders::over(&orders).unwrap().number();
            assert!(number == 0 || number == 77, "half a zero is no third number");
            let said = header.ask(&orders, &answers, 99, &processes);
            assert_eq!(said, reference(&orders, &spared, 99, &processes));
            // Whatever of the first is still there, is the first's.
            let said = header.ask(&orders, &answers, 77, &processes);
            let firsts = said.judged.iter().enumerate().filter(|(_, (slot, _))| slot.is_some());
            assert!(firsts.map(|(index, _)| index % 2).all(|odd| odd == 0));
        }
    }
    let number = second.commit().1;
    orders[..8].copy_from_slice(&number);
    let said = header.ask(&orders, &answers, 99, &processes);
    assert_eq!(said.judged.iter().filter(|(slot, _)| slot.is_some()).count(), second.slots().len());
    let said = header.ask(&orders, &answers, 77, &processes);
    assert_eq!(said.refusal, Some(Refusal::Header), "the head is not the first's any more");
}

/// Garbage and orders with garbage in them: both sides agree, and whom nobody may end is never ended.
#[test]
fn garbage_never_means_init_the_kernel_the_agent_or_the_spared() {
    let header = std::cell::RefCell::new(Header::compile("garbage"));
    let spared = Spared { uids: vec![0, 33], agent: 400 };
    let answers = answers(&spared);
    let mut processes: Vec<Process> = (1..64).map(|pid| process(pid, [0, 33, 1000][pid as usize % 3])).collect();
    processes.push(Process { is_kernel: true, ..process(64, 1000) });
    processes.push(process(400, 1000));
    processes.push(Process { effective_uid: 0, ..process(500, 1000) });
    let named: Vec<_> = processes.iter().map(|process| (of(process), 1)).collect();
    let users = [0, 33, 1000].map(|uid| (Mark::Uid { uid }, 1000));
    let marks: Vec<_> = named.into_iter().chain(users).collect();
    let changes = prop::collection::vec((0..ORDERS_BYTES / 8, prop::num::u64::ANY, 0..3u8), 0..40);
    let cases = (prop::num::u64::ANY, prop::bool::ANY, changes);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let check = |(seed, is_order, changes): (u64, bool, Vec<(usize, u64, u8)>)| {
        let mut orders = vec![0; ORDERS_BYTES];
        let mut number = seed | 1;
        if is_order {
            let order = Order::new(number, TARGET, &marks, 100, 1000).unwrap();
            number = order.number();
            written(&mut orders, &order);
        } else {
            let mut word = seed;
            for place in orders.as_chunks_mut::<8>().0 {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                // Some of them bear the number, so that they are looked into.
                *place = if word >> 62 == 0 { number } else { word }.to_le_bytes();
            }
        }
        for (at, word, how) in changes {
            let place = &mut orders[at * 8..][..8];
            let old = u64::from_le_bytes((&*place).try_into().unwrap());
            let new = match how {
                0 => word,
                1 => old ^ (1 << (word % 64)),
                _ => number,
            };
            place.copy_from_slice(&new.to_le_bytes());
        }
        let said = header.borrow_mut().ask(&orders, &answers, number, &processes);
        prop_assert_eq!(&said, &reference(&orders, &spared, number, &processes));
        for (process, (slot, may_end)) in processes.iter().zip(&said.judged) {
            let untouchable = process.pid == 1 || process.is_kernel || process.pid == 400 || process.uid != 1000;
            prop_assert!(!*may_end || !untouchable && process.effective_uid == 1000, "{:?}", process);
            prop_assert!(slot.is_none_or(|slot| slot < BROAD_SLOTS + PID_SLOTS));
        }
        Ok(())
    };
    runner.run(&cases, check).unwrap();
}

/// Every head that is refused, with its reason, by both.
#[test]
fn heads_are_refused_with_their_reasons() {
    let mut header = Header::compile("heads");
    let answers = answers(&Spared::default());
    let marks = [(Mark::Uid { uid: 5 }, 1)];
    let mut orders = vec![0; ORDERS_BYTES];
    written(&mut orders, &Order::new(3, TARGET, &marks, 1, 1).unwrap());
    let mut check = |word: usize, value: u64, is_resealed: bool, expected: Option<Refusal>| {
        let mut orders = orders.clone();
        orders[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
        if is_resealed {
            let words: Vec<u64> = orders[..56].as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
            orders[56..64].copy_from_slice(&layout::checksum(&words).to_le_bytes());
        }
        let said = header.ask(&orders, &answers, 3, &[]);
        assert_eq!((said.refusal, Orders::over(&orders).unwrap().refusal(3, TARGET)), (expected, expected));
    };
    let bounds = |most: u64, lease_ms: u64| most | lease_ms << 32;
    check(layout::head::BOUNDS, bounds(1, 1), true, None);
    check(layout::head::BOUNDS, bounds(1, 2), false, Some(Refusal::Header));
    check(layout::head::MAGIC, 0, true, Some(Refusal::Header));
    check(5, 1, true, Some(Refusal::Header));
    check(layout::head::VERSION, 2, true, Some(Refusal::Version));
    check(layout::head::TARGET, TARGET + 1, true, Some(Refusal::OtherTarget));
    check(layout::head::BOUNDS, bounds(0, 1), true, Some(Refusal::NoBound));
    check(layout::head::BOUNDS, bounds(1, 0), true, Some(Refusal::NoBound));
    check(layout::head::BOUNDS, bounds(1, 60_001), true, Some(Refusal::NoBound));
}

#[test]
fn answers_read_back_and_damaged_ones_do_not() {
    let spared = Spared { uids: (0..14).collect(), agent: 9 };
    let bytes = answers(&spared);
    let read = Answers::parse(&bytes).unwrap();
    assert_eq!((read.target, &read.spared_uids, read.armed, read.refused), (TARGET, &spared.uids, 0, None));
    assert!(Answers::parse(&bytes[1..]).is_err() && Answers::parse(&vec![0; ANSWERS_BYTES]).is_err());
    for word in 0..8 {
        let mut bytes = bytes.clone();
        bytes[word * 8] ^= 1;
        assert!(Answers::parse(&bytes).is_err(), "word {word}");
    }
    assert!(Answers::parse(&vec![0xff; ANSWERS_BYTES]).is_err());
}

/// A target may answer what it likes.
#[test]
fn whatever_a_target_answers_is_read_within_bounds() {
    let good = answers(&Spared { uids: vec![0, 33], agent: 400 });
    let changes = prop::collection::vec((8..ANSWERS_BYTES / 8, prop::num::u64::ANY), 0..60);
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let check = |changes: Vec<(usize, u64)>| {
        let mut bytes = good.clone();
        for (word, value) in changes {
            bytes[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let read = Answers::parse(&bytes).unwrap();
        prop_assert!(read.spared_uids.len() <= layout::SPARED_MAX);
        prop_assert_eq!((read.target, read.ended_by(1, usize::MAX)), (TARGET, 0));
        Ok(())
    };
    runner.run(&changes, check).unwrap();
}

#[test]
fn the_agent_counts_within_both_bounds() {
    let words = |len| (0..len / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (orders, answers) = (words(ORDERS_BYTES), words(ANSWERS_BYTES));
    let ledger = Ledger::open(&orders, &answers, TARGET, &[], 9).unwrap();
    let marks = [(Mark::Uid { uid: 5 }, 2), (Mark::Uid { uid: 6 }, 9)];
    let order = Order::new(3, TARGET, &marks, 4, 1).unwrap();
    let mut bytes = vec![0; ORDERS_BYTES];
    written(&mut bytes, &order);
    for (word, bytes) in orders.iter().zip(bytes.as_chunks().0) {
        word.store(u64::from_le_bytes(*bytes), std::sync::atomic::Ordering::Relaxed);
    }
    let counted = [0, 0, 0, 1, 1, 1].map(|slot| ledger.count(3, slot));
    assert_eq!(counted, [true, true, false, true, true, false]);
    assert!(!ledger.count(3, u32::MAX), "a slot that does not exist");
    let bytes: Vec<u8> = answers.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect();
    let read = Answers::parse(&bytes).unwrap();
    assert_eq!((read.ended(3), read.ended_asleep(3), read.declined), (4, 4, 2));
    assert_eq!((read.ended_by(3, 0), read.ended_by(3, 1), read.ended_by(4, 0)), (2, 2, 0));
}

#[test]
fn orders_that_cannot_be_are_refused_by_their_maker() {
    let mark = (Mark::Uid { uid: 5 }, 1);
    assert!(Order::new(1, TARGET, &[], 1, 1).is_err());
    assert!(Order::new(1, TARGET, &[mark], 0, 1).is_err());
    assert!(Order::new(1, TARGET, &[mark], 1, 60_001).is_err());
    assert!(Order::new(1, TARGET, &vec![mark; BROAD_SLOTS + 1], 1, 1).is_err());
    let pids = |count: u32| (2..count).map(|pid| (Mark::Pid { pid, start_ns: 1 }, 1)).collect::<Vec<_>>();
    assert!(Order::new(1, TARGET, &pids(5000), 1, 1).is_err());
    assert!(Order::new(1, TARGET, &pids(2002), 1, 1).is_ok());
    assert_ne!(Order::new(0, TARGET, &[mark], 1, 1).unwrap().number(), 0);
}
