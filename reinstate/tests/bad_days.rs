//! What an operator can do to a spare's daemon: each case ends in a sentence that says what to do.

mod folder;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use folder::Folder;

/// A configuration file in `folder` with this control port and `more`.
fn configured(folder: &Folder, port: u16, more: &str) -> PathBuf {
    let (file, socket) = (folder.0.join("reinstate.toml"), folder.0.join("box.sock"));
    let text =
        format!("name = \"s\"\nlisten = \"127.0.0.1\"\ncontrol_port = {port}\nbox_socket = {socket:?}\n{more}\n");
    std::fs::write(&file, text).unwrap();
    file
}

/// Runs the program without the capability `without`; it must fail.
fn failed(config: &PathBuf, without: Option<&str>) -> String {
    let mut command = Command::new("setpriv");
    let set = without.map(|capability| format!("-{capability}"));
    for set in set.iter() {
        command.args(["--bounding-set", set, "--inh-caps", set]);
    }
    let Output { status, stderr, .. } = command
        .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_reinstate"), "--config"])
        .arg(config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{said}");
    said
}

#[test]
fn a_missing_capability_is_named_before_anything_is_taken() {
    let folder = Folder::new("bad-capability");
    let config = configured(&folder, free_port(), "");
    for (without, named) in [("net_admin", "CAP_NET_ADMIN"), ("net_raw", "CAP_NET_RAW")] {
        let said = failed(&config, Some(without));
        assert!(said.contains(&format!("reinstate: {named} is missing, for ")), "{said}");
    }
    assert!(!folder.0.join("box.sock").exists(), "nothing was begun");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = Folder::new("bad-port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let said = failed(&configured(&folder, address.port(), ""), None);
    assert!(said.contains(&format!("cannot listen at {address}: Address already in use")), "{said}");
    let said = failed(&configured(&folder, free_port(), &format!("metrics_port = {}", address.port())), None);
    assert!(said.contains(&format!("no metrics at {address}: Address already in use")), "{said}");
}

#[test]
fn a_configuration_that_cannot_be_is_named_by_file_line_and_key() {
    let folder = Folder::new("bad-config");
    let said = failed(&configured(&folder, free_port(), "route_table = 254"), None);
    assert!(said.contains("reinstate.toml:5: route_table: the kernel uses table 254 itself"), "{said}");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
