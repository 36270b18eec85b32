//! What a guest's sockets have to send, as its own kernel says: a session that is to leave so many KiB with its server
//! is what it is meant to be only once its response is queued, and an emulated guest takes its time with a thousand.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::progress::Progress;
use crate::{client::Kind, topology::FILE_PORT, vm::Vm};

/// How long a guest may take to answer all of them. One that does not get there is broken as it is: what was found of
/// each session is told with the figure.
const BOUND: Duration = Duration::from_secs(60);
/// Between two looks: each costs the guest what it answers with.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// TCP memory without pressure, with it, and at most: a thousand queues of 10 KiB are some 30 MB, most of it overhead.
const LIMITS_PAGES: &str = "16384 24576 32768";
/// Every connection, those of IPv4 clients of an IPv6 listener in the second.
const LIST: &str = "cat /proc/net/tcp /proc/net/tcp6";
/// `TCP_ESTABLISHED` in the list.
const ESTABLISHED: &str = "01";

/// Lets the guest's kernel queue that much: with its own limits, which follow from its memory, it took two thirds of
/// 10 KiB from each of a thousand.
pub(super) fn make_room(vm: &mut Vm, kinds: &[Kind]) -> Result<()> {
    if kinds.iter().any(|kind| kind.unread_kib().is_some()) {
        let done = vm.run(&format!("echo {LIMITS_PAGES} >/proc/sys/net/ipv4/tcp_mem"))?;
        ensure!(done.status == 0, "the guest's limits of TCP memory stay as they are: {}", done.text());
    }
    Ok(())
}

/// Waits until `sessions` of `kinds` have what they are to leave with the server, if that is what they do.
pub(super) fn wait(vm: &mut Vm, kinds: &[Kind], sessions: usize, progress: Progress) -> Result<()> {
    let Some(least) = kinds.iter().filter_map(|kind| kind.unread_kib()).min() else { return Ok(()) };
    if kinds.iter().any(|kind| kind.unread_kib().is_none()) {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let ready = with_queue(&vm.run(LIST)?.text(), least << 10);
        if ready >= sessions {
            return Ok(());
        }
        if began.elapsed() > BOUND {
            progress.step(format_args!("only {ready} of {sessions} responses are queued"));
            return Ok(());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// How many connections of the service have at least `least` bytes to send, by the kernel's list of them.
fn with_queue(list: &str, least: u64) -> usize {
    let ours = format!(":{FILE_PORT:04X}");
    let has_queue = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().is_some_and(|local| local.ends_with(&ours));
        let is_established = words.nth(1) == Some(ESTABLISHED);
        let queued = words.next().and_then(|queues| u64::from_str_radix(queues.split(':').next()?, 16).ok());
        local && is_established && queued.is_some_and(|queued| queued >= least)
    };
    list.lines().filter(has_queue).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 prints it; the last column is cut.
    const SAID: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1041 1
   1: 0A004D0A:1F90 04004D0A:A2C4 01 00002854:00000000 01:00000014 00000000     0        0 1042 4
   2: 0A004D0A:1F90 04004D0A:A2C6 01 00000400:00000000 01:00000014 00000000     0        0 1043 4
   3: 0A004D0A:1F90 04004D0A:A2C8 04 00002854:00000000 01:00000014 00000000     0        0 1044 4
   4: 0A004D0A:0016 04004D0A:A2CA 01 00002854:00000000 01:00000014 00000000     0        0 1045 4
";

    #[test]
    fn connections_count_that_are_whole_of_the_service_and_full_enough() {
        assert_eq!(FILE_PORT, 8080);
        assert_eq!([0, 0x400, 0x401, 0x2854, 0x2855].map(|least| with_queue(SAID, least)), [2, 2, 1, 1, 0]);
        assert_eq!(with_queue("", 0), 0);
    }
}
