//! The whole monitor in one process: a Sensor Box in a memory image, a virtual clock, seeded faults on the path, and
//! real control connections to spares that play a part. No socket carries a sample and no test waits for a deadline.

mod after;
mod journal;
mod order;
mod repairs;
mod stage;
mod succession;
mod verdicts;
