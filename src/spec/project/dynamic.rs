//! Dynamic arguments: options of the command line that a template declares under `dynamic_args`, and whose values it sees as
//! variables.
//!
//! ```yaml
//! dynamic_args: !dlist
//!     max_length:
//!         names: [ "-L", "--max-length" ]     # the first long name is the variable: max_length
//!         type: int                           # int, str (if absent), float, bool or path
//!         help: "Maximum tokens per output block"
//!     verbose:
//!         names: "--verbose"
//!         action: store_true                  # or store_false; takes no value
//!     packing:
//!         names: "--packing"
//!         choices: [ greedy, best_fit ]
//!         default: {{ ns.packing }}           # only shown; the template's own default is what holds
//! ```
//!
//! An option that is not given leaves its variable undefined, so that the template's `| default(…)` holds; `store_true` and
//! `store_false` options always have a value. A path is made absolute, `~` is the home folder.

use super::{describe, scalar};
use crate::config::nearest;
use crate::config::written::Origin;
use crate::template::Rendered;
use crate::template::graph::{Graph, Located, Value};
use anyhow::{Result, bail};
use regex::Regex;
use serde_json::Value as Json;
use std::path::Path;

/// One declared option.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicArg {
    /// The template variable that its value becomes.
    pub variable: String,
    /// Without their dashes.
    pub long: Vec<String>,
    pub short: Vec<char>,
    pub kind: ArgType,
    pub action: Action,
    /// The values that are allowed; empty for any.
    pub choices: Vec<Json>,
    pub help: String,
    /// Stands for the value in the help.
    pub metavar: Option<String>,
    /// What holds if the option is not given, as the help shows it; nothing if it is not known.
    pub default: Option<String>,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgType {
    Int,
    Str,
    Float,
    Bool,
    Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Store,
    StoreTrue,
    StoreFalse,
}

const TYPES: [(&str, ArgType); 5] = [
    ("int", ArgType::Int),
    ("str", ArgType::Str),
    ("float", ArgType::Float),
    ("bool", ArgType::Bool),
    ("path", ArgType::Path),
];
const ACTIONS: [(&str, Action); 3] = [
    ("store", Action::Store),
    ("store_true", Action::StoreTrue),
    ("store_false", Action::StoreFalse),
];
const KEYS: [&str; 7] = ["names", "type", "action", "choices", "help", "default", "metavar"];

/// The options that a rendered configuration declares, in its order.
///
/// # Errors
///
/// When a declaration is not one, or two share a name or a variable: with the file and line it came from.
pub fn declared(rendered: &Rendered, graph: &Graph) -> Result<Vec<DynamicArg>> {
    let Some(declarations) = graph.get("dynamic_args") else { return Ok(Vec::new()) };
    let mut args: Vec<DynamicArg> = Vec::new();
    for (key, declaration) in declarations_of(declarations)? {
        let mut arg = read(&key, declaration)?;
        for other in &args {
            let shared = arg.names().into_iter().find(|name| other.names().contains(name));
            let shared = shared.or((arg.variable == other.variable).then(|| arg.variable.clone()));
            if let Some(shared) = shared {
                bail!(
                    "{}: {key}: expected a name of its own, found `{shared}`, which {} declares too",
                    arg.origin,
                    other.origin
                );
            }
        }
        arg.default = arg.default.or_else(|| template_default(rendered, &arg.variable));
        args.push(arg);
    }
    Ok(args)
}

impl DynamicArg {
    /// All names with their dashes, as they were declared.
    pub fn names(&self) -> Vec<String> {
        let long = self.long.iter().map(|name| format!("--{name}"));
        self.short.iter().map(|name| format!("-{name}")).chain(long).collect()
    }

    /// Reads a value that was given; relative paths start at `cwd`.
    ///
    /// # Errors
    ///
    /// Says what was expected and what was found, if it is not of the type or none of the choices.
    pub fn parse(&self, text: &str, cwd: &Path) -> Result<Json, String> {
        let expected = |what: &str| Err(format!("expected {what}, found `{text}`"));
        let value = match self.kind {
            ArgType::Str => Json::from(text),
            ArgType::Int => match text.replace('_', "").parse::<i64>() {
                Ok(number) => Json::from(number),
                Err(_) => return expected("a whole number"),
            },
            ArgType::Float => match text.replace('_', "").parse::<f64>() {
                Ok(number) if number.is_finite() => Json::from(number),
                _ => return expected("a number"),
            },
            ArgType::Bool => match text.to_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Json::from(true),
                "false" | "0" | "no" | "off" => Json::from(false),
                _ => return expected("true or false"),
            },
            ArgType::Path => match absolute_path(text, cwd) {
                Some(path) => Json::from(path),
                None => return expected("a path"),
            },
        };
        if !self.choices.is_empty() && !self.choices.contains(&value) {
            let choices: Vec<String> = self.choices.iter().map(bare).collect();
            let near = nearest(text, choices.iter().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return expected(&format!("one of {}", choices.join(", "))).map_err(|e| e + &near);
        }
        Ok(value)
    }

