//! Scenarios: a whole installation is built, broken and judged. The result is one line of JSON; a run can be repeated
//! from its seed.

mod aim;
mod configuration;
mod daemon;
pub mod drown;
mod dying;
pub mod hang_download;
pub mod incident;
mod installation;
pub mod interop;
mod progress;
mod queued;
pub mod relay;
pub mod rescue_and_return;
pub mod rubis;
pub mod rxe_monitor;
pub mod series;
pub mod soak;
mod verdict;

pub use aim::Aim;
pub use configuration::BACKDOOR_CONTROL;
pub use daemon::{Daemon, make_urgent, may_be_urgent, program};
pub use dying::Stage;
pub use hang_download::Run;
pub use installation::{Installation, MIRRORED_SLOTS, Order, pool_for, save_guest};
pub use progress::Progress;
pub use verdict::{Host, Verdict};
