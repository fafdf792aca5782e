//! Contents by digest in a directory: what is uploaded to the scheduler (programs, files beside a manifest), and a worker's cache
//! of programs. A file under its name is complete and right: it is written under another name, checked, and renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Content, Digest};

/// A directory of contents, each in a file named by its digest in hexadecimal. Cheap to clone; all clones are one. Calls block.
#[derive(Clone, Debug)]
pub struct BlobDirectory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    bytes_max: u64,
    /// Bytes of what is there and of what is being written.
    bytes: Mutex<u64>,
    next: AtomicU64,
}

/// Why a content was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// With it there would be more than the limit.
    #[error("{} has no room for {size} bytes more within its limit of {limit}", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// What was to be added.
        size: u64,
        /// What it may hold.
        limit: u64,
    },
    /// What was written is not what was announced.
    #[error("what was written is not the content {0}")]
    Differs(Digest),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BlobDirectory {
    /// Opens the directory, making it if it is not there, and removes what an earlier process did not finish. `bytes_max` bounds what it holds.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn open(path: impl Into<PathBuf>, bytes_max: u64) -> io::Result<Self> {
        let path = path.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let mut bytes = 0;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".part") {
                fs::remove_file(entry.path())?;
            } else if Digest::from_hex(&name).is_some() {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(Self(Arc::new(Inner { path, bytes_max, bytes: Mutex::new(bytes), next: AtomicU64::new(0) })))
    }

    /// Where the content is, or will be.
    pub fn path_of(&self, digest: Digest) -> PathBuf {
        self.0.path.join(digest.to_hex())
    }

    /// The content, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn get(&self, digest: Digest) -> io::Result<Option<Content>> {
        match File::open(self.path_of(digest)) {
            Ok(file) => {
                let len = file.metadata()?.len();
                Content::from_file(file, len).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts to write a content of `size` bytes.
    ///
    /// # Errors
    /// When there is no room for it, or the file cannot be made.
    pub fn begin(&self, digest: Digest, size: u64) -> Result<BlobWriter, BlobError> {
        let inner = &self.0;
        {
            let mut bytes = inner.lock();
            if bytes.checked_add(size).is_none_or(|sum| sum > inner.bytes_max) {
                return Err(BlobError::Full { path: inner.path.clone(), size, limit: inner.bytes_max });
            }
            *bytes += size;
        }
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let part = inner.path.join(format!("{digest}.{number}.part"));
        let mut writer = BlobWriter {
            inner: Arc::clone(inner),
            digest,
            size,
            part,
            file: None,
            hasher: blake3::Hasher::new(),
            visible: false,
        };
        // From here on the writer's drop gives the room back.
        writer.file = Some(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&writer.part)?);
        Ok(writer)
    }

    /// Puts in a content that is here already. Returns where it is.
    ///
    /// # Errors
    /// As [`Self::begin`] and [`BlobWriter::finish`], and when the content cannot be read.
    pub fn put(&self, digest: Digest, content: &Content) -> Result<PathBuf, BlobError> {
        if self.get(digest)?.is_some_and(|there| there.len() == content.len()) {
            return Ok(self.path_of(digest));
        }
        let mut writer = self.begin(digest, content.len())?;
        let mut scratch = Vec::new();
        for i in 0..content.chunks() {
            writer.write(content.chunk(i, &mut scratch)?)?;
        }
        writer.finish()
    }

    /// Removes a content. Who has it open can go on reading.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, digest: Digest) -> io::Result<bool> {
        let path = self.path_of(digest);
        match fs::symlink_metadata(&path).and_then(|metadata| fs::remove_file(&path).map(|()| metadata.len())) {
            Ok(len) => {
                let mut bytes = self.0.lock();
                *bytes = bytes.saturating_sub(len);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bytes of what is there and of what is being written.
    pub fn bytes(&self) -> u64 {
        *self.0.lock()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A content being written. Dropped before it is finished it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    inner: Arc<Inner>,
    digest: Digest,
    size: u64,
    part: PathBuf,
    file: Option<File>,
    hasher: blake3::Hasher,
    visible: bool,
}

impl BlobWriter {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// When there are more than announced, or the disk does not take them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if self.hasher.count() + bytes.len() as u64 > self.size {
            return Err(BlobError::Differs(self.digest));
        }
        self.hasher.update(bytes);
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        Ok(())
    }

    /// Checks what was written and makes it visible. Returns where it is.
    ///
    /// # Errors
    /// When the length or the digest differs, or the disk fails.
    pub fn finish(mut self) -> Result<PathBuf, BlobError> {
        if self.hasher.count() != self.size || blake3::Hash::from_bytes(self.digest.0) != self.hasher.finalize() {
            return Err(BlobError::Differs(self.digest));
        }
        if let Some(file) = self.file.take() {
            file.sync_data()?;
        }
        let path = self.inner.path.join(self.digest.to_hex());
        // Two that write the same content at once: the second replaces the first by the same bytes, which are counted once.
        let replaced = fs::symlink_metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
        fs::rename(&self.part, &path)?;
        self.visible = true;
        let mut bytes = self.inner.lock();
        *bytes = bytes.saturating_sub(replaced);
        Ok(path)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.visible {
            drop(fs::remove_file(&self.part));
            let mut bytes = self.inner.lock();
            *bytes = bytes.saturating_sub(self.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_complete_and_right_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let blobs = BlobDirectory::open(root.path().join("blobs"), 10).unwrap();
        let digest = Digest::of(b"hello");
        let mut writer = blobs.begin(digest, 5).unwrap();
        writer.write(b"hel").unwrap();
        assert!(blobs.get(digest).unwrap().is_none());
        assert!(matches!(blobs.begin(Digest::of(b"other!"), 6), Err(BlobError::Full { limit: 10, .. })));
        writer.write(b"lo").unwrap();
        assert_eq!(writer.finish().unwrap(), blobs.path_of(digest));
        assert_eq!(&blobs.get(digest).unwrap().unwrap().bytes().unwrap()[..], b"hello");
        assert_eq!(blobs.bytes(), 5);

        let mut wrong = blobs.begin(Digest::of(b"other"), 5).unwrap();
        wrong.write(b"oth").unwrap();
        assert!(matches!(wrong.write(b"errrr"), Err(BlobError::Differs(_))));
        assert!(matches!(wrong.finish(), Err(BlobError::Differs(_))));
        assert_eq!(blobs.bytes(), 5);
        assert_eq!(fs::read_dir(blobs.path()).unwrap().count(), 1);

        assert!(blobs.put(digest, &Content::from_bytes(bytes::Bytes::from_static(b"hello"))).is_ok());
        blobs.begin(digest, 5).map(|mut w| w.write(b"hello").map(|()| w.finish())).unwrap().unwrap().unwrap();
        assert_eq!(blobs.bytes(), 5);
        fs::write(blobs.path().join("x.part"), b"left").unwrap();
        assert_eq!(BlobDirectory::open(blobs.path(), 10).unwrap().bytes(), 5);
        assert!(!blobs.path().join("x.part").exists());
        assert!(blobs.remove(digest).unwrap() && !blobs.remove(digest).unwrap());
        assert_eq!(blobs.bytes(), 0);
    }
}