    /// The value that it has without being given, if it has one.
    pub fn absent(&self) -> Option<Json> {
        match self.action {
            Action::Store => None,
            Action::StoreTrue => Some(Json::from(false)),
            Action::StoreFalse => Some(Json::from(true)),
        }
    }
}

impl ArgType {
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// The declarations with a name for errors, from a mapping, a list or what `!dlist` makes of one; nulls are placeholders.
fn declarations_of(value: &Located) -> Result<Vec<(String, &Located)>> {
    let named = |key: &str| format!("dynamic_args.{key}");
    let numbered = |index: usize| format!("dynamic_args[{index}]");
    let declarations: Vec<(String, &Located)> = match &value.value {
        Value::Null => Vec::new(),
        Value::Dict(entries) => entries.iter().map(|(key, value)| (named(key), value)).collect(),
        Value::List(items) => {
            items.iter().enumerate().map(|(index, item)| (numbered(index), item)).collect()
        }
        // `!dlist`, `!list` and `!dict` are nodes that build a list or a mapping.
        Value::Node(node) if node.target.starts_with("named_") => match node.args.as_slice() {
            [] => node.kwargs.iter().map(|(key, value)| (named(key), value)).collect(),
            [list] => return declarations_of(list),
            _ => bail!("{}: dynamic_args: expected one list, found several", value.origin),
        },
        other => bail!(
            "{}: dynamic_args: expected a `!dlist` of declarations, found {}",
            value.origin,
            describe(other)
        ),
    };
    Ok(declarations.into_iter().filter(|(_, value)| !matches!(value.value, Value::Null)).collect())
}

/// Reads one declaration; `path` names it in errors.
fn read(path: &str, declaration: &Located) -> Result<DynamicArg> {
    let entries = match &declaration.value {
        Value::Dict(entries) => entries.as_slice(),
        Value::Node(node) if node.target == "named_dict" => node.kwargs.as_slice(),
        other => bail!(
            "{}: {path}: expected a mapping with `names`, found {}",
            declaration.origin,
            describe(other)
        ),
    };
    let mut arg = DynamicArg {
        variable: String::new(),
        long: Vec::new(),
        short: Vec::new(),
        kind: ArgType::Str,
        action: Action::Store,
        choices: Vec::new(),
        help: String::new(),
        metavar: None,
        default: None,
        origin: declaration.origin.clone(),
    };
    let mut typed = None;
    for (key, value) in entries {
        let path = format!("{path}.{key}");
        match (key.as_str(), &value.value) {
            (_, Value::Null) => {}
            ("names", _) => read_names(&path, value, &mut arg)?,
            ("type", _) => {
                arg.kind = one_of(&path, value, &TYPES)?;
                typed = Some(value);
            }
            ("action", _) => arg.action = one_of(&path, value, &ACTIONS)?,
            ("choices", _) => {
                arg.choices = items(value).map(|item| plain(&path, item)).collect::<Result<_>>()?
            }
            ("help", _) => arg.help = bare(&plain(&path, value)?),
            ("metavar", _) => arg.metavar = Some(bare(&plain(&path, value)?)),
            ("default", _) => arg.default = Some(bare(&plain(&path, value)?)),
            _ => bail!(
                "{}: {path}: expected one of {}, found `{key}`{}",
                value.origin,
                KEYS.join(", "),
                nearest(key, KEYS)
                    .map(|near| format!("\n  help: did you mean `{near}`?"))
                    .unwrap_or_default()
            ),
        }
    }
    arg.variable = match (arg.long.first(), arg.short.first()) {
        (Some(long), _) => long.replace('-', "_"),
        (None, Some(short)) => short.to_string(),
        (None, None) => bail!("{}: {path}: expected `names`, found none", declaration.origin),
    };
    if let (true, Some(value)) = (arg.action != Action::Store, typed) {
        bail!("{}: {path}: expected a type or an action without a value, found both", value.origin);
    }
    check_choices(path, &mut arg)?;
    Ok(arg)
}

fn read_names(path: &str, value: &Located, arg: &mut DynamicArg) -> Result<()> {
    for item in items(value) {
        let name = bare(&plain(path, item)?);
        let word = |text: &str| {
            let mut chars = text.chars();
            chars.next().is_some_and(char::is_alphanumeric)
                && chars.all(|c| c.is_alphanumeric() || c == '-' || c == '_')
        };
        match (name.strip_prefix("--"), name.strip_prefix('-')) {
            (Some(long), _) if word(long) => arg.long.push(long.to_string()),
            (None, Some(short)) if word(short) && short.chars().count() == 1 => {
                arg.short.extend(short.chars());
            }
            _ => bail!("{}: {path}: expected `-x` or `--long-name`, found `{name}`", item.origin),
        }
    }
    Ok(())
}

/// Choices are values of the argument's type.
fn check_choices(path: &str, arg: &mut DynamicArg) -> Result<()> {
    let choices = std::mem::take(&mut arg.choices);
    if !choices.is_empty() && arg.action != Action::Store {
        bail!("{}: {path}: expected choices or an action without a value, found both", arg.origin);
    }
    // A path that is chosen from a list is written as it is.
    let typed = |choice: &Json| match arg.kind {
        ArgType::Path => Ok(choice.clone()),
        _ => arg.parse(&bare(choice), Path::new("")),
    };
    let typed: Result<Vec<Json>, String> = choices.iter().map(typed).collect();
    match typed {
        Ok(choices) => arg.choices = choices,
        Err(why) => bail!("{}: {path}.choices: {why}", arg.origin),
    }
    Ok(())
}

fn one_of<T: Copy>(path: &str, value: &Located, known: &[(&str, T)]) -> Result<T> {
    let name = bare(&plain(path, value)?);
    if let Some((_, found)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(*found);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let near = nearest(&name, names.iter().copied());
    let near = near.map(|near| format!("\n  help: did you mean `{near}`?")).unwrap_or_default();
    bail!("{}: {path}: expected one of {}, found `{name}`{near}", value.origin, names.join(", "))
}

/// The items of a list, or the value itself.
fn items(value: &Located) -> impl Iterator<Item = &Located> {
    let items = match &value.value {
        Value::List(items) | Value::Tuple(items) => items.as_slice(),
        Value::Node(node) => match node.args.as_slice() {
            [Located { value: Value::List(items), .. }] if node.target.starts_with("named_") => {
                items
            }
            _ => std::slice::from_ref(value),
        },
        _ => std::slice::from_ref(value),
    };
    items.iter()
}

fn plain(path: &str, value: &Located) -> Result<Json> {
    match scalar(&value.value) {
        Some(json) => Ok(json),
        None => bail!(
            "{}: {path}: expected a plain value, found {}",
            value.origin,
            describe(&value.value)
        ),
    }
}

/// A value as it is typed on a command line.
fn bare(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn absolute_path(text: &str, cwd: &Path) -> Option<String> {
    let home = || directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_path_buf());
    let path = match text.strip_prefix('~') {
        Some("") => home()?,
        Some(rest) if rest.starts_with('/') => home()?.join(rest.trim_start_matches('/')),
        _ => cwd.join(text),
    };
    let path = super::normalized(&path);
    (!text.is_empty()).then(|| path.to_string_lossy().into_owned())
}

/// What the templates do without the variable: the `X` of its `| default(X)` or `| toyaml(X)`, the most derived template
/// first. `set` runs from the ancestor down, so the most derived one is what holds.
fn template_default(rendered: &Rendered, variable: &str) -> Option<String> {
    let pattern = format!(r"\b{}\s*\|\s*(?:default|toyaml)\(", regex::escape(variable));
    let pattern = Regex::new(&pattern).ok()?;
    rendered.sources.iter().find_map(|source| {
        let uses = pattern.find_iter(&source.translated);
        let own = uses.filter(|found| !source.translated[..found.start()].ends_with('.'));
        let end = own.last()?.end();
        argument(&source.translated[end..])
    })
}

/// The first argument of a call whose `(` has just been read; literals lose their quotes.
fn argument(text: &str) -> Option<String> {
    let mut depth = 0;
    let mut quote = None;
    let end = text.char_indices().find(|(_, c)| {
        match (quote, c) {
            (Some(open), c) if *c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(*c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ',') if depth == 0 => return true,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, _) => {}
        }
        false
    });
    let argument = text[..end?.0].trim();
    let literal = ['"', '\''].into_iter().find_map(|quote| {
        let inner = argument.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains(quote)).then_some(inner)
    });
    let shown = literal.unwrap_or(argument);
    (!shown.is_empty() && !shown.contains('\n')).then(|| shown.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_filters_are_found() {
        assert_eq!(argument("4096))"), Some("4096".into()));
        assert_eq!(argument("\"a, b\") }}"), Some("a, b".into()));
        assert_eq!(
            argument("abspath(joinpath(a, 'b')), true)"),
            Some("abspath(joinpath(a, 'b'))".into())
        );
        assert_eq!(argument(")"), None);
    }
}
