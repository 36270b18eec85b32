//! What boxes cost while nothing fails: replies per second of plain tiers, of a recoverable front end, and of both
//! tiers recoverable, by turns in one run, so that a busy machine slows all of them.
//!
//! ```text
//! cargo build --release -p auction
//! cargo run --release -p auction --example cost -- CLIENTS SECONDS ROUNDS
//! ```
//!
//! One process of each tier, the `auction` beside this program; boxes in shared memory of this one, which nobody reads.
//! Clients do not think.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use auction::{
    clients::{self, Crowd, Mix, Order},
    database::{self, Server, Size},
};
use contbox::{Geometry, Pool, service::BoxService};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SIZE: Size = Size { items: 4000 };
const FRONT_END: &str = "127.0.0.1:18000";
const MID_TIER: &str = "127.0.0.1:18100";
const CONNECTIONS: &str = "16";
const SLOTS: u32 = 1024;
/// A busy machine included.
const START_BOUND: Duration = Duration::from_secs(60);
/// Which tiers have boxes: front end, mid tier.
const SERIES: [(&str, bool, bool); 3] = [("plain", false, false), ("FE", true, false), ("FE+MT", true, true)];

/// A process of a tier, with the service of its boxes.
struct Tier {
    child: Child,
    boxes: Option<(BoxService, Arc<Pool>)>,
}

impl Tier {
    fn start(folder: &Path, name: &str, listen: &str, boxes: bool, arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("../auction").canonicalize().context("no auction")?;
        let mut command = Command::new(program);
        command.arg(name).args(["--listen", listen]).args(arguments).env("BACKDOORS_LOG", "warn");
        let socket = folder.join(format!("{name}.sock"));
        let mut service = None;
        if boxes {
            let (fd, pool) = Pool::memfd(Geometry::standard(SLOTS), 1)?;
            service = Some((BoxService::start(&socket, Arc::clone(&pool), fd)?, pool));
            command.arg("--box-socket").arg(&socket);
        }
        let child = command.stdout(Stdio::piped()).spawn().context("auction")?;
        let tier = Self { child, boxes: service };
        let began = Instant::now();
        while TcpStream::connect(listen).is_err() {
            ensure!(began.elapsed() < START_BOUND, "{name} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(tier)
    }

    /// Boxes in use, and what it said at its end.
    fn end(mut self) -> Result<(usize, String)> {
        let used = self
            .boxes
            .as_ref()
            .map_or(0, |(service, _)| service.usage().applications.values().map(|share| share.open).sum());
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let said = BufReader::new(self.child.stdout.take().context("its output")?);
        let last = said.lines().map_while(Result::ok).last().unwrap_or_default();
        self.child.wait()?;
        Ok((used, last))
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [clients, seconds, rounds] = numbers[..] else { anyhow::bail!("three numbers: CLIENTS SECONDS ROUNDS") };
    let folder = Folder(std::env::temp_dir().join(format!("auction-cost-{}", std::process::id())));
    let server = Server::start(&folder.0, None, 64)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { database::generate(&mut database::connect(&server.address()).await?, SIZE, 1).await })?;
    let mut best = [0f64; SERIES.len()];
    let mut ratios = vec![Vec::new(); SERIES.len()];
    for round in 0..rounds {
        let mut throughput = [0f64; SERIES.len()];
        // Not always the same one first: what runs later finds a larger database.
        for turn in 0..SERIES.len() {
            let number = (turn + round as usize) % SERIES.len();
            let (name, front_end, mid_tier) = SERIES[number];
            let database = server.address();
            let mt = ["--database", &database, "--connections", CONNECTIONS];
            let mid = Tier::start(&folder.0, "mt", MID_TIER, mid_tier, &mt)?;
            let front = Tier::start(&folder.0, "fe", FRONT_END, front_end, &["--mid-tier", MID_TIER])?;
            let crowd = Crowd { seed: 1 + round, clients: clients as u32, users: SIZE.users() };
            let front_ends = vec![FRONT_END.parse::<SocketAddr>()?];
            let length = Duration::from_secs(seconds);
            let order = Order { front_ends, crowd, mix: Mix::Bid, length, slow_down: 0.0 };
            let (report, _) = runtime.block_on(clients::run(&order))?;
            let figures = [front.end()?, mid.end()?];
            let (p50, p99, failed) = (report.latency_ms_p50, report.latency_ms_p99, report.failures);
            throughput[number] = report.throughput_s;
            best[number] = best[number].max(report.throughput_s);
            println!(
                "{name:6} {:8.0}/s  p50 {p50:.2} p99 {p99:.2} ms  failed {failed}  {figures:?}",
                throughput[number]
            );
        }
        (0..SERIES.len()).for_each(|number| ratios[number].push(throughput[number] / throughput[0]));
    }
    for (number, (name, ..)) in SERIES.iter().enumerate() {
        ratios[number].sort_by(f64::total_cmp);
        let median = ratios[number][ratios[number].len() / 2];
        println!("{name:6} best {:8.0}/s  median of plain {median:.3}", best[number]);
    }
    Ok(())
}
