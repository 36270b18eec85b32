//! Every tier a process of its own on this machine, over loopback: for figures of load.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Result, bail};
use auction::{check::Findings, clients::Report, database::Server};

use super::{Run, auction};
use crate::{
    scenario::{Daemon, Progress},
    topology::Place,
};

/// Where the database listens.
const DATABASE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5432);
/// Ports of the first front end and the first mid tier; the others follow.
const FRONT_ENDS: u16 = 8000;
const MID_TIERS: u16 = 8100;
/// Connections of each mid tier to the database.
const CONNECTIONS: u32 = 16;
/// Those of everybody else: generator, check, an administrator.
const CONNECTIONS_OF_OTHERS: u32 = 10;
/// A busy machine included.
const START_BOUND: Duration = Duration::from_secs(30);

/// Plays it: an empty cluster is filled, users come, tiers end, and the database is compared.
///
/// # Errors
/// When something cannot be started, or ends before it should.
pub(super) fn play(run: &Run, folder: &Path, progress: Progress) -> Result<(Report, Findings)> {
    let (front_count, mid_count) = run.counts();
    progress.step(format_args!("PostgreSQL with {} items", run.items));
    let connections = CONNECTIONS * u32::from(mid_count) + CONNECTIONS_OF_OTHERS;
    let database = Server::start(&folder.join("database"), Some(DATABASE), connections)?;
    let address = Server::tcp_address(DATABASE);
    let (items, seed) = (run.items.to_string(), run.seed.to_string());
    auction(&["data", "--database", &address, "--items", &items, "--seed", &seed])?.silent()?;

    progress.step(format_args!("{mid_count} mid tiers, {front_count} front ends"));
    let connections = CONNECTIONS.to_string();
    let mut tiers = Vec::new();
    let mid_tiers = start_tiers(&mut tiers, folder, ("mt", MID_TIERS, mid_count), |listen| {
        ["mt", "--listen", listen, "--database", &address, "--connections", &connections].map(str::to_owned).into()
    })?;
    let front_ends = start_tiers(&mut tiers, folder, ("fe", FRONT_ENDS, front_count), |listen| {
        ["fe", "--listen", listen, "--mid-tier", &mid_tiers].map(str::to_owned).into()
    })?;

    progress.step(format_args!("{} clients for {:?}", run.clients, run.length));
    let record = folder.join("record.jsonl");
    let arguments = run.client_arguments(&front_ends, &run.length.as_secs_f64().to_string(), &record, None)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report: Report = auction(&arguments)?.result()?;
    for tier in &mut tiers {
        if let Some(status) = tier.ended()? {
            bail!("{} ended during the run ({status}):\n{}", tier.name(), tier.tail());
        }
    }

    progress.step("the database is checked");
    // Front ends first: the mid tiers then have nobody who asks.
    tiers.into_iter().rev().try_for_each(Daemon::terminate)?;
    let record = record.display().to_string();
    let findings: Findings = auction(&["check", "--database", &address, "--record", &record])?.result()?;
    drop(database);
    Ok((report, findings))
}

/// Starts one tier's processes and waits until they listen; returns their addresses, with commas.
fn start_tiers(
    tiers: &mut Vec<Daemon>,
    folder: &Path,
    (name, port, count): (&str, u16, u16),
    arguments: impl Fn(&str) -> Vec<String>,
) -> Result<String> {
    let mut addresses = Vec::new();
    for number in 0..count {
        let listen = SocketAddr::new(DATABASE.ip(), port + number);
        let name = format!("{name}{number}");
        let arguments = arguments(&listen.to_string());
        let mut tier = Daemon::start_logging(&Place::here("rubis"), &name, "auction", arguments, folder, None)?;
        tier.wait_until("listening", START_BOUND, || TcpStream::connect(listen).is_ok())?;
        tiers.push(tier);
        addresses.push(listen.to_string());
    }
    Ok(addresses.join(","))
}
