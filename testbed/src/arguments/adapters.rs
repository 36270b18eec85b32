//! What can be said of machines with RDMA adapters.

use std::path::PathBuf;

use clap::Args;
use testbed::{
    interop::{self, matrix::Direction},
    scenario::rxe_monitor::Stop,
};

#[derive(Args)]
pub struct Interop {
    /// Line of guest kernels, as scripts/setup fetches them.
    #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
    pub kernel: String,
    /// Who asks whom.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Direction::ALL)]
    pub directions: Vec<Direction>,
    /// What the path does to packets.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = interop::matrix::Path::ALL)]
    pub paths: Vec<interop::matrix::Path>,
    /// Path MTUs in bytes; all of them if none is said.
    #[arg(long, value_delimiter = ',')]
    pub mtus: Vec<u16>,
    /// A part of the matrix that takes moments, drawn by the seed.
    #[arg(long)]
    pub slice: bool,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the lines are left.
    #[arg(long, default_value = "out/interop")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct RxeMonitorArguments {
    /// Line of guest kernels, as scripts/setup fetches them.
    #[arg(long, default_value = "6.1", value_parser = ["6.1", "6.12", "6.1-rt"])]
    pub kernel: String,
    /// How its user space comes to stand still.
    #[arg(long, value_enum, default_value = "frozen")]
    pub stop: Stop,
    /// Clients.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=40))]
    pub sessions: u16,
    /// How long its agent may be silent before it is taken for hung, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    pub deadline_ms: u64,
    /// What the clients do follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where result and journal are left.
    #[arg(long, default_value = "out/rxe-monitor")]
    pub out: PathBuf,
}
