//! File content: digests of files and trees, and putting a file somewhere else as cheaply as is safe.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most files of one tree.
pub const TREE_FILES_MAX: usize = 1 << 20;
/// Deepest tree.
pub const TREE_DEPTH_MAX: usize = 128;

/// BLAKE3 of a file's bytes, or of a tree's manifest.
pub type Digest = [u8; 32];

/// Digest and size of a file.
///
/// # Errors
/// It cannot be read.
pub fn digest_file(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut hasher = blake3::Hasher::new();
    // One more than the file has, so that the end of a small one is seen with one reading more and not a large buffer.
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut buffer = vec![0; expected.saturating_add(1).clamp(4 << 10, 256 << 10)];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((*hasher.finalize().as_bytes(), size));
        }
        size += count as u64;
        hasher.update(&buffer[..count]);
    }
}

/// Digest of a directory's tree and the bytes in it. The manifest has for each file, and each directory without entries, in order
/// of its relative path: kind (`f`, `x` executable, `d`), length of the path, path, and for a file its digest.
///
/// # Errors
/// It cannot be read, holds something else than files and directories, or is larger than the bounds.
pub fn digest_tree(root: &Path) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"scalable tree 1\0");
    let mut size = 0;
    for Entry { path, kind } in walk(root)? {
        let relative = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes().to_owned();
        let mut header = |kind: u8| {
            hasher.update(&[kind]);
            hasher.update(&(relative.len() as u64).to_le_bytes());
            hasher.update(&relative);
        };
        match kind {
            Kind::EmptyDirectory => header(b'd'),
            Kind::File(metadata) => {
                header(if metadata.mode() & 0o111 == 0 { b'f' } else { b'x' });
                let (digest, bytes) = digest_file(&path)?;
                hasher.update(&digest);
                size += bytes;
            }
        }
    }
    Ok((*hasher.finalize().as_bytes(), size))
}

/// What a tree is made of.
#[derive(Debug)]
pub struct Entry {
    /// Path including the root's.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of [`Entry`].
#[derive(Debug)]
pub enum Kind {
    /// A regular file.
    File(Metadata),
    /// A directory without entries.
    EmptyDirectory,
}

/// All files and empty directories of a tree without links, in order of their paths.
///
/// # Errors
/// It cannot be read, holds something else, or is larger than the bounds.
pub fn walk(root: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        let mut empty = true;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            empty = false;
            if metadata.is_dir() {
                if depth >= TREE_DEPTH_MAX {
                    return Err(io::Error::other(format!("{} is deeper than {TREE_DEPTH_MAX} levels", root.display())));
                }
                open.push((path, depth + 1));
            } else if metadata.is_file() {
                if found.len() >= TREE_FILES_MAX {
                    return Err(io::Error::other(format!("{} has more than {TREE_FILES_MAX} files", root.display())));
                }
                found.push(Entry { path, kind: Kind::File(metadata) });
            } else {
                return Err(io::Error::other(format!("{} is neither a file nor a directory", path.display())));
            }
        }
        if empty && directory != root {
            found.push(Entry { path: directory, kind: Kind::EmptyDirectory });
        }
    }
    found.sort_by(|a, b| a.path.as_os_str().as_bytes().cmp(b.path.as_os_str().as_bytes()));
    Ok(found)
}

/// Puts an immutable file under `to`, without write permission, for a reader that must not be able to change the original: its
/// blocks shared where the file system can, else its own copy. Never a second name of the same file: whoever owns a file can
/// give itself permission to write, and tasks run as the user that owns the objects.
///
/// # Errors
/// The source is gone, the disk is full.
pub fn place(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let mode = 0o444 | (source.metadata()?.mode() & 0o111);
    if reflink(&source, to, mode)? { Ok(()) } else { copy(source, to, mode) }
}

/// Shares the blocks of `source` with a new file; false where the file system cannot.
#[allow(unsafe_code)]
fn reflink(source: &File, to: &Path, mode: u32) -> io::Result<bool> {
    use std::sync::atomic::{AtomicU64, Ordering};
    // The last device that cannot: asking costs a file made and removed. 0 is no device.
    static CANNOT: AtomicU64 = AtomicU64::new(0);
    let device = source.metadata()?.dev();
    if CANNOT.load(Ordering::Relaxed) == device {
        return Ok(false);
    }
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    // SAFETY: two descriptors that are open; no memory is involved.
    if unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) } == 0 {
        target.set_permissions(Permissions::from_mode(mode))?;
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    fs::remove_file(to)?;
    if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS)) {
        CANNOT.store(device, Ordering::Relaxed);
    }
    Ok(false)
}

/// Copies bytes into a new file with this mode.
///
/// # Errors
/// The target exists, the disk is full, the source cannot be read.
pub fn copy(mut source: File, to: &Path, mode: u32) -> io::Result<()> {
    let mut target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = io::copy(&mut source, &mut target).and_then(|_| target.set_permissions(Permissions::from_mode(mode)));
    if copied.is_err() {
        // Half a file is worse than none; the first error is the one to tell.
        let _ = fs::remove_file(to);
    }
    copied
}

/// Removes a tree whatever the permissions of directories in it are (a task may have taken its own away).
///
/// # Errors
/// Something else than permissions is in the way.
pub fn remove_tree(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(root, 0);
            fs::remove_dir_all(root)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_writable(directory: &Path, depth: usize) {
    if depth > TREE_DEPTH_MAX || !fs::symlink_metadata(directory).is_ok_and(|m| m.is_dir()) {
        return;
    }
    let _ = fs::set_permissions(directory, Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        make_writable(&entry.path(), depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_s_digest_depends_on_paths_content_and_the_executable_bit_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let make = |name: &str, content: &str, mode: u32| {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("sub/empty")).expect("made");
            fs::write(root.join("sub/a"), content).expect("written");
            fs::set_permissions(root.join("sub/a"), Permissions::from_mode(mode)).expect("set");
            digest_tree(&root).expect("read")
        };
        let one = make("one", "x", 0o644);
        assert_eq!(one, make("two", "x", 0o600));
        assert_ne!(one.0, make("three", "y", 0o644).0);
        assert_ne!(one.0, make("four", "x", 0o755).0);
        assert_eq!(one.1, 1);
        fs::remove_dir(dir.path().join("two/sub/empty")).expect("removed");
        assert_ne!(one.0, digest_tree(&dir.path().join("two")).expect("read").0);
    }

    #[test]
    fn what_is_placed_is_the_content_without_write_permission() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, vec![7; 5 << 20]).expect("written");
        fs::set_permissions(&from, Permissions::from_mode(0o555)).expect("set");
        place(&from, &to).expect("placed");
        let inode = |path: &Path| fs::metadata(path).expect("there").ino();
        assert_ne!(inode(&from), inode(&to), "an owner could write through a second name");
        assert_eq!(digest_file(&from).expect("read"), digest_file(&to).expect("read"));
        assert_eq!(fs::metadata(&to).expect("there").mode() & 0o777, 0o555);
    }
}
