//! Which addresses this spare has taken, in a file: what a daemon that was killed could not give back.
//!
//! ```text
//!   note     before an address is taken: "ADDRESS INTERFACE-NUMBER", one line each
//!   forget   after it was given back
//!   clean    at the next start, or at once by `reinstate --clean` (ExecStopPost= of the unit): connections aborted,
//!            address and routing rule removed
//! ```
//!
//! A killed daemon leaves sessions with their application and an address that answers ARP. Another spare may be told to
//! take over: two machines must never speak for one address, so it must go, and its sessions with it. The file lies
//! beside the box service's socket, in a folder that a reboot empties, as it does the interfaces.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    address::{Interface, StandBy},
    leftovers,
    netlink::Netlink,
    routes::RaisedRoutes,
};

/// The file.
#[derive(Clone, Debug)]
pub struct HeldFile(PathBuf);

impl HeldFile {
    /// The one of the daemon whose box service is at `box_socket`.
    pub fn beside(box_socket: &Path) -> Self {
        Self(box_socket.with_extension("held"))
    }

    /// Notes an address that is about to be taken.
    ///
    /// # Errors
    /// The file's.
    pub fn note(&self, address: IpAddr, interface: &Interface) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&self.0)?;
        writeln!(file, "{address} {}", interface.index)
    }

    /// Gives those of `addresses` back that are here, and forgets them, if no connection uses them: the addresses go
    /// first, then it is looked. False if a connection was there after all; the addresses are then back, and what was
    /// sent meanwhile comes again.
    ///
    /// # Errors
    /// A sentence for people; what can be is as before.
    pub fn give_back_unused(&self, addresses: &mut [StandBy], netlink: &mut Netlink) -> Result<bool, String> {
        let mut held: Vec<_> = addresses.iter_mut().filter(|address| address.is_held()).collect();
        let gone = held.iter_mut().try_for_each(|address| address.give_back(netlink));
        let is_unused = |address: &&mut StandBy| {
            leftovers::connections(address.address()).is_ok_and(|connections| connections.is_empty())
        };
        if gone.is_ok() && held.iter().all(is_unused) {
            for address in &held {
                let noted = self.forget(address.address());
                noted.map_err(|error| format!("noting that {} is gone: {error}", address.address()))?;
            }
            return Ok(true);
        }
        for address in held.iter_mut().filter(|address| !address.is_held()) {
            let again = address.take(netlink);
            again.map_err(|error| format!("taking {} again: {error}", address.address()))?;
        }
        gone.map(|()| false).map_err(|error| format!("giving an address back: {error}"))
    }

    /// Forgets an address that is here no longer.
    ///
    /// # Errors
    /// The file's.
    pub fn forget(&self, address: IpAddr) -> io::Result<()> {
        let left: Vec<_> = self.read()?.into_iter().filter(|(held, _)| *held != address).collect();
        if left.is_empty() {
            return match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let text: String = left.iter().map(|(address, index)| format!("{address} {index}\n")).collect();
        fs::write(&self.0, text)
    }

    /// Lines that are none are passed over: a daemon may be killed while it writes one.
    fn read(&self) -> io::Result<Vec<(IpAddr, u32)>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let parse = |line: &str| {
            let (address, index) = line.split_once(' ')?;
            Some((address.parse().ok()?, index.parse().ok()?))
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    /// Removes what a killed daemon has left: returns the addresses. There must be no other daemon.
    ///
    /// # Errors
    /// The kernel's or the file's; what was not removed stays noted.
    pub fn clean(&self, route_table: u32) -> io::Result<Vec<IpAddr>> {
        let mut cleaned = Vec::new();
        for (address, index) in self.read()? {
            let mut netlink = Netlink::open()?;
            let aborted = leftovers::abort(address)?;
            let interface = Interface { index, name: String::new(), mac: [0; 6] };
            match StandBy::left_behind(address, interface)?.give_back(&mut netlink) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
            RaisedRoutes::left_behind(address, route_table).remove(&mut netlink);
            self.forget(address)?;
            tracing::warn!(%address, aborted, "a daemon that was killed had left this address here");
            cleaned.push(address);
        }
        Ok(cleaned)
    }
}

/// Nobody holds the address any more, or its interface has gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV))
}
