//! A whole daemon on a loopback address of its own, and links to it.

#![allow(dead_code)] // each test file uses its own part

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

use backdoor::config::{Config, Ram};
use backdoor::daemon::Daemon;
use link::{Link, Options};

use super::vm::{Folder, Vm, wait_for};

static HOSTS: AtomicU8 = AtomicU8::new(1);

/// An address of 127.0.0.0/8 that no other test, in this process or another, is likely to have.
pub fn loopback() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 254, low, HOSTS.fetch_add(1, Ordering::Relaxed))
}

/// What runs `vm`'s daemon, with ports that nobody else has.
pub fn config(folder: &Folder, vm: &Vm) -> Config {
    let agent_port = Some(folder.join("agent"));
    let vm = backdoor::config::Vm { qmp: vm.qmp.clone(), agent_port, ram: Ram::Auto, pid_file: None };
    Config {
        target: "web1".to_owned(),
        listen: loopback(),
        control_port: 0,
        roce_port: rdma::soft::PORT,
        metrics_port: Some(0),
        peers: Vec::new(),
        cpu: None,
        fence_record: None,
        vm,
    }
}

/// A daemon that has found its machine.
pub fn start(config: &Config) -> Daemon {
    let daemon = Daemon::start(config).unwrap();
    wait_for("the machine to be found", || daemon.target().has_hypervisor());
    daemon
}

/// A link from an address of its own.
pub fn connect(daemon: &Daemon) -> Link {
    Link::connect(daemon.control(), loopback(), Options::new("test")).unwrap()
}
