//! The environment in values: `${NAME}` and `${NAME:-default}`; `$${…}` is `${…}` as it stands. Nothing else with `$` is touched.

use crate::diagnostic::{Sink, show};
use crate::node::{Node, Scalar, Value, resolve};

/// Longest text after expansion, bytes.
const EXPANDED_BYTES_MAX: usize = 1 << 20;

/// Expands every value below `node`, keys excepted.
pub(crate) fn expand(node: &mut Node, path: &str, env: &dyn Fn(&str) -> Option<String>, sink: &mut Sink) {
    let at = node.at;
    match &mut node.value {
        Value::Seq(items) => {
            for (nth, item) in items.iter_mut().enumerate() {
                expand(item, &format!("{path}[{nth}]"), env, sink);
            }
        }
        Value::Map(entries) => {
            for (key, value) in entries {
                let path = if path.is_empty() { show(&key.text) } else { format!("{path}.{}", show(&key.text)) };
                expand(value, &path, env, sink);
            }
        }
        Value::Scalar(scalar) if scalar.text.contains("${") => match expand_scalar(scalar, env) {
            Ok(expanded) => *scalar = expanded,
            Err(Problem::Unset(name)) => {
                let message = format!(
                    "environment variable '{name}' referenced in manifest is not set and no default (${{{name}:-...}}) was provided"
                );
                sink.error("E_ENV_UNSET", path, at, message).help(format!("set it, or write ${{{name}:-default}}"));
            }
            Err(Problem::TooLong) => {
                sink.error("E_TOO_LARGE", path, at, format!("the value is longer than {EXPANDED_BYTES_MAX} bytes once expanded"));
            }
            Err(Problem::Open) => {
                sink.error("E_BRACE", path, at, "`$${` is never closed").help("write the closing brace");
            }
        },
        Value::Scalar(_) => {}
    }
}

enum Problem {
    Unset(String),
    TooLong,
    Open,
}

fn expand_scalar(scalar: &Scalar, env: &dyn Fn(&str) -> Option<String>) -> Result<Scalar, Problem> {
    let mut out = Scalar { text: String::new(), literal: Vec::new(), ..scalar.clone() };
    let mut rest = scalar.text.as_str();
    while let Some(dollar) = rest.find('$') {
        out.text.push_str(&rest[..dollar]);
        rest = &rest[dollar..];
        if rest.starts_with("$${") {
            let end = closing(&rest[2..]).ok_or(Problem::Open)? + 2;
            out.keep(&rest[1..=end]);
            rest = &rest[end + 1..];
        } else if let Some((name, default, len)) = reference(rest) {
            let value = env(name).or_else(|| default.map(str::to_owned)).ok_or_else(|| Problem::Unset(name.to_owned()))?;
            out.keep(&value);
            out.expanded = true;
            rest = &rest[len..];
        } else {
            out.text.push('$');
            rest = &rest[1..];
        }
        if out.text.len() > EXPANDED_BYTES_MAX {
            return Err(Problem::TooLong);
        }
    }
    out.text.push_str(rest);
    if out.expanded && out.plain {
        out.kind = resolve(&out.text);
    }
    Ok(out)
}

impl Scalar {
    fn keep(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.literal.push(start..self.text.len());
    }
}

/// Position of the brace that closes the one `text` begins with.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 1 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Name, default and length of a reference at the beginning of `text`; nothing when it is none.
fn reference(text: &str) -> Option<(&str, Option<&str>, usize)> {
    let inner = text.strip_prefix("${")?;
    let end = inner.find('}')?;
    let (name, default) = match inner[..end].split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (&inner[..end], None),
    };
    let first = name.bytes().next()?;
    let valid = (first.is_ascii_alphabetic() || first == b'_') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    valid.then_some((name, default, end + 3))
}
