//! The agent for a guest, guests that have it, and who plays the backdoor at the host's end of its port.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use control::agent::{FromAgent, Registration, ToAgent};
use control::{Channel, VERSION};
use testbed::guest::ImageSpec;
use testbed::vm::{Vm, VmSpec};

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Builds a program of ours and finds it at `path`, beside this test's own.
pub fn built(arguments: &[&str], path: &str) -> PathBuf {
    let status = Command::new(env!("CARGO")).args(["build", "--quiet"]).args(arguments).status().unwrap();
    assert!(status.success(), "{arguments:?} does not build");
    let program = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("debug").join(path);
    assert!(program.is_file(), "{} is missing", program.display());
    program
}

/// The agent.
pub fn agent_program() -> PathBuf {
    built(&["-p", "target-agent"], "target-agent")
}

/// Where guests' images are made.
pub fn images() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-images")
}

/// Boots a guest from `image` and waits until its services run.
#[allow(dead_code, reason = "each test file uses its part")]
pub fn boot(name: &str, image: &ImageSpec, cpus: u32) -> Vm {
    let mut spec = VmSpec::new(name, &image.kernel().vmlinuz, &image.build(&images()).unwrap());
    spec.cpus = cpus;
    let mut vm = Vm::start(spec).unwrap();
    vm.wait_ready(BOUND).unwrap();
    vm
}

/// The other end of the port, until it is dropped; an agent that breaks the protocol fails the test then.
pub struct BackdoorEnd {
    stream: UnixStream,
    registered: Receiver<Registration>,
    thread: Option<JoinHandle<()>>,
}

impl BackdoorEnd {
    /// Connects to the port of `vm`.
    pub fn of(vm: &Vm) -> Self {
        let stream = UnixStream::connect(vm.agent_socket()).unwrap();
        let (register, registered) = mpsc::channel();
        let mut channel = Channel::new(stream.try_clone().unwrap());
        let thread = thread::spawn(move || {
            let mut greeted = false;
            while let Ok(message) = channel.receive() {
                let answer = match message {
                    FromAgent::Hello(hello) => {
                        greeted = true;
                        assert_eq!(hello.version, VERSION);
                        ToAgent::Welcome { version: VERSION }
                    }
                    FromAgent::Register(region) => {
                        assert!(greeted, "registration without a hello");
                        let _ = register.send(region.clone()); // nobody listens any more while this end is dropped
                        ToAgent::Registered { name: region.name }
                    }
                };
                if channel.send(&answer).is_err() {
                    break; // one of both ends has gone
                }
            }
        });
        Self { stream, registered, thread: Some(thread) }
    }

    /// The next registration.
    pub fn next(&self) -> Registration {
        self.registered.recv_timeout(BOUND).expect("the agent registers")
    }

    /// The next registration of that name.
    pub fn registration(&self, name: &str) -> Registration {
        std::iter::repeat_with(|| self.next()).find(|region| region.name == name).expect("it goes on for ever")
    }

    /// Forgets what was registered so far.
    #[allow(dead_code, reason = "each test file uses its part")]
    pub fn forget(&self) {
        while self.registered.try_recv().is_ok() {}
    }
}

impl Drop for BackdoorEnd {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the agent broke the protocol");
    }
}
