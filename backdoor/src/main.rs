//! `backdoor --config FILE.toml`: serves one target's memory until it is told to end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use backdoor::config::Config;
use backdoor::daemon::Daemon;
use clap::Parser;

/// Serves the memory of one virtual machine over RoCEv2, guards it, and fences the machine on request.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; backdoor.example.toml shows every key.
    #[arg(long)]
    config: PathBuf,
    /// Read the configuration, say whether it can be used, and end.
    #[arg(long)]
    check: bool,
    /// Write logs as JSON, one object per line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backdoor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    if arguments.check {
        println!("{}: good, for target {}", arguments.config.display(), config.target);
        return Ok(());
    }
    service::start_logs(arguments.log_json);
    let signals = service::Signals::block().context("cannot wait for signals")?;
    let daemon = Daemon::start(&config)?;
    service::notify("READY=1");
    let outcome = signals.wait_while(|| !daemon.has_failed());
    service::notify("STOPPING=1");
    drop(daemon);
    outcome
}
