//! Process: samples, detects, dispatches, fences, evacuates.

pub mod clock;
pub mod config;
pub mod detect;
pub mod evacuate;
pub mod fence;
pub mod journal;
pub mod sample;
