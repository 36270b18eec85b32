//! The daemon's threads, and the one loop that waits for its end.
//!
//! ```text
//!   memory   rdma::soft::Server    spins, then blocks; may be bound to a processor
//!   watch    Target::watch         finds the machine, follows its events
//!   agent    agent_port::serve     what the guest registers
//!   control  Plane::serve          one more thread for each peer
//!   metrics  service::metrics::Endpoint
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rdma::soft::{Options, Server, SocketError};
use service::metrics::{Endpoint, text_of};

use crate::config::Config;
use crate::control::Plane;
use crate::target::{Places, RecordError, Target};
use crate::{agent_port, metrics};

/// Why the daemon did not start: the configuration or the machine it runs on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No RoCEv2 here.
    #[error("cannot serve memory: {0}")]
    Memory(#[from] SocketError),
    /// No control plane or no metrics here.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// It cannot be told whether the target is fenced.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running daemon.
pub struct Daemon {
    target: Arc<Target>,
    control: SocketAddr,
    metrics: Option<Endpoint>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Binds everything and starts all threads. The machine is looked for afterwards, for as long as it takes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let Config { vm, listen, .. } = config;
        let places = Places {
            qmp: vm.qmp.clone(),
            ram: vm.ram.file(),
            pid_file: vm.pid_file.clone(),
            record: config.fence_record.clone(),
        };
        let target = Arc::new(Target::new(&config.target, places)?);
        let server = Server::bind(*listen, config.roce_port, target.memory(), Options::default())?;
        let control = listener(*listen, config.control_port)?;
        let stop = Arc::new(AtomicBool::new(false));
        let plane = Plane::new(Arc::clone(&target), server.handle(), &config.peers, Arc::clone(&stop));
        let mut daemon = Self {
            target: Arc::clone(&target),
            control: control.local_addr().unwrap_or((*listen, 0).into()),
            metrics: None,
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        daemon.spawn("memory", {
            let (stop, cpu) = (stop.clone(), config.cpu);
            move || serve_memory(server, cpu, &stop)
        })?;
        daemon.spawn("watch", {
            let (target, stop) = (target.clone(), stop.clone());
            move || target.watch(&stop)
        })?;
        if let Some(path) = vm.agent_port.clone() {
            let (target, stop) = (target.clone(), stop.clone());
            daemon.spawn("agent", move || agent_port::serve(&path, &target, &stop))?;
        }
        if let Some(port) = config.metrics_port {
            let (at, registry) = ((*listen, port).into(), metrics::registry(plane.clone()));
            let endpoint = Endpoint::start(at, move || text_of(&registry));
            daemon.metrics = Some(endpoint.map_err(|error| StartError::Listen(at, error))?);
        }
        daemon.spawn("control", move || plane.serve(&control))?;
        tracing::info!(target = config.target, control = %daemon.control, roce = config.roce_port, "backdoor runs");
        Ok(daemon)
    }

    /// Where the control plane listens.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// Where Prometheus asks.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(Endpoint::address)
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether a thread that should run for ever has ended.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run).map_err(StartError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }
}

/// Ends all threads. A standing fence is left standing: nobody lets a machine run because a process ends.
impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread had panicked");
            }
        }
        if self.target.is_fenced() {
            tracing::warn!(target = self.target.name(), "the target is left fenced: stopped, links down");
        }
    }
}

fn listener(address: Ipv4Addr, port: u16) -> Result<TcpListener, StartError> {
    let at = SocketAddr::from((address, port));
    TcpListener::bind(at).map_err(|error| StartError::Listen(at, error))
}

fn serve_memory(mut server: Server<Arc<crate::memory::GuardedMemory>>, cpu: Option<usize>, stop: &AtomicBool) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        if let Err(error) = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
            tracing::warn!(cpu, %error, "the memory thread is not bound to a processor");
        }
    }
    if let Err(error) = server.run(stop) {
        tracing::error!(%error, "memory is not served any more");
    }
}
