//! The door to a real target: a link to its backdoor, opened when it is first needed and kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use control::backdoor::FenceToken;
use link::{Link, LinkFailure, Options};
use remote_memory::{Region, RemoteRead};
use sensorbox::layout::{CAPACITY_MAX, box_bytes};

use crate::config::{Config, Target};
use crate::sample::{Door, REGION};

/// How long a control request may take; a fence waits for the hypervisor, which takes milliseconds.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);

/// The shortest patience with one read: a scheduler's delay at either end is no lost sample.
const READ_PATIENCE_MIN: Duration = Duration::from_millis(20);

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
        let options = Options {
            control_patience: CONTROL_PATIENCE,
            memory_patience: (config.path_deadline / 4).max(READ_PATIENCE_MIN),
            landing_bytes: box_bytes(CAPACITY_MAX) as usize,
            ..Options::new(&config.name)
        };
        let Target { name, backdoor, .. } = target;
        Self { target: name.clone(), backdoor: *backdoor, local: config.local, options, link: None }
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

    fn memory(&mut self) -> Option<&mut dyn RemoteRead> {
        self.link.as_mut().map(|link| link.memory() as &mut dyn RemoteRead)
    }

    fn fence(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure> {
        self.open()?.fence_as(reason, claim)
    }

    fn stands(&mut self, token: &FenceToken) -> Result<bool, LinkFailure> {
        match self.open()?.regions(Some(token)) {
            Ok(_) => Ok(true),
            Err(LinkFailure::Refused { .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}
