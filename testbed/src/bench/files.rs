//! The file server under wrk, with Continuation Boxes and without, by turns; and without them against nginx.
//!
//! No virtual machine: server and wrk each have a processor of their own, so that the server is the bottleneck and what
//! a box costs shows. A ratio is the median over pairs of runs, one beside the other.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use contbox::{Geometry, Pool, continuation::Words, layout::SlotHead, service::BoxService};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Effort,
    line::{Goal, Group, Line, Sample, Unit},
    wrk::{Load, Nginx},
};
use crate::{
    sandbox,
    scenario::{Daemon, Progress},
    topology::Place,
};

const WITH_BOXES: ([u8; 4], u16) = ([127, 0, 0, 1], 8081);
const PLAIN: ([u8; 4], u16) = ([127, 0, 0, 1], 8082);
const NGINX: ([u8; 4], u16) = ([127, 0, 0, 1], 8083);
/// What is served: name and length.
const FILES: [(&str, usize); 2] = [("/1KiB", 1 << 10), ("/1MiB", 1 << 20)];
/// What is asked for: a name for the line, the path, connections, one request for each connection.
const LOADS: [(&str, &str, usize, bool); 5] = [
    ("1 KiB, 16 connections", "/1KiB", 16, false),
    ("1 KiB, 128 connections", "/1KiB", 128, false),
    ("1 KiB, a connection each", "/1KiB", 16, true),
    ("1 MiB, 16 connections", "/1MiB", 16, false),
    ("1 MiB, 128 connections", "/1MiB", 128, false),
];
/// Boxes in the pool: more than connections, those in their closing included.
const SLOTS: u32 = 1024;
const RATIO_MIN: f64 = 0.98;
/// The shortest run of wrk.
const SECONDS: u64 = 1;
const START_BOUND: Duration = Duration::from_secs(10);
const BARE: &str = "the same server without a box service";
const OUTSIDE: &str = "nginx with one worker, sendfile";

pub(super) fn measure(effort: &Effort, progress: Progress) -> Result<Vec<Line>> {
    let mut servers = Servers::start(Path::new(sandbox::SCRATCH).join("bench"))?;
    let mut lines = Vec::new();
    for (name, path, connections, once) in LOADS {
        progress.step(format_args!("wrk: {name}"));
        let load = Load { path, connections, once, seconds: SECONDS };
        lines.push(servers.compare(name, &load, effort.wrk_pairs)?);
    }
    for (name, path, connections, once) in LOADS.into_iter().step_by(3) {
        let load = Load { path, connections, once, seconds: SECONDS };
        lines.push(servers.against_nginx(name, &load, effort.wrk_pairs.div_ceil(2))?);
    }
    Ok(lines)
}

/// The same server twice, and nginx.
struct Servers {
    with_boxes: Daemon,
    plain: Daemon,
    _nginx: Nginx,
    pool: Arc<Pool>,
    _service: BoxService,
}

