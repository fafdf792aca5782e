//! Patterns of list outputs: `*` and `?` within a component of a path. No other character is special, and neither matches a dot
//! in front, as in a shell.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most files one pattern may name.
pub const MATCHES_MAX: usize = 1 << 20;

/// True when `name` matches `pattern`, both one component. `?` is one character.
pub fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star stands and how much it has taken: going back to it is all a mismatch needs, so time is bounded by
    // the product of the lengths.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Part of a pattern's path before the first component with a wildcard.
pub fn literal_prefix(pattern: &str) -> PathBuf {
    let mut components: Vec<&str> = pattern.split('/').collect();
    components.pop();
    components.iter().take_while(|part| !part.contains(['*', '?'])).collect()
}

/// What is there below `root` that matches, in order of the paths' bytes. A directory that cannot be read matches nothing.
///
/// # Errors
/// More than [`MATCHES_MAX`].
pub fn expand(root: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let mut next = Vec::new();
        for directory in found {
            if !part.contains(['*', '?']) {
                let path = directory.join(part);
                if fs::symlink_metadata(&path).is_ok() {
                    next.push(path);
                }
                continue;
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_some_and(|name| matches(part, name)) {
                    next.push(entry.path());
                }
                if next.len() > MATCHES_MAX {
                    return Err(io::Error::other(format!("the pattern {pattern} names more than {MATCHES_MAX} files")));
                }
            }
        }
        found = next;
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        let cases = [
            ("*.nc", "a.nc", true),
            ("*.nc", ".nc", false),
            ("*.nc", "a.nc4", false),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a?c", "aüc", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("**", "abc", true),
            ("", "", true),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        // Exponential in a matcher that goes back everywhere.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
    }

    #[test]
    fn a_pattern_is_expanded_in_the_order_of_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for path in ["out/b.nc", "out/a.nc", "out/c.txt", "out2/a.nc", "out/.x.nc"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, "").expect("written");
        }
        let names = |pattern| -> Vec<String> {
            let found = expand(dir.path(), pattern).expect("few");
            found.iter().map(|p| p.strip_prefix(dir.path()).expect("below").display().to_string()).collect()
        };
        assert_eq!(names("out/*.nc"), ["out/a.nc", "out/b.nc"]);
        assert_eq!(names("out*/a.nc"), ["out/a.nc", "out2/a.nc"]);
        assert_eq!(names("./out/c.txt"), ["out/c.txt"]);
        assert_eq!(names("none/*"), [""; 0]);
        assert_eq!(literal_prefix("out/*.nc"), Path::new("out"));
        assert_eq!(literal_prefix("*/a.nc"), Path::new(""));
        assert_eq!(literal_prefix("a/b/c.nc"), Path::new("a/b"));
    }
}
