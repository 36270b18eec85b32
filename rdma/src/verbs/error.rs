//! Why an adapter cannot be used. Always a matter of this machine or of its configuration, never of the peer.

use std::io;
use std::net::Ipv4Addr;

use remote_memory::LinkError;

/// Why an adapter, or something on it, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// The library is not installed, or is none.
    #[error("libibverbs cannot be loaded ({why}): install libibverbs1 and ibverbs-providers")]
    NoLibrary {
        /// What the loader said.
        why: String,
    },
    /// No port of an adapter speaks RoCEv2 from the address.
    #[error("no RDMA adapter{asked} has the address {local} for RoCE v2; {found}")]
    NoPort {
        /// What the configuration restricts the choice to, or nothing.
        asked: String,
        /// The address.
        local: Ipv4Addr,
        /// What there is: device, port, state, interface and addresses of each.
        found: String,
    },
    /// Several ports have the address.
    #[error("several RDMA ports have the address {local}: name the device, and the port if it has several; {found}")]
    Ambiguous {
        /// The address.
        local: Ipv4Addr,
        /// What there is.
        found: String,
    },
    /// The adapter is known to the kernel and not to libibverbs.
    #[error("libibverbs does not know the adapter {device}: is its provider installed (ibverbs-providers)?")]
    NoProvider {
        /// The adapter.
        device: String,
    },
    /// The adapter was removed, or has failed for good.
    #[error("the RDMA adapter {device} is gone")]
    Gone {
        /// The adapter.
        device: String,
    },
    /// As many queue pairs as there may be.
    #[error("{max} queue pairs are in use, which is all there may be")]
    Full {
        /// How many.
        max: usize,
    },
    /// What the peer says of itself makes no sense.
    #[error("the peer: {0}")]
    Peer(LinkError),
    /// The kernel or the adapter refused.
    #[error("{device} cannot {what}: {source}{hint}")]
    Refused {
        /// The adapter.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
        /// What usually helps, or nothing.
        hint: &'static str,
    },
}

impl VerbsError {
    /// What `device` refused when it was asked to `what`.
    pub(super) fn refused(device: &str, what: &'static str, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            // Locked memory is counted against a limit that is small on most systems.
            Some(libc::ENOMEM) => "; more memory may be locked with a higher `ulimit -l` (LimitMEMLOCK=infinity)",
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => "; is the peer's address reachable?",
            _ => "",
        };
        Self::Refused { device: device.to_owned(), what, source, hint }
    }

    /// Whether somebody was waited for in vain.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::ETIMEDOUT))
    }
}

impl From<VerbsError> for LinkError {
    fn from(error: VerbsError) -> Self {
        match error {
            VerbsError::Peer(error) => error,
            error => Self::Local(error.to_string()),
        }
    }
}
