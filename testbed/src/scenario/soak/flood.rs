//! A flood at the guest's own address: small UDP packets to a port where nobody listens, and TCP clients that connect
//! anew for each request. What comes of them nobody asks: they are there to be a burden.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::topology::{FILE_PORT, GUEST, service_v4};

/// More than an emulated guest can take, and little enough to leave the host a processor.
const UDP_PACKETS_PER_SECOND: usize = 20_000;

/// Pause between two bursts.
const BURST_EVERY: Duration = Duration::from_millis(1);

/// Small packets: what costs is their number.
const UDP_PAYLOAD_BYTES: usize = 64;

/// The discard port (RFC 863): nobody listens, so the kernel has the whole work and an answer to write besides.
const DISCARD_PORT: u16 = 9;

const TCP_CLIENTS: usize = 2;

/// A client of the flood that gets nothing for so long tries another connection.
const TCP_PATIENCE: Duration = Duration::from_secs(2);

/// After a connection that failed: a guest that is gone must not cost the host its processor.
const TCP_REST: Duration = Duration::from_millis(20);

/// Floods until `stop`; call it in the clients' machine.
pub(super) fn flood(stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("a socket to flood from")?;
    socket.connect((service_v4(GUEST), DISCARD_PORT)).context("the guest's address")?;
    socket.set_nonblocking(true)?;
    thread::scope(|scope| {
        // Threads inherit the network namespace of the one that starts them.
        for _ in 0..TCP_CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if exchange((IpAddr::from(service_v4(GUEST)), FILE_PORT).into()).is_err() {
                        thread::sleep(TCP_REST);
                    }
                }
            });
        }
        let payload = [0; UDP_PAYLOAD_BYTES];
        let burst = (UDP_PACKETS_PER_SECOND as f64 * BURST_EVERY.as_secs_f64()) as usize;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..burst {
                // "Connection refused" is the guest's answer, a full buffer the network's: both are what a flood does.
                let _ = socket.send(&payload);
            }
            thread::sleep(BURST_EVERY);
        }
    });
    Ok(())
}

fn exchange(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, TCP_PATIENCE)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.set_write_timeout(Some(TCP_PATIENCE))?;
    stream.write_all(b"GET /synthetic/7/65536 HTTP/1.1\r\nHost: flood\r\nConnection: close\r\n\r\n")?;
    std::io::copy(&mut (&mut stream).take(1 << 20), &mut std::io::sink()).map(drop)
}
