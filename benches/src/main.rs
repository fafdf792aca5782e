//! Measurements, each a table for people and JSON for machines.
//!
//!     cargo run --release -p benches -- table [--quick] [--no-peers] [--only ID,...] [--json FILE]
//!     cargo run --release -p benches -- spawn [--json FILE]
//!     cargo run --release -p benches -- soak [--minutes 20] [--json FILE]
//!     cargo run --release -p benches -- kubernetes [--kubeconfig FILE] [--json FILE]
//!
//! README.md beside `src` says what each row of the table means.

mod kubernetes;
mod limits;
mod ours;
mod peers;
mod soak;
mod spawn;
mod table;
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
    /// The table of speed: ours beside what the machine can do and what peers reach.
    Table(table::TableOptions),
    /// Much work of every kind while workers come and go: fails when the memory of some process is not flat.
    Soak(soak::SoakOptions),
    /// How soon an empty pool has a worker, on a real Kubernetes.
    Kubernetes(kubernetes::KubernetesOptions),
    /// One row of the table, as JSON.
    #[command(hide = true)]
    Row(table::RowOptions),
    /// A process of a limit.
    #[command(hide = true)]
    Role {
        role: limits::role::Role,
        /// Where it connects to.
        peer: Option<String>,
    },
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
    // This program is the host of its own functions.
    scalable::init!();
    match Options::parse().what {
        What::Table(options) => table::run(&options),
        What::Soak(options) => soak::run(&options),
        What::Kubernetes(options) => kubernetes::run(&options),
        What::Row(options) => table::run_row(&options),
        What::Role { role, peer } => role.play(peer.as_deref()),
        What::Spawn { json, count, rounds, only } => spawn::run(json.as_deref(), count, rounds, &only),
    }
}
