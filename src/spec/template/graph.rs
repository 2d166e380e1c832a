//! The node graph: plain values and *nodes*, each node a component with its arguments, shared where an anchor is aliased.

use super::Lint;
use crate::config::written::Origin;
use anyhow::{Result, anyhow};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::sync::Arc;

/// The top-level keys in order, without those that begin with a dot.
#[derive(Debug, Clone)]
pub struct Graph {
    pub entries: Vec<(String, Located)>,
    pub origin: Origin,
}

/// A value and the template line it came from.
#[derive(Debug, Clone)]
pub struct Located {
    pub value: Value,
    pub origin: Origin,
}

#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    List(Vec<Located>),
    Tuple(Vec<Located>),
    /// In the order of the text; keys are unique (the last one won).
    Dict(Vec<(String, Located)>),
    /// One `Arc` for every alias of one anchor.
    Node(Arc<Node>),
    Var(Arc<Var>),
}

/// `!singleton:target@id` and its kin.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    /// `forgather.ml.datasets:block_tokenize_fn`, `getitem`, `./file.py:Class`; `named_list`, `named_tuple` and
    /// `named_dict` for `!list`, `!dlist`, `!tuple` and `!dict`.
    pub target: String,
    /// The name after `@`, or `#N`.
    pub id: String,
    pub args: Vec<Located>,
    pub kwargs: Vec<(String, Located)>,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Built once a graph. `!call` is another spelling.
    Singleton,
    /// Built at every occurrence.
    Factory,
    /// A callable with bound arguments. `!lambda` is another spelling.
    Partial,
    /// Its arguments are handed on unbuilt.
    Meta,
}

/// `!var name`: given from outside when the graph is built.
#[derive(Debug, Clone)]
pub struct Var {
    pub name: String,
    pub default: Option<Located>,
    pub origin: Origin,
}

impl Graph {
    pub fn get(&self, key: &str) -> Option<&Located> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The JSON form: `{"$node": kind, "target", "id", "args", "kwargs"}`, `{"$ref": id}` for a node that stood before.
    /// A node without a name is counted: `#0`, `#1`, … in the order in which nodes are met.
    pub fn to_json(&self) -> Json {
        let mut writer = Writer { seen: HashMap::new() };
        Json::Object(writer.entries(&self.entries))
    }
}

/// What a value is read as. `what` names it in errors, by its key path.
///
/// Numbers may come as strings: YAML 1.1 calls `1e-5` one, and templates print `5e-05`. They are read as the numbers that
/// they mean, and `notes` gains one line that says so, once a place.
impl Located {
    /// A number.
    ///
    /// # Errors
    ///
    /// When it is none: with the origin, what was expected and what was found.
    pub fn as_f64(&self, what: &str, notes: &mut Vec<Lint>) -> Result<f64> {
        match &self.value {
            Value::Int(n) => Ok(*n as f64),
            Value::Float(x) => Ok(*x),
            Value::String(text) => match number(text) {
                Some(x) => {
                    self.note_number(what, text, notes);
                    Ok(x)
                }
                None => Err(self.unexpected(what, "a number")),
            },
            _ => Err(self.unexpected(what, "a number")),
        }
    }

