//! The sandbox and the topology, as a user of the program meets them.

use std::{
    collections::HashSet,
    fs,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Generous: the machine may be busy building.
const BOUND: Duration = Duration::from_secs(60);

fn inside(place: &str, script: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(["enter", place, "--", "sh", "-c", script]).output().expect("testbed can be started")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_machine_has_its_addresses_at_once() {
    for (place, expected) in [
        ("hypervisor", ["10.77.0.1/24", "fd77::1", "10.78.0.1/24"].as_slice()),
        ("spare", &["10.77.0.2/24", "fd77::2", "10.78.0.2/24"]),
        ("monitor", &["10.77.0.3/24", "fd77::3", "10.78.0.3/24"]),
        ("client", &["10.77.0.4/24", "fd77::4"]),
    ] {
        // /proc/net tells it without the `ip` program, which a fresh machine need not have.
        let output = inside(place, "cat /proc/net/fib_trie /proc/net/if_inet6");
        let said = text(&output);
        for address in expected {
            let shown = match address.strip_prefix("fd77::") {
                Some(last) => format!("fd77{last:0>28} "),
                None => format!("|-- {}\n", address.trim_end_matches("/24")),
            };
            assert!(said.contains(&shown), "{place}: {address} ({shown:?}) is missing in\n{said}");
        }
        // The fifth field of if_inet6 holds the flags; 0x40 would be a tentative address.
        let flags = said
            .lines()
            .filter(|line| line.starts_with("fd77"))
            .filter_map(|line| u8::from_str_radix(line.split_whitespace().nth(4)?, 16).ok());
        let tentative = flags.into_iter().any(|flags| flags & 0x40 != 0);
        assert!(!tentative, "{place}: {said}");
    }
}

#[test]
fn the_exit_status_of_a_command_comes_out() {
    assert_eq!(inside("client", "exit 7").status.code(), Some(7));
    assert_eq!(inside("nowhere", "exit 7").status.code(), Some(2));
}

#[test]
fn nothing_outlives_the_testbed_even_when_it_is_killed() {
    // A number nobody else sleeps for: the processes are found again by it, and only looked at.
    let seconds = 86_400 + std::process::id();
    let mut testbed = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["enter", "spare", "--", "sleep", &seconds.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("testbed can be started");
    let sleepers = || {
        let wanted = format!("sleep\0{seconds}\0");
        processes().into_iter().filter(|pid| command_line(pid) == wanted).collect::<HashSet<_>>()
    };
    wait_until("the command runs", || !sleepers().is_empty());
    testbed.kill().expect("the testbed is ours to kill");
    testbed.wait().expect("the testbed can be waited for");
    wait_until("the command is gone", || sleepers().is_empty());
}

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

fn command_line(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < BOUND, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
