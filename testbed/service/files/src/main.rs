//! `file-server`: serves a directory over HTTP/1.1, with a Continuation Box per connection where a box service is.

use anyhow::Context;
use clap::Parser;
use contbox::listener::RecoverableListener;
use contbox::service::BoxClient;
use file_server::server;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long the start waits for boxes: connections accepted before that would go unprotected.
const BOXES_PATIENCE: Duration = Duration::from_millis(500);

/// A recoverable HTTP/1.1 file server.
#[derive(Parser)]
struct Options {
    /// Address to listen at; it need not be there yet.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Directory to serve and to upload to; shared between target and spare.
    #[arg(long)]
    root: PathBuf,
    /// Unix socket of the box service; without one, connections are unprotected.
    #[arg(long)]
    box_socket: Option<PathBuf>,
    /// Connections served at a time; more wait in the kernel's queue until one ends. Without it all are served.
    #[arg(long)]
    connections_max: Option<usize>,
    /// Say nothing but warnings.
    #[arg(long)]
    quiet: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let level = if options.quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("BACKDOORS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(options))
}

/// As many descriptors as the system grants: an evacuation may bring more connections than the usual soft limit of
/// 1024.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(why) = raised {
        tracing::warn!(%why, "the limit of open connections stays as it is");
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let Options { listen, root, box_socket, connections_max, .. } = options;
    anyhow::ensure!(root.is_dir(), "--root {}: not a directory", root.display());
    let listener = server::listen(listen).with_context(|| format!("--listen {listen}"))?;
    let port = listener.local_addr()?.port();
    let listener = match box_socket {
        None => RecoverableListener::unprotected(listener),
        Some(path) => {
            let (client, handed) = BoxClient::connect(&path, "file-server", &[port])?;
            if !client.wait_ready(BOXES_PATIENCE) {
                let path = path.display();
                tracing::warn!(%path, "no boxes yet: connections are unprotected until the service is there");
            }
            RecoverableListener::new(listener, client, handed)
        }
    };
    tracing::info!(%listen, root = %root.display(), "serving");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        never = server::serve(listener, root, connections_max) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
