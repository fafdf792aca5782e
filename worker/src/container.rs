//! The memory of the container that the agent and its tasks share: what of it is in use, its limit, and how often the kernel has
//! killed a process of it. Whom that concerns is not decided here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::limits::{MOUNT, groups_of, memory};

/// Most that is read of a file: `memory.stat` has about 40 lines, some kernels more.
const FILE_BYTES_MAX: usize = 16 << 10;

/// The files of one cgroup that say it, open: they are read many times a second.
#[derive(Debug)]
pub struct Container {
    usage: File,
    stat: File,
    limit: PathBuf,
    /// Where the kernel does not count what it kills there is none.
    kills: Option<File>,
    /// How many of these are known to be whose.
    claimed: AtomicU64,
    version: Version,
}

/// How the two versions of cgroups name things.
#[derive(Clone, Copy, Debug)]
struct Version {
    usage: &'static str,
    limit: &'static str,
    /// Counts what the kernel killed.
    kills: &'static str,
    /// Pages of files that it can take back at any time, with those of the cgroups below.
    cache: [&'static str; 2],
    /// What happens below a cgroup is counted in it too.
    counts_below: bool,
}

const VERSIONS: [Version; 2] = [
    Version {
        usage: "memory.current",
        limit: "memory.max",
        kills: "memory.events",
        cache: ["inactive_file", "active_file"],
        counts_below: true,
    },
    Version {
        usage: "memory.usage_in_bytes",
        limit: "memory.limit_in_bytes",
        kills: "memory.oom_control",
        cache: ["total_inactive_file", "total_active_file"],
        counts_below: false,
    },
];

/// How full the container was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// In use, bytes, without pages of files: the kernel takes those back before it kills anything.
    pub used_bytes: u64,
    /// The limit, bytes.
    pub limit_bytes: u64,
}

