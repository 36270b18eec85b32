//! `reinstate --config FILE.toml`: stands by for targets and takes their sessions over when told to.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use reinstate::{
    config::Config,
    daemon::{self, Daemon},
};
use service::capabilities::{self, Capability};

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

const NEEDS: [(Capability, &str); 2] = [
    (Capability::NetAdmin, "sockets under repair and addresses that move"),
    (Capability::NetRaw, "the raw sockets over which targets' memory is read and clients are asked"),
];

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
    service::start_logs(arguments.log_json);
    capabilities::require(&NEEDS)?;
    if arguments.clean {
        let addresses = daemon::clean(&config)?;
        println!("{addresses} addresses of a killed daemon removed");
        return Ok(());
    }
    let descriptors = service::raise_descriptor_limit().context("cannot ask for more descriptors")?;
    tracing::debug!(descriptors, "each session takes one");
    let signals = service::Signals::block().context("cannot wait for signals")?;
    let daemon = Daemon::start(&config)?;
    service::notify("READY=1");
    let outcome = signals.wait_while(|| true);
    service::notify("STOPPING=1");
    drop(daemon);
    outcome
}
