//! From the written tree to typed values, with errors that say file, line, key path, what was expected and what was found.

use super::written::{Entry, Node, Origin, Written};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, MapAccess, SeqAccess, Unexpected, Visitor,
};
use std::fmt;

/// Reads a `T` from `tree`. `path` is the key path of `tree` itself, empty at the root.
///
/// # Errors
///
/// One message: `file:line: key.path: expected …, found …`, with the nearest known name where a name is not known.
pub fn from_written<T: DeserializeOwned>(tree: &Written, path: &str) -> Result<T, Error> {
    let value = De { tree, path: path.to_string() };
    let located = value.place();
    T::deserialize(value).map_err(|e| e.at(located))
}

/// The name among `known` that is nearest to `name`, if one is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// An error with its place: `file:line: key.path: message`.
#[derive(Debug)]
pub struct Error {
    message: String,
    help: Option<String>,
    place: Option<String>,
}

impl Error {
    fn at(mut self, place: String) -> Error {
        self.place.get_or_insert(place);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n  help: {help}"))
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Error {
        Error { message: message.to_string(), help: None, place: None }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Error {
        de::Error::custom(format!("expected {}, found {}", plain(expected), shown(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Error {
        unknown("a known value", found, expected)
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Error {
        unknown("a known key", found, expected)
    }

    fn missing_field(field: &'static str) -> Error {
        de::Error::custom(format!("expected the key `{field}`, found none"))
    }
}

fn unknown(what: &str, found: &str, known: &'static [&'static str]) -> Error {
    let list = known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    let help = match nearest(found, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known here: {list}"),
        None => format!("known here: {list}"),
    };
    Error { message: format!("expected {what}, found `{found}`"), help: Some(help), place: None }
}

/// Rust's names of types in the words of a reader.
fn plain(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "f64" | "f32" => "a number".into(),
        "usize" | "u64" | "u32" => "a whole number, 0 or more".into(),
        "i64" | "i32" => "a whole number".into(),
        "a boolean" | "bool" => "`true` or `false`".into(),
        "a string" => "a word".into(),
        "a sequence" => "a list".into(),
        _ if text.starts_with("struct") || text == "a map" => "a mapping".into(),
        _ => text,
    }
}

fn shown(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(s) => format!("`{s}`"),
        Unexpected::Signed(n) => format!("`{n}`"),
        Unexpected::Unsigned(n) => format!("`{n}`"),
        Unexpected::Float(x) => format!("`{x}`"),
        Unexpected::Bool(b) => format!("`{b}`"),
        Unexpected::Unit => "nothing".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a mapping".into(),
        other => other.to_string(),
    }
}

fn place(origin: &Origin, path: &str) -> String {
    if path.is_empty() { origin.to_string() } else { format!("{origin}: {path}") }
}

struct De<'a> {
    tree: &'a Written,
    path: String,
}

impl De<'_> {
    fn place(&self) -> String {
        place(&self.tree.origin, &self.path)
    }

    fn child(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
}

impl<'de> de::Deserializer<'de> for De<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.tree.node {
            Node::Null => visitor.visit_unit(),
            Node::Bool(b) => visitor.visit_bool(*b),
            Node::Int(n) => visitor.visit_i64(*n),
            Node::Float(x) => visitor.visit_f64(*x),
            Node::String(s) => visitor.visit_str(s),
            Node::List(items) => visitor.visit_seq(Items { de: &self, items: items.iter(), at: 0 }),
            Node::Map(entries) => {
                visitor.visit_map(Entries { de: &self, entries: entries.iter(), current: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.tree.node {
            Node::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Enumerations are plain words here.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        use serde::de::value::StrDeserializer;
        match &self.tree.node {
            Node::String(s) => {
                StrDeserializer::<Error>::new(s).deserialize_enum(name, variants, visitor)
            }
            _ => {
                let list = variants.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>();
                let found = self.tree.describe();
                Err(de::Error::custom(format!(
                    "expected one of {}, found {found}",
                    list.join(", ")
                )))
            }
        }
    }

    /// `path: 5` is a mistake, but `name: 5` where a word is wanted means the word.
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    de: &'a De<'a>,
    items: std::slice::Iter<'a, Written>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(tree) = self.items.next() else { return Ok(None) };
        let de = De { tree, path: format!("{}[{}]", self.de.path, self.at) };
        self.at += 1;
        let place = de.place();
        seed.deserialize(de).map(Some).map_err(|e| e.at(place))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a> {
    de: &'a De<'a>,
    entries: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        use serde::de::IntoDeserializer;
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.current = Some(entry);
        let at = || place(&entry.key_origin, &self.de.path);
        seed.deserialize(entry.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|e: Error| e.at(at()))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let entry = self.current.take().expect("a value follows its key");
        let de = De { tree: &entry.value, path: self.de.child(&entry.key) };
        let place = de.place();
        seed.deserialize(de).map_err(|e| e.at(place))
    }
}
