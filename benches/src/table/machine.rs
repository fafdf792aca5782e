//! On what and with what was measured.

use std::process::Command;

use serde::Serialize;

/// The machine and the versions.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Load averages before the first row.
    pub load_before: String,
    /// Ours, with the commit where it is known.
    pub scalable: String,
    /// The profile this was built in.
    pub profile: &'static str,
}

fn line(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned())
}

impl Machine {
    /// Of now.
    pub fn here() -> Self {
        let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let commit =
            commit.ok().filter(|said| said.status.success()).map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
        let memory = line("/proc/meminfo", "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let unknown = || "unknown".to_owned();
        Machine {
            cpu: line("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.unwrap_or(0) / 1024,
            kernel: line("/proc/sys/kernel/osrelease", "").unwrap_or_else(unknown),
            load_before: line("/proc/loadavg", "").unwrap_or_else(unknown),
            scalable: [Some(env!("CARGO_PKG_VERSION").to_owned()), commit].into_iter().flatten().collect::<Vec<_>>().join(" "),
            profile: if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" },
        }
    }
}
