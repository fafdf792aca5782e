//! Reading a mapping field by field: unknown keys are named with a suggestion, wrong types with what is expected.

use crate::diagnostic::{At, Sink, show, suggestion};
use crate::node::{Key, Node};
use crate::units;

/// Longest name of a task, component, target, parameter, input or output, bytes.
pub(crate) const NAME_BYTES_MAX: usize = 100;
/// Longest free text of an option, bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// A mapping that is being read, with its path for messages.
pub(crate) struct Fields<'n> {
    pub path: String,
    pub at: At,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    /// The mapping at `node`, or an error. Null counts as empty.
    pub(crate) fn open(node: &'n Node, path: &str, sink: &mut Sink) -> Option<Fields<'n>> {
        let entries = match node.map() {
            Some(entries) => entries,
            None if node.is_null() => &[],
            None => {
                sink.error("E_TYPE", path, node.at, format!("'{path}' must be a mapping, got {}", node.type_name()));
                return None;
            }
        };
        Some(Fields { path: path.to_owned(), at: node.at, entries })
    }

    /// Reports every key that is not in `known`.
    pub(crate) fn only(&self, known: &[&str], sink: &mut Sink) {
        self.only_hinting(known, &[], sink);
    }

    /// As [`Fields::only`]; `hints` say what to do about keys that other tools have.
    pub(crate) fn only_hinting(&self, known: &[&str], hints: &[(&str, &str)], sink: &mut Sink) {
        for (key, _) in self.entries {
            if !known.contains(&key.text.as_str()) {
                let mut sorted = known.to_vec();
                sorted.sort_unstable();
                let allowed = sorted.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
                let message = format!("unknown '{}' key(s): {} (allowed: [{allowed}])", self.path, show(&key.text));
                let hint = hints.iter().find(|(name, _)| *name == key.text).map(|(_, hint)| (*hint).to_owned());
                let help = hint.or_else(|| suggestion(&key.text, known.iter().copied()));
                sink.error("E_UNKNOWN_KEY", &self.child(&key.text), key.at, message).maybe_help(help);
            }
        }
    }

    pub(crate) fn child(&self, key: &str) -> String {
        if self.path.is_empty() { show(key) } else { format!("{}.{}", self.path, show(key)) }
    }

    pub(crate) fn entries(&self) -> &'n [(Key, Node)] {
        self.entries
    }

    /// The value of a key; null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, _)| k.text == key).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// Where a key stands, else where the mapping does.
    pub(crate) fn key_at(&self, key: &str) -> At {
        self.entries.iter().find(|(k, _)| k.text == key).map_or(self.at, |(k, _)| k.at)
    }

    fn read<T>(
        &self,
        key: &str,
        code: &'static str,
        expected: &str,
        sink: &mut Sink,
        read: impl Fn(&'n Node) -> Option<T>,
    ) -> Option<T> {
        let node = self.get(key)?;
        let value = read(node);
        if value.is_none() {
            sink.error(
                code,
                &self.child(key),
                node.at,
                format!("'{}' must be {expected} (got {})", self.child(key), describe(node)),
            );
        }
        value
    }

    pub(crate) fn text(&self, key: &str, sink: &mut Sink) -> Option<String> {
        self.text_coded(key, "E_TYPE", sink)
    }

    pub(crate) fn text_coded(&self, key: &str, code: &'static str, sink: &mut Sink) -> Option<String> {
        let valid =
            |node: &'n Node| node.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX && !text.contains('\0')).map(str::to_owned);
        self.read(key, code, "a string when set", sink, valid)
    }

    pub(crate) fn bool_coded(&self, key: &str, code: &'static str, sink: &mut Sink) -> Option<bool> {
        self.read(key, code, "a boolean when set", sink, Node::as_bool)
    }

    pub(crate) fn bool(&self, key: &str, sink: &mut Sink) -> Option<bool> {
        self.bool_coded(key, "E_TYPE", sink)
    }

    pub(crate) fn int(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        code: &'static str,
        sink: &mut Sink,
    ) -> Option<i64> {
        let expected = match (*range.start(), *range.end()) {
            (1, i64::MAX) => "a positive integer".to_owned(),
            (1, end) => format!("a positive integer up to {end}"),
            (start, end) => format!("an integer from {start} to {end}"),
        };
        self.read(key, code, &expected, sink, |node| node.as_int().filter(|n| range.contains(n)))
    }

    pub(crate) fn cpus(&self, key: &str, sink: &mut Sink) -> Option<u64> {
        self.read(key, "E_BAD_CPUS", "a positive number of cpus such as 2, 0.5 or 500m", sink, units::cpus)
    }

    pub(crate) fn duration(&self, key: &str, sink: &mut Sink) -> Option<u64> {
        self.read(key, "E_BAD_DURATION", "a duration such as 90s, 10m, 1h30m or 12:00:00", sink, units::duration)
    }

    /// A duration above zero.
    pub(crate) fn positive_duration(&self, key: &str, sink: &mut Sink) -> Option<u64> {
        let positive = |node: &'n Node| units::duration(node).filter(|millis| *millis > 0);
        self.read(key, "E_BAD_DURATION", "a duration above zero such as 90s, 10m, 1h30m or 12:00:00", sink, positive)
    }

    pub(crate) fn factor(&self, key: &str, sink: &mut Sink) -> Option<u32> {
        self.read(key, "E_BAD_FACTOR", "a factor from 1 to 100 such as 1.5", sink, units::factor)
    }

    /// Memory with the original's three complaints.
    pub(crate) fn memory(&self, key: &str, sink: &mut Sink) -> Option<u64> {
        let node = self.get(key)?;
        let path = self.child(key);
        let Some(text) = node.as_str() else {
            let message = format!("'{path}' must be a string when set (e.g. '8G', '500MB'); got {}", node.type_name());
            sink.error("E_TYPE", &path, node.at, message);
            return None;
        };
        match units::memory(text) {
            Ok(bytes) => Some(bytes),
            Err(units::BadMemory::Malformed) => {
                let message = format!("could not parse memory value '{}'", show(text));
                sink.error("E_BAD_MEMORY", &path, node.at, message).help("write for example 8G, 500MB or 16Gi");
                None
            }
            Err(units::BadMemory::NotPositive) => {
                sink.error("E_NONPOSITIVE_MEMORY", &path, node.at, format!("memory must be positive, got '{}'", show(text)));
                None
            }
        }
    }

    /// A list of strings, or one string.
    pub(crate) fn texts(&self, key: &str, sink: &mut Sink) -> Vec<(String, At)> {
        let Some(node) = self.get(key) else { return Vec::new() };
        let items = match node.seq() {
            Some(items) => items,
            None => std::slice::from_ref(node),
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX && !text.contains('\0')) {
                Some(text) => texts.push((text.to_owned(), item.at)),
                None => {
                    let message = format!("'{}' must be a list of strings (got {})", self.child(key), describe(item));
                    sink.error("E_TYPE", &self.child(key), item.at, message);
                }
            }
        }
        texts
    }
}

