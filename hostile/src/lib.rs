//! Tests: what a hostile peer, guest or file can send, against everything that parses it.
//!
//! A [`Target`] is a function of bytes that panics when a promise is broken: a parser that panics itself, memory
//! touched without a grant, a number beyond its bound, an error without its place. Three drivers share them:
//!
//! * `cargo test -p hostile` replays the corpus and a slice of seeded mutations;
//! * `cargo run --release -p hostile -- --runs 1000000` is the campaign;
//! * `fuzz/` hands the same functions to libFuzzer, for machines that have `cargo fuzz`.
//!
//! The corpus lies in `corpus/TARGET/NAME`: small inputs, named after what they are. An input that once broke a
//! promise is added there under the name of its incident.
//!
//! Inputs of the state machines, boxes and images are programs for the harness, not packets: most mutations of a
//! packet die at its first check, most mutations of a program are another conversation.

mod boxes;
pub mod campaign;
mod messages;
pub mod mutation;
mod peer;
mod program;
pub mod scatter;
pub mod scattered;
mod tables;
mod walks;

/// One thing that takes bytes from somebody who is not trusted.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Panics if `input` breaks a promise; says whether it got past the first checks.
    pub run: fn(&[u8]) -> bool,
    /// Of a thousand runs of a campaign, how many are its own: fewer where a run is dear.
    pub share: u64,
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    Target { name: "packet", run: peer::packet, share: 180 },
    Target { name: "responder", run: peer::responder, share: 190 },
    Target { name: "requester", run: peer::requester, share: 150 },
    Target { name: "tcp_segment", run: peer::tcp_segment, share: 50 },
    Target { name: "contbox", run: boxes::contbox, share: 95 },
    Target { name: "sensorbox", run: boxes::sensorbox, share: 100 },
    Target { name: "connections", run: tables::connections, share: 15 },
    Target { name: "process_table", run: tables::process_table, share: 15 },
    Target { name: "answers", run: tables::answers, share: 15 },
    Target { name: "frame", run: messages::frame, share: 75 },
    Target { name: "agent", run: messages::agent, share: 70 },
    Target { name: "config", run: messages::config, share: 20 },
    Target { name: "walk", run: walks::walk, share: 5 },
    Target { name: "last_words", run: walks::last_words, share: 5 },
    Target { name: "processes", run: walks::processes, share: 5 },
    Target { name: "channels", run: walks::channels, share: 5 },
    Target { name: "kills", run: walks::kills, share: 5 },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
