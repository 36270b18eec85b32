//! The service with a real PostgreSQL, each test with one of its own: what is carried out once, what is decided after a
//! death, and what the check finds. Needs what `scripts/setup` fetches.

mod boxes;
mod exactly_once;
mod killed;
mod stage;
mod tiers;