/// A value in a message: scalars as written, the rest by type.
pub(crate) fn describe(node: &Node) -> String {
    match node.scalar() {
        Some(scalar) if scalar.plain => show(&scalar.text),
        Some(scalar) => format!("'{}'", show(&scalar.text)),
        None => node.type_name().to_owned(),
    }
}

/// Checks a name that becomes part of file names, labels and command lines.
pub(crate) fn check_name(name: &str, what: &str, path: &str, at: At, sink: &mut Sink) -> bool {
    const RULE: &str = "use letters, digits, `_`, `-` and `.`, beginning with a letter or digit";
    let problem = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("is {} bytes long, at most {NAME_BYTES_MAX} are possible", name.len())
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
        let odd = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"_-.".contains(*c)).map(|c| c.escape_debug().to_string());
        format!("contains `{}`", odd.unwrap_or_default())
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        "does not begin with a letter or digit".to_owned()
    } else {
        return true;
    };
    sink.error("E_BAD_NAME", path, at, format!("the name of {what} `{}` {problem}", show(name))).help(RULE);
    false
}

/// Checks a name that can stand in `{…}`: of a parameter, input or output.
pub(crate) fn check_field_name(name: &str, what: &str, path: &str, at: At, sink: &mut Sink) -> bool {
    if !check_name(name, what, path, at, sink) {
        return false;
    }
    if name.contains('.') || !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let message = format!("the name of {what} `{name}` cannot stand in `{{…}}`");
        sink.error("E_BAD_NAME", path, at, message).help("begin with a letter and use letters, digits, `_` and `-`");
        return false;
    }
    true
}
