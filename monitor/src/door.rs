//! The door to a real target: a link to its backdoor, opened when it is first needed and kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use control::backdoor::{Afterwards, FenceState, FenceToken, LockHolder};
use link::{Link, LinkFailure, Options};
use rdma::soft::Hub;
use remote_memory::{Queue, Region, RemoteRead};
use sensorbox::layout::{CAPACITY_MAX, box_bytes};

use crate::config::{Config, Target};
use crate::kernel;
use crate::sample::{Door, Life, REGION};

/// How long a control request may take; a fence waits for the hypervisor, which takes milliseconds.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);

/// The shortest patience with one read: a scheduler's delay at either end is no lost sample.
const READ_PATIENCE_MIN: Duration = Duration::from_millis(20);

/// Reads on the way at the same time: a sample of a box is a few, and a thousand doors must not cost gigabytes.
const DEPTH: usize = 64;

/// What a box may have, as a landing buffer.
const BOX_BYTES: usize = box_bytes(CAPACITY_MAX) as usize;

/// How long a sample may take before it counts as lost.
pub fn read_patience(config: &Config) -> Duration {
    (config.path_deadline / 4).max(READ_PATIENCE_MIN)
}

/// A link that is made on first use.
#[derive(Debug)]
pub struct LinkDoor {
    target: String,
    backdoor: SocketAddr,
    local: Ipv4Addr,
    options: Options,
    link: Option<Link>,
}

impl LinkDoor {
    /// The door to `target`, not opened yet.
    pub fn new(config: &Config, target: &Target) -> Self {
        let reads_kernel = !target.kernel_sensors.is_empty();
        let (more_bytes, more_reads) = if reads_kernel { (kernel::BYTES_MAX, kernel::STRETCHES_MAX) } else { (0, 0) };
        let options = Options {
            control_patience: CONTROL_PATIENCE,
            memory_patience: read_patience(config),
            landing_bytes: BOX_BYTES + more_bytes,
            depth: DEPTH + more_reads,
            // A sample may come some ten microseconds later; spinning would cost more than it.
            spin: Some(Duration::ZERO),
            carrier: target.carrier.clone(),
            ..Options::new(&config.name)
        };
        let Target { name, backdoor, .. } = target;
        Self { target: name.clone(), backdoor: *backdoor, local: config.local, options, link: None }
    }

    /// The same over sockets that many doors share.
    #[must_use]
    pub fn at(mut self, hub: &Hub) -> Self {
        self.options.hub = Some(hub.clone());
        self
    }

    fn open(&mut self) -> Result<&mut Link, LinkFailure> {
        let link = match self.link.take() {
            Some(link) => link,
            None => self.connected()?,
        };
        Ok(self.link.insert(link))
    }

    fn connected(&self) -> Result<Link, LinkFailure> {
        let link = Link::connect(self.backdoor, self.local, self.options.clone())?;
        let found = link.welcome().target;
        if found != self.target {
            return Err(LinkFailure::OtherTarget { expected: self.target.clone(), found });
        }
        tracing::info!(target_name = %self.target, backdoor = %self.backdoor, "connected");
        Ok(link)
    }
}

impl Door for LinkDoor {
    fn region(&mut self) -> Result<Region, LinkFailure> {
        Ok(self.open()?.region(REGION)?.into())
    }

    fn ram(&mut self) -> Result<Region, LinkFailure> {
        Ok(self.open()?.region("ram")?.into())
    }

    fn life(&mut self) -> Result<Life, LinkFailure> {
        Life::of(self.open()?)
    }

    fn memory(&mut self) -> Option<&mut dyn RemoteRead> {
        self.link.as_mut().map(|link| link.memory() as &mut dyn RemoteRead)
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        self.link.as_mut().map(|link| link.memory().queue_mut() as &mut dyn Queue)
    }

    fn repetitions(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.repetitions())
    }

    fn renew(&mut self) {
        if let Some(Err(error)) = self.link.as_mut().map(|link| link.memory().queue_mut().reconnect()) {
            tracing::debug!(%error, "no new connection yet");
        }
    }

    fn lock_holder(&mut self) -> Result<Option<LockHolder>, LinkFailure> {
        self.open()?.lock_holder()
    }

    fn fence(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure> {
        self.open()?.fence_as(reason, claim)
    }

    fn fence_state(&mut self, token: &FenceToken) -> Result<FenceState, LinkFailure> {
        self.open()?.fence_state(token)
    }

    fn reset(&mut self, token: &FenceToken) -> Result<(), LinkFailure> {
        self.open()?.reset(token)
    }

    fn plug(&mut self, token: &FenceToken) -> Result<(), LinkFailure> {
        self.open()?.release(token, Afterwards::Resume)
    }
}
