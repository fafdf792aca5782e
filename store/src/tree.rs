//! Directories as objects: a manifest of everything in a tree, with a digest per file, and a tree made again from a manifest and its
//! files. Nothing outside the tree is read or written, whatever links or names say.
//!
//! The encoding is canonical: one tree has one manifest, whose digest names the tree. After the eight bytes `SCALTREE` and a
//! version (u16), for each entry in order of its path: kind (u8: 0 directory, 1 file, 2 link), mode (u16, permission bits), path
//! (u16 length, bytes); for a file its size (u64) and digest (32 bytes); for a link its target (u16 length, bytes). Little endian.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::{Content, Digest};

const MAGIC: &[u8; 8] = b"SCALTREE";
const VERSION: u16 = 1;

/// Entries of a tree; more are refused.
pub const TREE_ENTRIES_MAX: usize = 1 << 20;
/// Bytes of a path in a tree; longer ones are refused.
pub const TREE_PATH_MAX: usize = 4095;
/// Directories in each other; deeper ones are refused.
pub const TREE_DEPTH_MAX: usize = 256;

/// What is at one path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeNode {
    /// A directory, with its permission bits.
    Directory {
        /// Permission bits.
        mode: u16,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u16,
        /// Bytes.
        size: u64,
        /// Of its content.
        digest: Digest,
    },
    /// A symbolic link to something in the tree.
    Link {
        /// Relative, as it is in the link.
        target: Vec<u8>,
    },
}

/// Everything in a directory, by path relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<Vec<u8>, TreeNode>,
}