impl Filled {
    /// In use, in hundredths of the limit.
    pub fn percent(&self) -> u64 {
        let percent = u128::from(self.used_bytes) * 100 / u128::from(self.limit_bytes.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

impl Container {
    /// That of this process; nothing where no limit is set.
    pub fn own() -> Option<Self> {
        Self::find(Path::new(MOUNT), &std::fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    /// `groups` is the content of `/proc/self/cgroup`. Of several limits above each other the lowest counts, of equal ones the innermost.
    pub(crate) fn find(mount: &Path, groups: &str) -> Option<Self> {
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let root = match controllers {
                "" => mount.to_owned(),
                some if some.split(',').any(|controller| controller == "memory") => mount.join("memory"),
                _ => continue,
            };
            let inside = groups_of(&root, path);
            let limited = inside.iter().filter_map(|group| Some((memory(group)?, group))).min_by_key(|(limit, _)| *limit);
            if let Some((_, limited)) = limited {
                return VERSIONS
                    .iter()
                    .find_map(|version| Self::open(*version, limited, inside.iter().find(|group| group.is_dir())?));
            }
        }
        None
    }

    fn open(version: Version, limited: &Path, innermost: &Path) -> Option<Self> {
        let counting = if version.counts_below { limited } else { innermost };
        let container = Container {
            usage: File::open(limited.join(version.usage)).ok()?,
            stat: File::open(limited.join("memory.stat")).ok()?,
            limit: limited.join(version.limit),
            kills: File::open(counting.join(version.kills)).ok(),
            claimed: AtomicU64::new(0),
            version,
        };
        // Those from before this agent are nobody's.
        container.claimed.store(container.kills(), Relaxed);
        Some(container)
    }

    /// How full it is now. Files made by the kernel: reading them waits for no disk. Nothing when the limit is gone.
    pub fn filled(&self) -> Option<Filled> {
        let limit_bytes = memory(self.limit.parent()?)?;
        let usage: u64 = read(&self.usage)?.trim().parse().ok()?;
        let stat = read(&self.stat)?;
        let cache = self.version.cache.iter().filter_map(|name| figure(&stat, name)).fold(0, u64::saturating_add);
        Some(Filled { used_bytes: usage.saturating_sub(cache), limit_bytes })
    }

    /// Whether the kernel has killed a process since it had killed `before`, and nothing else is known to have been that process. To be
    /// asked once for each process that was killed: each kill is one process's.
    pub fn claim(&self, before: u64) -> bool {
        let kills = self.kills();
        kills > before && self.claimed.fetch_update(Relaxed, Relaxed, |claimed| (claimed < kills).then(|| claimed + 1)).is_ok()
    }

    /// How many processes of it the kernel has killed for memory so far.
    pub fn kills(&self) -> u64 {
        self.kills.as_ref().and_then(read).and_then(|text| figure(&text, "oom_kill")).unwrap_or(0)
    }
}

/// The whole file, from its beginning.
fn read(file: &File) -> Option<String> {
    let mut buffer = vec![0; FILE_BYTES_MAX];
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64).ok()? {
            0 => break,
            more => length += more,
        }
    }
    buffer.truncate(length);
    String::from_utf8(buffer).ok()
}

/// The number after a name, in lines of `name number`.
fn figure(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(named, _)| *named == name)?.1.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: [(&str, &str); 4] = [
        ("memory/kubepods/c1/memory.limit_in_bytes", "134217728\n"),
        ("memory/kubepods/c1/memory.usage_in_bytes", "130000000\n"),
        ("memory/kubepods/c1/memory.stat", "inactive_file 1\ntotal_inactive_file 20000000\ntotal_active_file 10000000\n"),
        ("memory/kubepods/c1/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    ];
    const TWO: [(&str, &str); 4] = [
        ("memory.max", "134217728\n"),
        ("memory.current", "130000000\n"),
        ("memory.stat", "anon 90000000\ninactive_file 20000000\nactive_file 10000000\n"),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n"),
    ];

    fn write(mount: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = mount.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    #[track_caller]
    fn check(groups: &str, files: &[(&str, &str)], more: &[(&str, &str)], expected: Option<(u64, u64, u64)>) {
        let mount = tempfile::tempdir().unwrap();
        write(mount.path(), files);
        write(mount.path(), more);
        let container = Container::find(mount.path(), groups);
        let seen = container.map(|container| {
            let filled = container.filled().unwrap();
            (filled.used_bytes, filled.limit_bytes, container.kills())
        });
        assert_eq!(seen, expected, "{groups}");
    }

    #[test]
    fn a_containers_memory_is_read_from_both_versions() {
        let of_machine = "4:cpu,cpuacct:/kubepods/c1\n3:memory:/kubepods/c1\n0::/\n";
        check(of_machine, &ONE, &[], Some((100_000_000, 128 << 20, 3)));
        check("0::/\n", &TWO, &[], Some((100_000_000, 128 << 20, 3)));
        check("0::/agent\n", &TWO, &[("agent/memory.max", "max\n")], Some((100_000_000, 128 << 20, 3)));
        let smaller = [
            ("agent/memory.max", "4096\n"),
            ("agent/memory.current", "2048\n"),
            ("agent/memory.stat", "anon 2048\n"),
            ("agent/memory.events", "oom_kill 1\n"),
        ];
        check("0::/agent\n", &TWO, &smaller, Some((2048, 4096, 1)));
    }

    #[test]
    fn without_a_limit_there_is_nothing_to_look_at() {
        check("0::/\n", &[("memory.max", "max\n"), ("memory.current", "5\n"), ("memory.stat", "anon 5\n")], &[], None);
        check("3:memory:/c\n", &[("memory/c/memory.limit_in_bytes", "9223372036854771712\n")], &[], None);
        check("", &TWO, &[], None);
    }

    #[test]
    fn a_limit_that_is_changed_counts_at_once() {
        let mount = tempfile::tempdir().unwrap();
        write(mount.path(), &TWO);
        let container = Container::find(mount.path(), "0::/\n").unwrap();
        assert_eq!(container.filled().unwrap().percent(), 74);
        write(mount.path(), &[("memory.max", "200000000\n"), ("memory.current", "230000000\n")]);
        assert_eq!(container.filled().unwrap().percent(), 100);
        write(mount.path(), &[("memory.max", "max\n")]);
        assert_eq!(container.filled(), None);
    }

    #[test]
    fn what_the_kernel_kills_in_version_one_is_counted_where_the_processes_are() {
        let files = [("memory/pod/memory.limit_in_bytes", "4096\n"), ("memory/pod/memory.usage_in_bytes", "1\n")];
        let more = [
            ("memory/pod/memory.stat", "total_cache 0\n"),
            ("memory/pod/memory.oom_control", "oom_kill 0\n"),
            ("memory/pod/c/memory.oom_control", "oom_kill 2\n"),
        ];
        check("3:memory:/pod/c\n", &files, &more, Some((1, 4096, 2)));
    }
}
