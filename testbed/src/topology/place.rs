//! A network namespace held by a file descriptor, and how to act in it.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// The calling thread's network namespace.
const THIS_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A machine of the scenario, as far as the network is concerned.
#[derive(Debug)]
pub struct Place {
    name: &'static str,
    /// None: the testbed's own namespace.
    namespace: Option<OwnedFd>,
}

impl Place {
    /// The namespace the testbed runs in.
    pub fn here(name: &'static str) -> Self {
        Self { name, namespace: None }
    }

    /// A new, empty namespace.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn new(name: &'static str) -> Result<Self> {
        // A thread of its own enters the namespace and hands out a descriptor; the testbed's other threads stay.
        let made = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace was refused")?;
            Ok(File::open(THIS_NAMESPACE).context(THIS_NAMESPACE)?.into())
        });
        let namespace = made.join().map_err(|_| anyhow!("the thread making namespace {name} panicked"))??;
        Ok(Self { name, namespace: Some(namespace) })
    }

    /// Another handle of the same place.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let namespace = self.namespace.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self { name: self.name, namespace: namespace.context("duplicating a namespace's descriptor")? })
    }

    /// Its name, for messages and interface names.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The namespace, unless it is the testbed's own.
    pub fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.namespace.as_ref().map(AsFd::as_fd)
    }

    /// Runs `work` on a thread inside this place. Sockets it opens stay in this place for good.
    ///
    /// # Errors
    /// Those of `work`, and when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(namespace) = self.namespace() else { return work() };
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))?;
                work()
            });
            inside.join().map_err(|_| anyhow!("work in {} panicked", self.name))?
        })
    }

    /// Starts a process inside this place: a child inherits the namespace of the thread that starts it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(|| command.spawn().with_context(|| format!("cannot start {program} in {}", self.name)))
    }
}
