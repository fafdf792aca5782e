//! The table of speed: rows as data (`rows`), measured in processes of their own (`measure`, `runner`), judged (`judge`) by what
//! the machine and the peers reach in the same run, and reported (`report`), those that are not reached with where their time goes
//! (`profile`).

mod judge;
mod machine;
mod measure;
mod profile;
mod report;
mod rows;
mod runner;
mod stats;

use std::path::PathBuf;

use clap::Args;

pub use measure::{Measure, Sample, Scale};
pub use rows::of_name;
pub use runner::{run, run_row};
pub use stats::percentile;

/// What is measured, and how long it may take.
#[derive(Args, Debug)]
pub struct TableOptions {
    /// Eight minutes at most instead of sixty
    #[arg(long)]
    quick: bool,
    /// Ours and the limits only; rows that are judged by peers stay open
    #[arg(long)]
    no_peers: bool,
    /// Only these rows: ids, or their beginnings
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    only: Vec<String>,
    /// Also write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the Markdown table to this file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Python environment of the peers; made when it is missing [default: `peers` in the target directory]
    #[arg(long, value_name = "DIR")]
    venv: Option<PathBuf>,
    /// Take the programs from here instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// One row, in a process of its own: what the table starts for each.
#[derive(Args, Debug)]
pub struct RowOptions {
    /// Name of the work
    work: String,
    #[command(flatten)]
    scale: Scale,
}
