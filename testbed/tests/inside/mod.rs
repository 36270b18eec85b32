//! Tests that need bridges and guests with cards: they run again in a sandbox of the testbed, which takes all they made
//! with it, also when they are killed.

use std::process::Command;

/// Set for the test that runs inside.
const INSIDE: &str = "BACKDOORS_TEST_INSIDE";

/// Whether the test called `test` has run, and passed, in a sandbox; false in there, where it goes on.
pub fn ran(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let this = std::env::current_exe().expect("a test has a program");
    // The sandbox goes with this thread, which waits for it.
    let mut again = Command::new("setpriv");
    again.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_testbed"), "inside", "--"]);
    again.arg(this).args(["--exact", test, "--nocapture"]);
    let status = again.env(INSIDE, "1").status().expect("setpriv (of util-linux) can be started");
    assert!(status.success(), "{test} failed in its sandbox");
    true
}
