//! What a measurement is: started once, run several times, its processes ended with it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

/// How much is measured.
#[derive(Args, Clone, Debug)]
pub struct Scale {
    /// Smaller where size does not change what a figure says
    #[arg(long)]
    pub quick: bool,
    /// Runs of each measurement
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Say where the time goes instead of measuring: ours alone, under perf
    #[arg(long)]
    pub profile: bool,
    /// Where our programs lie
    #[arg(long)]
    pub programs: PathBuf,
}

impl Scale {
    /// One of two sizes.
    pub fn of<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// One run: a value for each figure of the row, in its unit.
#[derive(Debug, Default)]
pub struct Sample {
    /// In the order of the figures.
    pub values: Vec<f64>,
    /// Where the time goes: CPU microseconds a task, for each process of ours.
    pub cpu: Vec<(&'static str, f64)>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Sample { values: vec![value], cpu: Vec::new() }
    }
}

impl From<Vec<f64>> for Sample {
    fn from(values: Vec<f64>) -> Self {
        Sample { values, cpu: Vec::new() }
    }
}

/// A measurement that has been started. What it holds ends when it is dropped.
pub type Measure = Box<dyn FnMut() -> Result<Sample>>;

/// All runs of one measurement.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Series {
    /// `ours`, or the limit's name.
    pub name: String,
    /// Values of each run, in the order of the figures.
    pub runs: Vec<Vec<f64>>,
    /// CPU microseconds a task of each process, in the last run.
    pub cpu: Vec<(String, f64)>,
    /// Where the time goes, by process: see [`super::profile`].
    #[serde(default)]
    pub profile: Vec<String>,
    /// Why it failed, or empty.
    pub failed: String,
}

impl Series {
    /// The values of figure `at` in all runs.
    pub fn of_figure(&self, at: usize) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.get(at).copied()).collect()
    }
}
