//! What every daemon shares with its surroundings: the file that configures it, the rights it needs, logs, counters
//! for Prometheus, the signals that end it, and what a service manager expects to be told. It knows nothing of what the
//! daemons do.

pub mod capabilities;
pub mod config;
pub mod metrics;

use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing_subscriber::EnvFilter;

/// How often the wait looks whether the daemon still works.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The signals that end the daemon. Made before any thread, so that every thread leaves them to it.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes SIGTERM and SIGINT out of the hands of all threads.
    ///
    /// # Errors
    /// Those of the system.
    pub fn block() -> nix::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// Waits for a signal, or until something has failed.
    ///
    /// # Errors
    /// When `works` has said `false`, or signals cannot be waited for.
    pub fn wait_while(&self, works: impl Fn() -> bool) -> anyhow::Result<()> {
        let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO);
        while works() {
            let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout);
            if let Some(signal) = self.0.read_signal()? {
                tracing::info!(signal = signal.ssi_signo, "told to end");
                return Ok(());
            }
        }
        anyhow::bail!("a part of the daemon has failed; see the log")
    }
}

/// Lets this process have as many descriptors as it may: a spare needs one for each session, and the usual limit of
/// 1024 is for programs that cannot count further. Returns the new limit.
///
/// # Errors
/// Those of the system.
pub fn raise_descriptor_limit() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
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

/// Starts logging to standard error: as text, or as one JSON object per line. `BACKDOORS_LOG` filters.
pub fn start_logs(json: bool) {
    let filter = EnvFilter::try_from_env("BACKDOORS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { logs.json().init() } else { logs.init() }
}
