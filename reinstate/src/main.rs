//! `reinstate --config FILE.toml`: stands by for targets and takes their sessions over when told to.

mod service;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use reinstate::{
    config::Config,
    daemon::{self, Daemon},
};
use tracing_subscriber::EnvFilter;

/// Takes over the sessions of fenced targets: rebuilds their connections here and hands them to the application.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; reinstate.example.toml shows every key.
    #[arg(long)]
    config: PathBuf,
    /// Read the configuration, say whether it can be used, and end.
    #[arg(long)]
    check: bool,
    /// Remove what a killed daemon has left on this machine (addresses, their connections), and end. Meant for
    /// ExecStopPost= of a unit.
    #[arg(long)]
    clean: bool,
    /// Write logs as JSON, one object per line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reinstate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    if arguments.check {
        println!("{}: good, spare {}", arguments.config.display(), config.name);
        return Ok(());
    }
    start_logs(arguments.log_json);
    if arguments.clean {
        let addresses = daemon::clean(&config)?;
        println!("{addresses} addresses of a killed daemon removed");
        return Ok(());
    }
    let signals = service::Signals::block().context("cannot wait for signals")?;
    let daemon = Daemon::start(&config)?;
    service::notify("READY=1");
    let outcome = signals.wait();
    service::notify("STOPPING=1");
    drop(daemon);
    outcome
}

fn start_logs(json: bool) {
    let filter = EnvFilter::try_from_env("BACKDOORS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { logs.json().init() } else { logs.init() }
}
