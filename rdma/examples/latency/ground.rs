//! Two network namespaces joined by a veth pair; in the far one the servers run.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rdma::responder::{Memory, Refusal};
use rdma::soft::{Options, PORT, Server, ServerHandle};
use remote_memory::{RemoteKey, Rights};

use crate::flood;

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub const ECHO_PORT: u16 = 9000;
pub const FLOOD_PORT: u16 = 9001;
/// Large enough for single packets of 4 KiB.
const INTERFACE_MTU: &str = "4200";
pub const RAM_BYTES: u64 = 64 << 20;
pub const SPIN: Duration = Duration::from_millis(2);

/// Readable zeroes.
struct Zeroes(Vec<u8>);

impl Memory for Zeroes {
    fn check(&self, _: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= RAM_BYTES);
        if inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        into.copy_from_slice(&self.0[addr as usize..][..into.len()]);
        Ok(())
    }
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("ip(8)")?;
    ensure!(status.success(), "ip {arguments}");
    Ok(())
}

fn server_options() -> Options {
    Options { spin: SPIN, ..Options::default() }
}

/// Runs `body` in this thread, joined by a veth pair to a second namespace where the server and the echo run.
pub fn between_namespaces(body: impl FnOnce(&ServerHandle) -> Result<()>) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace: run as root or in `unshare -Urn`")?;
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    let (tell, told) = mpsc::channel();
    let (tell_handle, told_handle) = mpsc::channel();
    thread::scope(|scope| {
        let (stop, ready) = (&stop, &ready);
        let peer = scope.spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            tell.send(nix::unistd::gettid())?;
            ready.wait(); // the veth end is here now
            ip("link set far up")?;
            ip(&format!("addr add {SERVER}/24 dev far"))?;
            let echo = UdpSocket::bind((SERVER, ECHO_PORT))?;
            echo.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut server = Server::bind(SERVER, PORT, Zeroes(vec![0; RAM_BYTES as usize]), server_options())?;
            tell_handle.send(server.handle())?;
            ready.wait();
            thread::scope(|scope| {
                scope.spawn(|| echo_until(&echo, stop));
                scope.spawn(|| flood::answer_until(stop).inspect_err(|error| eprintln!("flood: {error:#}")));
                server.run(stop)
            })?;
            Ok(())
        });
        let near = (|| -> Result<()> {
            let tid = told.recv()?;
            let home = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            ip(&format!("link add near mtu {INTERFACE_MTU} type veth peer name far mtu {INTERFACE_MTU} netns {home}"))?;
            ip("link set near up")?;
            ip(&format!("addr add {CLIENT}/24 dev near"))?;
            ready.wait();
            ready.wait();
            body(&told_handle.recv()?)
        })();
        stop.store(true, Ordering::Relaxed);
        near?;
        peer.join().expect("the server thread does not panic")
    })
}

/// Answers datagrams of 8 bytes or more: the first two say how long the answer is to be.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, from)) = socket.recv_from(&mut buffer) else { continue };
        answer(socket, &buffer, from);
        // Now spin as the server does, until the asker falls silent.
        socket.set_nonblocking(true).ok();
        let mut last = Instant::now();
        while last.elapsed() < SPIN {
            match socket.recv_from(&mut buffer) {
                Ok((_, from)) => {
                    answer(socket, &buffer, from);
                    last = Instant::now();
                }
                Err(_) => thread::yield_now(),
            }
        }
        socket.set_nonblocking(false).ok();
    }
}

fn answer(socket: &UdpSocket, request: &[u8], to: std::net::SocketAddr) {
    let len = usize::from(u16::from_be_bytes([request[0], request[1]]));
    socket.send_to(&request[..len], to).ok();
}
