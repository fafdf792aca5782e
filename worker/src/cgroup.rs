//! A memory cgroup for an attempt with a memory limit: where one may be made (version 2 or 1), its limit, its peak, its end.
//!
//! A cgroup is made only for an attempt with a limit. Everything is files below a directory that belongs to this agent.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the removal of a cgroup is tried while the kernel still counts a dying process in it.
const REMOVE_TRIES_MAX: u32 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where this agent may make cgroups.
#[derive(Debug)]
pub struct Cgroups {
    version: Version,
    parent: PathBuf,
}

/// One attempt's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    path: PathBuf,
}

/// What a cgroup has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Most memory at any time, bytes, page cache included; nothing where the kernel does not say.
    pub peak: Option<u64>,
    /// The kernel killed a process of it for memory.
    pub killed: bool,
}

impl Cgroups {
    /// Finds out where a memory cgroup may be made.
    ///
    /// # Errors
    /// Why none may: one sentence.
    pub fn detect() -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let two = Self::detect_two(&own, &mounts);
        match two {
            Ok(found) => Ok(found),
            Err(two) => Self::detect_one(&own, &mounts).map_err(|one| format!("version 2: {two}; version 1: {one}")),
        }
    }

    fn detect_two(own: &str, mounts: &str) -> Result<Self, String> {
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("not mounted")?;
        let here = locate(mounts, path, |fstype, _| fstype == "cgroup2").ok_or("not mounted")?;
        let controllers = fs::read_to_string(here.join("cgroup.controllers")).map_err(|e| e.to_string())?;
        if !controllers.split_whitespace().any(|c| c == "memory") {
            return Err("the memory controller is not in it".to_owned());
        }
        let control = here.join("cgroup.subtree_control");
        let enabled = |text: String| text.split_whitespace().any(|c| c == "memory");
        if !fs::read_to_string(&control).is_ok_and(enabled) {
            // A cgroup that hands controllers down must be empty itself: the agent moves into a child first.
            let agent = here.join("agent");
            fs::create_dir_all(&agent).map_err(|e| format!("{}: {e}", agent.display()))?;
            fs::write(agent.join("cgroup.procs"), "0").map_err(|e| format!("{}: {e}", agent.display()))?;
            if let Err(error) = fs::write(&control, "+memory") {
                // Others are in it: everything stays as it was.
                let _ = fs::write(here.join("cgroup.procs"), "0");
                let _ = fs::remove_dir(&agent);
                return Err(format!("{}: {error}", control.display()));
            }
        }
        let parent = own_parent(&here)?;
        fs::write(parent.join("cgroup.subtree_control"), "+memory").map_err(|e| format!("{}: {e}", parent.display()))?;
        Self::probe(Version::Two, parent)
    }

    fn detect_one(own: &str, mounts: &str) -> Result<Self, String> {
        let path = own
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
            .find_map(|(controllers, path)| controllers.split(',').any(|c| c == "memory").then_some(path))
            .ok_or("the memory controller is not in it")?;
        let is_memory = |fstype: &str, options: &str| fstype == "cgroup" && options.split(',').any(|o| o == "memory");
        let here = locate(mounts, path, is_memory).ok_or("not mounted")?;
        Self::probe(Version::One, own_parent(&here)?)
    }

    /// Makes one and removes it: the only answer that counts.
    fn probe(version: Version, parent: PathBuf) -> Result<Self, String> {
        let cgroups = Cgroups { version, parent };
        let (cgroup, _) = cgroups.create("probe", 64 << 20).map_err(|e| format!("{}: {e}", cgroups.parent.display()))?;
        cgroup.remove();
        Ok(cgroups)
    }

    /// Makes a cgroup with a limit and opens the file through which a process enters it.
    ///
    /// # Errors
    /// The kernel refuses the directory or the limit.
    pub fn create(&self, name: &str, limit: u64) -> io::Result<(Cgroup, File)> {
        let cgroup = Cgroup { version: self.version, path: self.parent.join(name) };
        fs::create_dir(&cgroup.path)?;
        let made = cgroup.limit(limit).and_then(|()| File::options().write(true).open(cgroup.path.join("cgroup.procs")));
        match made {
            Ok(procs) => Ok((cgroup, procs)),
            Err(error) => {
                cgroup.remove();
                Err(error)
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Empty by now; a directory that is not is left for the next agent's start to remove.
        let _ = fs::remove_dir(&self.parent);
    }
}

/// The directory for this agent's attempts. Those of agents that were killed are removed on the way.
fn own_parent(here: &Path) -> Result<PathBuf, String> {
    for entry in fs::read_dir(here).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("scalable-worker-"));
        if let Some(pid) = pid.and_then(|rest| rest.split('-').next()).filter(|pid| !Path::new("/proc").join(pid).exists())
            && pid.parse::<u32>().is_ok()
        {
            for child in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(entry.path());
        }
    }
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let parent = here.join(format!("scalable-worker-{}-{number}", std::process::id()));
    fs::create_dir(&parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    Ok(parent)
}

