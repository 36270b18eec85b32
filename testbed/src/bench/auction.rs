//! What recovery costs the auction while nothing fails: replies per second and their latency against the number of
//! clients, of plain tiers, with a recoverable front end, and with both tiers recoverable. Figures 3.9 and 3.10 of the
//! dissertation.
//!
//! ```text
//!              ┌► front end ────────► mid tier ──────────┐
//!   clients ───┼► front end + boxes ──┘                  ├─► PostgreSQL        one at a time, by turns
//!              └► front end + boxes ► mid tier + boxes ──┘
//! ```
//! Everything on this machine, over loopback: tiers, clients and database share its processors, and boxes lie in memory
//! of this process, which nobody reads. Clients do not think, so that few of them are enough to saturate it. A ratio is
//! the median over runs beside each other.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use auction::{clients::Report, database::Server};
use contbox::{Geometry, Pool, service::BoxService};

use super::{
    Effort,
    files::{exports, least},
    line::{Goal, Group, Line, Sample, Unit},
};
use crate::{
    plot::{Axis, Figure, INK, Line as Curve, PALETTE, Panel, Scale},
    sandbox,
    scenario::{Daemon, Progress, rubis::auction},
    topology::Place,
};

const DATABASE: SocketAddr = at(5432);
/// Connections of each mid tier to the database, and those of everybody else.
const CONNECTIONS: u32 = 16;
const CONNECTIONS_OF_OTHERS: u32 = 10;
const MID_TIERS: [SocketAddr; 2] = [at(8100), at(8101)];
const FRONT_ENDS: [SocketAddr; 3] = [at(8000), at(8001), at(8002)];
/// What is drawn for each front end, by the place of its mid tier.
const SERIES: [(&str, bool, usize); 3] =
    [("plain", false, 0), ("front end with boxes", true, 0), ("both tiers with boxes", true, 1)];
const ITEMS: &str = "4000";
/// Boxes of each tier: more than connections, those in their closing included.
const SLOTS: u32 = 1024;
const RATIO_MIN: f64 = 0.98;
const START_BOUND: Duration = Duration::from_secs(60);
const BARE: &str = "the same tiers without boxes";

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

pub(super) fn measure(effort: &Effort, out: &Path, progress: Progress) -> Result<Vec<Line>> {
    let mut site = Site::build(&Path::new(sandbox::SCRATCH).join("auction"))?;
    let (mut lines, mut points) = (Vec::new(), Vec::new());
    for (number, clients) in effort.auction_clients.iter().enumerate() {
        progress.step(format_args!("{clients} clients"));
        let point = site.point(*clients, effort, number as u64)?;
        lines.extend(point.lines());
        points.push(point);
    }
    site.end()?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    fs::write(out.join("auction.svg"), figure(&points).svg()).context("auction.svg")?;
    Ok(lines)
}

/// What one number of clients came to, run by run, for each of the series.
struct Point {
    clients: u32,
    rates: [Vec<f64>; SERIES.len()],
    latencies_ms: [Vec<f64>; SERIES.len()],
}

impl Point {
    fn lines(&self) -> impl Iterator<Item = Line> {
        (1..SERIES.len()).map(|series| {
            let pairs = self.rates[series].iter().zip(&self.rates[0]);
            let ratio = Sample::of(pairs.map(|(ours, plain)| ours / plain).collect()).median;
            let name = format!("auction, {} clients, {}", self.clients, SERIES[series].0);
            let plain = Sample::of(self.rates[0].clone()).median;
            let line = Line::new(Group::Auction, name, Unit::Rate, &least(self.rates[series].clone()), plain, BARE);
            line.ratio(ratio).goal(Goal::RatioAtLeast(RATIO_MIN))
        })
    }
}

/// The database and all tiers; only those in use have anything to do.
struct Site {
    folder: PathBuf,
    tiers: Vec<Daemon>,
    pools: Vec<Option<Arc<Pool>>>,
    services: Vec<BoxService>,
    _database: Server,
}

impl Site {
    fn build(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let connections = CONNECTIONS * MID_TIERS.len() as u32 + CONNECTIONS_OF_OTHERS;
        let database = Server::start(&folder.join("database"), Some(DATABASE), connections)?;
        let address = Server::tcp_address(DATABASE);
        auction(&["data", "--database", &address, "--items", ITEMS, "--seed", "1"])?.silent()?;
        let (tiers, pools, services) = (Vec::new(), Vec::new(), Vec::new());
        let mut site = Self { folder: folder.to_owned(), tiers, pools, services, _database: database };
        let connections = CONNECTIONS.to_string();
        for (number, listen) in MID_TIERS.into_iter().enumerate() {
            let arguments = ["--database", &address, "--connections", &connections];
            site.start(&format!("mt{number}"), "mt", listen, number == 1, &arguments)?;
        }
        for (number, listen) in FRONT_ENDS.into_iter().enumerate() {
            let (_, has_boxes, mid_tier) = SERIES[number];
            let arguments = ["--mid-tier", &MID_TIERS[mid_tier].to_string()];
            site.start(&format!("fe{number}"), "fe", listen, has_boxes, &arguments)?;
        }
        Ok(site)
    }

