//! The adaptive planner in virtual time: scenarios of a reference simulation, its two mistakes, cases and properties.
#![allow(clippy::unwrap_used)]

mod cases;
mod fixture;
mod mistakes;
mod oracle;
mod policy;
mod properties;
mod scenarios;
mod world;
