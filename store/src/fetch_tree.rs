//! A tree on its way to this machine: its manifest, then its files, each into its place below a directory that nobody uses yet.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Capability, Digest, Fetcher, FileError, FileFetch, FileRequest, Holder, Tree, TreeNode};

/// Files of one tree that are asked for at once.
const FILES_AHEAD: usize = 32;
/// Largest manifest: what a million entries with paths of usual length take.
const MANIFEST_BYTES_MAX: u64 = 512 << 20;

/// Which tree to fetch, and where to.
#[derive(Clone, Debug)]
pub struct TreeRequest<'a> {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Its size in bytes.
    pub manifest_size: u64,
    /// Who has manifest and files, in the order in which they are asked.
    pub holders: Vec<Holder>,
    /// Where the manifest is put, unless it is there.
    pub manifest_path: &'a Path,
    /// Where the tree is made: a directory beside its final place, made if it is not there. What an earlier attempt has left of the same
    /// tree is used.
    pub part: &'a Path,
}

/// Fetches a tree. Files are readable by all and writable by nobody afterwards, directories as the user's mask says. Blocks.
///
/// # Errors
/// What could not be had or written; a manifest that is none, or has a link: trees of outputs have none.
pub fn fetch_tree(fetcher: &Fetcher, request: &TreeRequest<'_>, grant: impl Fn(Digest) -> Capability) -> Result<Tree, FileError> {
    let disk = |path: &Path, error: io::Error| FileError::Disk { path: path.to_owned(), error };
    let bad = |why: String| disk(request.manifest_path, io::Error::new(io::ErrorKind::InvalidData, why));
    if request.manifest_size > MANIFEST_BYTES_MAX {
        return Err(bad(format!("a manifest of {} bytes; at most {MANIFEST_BYTES_MAX} are taken", request.manifest_size)));
    }
    let ask = |digest: Digest, size: u64, part: PathBuf| {
        let holders = request.holders.clone();
        fetcher.fetch_file(FileRequest { digest, size, holders, capability: grant(digest), part })
    };
    if fs::symlink_metadata(request.manifest_path).is_err() {
        let mut name = request.manifest_path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = request.manifest_path.with_file_name(name);
        ask(request.manifest, request.manifest_size, part.clone()).wait()?;
        fs::rename(&part, request.manifest_path).map_err(|error| disk(request.manifest_path, error))?;
    }
    let bytes = fs::read(request.manifest_path).map_err(|error| disk(request.manifest_path, error))?;
    if Digest::of(&bytes) != request.manifest {
        // Left over from something else: the next attempt fetches it.
        let _ = fs::remove_file(request.manifest_path);
        return Err(bad("it is another tree's".to_owned()));
    }
    let tree = Tree::decode(&bytes).map_err(|error| bad(error.to_string()))?;
    fs::create_dir_all(request.part).map_err(|error| disk(request.part, error))?;
    let mut asked: VecDeque<(FileFetch, PathBuf, u32)> = VecDeque::new();
    let arrive = |(fetch, path, mode): (FileFetch, PathBuf, u32)| -> Result<(), FileError> {
        fetch.wait()?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|error| disk(&path, error))
    };
    for (path, node) in tree.entries() {
        // Relative, without `..`, in a directory of this tree: that is what decoding has checked.
        let to = request.part.join(OsStr::from_bytes(path));
        match node {
            TreeNode::Directory { .. } => fs::create_dir_all(&to).map_err(|error| disk(&to, error))?,
            TreeNode::File { mode, size, digest } => {
                let mode = 0o444 | (u32::from(*mode) & 0o111);
                if fs::symlink_metadata(&to).is_ok_and(|found| found.is_file()) {
                    // It may be whole and read-only already; to be looked at it is opened to be written.
                    fs::set_permissions(&to, Permissions::from_mode(0o600)).map_err(|error| disk(&to, error))?;
                }
                asked.push_back((ask(*digest, *size, to.clone()), to, mode));
                if asked.len() >= FILES_AHEAD
                    && let Some(first) = asked.pop_front()
                {
                    arrive(first)?;
                }
            }
            TreeNode::Link { .. } => return Err(bad(format!("it has a link, {}, and outputs have none", to.display()))),
        }
    }
    asked.into_iter().try_for_each(arrive)?;
    Ok(tree)
}
