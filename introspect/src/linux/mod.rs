//! Walkers, one module per kernel subsystem.

pub mod task;
pub mod tcp;
