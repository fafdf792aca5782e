//! `scalable-worker install DIR`: puts this program where other images find it, without a shell.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Name of the program in the directory.
const PROGRAM: &str = "scalable-worker";

/// Copies this program into `directory`, which is made where it is missing, with mode 0755. It is there whole or not at all, and an
/// older one is replaced.
///
/// # Errors
/// Which step failed.
pub fn install(directory: &Path) -> io::Result<()> {
    let own = std::env::current_exe()?;
    copy(&own, directory)
}

fn copy(program: &Path, directory: &Path) -> io::Result<()> {
    let at = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    std::fs::create_dir_all(directory).map_err(at(format!("make {}", directory.display())))?;
    let target = directory.join(PROGRAM);
    let beside = directory.join(format!(".{PROGRAM}.{}", std::process::id()));
    let put = || {
        let mut from = std::fs::File::open(program)?;
        // What an earlier process of the same id has left half done.
        let _ = std::fs::remove_file(&beside);
        let mut to = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        io::copy(&mut from, &mut to)?;
        // The mode is the same whatever the umask.
        to.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        to.sync_all()?;
        drop(to);
        std::fs::rename(&beside, &target)
    };
    put().map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        at(format!("copy {} to {}", program.display(), target.display()))(error)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_there_whole_and_runnable() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("program");
        let directory = root.path().join("a/b");
        for content in ["one", "another"] {
            std::fs::write(&program, content).unwrap();
            copy(&program, &directory).unwrap();
            let installed = directory.join(PROGRAM);
            assert_eq!(std::fs::read_to_string(&installed).unwrap(), content);
            assert_eq!(std::fs::metadata(&installed).unwrap().permissions().mode() & 0o7777, 0o755);
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left");
        let error = copy(&root.path().join("nothing"), &directory).unwrap_err().to_string();
        assert!(error.contains("nothing") && error.contains("a/b/scalable-worker"), "{error}");
        assert!(copy(&program, &program).is_err());
    }
}
