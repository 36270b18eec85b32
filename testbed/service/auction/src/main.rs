//! `auction`: each tier of the auction as a process, its clients, and the check afterwards.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration,
};

use anyhow::{Context, Result, ensure};
use auction::{
    check,
    clients::{self, Crowd, Mix, Order, record, trace::Trace},
    database::{self, Size},
    front_end::{self, FrontEnd},
    http::{self, Listener},
    mid_tier::{self, MidTier},
    snapshot::Written,
};
use clap::{Args, Parser, Subcommand};
use contbox::{
    RecoverableListener,
    service::{BoxClient, Heir},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// How long the start waits for boxes: connections accepted before that would go unprotected.
const BOXES_PATIENCE: Duration = Duration::from_millis(500);

/// An auction service in three tiers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// The front end: names each request, and forwards it to a mid tier.
    Fe {
        /// Address to listen at.
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: SocketAddr,
        /// The mid tiers, which take requests in turn.
        #[arg(long, required = true, value_delimiter = ',')]
        mid_tier: Vec<SocketAddr>,
        #[command(flatten)]
        boxes: Boxes,
    },
    /// The mid tier: carries each request out once.
    Mt {
        /// Address to listen at.
        #[arg(long, default_value = "127.0.0.1:8100")]
        listen: SocketAddr,
        #[command(flatten)]
        database: Database,
        /// Connections to the database.
        #[arg(long, default_value_t = 16)]
        connections: usize,
        #[command(flatten)]
        boxes: Boxes,
    },
    /// Makes tables and rows in an empty database.
    Data {
        #[command(flatten)]
        database: Database,
        /// Items on sale; half as many users, five times as many bids.
        #[arg(long, default_value_t = 4000)]
        items: i64,
        /// Everything random follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Emulated users; the last line on standard output is their report, as JSON.
    Clients(ClientsArguments),
    /// Walks the database with the clients' record; the last line on standard output is what was found, as JSON.
    Check {
        #[command(flatten)]
        database: Database,
        /// What the clients left.
        #[arg(long)]
        record: PathBuf,
    },
}

#[derive(Args)]
struct Boxes {
    /// Unix socket of the box service, target-agent's or reinstate's; without one, no session survives this machine.
    #[arg(long)]
    box_socket: Option<PathBuf>,
}

#[derive(Args)]
struct Database {
    /// PostgreSQL, as its clients write it: `host=… port=… user=… dbname=…`.
    #[arg(long)]
    database: String,
}

#[derive(Args)]
struct ClientsArguments {
    /// The front ends, by turns.
    #[arg(long, required = true, value_delimiter = ',')]
    front_end: Vec<SocketAddr>,
    /// Emulated users.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Items that the database was made with.
    #[arg(long, default_value_t = 4000)]
    items: i64,
    /// What users do.
    #[arg(long, value_enum, default_value = "bid")]
    mix: Mix,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long new requests are begun; SIGTERM ends that earlier.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Users think so many times as long: 7 s on the average with 1.
    #[arg(long, default_value_t = 1.0)]
    slow_down: f64,
    /// Users come one after the other over so long.
    #[arg(long, default_value_t = 0.0)]
    ramp_seconds: f64,
    /// Where the record of trades is left, for the check.
    #[arg(long)]
    record: PathBuf,
    /// Where every connection and every request is written down as it happens, with its times.
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("BACKDOORS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("auction: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match action {
            Action::Fe { listen, mid_tier, boxes } => {
                let front_end = Arc::new(FrontEnd::new(&mid_tier)?);
                let listener = bind(listen, &boxes, "auction-fe", None)?;
                until_ended(front_end::serve(Arc::clone(&front_end), listener), front_end.written()).await
            }
            Action::Mt { listen, database, connections, boxes } => {
                let mid_tier = Arc::new(MidTier::new(&database.database, connections)?);
                let (heir, runtime) = (Arc::clone(&mid_tier), Handle::current());
                let heir = Heir::new(move |testament| heir.inherit(&testament, &runtime));
                let listener = bind(listen, &boxes, "auction-mt", Some(heir))?;
                mid_tier.warm().await;
                until_ended(mid_tier::serve(Arc::clone(&mid_tier), listener), mid_tier.written()).await
            }
            Action::Data { database, items, seed } => {
                let mut client = database::connect(&database.database).await?;
                database::generate(&mut client, Size { items }, seed).await?;
                Ok(ExitCode::SUCCESS)
            }
            Action::Clients(arguments) => emulate(arguments).await,
            Action::Check { database, record } => {
                let client = database::connect(&database.database).await?;
                let findings = check::check(&client, &record::read(&record)?).await?;
                println!("{}", serde_json::to_string(&findings)?);
                Ok(if findings.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    })
}

async fn emulate(arguments: ClientsArguments) -> Result<ExitCode> {
    let ClientsArguments { front_end, clients, items, mix, seed, seconds, slow_down, .. } = arguments;
    let ClientsArguments { ramp_seconds, record, trace, .. } = arguments;
    ensure!(slow_down >= 0.0 && slow_down.is_finite(), "--slow-down {slow_down}: a number from 0 on");
    let order = Order {
        front_ends: front_end,
        crowd: Crowd { seed, clients, users: Size { items }.users() },
        mix,
        length: Duration::try_from_secs_f64(seconds).context("--seconds")?,
        slow_down,
        ramp: Duration::try_from_secs_f64(ramp_seconds).context("--ramp-seconds")?,
    };
    let trace = trace.map_or_else(|| Ok(Trace::default()), |file| Trace::to(&file))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told = async move {
        terminate.recv().await;
    };
    let (report, attempts) = clients::run_until(&order, told, trace).await?;
    record::write(&attempts, &record)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.mismatched == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Listens; with boxes if there is a service for them.
fn bind(listen: SocketAddr, boxes: &Boxes, name: &str, heir: Option<Heir>) -> Result<Listener> {
    let listener = http::listen(listen).with_context(|| format!("--listen {listen}"))?;
    let ports = [listener.local_addr()?.port()];
    let Some(path) = &boxes.box_socket else {
        tracing::info!(%listen, "serving");
        return Ok(Listener::Plain(listener));
    };
    let (client, handed) = match heir {
        Some(heir) => BoxClient::connect_as_heir(path, name, &ports, heir)?,
        None => BoxClient::connect(path, name, &ports)?,
    };
    if !client.wait_ready(BOXES_PATIENCE) {
        let path = path.display();
        tracing::warn!(%path, "no boxes yet: connections are unprotected until the service is there");
    }
    tracing::info!(%listen, "serving");
    Ok(Listener::Recoverable(RecoverableListener::new(listener, client, handed)))
}

/// Serves until somebody ends it, and leaves on standard output what its snapshots came to.
async fn until_ended(serving: impl Future<Output = Infallible>, written: &Written) -> Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        never = serving => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    println!("{}", serde_json::to_string(&written.figures())?);
    Ok(ExitCode::SUCCESS)
}

/// As many descriptors as the system grants: each client is a connection.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(why) = raised {
        tracing::warn!(%why, "the limit of open connections stays as it is");
    }
}
