//! The command line of the testbed. Everything runs inside a [`sandbox`]; nothing is left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use testbed::{sandbox, timeline::Timeline, topology::Topology};

/// Breaks real virtual machines and proves that their clients never notice.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Draws a timeline that was saved as JSON: as SVG on standard output, as text on standard error.
    Draw {
        /// The file.
        timeline: PathBuf,
    },
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
    if let Action::Draw { timeline } = &arguments.action {
        return draw(timeline);
    }
    sandbox::enter()?;
    match arguments.action {
        Action::Draw { timeline } => draw(&timeline),
        Action::Enter { place, command } => enter(&place, &command),
    }
}

fn draw(file: &Path) -> Result<ExitCode> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let timeline: Timeline = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
    print!("{}", timeline.svg());
    eprint!("{}", timeline.text(100));
    Ok(ExitCode::SUCCESS)
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