/// Why a directory is no tree, or a manifest none, or a tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A link leads out of the tree, or is absolute.
    #[error("the link {path} leads out of its tree, to {target}: make it relative to something inside, or write a copy")]
    LinkOut {
        /// Where the link is in the tree.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// Neither directory, file nor link.
    #[error("{0} is neither a file, a directory nor a link")]
    Special(String),
    /// More than a tree may have.
    #[error("the tree is beyond its limits ({0}): pack it into one file")]
    TooLarge(&'static str),
    /// Not a manifest, or one that names something outside the tree.
    #[error("not the manifest of a tree: {0}")]
    Malformed(&'static str),
    /// A file was changed while it was read, or its content is not what the manifest says.
    #[error("{0} is not what it should be: it was changed meanwhile")]
    Differs(String),
    /// The disk.
    #[error("{path}: {error}")]
    Io {
        /// In the tree.
        path: String,
        /// What happened.
        error: io::Error,
    },
}

fn at(path: &[u8]) -> impl FnOnce(io::Error) -> TreeError + '_ {
    move |error| TreeError::Io { path: show(path), error }
}

fn show(path: &[u8]) -> String {
    if path.is_empty() { ".".into() } else { String::from_utf8_lossy(path).into_owned() }
}

impl Tree {
    /// Reads a directory: every name in it, and every file for its digest. Blocks.
    ///
    /// # Errors
    /// When a link leaves the tree, something is neither file, directory nor link, a limit is passed, or the disk fails.
    pub fn scan(directory: &Path) -> Result<Self, TreeError> {
        let mut tree = Self::default();
        let root = open_root(directory)?;
        tree.scan_into(root.as_fd(), &mut Vec::new(), 0)?;
        Ok(tree)
    }

    fn scan_into(&mut self, directory: BorrowedFd<'_>, path: &mut Vec<u8>, depth: usize) -> Result<(), TreeError> {
        if depth > TREE_DEPTH_MAX {
            return Err(TreeError::TooLarge("directories in each other"));
        }
        for name in names(directory).map_err(at(path))? {
            let parent = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.check_room(path)?;
            // Looked at without following it; each kind is then opened so that anything put there meanwhile fails.
            match open_at(directory, &name, libc::O_PATH) {
                Err(error) => return Err(at(path)(error)),
                Ok(found) => {
                    let metadata = File::from(found.try_clone().map_err(at(path))?).metadata().map_err(at(path))?;
                    let mode = (metadata.permissions().mode() & 0o7777) as u16;
                    let node = if metadata.is_dir() {
                        let inner = open_at(directory, &name, libc::O_DIRECTORY).map_err(at(path))?;
                        self.entries.insert(path.clone(), TreeNode::Directory { mode });
                        self.scan_into(inner.as_fd(), path, depth + 1)?;
                        path.truncate(parent);
                        continue;
                    } else if metadata.is_file() {
                        let file = File::from(open_at(directory, &name, libc::O_NONBLOCK).map_err(at(path))?);
                        let size = file.metadata().map_err(at(path))?.size();
                        let changed = |error: io::Error| match error.kind() {
                            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => TreeError::Differs(show(path)),
                            _ => at(path)(error),
                        };
                        let digest = Content::from_file(file, size).and_then(|content| content.digest()).map_err(changed)?;
                        TreeNode::File { mode, size, digest }
                    } else if metadata.is_symlink() {
                        let target = read_link(found.as_fd()).map_err(at(path))?;
                        if !stays_inside(path, &target) {
                            let target = String::from_utf8_lossy(&target).into_owned();
                            return Err(TreeError::LinkOut { path: show(path), target });
                        }
                        TreeNode::Link { target }
                    } else {
                        return Err(TreeError::Special(show(path)));
                    };
                    self.entries.insert(path.clone(), node);
                }
            }
            path.truncate(parent);
        }
        Ok(())
    }

    fn check_room(&self, path: &[u8]) -> Result<(), TreeError> {
        if path.len() > TREE_PATH_MAX {
            return Err(TreeError::TooLarge("length of a path"));
        }
        if self.entries.len() >= TREE_ENTRIES_MAX {
            return Err(TreeError::TooLarge("number of entries"));
        }
        Ok(())
    }

    /// Paths and what is there, a directory before what is in it.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &TreeNode)> {
        self.entries.iter().map(|(path, node)| (path.as_slice(), node))
    }

    /// Each different content of its files once, with its size: what has to be fetched.
    pub fn files(&self) -> BTreeMap<Digest, u64> {
        let file = |node: &TreeNode| match node {
            TreeNode::File { digest, size, .. } => Some((*digest, *size)),
            TreeNode::Directory { .. } | TreeNode::Link { .. } => None,
        };
        self.entries.values().filter_map(file).collect()
    }

    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        let size = |node: &TreeNode| if let TreeNode::File { size, .. } = node { *size } else { 0 };
        self.entries.values().map(size).fold(0, u64::saturating_add)
    }

    /// The manifest. Its digest is the tree's.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &[u8]| {
            // Both paths and targets are bounded far below.
            out.extend((text.len() as u16).to_le_bytes());
            out.extend(text);
        };
        for (path, node) in &self.entries {
            let (kind, mode) = match node {
                TreeNode::Directory { mode } => (0, *mode),
                TreeNode::File { mode, .. } => (1, *mode),
                TreeNode::Link { .. } => (2, 0o777),
            };
            out.push(kind);
            out.extend(mode.to_le_bytes());
            text(&mut out, path);
            match node {
                TreeNode::Directory { .. } => {}
                TreeNode::File { size, digest, .. } => {
                    out.extend(size.to_le_bytes());
                    out.extend(digest.0);
                }
                TreeNode::Link { target } => text(&mut out, target),
            }
        }
        out
    }

    /// The tree of a manifest.
    ///
    /// # Errors
    /// When it is not the one canonical manifest of a tree that stays inside itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let mut r = Reader(bytes);
        if r.take::<8>()? != *MAGIC || r.u16()? != VERSION {
            return Err(TreeError::Malformed("another format or version"));
        }
        let mut tree = Self::default();
        while !r.0.is_empty() {
            let (kind, mode, path) = (r.take::<1>()?[0], r.u16()?, r.text()?.to_vec());
            tree.check_room(&path)?;
            if !is_plain(&path) {
                return Err(TreeError::Malformed("a path that is not plain and relative"));
            }
            if tree.entries.last_key_value().is_some_and(|(last, _)| *last >= path) {
                return Err(TreeError::Malformed("paths out of order"));
            }
            if let Some(slash) = path.iter().rposition(|byte| *byte == b'/')
                && !matches!(tree.entries.get(&path[..slash]), Some(TreeNode::Directory { .. }))
            {
                return Err(TreeError::Malformed("a path in something that is not a directory"));
            }
            if path.iter().filter(|byte| **byte == b'/').count() > TREE_DEPTH_MAX {
                return Err(TreeError::TooLarge("directories in each other"));
            }
            if mode & !0o7777 != 0 {
                return Err(TreeError::Malformed("a mode that is none"));
            }
            let node = match kind {
                0 => TreeNode::Directory { mode },
                1 => TreeNode::File { mode, size: u64::from_le_bytes(r.take()?), digest: Digest(r.take()?) },
                2 if mode == 0o777 => TreeNode::Link { target: r.text()?.to_vec() },
                _ => return Err(TreeError::Malformed("an entry of no known kind")),
            };
            if let TreeNode::Link { target } = &node
                && !stays_inside(&path, target)
            {
                let target = String::from_utf8_lossy(target).into_owned();
                return Err(TreeError::LinkOut { path: show(&path), target });
            }
            tree.entries.insert(path, node);
        }
        Ok(tree)
    }

    /// Makes the tree in `directory`, which must exist and should be empty. `content` gives each file's content by its digest; it is
    /// checked again while it is written. Set-user and set-group bits are not restored. Blocks.
    ///
    /// # Errors
    /// When something is there already, a content is missing or wrong, or the disk fails. What was made until then stays.
    pub fn unpack(&self, directory: &Path, mut content: impl FnMut(Digest, u64) -> io::Result<Content>) -> Result<(), TreeError> {
        let root = open_root(directory)?;
        for (path, node) in &self.entries {
            let (parent, name) = parent_of(root.as_fd(), path).map_err(at(path))?;
            match node {
                // Open to this user while it is filled.
                TreeNode::Directory { .. } => make_directory(parent.as_fd(), &name).map_err(at(path))?,
                TreeNode::Link { target } => make_link(parent.as_fd(), &name, target).map_err(at(path))?,
                TreeNode::File { mode, size, digest } => {
                    let found = content(*digest, *size).map_err(at(path))?;
                    let file = create_file(parent.as_fd(), &name).map_err(at(path))?;
                    write_checked(&found, &file, *size, *digest, path)?;
                    let mode = std::fs::Permissions::from_mode(u32::from(*mode) & 0o777);
                    file.set_permissions(mode).map_err(at(path))?;
                }
            }
        }
        // Inner ones first: a directory that may not be searched cannot be gone through any more.
        for (path, node) in self.entries.iter().rev() {
            if let TreeNode::Directory { mode } = node {
                let (parent, name) = parent_of(root.as_fd(), path).map_err(at(path))?;
                let made = File::from(open_at(parent.as_fd(), &name, libc::O_DIRECTORY).map_err(at(path))?);
                let mode = std::fs::Permissions::from_mode(u32::from(*mode) & 0o777);
                made.set_permissions(mode).map_err(at(path))?;
            }
        }
        Ok(())
    }
}

