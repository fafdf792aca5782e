//! Files with secrets: written so that only their owner can read them, refused where anybody can.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::TlsError;

/// Largest file of credentials that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn failed(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.display().to_string(), why: why.to_string() }
}

/// Reads a file that nobody but its owner and group may read: a mounted Secret is readable by the pod's group.
pub(crate) fn read_private(path: &Path) -> Result<String, TlsError> {
    let file = std::fs::File::open(path).map_err(|error| failed(path, error))?;
    let mode = file.metadata().map_err(|error| failed(path, error))?.permissions().mode();
    if mode & 0o007 != 0 {
        let mode = mode & 0o777;
        return Err(failed(path, format!("can be read by everybody (mode {mode:03o}); make it 0600, or 0440 in a Secret")));
    }
    read(path, file)
}

/// Reads a file without secrets.
#[cfg(feature = "authority")]
pub(crate) fn read_public(path: &Path) -> Result<String, TlsError> {
    read(path, std::fs::File::open(path).map_err(|error| failed(path, error))?)
}

fn read(path: &Path, file: std::fs::File) -> Result<String, TlsError> {
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(path, error))?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(failed(path, format!("has more than {FILE_BYTES_MAX} bytes: it is no file of credentials")));
    }
    Ok(text)
}

/// Writes a file that only its owner can read (0600), in one step: it is there whole or not at all.
///
/// # Errors
/// [`TlsError::File`].
pub fn write_private(path: &Path, content: &str) -> Result<(), TlsError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Path::new(&beside);
    let write = || {
        // What an earlier process of the same id has left half done may have another mode.
        let _ = std::fs::remove_file(beside);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(beside, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(beside);
        failed(path, error)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_written_for_their_owner_and_refused_where_everybody_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        write_private(&path, "something").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_private(&path).unwrap(), "something");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
        assert_eq!(read_private(&path).unwrap(), "something");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = read_private(&path).unwrap_err().to_string();
        assert!(refused.contains("mode 644") && !refused.contains("something"), "{refused}");
        assert!(read_private(&directory.path().join("nothing")).unwrap_err().to_string().contains("nothing"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
