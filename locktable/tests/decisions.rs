//! `include/locktable.h`, which decides in the kernel, against the Rust reference; and what must hold of both. The
//! header is compiled for this machine and asked over a pipe.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;

use locktable::layout::{BYTES, LEASE_UNIT_MS, Mode, Word, answer};
use locktable::locked::Mark;
use locktable::{Locked, Sign, Standing, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
const TARGET: u64 = 0x1234_5678_9abc;

/// Takes what stands, a word, the machine and the time; says what stands then, and the verdict. Or, if the machine is
/// 0: process, user, cgroup and answers; says whether it is marked.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include "locktable.h"
static void take(void *into, size_t len) { if (fread(into, 1, len, stdin) != len) exit(0); }
int main(void) {
    for (;;) {
        lk_u64 asked[4], said[2];
        take(asked, sizeof asked);
        if (asked[2]) {
            lk_u32 verdict;
            said[0] = lk_next(asked[0], asked[1], asked[2], asked[3], &verdict);
            said[1] = verdict;
        } else {
            static struct lk_locked locked;
            take(&locked, sizeof locked);
            said[0] = lk_is_marked(&locked, asked[0], asked[1], asked[3]);
            said[1] = 0;
        }
        fwrite(said, 8, 2, stdout);
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
        let folder = std::env::temp_dir().join(format!("locktable-{test}-{}", std::process::id()));
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

    fn ask(&mut self, asked: [u64; 4], more: &[u8]) -> [u64; 2] {
        let pipe = self.child.stdin.as_mut().unwrap();
        pipe.write_all(&asked.map(u64::to_le_bytes).concat()).unwrap();
        pipe.write_all(more).unwrap();
        pipe.flush().unwrap();
        let mut said = [[0; 8]; 2];
        self.child.stdout.as_mut().unwrap().read_exact(said.as_flattened_mut()).unwrap();
        said.map(u64::from_le_bytes)
    }
}

fn word(number: u32, mode: Mode, lease_ms: u32) -> u64 {
    Word { number, mode, lease: (lease_ms / LEASE_UNIT_MS) as u16 }.encode(TARGET)
}

fn standing() -> impl Strategy<Value = Standing> {
    let mode = prop::sample::select(vec![Mode::Look, Mode::Fence, Mode::Hold]);
    let ended = (0..4u32, 5..9u64).prop_map(|(last, how)| {
        let how = Verdict::from_code(how).filter(|_| last != 0);
        Standing::Free { last, how }
    });
    let stands = (1..4u32, mode, 0..200u64).prop_map(|(number, mode, until_ms)| {
        let until_ms = if mode == Mode::Hold { 0 } else { until_ms };
        Standing::Stands { number, mode, until_ms }
    });
    prop_oneof![ended, stands]
}

/// Words of this machine and of another, words with one bit wrong, and garbage.
fn any_word() -> impl Strategy<Value = u64> {
    let mode = prop::sample::select(vec![Mode::Look, Mode::Fence, Mode::Hold, Mode::Release]);
    let like_one = (1..4u32, mode, 0..20u16, 0..64u32, 0..6u8).prop_map(|(number, mode, lease, bit, how)| match how {
        0 => Word { number, mode, lease }.encode(TARGET ^ 1),
        1 => Word { number, mode, lease }.encode(TARGET) ^ 1 << bit,
        _ => Word { number, mode, lease }.encode(TARGET),
    });
    prop_oneof![6 => like_one, 1 => prop::num::u64::ANY, 1 => Just(0)]
}

#[test]
fn header_and_reference_decide_the_same_and_garbage_neither_takes_nor_ends_a_held_lock() {
    let header = std::cell::RefCell::new(Header::compile("words"));
    let mut runner = TestRunner::new(Config { cases: 20_000, failure_persistence: None, ..Config::default() });
    let check = |(before, word, now_ms): (Standing, u64, u64)| {
        let (after, verdict) = before.next(word, TARGET, now_ms);
        let said = header.borrow_mut().ask([before.encode(), word, TARGET, now_ms], &[]);
        prop_assert_eq!((Standing::decode(said[0]), Verdict::from_code(said[1])), (after, Some(verdict)));
        prop_assert_eq!(said[0], after.encode());
        let whole = Word::decode(word, TARGET);
        if whole.is_none() {
            prop_assert!(!matches!(verdict, Verdict::Taken | Verdict::Held), "{:?}", before);
        }
        if let Standing::Stands { number, mode: Mode::Hold, .. } = before {
            let is_released = whole.is_some_and(|word| word.number == number && word.mode == Mode::Release);
            prop_assert_eq!(after == before, !is_released);
        }
        // Nothing is held but a fence whose lease had not ended.
        if after != before && matches!(after, Standing::Stands { mode: Mode::Hold, .. }) {
            let Standing::Stands { mode: Mode::Fence, until_ms, .. } = before else {
                return Err(TestCaseError::fail(format!("held out of {before:?}")));
            };
            prop_assert!(now_ms < until_ms);
        }
        Ok(())
    };
    runner.run(&(standing(), any_word(), 0..200u64), check).unwrap();
}

#[test]
fn a_lock_lives_as_told() {
    let mut header = Header::compile("life");
    let mut stands = Standing::Free { last: 0, how: None };
    let mut check = |word: u64, now_ms: u64, expected: Verdict, mode: Option<Mode>| {
        let said = header.ask([stands.encode(), word, TARGET, now_ms], &[]);
        let (after, verdict) = stands.next(word, TARGET, now_ms);
        assert_eq!((said[0], Verdict::from_code(said[1])), (after.encode(), Some(verdict)));
        stands = after;
        let now = match stands {
            Standing::Stands { mode, .. } => Some(mode),
            Standing::Free { .. } => None,
        };
        assert_eq!((verdict, now), (expected, mode), "{word:#x} at {now_ms}");
    };
    let look = word(7, Mode::Look, 100);
    check(0, 1, Verdict::Same, None);
    check(look, 10, Verdict::Taken, Some(Mode::Look));
    check(word(7, Mode::Hold, 0), 20, Verdict::Withdrawn, None); // a look is not held
    check(look, 21, Verdict::Same, None); // and has had its time
    let fence = word(8, Mode::Fence, 100);
    check(fence, 30, Verdict::Taken, Some(Mode::Fence));
    check(fence, 129, Verdict::Same, Some(Mode::Fence));
    check(fence, 130, Verdict::LeaseEnded, None);
    check(word(8, Mode::Hold, 0), 131, Verdict::Same, None); // too late: who had it last is told how it ended
    check(word(9, Mode::Hold, 0), 132, Verdict::TooLate, None);
    let fence = word(10, Mode::Fence, 100);
    check(fence, 200, Verdict::Taken, Some(Mode::Fence));
    check(word(10, Mode::Hold, 0), 299, Verdict::Held, Some(Mode::Hold));
    for other in [0, 1, look, fence, word(11, Mode::Fence, 100), word(11, Mode::Release, 0)] {
        check(other, 1_000_000, Verdict::Same, Some(Mode::Hold));
    }
    check(word(10, Mode::Release, 0), 1_000_001, Verdict::HeldReleased, None);
    check(word(12, Mode::Look, 10), 1_000_002, Verdict::Taken, Some(Mode::Look));
    check(word(12, Mode::Release, 0), 1_000_003, Verdict::Released, None);
}

#[test]
fn the_service_is_marked_and_neither_init_nor_the_agent_nor_others() {
    let mut header = Header::compile("marks");
    let words: Vec<_> = (0..BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    let cgroup = 0x7700_0000_0012;
    let sign = Sign::put(&words, TARGET, &[0, 1], &[Mark::Uid(33), Mark::Cgroup(cgroup)], 400).unwrap();
    sign.guards(2, 1, 3);
    let bytes: Vec<u8> = words.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect();
    let mut is_marked = |pid: u64, uid: u64, cgroup: u64| header.ask([pid, uid, 0, cgroup], &bytes)[0] == 1;
    assert!(is_marked(50, 33, 1) && is_marked(50, 0, cgroup));
    assert!(!is_marked(50, 34, 1) && !is_marked(1, 33, cgroup) && !is_marked(400, 33, cgroup) && !is_marked(50, 0, 0));
    let read = Locked::parse(&bytes).unwrap();
    assert_eq!((read.target, read.interfaces, read.addresses, read.unsettled(5)), (TARGET, 2, 3, 0b11));
    for word in 0..8 {
        let mut bytes = bytes.clone();
        bytes[word * 8] ^= 1;
        assert!(Locked::parse(&bytes).is_err(), "word {word}");
    }
    assert!(Locked::parse(&vec![0; BYTES]).is_err() && Locked::parse(&bytes[1..]).is_err());
    assert!(Sign::put(&[], TARGET, &[], &[], 1).is_err());
}

/// A target may answer what it likes.
#[test]
fn whatever_a_target_answers_is_read_within_bounds() {
    let words: Vec<_> = (0..BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    Sign::put(&words, TARGET, &[0, 63, 64, 5000], &[], 400).unwrap();
    let good: Vec<u8> = words.into_iter().flat_map(|word| word.into_inner().to_le_bytes()).collect();
    let changes = prop::collection::vec((8..BYTES / 8, prop::num::u64::ANY), 0..60);
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let check = |changes: Vec<(usize, u64)>| {
        let mut bytes = good.clone();
        for (at, value) in changes {
            bytes[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let read = Locked::parse(&bytes).unwrap();
        prop_assert!(read.unsettled(3) & !(1 << 63 | 1) == 0);
        let word = u64::from_le_bytes(bytes[answer::STANDING * 8..][..8].try_into().unwrap());
        prop_assert_eq!(matches!(read.standing, Standing::Free { .. }), word >> 24 & 0xf == 0);
        Ok(())
    };
    runner.run(&changes, check).unwrap();
}
