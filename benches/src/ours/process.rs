//! What processes have used, from /proc.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

/// CPU seconds of a process so far, all its threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    seconds_of(&stat).with_context(|| format!("/proc/{pid}/stat says {stat:?}"))
}

/// User and system time in a line of /proc/PID/stat. The program's name may hold anything.
fn seconds_of(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // A tick is 10 ms on every Linux of today that tells it to programs.
    Some((ticks(11)? + ticks(12)?) as f64 / 100.0)
}

/// Resident bytes of a process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("process {pid}"))?;
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).context("statm has pages")?;
    Ok(pages * 4096)
}

/// CPU seconds of all descendants of a process that are alive.
pub fn cpu_seconds_below(pid: u32) -> f64 {
    descendants(pid).into_iter().map(|pid| cpu_seconds(pid).unwrap_or(0.0)).sum()
}

/// Resident bytes of all descendants of a process that are alive.
pub fn resident_bytes_below(pid: u32) -> u64 {
    descendants(pid).into_iter().map(|pid| resident_bytes(pid).unwrap_or(0)).sum()
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(child);
    }
    let (mut found, mut waiting) = (Vec::new(), vec![pid]);
    while let Some(parent) = waiting.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child);
            waiting.push(child);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(seconds_of(stat), Some(3.0));
        assert_eq!(seconds_of("nothing"), None);
    }

    #[test]
    fn this_process_is_there() {
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
        assert!(cpu_seconds(std::process::id()).is_ok());
    }
}
