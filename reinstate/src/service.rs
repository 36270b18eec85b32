//! What a service manager expects: to be told when the daemon is ready, and to be obeyed when it shall end.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that end the daemon. Made before any thread, so that every thread leaves them to it.
pub struct Signals(SignalFd);

impl Signals {
    /// Takes SIGTERM and SIGINT out of the hands of all threads.
    pub fn block() -> nix::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Waits for a signal.
    pub fn wait(&self) -> anyhow::Result<()> {
        if let Some(signal) = self.0.read_signal()? {
            tracing::info!(signal = signal.ssi_signo, "told to end");
        }
        Ok(())
    }
}

/// Tells systemd, if it started us (`Type=notify`). See sd_notify(3).
pub fn notify(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager was not told");
    }
}
