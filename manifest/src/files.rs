//! `files:` – what a command needs from beside the manifest: found, bounded, and digested.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of the files of one task.
pub(crate) const FILES_BYTES_MAX: u64 = 256 << 20;
/// Most files of one task.
pub(crate) const FILES_MAX: usize = 10_000;
/// Deepest directory.
const DEPTH_MAX: usize = 32;

/// A file to be staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it lies relative to the manifest, and in the attempt's directory.
    pub path: String,
    /// Where its content is: the path with links resolved.
    pub source: PathBuf,
    pub size: u64,
    pub executable: bool,
}

/// Files below a directory, remembered by the path they were asked for under.
pub(crate) struct Files<'d> {
    directory: &'d Path,
    /// The directory with links resolved: what a link must stay in.
    root: PathBuf,
    seen: HashMap<String, Result<Vec<Found>, String>>,
}

impl Files<'_> {
    pub(crate) fn below(directory: &Path) -> Files<'_> {
        let root = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
        Files { directory, root, seen: HashMap::new() }
    }

    /// Every file at a normalised relative path: itself, or what lies in the directory, in order of names. `.scalable` is left out.
    pub(crate) fn list(&mut self, path: &str) -> Result<Vec<Found>, String> {
        if let Some(known) = self.seen.get(path) {
            return known.clone();
        }
        let mut found = Vec::new();
        let result = self.walk(path, &mut HashSet::new(), &mut found).map(|()| found);
        self.seen.insert(path.to_owned(), result.clone());
        result
    }

    fn walk(&self, path: &str, inside: &mut HashSet<PathBuf>, found: &mut Vec<Found>) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("could not read '{path}': {error}");
        let source = self.directory.join(path).canonicalize().map_err(failed)?;
        if !source.starts_with(&self.root) {
            return Err(format!("'{path}' is a link out of the manifest's directory, to {}", source.display()));
        }
        let metadata = fs::metadata(&source).map_err(failed)?;
        if metadata.is_file() {
            fs::File::open(&source).map_err(failed)?;
            let executable = metadata.permissions().mode() & 0o111 != 0;
            found.push(Found { path: path.to_owned(), source, size: metadata.len(), executable });
            if found.len() > FILES_MAX {
                return Err(format!("'{path}' and what lies beside it are more than {FILES_MAX} files"));
            }
            return Ok(());
        }
        if !metadata.is_dir() {
            return Err(format!("'{path}' is neither a file nor a directory"));
        }
        if inside.len() >= DEPTH_MAX || !inside.insert(source.clone()) {
            return Err(format!("'{path}' is nested deeper than {DEPTH_MAX} directories, or a link to a directory around it"));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&source).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.into_string().map_err(|name| format!("'{path}' holds the name {name:?}, which is not UTF-8"))?;
            if name.chars().any(char::is_control) {
                return Err(format!("'{path}' holds a name with a control character: {name:?}"));
            }
            names.push(name);
            if names.len() > FILES_MAX {
                return Err(format!("'{path}' holds more than {FILES_MAX} files"));
            }
        }
        names.sort_unstable();
        for name in names.iter().filter(|name| *name != ".scalable") {
            let child = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.walk(&child, inside, found)?;
        }
        inside.remove(&source);
        Ok(())
    }
}

/// BLAKE3 of a file's content and its size as read.
///
/// # Errors
/// Whatever the file system says.
pub(crate) fn digest(path: &Path) -> std::io::Result<([u8; 32], u64)> {
    let mut file = fs::File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0u64;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((*hasher.finalize().as_bytes(), size)),
            read => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}
