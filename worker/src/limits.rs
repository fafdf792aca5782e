//! What the cgroup of this process limits: the size of its container, never its machine's.

use std::path::{Path, PathBuf};

/// Where cgroups are seen.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// Kept back for the agent itself: at most this, and at most a quarter.
const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// Version 1 says "no limit" by a number near the largest.
const UNLIMITED: u64 = 1 << 62;

/// Limits of a cgroup and of those above it that can be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of cpus.
    pub milli_cpus: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// Those of this process.
    pub fn own() -> Limits {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Limits::read(Path::new(MOUNT), &groups)
    }

    /// Memory for tasks: the limit less a reserve for the agent.
    pub fn memory_for_tasks(&self) -> Option<u64> {
        self.memory_bytes.map(|limit| limit - RESERVE_BYTES_MAX.min(limit / 4))
    }

    /// `groups` is the content of `/proc/self/cgroup`.
    fn read(mount: &Path, groups: &str) -> Limits {
        let mut limits = Limits::default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let roots: Vec<PathBuf> = match controllers {
                "" => vec![mount.to_owned()],
                // Each controller, or a set of them, has a mount of its own; links name single ones.
                _ => controllers.split(',').map(|controller| mount.join(controller)).collect(),
            };
            for root in roots {
                for group in groups_of(&root, path) {
                    limits.narrow(cpus_v2(&group).or_else(|| cpus_v1(&group)), memory(&group));
                }
            }
        }
        limits
    }

    fn narrow(&mut self, milli_cpus: Option<u64>, memory_bytes: Option<u64>) {
        let lower = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        self.milli_cpus = lower(self.milli_cpus, milli_cpus);
        self.memory_bytes = lower(self.memory_bytes, memory_bytes);
    }
}

/// The group and those above it. In a container the root is the container's own group, even where the path is the machine's.
pub(crate) fn groups_of(root: &Path, path: &str) -> Vec<PathBuf> {
    let inside = root.join(path.trim_start_matches('/'));
    inside.ancestors().take_while(|group| group.starts_with(root)).map(Path::to_owned).collect()
}

fn number(path: PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// "max", or how much of each period.
fn cpus_v2(group: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    milli(quota.parse().ok()?, period.parse().ok()?)
}

fn cpus_v1(group: &Path) -> Option<u64> {
    // -1 is no limit, and no number here.
    milli(number(group.join("cpu.cfs_quota_us"))?, number(group.join("cpu.cfs_period_us"))?)
}

fn milli(quota: u64, period: u64) -> Option<u64> {
    let milli = u128::from(quota) * 1000 / u128::from(period.max(1));
    u64::try_from(milli).ok().filter(|milli| *milli > 0)
}

/// The memory limit of one group, bytes.
pub(crate) fn memory(group: &Path) -> Option<u64> {
    let limit = number(group.join("memory.max")).or_else(|| number(group.join("memory.limit_in_bytes")))?;
    (limit > 0 && limit < UNLIMITED).then_some(limit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(what: &str, groups: &str, files: &[(&str, &str)], milli_cpus: Option<u64>, memory_bytes: Option<u64>) {
        let mount = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        assert_eq!(Limits::read(mount.path(), groups), Limits { milli_cpus, memory_bytes }, "{what}");
    }

    #[test]
    fn limits_of_both_versions() {
        check("none", "0::/\n", &[], None, None);
        let pod = [("cpu.max", "200000 100000\n"), ("memory.max", "1073741824\n")];
        check("a container of version 2", "0::/\n", &pod, Some(2000), Some(1 << 30));
        check("half a cpu", "0::/\n", &[("cpu.max", "50000 100000\n"), ("memory.max", "max\n")], Some(500), None);
        check("no limits of version 2", "0::/\n", &[("cpu.max", "max 100000\n"), ("memory.max", "max\n")], None, None);
        let nested = [("a/memory.max", "4096000\n"), ("a/b/memory.max", "8192000\n"), ("a/b/cpu.max", "max 100000\n")];
        check("the tightest above it", "0::/a/b\n", &nested, None, Some(4_096_000));
        let v1 = [
            ("cpu/cpu.cfs_quota_us", "150000\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("memory/memory.limit_in_bytes", "536870912\n"),
        ];
        let of_machine = "4:cpu,cpuacct:/kubepods/pod1/c1\n3:memory:/kubepods/pod1/c1\n0::/\n";
        check("a container of version 1", of_machine, &v1, Some(1500), Some(512 << 20));
        let open = [
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        check("no limits of version 1", of_machine, &open, None, None);
    }

    #[test]
    fn the_agent_keeps_a_reserve() {
        let of = |memory_bytes| Limits { milli_cpus: None, memory_bytes }.memory_for_tasks();
        assert_eq!(of(None), None);
        assert_eq!(of(Some(1 << 30)), Some((1 << 30) - (64 << 20)));
        assert_eq!(of(Some(128 << 20)), Some(96 << 20));
    }
}
