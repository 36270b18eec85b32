//! What an operator or a host can do to a daemon: each case ends in a sentence that says what to do, or goes on.

#[path = "vm/daemon.rs"]
mod daemon;
mod vm;

use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use backdoor::daemon::{Daemon, StartError};
use backdoor::target::{Places, Target};
use control::backdoor::Afterwards;
use link::LinkFailure;
use remote_memory::{RemoteAddr, RemoteKey, RemoteRead, RemoteWrite, Warrant};
use vm::{Folder, Vm, wait_for};

fn target(qmp: PathBuf) -> Target {
    Target::new("t", Places { qmp, ram: None, pid_file: None, record: None }).unwrap()
}

fn check(trouble: &str, expected: &[&str]) {
    for part in expected {
        assert!(trouble.contains(part), "{part:?} is missing in: {trouble}");
    }
}

#[test]
fn guest_memory_that_is_not_shared_names_the_option_to_start_qemu_with() {
    let folder = Folder::new();
    let vm = Vm::with_memory(&folder, "q35", 64, "memory-backend-memfd,share=off", &["-S"]);
    let trouble = target(vm.qmp.clone()).look_for_machine();
    check(&trouble, &["not shared", "memory-backend-memfd", "share=on", "memory-backend=mem"]);
}

#[test]
fn a_qmp_socket_that_is_missing_or_busy_is_named_with_the_reason() {
    let folder = Folder::new();
    let nowhere = folder.join("nowhere");
    check(&target(nowhere).look_for_machine(), &["no QEMU at", "nowhere"]);

    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let first = target(vm.qmp.clone());
    assert_eq!(first.look_for_machine(), "");
    let second = target(vm.qmp.clone());
    check(&second.look_for_machine(), &["does not greet", "another program"]);
    drop(first);
    wait_for("the socket to be free", || second.look_for_machine().is_empty());
}

#[test]
fn without_the_right_to_raw_sockets_the_capability_is_named() {
    let folder = Folder::new();
    let config = folder.join("config.toml");
    let listen = daemon::loopback();
    std::fs::write(&config, format!("target = \"web1\"\nlisten = \"{listen}\"\n[vm]\nqmp = \"/nowhere\"\n")).unwrap();
    let program = Command::new("setpriv")
        .args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--pdeathsig", "KILL"])
        .args([env!("CARGO_BIN_EXE_backdoor"), "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(!program.status.success());
    check(&String::from_utf8_lossy(&program.stderr), &["backdoor:", "raw socket", "grant CAP_NET_RAW"]);
}

#[test]
fn a_port_in_use_is_named() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let mut config = daemon::config(&folder, &vm);
    let other = TcpListener::bind((config.listen, 0)).unwrap();
    config.control_port = other.local_addr().unwrap().port();
    match Daemon::start(&config).err().expect("the port is taken") {
        StartError::Listen(at, _) => assert_eq!(at, other.local_addr().unwrap()),
        other => panic!("{other}"),
    }
    drop(other);
    let other = UdpSocket::bind((config.listen, config.roce_port)).unwrap();
    let error = Daemon::start(&config).err().expect("the port is taken").to_string();
    check(&error, &["cannot serve memory", &other.local_addr().unwrap().to_string()]);
}

#[test]
fn a_fence_outlives_the_daemon_that_made_it() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let mut config = daemon::config(&folder, &vm);
    config.fence_record = Some(folder.join("state/web1.fence"));
    let first = daemon::start(&config);
    let mut link = daemon::connect(&first);
    let token = link.fence("test").unwrap();
    assert!(folder.join("state/web1.fence").exists());
    drop((link, first));
    assert!(!vm.monitor().is_running());

    let second = daemon::start(&config);
    assert!(second.target().is_fenced() && second.target().has_memory());
    let mut stranger = daemon::connect(&second);
    assert!(matches!(stranger.fence("mine"), Err(LinkFailure::Refused { .. })), "others are refused");
    let live = stranger.regions(None).unwrap()[0].clone();
    let mut holder = daemon::connect(&second);
    let ram = holder.regions(Some(&token)).unwrap()[0].clone();
    assert_ne!(live.key, ram.key);
    let at = RemoteAddr::new(RemoteKey::new(ram.key), 0x10_0000);
    let fenced = token.fenced();
    let memory = holder.memory();
    memory.write(Warrant::Fenced(&fenced), at, b"mine").unwrap();
    let mut found = [0; 4];
    memory.read_one(at, &mut found).unwrap().unwrap();
    assert_eq!(&found, b"mine");

    let epoch = token.epoch;
    holder.release(&token, Afterwards::Resume).unwrap();
    assert!(vm.monitor().is_running(), "what ran before the fence runs after it");
    assert!(!folder.join("state/web1.fence").exists());
    assert!(stranger.fence("now it is free").unwrap().epoch > epoch, "no epoch comes twice");
}

#[test]
fn a_token_that_was_given_back_opens_nothing_before_and_after_the_next_fence() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let daemon = daemon::start(&daemon::config(&folder, &vm));
    let (mut link, mut spare) = (daemon::connect(&daemon), daemon::connect(&daemon));
    let old = link.fence("first").unwrap();
    assert!(spare.regions(Some(&old)).is_ok(), "as an order to take over would begin");
    link.release(&old, Afterwards::Resume).unwrap();

    let mut replay = |when: &str| {
        assert!(matches!(spare.regions(Some(&old)), Err(LinkFailure::Refused { .. })), "{when}");
        assert!(matches!(spare.release(&old, Afterwards::PowerOff), Err(LinkFailure::Refused { .. })), "{when}");
        let at = RemoteAddr::new(RemoteKey::new(old.ram_key), 0x10_0000);
        assert!(matches!(spare.memory().read_one(at, &mut [0; 8]), Ok(Err(_))), "{when}: the old key still reads");
        let fenced = old.fenced();
        assert!(spare.memory().write(Warrant::Fenced(&fenced), at, b"mine").is_err(), "{when}: it still writes");
    };
    replay("without a fence");
    let new = link.fence("second").unwrap();
    replay("under the next fence");
    assert!(new.epoch > old.epoch && new.secret != old.secret && new.ram_key != old.ram_key);
    assert!(!vm.monitor().is_running(), "the next fence stands");
    assert!(link.regions(Some(&new)).is_ok());
}

#[test]
fn a_record_that_cannot_be_understood_keeps_the_daemon_from_serving() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &["-S"]);
    let mut config = daemon::config(&folder, &vm);
    let path = folder.join("web1.fence");
    std::fs::write(&path, "{}").unwrap();
    config.fence_record = Some(path);
    let error = Daemon::start(&config).err().expect("nobody knows whether it is fenced").to_string();
    check(&error, &["web1.fence", "web1", "remove the file"]);
}
