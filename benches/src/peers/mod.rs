//! The peers: what people use today, from PyPI, in a Python environment of their own. What each of them does for a row is in
//! `peers/NAME_peer.py`, which prints one JSON line; here they are installed, started, and ended when they take too long.

mod setup;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

pub use setup::Environment;

/// Longest a peer may take to start and to end, beside its runs.
const AROUND: Duration = Duration::from_secs(90);

/// What a peer reached in one row.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cell {
    /// Values of its runs, by id of the figure.
    pub values: BTreeMap<String, Vec<f64>>,
    /// Tasks of one run.
    pub n: u64,
    /// What there is to know about how it was measured.
    pub note: String,
    /// Why there are no values.
    pub failed: String,
}

impl Cell {
    /// A cell without values, and why.
    pub fn unavailable(why: impl std::fmt::Display) -> Self {
        Cell { failed: format!("not available: {why}"), ..Cell::default() }
    }
}

/// How long peers are measured.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Seconds that one run of the largest number of tasks may take.
    pub seconds_per_run: f64,
    /// Runs of each.
    pub runs: u32,
}

/// Lets `peer` do `row`, at the longest until `ends`.
pub fn measure(environment: &Environment, peer: &str, row: &str, budget: Budget, ends: Instant) -> Cell {
    let python = match environment.python(peer) {
        Ok(python) => python,
        Err(why) => return Cell::unavailable(why),
    };
    match ask(&python, peer, row, budget, ends) {
        Ok(cell) => cell,
        Err(why) => Cell { failed: format!("failed: {why}"), ..Cell::default() },
    }
}

fn ask(python: &Path, peer: &str, row: &str, budget: Budget, ends: Instant) -> anyhow::Result<Cell> {
    let directory = tempfile::tempdir()?;
    // Some start helpers by name that lie beside the interpreter.
    let beside = python.parent().map(Path::as_os_str).unwrap_or_default();
    let path = [beside, &std::env::var_os("PATH").unwrap_or_default()].join(OsStr::new(":"));
    let log = directory.path().join("log");
    let mut child = Command::new(python)
        .arg(scripts().join(format!("{peer}_peer.py")))
        .args([row, "--seconds", &budget.seconds_per_run.to_string(), "--runs", &budget.runs.to_string()])
        .current_dir(directory.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(directory.path().join("said"))?)
        .stderr(std::fs::File::create(&log)?)
        // Whatever it starts ends with it.
        .process_group(0)
        .spawn()?;
    // Finding the largest number takes about as long as one run more.
    let limit = AROUND + Duration::from_secs_f64(budget.seconds_per_run * f64::from(budget.runs + 2));
    let limit = limit.min(ends.saturating_duration_since(Instant::now()));
    let ended = wait(&mut child, limit);
    end_group(&mut child);
    let said = std::fs::read_to_string(directory.path().join("said"))?;
    if let Some(cell) = said.lines().rev().find_map(|line| serde_json::from_str(line).ok()) {
        return Ok(cell);
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    match ended {
        Some(status) => anyhow::bail!("{status}: {last}"),
        None => anyhow::bail!("no answer within {} s: {last}", limit.as_secs()),
    }
}

/// Its exit status, or none when `limit` is over first.
pub fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Ends everything a child started that is in its group.
pub fn end_group(child: &mut Child) {
    let group = nix::unistd::Pid::from_raw(child.id() as i32);
    // Nothing may be left of it, which is what is wanted.
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    let _ = child.wait();
}

/// Where the scripts lie.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_peer_is_read_whatever_it_leaves_out() {
        let cell: Cell = serde_json::from_str(r#"{"values": {"rtt": [1.5, 2]}, "n": 10}"#).unwrap();
        assert_eq!((cell.values["rtt"].as_slice(), cell.n, cell.note.as_str()), ([1.5, 2.0].as_slice(), 10, ""));
        let cell: Cell = serde_json::from_str(r#"{"failed": "no"}"#).unwrap();
        assert_eq!((cell.values.len(), cell.failed.as_str()), (0, "no"));
    }

    #[test]
    fn a_peer_that_says_nothing_is_a_cell_that_says_why() {
        let budget = Budget { seconds_per_run: 0.1, runs: 5 };
        let why = ask(Path::new("/bin/false"), "none", "rtt", budget, Instant::now() + AROUND).unwrap_err().to_string();
        assert!(why.contains("exit status: 1"), "{why}");
    }
}
