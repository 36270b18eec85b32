//! Tells the backdoor where the boxes lie, whenever there is a backdoor to tell.
//!
//! A conversation is: hello, one registration for each region, and then again after [`AGAIN_AFTER`] or as soon as
//! the host's end was closed and opened. The repetition covers a backdoor that restarted so quickly that nobody saw
//! it; registering the same pages twice changes nothing.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control::agent::{FromAgent, PORT_NAME, Registration, ToAgent};
use control::{Channel, Hello};
use remote_memory::Rights;
use tracing::{debug, info, warn};

use crate::maps::BoxMap;
use crate::pages::physical_pages;
use crate::port::{Port, Waited};
use crate::shared::Mapping;

/// Between two registrations in an undisturbed conversation.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Between two attempts to reach a backdoor that is not there.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Memory that monitors may reach.
#[derive(Clone, Debug)]
pub struct Region {
    /// What a backdoor is told of it.
    told: Registration,
    /// Where it lies in this process.
    mapping: Mapping,
    /// What monitors may do with it.
    rights: Rights,
}

impl Region {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.told.name
    }

    /// Where it lies in this process.
    pub fn mapping(&self) -> Mapping {
        self.mapping
    }

    /// What monitors may do with it.
    pub fn rights(&self) -> Rights {
        self.rights
    }
}

/// `boxes` as a region that monitors may read.
///
/// # Errors
/// If the physical pages cannot be listed.
pub fn of(boxes: &BoxMap) -> Result<Region> {
    with(boxes, Rights::READ)
}

/// The same for what monitors may also write while this machine runs: orders, and nothing else.
///
/// # Errors
/// As [`of`].
pub fn of_orders(orders: &BoxMap) -> Result<Region> {
    with(orders, Rights::READ.and(Rights::WRITE))
}

/// The same for words that monitors may also swap and add to, so that of two of them one is the first.
///
/// # Errors
/// As [`of`].
pub fn of_words(words: &BoxMap) -> Result<Region> {
    with(words, Rights::ALL)
}

fn with(boxes: &BoxMap, rights: Rights) -> Result<Region> {
    let (name, mapping) = (boxes.name().to_owned(), boxes.mapping());
    let pages = physical_pages(&mapping).with_context(|| format!("pages of {name}"))?;
    let writable = rights.covers(Rights::WRITE);
    let told = Registration { name, len: mapping.len_bytes() as u64, pages, writable };
    Ok(Region { told, mapping, rights })
}

/// Keeps `regions` registered until the sender of `stop` is gone.
pub fn keep(regions: &[Region], stop: &Receiver<()>) {
    let mut said = String::new();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(RETRY_AFTER) {
        let why = match converse(regions, stop, &mut said) {
            Ok(()) => continue,
            Err(why) => format!("{why:#}"),
        };
        // The same trouble five times a second is said once.
        if said != why {
            warn!("not registered with a backdoor: {why}; will keep trying");
            said = why;
        }
    }
}

/// One conversation. Ends well when the host's end closes or is not open.
fn converse(regions: &[Region], stop: &Receiver<()>, said: &mut String) -> Result<()> {
    let port = Port::open(PORT_NAME).context("cannot open the port to the host")?;
    if !port.has_host()? {
        bail!("nobody listens on the host's end of {PORT_NAME}");
    }
    let mut channel = Channel::new(port);
    let mut first = true;
    loop {
        register(&mut channel, regions)?;
        if first {
            info!(regions = regions.len(), "registered with the backdoor");
        }
        first = false;
        said.clear();
        if !matches!(stop.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            return Ok(());
        }
        match rest(channel.stream())? {
            Waited::TimedOut => debug!("registering again"),
            Waited::HungUp => return Ok(()),
            Waited::Ready => bail!("the backdoor spoke without being asked"),
        }
    }
}

fn rest(port: &Port) -> io::Result<Waited> {
    port.wait_for_bytes(AGAIN_AFTER)
}

fn register(channel: &mut Channel<Port>, regions: &[Region]) -> Result<()> {
    match channel.ask(&FromAgent::Hello(Hello::new("agent"))).context("the backdoor does not answer")? {
        ToAgent::Welcome { version } if version == control::VERSION => {}
        ToAgent::Welcome { version } => bail!("the backdoor speaks version {version}, this agent {}", control::VERSION),
        ToAgent::Refused { why } => bail!("the backdoor refused this agent: {why}"),
        other => bail!("the backdoor answered a hello with {other:?}"),
    }
    for Region { told: region, .. } in regions {
        match channel.ask(&FromAgent::Register(region.clone())).context("the backdoor does not answer")? {
            ToAgent::Registered { name } if name == region.name => {}
            ToAgent::Refused { why } => bail!("the backdoor refused the region {}: {why}", region.name),
            other => bail!("the backdoor answered the registration of {} with {other:?}", region.name),
        }
    }
    Ok(())
}
