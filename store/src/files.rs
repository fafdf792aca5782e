//! Files that are served to peers by their digests from where they lie, opened when they are asked for. No content is held, only names.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{Content, Digest};

/// Where contents lie. Cheap to clone; all clones are one. A content may lie in several places: it is there while one of them is.
///
/// Whoever adds a file says that it is not changed while it is listed. One that is changed all the same is noticed by its receiver.
#[derive(Clone, Debug, Default)]
pub struct FileIndex(Arc<Mutex<FxHashMap<Digest, Vec<PathBuf>>>>);

impl FileIndex {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<Digest, Vec<PathBuf>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content with this digest lies (also) at `path`.
    pub fn add(&self, digest: Digest, path: impl Into<PathBuf>) {
        let path = path.into();
        let mut known = self.lock();
        let places = known.entry(digest).or_default();
        if !places.contains(&path) {
            places.push(path);
        }
    }

    /// Nothing at these paths or below them is served any more. Looks at everything that is known, once: where a digest is known
    /// [`FileIndex::remove`] costs less.
    pub fn remove_below(&self, paths: &[impl AsRef<Path>]) {
        if paths.is_empty() {
            return;
        }
        // A place is below a path if that is the place itself or one of its parents.
        let paths: FxHashSet<&Path> = paths.iter().map(AsRef::as_ref).collect();
        self.lock().retain(|_, places| {
            places.retain(|place| !place.ancestors().any(|above| paths.contains(above)));
            !places.is_empty()
        });
    }

    /// This content is not served from `path` any more.
    pub fn remove(&self, digest: Digest, path: &Path) {
        let mut known = self.lock();
        if let Some(places) = known.get_mut(&digest) {
            places.retain(|place| place != path);
            if places.is_empty() {
                known.remove(&digest);
            }
        }
    }

    /// How many contents are known.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The content, from the first place where a file can be opened. Blocks.
    ///
    /// # Errors
    /// When it is known and can be opened nowhere.
    pub fn open(&self, digest: Digest) -> io::Result<Option<Content>> {
        let Some(places) = self.lock().get(&digest).cloned() else { return Ok(None) };
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for place in places {
            let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&place);
            match opened.and_then(|file| file.metadata().map(|metadata| (file, metadata.len()))) {
                Ok((file, len)) => return Content::from_file(file, len).map(Some),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_there_while_one_of_its_places_is() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("a/one"), directory.path().join("b/two"));
        for path in [&one, &two] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "content").unwrap();
        }
        let digest = Digest::of(b"content");
        let index = FileIndex::new();
        assert!(index.open(digest).unwrap().is_none());
        index.add(digest, &one);
        index.add(digest, &two);
        index.add(digest, &two);
        std::fs::remove_file(&one).unwrap();
        assert_eq!(&index.open(digest).unwrap().unwrap().bytes().unwrap()[..], b"content");
        index.remove_below(&[directory.path().join("b/tw"), directory.path().join("c")]);
        assert!(index.open(digest).is_ok(), "neither is above it");
        index.remove_below(&[directory.path().join("b"), directory.path().join("c")]);
        assert!(index.open(digest).is_err(), "what is left of it is not there");
        index.remove(digest, &one);
        assert!(index.open(digest).unwrap().is_none() && index.is_empty());
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "content").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let index = FileIndex::new();
        index.add(Digest::of(b"content"), &link);
        assert!(index.open(Digest::of(b"content")).is_err());
    }
}
