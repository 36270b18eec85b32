//! An auction service in three tiers, after RUBiS, its clients, and the check of what they were promised.
//!
//! ```text
//!   clients ──HTTP, nonce──► front end ──HTTP, request id──► mid tier ──SQL, transaction id──► PostgreSQL
//!   record of what was acknowledged ─────────────────────── check ───────────────────────────────┘
//! ```
//!
//! | module | who |
//! |---|---|
//! | [`front_end`] | the gateway: gives every request an id that no other has, and forwards it |
//! | [`mid_tier`] | the operations; carries each id out once, and knows what became of a transaction |
//! | [`database`] | schema, generator, and a PostgreSQL server that lives as long as a run |
//! | [`clients`] | emulated users by Markov tables; each reply is matched to its request |
//! | [`check`] | walks the database afterwards: nothing missing, nothing twice |
//! | [`operation`], [`request_id`], [`http`] | the words between the tiers |
//! | [`snapshot`] | what their Continuation Boxes say |
//!
//! The promise: what a client was told is in the database exactly once; what it was not told is there at most once.

pub mod check;
pub mod clients;
pub mod database;
pub mod front_end;
pub mod http;
pub mod mid_tier;
pub mod operation;
pub mod request_id;
pub mod snapshot;
