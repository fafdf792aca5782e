//! A structural digest of a function's parameters and result: two programs whose digests are equal understand each other's bytes.
//!
//! Serde does not say what a type looks like, but its `Deserialize` asks for one part after the other. A deserializer that answers
//! every question with some value and writes the questions down sees the structure: names of structs, fields and variants, their
//! order and their types. An enum is visited until every variant was seen; a type that contains itself is entered once.
//!
//! **Limits.** A type that does not accept the values it is given (a date that wants to be parsed, a number with a range) is written
//! down as far as it asked, then by its Rust name. Types that differ only in what they make of equal bytes are equal.

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use crate::function::Task;

/// Visits of one type at most: more variants than this in all are not looked at.
const VISITS_MAX: usize = 4096;
/// Parts within parts at most.
const DEPTH_MAX: usize = 64;

/// The digest of a task, for a lane host: types that cannot travel are refused where they are submitted.
pub(crate) fn of<F: Task>() -> [u8; 32] {
    checked::<F>().unwrap_or_else(|_| *blake3::hash(type_name::<(F::Parameters, F::Output)>().as_bytes()).as_bytes())
}

/// The digest of a task, computed once.
///
/// # Errors
/// When a type asks what comes next, which the codec cannot say: one sentence.
pub(crate) fn checked<F: Task>() -> Result<[u8; 32], String> {
    type Known = Mutex<FxHashMap<&'static str, Result<[u8; 32], String>>>;
    static KNOWN: LazyLock<Known> = LazyLock::new(Mutex::default);
    let known = |name| KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
    if let Some(digest) = known(F::FUNCTION.name) {
        return digest;
    }
    let digest = digest::<F::Parameters, F::Output>();
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(F::FUNCTION.name, digest.clone());
    digest
}

fn digest<P: DeserializeOwned, T: DeserializeOwned>() -> Result<[u8; 32], String> {
    let text = format!("scalable signature v1\n{}\n{}", describe::<P>()?, describe::<T>()?);
    Ok(*blake3::hash(text.as_bytes()).as_bytes())
}

/// A type as its `Deserialize` asks for it.
fn describe<T: DeserializeOwned>() -> Result<String, String> {
    let mut seen = Seen::default();
    for _ in 0..VISITS_MAX {
        seen.text.clear();
        seen.entered.clear();
        seen.chosen.clear();
        seen.again = false;
        match T::deserialize(Trace { seen: &mut seen, depth: 0 }) {
            Ok(_) => {}
            Err(Stop::AsksWhatComesNext) => {
                return Err(format!("{} asks the format what comes next, which the encoding does not say", type_name::<T>()));
            }
            Err(Stop::TooDeep) => {
                if !seen.turn_away() {
                    seen.opaque = true;
                    break;
                }
                continue;
            }
            Err(Stop::NotAccepted(_)) => seen.opaque = true,
        }
        if !seen.again {
            break;
        }
    }
    let mut text = seen.text;
    if seen.opaque {
        text.push_str(" as ");
        text.push_str(type_name::<T>());
    }
    for (name, forms) in seen.definitions {
        for form in forms {
            text.push('\n');
            text.push_str(&name);
            text.push_str(&form);
        }
    }
    Ok(text)
}

/// What is known of an enum.
#[derive(Debug, Default)]
struct Variants {
    /// Which to enter next.
    next: u32,
    /// Which ends soonest, as far as is known: for an enum within itself.
    leaf: u32,
}

/// What was asked for.
#[derive(Debug, Default)]
struct Seen {
    text: String,
    definitions: BTreeMap<String, BTreeSet<String>>,
    enums: BTreeMap<String, Variants>,
    /// Names of the types that are being visited, outermost first.
    entered: Vec<String>,
    /// The enum that was entered last.
    last: Option<String>,
    /// Which variants this visit enters.
    chosen: Vec<(String, u32)>,
    /// Another visit will see more.
    again: bool,
    /// A visit was not accepted.
    opaque: bool,
}

impl Seen {
    /// After a visit that came to no end: an enum within itself takes its next variant from now on, and the visit is made again. False
    /// when all were tried.
    fn turn_away(&mut self) -> bool {
        for (name, variant) in self.chosen.drain(..).rev() {
            if let Some(variants) = self.enums.get_mut(&name) {
                variants.next = variant;
            }
        }
        match self.last.as_ref().and_then(|name| self.enums.get_mut(name)) {
            Some(variants) if variants.leaf < 64 => {
                variants.leaf += 1;
                true
            }
            _ => false,
        }
    }
}

