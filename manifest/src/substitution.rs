//! `{…}` in commands and environments: read into pieces, every field checked against what the task has.

use std::ops::Range;

use scalable_proto::v1::{Builtin, Piece, Text, piece::Kind};

use crate::diagnostic::{At, Sink, show, show_names, suggestion};
use crate::node::Node;

/// Names that `{…}` always knows. No parameter may have one of them.
pub(crate) const BUILTINS: [(&str, Builtin); 8] = [
    ("workdir", Builtin::Workdir),
    ("index", Builtin::Index),
    ("run", Builtin::Run),
    ("group", Builtin::Group),
    ("attempt", Builtin::Attempt),
    ("task_id", Builtin::TaskId),
    ("cpus", Builtin::Cpus),
    ("memory", Builtin::Memory),
];

/// What the fields of one task can be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub parameters: Vec<String>,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// The parameters could not be read: a field may be one of them.
    pub parameters_unknown: bool,
}

impl Known {
    fn all(&self) -> Vec<String> {
        let mut names = self.parameters.clone();
        names.extend(self.inputs.iter().map(|name| format!("inputs.{name}")));
        names.extend(self.outputs.iter().map(|name| format!("outputs.{name}")));
        names.extend(BUILTINS.iter().map(|(name, _)| (*name).to_owned()));
        names
    }

    fn piece(&self, field: &str) -> Option<Kind> {
        if let Some(input) = field.strip_prefix("inputs.") {
            if self.inputs.iter().any(|name| name == input) {
                return Some(Kind::Input(input.to_owned()));
            }
            let input = input.strip_suffix(".list").filter(|input| self.inputs.iter().any(|name| name == input))?;
            return Some(Kind::InputList(input.to_owned()));
        }
        if let Some(output) = field.strip_prefix("outputs.") {
            return self.outputs.iter().any(|name| name == output).then(|| Kind::Output(output.to_owned()));
        }
        if self.parameters.iter().any(|name| name == field) {
            return Some(Kind::Parameter(field.to_owned()));
        }
        BUILTINS.iter().find(|(name, _)| *name == field).map(|(_, builtin)| Kind::Builtin(*builtin as i32))
    }
}

/// The scalar at `node` as a text with substitutions. Numbers and booleans are taken as written. Nothing when it is a list or
/// mapping; wrong fields are reported and the rest is still read.
pub(crate) fn text(node: &Node, path: &str, known: &Known, sink: &mut Sink) -> Option<Text> {
    let Some(scalar) = node.scalar() else {
        let message = format!("'{path}' must be a string, got {}", node.type_name());
        let help = node.map().map(|_| "a value that begins with `{` is written in quotes".to_owned());
        sink.error("E_TYPE", path, node.at, message).maybe_help(help);
        return None;
    };
    if scalar.text.contains('\0') {
        sink.error("E_NUL", path, node.at, format!("'{path}' contains a NUL byte, which no command can be given"));
        return None;
    }
    Some(parse(node.as_text().unwrap_or_default(), &scalar.literal, path, node.at, known, sink))
}

fn parse(text: &str, literal: &[Range<usize>], path: &str, at: At, known: &Known, sink: &mut Sink) -> Text {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut plain = String::new();
    let mut pos = 0;
    while pos < text.len() {
        if let Some(range) = literal.iter().find(|range| range.start == pos && range.end > pos) {
            plain.push_str(&text[range.clone()]);
            pos = range.end;
            continue;
        }
        let rest = &text[pos..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            plain.push_str(&rest[..1]);
            pos += 2;
        } else if rest.starts_with('}') {
            sink.error("E_BRACE", path, at, "`}` without `{`").help("a brace is written `}}`");
            pos += 1;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let Some(end) = inner.find(['{', '}']).filter(|end| inner[*end..].starts_with('}')) else {
                sink.error("E_BRACE", path, at, "`{` is never closed").help("a brace is written `{{`");
                pos += 1;
                continue;
            };
            match known.piece(&inner[..end]) {
                Some(kind) => {
                    flush(&mut plain, &mut pieces);
                    pieces.push(Piece { kind: Some(kind) });
                }
                None if known.parameters_unknown && !inner[..end].contains('.') => {}
                None => unknown(&inner[..end], text[..pos].ends_with('$'), path, at, known, sink),
            }
            pos += end + 2;
        } else {
            let next = literal.iter().map(|range| range.start).filter(|start| *start > pos).min().unwrap_or(text.len());
            let until = rest.find(['{', '}']).map_or(text.len(), |brace| pos + brace).min(next);
            plain.push_str(&text[pos..until]);
            pos = until;
        }
    }
    flush(&mut plain, &mut pieces);
    Text { pieces }
}

fn flush(plain: &mut String, pieces: &mut Vec<Piece>) {
    if !plain.is_empty() {
        pieces.push(Piece { kind: Some(Kind::Literal(std::mem::take(plain))) });
    }
}

fn unknown(field: &str, after_dollar: bool, path: &str, at: At, known: &Known, sink: &mut Sink) {
    let all = known.all();
    let names = show_names(all.iter().map(String::as_str));
    let message = format!("`{{{}}}` is not a field of this task; known: {names}", show(field));
    let help = if after_dollar {
        format!("`$${{{0}}}` is `${{{0}}}` as it stands; braces are written `{{{{` and `}}}}`", show(field))
    } else {
        suggestion(field, all.iter().map(String::as_str)).unwrap_or_else(|| "braces are written `{{` and `}}`".to_owned())
    };
    sink.error("E_UNKNOWN_FIELD", path, at, message).help(help);
}

/// The text when it holds no substitution.
pub(crate) fn literal_text(text: &Text) -> Option<String> {
    text.pieces.iter().map(|piece| if let Some(Kind::Literal(part)) = &piece.kind { Some(part.as_str()) } else { None }).collect()
}
