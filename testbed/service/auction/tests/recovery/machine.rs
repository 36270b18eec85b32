//! A tier as a process with a box service of its own, and how its sessions come to another one.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use contbox::reader::{BoxHead, BoxImage, parse_pool, read_box};
use contbox::service::{BoxService, Handover};
use contbox::{Geometry, Opening, Pool, testament};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::repair;

/// A busy machine included.
const PATIENCE: Duration = Duration::from_secs(60);

/// One tier.
pub struct Tier {
    pub listen: SocketAddr,
    /// What its process is called with.
    pub arguments: Vec<String>,
}

/// A machine with one tier.
pub struct Machine {
    process: Child,
    service: BoxService,
    pool: Arc<Pool>,
}

/// What is left of a machine that was stopped wherever it was.
pub struct Remains {
    connections: Vec<repair::Connection>,
    image: Vec<u8>,
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The sockets of a process whose own end or whose peer's end has this port.
///
/// Each one once: in our own process a copy may get the number of a connection that a client has just closed, and
/// would be met again under it.
pub fn sockets(pid: u32, ends: impl Fn(SocketAddr, SocketAddr) -> bool) -> Vec<OwnedFd> {
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let all = numbers.filter_map(|number| repair::borrow_descriptor(pid, number).ok());
    let known = all.filter_map(|fd| Some((ends_of(&fd)?, fd))).filter(|((local, peer), _)| ends(*local, *peer));
    known.collect::<BTreeMap<_, _>>().into_values().collect()
}

fn ends_of(fd: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let stream = TcpStream::from(fd.try_clone().ok()?);
    Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
}

impl Machine {
    pub fn start(scratch: &Path, number: u64, tier: &Tier) -> Self {
        let (fd, pool) = Pool::memfd(Geometry::standard(256), number).unwrap();
        let socket = scratch.join(format!("box-{number}.sock"));
        let service = BoxService::start(&socket, Arc::clone(&pool), fd).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_auction"))
            .args(&tier.arguments)
            .args(["--listen", &tier.listen.to_string(), "--box-socket"])
            .arg(&socket)
            .env("BACKDOORS_LOG", std::env::var("BACKDOORS_LOG").unwrap_or_else(|_| "warn".into()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self { process, service, pool };
        eventually("the tier listens and has boxes", || {
            !machine.service.apps().is_empty() && TcpStream::connect(tier.listen).is_ok()
        });
        machine
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Stops it wherever it is, and takes what a spare would find: the connections it had accepted, silently, and
    /// its boxes. `others` are the processes at their other ends, which hear nothing until the connections go on.
    pub fn fence(self, listen: SocketAddr, others: &[u32]) -> (Remains, Vec<OwnedFd>) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        let accepted = sockets(self.pid(), |local, _| local == listen);
        // Those that nobody has accepted are to hear the reset that they get.
        let ends: Vec<_> = accepted.iter().filter_map(ends_of).collect();
        let is_moved = |local, peer| ends.contains(&(peer, local));
        let clients = others.iter().flat_map(|pid| sockets(*pid, is_moved)).collect::<Vec<_>>();
        clients.iter().chain(&accepted).for_each(|socket| repair::deafen(socket).unwrap());
        let connections = accepted.into_iter().map(|socket| repair::extract(socket).unwrap()).collect();
        // What is in the boxes at this instant is all that is left; the live service would free them after the kill.
        let image = self.pool.image();
        (Remains { connections, image }, clients)
    }

    /// Takes over what is left of another machine. Connections whose box is gone, or whose peer is not to be had any
    /// more, are reset; `wanted` says which are.
    pub fn take_over(&self, remains: Remains, clients: Vec<OwnedFd>, wanted: bool) {
        let Remains { connections, image } = remains;
        let geometry = parse_pool(&image, image.len() as u64).unwrap().geometry;
        for testament in testament::of_image(&geometry, &image) {
            assert!(testament.complete);
            self.service.bequeath(&testament);
        }
        let connections = connections.iter().filter(|_| wanted);
        let handovers: Vec<Handover> = connections.filter_map(|it| continuation(&image, &geometry, it)).collect();
        clients.iter().for_each(|client| repair::undeafen(client).unwrap());
        handovers.iter().for_each(|handover| repair::release(&handover.socket).unwrap());
        for outcome in self.service.resume(handovers, PATIENCE) {
            outcome.map_err(|declined| declined.why).unwrap();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A session out of the dead machine: box and kernel state put together. One without a box was never accepted, or has
/// come to its end: its peer is reset when it asks.
fn continuation(image: &[u8], geometry: &Geometry, from: &repair::Connection) -> Option<Handover> {
    let front = |slot| &image[geometry.front(slot).start as usize..];
    let mut heads = (0..geometry.slots).filter_map(|slot| BoxHead::parse(slot, front(slot)).ok());
    let head = heads.find(|head| (head.local, head.peer) == (from.local, from.peer))?;
    let copied = head.base_read + from.bytes_received - from.receive_queue.len() as u64;
    let acked = head.base_written + from.bytes_acked;
    let session = read_box(image, geometry, head.slot, copied).unwrap();
    let discard = session.discard(acked + from.send_queue.len() as u64).unwrap();
    let BoxImage { local, peer, snapshot, logged, .. } = session;
    let opening = Opening { owner: 0, local, peer, base_read: copied, base_written: acked, snapshot, logged };
    Some(Handover { opening, discard, socket: repair::rebuild_when_free(from, PATIENCE), channels: Vec::new() })
}
