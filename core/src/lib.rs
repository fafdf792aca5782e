//! The heart of Scalable: every decision, and nothing else.
//!
//! **Architecture invariants.** This crate depends on nothing async, opens no socket, reads no clock and draws no random
//! number: time and seeds come in as arguments. `Scheduler::step(now, input, &mut Outbox)` is the only way in and the outbox
//! the only way out. It is deterministic: no hasher with a random seed, no floats in anything compared for a decision.
#![forbid(unsafe_code)]

pub mod ids;
pub mod link;
pub mod messages;
pub mod planner;
pub mod resources;
pub mod scheduler;
pub mod spec;
pub mod worker;

pub use scheduler::projection;
