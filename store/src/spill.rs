//! The directory that objects are spilled to: one file each, the content as it is and nothing else. Checksums stay in memory: the
//! files mean nothing to another process and are removed by the next one that takes the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::content::{CHUNK_BYTES, Content, checksum};
use crate::segment::SegmentPool;
use crate::sys;

const LOCK: &str = "lock";
const EXTENSION: &str = "spill";

/// A directory held by this process. Emptied and removed when dropped.
pub(crate) struct SpillDirectory {
    path: PathBuf,
    /// Locked for as long as this process has it.
    _lock: File,
}

impl SpillDirectory {
    /// Makes the directory, or takes over one whose process is dead, and removes what that one left.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let metadata = fs::symlink_metadata(path)?;
        if !metadata.is_dir() || metadata.uid() != sys::own_user() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a directory of this user"));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(LOCK))?;
        if let Err(error) = lock.try_lock() {
            return Err(match error {
                fs::TryLockError::WouldBlock => {
                    io::Error::new(io::ErrorKind::ResourceBusy, "another process has it; give each its own")
                }
                fs::TryLockError::Error(error) => error,
            });
        }
        remove_spilled(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Writes `content` as file number `number`. Removes what was written when not all could be.
    pub(crate) fn write(&self, number: u64, content: &Content) -> io::Result<SpilledFile> {
        let path = self.path.join(format!("{number}.{EXTENSION}"));
        let written = write_file(&path, content);
        match written {
            Ok(sums) => Ok(SpilledFile { path, len: content.len(), sums }),
            Err(error) => {
                drop(fs::remove_file(&path));
                Err(error)
            }
        }
    }
}

impl Drop for SpillDirectory {
    fn drop(&mut self) {
        drop(remove_spilled(&self.path));
        drop(fs::remove_file(self.path.join(LOCK)));
        drop(fs::remove_dir(&self.path));
    }
}

fn remove_spilled(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, content: &Content) -> io::Result<Box<[u64]>> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut scratch = Vec::new();
    let mut sums = Vec::with_capacity(content.chunks());
    for i in 0..content.chunks() {
        sums.push(content.sum(i, &mut scratch)?);
        file.write_all(content.chunk(i, &mut scratch)?)?;
    }
    Ok(sums.into())
}

/// One spilled content. Its file is removed when this is dropped; readers that have it open can finish.
pub(crate) struct SpilledFile {
    path: PathBuf,
    len: u64,
    sums: Box<[u64]>,
}

/// Why a spilled content could not be had back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadBack {
    #[error("the spilled file {0} is damaged at byte {1}")]
    Damaged(PathBuf, u64),
    #[error("the spilled file {0} cannot be read: {1}")]
    Io(PathBuf, io::Error),
}

impl SpilledFile {
    /// What is needed to open it after the lock of the store was given back.
    pub(crate) fn to_reader(&self) -> SpilledReader {
        SpilledReader { path: self.path.clone(), len: self.len, sums: self.sums.clone() }
    }

    /// Only for tests: where it is.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SpilledFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a spilled file could not be removed");
        }
    }
}

/// Where a spilled file is and what is in it, without owning it.
pub(crate) struct SpilledReader {
    path: PathBuf,
    len: u64,
    sums: Box<[u64]>,
}

impl SpilledReader {
    /// The content in its file, with the checksums it must have.
    pub(crate) fn open(&self) -> io::Result<Content> {
        let content = Content::from_file(File::open(&self.path)?, self.len)?;
        for (i, sum) in self.sums.iter().enumerate() {
            content.set_sum(i, *sum);
        }
        Ok(content)
    }

    /// Reads it back into memory and checks every chunk.
    pub(crate) fn read(&self, pool: &SegmentPool) -> Result<Content, ReadBack> {
        let failed = |error| ReadBack::Io(self.path.clone(), error);
        let len = usize::try_from(self.len).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
        let file = File::open(&self.path).map_err(failed)?;
        let mut writer = pool.take(len).map_err(failed)?;
        for (i, (chunk, sum)) in writer.as_mut_slice().chunks_mut(CHUNK_BYTES).zip(&self.sums).enumerate() {
            let at = (i * CHUNK_BYTES) as u64;
            match file.read_exact_at(chunk, at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ReadBack::Damaged(self.path.clone(), at));
                }
                Err(error) => return Err(failed(error)),
            }
            if checksum(chunk) != *sum {
                return Err(ReadBack::Damaged(self.path.clone(), at));
            }
        }
        let content = writer.freeze();
        for (i, sum) in self.sums.iter().enumerate() {
            content.set_sum(i, *sum);
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_damage_is_found() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/spill");
        let directory = SpillDirectory::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| (i % 253) as u8).collect();
        let spilled = directory.write(1, &Content::from_bytes(bytes.clone().into())).unwrap();
        let pool = SegmentPool::new(0);
        assert_eq!(spilled.to_reader().read(&pool).unwrap().bytes().unwrap(), bytes);
        assert_eq!(spilled.to_reader().open().unwrap().bytes().unwrap(), bytes);

        let file = OpenOptions::new().write(true).open(spilled.path()).unwrap();
        file.write_all_at(b"!", CHUNK_BYTES as u64 + 3).unwrap();
        assert!(matches!(spilled.to_reader().read(&pool), Err(ReadBack::Damaged(_, at)) if at == CHUNK_BYTES as u64));
        file.set_len(10).unwrap();
        assert!(matches!(spilled.to_reader().read(&pool), Err(ReadBack::Damaged(_, 0))));
        let gone = spilled.path().to_owned();
        drop(spilled);
        assert!(!gone.exists());
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn left_overs_of_a_dead_process_are_removed_and_a_living_one_is_respected() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("7.spill"), b"old").unwrap();
        fs::write(root.path().join("notes.txt"), b"not ours").unwrap();
        let directory = SpillDirectory::open(root.path()).unwrap();
        assert!(!root.path().join("7.spill").exists());
        assert_eq!(SpillDirectory::open(root.path()).err().unwrap().kind(), io::ErrorKind::ResourceBusy);
        drop(directory);
        assert!(root.path().join("notes.txt").exists(), "what is not ours stays");
    }
}
