//! One session of a front end and its worker, for as long as it may last, with boxes of the machine's agent.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use contbox::channel::{ChannelEnd, Descriptors};
use contbox::service::BoxClient;
use contbox::shared::Slot;
use relay::{Front, Outside, Worker};

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
    match arguments.worker {
        Some(name) => worker(arguments, name),
        None => front(arguments),
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

fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn front(arguments: &Arguments) -> Result<()> {
    let boxes = Boxes::join(&arguments.boxes, "relay")?;
    let ((slot, owner), (outside, _)) = (boxes.lease()?, boxes.lease()?);
    let [here, there] = match arguments.kind {
        Kind::Pipes => Descriptors::pipes()?,
        Kind::Socket => Descriptors::sockets()?,
    };
    let name = random();
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.arg("--boxes").arg(&arguments.boxes).arg("--worker").arg(name.to_string());
    if arguments.stamps {
        command.arg("--stamps");
    }
    let (input, output) = there.into_files();
    let mut worker = command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;
    drop(command);
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
    let end = ChannelEnd::open(slot, owner, wire, name, 1, &words)?;
    Worker::new(end, &words, arguments.stamps.then(random))?.serve()
}