    /// A whole number; `1.0e3` is one.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_i64(&self, what: &str, notes: &mut Vec<Lint>) -> Result<i64> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let whole = |x: f64| (x.fract() == 0.0 && x.abs() <= EXACT).then_some(x as i64);
        let found = match &self.value {
            Value::Int(n) => Some(*n),
            Value::Float(x) => whole(*x),
            Value::String(text) => {
                let found = text.parse().ok().or_else(|| number(text).and_then(whole));
                if found.is_some() {
                    self.note_number(what, text, notes);
                }
                found
            }
            _ => None,
        };
        found.ok_or_else(|| self.unexpected(what, "a whole number"))
    }

    /// A truth value.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_bool(&self, what: &str) -> Result<bool> {
        match &self.value {
            Value::Bool(b) => Ok(*b),
            _ => Err(self.unexpected(what, "`true` or `false`")),
        }
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_str(&self, what: &str) -> Result<&str> {
        match &self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.unexpected(what, "a string")),
        }
    }

    /// The items of a list, a tuple, or a node that is built as one: `!list`, `!tuple`, `!dlist`.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_list(&self, what: &str) -> Result<&[Located]> {
        match &self.value {
            Value::List(items) | Value::Tuple(items) => Ok(items),
            Value::Node(node) if matches!(node.target.as_str(), "named_list" | "named_tuple") => {
                match node.args.first().map(|argument| &argument.value) {
                    Some(Value::List(items) | Value::Tuple(items)) => Ok(items),
                    _ => Ok(&[]),
                }
            }
            _ => Err(self.unexpected(what, "a list")),
        }
    }

    /// The entries of a mapping, or of a node that is built as one: `!dict`.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_dict(&self, what: &str) -> Result<&[(String, Located)]> {
        match &self.value {
            Value::Dict(entries) => Ok(entries),
            Value::Node(node) if node.target == "named_dict" => Ok(&node.kwargs),
            _ => Err(self.unexpected(what, "a mapping")),
        }
    }

    /// The node that this is.
    ///
    /// # Errors
    ///
    /// As [`Located::as_f64`].
    pub fn as_node(&self, what: &str) -> Result<&Arc<Node>> {
        match &self.value {
            Value::Node(node) => Ok(node),
            _ => Err(self.unexpected(what, "a component")),
        }
    }

    /// Whether nothing stands here.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The error of a value that is not what it should be.
    pub fn unexpected(&self, what: &str, expected: &str) -> anyhow::Error {
        anyhow!("{}: {what}: expected {expected}, found {}", self.origin, self.value.describe())
    }

    fn note_number(&self, what: &str, text: &str, notes: &mut Vec<Lint>) {
        let message =
            format!("{what}: `{text}` is a string in YAML 1.1, read as the number it means");
        let note = Lint { origin: self.origin.clone(), message };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

/// The number that a string means: digits with an optional fraction and exponent.
fn number(text: &str) -> Option<f64> {
    let starts =
        text.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    starts.then(|| text.parse().ok()).flatten().filter(|x: &f64| x.is_finite())
}

impl Node {
    /// The keyword argument of a name.
    pub fn kwarg(&self, name: &str) -> Option<&Located> {
        self.kwargs.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl Value {
    /// What an error shows of a value: scalars as they are, in backticks.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Int(n) => format!("`{n}`"),
            Value::Float(x) => format!("`{x}`"),
            Value::String(s) => format!("`{s}`"),
            Value::List(items) | Value::Tuple(items) => format!("a list of {}", items.len()),
            Value::Dict(entries) => format!("a mapping of {} keys", entries.len()),
            Value::Node(node) => format!("`{}`", node.target),
            Value::Var(var) => format!("the variable `{}`", var.name),
        }
    }
}

impl Kind {
    /// As the JSON form names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Singleton => "singleton",
            Kind::Factory => "factory",
            Kind::Partial => "partial",
            Kind::Meta => "meta",
        }
    }
}

/// Writes JSON and remembers which nodes it wrote, with their ids.
struct Writer {
    seen: HashMap<*const Node, String>,
}

impl Writer {
    fn value(&mut self, located: &Located) -> Json {
        match &located.value {
            Value::Null => Json::Null,
            Value::Bool(b) => json!(b),
            Value::Int(n) => json!(n),
            Value::Float(x) => json!(x),
            Value::String(s) => json!(s),
            Value::List(items) | Value::Tuple(items) => self.items(items),
            Value::Dict(entries) => Json::Object(self.entries(entries)),
            Value::Node(node) => self.node(node),
            Value::Var(var) => {
                let mut map = Map::new();
                map.insert("$node".into(), json!("var"));
                map.insert("name".into(), json!(var.name));
                if let Some(default) = &var.default {
                    map.insert("default".into(), self.value(default));
                }
                Json::Object(map)
            }
        }
    }

    fn items(&mut self, items: &[Located]) -> Json {
        Json::Array(items.iter().map(|item| self.value(item)).collect())
    }

    fn entries(&mut self, entries: &[(String, Located)]) -> Map<String, Json> {
        entries.iter().map(|(key, value)| (key.clone(), self.value(value))).collect()
    }

    fn node(&mut self, node: &Arc<Node>) -> Json {
        if let Some(id) = self.seen.get(&Arc::as_ptr(node)) {
            return json!({ "$ref": id });
        }
        let id = match node.id.as_str() {
            number if number.starts_with('#') => format!("#{}", self.seen.len()),
            name => name.to_string(),
        };
        self.seen.insert(Arc::as_ptr(node), id.clone());
        let mut map = Map::new();
        map.insert("$node".into(), json!(node.kind.name()));
        map.insert("target".into(), json!(node.target));
        map.insert("id".into(), json!(id));
        if !node.args.is_empty() {
            map.insert("args".into(), self.items(&node.args));
        }
        if !node.kwargs.is_empty() {
            map.insert("kwargs".into(), Json::Object(self.entries(&node.kwargs)));
        }
        Json::Object(map)
    }
}
