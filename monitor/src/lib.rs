//! Process: samples, detects, dispatches, fences, evacuates.

pub mod detect;
