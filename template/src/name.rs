//! Readable names that are safe as one component of a path, whatever the values hold.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Longest readable name of an element, bytes. File systems allow 255; the rest is left to suffixes.
pub const ELEMENT_NAME_BYTES_MAX: usize = 200;
/// What is left of a name that is cut, before `~` and 32 hex digits of its digest.
const CUT_BYTES: usize = 160;

/// `value` as part of a file name: `/`, `\`, `%`, `,`, `=`, `~`, `[`, `]`, control characters, line separators and characters
/// that change the direction of writing are percent-encoded byte by byte, and so is a dot in front. Everything else stays as
/// it is, other scripts and emoji too. Two different values never give the same text.
pub fn file_safe(value: &str) -> Cow<'_, str> {
    let plain = |at: usize, c: char| !must_escape(c) && (at > 0 || c != '.');
    if value.char_indices().all(|(at, c)| plain(at, c)) {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len() + 8);
    for (at, c) in value.char_indices() {
        if plain(at, c) {
            out.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    Cow::Owned(out)
}

fn must_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '/' | '\\' | '%' | ',' | '=' | '~' | '[' | ']')
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// Undoes [`file_safe`]; nothing when an escape is not two hex digits or the bytes are not UTF-8.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            out.push(byte);
            rest = after;
        }
    }
    String::from_utf8(out).ok()
}

/// `a=1,b=2`, cut to [`ELEMENT_NAME_BYTES_MAX`] with a digest of the whole.
pub(crate) fn element_name(values: &[(&str, Cow<'_, str>)], index: Option<u32>) -> String {
    let mut name = String::new();
    for (parameter, value) in values {
        if !name.is_empty() {
            name.push(',');
        }
        name.push_str(&file_safe(parameter));
        name.push('=');
        name.push_str(&file_safe(value));
    }
    if let Some(index) = index {
        let _ = write!(name, ",index={index}");
    }
    if name.len() > ELEMENT_NAME_BYTES_MAX {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        let mut end = CUT_BYTES;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push('~');
        name.push_str(&digest[..32]);
    }
    name
}

/// `group[element]`, or `group` alone for a group of one.
pub(crate) fn join_name(group: &str, element: &str) -> String {
    if element.is_empty() { group.to_owned() } else { format!("{group}[{element}]") }
}
