//! A YAML document as a small tree in which every key and value knows its line and column.

use std::ops::Range;

use serde_json::{Map, Number, Value as Json};

use crate::diagnostic::At;

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Value,
    pub at: At,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    Seq(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key with its place.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub text: String,
    pub at: At,
}

/// A scalar: its text as written (without quotes) and what YAML makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    pub text: String,
    pub kind: Kind,
    /// Written without quotes.
    pub plain: bool,
    /// Something of it came from the environment: a plain scalar then serves as string or number, whichever is asked for.
    pub expanded: bool,
    /// Parts of `text` in which braces are no substitutions: values from the environment, and `${…}` written as `$${…}`.
    pub literal: Vec<Range<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str,
}

impl Scalar {
    pub(crate) fn new(text: String, plain: bool) -> Scalar {
        let kind = if plain { resolve(&text) } else { Kind::Str };
        Scalar { text, kind, plain, expanded: false, literal: Vec::new() }
    }
}

/// What a plain scalar means. Both YAML 1.1 and 1.2 spellings of booleans; `12:00:00` is a string.
pub(crate) fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Kind::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Kind::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" => return Kind::Str,
        _ => {}
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Kind::Str;
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_or(Kind::Str, Kind::Int);
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(number) = digits.strip_prefix(prefix)
            && !number.is_empty()
            && number.chars().all(|c| c.is_digit(radix))
        {
            let negative = text.starts_with('-');
            return i64::from_str_radix(number, radix).map_or(Kind::Str, |n| Kind::Int(if negative { -n } else { n }));
        }
    }
    let float = digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)) && digits.bytes().any(|b| b.is_ascii_digit());
    match text.parse::<f64>() {
        Ok(number) if float && number.is_finite() => Kind::Float(number),
        _ => Kind::Str,
    }
}

impl Node {
    /// The word for what it is, as the original says it.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.value {
            Value::Seq(_) => "list",
            Value::Map(_) => "mapping",
            Value::Scalar(scalar) => match scalar.kind {
                Kind::Null => "null",
                Kind::Bool(_) => "bool",
                Kind::Int(_) => "int",
                Kind::Float(_) => "float",
                Kind::Str => "str",
            },
        }
    }

    pub(crate) fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub(crate) fn map(&self) -> Option<&[(Key, Node)]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    pub(crate) fn seq(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Seq(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { kind: Kind::Null, .. }))
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.map()?.iter().find(|(k, _)| k.text == key).map(|(_, value)| value)
    }

    /// A string: quoted, or plain and not read as something else.
    pub(crate) fn as_str(&self) -> Option<&str> {
        let scalar = self.scalar()?;
        (scalar.kind == Kind::Str || (scalar.expanded && scalar.plain)).then_some(scalar.text.as_str())
    }

    /// The text of any scalar as it was written; null is empty.
    pub(crate) fn as_text(&self) -> Option<&str> {
        let scalar = self.scalar()?;
        Some(if scalar.kind == Kind::Null { "" } else { scalar.text.as_str() })
    }

    /// A boolean in either spelling, also quoted `"yes"` where the environment gave it.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self.scalar()?.kind {
            Kind::Bool(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn as_int(&self) -> Option<i64> {
        match self.scalar()?.kind {
            Kind::Int(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Seq(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(k, v)| (k.text.clone(), v.to_json())).collect::<Map<_, _>>())
            }
            Value::Scalar(scalar) => match scalar.kind {
                Kind::Null => Json::Null,
                Kind::Bool(value) => Json::Bool(value),
                Kind::Int(value) => Json::Number(value.into()),
                Kind::Float(value) => Number::from_f64(value).map_or(Json::Null, Json::Number),
                Kind::Str => Json::String(scalar.text.clone()),
            },
        }
    }
}
