//! One end of the interoperation of two RoCEv2s, on the host or in a guest; see [`testbed::interop`].

use std::{net::Ipv4Addr, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use testbed::interop::{
    Carrier,
    active::{self, Ends},
    pace::{self, Pace},
    passive,
    plan::Cell,
};

/// One of the two ends.
#[derive(Parser)]
enum Arguments {
    /// Serves memory until it is killed.
    Serve {
        /// What carries the packets.
        #[arg(long, value_enum)]
        carrier: Carrier,
        /// The address they come from.
        #[arg(long)]
        local: Ipv4Addr,
        /// Where it talks about queue pairs.
        #[arg(long)]
        talk: Ipv4Addr,
    },
    /// Carries out cells, and says what came of each in a line of JSON.
    Ask {
        /// What carries the packets.
        #[arg(long, value_enum)]
        carrier: Carrier,
        /// The address they come from.
        #[arg(long)]
        local: Ipv4Addr,
        /// Where the passive end talks.
        #[arg(long)]
        peer: Ipv4Addr,
        /// Operations under way at the same time.
        #[arg(long, default_value_t = 64)]
        depth: usize,
        /// An adapter's wait before it repeats.
        #[arg(long, default_value_t = 67)]
        timeout_ms: u64,
        /// The cells, as a list in JSON.
        cells: String,
    },
    /// Measures READs of an adapter, and says what came of it in a line of JSON.
    Pace {
        /// The adapter's address.
        #[arg(long)]
        local: Ipv4Addr,
        /// Where the passive end talks.
        #[arg(long)]
        peer: Ipv4Addr,
        /// What is measured.
        #[command(flatten)]
        pace: Pace,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments {
        Arguments::Serve { carrier, local, talk } => passive::serve(carrier, local, talk),
        Arguments::Ask { carrier, local, peer, depth, timeout_ms, cells } => {
            let cells: Vec<Cell> = serde_json::from_str(&cells)?;
            let ends = Ends { carrier, local, peer, depth, timeout: Duration::from_millis(timeout_ms) };
            for cell in &cells {
                println!("{}", serde_json::to_string(&active::carry_out(&ends, cell))?);
            }
            Ok(())
        }
        Arguments::Pace { local, peer, pace } => {
            println!("{}", serde_json::to_string(&pace::measure(local, peer, pace)?)?);
            Ok(())
        }
    }
}
