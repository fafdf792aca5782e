//! The agent's own directory: for results that do not fit into memory and for programs that were fetched.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory; one that was made for this process is removed with it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    own: bool,
}

impl Directory {
    /// The one that was asked for, else a new one among the system's temporary files that nobody else can read.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(wanted: Option<&Path>) -> io::Result<Self> {
        let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        if let Some(path) = wanted {
            builder.recursive(true).create(path).map_err(|error| named(path, error))?;
            return Ok(Directory { path: std::path::absolute(path)?, own: false });
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("scalable-worker-{:016x}", u64::from_le_bytes(random)));
        builder.create(&path).map_err(|error| named(&path, error))?;
        Ok(Directory { path, own: true })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.own {
            // Best effort: what is left lies among temporary files.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
