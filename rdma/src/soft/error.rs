//! Why a software queue pair could not be set up.

use std::io;
use std::net::Ipv4Addr;

use remote_memory::LinkError;

/// Why the sockets of a software queue pair could not be opened. Always a matter of this machine, never of the peer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Receiving RoCEv2 needs a raw socket, because the invariant CRC covers the IP header.
    #[error("no permission to open a raw socket: grant CAP_NET_RAW")]
    NoPermission,
    /// The address is not one of this machine's, or the port belongs to another program.
    #[error("cannot bind {address}:{port}: {source}")]
    Bind {
        /// The address asked for.
        address: Ipv4Addr,
        /// The UDP port asked for.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else the kernel refused.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<SocketError> for LinkError {
    fn from(error: SocketError) -> Self {
        Self::Local(error.to_string())
    }
}
