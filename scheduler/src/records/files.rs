//! Files that are whole or not there, and trees of links.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

/// Writes a file whole or not at all: readers see the old one or the new one.
pub(super) fn replace(path: &Path, value: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// Links `source` under `target`, replacing what is there: a file as a hard link, a directory as a tree of hard links, a
/// symbolic link as itself.
pub(crate) fn link_tree(source: &Path, target: &Path) -> io::Result<()> {
    let mut work = vec![(source.to_owned(), target.to_owned())];
    while let Some((source, target)) = work.pop() {
        let kind = fs::symlink_metadata(&source)?.file_type();
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            for entry in fs::read_dir(&source)? {
                let entry = entry?;
                work.push((entry.path(), target.join(entry.file_name())));
            }
            continue;
        }
        if let Err(error) = fs::remove_file(&target)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        fs::hard_link(&source, &target)?;
    }
    Ok(())
}