impl Servers {
    fn start(folder: PathBuf) -> Result<Self> {
        let root = folder.join("files");
        fs::create_dir_all(&root)?;
        for (name, length) in FILES {
            fs::write(folder.join("files").join(&name[1..]), vec![b'x'; length]).context("a file to serve")?;
        }
        let (fd, pool) = Pool::memfd(Geometry::standard(SLOTS), 1).context("memory for boxes")?;
        let socket = folder.join("boxes.socket");
        let service = BoxService::start(&socket, Arc::clone(&pool), fd).context("the box service")?;
        let boxes = ["--box-socket".to_owned(), socket.display().to_string()];
        // The first processor is the servers', the last is wrk's.
        let (with_boxes, plain, nginx) = on_processor(Side::Server, || {
            let with_boxes = serve(WITH_BOXES.into(), &root, &folder.join("with-boxes"), &boxes)?;
            let plain = serve(PLAIN.into(), &root, &folder.join("plain"), &[])?;
            anyhow::Ok((with_boxes, plain, Nginx::start(NGINX.into(), &root, &folder)?))
        })?;
        let mut servers = Self { with_boxes, plain, _nginx: nginx, pool, _service: service };
        servers.with_boxes.wait_until("answer", START_BOUND, || answers(WITH_BOXES.into()))?;
        servers.plain.wait_until("answer", START_BOUND, || answers(PLAIN.into()))?;
        let began = Instant::now();
        while !answers(NGINX.into()) {
            ensure!(began.elapsed() < START_BOUND, "nginx does not answer");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(servers)
    }

    /// Runs with boxes and without, by turns; each pair begins with the other one.
    fn compare(&mut self, name: &str, load: &Load<'_>, pairs: usize) -> Result<Line> {
        let (mut with_boxes, mut plain) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            if pair % 2 == 1 {
                plain.push(rate(load, PLAIN.into())?);
            }
            let before = self.exports();
            with_boxes.push(rate(load, WITH_BOXES.into())?);
            let (exports, requests) = (self.exports() - before, with_boxes[pair] * load.seconds as f64);
            // The end of each response is exported: without that, it is not boxes what was measured.
            ensure!(exports as f64 > 0.9 * requests, "{name}: {exports} exports for {requests:.0} requests");
            if pair % 2 == 0 {
                plain.push(rate(load, PLAIN.into())?);
            }
        }
        let ratios = with_boxes.iter().zip(&plain).map(|(with_boxes, plain)| with_boxes / plain).collect();
        let plain = Sample::of(plain).median;
        let line = Line::new(Group::Files, name.to_owned(), Unit::Rate, &least(with_boxes), plain, BARE);
        Ok(line.ratio(Sample::of(ratios).median).goal(Goal::RatioAtLeast(RATIO_MIN)))
    }

    fn against_nginx(&self, name: &str, load: &Load<'_>, pairs: usize) -> Result<Line> {
        let (mut plain, mut nginx) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            plain.push(rate(load, PLAIN.into())?);
            nginx.push(rate(load, NGINX.into())?);
        }
        let (name, limit) = (format!("no boxes: {name}"), Sample::of(nginx).median);
        Ok(Line::new(Group::Files, name, Unit::Rate, &least(plain), limit, OUTSIDE))
    }

    /// Exports into all boxes so far.
    fn exports(&self) -> u64 {
        exports(&self.pool)
    }
}

/// Exports into all boxes of `pool` so far.
pub(super) fn exports(pool: &Arc<Pool>) -> u64 {
    pool.slots().map(|slot| slot.load(std::mem::offset_of!(SlotHead, newest) / 8)).sum()
}

/// The sample of a rate, whose bad end is the low one.
pub(super) fn least(rates: Vec<f64>) -> Sample {
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    Sample { worst: least, ..Sample::of(rates) }
}

fn rate(load: &Load<'_>, server: SocketAddr) -> Result<f64> {
    on_processor(Side::Client, || load.run(server))
}

fn serve(at: SocketAddr, root: &Path, folder: &Path, more: &[String]) -> Result<Daemon> {
    fs::create_dir_all(folder)?;
    let listen = ["--quiet".to_owned(), "--listen".to_owned(), at.to_string(), "--root".to_owned()];
    let arguments = listen.into_iter().chain([root.display().to_string()]).chain(more.iter().cloned());
    Daemon::start(&Place::here("bench"), "file-server", arguments, folder)
}

fn answers(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()
}

#[derive(Clone, Copy)]
enum Side {
    Server,
    Client,
}

/// Does `work` on a thread that is confined to one processor; processes that it starts are confined with it.
fn on_processor<T: Send>(side: Side, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let confined = scope.spawn(move || {
            let us = Pid::from_raw(0);
            let ours = sched_getaffinity(us)?;
            let mut allowed = (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap_or(false));
            let chosen = match side {
                Side::Server => allowed.next(),
                Side::Client => allowed.next_back(),
            };
            let mut one = CpuSet::new();
            one.set(chosen.context("no processor is allowed")?)?;
            sched_setaffinity(us, &one)?;
            work()
        });
        confined.join().map_err(|_| anyhow!("a run of wrk panicked"))?
    })
}
