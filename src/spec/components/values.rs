//! Values of arguments: variables taken out, types as the argument wants them.

use super::{Argument, Bound, Kind};
use crate::config::written::{Entry, Node as WrittenNode, Origin, Written};
use crate::template::graph::{Located, Value};
use anyhow::{Result, bail};
use serde_json::{Map, Value as Json};

/// The values that variables (`!var`) were given, by name.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    vars: Vec<(String, Located)>,
}

impl Scope {
    /// Values from a command line or another program; `source` stands for their place.
    pub fn from_json(source: &str, vars: &Map<String, Json>) -> Scope {
        let origin = Origin { file: source.into(), line: 0, column: 0 };
        let vars = vars.iter().map(|(name, value)| (name.clone(), from_json(value, &origin)));
        Scope { vars: vars.collect() }
    }

    pub fn new(vars: Vec<(String, Located)>) -> Scope {
        Scope { vars }
    }

    /// The value of a variable; its default if it was given none; nothing without either.
    pub fn lookup(&self, value: &Located) -> Result<Option<Located>> {
        let Value::Var(var) = &value.value else { return Ok(Some(value.clone())) };
        match self.vars.iter().find(|(name, _)| *name == var.name) {
            Some((_, given)) => Ok(Some(given.clone())),
            None => var.default.as_ref().map(|default| self.plain(default)).transpose(),
        }
    }

    /// A value without variables, and with `!list`, `!tuple` and `!dict` as what they make. Nodes of other components stay.
    ///
    /// # Errors
    ///
    /// When a variable has no value.
    pub fn plain(&self, value: &Located) -> Result<Located> {
        let Some(value) = self.lookup(value)? else {
            bail!(
                "{}: expected a value for the variable {}, found none\n  help: the project that uses this one gives it",
                value.origin,
                value.value.describe().trim_start_matches("the variable ")
            );
        };
        let plain = match &value.value {
            Value::List(items) | Value::Tuple(items) => Value::List(self.items(items)?),
            Value::Dict(entries) => Value::Dict(self.entries(entries)?),
            Value::Node(node) => match (node.target.as_str(), node.args.as_slice()) {
                ("named_dict" | "dict", []) => Value::Dict(self.entries(&node.kwargs)?),
                ("named_list" | "named_tuple" | "list" | "tuple", []) => Value::List(Vec::new()),
                ("named_list" | "named_tuple" | "list" | "tuple", [list]) => {
                    self.plain(list)?.value
                }
                _ => value.value.clone(),
            },
            other => other.clone(),
        };
        Ok(Located { value: plain, origin: value.origin.clone() })
    }

    fn items(&self, items: &[Located]) -> Result<Vec<Located>> {
        items.iter().map(|item| self.plain(item)).collect()
    }

    fn entries(&self, entries: &[(String, Located)]) -> Result<Vec<(String, Located)>> {
        entries.iter().map(|(key, value)| Ok((key.clone(), self.plain(value)?))).collect()
    }
}

