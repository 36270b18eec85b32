//! Our queue pairs on an adapter of Linux: rxe in a guest, or whatever a machine has, see `BACKDOORS_ADAPTER`.

mod inside;

use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::guest::{ImageSpec, Kernel};
use testbed::pair::RdmaGuest;
use testbed::topology::Topology;

/// The address of an RDMA adapter of this machine: the checks are then made on it and not in a guest.
const ADAPTER: &str = "BACKDOORS_ADAPTER";

/// Builds and finds a program of ours beside this test's own.
fn built(arguments: &[&str], path: &str) -> PathBuf {
    let status = Command::new(env!("CARGO")).args(["build", "--quiet"]).args(arguments).status().unwrap();
    assert!(status.success(), "{arguments:?} does not build");
    let program = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("debug").join(path);
    assert!(program.is_file(), "{} is missing", program.display());
    program
}

fn selftest() -> PathBuf {
    built(&["-p", "rdma", "--example", "verbs_selftest"], "examples/verbs_selftest")
}

fn images() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-images")
}

#[test]
fn both_ends_work_on_one_adapter() {
    if let Some(address) = std::env::var_os(ADAPTER) {
        let status = Command::new(selftest()).arg(address).status().unwrap();
        assert!(status.success(), "the adapter of this machine does not do what is needed");
        return;
    }
    if inside::ran("both_ends_work_on_one_adapter") {
        return;
    }
    for line in Kernel::lines().unwrap() {
        let topology = Topology::build().unwrap();
        let image = ImageSpec::new(Kernel::cached(&line).unwrap()).program("verbs_selftest", &selftest());
        let [mut guest] = RdmaGuest::boot(&topology, image, &images(), |_| ()).unwrap();
        let address = guest.address();
        let told = guest.run(&format!("verbs_selftest {address} 2>&1")).unwrap();
        println!("Linux {line}\n{}", told.text());
        assert_eq!(told.status, 0, "{}", told.text());
        let left = guest.run("rdma resource show").unwrap().text();
        println!("{left}");
    }
}
