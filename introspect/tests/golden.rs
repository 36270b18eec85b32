//! Walks of recorded machines against golden text. To accept a change: `GOLDEN=accept cargo test -p introspect`, and
//! read the difference before committing it.

mod support;

use std::fmt::Write;
use std::{env, fs};

use introspect::linux::task::Task;
use introspect::linux::tcp::TcpSocket;
use support::{MACHINES, load, path, sockets, tasks};

#[test]
fn walks_of_the_recorded_machines_say_what_they_said_before() {
    for machine in MACHINES {
        let (kernel, mut image) = load(machine);
        let (tasks, task_damage) = tasks(&kernel, &mut image);
        let (sockets, damage) = sockets(&kernel, &mut image);
        let mut text = format!("kernel {}\n\n", kernel.release);
        tasks.iter().for_each(|task| task_line(&mut text, task));
        text.push('\n');
        sockets.iter().for_each(|socket| socket_lines(&mut text, socket));
        for damage in task_damage.iter().chain(&damage) {
            writeln!(text, "damage: {damage}").unwrap();
        }
        check(&path(machine, "golden.txt"), &text);
    }
}

fn check(path: &std::path::Path, found: &str) {
    if env::var("GOLDEN").is_ok_and(|value| value == "accept") {
        fs::write(path, found).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap();
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(found, expected, "{} line {}", path.display(), number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{}", path.display());
}

fn task_line(text: &mut String, task: &Task) {
    let Task { address, pid, tgid, parent, uid, comm, state, flags, start_time_ns, words: _ } = task;
    writeln!(text, "{pid} {tgid} {parent} {uid:?} {comm:?} {state:#x} {flags:#x} {start_time_ns} {address}").unwrap();
}

fn socket_lines(text: &mut String, socket: &TcpSocket) {
    // Everything but the bytes, which `truth.rs` checks; of those a checksum.
    let mut bare = socket.clone();
    bare.receive_queue.clear();
    bare.send_queue.clear();
    writeln!(text, "{bare:?}").unwrap();
    for segment in &socket.send_queue {
        let (seq, end_seq, len) = (segment.seq, segment.end_seq, segment.bytes.len());
        let sum = sum(&segment.bytes);
        writeln!(text, "  {seq}..{end_seq} {len} bytes {sum:016x} sent {} fin {}", segment.sent, segment.fin).unwrap();
    }
    writeln!(text, "  received {} bytes {:016x}", socket.receive_queue.len(), sum(&socket.receive_queue)).unwrap();
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