/// Why a visit ended early.
#[derive(Debug)]
enum Stop {
    AsksWhatComesNext,
    TooDeep,
    NotAccepted(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::AsksWhatComesNext => f.write_str("it asks what comes next"),
            Stop::TooDeep => f.write_str("it contains itself without end"),
            Stop::NotAccepted(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Stop::NotAccepted(message.to_string())
    }
}

/// The deserializer that answers and writes down.
struct Trace<'a> {
    seen: &'a mut Seen,
    depth: usize,
}

impl Trace<'_> {
    fn write(&mut self, word: &str) {
        self.seen.text.push(' ');
        self.seen.text.push_str(word);
    }

    fn inner(&mut self) -> Trace<'_> {
        Trace { seen: self.seen, depth: self.depth + 1 }
    }

    /// A part with a name: what `visit` writes is its definition. Within itself it is not entered again, as far as it can be avoided.
    fn named<V>(mut self, name: &str, visit: impl FnOnce(&mut Trace<'_>) -> Result<V, Stop>) -> Result<V, Stop> {
        self.write(name);
        if self.depth >= DEPTH_MAX {
            return Err(Stop::TooDeep);
        }
        let within = self.seen.entered.iter().any(|entered| entered == name);
        let outer = std::mem::take(&mut self.seen.text);
        self.seen.entered.push(name.to_owned());
        let visited = visit(&mut self.inner());
        self.seen.entered.pop();
        let form = std::mem::replace(&mut self.seen.text, outer);
        if visited.is_ok() && !within {
            self.seen.definitions.entry(name.to_owned()).or_default().insert(form);
        }
        visited
    }

    /// True when a type is being visited within itself: what may be absent is then.
    fn is_within(&self) -> bool {
        let entered = &self.seen.entered;
        entered.iter().enumerate().any(|(at, name)| entered[..at].contains(name))
    }
}

macro_rules! plain {
    ($($ask:ident $visit:ident $value:expr;)*) => {
        $(fn $ask<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
            self.write(stringify!($ask).trim_start_matches("deserialize_"));
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Trace<'_> {
    type Error = Stop;

    fn is_human_readable(&self) -> bool {
        false
    }

    // 1 and not 0: it is accepted by more types, `NonZeroU32` for one.
    plain! {
        deserialize_bool visit_bool false;
        deserialize_i8 visit_i8 1;
        deserialize_i16 visit_i16 1;
        deserialize_i32 visit_i32 1;
        deserialize_i64 visit_i64 1;
        deserialize_i128 visit_i128 1;
        deserialize_u8 visit_u8 1;
        deserialize_u16 visit_u16 1;
        deserialize_u32 visit_u32 1;
        deserialize_u64 visit_u64 1;
        deserialize_u128 visit_u128 1;
        deserialize_f32 visit_f32 1.0;
        deserialize_f64 visit_f64 1.0;
        deserialize_char visit_char 'a';
        deserialize_str visit_borrowed_str "";
        deserialize_string visit_string String::new();
        deserialize_bytes visit_borrowed_bytes &[];
        deserialize_byte_buf visit_byte_buf Vec::new();
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop::AsksWhatComesNext)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop::AsksWhatComesNext)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop::AsksWhatComesNext)
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.write("option");
        if self.is_within() { visitor.visit_none() } else { visitor.visit_some(self.inner()) }
    }

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.write("unit");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(mut self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.write(name);
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.named(name, |inner| visitor.visit_newtype_struct(inner.inner()))
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.write("seq");
        let left = usize::from(!self.is_within());
        visitor.visit_seq(Parts { trace: self.inner(), left, names: &[] })
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.write(&format!("tuple {length}"));
        visitor.visit_seq(Parts { trace: self.inner(), left: length, names: &[] })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.named(name, |inner| visitor.visit_seq(Parts { trace: inner.inner(), left: length, names: &[] }))
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stop> {
        self.write("map");
        let left = usize::from(!self.is_within());
        visitor.visit_map(Parts { trace: self.inner(), left, names: &[] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.named(name, |inner| visitor.visit_seq(Parts { trace: inner.inner(), left: fields.len(), names: fields }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.write(name);
        if variants.is_empty() {
            return Err(Stop::NotAccepted("an enum without variants".to_owned()));
        }
        // Enums of one name and different variants are different.
        let key = format!("enum {name} {variants:?}");
        let within = self.seen.entered.contains(&key);
        let count = variants.len() as u32;
        let known = self.seen.enums.entry(key.clone()).or_default();
        let variant = if within { known.leaf % count } else { known.next.min(count - 1) };
        if !within {
            known.next = variant + 1;
            self.seen.again |= variant + 1 < count;
            self.seen.chosen.push((key.clone(), variant));
        }
        self.seen.last = Some(key.clone());
        if self.depth >= DEPTH_MAX {
            return Err(Stop::TooDeep);
        }
        let outer = std::mem::take(&mut self.seen.text);
        self.seen.entered.push(key.clone());
        let visited = visitor.visit_enum(Chosen { trace: self.inner(), variant });
        self.seen.entered.pop();
        let form = std::mem::replace(&mut self.seen.text, outer);
        if visited.is_ok() && !within {
            let form = format!(" {}{form}", variants[variant as usize]);
            self.seen.definitions.entry(key).or_default().insert(form);
        }
        visited
    }
}

/// The parts of a sequence, tuple, struct or map.
struct Parts<'a> {
    trace: Trace<'a>,
    left: usize,
    names: &'static [&'static str],
}

impl Parts<'_> {
    fn next(&mut self) -> Result<bool, Stop> {
        if self.left == 0 {
            return Ok(false);
        }
        if self.trace.depth >= DEPTH_MAX {
            return Err(Stop::TooDeep);
        }
        if let Some(name) = self.names.get(self.names.len().wrapping_sub(self.left)) {
            self.trace.write(name);
            self.trace.seen.text.push(':');
        }
        self.left -= 1;
        Ok(true)
    }
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        if self.next()? { seed.deserialize(self.trace.inner()).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Parts<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        if self.next()? { seed.deserialize(self.trace.inner()).map(Some) } else { Ok(None) }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        seed.deserialize(self.trace.inner())
    }
}

/// The variant that is entered.
struct Chosen<'a> {
    trace: Trace<'a>,
    variant: u32,
}

