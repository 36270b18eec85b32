//! A target on a machine, and the thread that looks after it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use backdoor::target::{Places, Target};
use control::backdoor::FenceToken;
use remote_memory::RemoteKey;

use super::vm::{Vm, wait_for};

/// A target under watch, which ends with the test.
pub struct Watched {
    pub target: Arc<Target>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watched {
    pub fn start(vm: &Vm) -> Self {
        Self::remembering(vm, None)
    }

    /// The same with a file that remembers a fence.
    pub fn remembering(vm: &Vm, record: Option<PathBuf>) -> Self {
        let places = Places { qmp: vm.qmp.clone(), ram: None, pid_file: None, record };
        let target = Arc::new(Target::new("t", places).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Some(thread::spawn({
            let (target, stop) = (target.clone(), stop.clone());
            move || target.watch(&stop)
        }));
        wait_for("the machine to be found", || target.has_hypervisor());
        Self { target, stop, thread }
    }

    pub fn fence(&self) -> FenceToken {
        self.target.fence(None).unwrap().0
    }

    /// The key of a region, as everybody may know it.
    pub fn key(&self, name: &str) -> RemoteKey {
        let (_, regions) = self.target.regions(None).unwrap();
        RemoteKey::new(regions.iter().find(|region| region.name == name).unwrap().key)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
