//! What an operator can do to the agent: each case ends in a sentence that says what to do. What a machine can do to it
//! is in `testbed/tests/agent_vm.rs`.

use std::process::Command;

#[test]
fn a_missing_capability_is_named_before_anything_is_touched() {
    for more in [&["--check"][..], &["--box-socket", "/nowhere/box.sock", "--pin-dir", "/nowhere"]] {
        let program = Command::new("setpriv")
            .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--pdeathsig", "KILL"])
            .arg(env!("CARGO_BIN_EXE_target-agent"))
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&program.stderr);
        assert!(!program.status.success());
        assert!(said.contains("CAP_SYS_ADMIN is missing, for eBPF programs"), "{said}");
    }
}

#[test]
fn a_size_of_the_pool_that_cannot_be_is_refused_with_the_range() {
    for slots in ["0", "10901"] {
        let program = Command::new(env!("CARGO_BIN_EXE_target-agent")).args(["--pool-slots", slots]).output().unwrap();
        let said = String::from_utf8_lossy(&program.stderr);
        assert!(!program.status.success() && said.contains("1..=10900"), "{said}");
    }
}
