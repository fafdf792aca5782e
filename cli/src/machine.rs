//! What this machine, or the part of it that this process may use, has.

use std::fs;
use std::path::Path;

use scalable_manifest::Machine;

/// Cpus and memory within affinity and control groups.
pub fn this() -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of_meminfo(&text)).unwrap_or(u64::MAX);
    Machine { milli_cpus: cpus as u64 * 1000, memory_bytes: total.min(cgroup_limit()) }
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit on the way from this process's control group to the root.
fn cgroup_limit() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let limit = |directory: &Path| fs::read_to_string(directory.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    root.join(own).ancestors().take_while(|directory| directory.starts_with(root)).filter_map(limit).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total_of_meminfo("MemTotal:       24622848 kB\nMemFree: 1 kB\n"), Some(24_622_848 * 1024));
        assert_eq!(total_of_meminfo("MemFree: 1 kB\n"), None);
        assert!(this().milli_cpus >= 1000 && this().memory_bytes > 0);
    }
}
