//! A front end and its workers, with boxes of the machine's agent: a service for clients over TCP, or one session whose
//! client is played, for as long as it may last.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{stdin, stdout};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use contbox::channel::{self, ChannelEnd, Descriptors, Identity};
use contbox::service::BoxClient;
use contbox::shared::Slot;
use contbox::{Accepted, RecoverableListener};
use relay::{Front, Outside, Served, Worker};
use tokio::runtime::Handle;

/// How long the agent may take to grant boxes.
const BOXES_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A pipe for each direction.
    Pipes,
    /// A Unix stream socket.
    Socket,
}

#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The agent's box service.
    #[arg(long, default_value = "/run/backdoors/box.sock")]
    boxes: PathBuf,
    /// What lies between the processes.
    #[arg(long, value_enum, default_value = "pipes")]
    kind: Kind,
    /// Have the worker make up part of each reply.
    #[arg(long)]
    stamps: bool,
    /// Fill and empty pipes and a socket at random, seeded by this, say what they hold, and stay.
    #[arg(long)]
    hold: Option<u64>,
    /// Serve clients at this address, each with a worker of its own.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Be the worker of all sessions that come here from elsewhere.
    #[arg(long)]
    standby: bool,
    /// Be the worker of the channel with this name, which is standard input and output.
    #[arg(long)]
    worker: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(seed) = arguments.hold {
        return relay::hold::hold(seed);
    }
    match (arguments.worker, arguments.listen) {
        _ if arguments.standby => standby(arguments),
        (Some(name), _) => worker(arguments, name),
        (None, Some(listen)) => serve(arguments, listen),
        (None, None) => front(arguments),
    }
}

/// Slots of the agent's pool; they are ours as long as the client lives.
struct Boxes {
    client: Arc<BoxClient>,
}

impl Boxes {
    fn join(path: &Path, name: &str) -> Result<Self> {
        let (client, _) = BoxClient::connect(path, name, &[])?;
        ensure!(client.wait_ready(BOXES_PATIENCE), "no boxes from {}: is target-agent running?", path.display());
        Ok(Self { client })
    }

    fn lease(&self) -> Result<(Slot, u32)> {
        self.client.lease().context("the pool of boxes is full: start target-agent with more")
    }
}

/// Different in each process, and each time.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Starts the worker of a new channel; returns our end of it.
fn start_worker(arguments: &Arguments, name: u64) -> Result<(Child, Descriptors)> {
    let [here, there] = match arguments.kind {
        Kind::Pipes => Descriptors::pipes()?,
        Kind::Socket => Descriptors::sockets()?,
    };
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.arg("--boxes").arg(&arguments.boxes).arg("--worker").arg(name.to_string());
    if arguments.stamps {
        command.arg("--stamps");
    }
    let (input, output) = there.into_files();
    let worker = command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;
    Ok((worker, here))
}

fn serve(arguments: &Arguments, listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (client, handed) = BoxClient::connect_with_channels(&arguments.boxes, "relay", &[listen.port()])?;
    ensure!(client.wait_ready(BOXES_PATIENCE), "no boxes from {}", arguments.boxes.display());
    let mut listener = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        anyhow::Ok(RecoverableListener::new(listener, Arc::clone(&client), handed))
    })?;
    println!("serving {listen}");
    thread::scope(|scope| {
        loop {
            let accepted = runtime.block_on(listener.accept())?;
            let (client, runtime) = (&client, runtime.handle().clone());
            scope.spawn(move || {
                let peer = accepted.peer;
                match session(arguments, client, runtime, accepted) {
                    Ok(()) => println!("the session of {peer} has ended"),
                    Err(error) => println!("the session of {peer}: {error:#}"),
                }
            });
        }
    })
}

fn session(arguments: &Arguments, client: &Arc<BoxClient>, runtime: Handle, accepted: Accepted) -> Result<()> {
    let Accepted { stream, resumed, mut channels, .. } = accepted;
    let (mut served, worker) = match (resumed, channels.pop()) {
        (Some(snapshot), Some(end)) => (Served::resume(runtime, stream, end, &snapshot)?, None),
        _ => {
            let name = random();
            let (worker, here) = start_worker(arguments, name)?;
            let (slot, owner) = client.lease().context("no box for a channel")?;
            let identity = Identity { name, connection: stream.session().place(), ..Identity::default() };
            let end = ChannelEnd::open_as(slot, owner, here, identity, b"")?;
            (Served::begin(runtime, stream, end), Some(worker))
        }
    };
    let outcome = served.serve();
    client.give_back(&served.close());
    if let Some(mut worker) = worker {
        let ended = worker.wait()?;
        ensure!(outcome.is_err() || ended.success(), "the worker has ended: {ended}");
    }
    outcome
}

fn standby(arguments: &Arguments) -> Result<()> {
    let (client, mut ends) =
        BoxClient::connect_as_worker(&arguments.boxes, "relay-standby", &[channel::role(relay::ROLE)])?;
    ensure!(client.wait_ready(BOXES_PATIENCE), "no boxes from {}", arguments.boxes.display());
    while let Some(handed) = ends.blocking_recv() {
        let (order, slot) = (handed.order.order, handed.slot.clone());
        let taken = handed.take();
        client.answer(&[(order, taken.as_ref().map(drop).map_err(Clone::clone))]);
        let Ok((end, image)) = taken else {
            client.refuse(&slot);
            continue;
        };
        let (chance, client) = (arguments.stamps.then(random), Arc::clone(&client));
        thread::spawn(move || {
            let ended = Worker::new(end, &image.words, chance).and_then(|worker| worker.serve_to_end());
            if let Err(error) = ended {
                println!("the worker of order {order}: {error:#}");
            }
            client.give_back(&slot);
        });
    }
    Ok(())
}

fn front(arguments: &Arguments) -> Result<()> {
    let boxes = Boxes::join(&arguments.boxes, "relay")?;
    let ((slot, owner), (outside, _)) = (boxes.lease()?, boxes.lease()?);
    let name = random();
    let (mut worker, here) = start_worker(arguments, name)?;
    let words = Front::<Descriptors>::words(outside.index());
    let end = ChannelEnd::open(slot, owner, here, name, 0, &words)?;
    let served = Front::new(end, &words, Outside::after(outside, 0)).serve(u64::MAX);
    let ended = worker.wait()?;
    served.with_context(|| format!("the worker has ended: {ended}"))
}

fn worker(arguments: &Arguments, name: u64) -> Result<()> {
    let boxes = Boxes::join(&arguments.boxes, "relay-worker")?;
    let (slot, owner) = boxes.lease()?;
    let (input, output) = (stdin().as_fd().try_clone_to_owned()?, stdout().as_fd().try_clone_to_owned()?);
    let wire = Descriptors::adopt(input, output)?;
    let words = Worker::<Descriptors>::words();
    let identity = Identity { name, side: 1, role: channel::role(relay::ROLE), ..Identity::default() };
    let end = ChannelEnd::open_as(slot, owner, wire, identity, &words)?;
    Worker::new(end, &words, arguments.stamps.then(random))?.serve()
}
