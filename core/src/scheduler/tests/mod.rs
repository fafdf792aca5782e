//! Tests of the machine: cases that read as cases, random sequences against an oracle, properties, tables.
//!
//! A failing random sequence prints its seed; `SCALABLE_SEED=<seed> cargo test -p scalable-core random_sequences` replays it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cases;
mod large;
mod oracle;
mod pair;
mod properties;
mod random;
mod rng;
mod scale;
mod sim;
mod specs;
mod tables;
mod world;