    fn start(&mut self, name: &str, tier: &str, listen: SocketAddr, has_boxes: bool, more: &[&str]) -> Result<()> {
        let mut arguments = vec![tier.to_owned(), "--listen".to_owned(), listen.to_string()];
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let mut pool = None;
        if has_boxes {
            let (fd, boxes) = Pool::memfd(Geometry::standard(SLOTS), 1).context("memory for boxes")?;
            let socket = self.folder.join(format!("{name}.socket"));
            self.services.push(BoxService::start(&socket, Arc::clone(&boxes), fd).context("the box service")?);
            arguments.extend(["--box-socket".to_owned(), socket.display().to_string()]);
            pool = Some(boxes);
        }
        let mut daemon = Daemon::start_logging(&Place::here("bench"), name, "auction", arguments, &self.folder, None)?;
        daemon.wait_until("listen", START_BOUND, || TcpStream::connect(listen).is_ok())?;
        self.tiers.push(daemon);
        self.pools.push(pool);
        Ok(())
    }

    fn point(&mut self, clients: u32, effort: &Effort, number: u64) -> Result<Point> {
        let mut point = Point { clients, rates: Default::default(), latencies_ms: Default::default() };
        for round in 0..effort.auction_rounds {
            for turn in 0..SERIES.len() {
                // Not always the same one first: who comes later finds a larger database.
                let series = (turn + round) % SERIES.len();
                let seed = 1000 * number + (round * SERIES.len() + turn) as u64;
                let report = self.run(series, clients, effort.auction_s, seed)?;
                point.rates[series].push(report.throughput_s);
                point.latencies_ms[series].push(report.latency_ms_p50);
            }
        }
        Ok(point)
    }

    fn run(&mut self, series: usize, clients: u32, seconds: u64, seed: u64) -> Result<Report> {
        let before = self.exports(series);
        let words = [
            ("--front-end", FRONT_ENDS[series].to_string()),
            ("--clients", clients.to_string()),
            ("--seconds", seconds.to_string()),
            ("--slow-down", "0".to_owned()),
            ("--mix", "bid".to_owned()),
            ("--items", ITEMS.to_owned()),
            ("--seed", seed.to_string()),
            ("--record", self.folder.join("record.jsonl").display().to_string()),
        ];
        let arguments: Vec<&str> =
            std::iter::once("clients").chain(words.iter().flat_map(|(name, value)| [*name, value.as_str()])).collect();
        let report: Report = auction(&arguments)?.result()?;
        let (name, has_boxes, _) = SERIES[series];
        ensure!(report.failures + report.mismatched == 0 && report.replies > 0, "{name}: {:?}", report.quoted);
        // The end of each reply is exported: without that, it is not boxes what was measured.
        let exports = self.exports(series) - before;
        ensure!(!has_boxes || exports >= report.replies, "{name}: {exports} exports for {} replies", report.replies);
        Ok(report)
    }

    /// Exports of the series' front end so far.
    fn exports(&self, series: usize) -> u64 {
        self.pools[MID_TIERS.len() + series].as_ref().map_or(0, exports)
    }

    /// Front ends first: the mid tiers then have nobody who asks.
    fn end(mut self) -> Result<()> {
        std::mem::take(&mut self.tiers).into_iter().rev().try_for_each(Daemon::terminate)
    }
}

fn figure(points: &[Point]) -> Figure {
    let curves = |of: &dyn Fn(&Point, usize) -> f64| {
        let curve = |series: usize| Curve {
            colour: colour(series),
            dotted: true,
            points: points.iter().map(|point| (f64::from(point.clients), of(point, series))).collect(),
        };
        (0..SERIES.len()).map(curve).collect::<Vec<_>>()
    };
    let most = points.iter().map(|point| f64::from(point.clients)).fold(1.0, f64::max);
    let panel = |title: &str, y: &str, lines: Vec<Curve>| {
        let values = lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value)).collect::<Vec<_>>();
        let (x, y) = (Axis::new("clients", Scale::Linear, 0.0, most), Axis::above(y, values.into_iter()));
        Panel { title: title.to_owned(), x, y, lines, marks: Vec::new() }
    };
    let rates = curves(&|point, series| Sample::of(point.rates[series].clone()).median);
    let latencies = curves(&|point, series| Sample::of(point.latencies_ms[series].clone()).median);
    let least = points.iter().flat_map(Point::lines).map(|line| line.ratio).fold(f64::INFINITY, f64::min);
    Figure {
        title: format!("With boxes the auction gives at least {least:.3} of the replies it gives without"),
        subtitle: "bidding mix, clients do not think, all tiers and the database on this machine; medians".to_owned(),
        legend: (0..SERIES.len()).map(|series| (SERIES[series].0.to_owned(), colour(series))).collect(),
        columns: 2,
        panel_height: 240.0,
        panels: vec![panel("Throughput", "replies per second", rates), panel("Latency", "median, ms", latencies)],
    }
}

fn colour(series: usize) -> &'static str {
    match series {
        0 => INK,
        other => PALETTE[other - 1],
    }
}
