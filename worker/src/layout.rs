//! Where things lie in a run's directory, and which names from the wire may become part of a path.

use std::path::{Component, Path, PathBuf};

/// Longest name of one file, bytes: what file systems allow.
const NAME_BYTES_MAX: usize = 255;

/// A name or path that came over the wire and may not be used as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown:?} cannot be part of a path: {why}")]
pub struct BadPath {
    what: &'static str,
    shown: String,
    why: &'static str,
}

fn bad(what: &'static str, name: &str, why: &'static str) -> BadPath {
    BadPath { what, shown: name.chars().take(100).collect(), why }
}

/// Checks a name that is to be one component of a path.
///
/// # Errors
/// Empty, too long, `.`, `..`, or with a slash or NUL byte.
pub fn name<'a>(what: &'static str, name: &'a str) -> Result<&'a str, BadPath> {
    match name {
        "" => Err(bad(what, name, "it is empty")),
        "." | ".." => Err(bad(what, name, "it means a directory")),
        _ if name.len() > NAME_BYTES_MAX => Err(bad(what, name, "it is longer than 255 bytes")),
        _ if name.contains(['/', '\0']) => Err(bad(what, name, "it contains a slash or a NUL byte")),
        _ => Ok(name),
    }
}

/// Checks a path that is to stay below the directory it is joined to. Says nothing about links on the way.
///
/// # Errors
/// Empty, absolute, with `..`, a NUL byte, or a component that is too long.
pub fn relative<'a>(what: &'static str, path: &'a str) -> Result<&'a Path, BadPath> {
    if path.contains('\0') {
        return Err(bad(what, path, "it contains a NUL byte"));
    }
    let mut any = false;
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) if part.len() > NAME_BYTES_MAX => {
                return Err(bad(what, path, "a part is longer than 255 bytes"));
            }
            Component::Normal(_) => any = true,
            Component::CurDir => {}
            Component::ParentDir => return Err(bad(what, path, "it leaves the attempt's directory")),
            Component::RootDir | Component::Prefix(_) => return Err(bad(what, path, "it is absolute")),
        }
    }
    if any { Ok(Path::new(path)) } else { Err(bad(what, path, "it names no file")) }
}

/// Which attempt: everything of it in the run's directory is named after this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The run's directory.
    pub run: PathBuf,
    /// The group's name, checked.
    pub group: String,
    /// The element.
    pub index: u32,
    /// From 1.
    pub attempt: u32,
}

impl Place {
    /// `attempts/<group>/<index>/<attempt>`: the attempt's own.
    pub fn directory(&self) -> PathBuf {
        self.run.join("attempts").join(&self.group).join(self.index.to_string()).join(self.attempt.to_string())
    }

    /// `objects/<group>/<index>/<attempt>`: its finished outputs.
    pub fn objects(&self) -> PathBuf {
        objects(&self.run, &self.group, self.index, self.attempt)
    }

    /// `logs/<group>/<index>.<attempt>.<stream>`.
    pub fn log(&self, stream: &str) -> PathBuf {
        self.run.join("logs").join(&self.group).join(format!("{}.{}.{stream}", self.index, self.attempt))
    }

    /// `failed/<group>/<index>.<attempt>`, relative to the run's directory.
    pub fn kept(&self) -> PathBuf {
        Path::new("failed").join(&self.group).join(format!("{}.{}", self.index, self.attempt))
    }
}

/// Where the outputs of a finished attempt lie.
pub fn objects(run: &Path, group: &str, index: u32, attempt: u32) -> PathBuf {
    run.join("objects").join(group).join(index.to_string()).join(attempt.to_string())
}

/// An empty file beside an output of kind `list`: its presence is what tells a list from a directory.
pub fn list_mark(object: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(object.file_name()?);
    name.push(".list");
    Some(object.with_file_name(name))
}

/// The manifest of a tree, beside the output of kind `dir` or `list` that it describes.
pub fn tree_manifest(object: &Path) -> PathBuf {
    let name = object.file_name().unwrap_or_default().to_string_lossy();
    object.with_file_name(format!(".{name}.tree"))
}

/// `files/<hex digest>` in the run's directory.
pub fn content(run: &Path, digest: &[u8]) -> PathBuf {
    run.join("files").join(hex(digest))
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_that_leave_are_refused() {
        for good in ["a", "a b", "ü🌍", "a\nb", "..a", &"x".repeat(255)] {
            assert!(name("output", good).is_ok(), "{good:?}");
        }
        for evil in ["", ".", "..", "a/b", "/", "a\0b", &"x".repeat(256)] {
            assert!(name("output", evil).is_err(), "{evil:?}");
        }
        for good in ["a", "a/b.csv", "./a", "a b/ü", "a/./b"] {
            assert!(relative("path", good).is_ok(), "{good:?}");
        }
        for evil in ["", ".", "/etc/passwd", "../x", "a/../../x", "a\0", &format!("a/{}", "x".repeat(256))] {
            assert!(relative("path", evil).is_err(), "{evil:?}");
        }
        let error = relative("path", "../x").expect_err("it leaves").to_string();
        assert_eq!(error, "path \"../x\" cannot be part of a path: it leaves the attempt's directory");
    }
}
