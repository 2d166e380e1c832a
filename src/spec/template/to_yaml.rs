//! The filter `toyaml`: a value as YAML 1.1 on one line, so that it reads back as what it was.

use super::python;
use super::scalar;
use minijinja::value::{Value, ValueKind};

/// Writes a value as one line of YAML. `None` says that a part of it is no plain value.
///
/// Booleans and integers at the top are written as Python writes them (`True`), nested ones as YAML does (`true`); mappings
/// are sorted by key.
pub(super) fn to_yaml(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }.into()),
        _ => flow(value, false),
    }
}

fn flow(value: &Value, nested: bool) -> Option<String> {
    let part = |part: &Value| flow(part, true);
    in_brackets(value, &|leaf| single(leaf, nested), &part, &part)
}

fn single(value: &Value, nested: bool) -> Option<String> {
    Some(match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => match python::as_float(value) {
            Some(x) => float(x),
            None => value.to_string(),
        },
        ValueKind::String => string(value.as_str().unwrap_or_default(), nested),
        _ => return None,
    })
}

/// Prints a value; `None` for what it does not print.
type Print<'p> = &'p dyn Fn(&Value) -> Option<String>;

/// Lists in square brackets, and maps in curly ones, sorted by key: their items by `item`, their keys by `key`. All else by
/// `single`.
pub(super) fn in_brackets(value: &Value, single: Print, item: Print, key: Print) -> Option<String> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Option<Vec<String>> = value.try_iter().ok()?.map(|x| item(&x)).collect();
            Some(format!("[{}]", items?.join(", ")))
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().ok()?.collect();
            keys.sort();
            let entry = |name: &Value| {
                Some(format!("{}: {}", key(name)?, item(&value.get_item(name).ok()?)?))
            };
            let entries: Option<Vec<String>> = keys.iter().map(entry).collect();
            Some(format!("{{{}}}", entries?.join(", ")))
        }
        _ => single(value),
    }
}

/// YAML 1.1 knows a float by its dot.
fn float(x: f64) -> String {
    if x.is_nan() {
        return ".nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { ".inf" } else { "-.inf" }.into();
    }
    let text = python::float(x);
    if text.contains('.') { text } else { text.replace('e', ".0e") }
}

/// Quotes a string only where it would be read as something else.
fn string(text: &str, nested: bool) -> String {
    if text.chars().any(|c| c != ' ' && (c.is_control() || c == '\u{feff}')) {
        return double_quoted(text);
    }
    if scalar::resolves_to_string(text) && plain_is_safe(text, nested) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether a one-line string may stand without quotes: at the top, or inside brackets (`nested`).
fn plain_is_safe(text: &str, nested: bool) -> bool {
    let starts_or_ends_with_space = text.starts_with(' ') || text.ends_with(' ');
    if starts_or_ends_with_space || text.starts_with("---") || text.starts_with("...") {
        return false;
    }
    let chars: Vec<char> = text.chars().collect();
    let space_after = |i: usize| chars.get(i + 1).is_none_or(|c| c.is_whitespace());
    let space_before = |i: usize| i == 0 || chars[i - 1].is_whitespace();
    let mut in_brackets = true;
    let mut alone = true;
    for (i, c) in chars.iter().enumerate() {
        match c {
            '#' if space_before(i) => alone = false,
            ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
            | '`'
                if i == 0 =>
            {
                alone = false;
            }
            '-' if i == 0 && space_after(i) => alone = false,
            ':' => {
                in_brackets = false;
                alone &= !space_after(i);
            }
            '?' if i == 0 => {
                in_brackets = false;
                alone &= !space_after(i);
            }
            ',' | '?' | '[' | ']' | '{' | '}' => in_brackets = false,
            _ => {}
        }
    }
    alone && (in_brackets || !nested)
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || c == '\u{feff}' => {
                out.push_str(&match c as u32 {
                    code @ ..=0xff => format!("\\x{code:02X}"),
                    code => format!("\\u{code:04X}"),
                });
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