impl Bound<'_> {
    /// What an argument was given, plain and of its type; nothing where it was not given, or `null`.
    ///
    /// # Errors
    ///
    /// When it is of another type, or a variable in it has no value.
    pub fn value(&self, scope: &Scope, name: &str) -> Result<Option<Located>> {
        let Some(argument) = self.component.argument(name) else { return Ok(None) };
        let Some(value) = self.get(name) else { return Ok(None) };
        let value = scope.plain(value)?;
        if matches!(value.value, Value::Null) {
            return Ok(None);
        }
        Ok(Some(typed(self, argument, value)?))
    }

    /// The same for an argument that has to be given.
    ///
    /// # Errors
    ///
    /// When it is not; else as [`Bound::value`].
    pub fn needed(&self, scope: &Scope, name: &str) -> Result<Located> {
        match self.value(scope, name)? {
            Some(value) => Ok(value),
            None => bail!(
                "{}: {}: expected the argument `{name}`, found {}",
                self.origin_of(name),
                self.component.name,
                if self.get(name).is_some() { "nothing in it" } else { "none" }
            ),
        }
    }

    /// A number, or the argument's default; nothing where that is `null`.
    pub fn float(&self, scope: &Scope, name: &str) -> Result<Option<f64>> {
        Ok(match self.or_default(scope, name)?.value {
            Value::Float(x) => Some(x),
            Value::Int(n) => Some(n as f64),
            _ => None,
        })
    }

    /// A whole number, or the argument's default; nothing where that is `null`.
    pub fn int(&self, scope: &Scope, name: &str) -> Result<Option<i64>> {
        Ok(match self.or_default(scope, name)?.value {
            Value::Int(n) => Some(n),
            _ => None,
        })
    }

    /// `True` or `False`, or the argument's default.
    pub fn bool(&self, scope: &Scope, name: &str) -> Result<bool> {
        Ok(matches!(self.or_default(scope, name)?.value, Value::Bool(true)))
    }

    /// Text, or the argument's default; nothing where that is `null`.
    pub fn text(&self, scope: &Scope, name: &str) -> Result<Option<String>> {
        Ok(match self.or_default(scope, name)?.value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// What an argument was given, or its default, at the place of either.
    pub fn or_default(&self, scope: &Scope, name: &str) -> Result<Located> {
        if let Some(value) = self.value(scope, name)? {
            return Ok(value);
        }
        let default = self.component.argument(name).and_then(|argument| argument.default);
        Ok(from_json(&yaml(default.unwrap_or("null")), self.origin_of(name)))
    }
}

/// A value as the type of its argument: text that is a number where a number is wanted, `no` where a word is.
pub(crate) fn typed(bound: &Bound, argument: &Argument, value: Located) -> Result<Located> {
    let Located { value, origin } = value;
    let found = value.describe();
    let typed = match (argument.kind, value) {
        (_, Value::Null) => Some(Value::Null),
        (Kind::Any, value) => Some(value),
        (Kind::Bool, value @ Value::Bool(_)) => Some(value),
        (Kind::Int, value @ Value::Int(_)) => Some(value),
        (Kind::Int, Value::Float(x)) if x.fract() == 0.0 && x.abs() < 2f64.powi(53) => {
            Some(Value::Int(x as i64))
        }
        (Kind::Int, Value::String(text)) => text.parse().ok().map(Value::Int),
        (Kind::Float, value @ (Value::Float(_) | Value::Int(_))) => Some(value),
        (Kind::Float, Value::String(text)) => text.parse().ok().map(Value::Float),
        (Kind::Text | Kind::Path, value @ Value::String(_)) => Some(value),
        // YAML 1.1 takes the words `no` and `yes` for truth values.
        (Kind::Text, Value::Bool(yes)) => {
            Some(Value::String(if yes { "yes" } else { "no" }.into()))
        }
        (Kind::Text, Value::Int(n)) => Some(Value::String(n.to_string())),
        (Kind::List, value @ Value::List(_)) => Some(value),
        (Kind::Mapping | Kind::ArgumentsOf(_), value @ Value::Dict(_)) => Some(value),
        (Kind::Component, value @ Value::Node(_)) => Some(value),
        _ => None,
    };
    match typed {
        Some(value) => Ok(Located { value, origin }),
        None => bail!(
            "{origin}: {}.{}: expected {}, found {found}",
            bound.component.name,
            argument.name,
            argument.kind.expected()
        ),
    }
}

/// A plain value as JSON; nodes as their targets.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::from(*b),
        Value::Int(n) => Json::from(*n),
        Value::Float(x) => Json::from(*x),
        Value::String(text) => Json::from(text.as_str()),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().map(|item| to_json(&item.value)).collect()
        }
        Value::Dict(entries) => Json::Object(
            entries.iter().map(|(key, value)| (key.clone(), to_json(&value.value))).collect(),
        ),
        Value::Node(node) => Json::from(node.target.as_str()),
        Value::Var(var) => Json::from(format!("!var {}", var.name)),
    }
}

/// A plain value in the written form, with its places.
///
/// # Errors
///
/// When there is a node or a variable in it.
pub fn to_written(value: &Located) -> Result<Written> {
    let node = match &value.value {
        Value::Null => WrittenNode::Null,
        Value::Bool(b) => WrittenNode::Bool(*b),
        Value::Int(n) => WrittenNode::Int(*n),
        Value::Float(x) => WrittenNode::Float(*x),
        Value::String(text) => WrittenNode::String(text.clone()),
        Value::List(items) | Value::Tuple(items) => {
            WrittenNode::List(items.iter().map(to_written).collect::<Result<_>>()?)
        }
        Value::Dict(entries) => WrittenNode::Map(
            entries
                .iter()
                .map(|(key, value)| {
                    let (key, key_origin) = (key.clone(), value.origin.clone());
                    Ok(Entry { key, key_origin, value: to_written(value)? })
                })
                .collect::<Result<_>>()?,
        ),
        Value::Node(_) | Value::Var(_) => {
            bail!("{}: expected a plain value, found {}", value.origin, value.value.describe())
        }
    };
    Ok(Written { node, origin: value.origin.clone() })
}

/// A value that stands at `origin`.
pub fn from_json(value: &Json, origin: &Origin) -> Located {
    let located = |value: &Json| from_json(value, origin);
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(located).collect()),
        Json::Object(map) => {
            Value::Dict(map.iter().map(|(key, value)| (key.clone(), located(value))).collect())
        }
    };
    Located { value, origin: origin.clone() }
}

/// The text of a default as a value.
pub(crate) fn yaml(text: &str) -> Json {
    let written = Written::parse("default", &format!("value: {text}"));
    written
        .ok()
        .and_then(|tree| tree.get("value").map(Written::to_json))
        .unwrap_or_else(|| Json::from(text))
}
