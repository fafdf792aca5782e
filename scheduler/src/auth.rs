//! The token of a local cluster, read from its file.

use std::io;
use std::path::Path;

use scalable_tls::Secret;

/// Reads the token file.
///
/// # Errors
/// When the file cannot be read, can be read by others, or holds less than 32 characters.
pub fn read_token(path: &Path) -> io::Result<Secret> {
    use std::os::unix::fs::PermissionsExt;
    let at = |error: io::Error| io::Error::new(error.kind(), format!("token file {}: {error}", path.display()));
    let mode = std::fs::metadata(path).map_err(at)?.permissions().mode();
    if mode & 0o077 != 0 {
        let message = format!("can be read by others (mode {:03o}); make it 0600", mode & 0o777);
        return Err(at(io::Error::new(io::ErrorKind::PermissionDenied, message)));
    }
    let text = std::fs::read_to_string(path).map_err(at)?;
    Secret::parse(&text).map_err(|why| at(io::Error::new(io::ErrorKind::InvalidData, why)))
}
