//! Relative paths that stay where they are meant to be.

/// Longest relative path, bytes.
const PATH_BYTES_MAX: usize = 1024;

/// Why a path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadPath {
    Empty,
    Absolute,
    Parent,
    TooLong,
    Odd,
}

impl BadPath {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            BadPath::Empty => "is empty",
            BadPath::Absolute => "is absolute",
            BadPath::Parent => "leaves the directory with `..`",
            BadPath::TooLong => "is longer than 1024 bytes, or a part of it than 255",
            BadPath::Odd => "contains a control character",
        }
    }
}

/// `./a//b/` as `a/b`; `.` as the empty path. Refuses what is absolute, goes up, or no file system can hold.
pub(crate) fn relative(path: &str) -> Result<String, BadPath> {
    if path.is_empty() {
        return Err(BadPath::Empty);
    }
    if path.starts_with('/') {
        return Err(BadPath::Absolute);
    }
    if path.len() > PATH_BYTES_MAX || path.split('/').any(|part| part.len() > 255) {
        return Err(BadPath::TooLong);
    }
    if path.chars().any(char::is_control) {
        return Err(BadPath::Odd);
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(BadPath::Parent);
    }
    Ok(parts.join("/"))
}

/// True when `path` matches the pattern of a list output as the worker reads it: `*` and `?` within one component, no other
/// character is special, and neither matches a dot in front.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), path.split('/'));
    pattern.split('/').count() == path.split('/').count()
        && patterns.zip(parts).all(|(pattern, part)| matches_part(pattern, part))
}

fn matches_part(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Going back to the last star is all a mismatch needs.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(c), _) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, normal) in [("a/b", "a/b"), ("./a//b/", "a/b"), (".", ""), ("a b/é.csv", "a b/é.csv"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(relative(path).as_deref(), Ok(normal), "{path}");
        }
        for (path, why) in [
            ("", BadPath::Empty),
            ("/etc/passwd", BadPath::Absolute),
            ("..", BadPath::Parent),
            ("a/../../b", BadPath::Parent),
            ("a/..", BadPath::Parent),
            ("a\nb", BadPath::Odd),
            ("a\0b", BadPath::Odd),
        ] {
            assert_eq!(relative(path), Err(why), "{path:?}");
        }
        assert_eq!(relative(&"x".repeat(300)), Err(BadPath::TooLong));
        assert_eq!(relative(&"x/".repeat(700)), Err(BadPath::TooLong));
    }

    #[test]
    fn patterns_match_within_one_directory() {
        let yes = [
            ("*.nc", "a.nc"),
            ("out/*.nc", "out/a.nc"),
            ("a?c", "abc"),
            ("[ab]", "[ab]"),
            ("*", "x"),
            ("a*b*c", "aXbYbc"),
            (".*", ".x"),
        ];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        let no = [
            ("*.nc", "out/a.nc"),
            ("out/*", "out/a/b"),
            ("a?c", "a/c"),
            ("[ab]", "a"),
            ("*", ".x"),
            ("*.nc", "a.ncx"),
            ("a*b", "ac"),
        ];
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
