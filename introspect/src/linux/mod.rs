//! Walkers, one module per kernel subsystem.

pub mod channel;
pub mod contain;
pub mod kill;
pub mod log;
pub mod machine;
pub mod task;
pub mod tcp;
pub mod ucounts;
pub mod variable;
mod walk;
