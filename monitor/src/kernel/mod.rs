//! Kernel sensors: variables of a target's kernel, read in place. Nothing of ours is installed in the target for them.
//!
//! ```text
//!   configuration ──► recipe      which variables, and what is made of them
//!                       │
//!   beside the watch  surveyor ──► survey       names to places, once for each life of the kernel (seconds)
//!                                    │
//!   in the watch                   reader       places to values, in the batch of the Sensor Box (one round trip)
//! ```
//!
//! A place is good for one life of a kernel: whatever boots next has everything elsewhere. So each sample brings words
//! along that differ in each life, and values are taken only beside the words that the survey has seen. That is not
//! enough: what a reset leaves of a kernel may lie in memory untouched, all words as they were. So a kernel is surveyed
//! only if it moves, and the backdoor is asked for resets ([`crate::sample::Sensors`]). What is read
//! is a claim of the target, as a box is: it can hide a hang, and it can raise an alarm that a second look must
//! confirm.
//!
//! The tickless rule. A processor that idles takes no ticks; all its counters stand still, for seconds, in perfect
//! health. Its kernel keeps for how long: until the next timer. Each progress sensor of a processor has that beside it
//! as a sensor of its own, `SLEEP`, and is late only so much later ([`crate::detect`]).

mod listing;
mod reader;
pub mod recipe;
mod survey;
mod surveyor;
mod users;

pub use listing::{Listing, Shown};
pub use reader::KernelReader;
#[cfg(test)]
pub(crate) use reader::tests as made;
pub(crate) use reader::{BYTES_MAX, STRETCHES_MAX};
pub use recipe::KernelSensor;
pub(crate) use survey::SLEEP;
pub use survey::{Survey, WatchedUser, survey, survey_the_living};
pub use surveyor::{Answer, Surveyor, watched_users};
