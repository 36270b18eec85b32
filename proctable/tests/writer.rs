//! `include/proctable.h`, which writes in the kernel, against the Rust reader: the same bytes; and several writers at
//! the same records, while a reader reads at any moment. The header is compiled for this machine.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;

use proctable::layout::{self, HEAD_RECORDS, RECORD_BYTES, table_bytes};
use proctable::{Keeper, NoTable, Record, Table};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
const TARGET: u64 = 0x1234_5678_9abc;
const CAPACITY: usize = 64;

/// `once`: takes records from stdin and writes each, some twice, some ended. `hammer`: threads that write, end and free
/// the same few processes until stdin ends. Both in a file that holds a table.
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "proctable.h"
#define CAPACITY 64
static struct pt_record *records;
static volatile int over;
static struct pt_record *place(pt_u32 pid)
{
    for (pt_u32 i = 0; i < PT_PROBES; i++) {
        struct pt_record *record = &records[(pt_home(pid, CAPACITY) + i) & (CAPACITY - 1)];
        if (PT_STATE(record->life) != PT_FREE && PT_PID(record->life) == pid)
            return record;
    }
    for (pt_u32 i = 0; i < PT_PROBES; i++) {
        struct pt_record *record = &records[(pt_home(pid, CAPACITY) + i) & (CAPACITY - 1)];
        if (PT_STATE(record->life) == PT_FREE)
            return record;
    }
    return 0;
}
static void *hammer(void *seed)
{
    pt_u64 random = (pt_u64)seed;
    while (!over) {
        random = random * 0x5851f42d4c957f2dULL + 0x14057b7ef767814fULL;
        pt_u32 pid = 1 + (random >> 60), k = (random >> 40) & 0xffff;
        struct pt_record *record = place(pid);
        if (!record)
            continue;
        pt_u64 life = PT_READ(record->life);
        if ((random >> 36 & 7) == 0) {
            pt_end(record, pid, record->start_ns, random >> 35 & 1 ? PT_FREE : PT_EXITING);
            continue;
        }
        if (PT_STATE(life) != PT_FREE && PT_PID(life) != pid)
            continue;
        struct pt_who who = { pid, k, k + 1, k & 0x7fff, 0, 0, k + 2, k + 3, { k + 0x4141414100000000ULL, 0 } };
        pt_write(record, life, &who, pt_memory(k, k, 'S'));
    }
    return 0;
}
int main(int count, char **words)
{
    int fd = open(words[2], O_RDWR);
    char *table = mmap(0, (PT_HEAD_RECORDS + CAPACITY) * PT_RECORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (count < 3 || table == MAP_FAILED)
        return 1;
    records = (struct pt_record *)table + PT_HEAD_RECORDS;
    if (!strcmp(words[1], "once")) {
        struct pt_who who;
        pt_u64 memory, state;
        while (fread(&who, sizeof who, 1, stdin) && fread(&memory, 8, 1, stdin) && fread(&state, 8, 1, stdin)) {
            struct pt_record *record = place(who.pid);
            if (!pt_write(record, record->life, &who, memory) || !pt_says(record, &who))
                return 2;
            if (state != PT_LIVE) {
                pt_end(record, who.pid, who.start_ns + 1, state); /* another one */
                pt_end(record, who.pid, who.start_ns, state);
            }
        }
        return 0;
    }
    pthread_t threads[3];
    for (long i = 0; i < 3; i++)
        pthread_create(&threads[i], 0, hammer, (void *)(i + 1));
    getchar();
    over = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], 0);
    return 0;
}
"#;

