//! The messages of the box service. Kept small and flat: they are read in logs as often as by programs.

use crate::testament::Testament;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Version of this conversation; a server refuses another one.
pub const PROTOCOL: u32 = 1;

/// A slot that an application still uses from an earlier conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The pool it lies in.
    pub pool: u64,
    /// Its number.
    pub slot: u32,
}

/// What an application says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromApp {
    /// Opens the conversation.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Names the application in logs.
        name: String,
        /// TCP ports it listens on: sessions on them can be handed to it.
        ports: Vec<u16>,
        /// Slots it uses already.
        held: Vec<Held>,
        /// Slots it would like to have on top.
        want: u32,
        /// Whether it wants to be told the [`ToApp::Testament`] of whoever it takes over from.
        #[serde(default)]
        heir: bool,
        /// Whether it takes sessions with channels to other processes: who does not know of them must not get any.
        #[serde(default)]
        channels: bool,
        /// Roles (see [`role`](crate::channel::role)) under which it takes the far ends of channels.
        #[serde(default)]
        roles: Vec<u32>,
    },
    /// Asks for more slots.
    Want {
        /// How many.
        slots: u32,
    },
    /// Gives slots back.
    Release {
        /// Their numbers.
        slots: Vec<u32>,
    },
    /// A session was taken over.
    Resumed {
        /// The number in [`Resume`].
        order: u64,
    },
    /// A session was not taken over; its socket is closed without a word to the client.
    Declined {
        /// The number in [`Resume`].
        order: u64,
        /// For people.
        why: String,
    },
}

/// What the box service says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToApp {
    /// Answers `Hello`; carries the pool's descriptor.
    Pool {
        /// The pool's name.
        pool: u64,
        /// Bytes to map.
        length_bytes: u64,
    },
    /// Slots that are the application's from now on, perhaps none.
    Lease {
        /// The application's number, to be written into its boxes.
        owner: u32,
        /// Their numbers.
        slots: Vec<u32>,
    },
    /// What all boxes of a dead machine's service said; before the first of its sessions.
    Testament(Testament),
    /// A session to take over; carries the socket's descriptor.
    Resume(Resume),
    /// One end of a channel; carries the descriptor of its socket. A near end comes before its session, to the same
    /// application, and is answered with that; a far end is answered by itself. Only those get any who said that they
    /// know them.
    End(ResumeEnd),
    /// The conversation cannot be had.
    Refused {
        /// For people.
        why: String,
    },
}

/// A reinstated session: its socket travels along, its box is in one of the application's slots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resume {
    /// Names the order in the answer.
    pub order: u64,
    /// The slot that holds snapshot and log; leased to the application by this message.
    pub slot: u32,
    /// Our end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// Stream offset up to which input is in the log; the socket's input continues there.
    pub received: u64,
    /// Bytes of regenerated output to swallow: the socket's output continues at `lsw + discard`.
    pub discard: u64,
    /// How many [`ToApp::End`] of this order came before.
    #[serde(default)]
    pub channels: u32,
}

/// One end of a channel whose session is reinstated: its record is in one of the application's slots.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResumeEnd {
    /// Names the order in the answer: of a near end that of its session.
    pub order: u64,
    /// The role of whoever is to take it; 0 for a near end.
    pub role: u32,
    /// The slot that holds snapshot and log; leased to the application by this message.
    pub slot: u32,
    /// The channel's name.
    pub channel: u64,
    /// Bytes of regenerated output to swallow.
    pub discard: u64,
    /// The client of the session, for people.
    pub peer: SocketAddr,
}

impl ToApp {
    /// Whether a descriptor travels with the message.
    pub fn carries_fd(&self) -> bool {
        matches!(self, Self::Pool { .. } | Self::Resume(_) | Self::End(_))
    }
}
