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

/// True when `path` matches a shell pattern with `*`, `?` and `[…]`, none of which matches `/`.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
    let (mut p, mut s) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while s < path.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, s));
                p += 1;
                continue;
            }
            Some('?') if path[s] != '/' => Some(p + 1),
            Some('[') => class(&pattern[p..], path[s]).map(|len| p + len),
            Some(c) if *c == path[s] => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => (p, s) = (next, s + 1),
            (None, Some((at, from))) if path[from] != '/' => {
                star = Some((at, from + 1));
                (p, s) = (at + 1, from + 1);
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Length of the class at the beginning of `pattern` when `c` is in it.
fn class(pattern: &[char], c: char) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let start = if negated { 2 } else { 1 };
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|p| *p == ']')?;
    let body = &pattern[start..end];
    let mut found = false;
    let mut at = 0;
    while at < body.len() {
        if at + 2 < body.len() && body[at + 1] == '-' {
            found |= (body[at]..=body[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= body[at] == c;
            at += 1;
        }
    }
    (found != negated && c != '/').then_some(end + 1)
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
        for (pattern, path) in [
            ("*.nc", "a.nc"),
            ("out/*.nc", "out/a.nc"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[!a]x", "bx"),
            ("*", "x"),
            ("a*b*c", "aXbYc"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.nc", "out/a.nc"),
            ("out/*", "out/a/b"),
            ("a?c", "a/c"),
            ("[a-c]x", "dx"),
            ("[!a]x", "ax"),
            ("[a", "a"),
            ("*.nc", "a.ncx"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