/// The program and a table's file; gone with the test.
struct Writer {
    folder: PathBuf,
    table: PathBuf,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Writer {
    fn compile(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("proctable-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("write.c"), PROGRAM).unwrap();
        let built = Command::new("cc")
            .args(["-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-o"])
            .args([folder.join("write"), folder.join("write.c")])
            .status()
            .expect("a C compiler");
        assert!(built.success());
        let table = folder.join("table");
        std::fs::write(&table, empty()).unwrap();
        Self { folder, table }
    }

    fn start(&self, what: &str) -> Child {
        Command::new(self.folder.join("write")).arg(what).arg(&self.table).stdin(Stdio::piped()).spawn().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.table).unwrap()
    }
}

fn empty() -> Vec<u8> {
    let words: Vec<_> = (0..table_bytes(CAPACITY) / 8).map(|_| AtomicU64::new(0)).collect();
    Keeper::open(&words, TARGET, 1000).unwrap();
    words.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect()
}

fn record(pid: u32, comm: &str) -> Record {
    Record {
        pid,
        parent: pid / 2,
        uid: 1000 + pid,
        depth: Some(pid % 7),
        start_ns: u64::from(pid) * 1_000_000_007,
        cgroup: 77,
        comm: comm.to_owned(),
        rss_pages: u64::from(pid) * 10,
        swap_pages: 3,
        does: 'R',
        is_kernel: pid.is_multiple_of(5),
        is_exiting: false,
    }
}

/// As the C program takes it.
fn asked(record: &Record, state: u8) -> Vec<u8> {
    let depth = record.depth.unwrap_or(u32::from(layout::NO_DEPTH));
    let flags = u32::from(record.is_kernel) * u32::from(layout::KERNEL);
    let halves = [record.pid, record.parent, record.uid, depth, flags, 0].map(u32::to_le_bytes).concat();
    let mut comm = [0; 16];
    comm[..record.comm.len()].copy_from_slice(record.comm.as_bytes());
    let memory = record.rss_pages | record.swap_pages << 28 | u64::from(record.does as u8) << 56;
    let start = [record.start_ns, record.cgroup].map(u64::to_le_bytes).concat();
    [halves, start, comm.to_vec(), memory.to_le_bytes().to_vec(), u64::from(state).to_le_bytes().to_vec()].concat()
}

#[test]
fn what_the_header_writes_is_what_the_reader_reads() {
    let writer = Writer::compile("once");
    let mut records: Vec<Record> = (1..40).map(|pid| record(pid * 3, "a name of 15 b.")).collect();
    records[3] = Record { depth: None, comm: String::new(), ..record(12, "") };
    let mut child = writer.start("once");
    let mut pipe = child.stdin.take().unwrap();
    for (index, record) in records.iter_mut().enumerate() {
        let state = [layout::LIVE, layout::EXITING, layout::FREE][index % 3];
        record.is_exiting = state == layout::EXITING;
        // Before it: somebody else under the same id.
        let other = Record { start_ns: 5, uid: 5, is_exiting: true, ..record.clone() };
        pipe.write_all(&asked(&other, layout::EXITING)).unwrap();
        pipe.write_all(&asked(record, state)).unwrap();
    }
    drop(pipe);
    assert!(child.wait().unwrap().success());
    let table = Table::parse(&writer.bytes()).unwrap();
    let expected: Vec<Record> =
        records.iter().enumerate().filter(|(index, _)| index % 3 != 2).map(|(_, one)| one.clone()).collect();
    assert_eq!((table.target, table.pages_total, table.torn.len()), (TARGET, 1000, 0));
    assert_eq!(table.processes, expected);
}

/// Every member of what is written comes from one number: members of two numbers in one record are a torn record that
/// was believed.
#[test]
fn of_writers_at_the_same_records_none_is_believed_by_halves() {
    let writer = Writer::compile("hammer");
    let mut child = writer.start("hammer");
    let file = File::open(&writer.table).unwrap();
    let (mut bytes, mut believed, mut torn) = (vec![0; table_bytes(CAPACITY)], 0, 0);
    for round in 0u64.. {
        file.read_exact_at(&mut bytes, 0).unwrap();
        if round % 2 == 1 {
            // The second half of each record from another moment, as a read may bring it.
            let mut later = vec![0; bytes.len()];
            file.read_exact_at(&mut later, 0).unwrap();
            let halves = bytes.chunks_mut(RECORD_BYTES / 2).zip(later.chunks(RECORD_BYTES / 2));
            let second = halves.skip(HEAD_RECORDS * 2).enumerate().filter(|(index, _)| index % 2 == 1);
            second.for_each(|(_, (now, later))| now.copy_from_slice(later));
        }
        let table = Table::parse(&bytes).unwrap();
        torn += table.torn.len();
        for one in &table.processes {
            believed += 1;
            let k = u64::from(one.parent);
            assert_eq!((u64::from(one.uid), one.start_ns, one.cgroup), (k + 1, k + 2, k + 3), "{one:?}");
            assert_eq!(one.depth, Some((k & 0x7fff) as u32), "{one:?}");
            let comm: Vec<u8> = k.to_le_bytes().into_iter().take_while(|byte| *byte != 0).collect();
            let whole = k.to_le_bytes()[..4].contains(&0);
            assert!(whole && one.comm == String::from_utf8_lossy(&comm), "{one:?}");
        }
        if believed > 100_000 && torn > 100 && round > 20_000 {
            break;
        }
        assert!(round < 5_000_000, "{believed} believed, {torn} torn: nothing was tried");
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    println!("{believed} records were believed, {torn} were torn");
}

#[test]
fn memory_that_is_no_table_is_refused() {
    let good = empty();
    assert_eq!(Table::parse(&vec![0; good.len()]), Err(NoTable::Magic { found: 0 }));
    assert!(matches!(Table::parse(&good[..4000]), Err(NoTable::Short { .. })));
    assert!(matches!(Table::parse(&good[..good.len() - 1]), Err(NoTable::Short { .. })));
    for word in 0..8 {
        let mut bytes = good.clone();
        bytes[word * 8] ^= 1;
        assert!(Table::parse(&bytes).is_err(), "word {word}");
    }
    let words: Vec<_> = (0..100).map(|_| AtomicU64::new(0)).collect();
    assert!(Keeper::open(&words, TARGET, 1).is_err());
}

#[test]
fn whatever_a_target_says_is_read_within_bounds_and_zeroes_are_nobody() {
    let good = empty();
    assert_eq!(Table::parse(&good).unwrap().processes, []);
    let changes = prop::collection::vec((8..good.len() / 8, prop::num::u64::ANY), 0..200);
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let check = |changes: Vec<(usize, u64)>| {
        let mut bytes = good.clone();
        for (at, value) in changes {
            bytes[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let mut table = Table::parse(&bytes).unwrap();
        prop_assert!(table.processes.is_empty() && table.torn.len() <= CAPACITY);
        let again: Vec<[u8; RECORD_BYTES]> = table.torn.iter().map(|_| [0; RECORD_BYTES]).collect();
        table.mend(&again);
        prop_assert!(table.torn.is_empty());
        Ok(())
    };
    runner.run(&changes, check).unwrap();
}
