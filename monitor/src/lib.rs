//! Process: samples, detects, dispatches, fences, evacuates.
