//! The agent's part in the fence: what is guarded, and who lets the stopped go again.
//!
//! ```text
//!   options ──► service addresses, marks ──► maps          the programs decide by them, see bpf/fence.bpf.h
//!           ──► interfaces ──► tc both ways, XDP           attached here; they stay when the agent goes
//!   nothing stands any more ──► whom the lock has stopped ──► SIGCONT
//! ```
//! A lock is taken, answered and ended without the agent. Only who was stopped by one that has ended waits for it: so
//! the kernel stops nobody for what ends by itself unless the agent has said within a second that it is at its place.
//! Who was stopped by a fence that was held stays so when that is released: its sessions may live elsewhere by now.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use libbpf_rs::{
    Link, MapCore, MapFlags, MapHandle, MapType, TC_EGRESS, TC_INGRESS, TcHook, Xdp, XdpFlags, libbpf_sys,
};
use locktable::locked::Mark;
use locktable::{Sign, Standing, Verdict};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::ebpf::Placed;
use crate::maps::BoxMap;
use crate::pins::Pins;
use crate::roster::now_ns;
use crate::{shared, sweep};

/// Between two signs that the agent is there: the kernel wants one a second.
const BEAT: Duration = Duration::from_millis(100);

/// Name and pin of the map with the service's addresses.
pub const ADDRESSES: &str = "service_addresses";

/// Name and pin of the map of those whom a lock has stopped.
pub const STOPPED: &str = "stopped";

/// Addresses that a service can have, and processes that a lock can stop, as the programs have it.
const ADDRESSES_MAX: u32 = 256;
const STOPPED_MAX: u32 = 4096;

/// Our filter among those of an interface. Ours run first.
const FILTER: u32 = 0x6264;
const FIRST: u32 = 1;

/// What a lock covers.
#[derive(Clone, Debug, Args)]
pub struct Guarded {
    /// An address of the service, which nobody reaches and nothing leaves from while a lock stands; several times for
    /// several. Without one nobody can lock this machine.
    #[arg(long, value_name = "ADDRESS", requires = "service_interface")]
    pub service_address: Vec<IpAddr>,
    /// An interface that the service's packets pass; several times for several.
    #[arg(long, value_name = "INTERFACE")]
    pub service_interface: Vec<String>,
    /// User whose processes are stopped while a lock stands.
    #[arg(long, value_name = "UID")]
    pub service_uid: Vec<u32>,
    /// The same of a cgroup (version 2), by its folder.
    #[arg(long, value_name = "FOLDER")]
    pub service_cgroup: Vec<PathBuf>,
    /// Whether packets are dropped by XDP too, before the kernel has made anything of them.
    #[arg(long, value_enum, default_value = "native")]
    pub guard_xdp: GuardXdp,
}

/// How XDP is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardXdp {
    /// Where the driver takes it.
    Native,
    /// Whatever the driver takes: by the kernel, at some cost for each packet.
    Generic,
    /// Not.
    Off,
}

impl Guarded {
    /// Whether anything is to be guarded at all.
    pub fn is_wanted(&self) -> bool {
        !self.service_address.is_empty()
    }

    fn marks(&self) -> Result<Vec<Mark>> {
        let cgroup = |folder: &PathBuf| {
            let found = fs::metadata(folder).with_context(|| format!("cannot find the cgroup {}", folder.display()))?;
            Ok(Mark::Cgroup(found.ino()))
        };
        let cgroups = self.service_cgroup.iter().map(cgroup).collect::<Result<Vec<_>>>()?;
        Ok(self.service_uid.iter().map(|uid| Mark::Uid(*uid)).chain(cgroups).collect())
    }
}

/// The maps that are no regions.
#[derive(Debug)]
pub struct Lists {
    /// Addresses of the service.
    pub addresses: MapHandle,
    /// Whom a lock has stopped.
    pub stopped: MapHandle,
}

impl Lists {
    /// Opens them by their pins, or makes them.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            addresses: hash(pins, ADDRESSES, [16, 4], ADDRESSES_MAX)?,
            stopped: hash(pins, STOPPED, [4, 8], STOPPED_MAX)?,
        })
    }
}

fn hash(pins: &Pins, name: &str, [key, value]: [u32; 2], entries: u32) -> Result<MapHandle> {
    let path = pins.map(name);
    if path.exists() {
        return MapHandle::from_pinned_path(&path).with_context(|| format!("cannot open the map {}", path.display()));
    }
    let options =
        libbpf_sys::bpf_map_create_opts { sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _, ..Default::default() };
    let mut map = MapHandle::create(MapType::Hash, Some(name), key, value, entries, &options)
        .with_context(|| format!("the kernel makes no map {name}"))?;
    map.pin(&path).with_context(|| format!("cannot pin a map at {}", path.display()))?;
    Ok(map)
}

