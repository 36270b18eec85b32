//! Process: samples, detects, dispatches, fences, evacuates.

pub mod clock;
pub mod config;
pub mod detect;
mod dispatch;
pub mod door;
pub mod evacuate;
pub mod fence;
pub mod journal;
pub mod metrics;
pub mod sample;
pub mod watch;