/// The directory of cgroup `path` in the mount whose type and super options fit.
fn locate(mounts: &str, path: &str, fits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    for line in mounts.lines() {
        // id parent major:minor root mountpoint options … - fstype source superoptions
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (fstype, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        if !fits(fstype, options) {
            continue;
        }
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mountpoint)) = (left.next(), left.next()) else { continue };
        let below = Path::new(path).strip_prefix(root).or_else(|_| Path::new(path).strip_prefix("/")).ok()?;
        let here = Path::new(mountpoint).join(below);
        if here.is_dir() {
            return Some(here);
        }
    }
    None
}

impl Cgroup {
    fn limit(&self, limit: u64) -> io::Result<()> {
        let write = |file: &str, value: &str| fs::write(self.path.join(file), value);
        match self.version {
            Version::Two => {
                write("memory.max", &limit.to_string())?;
                // Best effort: without swap these files are not there, and an old kernel kills one process instead of all.
                let _ = write("memory.swap.max", "0");
                let _ = write("memory.oom.group", "1");
            }
            Version::One => {
                write("memory.limit_in_bytes", &limit.to_string())?;
                let _ = write("memory.memsw.limit_in_bytes", &limit.to_string());
            }
        }
        Ok(())
    }

    /// What it has seen so far. Small files made by the kernel: reading them waits for no disk.
    pub fn seen(&self) -> Seen {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let (peak, events) = match self.version {
            Version::Two => (read("memory.peak"), read("memory.events")),
            Version::One => (read("memory.max_usage_in_bytes"), read("memory.oom_control")),
        };
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        Seen { peak: peak.trim().parse().ok(), killed: kills.unwrap_or(0) > 0 }
    }

    /// Kills what is left in it and removes it. May wait for processes that are dying.
    pub fn remove(&self) {
        for attempt in 0..REMOVE_TRIES_MAX {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(cgroup = %self.path.display(), %error, "a cgroup could not be removed");
                    return;
                }
                _ => return,
            }
            if attempt % 100 == 0 {
                let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
                for pid in left.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::warn!(cgroup = %self.path.display(), "a cgroup still has processes that do not end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_cgroup_is_found_with_and_without_a_namespace() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mount = dir.path().display();
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        let mounts = format!(
            "20 1 0:5 / /proc rw - proc proc rw\n30 1 0:26 / {mount} rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
             31 1 0:27 / /nowhere rw - cgroup cgroup rw,cpu\n"
        );
        let memory = |fstype: &str, options: &str| fstype == "cgroup" && options.split(',').any(|o| o == "memory");
        assert_eq!(locate(&mounts, "/a/b", memory), Some(dir.path().join("a/b")));
        assert_eq!(locate(&mounts, "/none", memory), None);
        let inside = mounts.replace("0:26 /", "0:26 /outer/a");
        assert_eq!(locate(&inside, "/outer/a/a/b", memory), Some(dir.path().join("a/b")));
        assert_eq!(locate(&mounts, "/a", |fstype, _| fstype == "cgroup2"), None);
    }
}
