//! A client whose connections come and go: each asks for a little, closes its half, takes the answer, and the next
//! begins. It brings the guest's kernel through handshakes and closings; nothing here waits.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result};
use introspect::linux::tcp::TcpSocket;
use reinstate::session::{self, Loss};
use socket2::{Domain, Socket, Type};

use super::judge::not_whole;

/// The request: an answer of a few segments.
const REQUEST: &str = "GET /synthetic/7/5000 HTTP/1.1\r\nHost: torn\r\n\r\n";

/// Columns of /proc/net/tcp.
const LOCAL: usize = 1;
const STATE: usize = 3;

/// States of a client that believes in its connection: ESTABLISHED, FIN_WAIT1, FIN_WAIT2.
const CONNECTED: [&str; 3] = ["01", "04", "05"];

/// The client.
#[derive(Debug)]
pub struct Comer {
    server: SocketAddr,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    socket: Socket,
    address: SocketAddr,
    asked: bool,
}

impl Comer {
    /// One that has not begun yet.
    pub fn new(server: SocketAddr) -> Self {
        Self { server, current: None }
    }

    /// Whether its next step opens a connection, which belongs into the client machine.
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// If a connection breaks.
    pub fn pump(&mut self) -> Result<()> {
        let Some(current) = &mut self.current else {
            self.current = Some(begin(self.server)?);
            return Ok(());
        };
        let later = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected);
        if !current.asked {
            match current.socket.write(REQUEST.as_bytes()) {
                Ok(_) => current.asked = true,
                Err(error) if later(&error) => return Ok(()),
                // The guest stood still for so long that nobody knew any more where it is.
                Err(error) if error.kind() == ErrorKind::HostUnreachable => {
                    self.current = None;
                    return Ok(());
                }
                Err(error) => return Err(error).context("a connection that comes and goes"),
            }
            current.socket.shutdown(Shutdown::Write)?;
        }
        let mut piece = [0; 16 * 1024];
        loop {
            match current.socket.read(&mut piece) {
                Ok(0) => break self.current = None,
                Ok(_) => {}
                Err(error) if later(&error) => break,
                Err(error) => return Err(error).context("a connection that comes and goes"),
            }
        }
        Ok(())
    }

    /// Judges what a walk found of the connection; `None` if there is none at the moment. `table` is the client
    /// machine's /proc/net/tcp.
    pub fn judge(&self, sockets: &[TcpSocket], table: &File) -> Option<Result<bool, String>> {
        let current = self.current.as_ref()?;
        let Some(socket) = sockets.iter().find(|socket| socket.peer == current.address) else {
            let believed = state(table, current.address.port()).is_some_and(|is| CONNECTED.contains(&is.as_str()));
            return believed.then(|| Err("a connection that the client believes in is not found".to_owned()));
        };
        Some(goes_on(socket).map(|()| socket.lock_held))
    }
}

/// Whether a spare can do something with it: resume it, begin it anew, or bring it to its end.
fn goes_on(socket: &TcpSocket) -> Result<(), String> {
    session::rebuildable(socket).map_err(|loss| match loss {
        Loss::Damaged(_) => not_whole(socket),
        loss => format!("coming or going, {loss}"),
    })?;
    if session::output_ended(socket) {
        return Ok(());
    }
    session::counted(socket).map_err(|loss| format!("coming or going, not resumable: {loss}"))
}

fn begin(server: SocketAddr) -> Result<Current> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error).context("connect"),
        _ => {}
    }
    let address = socket.local_addr()?.as_socket().context("no address")?;
    Ok(Current { socket, address, asked: false })
}

fn state(table: &File, port: u16) -> Option<String> {
    let mut text = vec![0; 64 * 1024];
    let read = table.read_at(&mut text, 0).ok()?;
    let (text, port) = (String::from_utf8_lossy(&text[..read]).into_owned(), format!(":{port:04X}"));
    let mut fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = fields.find(|fields| fields.get(LOCAL).is_some_and(|local| local.ends_with(&port)))?;
    line.get(STATE).map(|state| (*state).to_owned())
}
