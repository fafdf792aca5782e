//! Measurements, each a table for people and JSON for machines.
//!
//!     cargo run --release -p benches -- spawn [--json FILE]

mod spawn;
mod whole;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "measurements of Scalable; build with --release")]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What a no-op command task costs beside a bare posix_spawn-and-wait loop.
    Spawn {
        /// Also write the rows to this file.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Processes for each row.
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// Rounds; each row shows its median round.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Only rows whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Options::parse().what {
        What::Spawn { json, count, rounds, only } => spawn::run(json.as_deref(), count, rounds, &only),
    }
}
