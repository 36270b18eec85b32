//! The agent for a guest, and who plays the backdoor at the host's end of its port.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use control::agent::{FromAgent, Registration, ToAgent};
use control::{Channel, VERSION};
use testbed::vm::Vm;

/// Generous: software emulation on a loaded machine.
const BOUND: Duration = Duration::from_secs(180);

/// Builds and finds the agent beside this test's own program.
pub fn agent_program() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "target-agent"]).status().unwrap();
    assert!(built.success(), "the agent does not build");
    let this = std::env::current_exe().unwrap();
    let debug = this.ancestors().nth(3).unwrap().join("debug/target-agent");
    assert!(debug.is_file(), "{} is missing", debug.display());
    debug
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
