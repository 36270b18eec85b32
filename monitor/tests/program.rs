//! The daemon as a program: what it says about its configuration, and how it starts and ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A bound for waiting that only a broken build reaches.
const GENEROUS: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn config(&self, metrics: &str, extra: &str) -> PathBuf {
        let file = self.0.join("monitor.toml");
        let journal = self.0.join("journal");
        let text = format!(
            "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = {journal:?}\n{metrics}\n\
             [sampling]\npath_deadline_ms = 100\n\
             [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 100\nraises = \"hang\"\n\
             [[target]]\nname = \"web\"\nbackdoor = \"127.0.0.1:1\"\non_hang = \"report\"\n{extra}\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn monitor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_monitor")).args(arguments).output().unwrap()
}

#[test]
fn a_check_says_what_is_right_and_what_is_wrong() {
    let folder = Folder::new("check");
    let good = folder.config("", "");
    let output = monitor(&["--config", good.to_str().unwrap(), "--check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.ends_with("right; 1 targets, a sample every 1.5ms\n"), "{said}");

    let bad = folder.config("", "colour = 3");
    let output = monitor(&["--config", bad.to_str().unwrap(), "--check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("monitor.toml:16: target.colour: unknown field `colour`"), "{said}");
}

#[test]
fn a_port_in_use_and_a_journal_that_cannot_be_written_are_named() {
    let folder = Folder::new("start");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let said = |config: PathBuf| {
        let output = monitor(&["--config", config.to_str().unwrap()]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let text = said(folder.config(&format!("metrics = \"{address}\""), ""));
    assert!(text.contains(&format!("metrics cannot be served at {address}: Address already in use")), "{text}");
    std::fs::create_dir(folder.0.join("journal")).unwrap();
    let text = said(folder.config("", ""));
    assert!(text.contains("journal") && text.contains("Is a directory"), "{text}");
}

#[test]
fn a_missing_capability_is_named_before_anything_is_watched() {
    let folder = Folder::new("capability");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--pdeathsig", "KILL"])
        .args([env!("CARGO_BIN_EXE_monitor"), "--config"])
        .arg(folder.config("", ""))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("monitor: CAP_NET_RAW is missing, for the raw socket"), "{said}");
    assert!(!folder.0.join("journal").exists(), "nothing was begun");
}

#[test]
fn a_daemon_without_its_target_says_so_serves_metrics_and_ends_when_asked() {
    let folder = Folder::new("daemon");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = folder.config(&format!("metrics = \"{free}\""), "");
    let manager = UnixDatagram::bind(folder.0.join("notify")).unwrap();
    manager.set_read_timeout(Some(GENEROUS)).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_monitor"))
        .arg("--config")
        .arg(&config)
        .arg("--log-json")
        .env("NOTIFY_SOCKET", folder.0.join("notify"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut daemon = Daemon(child);
    let mut word = [0; 16];
    let len = manager.recv(&mut word).expect("the daemon says that it is up");
    assert_eq!(&word[..len], b"READY=1");

    let begin = Instant::now();
    while !scraped(free).contains("backdoors_monitor_path_lost{target=\"web\"} 1") {
        assert!(begin.elapsed() < GENEROUS, "the lost path is not shown");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(daemon.0.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());

    let journal = folder.0.join("journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    assert!(text.contains("\"stage\":\"opened\"") && text.contains("\"stage\":\"path_lost\""), "{text}");
    let output = monitor(&["replay", journal.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 verdicts, 0 repairs\n");
}

/// Whether it lives: an orphan may stay a zombie until the system's first process gets round to it.
fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// A module's program that says where it is, and listens to nothing: neither to its input nor to SIGTERM.
const DEAF_MODULE: &str = "trap '' TERM; echo $$ > $1.new; mv $1.new $1; echo a murmur >&2; \
                           echo '{\"hello\":{\"version\":1}}'; while :; do sleep 1; done";

#[test]
fn modules_are_started_ahead_and_end_with_the_daemon_however_it_ends() {
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let folder = Folder::new(&format!("modules-{end}"));
        let place = folder.0.join("pid");
        let repair = format!(
            "[[target.repair.module]]\nsensors = [\"tasks\"]\n\
             command = [\"/bin/sh\", \"-c\", {DEAF_MODULE:?}, \"deaf\", {place:?}]\n"
        );
        let log = std::fs::File::create(folder.0.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_monitor"));
        command.arg("--config").arg(folder.config("", &repair)).arg("--log-json").stdout(log.try_clone().unwrap());
        let mut daemon = Daemon(command.stderr(log).spawn().unwrap());
        let begin = Instant::now();
        while !place.exists() {
            assert!(daemon.0.try_wait().unwrap().is_none() && begin.elapsed() < GENEROUS, "no module is started");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = std::fs::read_to_string(&place).unwrap().trim().parse().map(Pid::from_raw).unwrap();
        assert!(lives(pid));
        let says = || std::fs::read_to_string(folder.0.join("log")).unwrap_or_default();
        while !(says().contains("ready to be asked") && says().contains("a murmur")) {
            assert!(begin.elapsed() < GENEROUS, "{}", says());
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(Pid::from_raw(daemon.0.id().cast_signed()), end).unwrap();
        daemon.0.wait().unwrap();
        while lives(pid) {
            assert!(begin.elapsed() < GENEROUS, "{end}: the module lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn scraped(address: std::net::SocketAddr) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}