fn write_checked(content: &Content, mut file: &File, size: u64, digest: Digest, path: &[u8]) -> Result<(), TreeError> {
    if content.len() != size {
        return Err(TreeError::Differs(show(path)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut scratch = Vec::new();
    for i in 0..content.chunks() {
        let chunk = content.chunk(i, &mut scratch).map_err(at(path))?;
        hasher.update(chunk);
        file.write_all(chunk).map_err(at(path))?;
    }
    if hasher.finalize() == blake3::Hash::from_bytes(digest.0) { Ok(()) } else { Err(TreeError::Differs(show(path))) }
}

/// Relative, without empty parts, `.`, `..` or NUL.
fn is_plain(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|part| !part.is_empty() && part != b"." && part != b"..")
}

/// Whether a link at `path` to `target` ends in the tree by its text alone. A link through other links of the tree cannot leave it either:
/// each of them stays inside, and `..` is only allowed before any name.
fn stays_inside(path: &[u8], target: &[u8]) -> bool {
    if target.is_empty() || target.len() > TREE_PATH_MAX || target.contains(&0) || target[0] == b'/' {
        return false;
    }
    let mut depth = path.iter().filter(|byte| **byte == b'/').count();
    let mut named = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named || depth == 0 => return false,
            b".." => depth -= 1,
            _ => named = true,
        }
    }
    true
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TreeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(TreeError::Malformed("it ends in the middle"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, TreeError> {
        self.take().map(u16::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a [u8], TreeError> {
        let len = usize::from(self.u16()?);
        let (text, rest) = self.0.split_at_checked(len).ok_or(TreeError::Malformed("it ends in the middle"))?;
        self.0 = rest;
        Ok(text)
    }
}

fn open_root(directory: &Path) -> Result<OwnedFd, TreeError> {
    let failed = |error| TreeError::Io { path: directory.display().to_string(), error };
    let file = File::open(directory).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(file.into())
}

/// The directory that `path` lies in, gone to part by part without following any link, and the name in it.
fn parent_of(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<(OwnedFd, CString)> {
    let mut parts = path.split(|byte| *byte == b'/').map(CString::new).peekable();
    let mut directory = root.try_clone_to_owned()?;
    while let Some(part) = parts.next() {
        let part = part?;
        if parts.peek().is_none() {
            return Ok((directory, part));
        }
        directory = open_at(directory.as_fd(), &part, libc::O_DIRECTORY)?;
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// Opens a name in a directory to read, never through a link.
fn open_at(directory: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: an open directory and a C string.
    owned(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags) })
}

fn create_file(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<File> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: an open directory and a C string.
    owned(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, 0o600) }).map(File::from)
}

fn make_directory(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: an open directory and a C string.
    done(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o700) })
}

fn make_link(directory: BorrowedFd<'_>, name: &CStr, target: &[u8]) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: an open directory and two C strings.
    done(unsafe { libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr()) })
}

/// Where a link leads that is itself open.
fn read_link(link: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut target = vec![0; TREE_PATH_MAX + 1];
    // SAFETY: the buffer is as long as said; an empty path means the link itself.
    let len = unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    target.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(target)
}

/// The names in an open directory, which is gone through by its path below `/proc` so that it is this one whatever was renamed.
fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
        let name: &OsStr = &entry?.file_name();
        names.push(CString::new(name.as_bytes())?);
        if names.len() > TREE_ENTRIES_MAX {
            break;
        }
    }
    Ok(names)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor that nobody else owns, if it is one.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
