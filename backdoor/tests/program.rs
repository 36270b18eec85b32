//! The program as an operator meets it.

#[path = "vm/daemon.rs"]
mod daemon;
mod vm;

use std::process::{Command, Output};

use vm::{Folder, Vm, wait_for};

fn backdoor() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_backdoor")]);
    command
}

fn check(folder: &Folder, text: &str) -> Output {
    let path = folder.join("config.toml");
    std::fs::write(&path, text).unwrap();
    backdoor().args(["--check", "--config"]).arg(path).output().unwrap()
}

#[test]
fn check_says_what_is_wrong_and_where() {
    let folder = Folder::new();
    let good = "target = \"web1\"\nlisten = \"127.0.0.1\"\n[vm]\nqmp = \"/nowhere\"\n";
    assert!(check(&folder, good).status.success());
    let bad = check(&folder, &good.replace("listen", "lisen"));
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(!bad.status.success());
    assert!(said.contains("config.toml:2: lisen: unknown field `lisen`"), "{said}");
}

#[test]
fn it_tells_the_service_manager_and_ends_when_told_leaving_a_fence_standing() {
    let folder = Folder::new();
    let vm = Vm::start(&folder, "q35", 64, &[]);
    let manager = std::os::unix::net::UnixDatagram::bind(folder.join("notify")).unwrap();
    manager.set_read_timeout(Some(vm::BOUND)).unwrap();
    let told = || {
        let mut bytes = [0; 64];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let listen = daemon::loopback();
    let config = folder.join("config.toml");
    let text = format!("target = \"web1\"\nlisten = \"{listen}\"\n[vm]\nqmp = \"{}\"\n", vm.qmp.display());
    std::fs::write(&config, text).unwrap();
    let mut child = backdoor()
        .args(["--log-json", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .stderr(std::fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(told(), "READY=1");
    let control = (listen, control::backdoor::PORT).into();
    let mut link = link::Link::connect(control, daemon::loopback(), link::Options::new("test")).unwrap();
    let mut token = None;
    wait_for("the machine to be found", || {
        token = link.fence("test").ok();
        token.is_some()
    });
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(told(), "STOPPING=1");
    assert!(child.wait().unwrap().success());
    assert!(!vm.monitor().is_running(), "nobody lets a machine run because a process ends");
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    }
    assert!(log.contains("target fenced"), "{log}");
}
