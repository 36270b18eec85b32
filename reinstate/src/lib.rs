//! What a spare does with a fenced target: reads its sessions out of dead memory, rebuilds their sockets here, takes
//! the address over and hands every session to the application that already runs on this machine.
//!
//! ```text
//!   extract   sockets and boxes out of dead memory, paired by 4-tuple        extract, session, tables, catch_up
//!   channels  what lies between the processes of a session                    channels
//!   admit     which of them can go on with every byte exactly once           session
//!   probe     neighbours learn our link address; where does each client stand?   address, probe, position
//!   rebuild   one kernel socket for each session, silent and not yet reachable   tcp_repair
//!   address   the service address becomes ours                               address
//!   resume    sockets speak; the application takes its sessions              resume
//!   tell      clients learn where things stand, until they are heard; those whose timers have backed off repeat
//!             themselves                                                     tell, nudge
//! ```
//!
//! Order is the whole safety argument: until `address` the service address is **not local**, so this kernel drops what
//! clients send to it in silence (no reset for a session without socket), and when it becomes local every socket
//! exists. No helper program is ever started: addresses, routes and rules are netlink messages.

pub mod address;
pub mod catch_up;
pub mod channels;
pub mod config;
pub mod daemon;
pub mod evacuate;
pub mod extract;
pub mod held;
pub mod leftovers;
pub mod metrics;
pub mod neighbours;
pub mod netlink;
pub mod nudge;
pub mod packet;
pub mod position;
pub mod probe;
pub mod resume;
pub mod routes;
pub mod session;
pub mod snapshot;
pub mod source;
pub mod tables;
pub mod tcp_repair;
mod tell;
