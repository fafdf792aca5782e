//! The directory of runs whose clients share no disk with the scheduler. Each scheduler process has one of its own in it, named by its
//! epoch, so that a run never finds the files of an equally named one of an earlier process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// This process's directory. While this lives no other process removes it.
#[derive(Debug)]
pub struct RunsDirectory {
    path: PathBuf,
    _held: File,
}

impl RunsDirectory {
    /// Makes the directory of this epoch below `root`.
    ///
    /// # Errors
    /// The disk's.
    pub fn make(root: &Path, epoch: u64) -> io::Result<Self> {
        let path = root.join(epoch.to_string());
        fs::create_dir_all(&path)?;
        let held = File::open(&path)?;
        if let Err(error) = held.try_lock() {
            tracing::warn!(directory = %path.display(), %error, "the directory of fetched runs cannot be locked");
        }
        Ok(RunsDirectory { path, _held: held })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what processes that are gone have left beside it: directories named by an epoch that nobody holds. Their clients cannot
    /// fetch anything of them any more. Blocks on the disk; what cannot be removed is said in the log.
    pub fn remove_others(&self) {
        let entries = self.path.parent().map(fs::read_dir);
        for entry in entries.into_iter().flatten().flatten().flatten() {
            let name = entry.file_name();
            let epoch = name.to_str().is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()));
            let path = entry.path();
            // A link to a directory is none.
            if !epoch || path == self.path || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let removed = File::open(&path).and_then(|left| {
                left.try_lock()?;
                fs::remove_dir_all(&path)
            });
            if let Err(error) = removed {
                tracing::warn!(directory = %path.display(), %error, "what an earlier scheduler has left stays");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_earlier_processes_have_left_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let left = root.path().join("1700000000001");
        fs::create_dir_all(left.join("run-1/outputs")).unwrap();
        fs::write(left.join("run-1/outputs/x"), "old").unwrap();
        for other in ["mine", "17x", "1700000000002.kept"] {
            fs::create_dir(root.path().join(other)).unwrap();
        }
        fs::write(root.path().join("42"), "a file").unwrap();
        std::os::unix::fs::symlink(root.path().join("mine"), root.path().join("43")).unwrap();
        let living = RunsDirectory::make(root.path(), 5).unwrap();
        let own = RunsDirectory::make(root.path(), 6).unwrap();
        own.remove_others();
        assert!(!left.exists());
        assert!(living.path().is_dir() && own.path().is_dir(), "another scheduler that lives has its runs there");
        for kept in ["mine", "17x", "1700000000002.kept", "42", "43"] {
            assert!(root.path().join(kept).exists(), "{kept}");
        }
        drop(living);
        own.remove_others();
        assert!(!root.path().join("5").exists() && own.path().is_dir());
    }
}
