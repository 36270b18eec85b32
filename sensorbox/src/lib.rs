//! The Sensor Box (SB): a page or more of target memory in which sensors show how the machine is doing.
//!
//! ```text
//!   record 0        record 1        record 2                      record N = capacity
//!   header          sensor, id 1    sensor, id 2    …             sensor, id N
//!   |<-- 64 bytes ->|
//! ```
//!
//! [`layout`] is the contract, byte by byte; `include/sensorbox.h` says the same in C, for the eBPF programs that
//! update sensors from inside the kernel. [`producer`] makes sensors and moves their values with single atomic
//! instructions: no system call, no lock, nothing a monitor could wait for. [`reader`] takes a box apart that came
//! from a machine nobody trusts. The names `new_sensor`, `set_sensor_value` and `fetch_sb` are the paper's.
//!
//! What a reading *means* for the machine's health is the monitor's business: this crate keeps no history and
//! no clock. [`layout::Class`] defines what the producer promises.
//!
//! Invariants: nothing in a box makes the reader panic or allocate more than the box is long; zeroed or random
//! memory holds no sensor; a value is one aligned word, so a remote read never tears it.

pub mod layout;
pub mod producer;
pub mod reader;

pub use layout::{Class, Cpu, Description, Name};
pub use producer::{Producer, Sensor};
pub use reader::{Damage, FetchError, Header, Malformed, Reading, SensorBox, fetch_sb};
