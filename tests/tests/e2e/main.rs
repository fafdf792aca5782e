//! End-to-end tests: real processes, real signals, real files. A file here is a room; a test is a case that can be read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod bad_peers;
mod by_hand;
mod detached;
mod drain;
mod driver;
mod examples;
mod exit_codes;
mod failures;
mod functions;
mod kills;
mod limits;
mod lost_objects;
mod machines;
mod resources;
mod scale;
mod scaling;
mod secured;
mod strangers;
mod workflow;