impl<'de, 'a> EnumAccess<'de> for Chosen<'a> {
    type Error = Stop;
    type Variant = Chosen<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), Stop> {
        let value = seed.deserialize(IntoDeserializer::<Stop>::into_deserializer(self.variant))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Chosen<'_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Stop> {
        seed.deserialize(self.trace.inner())
    }

    fn tuple_variant<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_seq(Parts { trace: self.trace.inner(), left: length, names: &[] })
    }

    fn struct_variant<V: Visitor<'de>>(mut self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_seq(Parts { trace: self.trace.inner(), left: fields.len(), names: fields })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, dead_code)]
mod tests {
    use super::*;
    use serde::Deserialize;

    mod before {
        use serde::Deserialize;
        #[derive(Deserialize)]
        pub(super) struct Scenario {
            pub(super) name: String,
            pub(super) years: u32,
        }
    }
    mod after {
        use serde::Deserialize;
        #[derive(Deserialize)]
        pub(super) struct Scenario {
            pub(super) name: String,
            pub(super) years: u64,
        }
    }
    #[derive(Deserialize)]
    enum Expression {
        Add(Box<Expression>, Box<Expression>),
        Call { name: String, arguments: Vec<Expression> },
        Literal(f64),
        Nothing,
    }
    #[derive(Deserialize)]
    struct Tree {
        value: u8,
        children: Vec<Tree>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
        Text(String),
    }

    fn equal<A: DeserializeOwned, B: DeserializeOwned>() -> bool {
        digest::<(A,), ()>().unwrap() == digest::<(B,), ()>().unwrap()
    }

    #[test]
    fn a_field_of_another_type_is_another_signature() {
        assert!(!equal::<before::Scenario, after::Scenario>());
        assert!(!equal::<Option<before::Scenario>, Option<after::Scenario>>(), "also inside of others");
        assert!(!equal::<Vec<u32>, Vec<u64>>());
        assert!(equal::<Vec<u32>, std::collections::VecDeque<u32>>(), "equal bytes are equal");
        assert!(equal::<before::Scenario, before::Scenario>());
        assert!(!equal::<(u32, String), (String, u32)>());
    }

    #[test]
    fn every_variant_is_seen_and_a_type_within_itself_is_entered_once() {
        let text = describe::<Expression>().unwrap();
        for part in ["Add Expression Expression", "name: string arguments: seq Expression", "Literal f64", "Nothing"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(describe::<Tree>().unwrap().contains("value: u8 children: seq Tree"), "{}", describe::<Tree>().unwrap());
        let both = describe::<(Option<Expression>, std::result::Result<u8, String>)>().unwrap();
        assert!(both.contains("Literal f64") && both.contains("Ok u8") && both.contains("Err string"), "{both}");
    }

    #[test]
    fn what_asks_the_format_is_refused() {
        assert!(describe::<Untagged>().unwrap_err().contains("asks the format"));
        assert!(describe::<Vec<Untagged>>().is_err());
    }

    #[test]
    fn values_with_conditions_are_named() {
        assert!(describe::<std::num::NonZeroU32>().unwrap().contains("u32"));
        let address = describe::<std::net::IpAddr>().unwrap();
        assert!(address.contains("V4") && address.contains("V6"), "{address}");
    }
}
