//! The command line of the testbed. Everything runs inside a [`sandbox`]; nothing is left behind.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use testbed::{sandbox, topology::Topology};

/// Breaks real virtual machines and proves that their clients never notice.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs a command in a machine of a fresh topology, to look around: hypervisor, spare, monitor or client.
    Enter {
        /// The machine.
        place: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    sandbox::enter()?;
    match arguments.action {
        Action::Enter { place, command } => enter(&place, &command),
    }
}

fn enter(place: &str, command: &[String]) -> Result<ExitCode> {
    let topology = Topology::build()?;
    let place = match place {
        "hypervisor" => &topology.hypervisor,
        "spare" => &topology.spare,
        "monitor" => &topology.monitor,
        "client" => &topology.client,
        other => bail!("there is no machine {other}: hypervisor, spare, monitor or client"),
    };
    let [program, arguments @ ..] = command else { bail!("which command?") };
    let status = place.spawn(Command::new(program).args(arguments))?.wait().context("waiting for the command")?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}
