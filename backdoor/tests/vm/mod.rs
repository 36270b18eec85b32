//! A QEMU machine without an operating system: memory, processors, a link, two monitor sockets. Ends with the test.

#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backdoor::qmp::Qmp;
use serde_json::{Value, json};

/// The longest that anything here takes on a slow and busy machine.
pub const BOUND: Duration = Duration::from_secs(60);

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder of the test's own, gone when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("backdoor-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts QEMU in `folder` with `machine` and `mib` of memory and `more` arguments.
pub struct Vm {
    child: Child,
    pub qmp: PathBuf,
    other_qmp: PathBuf,
}

impl Vm {
    pub fn start(folder: &Folder, machine: &str, mib: u64, more: &[&str]) -> Self {
        Self::with_memory(folder, machine, mib, "memory-backend-memfd,share=on", more)
    }

    /// The same with a memory backend of another kind.
    pub fn with_memory(folder: &Folder, machine: &str, mib: u64, backend: &str, more: &[&str]) -> Self {
        let (qmp, other_qmp) = (folder.join("qmp"), folder.join("other.qmp"));
        for path in [&qmp, &other_qmp] {
            let _ = std::fs::remove_file(path);
        }
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        // setpriv becomes QEMU, with the wish to die when the test does, however it does.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg"])
            .args(["-machine", &format!("{machine},memory-backend=mem"), "-m", &format!("{mib}M")])
            .args(["-object", &format!("{backend},id=mem,size={mib}M")])
            .args(["-netdev", "user,id=net0", "-device", "e1000,netdev=net0,id=nic0,romfile="])
            .args(["-qmp", &socket(&qmp), "-qmp", &socket(&other_qmp)])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 and setpriv (util-linux) are installed");
        let vm = Self { child, qmp, other_qmp };
        wait_for("QEMU's socket", || vm.qmp.exists() && vm.other_qmp.exists());
        vm
    }

    /// A monitor of the test's own.
    pub fn monitor(&self) -> Monitor {
        // A socket is there a moment before anybody listens.
        let mut qmp = None;
        wait_for("QEMU to listen", || {
            qmp = Qmp::connect(&self.other_qmp, BOUND).ok();
            qmp.is_some()
        });
        Monitor(qmp.unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends QEMU as the kernel's OOM killer would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for QEMU to end by itself.
    pub fn wait(&mut self) {
        wait_for("the end of QEMU", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What QEMU itself says.
pub struct Monitor(Qmp);

impl Monitor {
    pub fn execute(&mut self, command: &str) -> Value {
        self.0.execute(command, json!({})).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.execute("query-status")["running"].as_bool().unwrap()
    }

    /// Guest-physical memory, as QEMU sees it.
    pub fn memory(&mut self, addr: u64, len: usize) -> Vec<u8> {
        let text = self.0.human(&format!("xp /{len}xb {addr:#x}")).unwrap();
        let bytes = |line: &str| -> Vec<u8> {
            let (_, bytes) = line.split_once(':').unwrap_or_else(|| panic!("unexpected: {text}"));
            bytes.split_whitespace().map(|byte| u8::from_str_radix(&byte[2..], 16).unwrap()).collect()
        };
        text.lines().flat_map(bytes).collect()
    }

    /// All of guest-physical memory from `addr` on, by way of a file.
    pub fn save(&mut self, folder: &Folder, addr: u64, len: u64) -> Vec<u8> {
        let path = folder.join("pmemsave");
        let arguments = json!({ "val": addr, "size": len, "filename": path.to_str().unwrap() });
        self.0.execute("pmemsave", arguments).unwrap();
        std::fs::read(&path).unwrap()
    }

    /// Gives every link back, or takes it away, as an operator could.
    pub fn set_links(&mut self, up: bool) {
        let text = self.0.human("info network").unwrap();
        for line in text.lines() {
            if let Some((name, _)) = line.split_once(": index=") {
                let name = name.trim_start_matches([' ', '\\']);
                self.0.execute("set_link", json!({ "name": name, "up": up })).unwrap();
            }
        }
    }

    /// Whether the guest sees its link up: bit 1 of the e1000's status register, which the BIOS has mapped.
    pub fn link_is_up(&mut self) -> bool {
        let devices = self.0.human("info pci").unwrap();
        let (_, rest) = devices.split_once("BAR0: 32 bit memory at 0x").expect("the NIC's registers");
        let base = u64::from_str_radix(rest.split_whitespace().next().unwrap(), 16).unwrap();
        self.memory(base + 8, 1)[0] & 2 != 0
    }

    /// Waits until the BIOS has set up the devices.
    pub fn wait_for_bios(&mut self) {
        wait_for("the BIOS", || self.0.human("info pci").unwrap().contains("BAR0: 32 bit memory at 0xfe"));
    }
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < BOUND, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