/// Says in the answers who this machine is and what a lock covers.
///
/// # Errors
/// If a cgroup is not there, or the map is another release's.
pub fn open(answers: &BoxMap, lists: &Lists, guarded: &Guarded, cpus: &[u32]) -> Result<Sign<'static>> {
    ensure!(guarded.service_address.len() <= ADDRESSES_MAX as usize, "more than {ADDRESSES_MAX} service addresses");
    let wanted: Vec<_> = guarded.service_address.iter().map(|address| key(*address)).collect();
    let known: Vec<_> = lists.addresses.keys().collect();
    for old in known.iter().filter(|old| !wanted.iter().any(|key| key == old.as_slice())) {
        lists.addresses.delete(old).context("an old service address cannot be forgotten")?;
    }
    for key in &wanted {
        lists.addresses.update(key, &1u32.to_le_bytes(), MapFlags::ANY).context("a service address cannot be noted")?;
    }
    Sign::put(answers.mapping().words(), sweep::target()?, cpus, &guarded.marks()?, std::process::id())
        .context("remove the pins lock and locked to give the old lock up")
}

/// As packets have it: an IPv4 address mapped into those of IPv6.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Attaches the guards to every interface, in place of those of another build.
///
/// # Errors
/// If there is no such interface, or the kernel refuses: a lock would not keep what it says.
pub fn guard(sign: &Sign<'_>, placed: &Placed, guarded: &Guarded) -> Result<()> {
    let program = |name: &str| {
        shared::pinned_program(&placed.folder.join(name)).with_context(|| format!("the program {name} is not pinned"))
    };
    let (inwards, outwards, xdp) = (program("guard_in")?, program("guard_out")?, program("guard_xdp")?);
    let mut by_xdp = 0;
    for name in &guarded.service_interface {
        let index = if_nametoindex(name.as_str()).with_context(|| format!("there is no interface {name}"))?;
        let index = i32::try_from(index)?;
        for (program, point) in [(&inwards, TC_INGRESS), (&outwards, TC_EGRESS)] {
            hang(program, index, point).with_context(|| format!("tc of {name} takes no program"))?;
        }
        by_xdp += u16::from(is_taken_by_xdp(&xdp, index, name, guarded.guard_xdp));
    }
    let count = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
    sign.guards(count(guarded.service_interface.len()), by_xdp, count(guarded.service_address.len()));
    info!(interfaces = ?guarded.service_interface, by_xdp, addresses = ?guarded.service_address, "guarded");
    Ok(())
}

fn hang(program: &OwnedFd, index: i32, point: libbpf_rs::TcAttachPoint) -> Result<()> {
    let mut hook = TcHook::new(program.as_fd());
    hook.ifindex(index).replace(true).handle(FILTER).priority(FIRST);
    // One qdisc has both points.
    hook.attach_point(TC_INGRESS | TC_EGRESS).create().context("no clsact")?;
    hook.attach_point(point).attach().context("no filter")?;
    Ok(())
}

/// XDP only drops earlier what tc drops anyway: where there is none, nothing is lost.
fn is_taken_by_xdp(program: &OwnedFd, index: i32, name: &str, how: GuardXdp) -> bool {
    let flags = match how {
        GuardXdp::Native => XdpFlags::DRV_MODE,
        GuardXdp::Generic => XdpFlags::SKB_MODE,
        GuardXdp::Off => return false,
    };
    let taken = Xdp::new(program.as_fd()).attach(index, flags);
    if let Err(why) = &taken {
        info!(interface = name, %why, "no XDP there; tc does without");
    }
    taken.is_ok()
}

/// Says that the agent is there, and lets those go whom a lock has stopped once it has ended; as long as the process
/// lives.
pub fn keep(sign: Sign<'_>, lists: &Lists, lister: &Path) {
    if let Err(why) = shared::before_ordinary_threads() {
        warn!("who was stopped is let go when ordinary threads get to run: {why}");
    }
    let lister = match Link::open(lister) {
        Ok(lister) => lister,
        Err(why) => {
            warn!(at = %lister.display(), "nobody is stopped by a lock, since nobody could be let go: {why}");
            return;
        }
    };
    loop {
        sign.beat(now_ns());
        if let Standing::Free { how, .. } = sign.standing()
            && let Err(why) = let_go(lists, &lister, how)
        {
            warn!("those whom a lock has stopped are still so: {why:#}");
        }
        thread::sleep(BEAT);
    }
}

fn let_go(lists: &Lists, lister: &Link, how: Option<Verdict>) -> Result<()> {
    let noted: Vec<_> = lists.stopped.keys().collect();
    if noted.is_empty() {
        return Ok(());
    }
    if how == Some(Verdict::HeldReleased) {
        warn!(processes = noted.len(), "a held fence was released; the service's processes stay stopped: restart them");
    } else {
        // As in sweep.rs: who is in both lists is who the descriptor means.
        let first = sweep::condemned(lister)?;
        let open = |one: &sweep::Condemned| Some((*one, shared::process(one.pid).ok()?));
        let processes: Vec<_> = first.iter().filter_map(open).collect();
        let second = sweep::condemned(lister)?;
        for (_, process) in processes.iter().filter(|(one, _)| second.contains(one)) {
            // Who has ended needs nothing.
            let _ = shared::signal(process, Signal::SIGCONT);
        }
        info!(processes = processes.len(), ?how, "a lock has ended; those whom it stopped go on");
    }
    for key in noted {
        // Gone already: another lock has begun meanwhile and ended.
        let _ = lists.stopped.delete(&key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_packets_have_them() {
        let mut expected = [0; 16];
        expected[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 7]);
        assert_eq!(key("10.0.0.7".parse().unwrap()), expected);
        assert_eq!(key("fd00::7".parse().unwrap())[15], 7);
    }
}
